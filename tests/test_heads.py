"""Laws of tensor heads and charge heads on random equivariant features, without a model."""

# ruff: noqa: E741  (l is the rank of a tensor)
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor

from tace.batch import Batch, collate, make_graph
from tace.charges import ChargeHead, charge_dipole, equilibrate, spread_evenly
from tace.config import HeadConfig, InputConfig, TaceConfig
from tace.errors import DataError, TaceError
from tace.heads import HeadLabel, HeadStatistics, TensorHead, head_statistics, needed_ranks
from tace.ict import stf_basis
from tace.layers import gains
from tace.offsets import fit_offsets
from tace.tensors import index_symmetry, rank_of

ELEMENTS = (1, 6, 8)
CHANNELS = 4
EXACT = 1e-12  # sums of some 1e3 products of order one, in float64
FORMULAS = ["", "i", "ij", "ij=ji", "ij=-ji", "ijk=jik", "ijk=-jik=-ikj", "ijkl=jikl=klij"]


def config(**settings) -> TaceConfig:
    return TaceConfig(**{"elements": ELEMENTS, "channels": CHANNELS, "l_max": 3, "L_max": 1, **settings})


def ranks_of(model: TaceConfig, *heads: HeadConfig) -> list[list[int]]:
    """What the two layers give: the first up to L_max, the last what the heads need and no more."""
    return [list(range(model.L_max + 1)), sorted(needed_ranks(heads, model.l_max))]


def tensor_head(head: HeadConfig, *, seed: int = 0, **settings) -> TensorHead:
    model = config(**settings)
    return TensorHead(head, model, ranks_of(model, head), torch.Generator().manual_seed(seed)).double()


def charge_head(kind: str, *, seed: int = 0, **settings) -> ChargeHead:
    head = HeadConfig("charges", scope="atom", charges=kind, hidden=settings.pop("hidden", 0))
    return ChargeHead(head, config(**settings), [[0, 1], [0]], torch.Generator().manual_seed(seed)).double()


def batch_of(structures: Sequence, *, charges: Sequence[float] | None = None, levels=None) -> Batch:
    inputs = (InputConfig("total_charge"),) if charges is not None else ()
    graphs = []
    for n, atoms in enumerate(structures):
        if charges is not None:
            atoms.info["total_charge"] = charges[n]
        level = levels[n] if levels else 0
        graphs.append(make_graph(atoms, ELEMENTS, cutoff=3.0, fidelity=level, inputs=inputs))
    return collate(graphs, len(ELEMENTS))


def input_features(rng, n_atoms: int, l_max: int = 3) -> list[dict[int, Tensor]]:
    """Features of two layers in the order of the input, ranks 0 to l_max in both."""
    return [
        {l: torch.from_numpy(rng.standard_normal((n_atoms, 2 * l + 1, CHANNELS))) for l in range(l_max + 1)}
        for _ in range(2)
    ]


def arrange(features, batch: Batch) -> list[dict[int, Tensor]]:
    """From the order of the input to that of the batch."""
    place = torch.argsort(batch.original)
    return [{l: x[place] for l, x in layer.items()} for layer in features]


def map_features(features, function) -> list[dict[int, Tensor]]:
    return [{l: function(l, x) for l, x in layer.items()} for layer in features]


def turn(q: np.ndarray, tensor: np.ndarray, rank: int) -> np.ndarray:
    """q on the last `rank` indices."""
    for axis in range(tensor.ndim - rank, tensor.ndim):
        tensor = np.moveaxis(np.tensordot(q, tensor, (1, axis)), 0, axis)
    return tensor


def turned_features(features, q: np.ndarray) -> list[dict[int, Tensor]]:
    """Of natural parity: q may be improper."""

    def act(l: int, x: Tensor) -> Tensor:
        basis = stf_basis(l).T.reshape(2 * l + 1, *[3] * l)
        matrix = stf_basis(l).T @ turn(q, basis, l).reshape(2 * l + 1, -1).T
        return torch.einsum("mn,anc->amc", torch.from_numpy(matrix), x)

    return map_features(features, act)


def values(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


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


# ------------------------------------------------------------------ statistics
def planted(rng, head: HeadConfig, shift: np.ndarray, *, noise: float, n: int = 400) -> list[HeadLabel]:
    """Labels of random compositions: offsets [Z, n] of the scalar parts plus noise in every part."""
    blocks = index_symmetry(head.symmetry)
    basis = np.concatenate([m.T for b in blocks for m in b.isometries])
    labels = []
    for _ in range(n):
        species = rng.integers(0, 3, rng.integers(2, 9))
        parts = noise * rng.standard_normal((len(species), len(basis)))
        parts[:, : shift.shape[1]] += shift[species]
        if head.scope == "structure":
            parts = parts.sum(0) if head.reduce == "sum" else parts.mean(0)
        shape = (*parts.shape[:-1], *(3,) * rank_of(head.symmetry))
        labels.append(HeadLabel(species, (parts @ basis).reshape(shape), 0))
    return labels


@pytest.mark.parametrize("settings", [{}, {"reduce": "mean"}, {"scope": "atom"}])
@pytest.mark.parametrize("formula", ["", "ij=ji", "ijkl=jikl=klij"])
def test_statistics_find_planted_offsets(formula, settings, rng):
    head = HeadConfig("t", symmetry=formula, **settings)
    n_scalars = len(index_symmetry(formula)[0].isometries)
    shift = rng.standard_normal((3, n_scalars))
    found = head_statistics(head, planted(rng, head, shift, noise=0.0), n_elements=3, n_fidelities=1)
    assert_allclose(found.shift[0], shift, atol=1e-10)  # least squares on 400 compositions


@pytest.mark.parametrize("settings", [{}, {"scope": "atom"}])
@pytest.mark.parametrize("formula", ["", "i", "ij=ji"])
def test_statistics_find_the_planted_size_per_atom(formula, settings, rng):
    head = HeadConfig("t", symmetry=formula, **settings)
    shift = np.full((3, int(formula != "i")), 5.0)
    found = head_statistics(head, planted(rng, head, shift, noise=0.2), n_elements=3, n_fidelities=1)
    # 400 numbers or more: their rms is known to 1/√800 = 3.5 %; three times that
    assert_allclose(found.scale, [0.2], rtol=0.11)
    assert found.shift.shape == (1, 3, int(formula != "i"))


def test_levels_and_elements_without_labels_take_what_the_others_know(rng):
    head = HeadConfig("t")
    shift = np.array([[1.0], [2.0], [3.0]])
    low = planted(rng, head, shift, noise=0.0)
    high = [HeadLabel(np.array([0] * n), np.array(1.5 * n), 1) for n in (1, 2, 3)]  # element 0 alone
    found = head_statistics(head, [*low, *high], n_elements=3, n_fidelities=3)
    assert_allclose(found.shift[0], shift, atol=1e-10)
    assert_allclose(found.shift[1, 0], 1.5, atol=1e-10)
    assert_allclose(found.shift[1, 1:], found.shift[2, 1:], atol=1e-10)
    assert_allclose(found.shift[2], shift, atol=0.1)  # of all together: three labels of 403 differ
    assert (found.scale > 0).all()


def test_labels_that_are_unknown_are_left_out(rng):
    head = HeadConfig("t", scope="atom")
    labels = [HeadLabel(np.array([0, 1, 2]), np.array([1.0, np.nan, 3.0]), 0)]
    found = head_statistics(head, labels, n_elements=3, n_fidelities=1)
    assert_allclose(found.shift[0, :, 0], [1.0, 0.0, 3.0], atol=EXACT)


def test_labels_that_offsets_explain_fully_still_give_a_size():
    head = HeadConfig("t")
    one = [HeadLabel(np.array([0]), np.array(4.0), 0)]
    assert head_statistics(head, one, n_elements=1, n_fidelities=1).scale == 4.0
    zero = [HeadLabel(np.array([0]), np.zeros(3), 0)]
    assert head_statistics(HeadConfig("t", symmetry="i"), zero, n_elements=1, n_fidelities=1).scale == 1.0


@pytest.mark.parametrize(
    ("settings", "value", "why"),
    [
        ({"symmetry": "i"}, np.zeros((3, 3)), r"label 0 has shape \(3, 3\), expected \(3,\)"),
        ({"symmetry": "i", "scope": "atom"}, np.zeros(3), r"expected \(2, 3\)"),
        ({"symmetry": "ij=ji"}, np.arange(9.0).reshape(3, 3), "do not obey the index symmetry 'ij=ji'"),
        ({"symmetry": "i"}, np.full(3, np.nan), "no structure has a label"),
    ],
)
def test_labels_that_do_not_fit_the_head_are_refused(settings, value, why):
    with pytest.raises(DataError, match=f"head t: .*{why}"):
        head_statistics(
            HeadConfig("t", **settings),
            [HeadLabel(np.array([0, 1]), value, 0)],
            n_elements=2,
            n_fidelities=1,
        )


def test_statistics_of_no_labels_are_refused():
    with pytest.raises(DataError, match="no structure has a label"):
        head_statistics(HeadConfig("t"), [], n_elements=2, n_fidelities=1)


# ------------------------------------------------------------------ charges
def sums(q: Tensor, batch: Batch) -> np.ndarray:
    return np.bincount(batch.structure.numpy(), values(q), batch.n_structures)


def test_equilibrated_charges_are_the_golden_ones():
    chi = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    eta = torch.tensor([2.0, -4.0, 1.0], dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    q = equilibrate(chi, eta, one, torch.zeros(3, dtype=torch.int64))
    assert_allclose(values(q), [0.19285714, 0.22142857, 0.58571429], atol=5e-9)  # printed to eight decimals
    assert_allclose(values(chi + eta.abs() * q), 0.68571429, atol=5e-9)


def test_evenly_spread_charges_lose_their_excess():
    raw = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    structure = torch.tensor([0, 0, 1])
    total = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert_allclose(values(spread_evenly(raw, total, structure)), [0.0, 1.0, 0.0], atol=EXACT)


def test_equilibrated_charges_minimise_the_energy_at_their_sum(rng):
    chi, eta = (torch.from_numpy(x) for x in rng.uniform(0.2, 2.0, (2, 6)))
    zero = torch.zeros(6, dtype=torch.int64)
    q = equilibrate(chi, eta, torch.ones(1, dtype=torch.float64), zero)

    def energy(q: np.ndarray) -> float:
        return float((values(chi) * q + 0.5 * values(eta) * q**2).sum())

    for _ in range(20):
        other = rng.standard_normal(6)
        assert energy(values(q) + 0.1 * (other - other.mean())) > energy(values(q))


@pytest.mark.parametrize("hidden", [0, 4])
@pytest.mark.parametrize("kind", ["qeq", "uniform"])
def test_charges_sum_to_the_total_charge(kind, hidden, structure, rng):
    structures = [structure("ethanol"), structure("crystal"), structure("atom"), structure("water")]
    total = [1.0, -2.0, 3.0, 0.0]
    head = charge_head(kind, hidden=hidden)
    batch = batch_of(structures, charges=total)
    q = head(input_features(rng, 17), batch)
    assert q.shape == (17,)
    assert q.dtype == torch.float64
    assert_allclose(sums(q, batch), total, atol=EXACT)
    assert np.std(values(q)[values(batch.structure) == 0]) > 1e-2
    neutral = batch_of(structures)
    assert_allclose(sums(head(input_features(rng, 17), neutral), neutral), 0.0, atol=EXACT)


def test_single_precision_charges_sum_as_exactly(structure, rng):
    head = charge_head("qeq").float()
    batch = batch_of([structure("ethanol")], charges=[1.0])
    single = map_features(input_features(rng, 9), lambda _, x: x.float())
    assert_allclose(sums(head(single, batch), batch), 1.0, atol=EXACT)


def test_free_charges_sum_to_anything(structure, rng):
    batch = batch_of([structure("ethanol")], charges=[1.0])
    q = charge_head("free")(input_features(rng, 9), batch)
    assert abs(sums(q, batch)[0] - 1.0) > 1e-2


@pytest.mark.parametrize("improper", [False, True])
def test_charges_do_not_turn(improper, structure, rotation, rng):
    batch = batch_of([structure("water")])
    head, features = charge_head("qeq", hidden=3), input_features(rng, 3)
    turned = head(turned_features(features, rotation(improper)), batch)
    assert_allclose(values(turned), values(head(features, batch)), atol=EXACT)


@pytest.mark.parametrize("kind", ["qeq", "uniform", "free"])
def test_charges_do_not_depend_on_batch_mates_or_the_order_of_atoms(kind, structure, rng):
    structures, total = [structure("ethanol"), structure("water")], [1.0, -1.0]
    head, features = charge_head(kind), input_features(rng, 12)
    together = batch_of(structures, charges=total)
    answer = values(head(arrange(features, together), together))[together.original]
    order = rng.permutation(3)
    alone = batch_of([structures[1][order]], charges=total[1:])
    own = map_features(features, lambda _, x: x[9 + torch.from_numpy(order)])
    found = values(head(arrange(own, alone), alone))[alone.original]
    assert_allclose(found, answer[9 + order], atol=EXACT)


@pytest.mark.parametrize("kind", ["qeq", "uniform", "free"])
def test_charge_heads_start_from_the_mean_charges_of_elements(kind, structure, rng):
    head = charge_head(kind)
    label = HeadLabel(np.array([2, 0, 0]), np.array([-0.8, 0.35, 0.45]), 0)
    head.set_statistics(head_statistics(head.head, [label], n_elements=3, n_fidelities=1))
    batch = batch_of([structure("water")])
    q = head(map_features(input_features(rng, 3), lambda _, x: 0 * x), batch)
    assert_allclose(values(q)[batch.original], [-0.8, 0.4, 0.4], atol=EXACT)


@pytest.mark.parametrize("kind", ["qeq", "uniform", "free"])
def test_charges_can_be_differentiated_twice_and_train_every_parameter(kind, structure, rng):
    head = charge_head(kind, hidden=2)
    batch = batch_of([structure("water"), structure("atom")], charges=[1.0, 0.0])
    leaves = [layer[0].requires_grad_() for layer in input_features(rng, 4)]

    def evaluate(x: Tensor, y: Tensor) -> Tensor:
        return head([{0: x}, {0: y}], batch)

    assert torch.autograd.gradcheck(evaluate, leaves)
    assert torch.autograd.gradgradcheck(evaluate, leaves)
    (evaluate(*leaves)[0] ** 3).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0.0, name
    assert set(gains(head)) == dict(head.named_parameters()).keys()


@pytest.mark.parametrize("level", [0, 1])
def test_charges_per_fidelity_learn_nothing_from_other_levels(level, structure, rng):
    head = charge_head("qeq", fidelities=("low", "high"), readout="per_fidelity")
    batch = batch_of([structure("water"), structure("water")], levels=[0, 1])
    q = head(input_features(rng, 6), batch)
    q[batch.structure == level].pow(2).sum().backward()
    for table in (head.offset, head.hardness_offset):
        assert table.grad[1 - level].abs().max() == 0.0
        assert table.grad[level].abs().max() > 0.0
    for readout in (head.readout, head.hardness):
        weight = readout.linear[0].weight
        assert weight.grad[:, 1 - level].abs().max() == 0.0
        assert weight.grad[:, level].abs().min() > 0.0


def test_dipoles_of_charges_are_sums_about_the_origin(structure, rng):
    structures = [structure("water"), structure("ethanol")]
    batch = batch_of(structures)
    q = rng.standard_normal(12)
    found = charge_dipole(torch.from_numpy(q)[torch.argsort(batch.original)], batch.positions, batch)
    expected = [q[:3] @ structures[0].positions, q[3:] @ structures[1].positions]
    assert_allclose(values(found), expected, atol=EXACT)


@pytest.mark.parametrize("name", ["crystal", "slab", "wire"])
def test_dipoles_of_charges_in_periodic_structures_are_refused(name, structure):
    batch = batch_of([structure("water"), structure(name)])
    with pytest.raises(DataError, match="structure 1 of the batch is periodic"):
        charge_dipole(torch.zeros(len(batch.species), dtype=torch.float64), batch.positions, batch)


# ---- offsets of elements ----


def test_offsets_that_the_data_determine_are_least_squares(rng):
    counts = rng.integers(0, 5, (40, 3)).astype(float)
    planted = np.array([[1.0], [-2.0], [0.5]])
    assert_allclose(fit_offsets(counts, counts @ planted), planted, atol=1e-10)
    noisy = counts @ planted + 0.01 * rng.normal(size=(40, 1))
    assert_allclose(fit_offsets(counts, noisy), planted, atol=0.02)  # some 0.01/√40 of noise, times three


def test_offsets_of_more_elements_than_rows_do_not_explain_the_noise(rng):
    """Rows that no offset explains: the prediction for other rows is hardly worse than a constant."""
    counts = np.zeros((60, 69))
    for row in counts:
        row[rng.choice(69, 2, replace=False)] = 0.5
    values = 10.0 + rng.normal(size=(60, 1))
    found = fit_offsets(counts[:45], values[:45])
    wrong = np.sqrt(np.mean((counts[45:] @ found - values[45:]) ** 2))
    assert wrong < 1.4  # the noise is 1; least squares of minimum norm is at some 5
    smallest = np.linalg.lstsq(counts[:45], values[:45], rcond=None)[0]
    assert np.sqrt(np.mean((counts[45:] @ smallest - values[45:]) ** 2)) > 2.0
