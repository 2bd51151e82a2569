"""CP2K, NWChem and xtb themselves, and each template route against the library's own way: -m codes.

Tolerances: 1e-6 eV is what two ways through the same code at the same settings may differ by.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from label_helpers import label, make, needs
from program_helpers import needs_program

from alchemy.errors import InputError

TOLERANCE_EV = 1e-6


def real(program):
    return lambda test: pytest.mark.codes(needs_program(program)(test))


def bent(name="H2O"):
    atoms = molecule(name)
    atoms.rattle(0.05, seed=1)
    return atoms


def slope(atoms, labeler, root, *, atom, axis, step_A):
    """(force by central difference of the label's energy, force of the label)."""
    energies = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[atom, axis] += sign * step_A
        energies.append(label(moved, labeler, root).energy_eV)
    force = label(atoms, labeler, root).forces_eV_per_A[atom, axis]
    return -(energies[0] - energies[1]) / (2 * step_A), force


# --- NWChem ---------------------------------------------------------------------------------------

NWCHEM = {"basis": "6-31g", "grid": "xfine", "tolerance_energy_hartree": 1e-9, "tolerance_density": 1e-7}


@real("nwchem")
def test_nwchem_labels_as_through_ases_calculator(tmp_path):
    from ase.calculators.nwchem import NWChem

    record = label(bent(), make("nwchem", **NWCHEM), tmp_path / "labels")
    convergence = {"energy": 1e-9, "density": 1e-7, "gradient": 1e-5}
    atoms = bent()
    atoms.calc = NWChem(
        directory=tmp_path / "ase", theory="dft", basis="6-31g", basispar="spherical",
        dft={"xc": "xpbe96 cpbe96", "grid": "xfine", "convergence": convergence, "iterations": 80},
    )  # fmt: skip
    assert (record.status, record.message) == ("ok", "")
    assert record.code.startswith("nwchem 7.")
    # ASE writes Å with NWChem's own factor, we write Bohr: 8e-8 of the lengths, 2e-7 eV here
    assert record.energy_eV == pytest.approx(atoms.get_potential_energy(), abs=TOLERANCE_EV)
    assert record.forces_eV_per_A == pytest.approx(atoms.get_forces(), abs=1e-4)  # six digits printed
    assert record.dipole_eA == pytest.approx(atoms.get_dipole_moment(), abs=1e-5)


@needs("pyscf")
@real("nwchem")
def test_nwchem_and_pyscf_agree_on_water(tmp_path):
    exact = {"density_fit": False, "grid_level": 7, "conv_tol_hartree": 1e-10}
    first = label(bent(), make("nwchem", **NWCHEM), tmp_path)
    second = label(bent(), make("pyscf", method="PBE", basis="6-31g", **exact), tmp_path)
    assert first.energy_eV == pytest.approx(second.energy_eV, abs=TOLERANCE_EV)
    assert first.forces_eV_per_A == pytest.approx(second.forces_eV_per_A, abs=1e-4)  # measured: 4e-5


@real("nwchem")
def test_nwchem_forces_are_the_slope_of_the_energy(tmp_path):
    # curvature 1e-5 at 0.005 Å; six printed digits of the gradient are 2.6e-5; the energy's 1e-9 nothing
    difference, force = slope(bent(), make("nwchem", **NWCHEM), tmp_path, atom=1, axis=1, step_A=0.005)
    assert difference == pytest.approx(force, abs=5e-4)


@real("nwchem")
def test_nwchem_climbs_its_ladder_and_fails_without_it(tmp_path):
    few = {"basis": "6-31g", "max_iterations": 3}
    failed = label(bent(), make("nwchem", **few, retries=0), tmp_path)
    assert (failed.reason, failed.message) == (
        "scf-not-converged", "as asked: nwchem: Calculation failed to converge",
    )  # fmt: skip
    repaired = label(bent(), make("nwchem", **few), tmp_path / "other")
    asked = label(bent(), make("nwchem", basis="6-31g"), tmp_path / "asked")
    assert repaired.fingerprint == failed.fingerprint == asked.fingerprint
    assert repaired.energy_eV == pytest.approx(asked.energy_eV, abs=1e-5)  # tolerance_energy 1e-8 Hartree


@real("nwchem")
def test_nwchem_names_elements_without_a_basis_and_refuses_wrong_words(tmp_path):
    palladium = Atoms("PdH", [(0, 0, 0), (0, 0, 1.55)])
    record = label(palladium, make("nwchem", basis="6-31g"), tmp_path)
    assert record.reason == "no-basis" and "pd_6-31g" in record.message
    with pytest.raises(InputError, match="xc rubbish"):
        label(bent(), make("nwchem", xc="rubbish"), tmp_path)
    with pytest.raises(InputError, match="failed opening basis file"):
        label(bent(), make("nwchem", basis="nonsense"), tmp_path)


# --- xtb ------------------------------------------------------------------------------------------


@needs("tblite")
@real("xtb")
@pytest.mark.parametrize("name", ["H2O", "CH3CH2OH", "NO"])
@pytest.mark.parametrize("method", ["GFN2-xTB", "GFN1-xTB"])
def test_xtb_the_program_and_tblite_are_one_level_of_theory(name, method, tmp_path):
    first = label(bent(name), make("xtb", method=method), tmp_path)
    second = label(bent(name), make("tblite", method=method, accuracy=0.1), tmp_path)
    assert first.code.startswith("xtb 6.")
    assert first.energy_eV == pytest.approx(second.energy_eV, abs=TOLERANCE_EV)
    assert first.forces_eV_per_A == pytest.approx(second.forces_eV_per_A, abs=5e-4)  # xtb's accuracy 1


@real("xtb")
def test_xtb_forces_are_the_slope_of_the_free_energy_of_hot_electrons(tmp_path):
    stretched = Atoms("N2", [(0, 0, 0), (0, 0, 1.8)])
    hot = make("xtb", electronic_temperature_K=20000.0)
    difference, force = slope(stretched, hot, tmp_path, atom=1, axis=2, step_A=1e-3)
    assert difference == pytest.approx(force, abs=5e-5)  # measured: 5e-6
    # the check can tell: −TS is 8 eV and has a slope
    cold = label(stretched, make("xtb"), tmp_path).energy_eV
    assert abs(label(stretched, hot, tmp_path).energy_eV - cold) > 1.0


@real("xtb")
def test_xtb_says_why_it_failed(tmp_path):
    few = label(bent(), make("xtb", max_iterations=3, retries=0), tmp_path)
    assert few.reason == "scf-not-converged" and "within 3 iterations" in few.message
    assert label(bent(), make("xtb", max_iterations=3), tmp_path / "ladder").status == "ok"
    wet = label(bent(), make("xtb", solvent="watr"), tmp_path)
    assert wet.reason == "engine-error" and "'watr' is not parametrized" in wet.message


# --- CP2K: hydrogen, because a second of oxygen costs a minute -------------------------------------

CP2K = {"cutoff_Ry": 250.0, "rel_cutoff_Ry": 40.0, "basis": "SZV-MOLOPT-SR-GTH", "kspacing_per_A": None,
        "eps_scf": 1e-7}  # fmt: skip

SAME_KEYWORDS = """
&FORCE_EVAL
  &DFT
    &QS
      EPS_DEFAULT 1e-12
    &END QS
    &MGRID
      REL_CUTOFF [Ry] 40
    &END MGRID
    &SCF
      EPS_SCF 1e-7
      &OT
        MINIMIZER DIIS
        PRECONDITIONER FULL_SINGLE_INVERSE
      &END OT
      &OUTER_SCF
        EPS_SCF 1e-7
        MAX_SCF 4
      &END OUTER_SCF
    &END SCF
  &END DFT
&END FORCE_EVAL
"""


def hydrogen():
    return Atoms("H2", [(1.0, 1.1, 1.2), (1.0, 1.3, 2.1)], cell=[4.0, 4.2, 4.5], pbc=True)


@real("cp2k_shell")
@real("cp2k")
def test_cp2k_labels_as_through_ases_calculator(tmp_path, monkeypatch):
    from ase.calculators import cp2k as shell

    record = label(hydrogen(), make("cp2k", **CP2K), tmp_path / "labels")
    assert (record.status, record.message) == ("ok", "")
    assert record.code.startswith("cp2k 20")
    (tmp_path / "ase").mkdir()
    monkeypatch.chdir(tmp_path / "ase")
    with shell.CP2K(
        command="cp2k_shell", basis_set=CP2K["basis"], basis_set_file="BASIS_MOLOPT", cutoff=250 * units.Ry,
        potential_file="GTH_POTENTIALS", pseudo_potential="GTH-PBE", xc="PBE", max_scf=50, inp=SAME_KEYWORDS,
    ) as calculator:  # fmt: skip
        atoms = hydrogen()
        atoms.calc = calculator
        # the shell speaks eV of CP2K's own Hartree (CODATA 2006), which is 8e-8 smaller than ASE's
        energy = atoms.get_potential_energy() / 27.21138386 * units.Hartree
        assert record.energy_eV == pytest.approx(energy, abs=TOLERANCE_EV)
        assert record.forces_eV_per_A == pytest.approx(atoms.get_forces(), abs=1e-5)
        assert record.stress_eV_per_A3 == pytest.approx(atoms.get_stress(), abs=1e-6)


@real("cp2k")
def test_cp2k_forces_are_the_slope_of_the_free_energy_of_hot_electrons(tmp_path):
    hot = {**CP2K, "basis": "DZVP-MOLOPT-SR-GTH", "smearing_temperature_K": 20000.0, "added_states": 1}
    labeler = make("cp2k", **hot)
    difference, force = slope(hydrogen(), labeler, tmp_path, atom=1, axis=2, step_A=1e-3)
    assert difference == pytest.approx(force, abs=1e-3)  # the grid; measured 1e-5, −TS is 1 eV
    text = next(tmp_path.glob("*/label.out")).read_text()
    assert "Electronic entropic energy" in text


@real("cp2k")
def test_cp2k_stress_has_the_sign_and_unit_of_ase(tmp_path):
    energies = []
    for strain in (1e-3, -1e-3):
        atoms = hydrogen()
        atoms.set_cell(np.diag([4.0, 4.2, 4.5 * (1 + strain)]), scale_atoms=True)
        energies.append(label(atoms, make("cp2k", **CP2K), tmp_path).energy_eV)
    stress = label(hydrogen(), make("cp2k", **CP2K), tmp_path).stress_eV_per_A3
    slope_zz = (energies[0] - energies[1]) / 2e-3 / hydrogen().get_volume()
    assert stress[2] == pytest.approx(slope_zz, abs=5e-4)  # of 0.071; cutoff and curvature


@real("cp2k")
def test_cp2k_says_why_it_failed(tmp_path):
    few = {**CP2K, "max_iterations": 2, "outer_iterations": 1}
    record = label(hydrogen(), make("cp2k", **few, retries=0), tmp_path)
    assert record.reason == "scf-not-converged" and "SCF run NOT converged" in record.message
    repaired = label(hydrogen(), make("cp2k", **few), tmp_path / "ladder")
    asked = label(hydrogen(), make("cp2k", **CP2K), tmp_path / "asked")
    assert repaired.energy_eV == pytest.approx(asked.energy_eV, abs=1e-5)  # eps_scf 1e-7
    record = label(hydrogen(), make("cp2k", **{**CP2K, "basis": "NOPE"}), tmp_path)
    assert record.reason == "no-basis" and "<NOPE> for element <H>" in record.message
    with pytest.raises(InputError, match=r"cp2k refuses its input.*NOPE"):
        label(hydrogen(), make("cp2k", **{**CP2K, "xc": "NOPE"}), tmp_path)


@real("cp2k")
def test_cp2k_treats_a_molecule_anywhere_in_its_box_alike(tmp_path):
    """Measured besides: boxes of 4 and of 6 Å of vacuum agree within 2 meV; they take minutes."""
    alone = hydrogen()
    alone.pbc = False
    elsewhere = alone.copy()
    elsewhere.positions += (-1.0, 3.0, 2.0)  # through the walls; a multiple of no grid spacing
    labeler = make("cp2k", **{**CP2K, "vacuum_A": 2.0})
    first, second = (label(atoms, labeler, tmp_path) for atoms in (alone, elsewhere))
    assert (first.status, first.message, first.stress_eV_per_A3) == ("ok", "", None)
    assert first.energy_eV == pytest.approx(second.energy_eV, abs=5e-3)  # the grid


# --- the codes that are libraries -----------------------------------------------------------------


@needs("tblite")
def test_tblites_template_gives_what_tblites_own_calculator_gives(tmp_path):
    from tblite.ase import TBLite

    atoms = bent("CH3CH2OH")
    record = label(atoms, make("tblite"), tmp_path)
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    assert record.energy_eV == pytest.approx(atoms.get_potential_energy(), abs=TOLERANCE_EV)
    assert record.forces_eV_per_A == pytest.approx(atoms.get_forces(), abs=TOLERANCE_EV)


@needs("pyscf")
def test_pyscfs_template_gives_what_pyscf_gives_by_hand(tmp_path):
    from pyscf import dft, gto

    atoms = bent()
    settings = {"method": "PBE", "basis": "STO-3G", "grid_level": 1, "density_fit": False}
    record = label(atoms, make("pyscf", **settings, conv_tol_hartree=1e-10), tmp_path)
    places = (atoms.positions / units.Bohr).tolist()
    molecule = gto.M(
        atom=list(zip(atoms.symbols, places, strict=True)), unit="Bohr", basis="sto-3g", verbose=0
    )
    solver = dft.RKS(molecule, xc="PBE")
    solver.grids.level, solver.conv_tol = 1, 1e-10
    assert record.energy_eV == pytest.approx(solver.kernel() * units.Hartree, abs=TOLERANCE_EV)
    gradient = solver.nuc_grad_method()
    gradient.grid_response = True
    forces = -gradient.kernel() * units.Hartree / units.Bohr
    assert record.forces_eV_per_A == pytest.approx(forces, abs=1e-5)  # conv_tol_gradient 1e-4


def test_the_data_folder_of_cp2k_can_be_told_by_the_environment(tmp_path, monkeypatch):
    for name in ("BASIS_MOLOPT", "GTH_POTENTIALS"):
        (tmp_path / name).write_text("x\n")
    monkeypatch.setitem(os.environ, "CP2K_DATA_DIR", str(tmp_path))
    assert set(map(Path, make("cp2k").data_files().values())) == {
        tmp_path / "BASIS_MOLOPT", tmp_path / "GTH_POTENTIALS",
    }  # fmt: skip
