"""Real outputs of VASP, Quantum ESPRESSO and CP2K become labels; those that did not converge do not."""

from pathlib import Path

import ase
import numpy as np
import pytest

from alchemy.store import Store
from tace.units import conversion

OWN = Path(__file__).parent / "data" / "outputs"
VASP = Path(ase.__file__).parent / "test" / "testdata" / "vasp"
RY_PER_BOHR = conversion("Ry/Bohr", "eV/A")
KBAR = conversion("kbar", "eV/A^3")


@pytest.fixture
def imported(run, tmp_path):
    def call(*words):
        code, out, err = run("data", "import", tmp_path / "x.h5", *words, "--fidelity", "lda")
        return code, out + err, Store(tmp_path / "x.h5").snapshot()

    return call


@pytest.fixture
def vasp():
    if not VASP.is_dir():
        pytest.skip(f"this ASE came without its test data, {VASP}")
    return VASP


def test_a_run_of_quantum_espresso_brings_energy_forces_and_stress(imported):
    code, text, view = imported(OWN / "si.pwo")
    assert code == 0, text
    (row,) = view.labels()
    # 1e-6: ASE converts with constants of another year
    assert row.energy_eV == pytest.approx(-15.64751172 * conversion("Ry", "eV"), rel=1e-6)
    forces = np.array([1, -1]) * 0.02885777 * RY_PER_BOHR
    np.testing.assert_allclose(row.forces_eV_per_A[:, 0], forces, rtol=1e-6)
    trace = row.stress_eV_per_A3[:3].sum() / 3
    assert trace == pytest.approx(-41.64 * KBAR, rel=1e-3), "QE's pressure is positive under compression"
    assert view.structure(row.structure_uid).get_chemical_formula() == "Si2"


def test_a_run_of_cp2k_brings_energy_forces_and_stress_of_the_right_sign(imported):
    code, text, view = imported(OWN / "h2-cp2k.out")
    assert code == 0, text
    (row,) = view.labels()
    atoms = view.structure(row.structure_uid)
    assert row.energy_eV == pytest.approx(-1.160336990024489 * conversion("Ha", "eV"), rel=1e-12)
    np.testing.assert_allclose(atoms.get_distance(0, 1), 0.8, atol=1e-8)
    force = 0.05406593 * conversion("Ha/Bohr", "eV/A")
    np.testing.assert_allclose(row.forces_eV_per_A, [[0, 0, force], [0, 0, -force]], rtol=1e-9)
    # The bond is too long and pulls the cell together along z: V σ = −Σ r F, up to the error of grids.
    virial = -(atoms.positions[:, 2] * row.forces_eV_per_A[:, 2]).sum() / atoms.get_volume()
    assert virial > 0
    assert row.stress_eV_per_A3[2] == pytest.approx(virial, rel=0.25)
    assert np.abs(row.stress_eV_per_A3[3:]).max() < 1e-12


def test_runs_of_vasp_are_read_from_both_of_their_files(imported, vasp):
    code, text, view = imported(vasp / "vasprun_pstress.xml", vasp / "OUTCAR_example_1")
    assert code == 0, text
    rows = {view.structure(r.structure_uid).get_chemical_formula(): r for r in view.labels()}
    assert {name: round(row.energy_eV, 4) for name, row in rows.items()} == {"C2": -20.2472, "Ni18": -68.231}
    assert rows["Ni18"].forces_eV_per_A.shape == (18, 3)
    # The stress at the end of an OUTCAR, 'in kB', is positive under compression; ASE's is not.
    lines = (vasp / "OUTCAR_example_1").read_text().splitlines()
    pressure = np.array(next(line for line in lines if line.startswith("  in kB")).split()[2:5], float)
    np.testing.assert_allclose(rows["Ni18"].stress_eV_per_A3[:3], -pressure * KBAR, rtol=1e-6)


@pytest.mark.parametrize("name", ["si-unconverged.pwo", "h2-cp2k-unconverged.out"])
def test_a_calculation_that_did_not_converge_is_refused_with_its_reason(imported, name):
    code, text, view = imported(OWN / name)
    assert code == 2
    assert "frame 0: scf-not-converged: its self-consistent field stopped before it had converged" in text
    assert "--skip-unconverged" in text
    assert (view.last, len(view)) == (-1, 0)
    code, text, view = imported(OWN / name, OWN / "si.pwo", "--skip-unconverged")
    assert code == 0, text
    assert "left out: 1 frame that did not converge" in text
    assert len(view.labels()) == 1


def test_vasp_without_convergence_is_refused_in_both_of_its_files(imported, vasp, tmp_path):
    """9 electronic steps were needed; with NELM = 9 VASP would have stopped there."""
    xml = (vasp / "vasprun_pstress.xml").read_text()
    assert xml.count("<scstep>") == 9
    (tmp_path / "vasprun.xml").write_text(xml.replace('name="NELM">    60<', 'name="NELM">     9<'))
    outcar = (vasp / "OUTCAR_example_1").read_text()
    reached, missed = "aborting loop because EDIFF is reached", "aborting loop EDIFF was not reached"
    assert outcar.count(reached) == 1
    bad = outcar.replace(reached, missed)
    (tmp_path / "OUTCAR").write_text(bad)
    for name in ("vasprun.xml", "OUTCAR"):
        code, text, view = imported(tmp_path / name)
        reason = "frame 0: scf-not-converged: its self-consistent field stopped"
        assert (code, reason in text, len(view)) == (2, True, 0)


def test_an_output_of_cp2k_that_cannot_be_read_says_why(imported, tmp_path):
    text = (OWN / "h2-cp2k.out").read_text()
    energy = next(line for line in text.splitlines() if "ENERGY| Total" in line)
    for content, words in (
        (text[: text.index("ENERGY| Total")], "did not finish, or printed no energy"),
        (text.replace(energy, f"{energy}\n{energy}"), "2 energies, but an output has no later positions"),
        (text.replace("ATOMIC COORDINATES IN", "NOTHING IN"), "use PRINT_LEVEL MEDIUM"),
        (text.replace("orthorhombic:                                             YES", "orthorhombic: NO"),
         "not orthorhombic too roughly"),
    ):  # fmt: skip
        (tmp_path / "cp2k.out").write_text(content)
        code, found, _ = imported(tmp_path / "cp2k.out")
        assert (code, words in found) == (2, True), found
