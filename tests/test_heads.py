"""Laws of tensor heads on random equivariant features, without a model."""


from __future__ import annotations

import numpy as np
import pytest
import torch
from head_helpers import (
    EXACT,
    arrange,
    batch_of,
    config,
    input_features,
    map_features,
    ranks_of,
    turn,
    turned_features,
    values,
)
from numpy.testing import assert_allclose
from torch import Tensor

from tace.config import HeadConfig
from tace.errors import TaceError
from tace.heads import HeadStatistics, TensorHead, needed_ranks
from tace.layers import gains
from tace.tensors import index_symmetry, rank_of

FORMULAS = ["", "i", "ij", "ij=ji", "ij=-ji", "ijk=jik", "ijk=-jik=-ikj", "ijkl=jikl=klij"]


def tensor_head(head: HeadConfig, *, seed: int = 0, **settings) -> TensorHead:
    model = config(**settings)
    return TensorHead(head, model, ranks_of(model, head), torch.Generator().manual_seed(seed)).double()


def set_random_statistics(head: TensorHead, rng) -> None:
    reference = head.reference
    head.set_statistics(
        HeadStatistics(
            rng.uniform(0.5, 2.0, tuple(reference.scale.shape)),
            rng.standard_normal(tuple(reference.shift.shape)),
        )
    )


# ------------------------------------------------------------------ which features
@pytest.mark.parametrize(
    ("formula", "l_max", "ranks"),
    [
        ("", 0, {0}),
        ("i", 3, {1}),
        ("ij=ji", 3, {0, 2}),
        ("ij=ji", 1, {0, 1}),
        ("ij", 3, {0, 1, 2}),
        ("ij", 1, {0, 1}),
        ("ij=-ji", 2, {1, 2}),
        ("ijk=-jik=-ikj", 3, {1, 2}),
        ("ijkl=jikl=klij", 4, {0, 2, 4}),
        ("ijkl=jikl=klij", 3, {0, 1, 2, 3}),
        ("ijkl=jikl=klij", 2, {0, 2}),
    ],
)
def test_the_last_layer_gives_what_the_heads_need(formula, l_max, ranks):
    assert needed_ranks([HeadConfig("t", symmetry=formula)], l_max) == ranks


def test_needs_of_several_heads_add_up_and_none_need_nothing():
    heads = [HeadConfig("a", symmetry="i"), HeadConfig("b", symmetry="ij=ji"), HeadConfig("c")]
    assert needed_ranks(heads, 3) == {0, 1, 2}
    assert needed_ranks([], 3) == set()
    assert needed_ranks([HeadConfig("a", symmetry="i", hidden=4)], 3) == {0, 1}


@pytest.mark.parametrize(
    ("formula", "l_max", "what"),
    [("i", 0, "tensor of weight 1"), ("ij=-ji", 0, "pseudo-tensor of weight 1"),
     ("ijkl=jikl=klij", 1, "tensor of weight 4"), ("ijk=-jik=-ikj", 0, "pseudo-tensor of weight 0")],
)  # fmt: skip
def test_heads_beyond_reach_of_l_max_are_refused_by_name(formula, l_max, what):
    with pytest.raises(TaceError, match=f"head t needs a {what}, which l_max = {l_max}"):
        needed_ranks([HeadConfig("t", symmetry=formula)], l_max)


# ------------------------------------------------------------------ tensors
@pytest.mark.parametrize("improper", [False, True])
@pytest.mark.parametrize("l_max", [2, 3, 4])  # weight 4 is a product, of other pairs, or has features
@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("formula", FORMULAS)
def test_tensors_turn_with_their_features(formula, hidden, l_max, improper, structure, rotation, rng):
    batch = batch_of([structure("water"), structure("crystal")])
    head = tensor_head(HeadConfig("t", symmetry=formula, hidden=hidden), l_max=l_max)
    set_random_statistics(head, rng)
    features, q = input_features(rng, 7, l_max), rotation(improper)
    before = values(head(features, batch))
    after = values(head(turned_features(features, q), batch))
    rank = rank_of(formula)
    assert before.shape == (2, *[3] * rank)
    assert_allclose(after, turn(q, before, rank), atol=EXACT * max(1.0, abs(before).max()))
    for block in index_symmetry(formula):  # no part is missing
        for m in block.isometries:
            assert np.linalg.norm(before.reshape(2, -1) @ m) > 1e-3


@pytest.mark.parametrize("formula", ["ij=ji", "ij=-ji", "ijk=jik", "ijkl=jikl=klij"])
def test_tensors_obey_their_index_symmetry(formula, structure, rng):
    batch = batch_of([structure("ethanol")])
    t = values(tensor_head(HeadConfig("t", symmetry=formula))(input_features(rng, 9), batch))
    first, *others = formula.split("=")
    for term in others:
        sign, letters = (-1, term[1:]) if term[0] == "-" else (1, term)
        assert_allclose(np.einsum(f"s{letters}->s{first}", t), sign * t, atol=EXACT)


@pytest.mark.parametrize("formula", ["", "i", "ij"])
def test_tensors_of_atoms_sum_or_average_to_those_of_structures(formula, structure, rng):
    batch = batch_of([structure("water"), structure("ethanol"), structure("atom")])
    features = input_features(rng, 13)
    heads = {
        kind: tensor_head(HeadConfig("t", symmetry=formula, **settings))
        for kind, settings in {"atom": {"scope": "atom"}, "sum": {}, "mean": {"reduce": "mean"}}.items()
    }
    statistics = HeadStatistics(np.array([1.7]), np.full((1, 3, int(formula != "i")), 0.3))
    for head in heads.values():
        head.set_statistics(statistics)
    found = {kind: values(head(features, batch)) for kind, head in heads.items()}
    atoms = found["atom"][batch.original]
    assert atoms.shape == (13, *[3] * len(formula))
    parts = np.split(atoms, [3, 12])
    assert_allclose(found["sum"], [p.sum(0) for p in parts], atol=EXACT)
    assert_allclose(found["mean"], [p.mean(0) for p in parts], atol=EXACT)


@pytest.mark.parametrize("scope", ["atom", "structure"])
def test_tensors_do_not_depend_on_batch_mates_or_the_order_of_atoms(scope, structure, rng):
    head = tensor_head(HeadConfig("t", symmetry="ij", scope=scope))
    set_random_statistics(head, rng)
    structures = [structure("ethanol"), structure("water"), structure("slab")]
    together = batch_of(structures)
    features = input_features(rng, 16)
    answer = values(head(arrange(features, together), together))
    if scope == "atom":
        answer = answer[together.original]
    start = 0
    for n, atoms in enumerate(structures):
        order = rng.permutation(len(atoms))
        own = map_features(features, lambda _, x, s=start, o=order: x[s + torch.from_numpy(o)])
        alone = batch_of([atoms[order]])
        found = values(head(arrange(own, alone), alone))
        if scope == "atom":
            assert_allclose(found[alone.original], answer[start + order], atol=EXACT)
        else:
            assert_allclose(found[0], answer[n], atol=EXACT)
        start += len(atoms)


@pytest.mark.parametrize("formula", FORMULAS)
def test_features_of_zero_leave_only_the_offsets(formula, structure, rng):
    batch = batch_of([structure("water")])
    head = tensor_head(HeadConfig("t", symmetry=formula, hidden=3))
    set_random_statistics(head, rng)
    found = values(head(map_features(input_features(rng, 3), lambda _, x: 0 * x), batch))
    first = index_symmetry(formula)[0]
    expected = np.zeros(found.size)
    if first.weight == 0 and first.natural:
        shift = values(head.reference.shift)[0]
        parts = shift[2] + 2 * shift[0]  # of one O and two H
        expected = sum(p * m[:, 0] for p, m in zip(parts, first.isometries, strict=True))
    assert_allclose(found.ravel(), expected, atol=EXACT)


def test_the_offset_of_a_matrix_is_isotropic(structure, rng):
    head = tensor_head(HeadConfig("t", symmetry="ij=ji"))
    head.set_statistics(HeadStatistics(np.ones(1), np.array([[[1.0], [2.0], [3.0]]])))
    found = head(map_features(input_features(rng, 1), lambda _, x: 0 * x), batch_of([structure("atom")]))
    assert_allclose(values(found)[0], 3.0 / np.sqrt(3.0) * np.eye(3), atol=EXACT)


def test_scales_and_offsets_are_those_of_the_fidelity(structure, rng):
    batch = batch_of([structure("water"), structure("water")], levels=[1, 0])
    head = tensor_head(HeadConfig("t"), fidelities=("low", "high"))
    water = map_features(input_features(rng, 3), lambda _, x: torch.cat([x, x]))
    head.set_statistics(HeadStatistics(np.array([1.0, 3.0]), np.zeros((2, 3, 1))))
    high, low = values(head(arrange(water, batch), batch))
    assert_allclose(high, 3.0 * low, rtol=EXACT)
    shift = np.zeros((2, 3, 1))
    shift[1, 0] = 10.0
    head.set_statistics(HeadStatistics(np.array([1.0, 3.0]), shift))
    assert_allclose(values(head(arrange(water, batch), batch)), [high + 20.0, low], rtol=EXACT)


@pytest.mark.parametrize("formula", ["i", "ij"])
def test_readouts_per_fidelity_learn_nothing_from_other_levels(formula, structure, rng):
    settings = {"fidelities": ("low", "high"), "readout": "per_fidelity"}
    head = tensor_head(HeadConfig("t", symmetry=formula, hidden=3), **settings)
    batch = batch_of([structure("water"), structure("water")], levels=[0, 1])
    water = map_features(input_features(rng, 3), lambda _, x: torch.cat([x, x]))
    found = head(arrange(water, batch), batch)
    assert np.linalg.norm(values(found[0] - found[1])) > 1e-3
    found[0].square().sum().backward()
    linear = [p for n, p in head.named_parameters() if n.endswith(("linear.0.weight", "out.weight"))]
    for weight in linear:
        assert weight.grad[:, 0::2].abs().min() > 0.0
        assert weight.grad[:, 1::2].abs().max() == 0.0


@pytest.mark.parametrize("formula", ["i", "ij", "ijk=-jik=-ikj"])
def test_tensors_can_be_differentiated_twice(formula, structure, rng):
    batch = batch_of([structure("water")])
    head = tensor_head(HeadConfig("t", symmetry=formula, hidden=2), fidelities=("a", "b"), l_max=2)
    features = input_features(rng, 3, 2)
    leaves = [x.requires_grad_() for layer in features for x in layer.values()]

    def evaluate(*xs: Tensor) -> Tensor:
        return head([dict(enumerate(xs[:3])), dict(enumerate(xs[3:]))], batch)

    assert torch.autograd.gradcheck(evaluate, leaves)
    assert torch.autograd.gradgradcheck(evaluate, leaves, fast_mode=True)  # along random directions


def test_every_parameter_of_a_tensor_head_is_trained(structure, rng):
    head = tensor_head(HeadConfig("t", symmetry="ij", hidden=3))
    head(input_features(rng, 3), batch_of([structure("water")])).square().sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0.0, name
    assert all(0.0 < g <= 1.0 for g in gains(head).values())


def test_references_stay_double_in_a_single_precision_head(structure, rng):
    head = tensor_head(HeadConfig("t", symmetry="ij=ji"))
    shift = np.full((1, 3, 1), 1.0 + 1e-12)
    head.set_statistics(HeadStatistics(np.array([1.0 / 3.0]), shift))
    head.float()
    assert {p.dtype for p in head.parameters()} == {torch.float32}
    assert head.reference.scale.item() == 1.0 / 3.0
    assert_allclose(values(head.reference.shift), shift, rtol=0)
    single = map_features(input_features(rng, 3), lambda _, x: x.float())
    found = head(single, batch_of([structure("water")]))
    assert found.dtype == torch.float64
    exact = head.double()(map_features(single, lambda _, x: x.double()), batch_of([structure("water")]))
    assert_allclose(values(found), values(exact), rtol=1e-5, atol=1e-5)  # float32 rounding, some ten sums


def test_saved_heads_give_the_same_tensors(structure, rng):
    head = tensor_head(HeadConfig("t", symmetry="ij"))
    set_random_statistics(head, rng)
    other = tensor_head(HeadConfig("t", symmetry="ij"), seed=1)
    batch, features = batch_of([structure("water")]), input_features(rng, 3)
    assert not torch.equal(other(features, batch), head(features, batch))
    other.load_state_dict(head.state_dict())
    assert torch.equal(other(features, batch), head(features, batch))
