"""The mesh sum of large crystals against the direct sum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from les_reference import batch_of, charges_of, place, random_atoms
from numpy.testing import assert_allclose

from tace import les_mesh, les_sums
from tace.config import LesConfig
from tace.les import atomic_les_energies, atomic_les_virials, les_energies

CELL = np.array([[8.3, 0, 0], [1.0, 9.0, 0], [-2.0, 2.0, 10.0]])[[1, 0, 2]]  # left-handed
CONFIGS = {
    "default": {},
    "coarse": {"dl_A": 2.0},
    "tapered": {"dl_A": 1.5, "smooth": True},
    "wide": {"sigma_A": 2.0, "dl_A": 2.4},
    "dispersion": {"form": "dispersion"},
}


def both(config: dict[str, object]) -> tuple[LesConfig, LesConfig]:
    """Always a mesh, never a mesh."""
    return LesConfig(**config, mesh_above_atoms=1), LesConfig(**config, mesh_above_atoms=0)


@pytest.mark.parametrize("pbc", [True, [True, False, True]])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_mesh_has_the_energy_forces_and_stress_of_the_direct_sum(name, pbc, rng):
    atoms = random_atoms(rng, CELL, pbc, 40)
    atoms.positions += rng.integers(-2, 3, (40, 3)) @ CELL
    batch, x, h = place(atoms)
    q = charges_of(batch, rng.standard_normal((40, 2)))

    def results(config: LesConfig) -> list[torch.Tensor]:
        value = les_energies(q, x, h, batch, config).sum()
        return [value.detach(), *torch.autograd.grad(value, [x, h])]

    mesh, direct = (results(config) for config in both(CONFIGS[name]))
    # interpolation: found 4e-6 at the coarsest, 3e-7 at the default resolution
    for found, expected in zip(mesh, direct, strict=True):
        assert (found - expected).norm() < 1e-5 * expected.norm()


def test_a_finer_mesh_is_closer(rng, monkeypatch):
    batch = batch_of(random_atoms(rng, CELL, True, 20))
    q = charges_of(batch, rng.standard_normal(20))
    mesh, direct = (LesConfig(dl_A=2.0, mesh_above_atoms=n) for n in (1, 0))
    exact = les_energies(q, batch.positions, batch.cells, batch, direct)
    errors = []
    for density in (3.0, 6.0):
        monkeypatch.setattr(les_mesh, "DENSITY", density)
        errors.append(float((les_energies(q, batch.positions, batch.cells, batch, mesh) - exact).abs()))
    # (2/5)^8 = 7e-4 if the shortest waves were all
    assert errors[1] < 0.02 * errors[0]


def test_only_structures_above_the_limit_use_the_mesh(rng, monkeypatch):
    structures = [random_atoms(rng, CELL, pbc, n) for pbc, n in ((True, 9), (False, 9), (True, 4), (True, 8))]
    charges = [rng.standard_normal(len(a)) for a in structures]
    batch = batch_of(*structures)
    seen = []

    def recorded(sources, config):
        seen.append(sources.charges.shape[1])
        return les_mesh.mesh_sum(sources, config)

    monkeypatch.setattr("tace.les.mesh_sum", recorded)
    arguments = (charges_of(batch, *charges), batch.positions, batch.cells, batch)
    mixed = les_energies(*arguments, LesConfig(mesh_above_atoms=8))
    assert seen == [9]
    assert_allclose(mixed, les_energies(*arguments, LesConfig(mesh_above_atoms=0)), rtol=1e-5)
    assert seen == [9]


@pytest.mark.parametrize("form", ["coulomb", "dispersion"])
def test_second_derivatives_of_a_mesh_are_right(form, rng):
    batch, x, h = place(random_atoms(rng, np.diag([3.1, 3.4, 3.3]), True, 3))
    q = charges_of(batch, rng.standard_normal(3)).requires_grad_()
    config = LesConfig(form=form, dl_A=1.6, mesh_above_atoms=1)

    def total(q, x, h):
        return les_energies(q, x, h, batch, config)

    assert torch.autograd.gradcheck(total, (q, x, h), fast_mode=True)
    assert torch.autograd.gradgradcheck(total, (q, x, h), atol=1e-4, rtol=1e-4, fast_mode=True)


def test_a_mesh_filled_in_chunks_is_the_same_mesh(rng, monkeypatch):
    batch, x, h = place(random_atoms(rng, CELL, True, 9))
    q = charges_of(batch, rng.standard_normal(9))
    config = LesConfig(mesh_above_atoms=1)

    def results() -> list[torch.Tensor]:
        value = les_energies(q, x, h, batch, config).sum()
        return [value.detach(), *torch.autograd.grad(value, [x, h])]

    whole = results()
    monkeypatch.setattr(les_sums, "CHUNK", 2 * les_mesh.ORDER**3)
    for found, expected in zip(results(), whole, strict=True):
        assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_the_partitions_over_atoms_work_on_a_mesh(rng):
    batch = batch_of(random_atoms(rng, CELL, True, 12))
    arguments = (charges_of(batch, rng.standard_normal(12)), batch.positions, batch.cells, batch)
    mesh, direct = both({})
    for partition in (atomic_les_energies, atomic_les_virials):
        found, expected = partition(*arguments, mesh), partition(*arguments, direct)
        assert (found - expected).norm() < 1e-5 * expected.norm()


def test_splines_are_a_partition_of_unity_that_follows_the_atom():
    w = torch.linspace(0.0, 0.99, 34, dtype=torch.float64)
    values = les_mesh._splines(w)
    assert_allclose(values.sum(1), 1.0, rtol=1e-14)
    # the mean of the nodes lowest − j is the atom, shifted by half the support
    assert_allclose((values * torch.arange(les_mesh.ORDER)).sum(1), les_mesh.ORDER / 2 - w, rtol=1e-13)
