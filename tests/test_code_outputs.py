"""Programs that are licensed, from input to label: real outputs (see data/README.md) and spoilt ones."""

from __future__ import annotations

import json
from pathlib import Path

import ase.test
import numpy as np
import pytest
from ase import Atoms, units
from code_cases import aims, played_by, vasp
from label_helpers import label

from alchemy.errors import InputError
from alchemy.labelers.orca import OrcaLabeler

PUBLISHED = Path(ase.test.__file__).parent / "testdata"  # installed with ASE
TIMING = " General timing and accounting informations for this job:\n"


@pytest.fixture
def played(tmp_path):
    return played_by(tmp_path / "played")


@pytest.fixture
def root(tmp_path):
    (tmp_path / "labels").mkdir()
    return tmp_path / "labels"


def published(name):
    """A file of ASE's test data."""
    path = PUBLISHED / name
    if not path.is_file():
        pytest.skip(f"the installed ASE has no {path}", allow_module_level=True)
    return path.read_text()


# --- VASP -----------------------------------------------------------------------------------------

RUN = published("vasp/vasprun_pstress.xml")  # VASP 6.3.0, diamond, PSTRESS = 1
# what VASP says in OUTCAR when the electrons have converged, and when they have not
REACHED = published("vasp/convergence_OUTCAR_y_y")
NOT_REACHED = published("vasp/convergence_OUTCAR_y_n")
C_TITEL, SI_TITEL = "PAW C 22Mar2012", "PAW_PBE Si 05Jan2001"


def diamond(*symbols):
    half = 1.785
    cell = [[0, half, half], [half, 0, half], [half, half, 0]]
    return Atoms(symbols or "CC", scaled_positions=[(0, 0, 0), (0.25,) * 3], cell=cell, pbc=True)


def carbide(run):
    """The run, with silicon for its second atom and forces that tell the atoms apart."""
    run = run.replace("<rc><c>C </c><c>   1</c></rc>\n   </set>", "<rc><c>Si</c><c>   2</c></rc>\n   </set>")
    kind = "<rc><c>   1</c><c>{}</c><c>     12.01100000</c><c>      4.00000000</c><c>  {:<36}</c></rc>"
    old = run[run.index("<rc><c>   2</c><c>C </c>") : run.index("</set>", run.index("atomtypes"))]
    run = run.replace(old, f"{kind.format('C ', C_TITEL)}\n{kind.format('Si', SI_TITEL)}\n")
    start = run.index('<varray name="forces"')
    end = run.index("</varray>", start)
    forces = '<varray name="forces" >\n<v> 0.25 -0.5 1.0 </v>\n<v> -0.25 0.5 -1.0 </v>\n'
    return run[:start] + forces + run[end:]


@pytest.fixture
def vasp_dir(tmp_path):
    for name, titel in (("C", C_TITEL), ("Si", SI_TITEL)):
        (tmp_path / "potcars" / name).mkdir(parents=True)
        (tmp_path / "potcars" / name / "POTCAR").write_text(f" TITEL  = {titel}\n")
    return {"potcars": {"C": "C", "Si": "Si"}, "potcar_dir": str(tmp_path / "potcars")}


def test_vasp_labels_with_the_free_energy_without_the_work_of_the_pressure(played, root, vasp_dir):
    """vasprun.xml's own last energy, −20.23985977, has p·V in it; e_0_energy is not the forces'."""
    command = played(vasprun_dot_xml=RUN, OUTCAR=" vasp.6.3.0 20Jan22\n" + REACHED + TIMING)
    record = label(diamond(), vasp(command=command, **vasp_dir), root)
    assert (record.status, record.reason, record.message) == ("ok", "", "")
    assert record.energy_eV == pytest.approx(-20.24695937, abs=1e-8)  # the file's digits
    assert record.energy_kind == "free"
    # VASP: kB, pressure positive; ASE: eV/Å³, tension positive
    assert record.stress_eV_per_A3[:3] == pytest.approx([165.9956258 * 0.1 * units.GPa] * 3, rel=1e-9)
    assert not (next(root.iterdir()) / "POTCAR").exists()


def test_vasp_forces_return_in_the_order_of_the_structure(played, root, vasp_dir):
    command = played(vasprun_dot_xml=carbide(RUN), OUTCAR=REACHED + TIMING)
    grouped = diamond("C", "Si")
    record = label(grouped, vasp(command=command, **vasp_dir), root)
    assert record.forces_eV_per_A.tolist() == [[0.25, -0.5, 1.0], [-0.25, 0.5, -1.0]]
    record = label(grouped[[1, 0]], vasp(command=command, **vasp_dir), root)
    assert record.forces_eV_per_A.tolist() == [[-0.25, 0.5, -1.0], [0.25, -0.5, 1.0]]


def spoilt(name):
    """(vasprun.xml, OUTCAR, structure, reason) of a run that must not become a label."""
    good = REACHED + TIMING
    moved = diamond()
    moved.positions[1, 0] += 0.01
    stretched = diamond()
    stretched.set_cell(1.01 * np.asarray(stretched.cell), scale_atoms=True)
    steps = RUN.count("<scstep>")
    limit = RUN.replace('<i type="int" name="NELM">    60</i>', f'<i type="int" name="NELM">    {steps}</i>')
    other_potcar = RUN.replace(C_TITEL, "PAW_PBE C_h 20Jul12")
    assert limit != RUN != other_potcar
    return {
        "unconverged": (RUN, NOT_REACHED + TIMING, diamond(), "scf-not-converged"),
        "every step used": (limit, "no words" + TIMING, diamond(), "scf-not-converged"),
        "OUTCAR cut": (RUN, REACHED, diamond(), "truncated-output"),
        "xml cut": (RUN[: len(RUN) - 300], good, diamond(), "truncated-output"),
        "moved": (RUN, good, moved, "geometry-mismatch"),
        "other cell": (RUN, good, stretched, "geometry-mismatch"),
        "other elements": (carbide(RUN), good, diamond(), "geometry-mismatch"),
        "other POTCAR": (other_potcar, good, diamond(), "wrong-pseudopotential"),
        "NaN": (RUN.replace("-20.23985977", "NaN"), good, diamond(), "not-finite"),
    }[name]


@pytest.mark.parametrize(
    "name",
    ["unconverged", "every step used", "OUTCAR cut", "xml cut", "moved", "other cell", "other elements",
     "other POTCAR", "NaN"],
)  # fmt: skip
def test_a_spoilt_vasp_run_is_refused_by_its_name(name, played, root, vasp_dir):
    run, outcar, atoms, reason = spoilt(name)
    command = played(vasprun_dot_xml=run, OUTCAR=outcar)
    record = label(atoms, vasp(command=command, retries=0, **vasp_dir), root)
    assert (record.status, record.reason) == ("failed", reason), record.message


def test_vasp_climbs_from_an_unconverged_run_to_a_converged_one(played, root, vasp_dir):
    command = played(
        vasprun_dot_xml=RUN, OUTCAR=NOT_REACHED + TIMING,
        next__vasprun_dot_xml=RUN, next__OUTCAR=REACHED + TIMING,
    )  # fmt: skip
    assert label(diamond(), vasp(command=command, **vasp_dir), root).status == "ok"
    (directory,) = root.iterdir()
    assert json.loads((directory / "output.json").read_text())["rung"] == "more steps"
    incars = [(place / "INCAR").read_text() for place in (directory / "rung-0", directory)]
    assert [text.count("NELM = 100\n") for text in incars] == [1, 0]


def test_vasp_that_dies_says_its_last_words(played, root, vasp_dir):
    command = played(stdout=" |     Error reading item 'ENCUT' from file INCAR\n", code="1")
    record = label(diamond(), vasp(command=command, **vasp_dir), root)
    assert record.reason == "engine-error" and "Error reading item 'ENCUT'" in record.message


# --- FHI-aims -------------------------------------------------------------------------------------

AIMS = published("aims/singlepoint.out")  # water, restarts its mixer on the way


def aims_water():
    return Atoms("OHH", [(0, 0, 0), (0.9584, 0, 0), (-0.24, 0.9279, 0)])


def test_aims_labels_with_the_last_forces_not_the_zeros_before_a_restart(played, root):
    record = label(aims_water(), aims(command=played(stdout=AIMS)), root)
    assert (record.status, record.message, record.energy_kind) == ("ok", "", "free")
    assert record.energy_eV == pytest.approx(-2063.02072675943, abs=1e-9)
    assert record.forces_eV_per_A[1, 0] == pytest.approx(6.92109878170016, abs=1e-12)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("Have a nice day.", "", "truncated-output"),
        ("Self-consistency cycle converged.", "", "scf-not-converged"),
        ("Have a nice day.", "* WARNING! SELF-CONSISTENCY CYCLE DID NOT CONVERGE\nHave a nice day.",
         "scf-not-converged"),
        ("    2: Species H             0.95840000", "    2: Species H             0.96840000",
         "geometry-mismatch"),
        ("    2: Species H ", "    2: Species O ", "geometry-mismatch"),
    ],
)  # fmt: skip
def test_a_spoilt_aims_run_is_refused_by_its_name(old, new, reason, played, root):
    assert old in AIMS
    command = played(stdout=AIMS.replace(old, new))
    record = label(aims_water(), aims(command=command, retries=0), root)
    assert (record.status, record.reason) == ("failed", reason), record.message


def test_an_aims_output_without_forces_is_no_label(played, root):
    start = AIMS.rindex("  Total atomic forces")
    text = AIMS[:start].replace("Total atomic forces", "") + "Have a nice day.\n" + "-" * 60 + "\n"
    record = label(aims_water(), aims(command=played(stdout=text), retries=0), root)
    assert record.reason == "truncated-output" and "forces" in record.message


# --- ORCA -----------------------------------------------------------------------------------------

# in the form of ORCA 5; numbers of ASE's own test of its reader
ORCA = """\
                         Program Version 5.0.4 -  RELEASE  -
---------------------------------
CARTESIAN COORDINATES (ANGSTROEM)
---------------------------------
  O      0.000000    0.000000    0.000000
  H      1.000000    0.000000    0.000000
  H      0.000000    1.000000    0.000000

Number of atoms                             ...      3

               *           SCF CONVERGED AFTER  12 CYCLES          *

------------------
CARTESIAN GRADIENT
------------------

   1   O   :   -0.047131485   -0.047131485    0.000000000
   2   H   :    0.025621056    0.021510429    0.000000000
   3   H   :    0.021510429    0.025621056   -0.000000000

-------------------------   --------------------
FINAL SINGLE POINT ENERGY       -76.422436201230
-------------------------   --------------------
                             ****ORCA TERMINATED NORMALLY****
"""
ENGRAD = """\
#
# Number of atoms
#
 3
#
# The current total energy in Eh
#
    -76.422436201230
#
# The current gradient in Eh/bohr
#
      -0.047131484960
      -0.047131484716
       0.000000000053
       0.025621056182
       0.021510428527
       0.000000000034
       0.021510428778
       0.025621056189
      -0.000000000087
#
# The atomic numbers and current coordinates in Bohr
#
   8     0.0000000    0.0000000    0.0000000
   1     1.8897261    0.0000000    0.0000000
   1     0.0000000    1.8897261    0.0000000
"""


def orca_water():
    return Atoms("OHH", [(0, 0, 0), (1, 0, 0), (0, 1, 0)])


def test_orca_labels_with_the_gradient_of_its_file(played, root):
    record = label(orca_water(), OrcaLabeler(command=played(stdout=ORCA, label_dot_engrad=ENGRAD)), root)
    assert (record.status, record.message, record.code) == ("ok", "", "orca 5.0.4")
    assert record.energy_eV == pytest.approx(-76.42243620123 * units.Hartree, abs=1e-9)
    expected = 0.047131484960 * units.Hartree / units.Bohr
    assert record.forces_eV_per_A[0, 0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("****ORCA TERMINATED NORMALLY****", "", "truncated-output"),
        ("SCF CONVERGED AFTER  12 CYCLES", "SCF NOT CONVERGED AFTER 150 CYCLES", "scf-not-converged"),
        ("-76.422436201230", "-76.422436201230 (Wavefunction not fully converged!)", "scf-not-converged"),
        ("  H      1.000000", "  H      1.010000", "geometry-mismatch"),
        ("  O      0.000000", "  N      0.000000", "geometry-mismatch"),
        ("Program Version", "Error : multiplicity (1) is odd and number of electrons (9) is odd",
         "bad-multiplicity"),
    ],
)  # fmt: skip
def test_a_spoilt_orca_run_is_refused_by_its_name(old, new, reason, played, root):
    command = played(stdout=ORCA.replace(old, new), label_dot_engrad=ENGRAD)
    record = label(orca_water(), OrcaLabeler(command=command, retries=0), root)
    assert (record.status, record.reason) == ("failed", reason), record.message


def test_a_missing_gradient_file_is_a_truncated_output(played, root):
    record = label(orca_water(), OrcaLabeler(command=played(stdout=ORCA)), root)
    assert record.reason == "truncated-output" and "label.engrad" in record.message


def test_an_input_that_orca_refuses_stops_the_user_not_the_structure(played, root):
    text = "UNRECOGNIZED OR DUPLICATED KEYWORD(S) IN SIMPLE INPUT LINE\n  PBEE\n"
    with pytest.raises(InputError, match=r"(?s)orca refuses its input, .*label.inp: UNRECOGNIZED.*PBEE"):
        label(orca_water(), OrcaLabeler(command=played(stdout=text, code="1")), root)
