"""Programs that Debian ships, from input to label without them: outputs that they wrote, and spoilt ones."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from code_cases import DATA, cp2k, played_by
from label_helpers import label, make

from alchemy.errors import InputError

OUTPUTS = DATA / "outputs"
NORMAL = "normal termination of xtb\n"


@pytest.fixture
def played(tmp_path):
    return played_by(tmp_path / "played")


@pytest.fixture
def root(tmp_path):
    (tmp_path / "labels").mkdir()
    return tmp_path / "labels"


def read(name):
    return (OUTPUTS / name).read_text()


def bent():
    """The water of the outputs."""
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=1)
    return atoms


def hydrogen():
    return Atoms("H2", [(2.5, 2.5, 2.1), (2.5, 2.5, 2.9)], cell=[5, 5, 5], pbc=True)


def moved(atoms):
    again = atoms.copy()
    again.positions[-1, 0] += 0.01
    return again


# --- CP2K -----------------------------------------------------------------------------------------


def test_cp2k_numbers_come_in_our_units_and_signs(played, root):
    record = label(hydrogen(), cp2k(command=played(stdout=read("h2-cp2k.out"))), root)
    assert (record.status, record.message, record.code) == ("ok", "", "cp2k 2023.1")
    # pymatgen's Hartree would be 2.6e-7 eV away, of water 4e-6
    assert record.energy_eV == pytest.approx(-1.160336990024489 * units.Hartree, abs=1e-9)
    force = 0.05406593 * units.Hartree / units.Bohr  # stretched: the atoms attract each other
    assert record.forces_eV_per_A[:, 2] == pytest.approx([force, -force], abs=1e-9)
    assert record.stress_eV_per_A3[2] == pytest.approx(3.30679814574 * units.GPa, rel=1e-9)  # CP2K: −3.3


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("PROGRAM ENDED AT", "", "truncated-output"),
        ("SCF run converged", "", "truncated-output"),
        ("SCF run converged", "SCF run NOT converged", "scf-not-converged"),
        (" 1 H     1      2.500000", " 1 H     1      2.600000", "geometry-mismatch"),
        ("CELL| Vector c [angstrom]:       0.000     0.000     5.000",
         "CELL| Vector c [angstrom]:       0.000     0.000     5.100", "geometry-mismatch"),
        ("PROGRAM ENDED AT", "[ABORT]\\n CPASSERT failed\\n qs_scf.F:12", "engine-error"),
        ("0.05406593", "       NaN", "truncated-output"),
    ],
)  # fmt: skip
def test_a_spoilt_cp2k_run_is_refused_by_its_name(old, new, reason, played, root):
    text = read("h2-cp2k.out")
    assert old in text
    command = played(stdout=text.replace(old, new.replace("\\n", "\n")))
    record = label(hydrogen(), cp2k(command=command, retries=0), root)
    assert (record.status, record.reason) == ("failed", reason), record.message


def test_a_cp2k_run_that_did_not_converge_is_none(played, root):
    command = played(stdout=read("h2-cp2k-unconverged.out"))
    record = label(hydrogen(), cp2k(command=command, retries=0), root)
    assert (record.status, record.reason) == ("failed", "scf-not-converged")


# --- NWChem ---------------------------------------------------------------------------------------


def test_nwchem_numbers_come_in_our_units(played, root):
    command = played(stdout=read("water-nwchem.out"))
    record = label(bent(), make("nwchem", command=command), root)
    assert (record.status, record.message, record.code) == ("ok", "", "nwchem 7.0.2")
    assert record.energy_eV == pytest.approx(-2064.7737101204216, abs=1e-9)
    # the mean of the signed parts is the net force: gradients, not forces, would point outwards
    pull = bent().positions[1] - bent().positions[0]
    assert np.dot(record.forces_eV_per_A[1], pull) < 0  # this OH is longer than its optimum


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("Total times  cpu:", "", "truncated-output"),
        ("Total DFT energy", "Total energy", "truncated-output"),
        ("DFT ENERGY GRADIENTS", "", "truncated-output"),
        ("   2 H ", "   2 O ", "geometry-mismatch"),
    ],
)
def test_a_spoilt_nwchem_run_is_refused_by_its_name(old, new, reason, played, root):
    text = read("water-nwchem.out")
    assert old in text
    record = label(bent(), make("nwchem", command=played(stdout=text.replace(old, new))), root)
    assert (record.status, record.reason) == ("failed", reason), record.message


def test_an_nwchem_run_that_did_not_converge_is_none(played, root):
    """Its energy of the last iteration stands in the output as if it were one."""
    text = read("water-nwchem-unconverged.out")
    assert "Total DFT energy" in text
    record = label(bent(), make("nwchem", command=played(stdout=text, code="255"), retries=0), root)
    assert (record.status, record.reason) == ("failed", "scf-not-converged")


def test_an_nwchem_output_of_another_structure_is_refused(played, root):
    command = played(stdout=read("water-nwchem.out"))
    assert label(moved(bent()), make("nwchem", command=command), root).reason == "geometry-mismatch"


# --- xtb ------------------------------------------------------------------------------------------


def xtb_run(played, *, stdout=None, gradient=None, stderr=NORMAL, code="0"):
    files = {"gradient": read("water-xtb.gradient") if gradient is None else gradient}
    return played(stdout=stdout or read("water-xtb.out"), stderr=stderr, code=code, **files)


def xtb(command):
    return make("xtb", command=command, retries=0)


def test_xtb_numbers_come_in_our_units(played, root):
    record = label(bent(), xtb(xtb_run(played)), root)
    assert (record.status, record.message, record.energy_kind) == ("ok", "", "free")
    assert record.energy_eV == pytest.approx(-5.060 * units.Hartree, abs=0.1)
    total = np.abs(record.forces_eV_per_A.sum(axis=0)).max()
    assert total < 1e-9  # forces of an isolated molecule, 14 digits printed


def test_xtb_that_stops_before_its_last_word_is_refused(played, root):
    assert label(bent(), xtb(xtb_run(played, stderr="abnormal\n")), root).reason == "truncated-output"
    text = "*** convergence criteria cannot be satisfied within 3 iterations ***\n[ERROR] x\n####"
    record = label(moved(bent()), xtb(xtb_run(played, stdout=text, stderr="", code="1")), root)
    assert record.reason == "scf-not-converged"


def test_xtb_gradients_of_another_structure_are_refused(played, root):
    assert label(moved(bent()), xtb(xtb_run(played)), root).reason == "geometry-mismatch"
    half = read("water-xtb.gradient")
    half = "\n".join([*half.splitlines()[:-3], "$end", ""])
    record = label(bent(), xtb(xtb_run(played, gradient=half)), root)
    assert (record.status, record.reason) == ("failed", "wrong-shape")  # a force is missing


def test_a_wrong_word_in_cp2ks_input_stops_the_user_not_the_structure(played, root):
    box = " * [ABORT] *\n * invalid value for enumeration:NOPE *\n * input/input_enumeration_types.F:215 *\n"
    with pytest.raises(InputError, match=r"cp2k refuses its input, .*label.inp: .*NOPE"):
        label(hydrogen(), cp2k(command=played(stdout=box, code="1")), root)
