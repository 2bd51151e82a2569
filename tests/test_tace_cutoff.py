"""The model at the cutoff, and for atoms without neighbours."""

from __future__ import annotations

import pytest
import torch
from ase import Atoms
from model_helpers import CUTOFF, NAMES, batch_of, build, evaluated
from numpy.testing import assert_allclose

from tace.derivatives import evaluate
from tace.model import Tace


def crossing(distance: float) -> Atoms:
    """A carbon that is near an oxygen, and at `distance` from a hydrogen."""
    return Atoms("HCO", positions=[[0, 0, 0], [distance, 0.0, 0.0], [distance - 1.0, 1.0, 0.2]])


def along_x(model: Tace, distance: float) -> tuple[float, float]:
    answer = evaluated(model, crossing(distance))
    return float(answer.energies[0]), float(answer.forces[1:, 0].sum())


def test_energy_and_force_are_continuous_when_an_atom_crosses_the_cutoff():
    model = build(l_max=3, L_max=2)
    inside, outside = along_x(model, CUTOFF - 1e-7), along_x(model, CUTOFF + 1e-7)
    # in 2e-7 Å, forces below 10 eV/Å and curvatures below 100 eV/Å² change them by less than this
    assert abs(inside[0] - outside[0]) < 2e-6
    assert abs(inside[1] - outside[1]) < 2e-5
    # not even the number of edges is the same: the check is not empty
    edges = [len(batch_of(model, crossing(CUTOFF + d)).pair_i) for d in (-1e-7, 1e-7)]
    assert edges[0] > edges[1]


def test_second_derivative_is_continuous_at_the_cutoff():
    model = build(l_max=3, L_max=2, n_radial=4)

    def jump(h: float) -> float:
        below, here, above = (along_x(model, CUTOFF + d)[1] for d in (-h, 0.0, h))
        return abs((above - here) / h - (here - below) / h)

    coarse, fine = jump(1e-3), jump(1e-4)
    assert coarse < 1.0
    assert fine < 0.2 * coarse + 1e-9  # falls as h: the second derivative has no step


def test_the_energy_vanishes_at_the_cutoff_with_its_slope_and_curvature():
    model = build(fidelities=("pbe",))
    e0 = float(evaluated(model, Atoms("HC", positions=[[0, 0, 0], [9, 0, 0]])).energies[0])
    excess, force = [], []
    for gap in (0.02, 0.01):
        answer = evaluated(model, Atoms("HC", positions=[[0, 0, 0], [CUTOFF - gap, 0, 0]]))
        excess.append(float(answer.energies[0]) - e0)
        force.append(float(answer.forces[1, 0]))
    # gap³ and gap² laws, with 10 % for the next order and, below 1e-10, for round-off of E0
    assert excess[0] / excess[1] == pytest.approx(8.0, rel=0.1)
    assert force[0] / force[1] == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize("fidelity", [0, 1])
def test_a_free_atom_has_its_reference_energy_exactly(fidelity):
    model = build()
    for z, number in enumerate(model.config.elements):
        free = Atoms([number], positions=[[1.0, 2.0, 3.0]])
        boxed = Atoms([number], positions=[[1.0, 2.0, 3.0]], cell=[9.0, 9.0, 9.0], pbc=True)
        answer = evaluated(model, free, boxed, fidelity=fidelity)
        assert answer.energies.tolist() == [float(model.e0_eV[fidelity, z])] * 2
        assert (answer.forces == 0).all()
        assert (answer.stresses[1] == 0).all()
        assert torch.isnan(answer.stresses[0]).all()


def test_a_free_atom_has_no_force_when_the_weights_are_frozen_for_inference():
    model = build().requires_grad_(False)
    answer = evaluated(model, Atoms("O", positions=[[0, 0, 0]], cell=[9, 9, 9], pbc=True))
    assert (answer.forces == 0).all()
    assert (answer.stresses == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_dissociated_dimer_has_exactly_twice_the_reference_energy(dtype):
    model = build(dtype)
    dimer = Atoms("O2", positions=[[0, 0, 0], [CUTOFF + 1e-6, 0, 0]])
    assert float(evaluated(model, dimer).energies[0]) == 2 * float(model.e0_eV[0, 2])


def test_one_bond_is_enough_to_feel_a_force():
    answer = evaluated(build(), Atoms("HO", positions=[[0, 0, 0], [1.0, 0, 0]]))
    assert float(answer.forces[0].norm()) > 1e-3
    assert_allclose(answer.forces.sum(0), 0.0, atol=1e-12)  # float64 round-off


def test_neighbours_beyond_the_cutoff_change_nothing(structure):
    model = build()
    frames = [structure(n) for n in NAMES]
    plain, skinned = evaluated(model, *frames), evaluated(model, *frames, skin=1.5)
    # other summation orders only
    assert_allclose(skinned.energies, plain.energies, rtol=1e-14)
    assert_allclose(skinned.forces, plain.forces, atol=1e-12)
    assert_allclose(skinned.features, plain.features, atol=1e-12)


def test_parts_without_neighbours_contribute_no_gradient_to_weights():
    model = build()
    batch = batch_of(model, Atoms("C", positions=[[0, 0, 0]]), Atoms("H", positions=[[0, 0, 0]]))
    result = evaluate(model, batch, create_graph=True)
    grads = torch.autograd.grad(result.energies.sum(), list(model.parameters()), allow_unused=True)
    assert all(g is None or (g == 0).all() for g in grads)
