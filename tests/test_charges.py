"""Laws of charge heads on random equivariant features, without a model."""


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
    turned_features,
    values,
)
from numpy.testing import assert_allclose
from torch import Tensor

from tace.batch import Batch
from tace.charges import ChargeHead, charge_dipole, equilibrate, spread_evenly
from tace.config import HeadConfig
from tace.errors import DataError
from tace.heads import HeadLabel, head_statistics
from tace.layers import gains


def charge_head(kind: str, *, seed: int = 0, **settings) -> ChargeHead:
    head = HeadConfig("charges", scope="atom", charges=kind, hidden=settings.pop("hidden", 0))
    return ChargeHead(head, config(**settings), [[0, 1], [0]], torch.Generator().manual_seed(seed)).double()


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
