"""The ASE calculator: the committee's numbers where ASE looks for them, and physics through ASE."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.filters import FrechetCellFilter
from ase.io import Trajectory, read, write
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from numpy.testing import assert_allclose

from tace.calculator import TaceCalculator
from tace.committee import Committee
from tace.config import preset
from tace.errors import ModelFileError, TaceError, UnknownElementError, UnknownFidelityError
from tace.io import save_model
from tace.model import Tace

CONFIG = preset(
    "nano",
    elements=(1, 6, 8),
    fidelities=("gfn2", "pbe"),
    cutoff_A=3.4,
    channels=4,
    radial_hidden=(8,),
    avg_neighbors=30.0,
)


def build(seed: int, dtype: torch.dtype = torch.float64) -> Tace:
    """A random model, scaled to forces of some eV/Å on molecules."""
    model = Tace(CONFIG, seed=seed, dtype=dtype)
    with torch.no_grad():  # readouts start small
        for parameter in model.energy_readout.parameters():
            parameter *= 10.0
    names = CONFIG.fidelities
    e0 = {n: {z: -10.0 * z for z in CONFIG.elements} for n in names}
    model.set_reference(e0, {"gfn2": 15.0, "pbe": 200.0}, dict.fromkeys(names, -2.0))
    return model


@pytest.fixture
def committee() -> Committee:
    return Committee([build(seed) for seed in range(3)])


@pytest.fixture
def crystal(structure, committee) -> Atoms:
    atoms = structure("crystal")
    atoms.calc = TaceCalculator(committee)
    return atoms


# ---- numbers ----


@pytest.mark.parametrize("fidelity", [None, "gfn2", "pbe"])
@pytest.mark.parametrize("name", ["crystal", "ethanol", "slab"])
def test_the_calculator_gives_the_committee_mean(name, fidelity, committee, structure):
    atoms = structure(name)
    atoms.calc = TaceCalculator(committee, fidelity=fidelity)
    said = committee([atoms], fidelity=fidelity, stress=True)
    # forces of the mean and the mean of the forces: float64 round-off
    assert atoms.get_potential_energy() == pytest.approx(said.mean_energies[0], rel=1e-14)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    assert_allclose(atoms.get_forces(), said.mean_forces, rtol=0, atol=1e-12)
    assert_allclose(atoms.calc.results["force_spread"], said.force_spread, rtol=0, atol=1e-12)
    assert atoms.calc.results["energy_spread"] == pytest.approx(said.energy_spread[0], rel=1e-9)
    if atoms.pbc.all():
        assert_allclose(atoms.get_stress(), said.stresses.mean(0)[0], rtol=0, atol=1e-12)
        assert_allclose(np.trace(atoms.get_stress(voigt=False)), atoms.get_stress()[:3].sum())


def test_spreads_are_ase_properties(crystal):
    spread = crystal.calc.get_property("force_spread", crystal)
    assert spread.shape == (4,)
    assert (spread > 0).all()
    assert crystal.calc.get_property("energy_spread", crystal) > 0


def test_the_spread_of_a_single_model_is_unknown(structure):
    atoms = structure("water")
    atoms.calc = TaceCalculator(Committee([build(0)]), fidelity="gfn2")
    assert np.isfinite(atoms.get_forces()).all()
    assert np.isnan(atoms.calc.results["force_spread"]).all()
    assert atoms.calc.results["force_spread"].shape == (3,)
    assert np.isnan(atoms.calc.results["energy_spread"])


def test_forces_are_finite_differences_of_the_energy(crystal, rng):
    direction, h = rng.standard_normal((4, 3)), 1e-5
    forces, start = crystal.get_forces(), crystal.positions.copy()
    sides = []
    for sign in (1, -1):
        crystal.positions = start + sign * h * direction
        sides.append(crystal.get_potential_energy())
    # O(h²) of the difference, and 1e-13 eV of round-off over 2h
    assert (forces * direction).sum() == pytest.approx((sides[1] - sides[0]) / (2 * h), abs=1e-6)


def test_stress_is_the_slope_of_the_energy_with_the_sign_of_ase(crystal):
    stress, cell, h = crystal.get_stress(voigt=False), crystal.cell[:].copy(), 1e-5
    volume = crystal.get_volume()
    for i, j in [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]:
        sides = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[i, j] += 0.5 * sign * h
            strain[j, i] += 0.5 * sign * h
            crystal.set_cell(cell @ strain, scale_atoms=True)
            sides.append(crystal.get_potential_energy())
            crystal.set_cell(cell, scale_atoms=True)
        slope = (sides[0] - sides[1]) / (2 * h) / volume
        assert stress[i, j] == pytest.approx(slope, abs=1e-7)  # as above, over a volume of 60 Å³


@pytest.mark.parametrize("name", ["water", "slab", "wire"])
def test_stress_without_three_periodic_axes_is_not_implemented_as_ase_says_it(
    name, committee, structure
):
    """ASE's callers catch this error; a zero or a NaN would be taken for a pressure."""
    atoms = structure(name)
    atoms.calc = TaceCalculator(committee)
    with pytest.raises(PropertyNotImplementedError, match="stress"):
        atoms.get_stress()
    assert "stress" not in atoms.calc.results
    assert np.isfinite(atoms.get_potential_energy())


def test_nothing_is_computed_twice_for_the_same_structure(crystal, monkeypatch):
    calls = []
    inner = Committee.__call__

    def counted(self, *arguments, **options):
        calls.append(options)
        return inner(self, *arguments, **options)

    monkeypatch.setattr(Committee, "__call__", counted)
    crystal.get_forces()
    crystal.get_potential_energy()
    assert len(calls) == 1
    crystal.positions[0] += 0.01
    crystal.get_stress()
    crystal.get_forces()
    assert len(calls) == 2


# ---- at work in ASE ----


def test_an_optimiser_lowers_the_energy_to_vanishing_forces(crystal):
    before = crystal.get_potential_energy()
    assert np.linalg.norm(crystal.get_forces(), axis=1).max() > 0.2
    assert BFGS(crystal, logfile=None, maxstep=0.1).run(fmax=0.05, steps=150)
    assert crystal.get_potential_energy() < before
    assert np.linalg.norm(crystal.get_forces(), axis=1).max() < 0.05


def test_a_cell_filter_finds_the_stress_it_needs(crystal):
    before = crystal.get_potential_energy()
    BFGS(FrechetCellFilter(crystal), logfile=None, maxstep=0.05).run(fmax=0.01, steps=4)
    assert crystal.get_potential_energy() < before


def total_energy_error(atoms: Atoms, timestep_fs: float, total_fs: float = 10.0) -> float:
    """Largest departure of the total energy from its start, eV, in a run at constant energy."""
    atoms = atoms.copy()
    atoms.calc = TaceCalculator(Committee([build(0)]), fidelity="gfn2")
    normal = np.random.default_rng(0).standard_normal((len(atoms), 3))
    atoms.set_momenta(np.sqrt(units.kB * 300 * atoms.get_masses())[:, None] * normal)
    start = atoms.positions.copy()
    dynamics = VelocityVerlet(atoms, timestep=timestep_fs * units.fs)
    energies = [atoms.get_total_energy()]
    for _ in range(round(total_fs / timestep_fs)):
        dynamics.run(1)
        energies.append(atoms.get_total_energy())
    assert np.abs(atoms.positions - start).max() > 0.1, "nothing moved"
    return float(np.abs(np.array(energies) - energies[0]).max())


def test_total_energy_is_conserved_with_the_square_of_the_time_step(structure):
    """Verlet conserves the energy of a smooth force to O(Δt²); a force that is not the slope of the
    energy, or not continuous, leaves an error that a smaller step does not remove."""
    coarse, fine = (total_energy_error(structure("ethanol"), dt) for dt in (0.4, 0.1))
    assert coarse < 0.05  # of some 0.35 eV of kinetic energy
    assert fine < coarse / 10  # Δt² says sixteen; the largest need not be met at the same time


def test_results_survive_the_files_of_ase(crystal, tmp_path):
    energy, forces, stress = (
        crystal.get_potential_energy(), crystal.get_forces(), crystal.get_stress()
    )  # fmt: skip
    with Trajectory(tmp_path / "x.traj", "w") as out:
        out.write(crystal)
    write(tmp_path / "x.extxyz", crystal)
    for name in ("x.traj", "x.extxyz"):
        again = read(tmp_path / name)
        assert again.get_potential_energy() == pytest.approx(energy, rel=1e-9)
        assert_allclose(again.get_forces(), forces, atol=1e-7)  # eight digits in the text file
        assert_allclose(again.get_stress(), stress, atol=1e-7)


# ---- loading ----


@pytest.fixture
def folder(tmp_path):
    for n in range(3):
        save_model(tmp_path / f"member-{n}.pt", build(n))
    (tmp_path / "notes.txt").write_text("not a model")
    return tmp_path


def test_models_are_read_from_a_folder_a_list_or_one_file(folder, committee, structure):
    expected = committee([structure("water")])
    files = [folder / f"member-{n}.pt" for n in range(3)]
    for source in (folder, str(folder), files, [str(f) for f in files]):
        atoms = structure("water")
        atoms.calc = TaceCalculator(source, fidelity="pbe")
        assert_allclose(atoms.get_forces(), expected.mean_forces, rtol=0, atol=1e-14)
        assert len(atoms.calc.committee.members) == 3
    assert len(TaceCalculator(files[1]).committee.members) == 1


def test_what_cannot_be_loaded_is_named(folder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelFileError, match=r"empty: no member-\*\.pt"):
        TaceCalculator(empty)
    with pytest.raises(ModelFileError, match="absent"):
        TaceCalculator(tmp_path / "absent.pt")
    with pytest.raises(ModelFileError, match="notes"):
        TaceCalculator(folder / "notes.txt")
    with pytest.raises(TaceError, match="at least one member"):
        TaceCalculator([])


def test_unknown_elements_and_fidelities_are_refused(committee, structure):
    atoms = Atoms("NH", positions=[[0, 0, 0], [0, 0, 1]])
    atoms.calc = TaceCalculator(committee)
    with pytest.raises(UnknownElementError, match="N"):
        atoms.get_forces()
    water = structure("water")
    water.calc = TaceCalculator(committee, fidelity="ccsd")
    with pytest.raises(UnknownFidelityError, match="ccsd"):
        water.get_forces()
