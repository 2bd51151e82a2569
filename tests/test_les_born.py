"""Born effective charges of latent charges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from les_reference import batch_of, charges_of, place, random_atoms
from numpy.testing import assert_allclose
from torch import Tensor

from tace.batch import Batch
from tace.config import LesConfig
from tace.les import latent_born_charges

CELL = np.array([[6.0, 0.4, -0.3], [2.0, 7.0, 0.5], [-1.0, 1.5, 8.0]])
KINDS = {
    "molecule": [False, False, False],
    "wire": [False, True, False],
    "slab": [True, False, True],
    "crystal": [True, True, True],
}
THREE = np.array([[0.0, 0, 0], [0.9, 0.3, 0.2], [-0.3, 0.8, 0.1]])


def responsive(x: Tensor, batch: Batch) -> Tensor:
    """Two channels of charges that follow the distances within each structure: [A,2]."""
    delta = x.unsqueeze(0) - x.unsqueeze(1)
    same = batch.structure.unsqueeze(0) == batch.structure.unsqueeze(1)
    near = torch.exp(-delta.square().sum(2)) * same
    weight = (1.0 + batch.species.double()) * torch.tensor([[1.0], [-0.6]], dtype=torch.float64)
    return torch.tanh(near @ weight.T)


@pytest.mark.parametrize("kind", KINDS)
def test_fixed_charges_are_their_own_born_charges_without_their_mean(kind, rng):
    atoms, q = random_atoms(rng, CELL, KINDS[kind], 5), rng.standard_normal((5, 2))
    batch = batch_of(atoms)
    born = latent_born_charges(charges_of(batch, q), batch.positions, batch, LesConfig(epsilon_inf=2.25))
    expected = 1.5 * (q.sum(1) - q.sum(1).mean())[:, None, None] * np.eye(3)
    assert_allclose(born[batch.original], expected, atol=1e-13)
    assert not born.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_born_charges_of_a_structure_sum_to_zero_and_ignore_its_batch(kind):
    structures = [
        Atoms("OH2", positions=THREE * size, cell=9.0 * np.eye(3), pbc=pbc)
        for size, pbc in ((1.0, KINDS[kind]), (1.1, True), (0.9, False))
    ]

    def born_of(*atoms: Atoms) -> Tensor:
        batch = batch_of(*atoms)
        x = batch.positions.clone().requires_grad_()
        found = latent_born_charges(responsive(x, batch), x, batch, LesConfig(n_charges=2))
        return found[batch.original]

    together = born_of(*structures)
    assert_allclose(together.view(3, 3, 3, 3).sum(1), 0.0, atol=1e-13)
    assert_allclose(together, torch.cat([born_of(atoms) for atoms in structures]), atol=1e-13)


def free_born(atoms: Atoms) -> np.ndarray:
    """∂P_a/∂x_b by central differences of the dipole of the neutralised charges."""
    found = np.zeros((len(atoms), 3, 3))
    for i, b in np.ndindex(len(atoms), 3):
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[i, b] += sign * 1e-4
            batch = batch_of(moved)
            q = responsive(batch.positions, batch).sum(1)
            found[i, :, b] += sign * ((q - q.mean()) @ batch.positions).numpy() / 2e-4
    return found


def test_charges_of_a_molecule_give_the_derivative_of_its_dipole():
    atoms = Atoms("OH2", positions=THREE)
    batch, x, _ = place(atoms)
    born = latent_born_charges(responsive(x, batch), x, batch, LesConfig(n_charges=2))
    assert_allclose(born[batch.original], free_born(atoms), atol=1e-7)


@pytest.mark.parametrize("kind", ["wire", "slab", "crystal"])
def test_in_a_growing_cell_born_charges_become_those_of_the_molecule(kind):
    expected = free_born(Atoms("OH2", positions=THREE))
    errors = []
    for scale in (2.0, 4.0, 8.0):
        atoms = Atoms("OH2", positions=THREE + 0.3, cell=scale * CELL, pbc=KINDS[kind])
        batch, x, _ = place(atoms)
        born = latent_born_charges(responsive(x, batch), x, batch, LesConfig(n_charges=2))
        errors.append(np.abs(born[batch.original].numpy() - expected).max())
    # sin(2πs) for 2πs: O(1/L²)
    assert errors[0] < 0.05
    assert errors[1] < errors[0] / 3.5
    assert errors[2] < errors[1] / 3.5


@pytest.mark.parametrize("open_vector", [[0, 0, 0], [0, 0, 40.0], [3.0, -1.0, 5.0]])
def test_born_charges_of_a_slab_do_not_depend_on_its_open_vector(open_vector):
    plane = np.array([[8.0, 0, 0], [1.0, 9.0, 0]])

    def born_of(third: object) -> Tensor:
        atoms = Atoms("OH2", positions=THREE, cell=[*plane, third], pbc=[True, True, False])
        batch, x, _ = place(atoms)
        return latent_born_charges(responsive(x, batch), x, batch, LesConfig(n_charges=2))

    assert_allclose(born_of(open_vector), born_of([0, 0, 11.0]), atol=1e-13)


def test_wrapping_atoms_into_the_cell_does_not_change_born_charges(rng):
    atoms = random_atoms(rng, CELL, True, 4)
    q = rng.standard_normal(4)
    moved = atoms.copy()
    moved.positions += rng.integers(-3, 4, (4, 3)) @ CELL
    one, two = (
        latent_born_charges(charges_of(b, q), b.positions, b, LesConfig())
        for b in (batch_of(atoms), batch_of(moved))
    )
    assert_allclose(one, two, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_born_charges_can_be_trained_on(kind):
    atoms = Atoms("OH2", positions=THREE, cell=9.0 * np.eye(3), pbc=KINDS[kind])
    batch, x, _ = place(atoms)
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def born_of(x: Tensor, scale: Tensor) -> Tensor:
        charges = responsive(scale * x, batch)
        return latent_born_charges(charges, x, batch, LesConfig(n_charges=2), create_graph=True)

    assert torch.autograd.gradcheck(born_of, (x, scale))
