"""What magnetic moments add to a model obeys time reversal, parity and locality.

Energies and tolerances are those of `embedding_helpers`.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from ase import Atoms
from embedding_helpers import (
    CUTOFF,
    TINY,
    batch_of,
    generator,
    geometry_of,
    in_order,
    sum_of_invariants,
    surroundings,
    table,
)
from numpy.testing import assert_allclose

from tace import embeddings
from tace.embeddings import MagneticBasis, presence
from tace.ict import stf_basis

KINDS = pytest.mark.parametrize("collinear", [False, True], ids=["vectors", "collinear"])


def basis(collinear: bool, dtype=torch.float64, *, scale: float = 1.5, **changes) -> MagneticBasis:
    config = dataclasses.replace(TINY, **changes)
    return MagneticBasis(config, scale, generator(), collinear=collinear).to(dtype)


def magnetic_energy(module: MagneticBasis, frames: list[Atoms], moments: list[np.ndarray], **changes):
    config = dataclasses.replace(TINY, **changes)
    batch = batch_of(*frames)
    geometry = geometry_of(config, batch, batch.positions)
    h = table(config)[batch.species].unsqueeze(1)
    added = module(h, in_order(np.concatenate(moments), batch), batch, geometry)
    a = [x + y for x, y in zip(surroundings(config, batch, geometry), added, strict=True)]
    return sum_of_invariants(a, batch).detach().numpy()


def moments_of(atoms: Atoms, collinear: bool, seed: int = 0) -> np.ndarray:
    shape = (len(atoms),) if collinear else (len(atoms), 3)
    return np.random.default_rng([17, seed]).standard_normal(shape) * 1.5


def added_to(module: MagneticBasis, atoms: Atoms, moments: np.ndarray) -> list[np.ndarray]:
    """What a module adds to A, in the order of the input."""
    batch = batch_of(atoms)
    h = table(TINY)[batch.species].unsqueeze(1)
    config = dataclasses.replace(TINY, l_max=len(module.down) - 1)
    geometry = geometry_of(config, batch, batch.positions)
    added = module(h, in_order(moments, batch), batch, geometry)
    return [x.detach()[batch.original].numpy() for x in added]


# ---- symmetries ----


@KINDS
@pytest.mark.parametrize("name", ["ethanol", "crystal", "wire"])
def test_energy_does_not_change_when_all_moments_are_reversed(name, collinear, structure):
    module, atoms = basis(collinear), structure(name)
    m = moments_of(atoms, collinear)
    there, back = (magnetic_energy(module, [atoms], [x])[0] for x in (m, -m))
    assert back == pytest.approx(there, rel=1e-12)
    assert abs(there - magnetic_energy(module, [atoms], [0 * m])[0]) > 1e-3


@pytest.mark.parametrize("improper", [False, True], ids=["proper", "improper"])
@pytest.mark.parametrize("name", ["ethanol", "crystal"])
def test_axial_moments_turn_with_the_structure(name, improper, structure, rotation):
    module, atoms, matrix = basis(False), structure(name), rotation(improper)
    m = moments_of(atoms, False)
    turned = atoms.copy()
    turned.set_cell(atoms.cell[:] @ matrix.T)
    turned.positions = atoms.positions @ matrix.T
    axial = np.linalg.det(matrix) * m @ matrix.T
    here = magnetic_energy(module, [atoms], [m])[0]
    assert magnetic_energy(module, [turned], [axial])[0] == pytest.approx(here, rel=1e-12)


@pytest.mark.parametrize("improper", [False, True], ids=["proper", "improper"])
def test_collinear_moments_are_numbers_that_no_rotation_touches(improper, structure, rotation):
    module, atoms = basis(True), structure("ethanol")
    m, turned = moments_of(atoms, True), structure("ethanol")
    turned.positions = atoms.positions @ rotation(improper).T
    here = magnetic_energy(module, [atoms], [m])[0]
    assert magnetic_energy(module, [turned], [m])[0] == pytest.approx(here, rel=1e-12)


def test_contributions_to_a_turn_as_tensors_of_their_rank(structure, rotation):
    module, atoms, matrix = basis(False), structure("ethanol"), rotation(True)
    m = moments_of(atoms, False)
    turned = structure("ethanol")
    turned.positions = atoms.positions @ matrix.T
    here = added_to(module, atoms, m)
    there = added_to(module, turned, -m @ matrix.T)  # determinant −1
    assert_allclose(there[0], here[0], atol=1e-12)
    assert_allclose(there[1], np.einsum("xy,ayc->axc", matrix, here[1]), atol=1e-12)
    assert all(np.abs(x).max() > 1e-2 for x in here)
    assert_allclose(np.linalg.norm(there[3], axis=1), np.linalg.norm(here[3], axis=1), rtol=1e-12)


@KINDS
def test_reversing_one_moment_changes_the_energy(collinear, structure):
    module, atoms = basis(collinear), structure("ethanol")
    m = moments_of(atoms, collinear)
    one = m.copy()
    one[0] *= -1
    there, here = (magnetic_energy(module, [atoms], [x])[0] for x in (one, m))
    assert abs(there - here) > 1e-3


def test_turning_all_moments_against_the_lattice_changes_the_energy(structure, rotation):
    atoms = structure("crystal")
    m, matrix = moments_of(atoms, False), rotation(False)
    there, here = (magnetic_energy(basis(False), [atoms], [x])[0] for x in (m @ matrix.T, m))
    assert abs(there - here) > 1e-3


def test_a_single_moment_feels_the_axes_of_its_site(structure):
    atoms = structure("water")
    energies = []
    for axis in np.eye(3):
        m = np.zeros((3, 3))
        m[0] = 2.0 * axis
        energies.append(magnetic_energy(basis(False), [atoms], [m])[0])
    assert min(np.abs(np.subtract(energies, np.roll(energies, 1)))) > 1e-3


def test_without_edge_directions_only_heisenberg_exchange_is_left(structure, rotation):
    module, atoms = basis(False, l_max=0), structure("ethanol")
    m, matrix = moments_of(atoms, False), rotation(False)
    here, turned = (magnetic_energy(module, [atoms], [x], l_max=0)[0] for x in (m, m @ matrix.T))
    assert turned == pytest.approx(here, rel=1e-12)
    one = m.copy()
    one[0] *= -1
    assert abs(magnetic_energy(module, [atoms], [one], l_max=0)[0] - here) > 1e-3


def test_isotropic_exchange_of_a_dimer_goes_as_the_cosine_of_the_angle():
    module, dimer = basis(False, l_max=0), Atoms("O2", positions=[[0, 0, 0], [1.2, 0.3, 0.4]])

    def scalar(angle: float) -> np.ndarray:
        second = [2 * np.cos(angle), 2 * np.sin(angle), 0.0]
        return added_to(module, dimer, np.array([[2.0, 0.0, 0.0], second]))[0]

    at_right_angle = scalar(np.pi / 2)  # what a moment does on its own site
    parallel = scalar(0.0) - at_right_angle
    assert np.abs(parallel).max() > 1e-2
    assert_allclose(scalar(np.pi / 3) - at_right_angle, 0.5 * parallel, atol=1e-14)


def exchange_tensor(atoms: Atoms, i: int, j: int) -> np.ndarray:
    """∂²E/∂m_i∂m_j [3,3] at zero moments."""
    module, batch = basis(False), batch_of(atoms)
    geometry = geometry_of(TINY, batch, batch.positions)
    h = table(TINY)[batch.species].unsqueeze(1)
    a = surroundings(TINY, batch, geometry)

    def energy(m: torch.Tensor) -> torch.Tensor:
        added = module(h, m.index_select(0, torch.argsort(batch.original)), batch, geometry)
        return sum_of_invariants([x + y for x, y in zip(a, added, strict=True)], batch).sum()

    m = torch.zeros(len(atoms), 3, dtype=torch.float64)
    return torch.autograd.functional.hessian(energy, m)[i, :, j].numpy()


def test_dzyaloshinskii_moriya_exchange_appears_only_where_symmetry_allows_it():
    """Moriya's rules: D is zero across a centre of inversion, normal to a mirror plane through both atoms."""
    bent = Atoms("C2O", positions=[[0, 0, 0], [2.0, 0, 0], [0.8, 0.9, 0]])
    straight = Atoms("C2O", positions=[[0, 0, 0], [2.0, 0, 0], [1.0, 0, 0]])
    exchange = [exchange_tensor(atoms, 0, 1) for atoms in (bent, straight)]
    antisymmetric = [x - x.T for x in exchange]
    assert np.abs(antisymmetric[1]).max() < 1e-12
    assert abs(antisymmetric[0][0, 1]) > 0.05 * np.abs(exchange[0]).max()
    assert np.abs(antisymmetric[0][2]).max() < 1e-12


@pytest.mark.parametrize("l2", range(4))
def test_couplings_of_two_moments_with_an_edge_are_complete_and_independent(l2):
    """As many as ways to couple ranks 1, 1 and l2 to l3 with l2 + l3 even, counted by angular momentum."""
    maps = embeddings._edge_couplings(l2, 5, False, "cartesian")
    for l3 in range(6):
        ways = sum(abs(lm - l2) <= l3 <= lm + l2 for lm in range(3)) * ((l2 + l3) % 2 == 0)
        rows = [g.ravel() for rank, g in maps if rank == l3]
        assert len(rows) == ways
        assert not rows or np.linalg.matrix_rank(np.stack(rows), tol=1e-3) == ways


# ---- locality, limits, derivatives ----


@KINDS
def test_zero_moments_add_exactly_nothing(collinear, structure):
    atoms = structure("crystal")
    for x in added_to(basis(collinear), atoms, 0 * moments_of(atoms, collinear)):
        assert (x == 0).all()


@KINDS
def test_an_atom_without_neighbours_gets_exactly_nothing(collinear):
    atoms = Atoms("OHO", positions=[[0, 0, 0], [1.0, 0, 0], [1.0 + CUTOFF + 1e-6, 0, 0]])
    for x in added_to(basis(collinear), atoms, moments_of(atoms, collinear)):
        assert (x[2] == 0).all()
        assert (x[:2] != 0).any()


@KINDS
def test_contributions_fade_as_the_cube_of_the_distance_to_the_cutoff(collinear):
    sizes = []
    for gap in (0.02, 0.01):
        dimer = Atoms("HC", positions=[[0, 0, 0], [CUTOFF - gap, 0.0, 0.0]])
        sizes.append(np.abs(added_to(basis(collinear), dimer, moments_of(dimer, collinear))[0]).max())
    assert sizes[0] / sizes[1] == pytest.approx(8.0, rel=0.1)  # 10 % for the next order


def test_presence_is_zero_without_neighbours_and_one_among_many():
    values = presence(torch.tensor([0.0, 1.0, 20.0], dtype=torch.float64))
    assert_allclose(values, [0.0, 1 - np.exp(-4), 1.0], atol=1e-15)


@KINDS
def test_order_of_atoms_and_company_do_not_matter(collinear, structure, rng):
    module, frames = basis(collinear), [structure(n) for n in ("ethanol", "crystal", "slab")]
    moments = [moments_of(a, collinear, seed=n) for n, a in enumerate(frames)]
    alone = [magnetic_energy(module, [a], [m])[0] for a, m in zip(frames, moments, strict=True)]
    assert_allclose(magnetic_energy(module, frames, moments), alone, rtol=1e-12)
    order = rng.permutation(len(frames[0]))
    again = magnetic_energy(module, [frames[0][order]], [moments[0][order]])[0]
    assert again == pytest.approx(alone[0], rel=1e-12)


def test_the_only_moment_adds_its_square_and_its_tensor_by_element(structure):
    """|m|²/√3 to l = 0 and STF(m⊗m) to l = 2, the scaled couplings of spec §1.4; edges need two moments."""
    module, atoms = basis(False, scale=1.0), structure("ethanol")
    batch = batch_of(atoms)
    on = presence(geometry_of(TINY, batch, batch.positions).density)[batch.original].numpy()
    for n in range(len(atoms)):
        m = np.zeros((len(atoms), 3))
        m[n] = [0.5, -1.0, 2.0]
        tensor = np.outer(m[n], m[n]) - np.eye(3) * (m[n] @ m[n]) / 3
        expected = [m[n : n + 1] @ m[n] / np.sqrt(3), None, stf_basis(2).T @ tensor.ravel(), None]
        element = TINY.elements.index(atoms.numbers[n])
        for l, added in enumerate(added_to(module, atoms, m)):  # noqa: E741
            assert (np.delete(added, n, 0) == 0).all()
            if expected[l] is None:
                assert (added == 0).all()
            else:
                weights = module.site[l // 2, element].detach().numpy()
                assert_allclose(added[n], on[n] * np.outer(expected[l], weights), atol=1e-13)


def test_moments_are_measured_in_their_scale(structure):
    atoms = structure("water")
    m = moments_of(atoms, False)
    here, there = added_to(basis(False, scale=1.5), atoms, m), added_to(basis(False, scale=3.0), atoms, 2 * m)
    for x, y in zip(here, there, strict=True):
        assert_allclose(x, y, rtol=1e-14)


def test_sums_over_neighbours_are_divided_by_their_mean_number(structure):
    atoms = structure("ethanol")
    m = moments_of(atoms, False)
    modules = [basis(False, avg_neighbors=n) for n in (2.0, 8.0)]
    modules[1].load_state_dict(modules[0].state_dict())
    few, many = (added_to(module, atoms, m) for module in modules)
    for l in (1, 3):  # the other ranks hold what a moment does on its own site, too  # noqa: E741
        assert_allclose(many[l], few[l] / 4, rtol=1e-12)


@KINDS
def test_energy_with_moments_can_be_differentiated_twice(collinear):
    """With respect to positions, moments and the senders' features, as training on forces needs."""
    small = {"l_max": 2, "channels": 2, "n_radial": 2, "radial_hidden": (3,)}
    config, module = dataclasses.replace(TINY, **small), basis(collinear, **small)
    atoms = Atoms("OHH", positions=[[0, 0, 0], [0.9, 0.2, 0.1], [-0.3, 1.0, 0.2]])
    batch = batch_of(atoms)

    def energy(positions, moments, h):
        geometry = geometry_of(config, batch, positions)
        a = surroundings(config, batch, geometry)
        added = module(h, moments, batch, geometry)
        return sum_of_invariants([x + y for x, y in zip(a, added, strict=True)], batch)

    h = table(config)[batch.species].unsqueeze(1)
    leaves = [batch.positions.clone(), torch.from_numpy(moments_of(atoms, collinear)), h]
    leaves = [x.requires_grad_() for x in leaves]
    assert torch.autograd.gradcheck(energy, leaves)
    assert torch.autograd.gradgradcheck(energy, leaves)


@KINDS
def test_single_precision_agrees_to_rounding(collinear, structure):
    atoms = structure("ethanol")
    batch = batch_of(atoms)
    m = in_order(moments_of(atoms, collinear), batch)
    results = []
    for dtype in (torch.float32, torch.float64):
        geometry = geometry_of(TINY, batch, batch.positions, dtype)
        h = table(TINY)[batch.species].unsqueeze(1).to(dtype)
        results.append(basis(collinear, dtype)(h, m, batch, geometry))
    for single, double in zip(*results, strict=True):
        assert single.dtype == torch.float32
        # 6e-8 per operation, through a chain of some ten sums and products
        assert_allclose(single.detach(), double.detach(), atol=2e-6 * float(double.detach().abs().max()))


def test_all_parameters_are_used(structure):
    """A parameter without a gradient would be an option that does nothing."""
    atoms = structure("ethanol")
    batch = batch_of(atoms)
    for collinear in (False, True):
        module = basis(collinear)
        geometry = geometry_of(TINY, batch, batch.positions)
        h = table(TINY)[batch.species].unsqueeze(1)
        added = module(h, in_order(moments_of(atoms, collinear), batch), batch, geometry)
        sum(x.square().sum() for x in added).backward()
        assert all((p.grad != 0).any() for p in module.parameters())
