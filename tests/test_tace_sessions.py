"""Sessions in cells that change: no pair is missed, and nothing is searched for without need."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from alchemy_policies.calibration import Calibration
from alchemy_policies.md import MolecularDynamics
from ase import Atoms
from ase.build import bulk
from numpy.testing import assert_allclose

from tace.committee import Committee
from tace.config import LesConfig, preset
from tace.errors import DataError
from tace.model import Tace
from tace.neighbors import find_pairs

CUTOFF, SKIN = 3.4, 0.6


def make(members: int = 2, **changes: object) -> Committee:
    config = preset(
        "nano",
        elements=(1, 6, 8),
        fidelities=("pbe",),
        cutoff_A=CUTOFF,
        channels=4,
        radial_hidden=(8,),
        avg_neighbors=3.0,
        **changes,
    )
    models = [Tace(config, seed=seed, dtype=torch.float64) for seed in range(members)]
    for model in models:
        e0 = {"pbe": {z: -10.0 * z for z in config.elements}}
        model.set_reference(e0, {"pbe": 8.0}, {"pbe": -0.2})
        if config.les is not None:  # a new model has next to no charges
            with torch.no_grad():
                for weight in model.charge_readout.parameters():
                    weight *= 30.0
    return Committee(models)


@pytest.fixture
def frames(structure) -> list[Atoms]:
    return [structure(name) for name in ("water", "crystal", "carbon", "slab")]


def strained(frames: list[Atoms], rng, size: float) -> list[Atoms]:
    """Periodic cells under a random strain, atoms with them and a little aside."""
    moved = [a.copy() for a in frames]
    for atoms in moved:
        if atoms.pbc.all():
            strain = np.eye(3) + size * rng.uniform(-1, 1, (3, 3))
            atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        atoms.positions += 0.05 * rng.uniform(-1, 1, (len(atoms), 3))
    return moved


@pytest.mark.parametrize("les", [None, LesConfig()], ids=["short", "long"])
def test_a_session_in_other_cells_says_what_a_fresh_evaluation_says(les, frames, rng):
    committee = make(les=les)
    session = committee.session(frames, skin_A=SKIN)
    for size, rebuilds in ((0.0, 1), (0.02, 1), (0.3, 2)):
        moved = strained(frames, rng, size)
        got = session(
            np.concatenate([a.positions for a in moved]),
            cells_A=np.array([a.cell.array for a in moved]),
            stress=True,
        )
        fresh = committee(moved, stress=True)
        assert session.rebuilds == rebuilds
        scale = 1.0 + np.abs(fresh.mean_forces).max()  # atoms may come close
        assert_allclose(got.energies, fresh.energies, rtol=0, atol=1e-10 * scale)
        assert_allclose(got.forces, fresh.forces, rtol=0, atol=1e-10 * scale)
        assert_allclose(got.mean_stresses, fresh.mean_stresses, rtol=0, atol=1e-10 * scale)
    if les is not None:  # it counts
        assert np.abs(fresh.energies - make()(moved).energies).max() > 1e-3
    assert np.isnan(got.mean_stresses[[0, 3]]).all() and np.isfinite(got.mean_stresses[[1, 2]]).all()


def test_the_stress_of_the_mean_is_the_mean_of_the_stresses(frames):
    session = make(3).session(frames, skin_A=SKIN)
    positions = np.concatenate([a.positions for a in frames])
    each, mean = (session(positions, members, stress=True) for members in (True, False))
    assert each.stresses.shape == (3, 4, 6) and mean.stresses.shape == (1, 4, 6)
    assert_allclose(mean.mean_stresses[1:3], each.mean_stresses[1:3], rtol=1e-10, atol=1e-13)


def test_no_pair_is_missed_under_any_strain_and_displacement_that_keeps_the_list(rng):
    """The law of the skin, over random triclinic crystals; most trials come close to its limit."""
    committee, kept, beyond = make(1), 0, 0
    for _ in range(150):
        cell = np.diag(rng.uniform(3.0, 6.0, 3)) + rng.uniform(-0.8, 0.8, (3, 3))
        x0 = rng.uniform(-3, 9, (6, 3))  # also outside the cell
        session = committee.session([Atoms("C6", x0, cell=cell, pbc=True)], skin_A=SKIN)
        session._reference = x0, cell[None]
        listed = find_pairs(x0, cell, np.ones(3, bool), cutoff=CUTOFF + SKIN)
        known = {(i, j, *s) for i, j, s in zip(*map(np.ndarray.tolist, listed), strict=True)}
        strain = np.eye(3) + rng.uniform(0, 0.25) * rng.uniform(-1, 1, (3, 3))
        step = rng.standard_normal((6, 3))
        step *= rng.uniform(0, 0.8) / np.linalg.norm(step, axis=1, keepdims=True)
        x = x0 @ strain + step
        needed = find_pairs(x, cell @ strain, np.ones(3, bool), cutoff=CUTOFF)
        missing = {(i, j, *s) for i, j, s in zip(*map(np.ndarray.tolist, needed), strict=True)} - known
        if session._misses_none(x, (cell @ strain)[None]):
            kept += 1
            assert not missing
        beyond += bool(missing)
    assert kept >= 10 and beyond >= 3  # both sides of the law were tried


@pytest.mark.parametrize(
    ("factor", "aside", "rebuilds"),
    [
        (0.851, 0.0, 1),  # 0.85 × (3.4 + 0.6) = 3.4: the list lasts to the very edge
        (0.849, 0.0, 2),
        (1.2, 0.69, 1),  # 1.2 × 4 − 3.4 = 1.4 is left to two atoms: growth makes room
        (1.2, 0.71, 2),
        (1.0, 0.299, 1),
        (1.0, 0.301, 2),
    ],
)
def test_the_list_lasts_exactly_as_long_as_the_bound_allows(factor, aside, rebuilds):
    atoms = bulk("C", "sc", 4.7) * (2, 1, 1)
    session = make(1).session([atoms], skin_A=SKIN)
    session(atoms.positions)
    positions = atoms.positions * factor
    positions[0, 2] += aside
    session(positions, cells_A=atoms.cell.array[None] * factor)
    assert session.rebuilds == rebuilds


def test_a_pair_that_a_smaller_cell_brings_into_reach_is_seen():
    """Atoms do not move in fractions of the cell: counting displacements alone would rest."""
    atoms = bulk("C", "sc", 4.2)
    session = make(1).session([atoms], skin_A=SKIN)
    far = session(atoms.positions, cells_A=atoms.cell.array[None])
    small = atoms.cell.array * 0.78  # 3.28 Å: inside the cutoff, and 4.2 was outside the skin
    near = session(atoms.positions, cells_A=small[None])
    fresh = make(1)([Atoms("C", cell=small, pbc=True)])
    assert_allclose(near.energies, fresh.energies, rtol=1e-13)
    assert np.abs(near.energies - far.energies).max() > 1e-6


def test_a_session_goes_back_to_the_cells_it_was_given(frames, rng):
    session = make().session(frames, skin_A=SKIN)
    positions = np.concatenate([a.positions for a in frames])
    first = session(positions, stress=True)
    moved = strained(frames, rng, 0.01)
    session(
        np.concatenate([a.positions for a in moved]),
        cells_A=np.array([a.cell.array for a in moved]),
    )
    again = session(positions, stress=True)
    assert session.rebuilds == 1
    assert_allclose(again.stresses, first.stresses, rtol=1e-12)


def test_a_cell_that_is_lost_spoils_its_own_structure_only(frames):
    committee = make()
    session = committee.session(frames)
    positions = np.concatenate([a.positions for a in frames])
    cells = np.array([a.cell.array for a in frames])
    cells[1, 0, 0] = np.nan
    got = session(positions, cells_A=cells, stress=True)
    well = committee(frames, stress=True)
    assert np.isnan(got.energies[:, 1]).all() and np.isnan(got.mean_forces[3:7]).all()
    assert np.isnan(got.stresses[:, 1]).all()
    assert_allclose(got.energies[:, [0, 2, 3]], well.energies[:, [0, 2, 3]], rtol=1e-13)
    assert_allclose(got.stresses[:, 2], well.stresses[:, 2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [0, 3])
def test_an_open_cell_may_not_change(n, frames):
    session = make().session(frames)
    cells = np.array([a.cell.array for a in frames])
    cells[n] += 0.1 * np.eye(3)
    with pytest.raises(DataError, match=rf"structure {n} \({frames[n].get_chemical_formula()}\)"):
        session(np.concatenate([a.positions for a in frames]), cells_A=cells)


def test_dynamics_at_constant_pressure_balance_their_energy_across_new_neighbour_lists(structure):
    """Forces, stresses, cells and lists of the model agree: otherwise the balance would not close."""
    sessions, committee = [], make()

    def factory(frames):
        sessions.append(committee.session(frames, skin_A=0.3))
        return sessions[-1]

    explorer = MolecularDynamics(
        label_above_eV_per_A=1e3,
        abort_above_eV_per_A=1e4,
        temperatures_K=(300.0,),
        walkers=2,
        time_fs=24.0,
        timestep_fs=0.4,
        ensemble="npt",
        thermostat="bussi",
        tau_fs=50.0,
        barostat_tau_fs=30.0,
        guards={"pair_factor": 0.1},
    )
    rng = np.random.default_rng(0)
    found = explorer([structure("crystal")], factory, Calibration.uncalibrated(), rng)
    assert [w.outcome for w in found.walkers] == ["finished"] * 2
    assert len(sessions) == 1 and sessions[0].rebuilds > 3
    growth = [c.atoms.cell.volume / structure("crystal").cell.volume for c in found.candidates]
    assert np.ptp(growth) > 0.01
    # (ω dt)² of kT/2 per degree of freedom, ω dt = 0.02 on this soft landscape: 3e-5 eV per atom;
    # with the stress of the other sign it is 4e-4 and more
    assert all(abs(w.drift_eV_per_atom) < 3e-5 for w in found.walkers)
