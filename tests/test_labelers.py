"""Labels: forces are slopes of energies, work is done once, every failure has a recorded reason.

Structures are tiny; one PySCF label here takes some tenths of a second.
"""

import importlib.util
import json
import os
import pickle
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, SCFError
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms

from alchemy.errors import (
    EnvironmentProblemError,
    InputError,
    PluginError,
    StoreDamagedError,
    StructureError,
)
from alchemy.gate import Gate
from alchemy.labelers.base import LabelFailureError, fingerprint, make_labeler, render
from alchemy.labelers.isolated import isolated_atom
from alchemy.labelers.label import label_structure
from alchemy.records import LabelRecord, write_json_atomic


def needs(package):
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"the Python package {package} is not installed")


HERE = Path(__file__).parent
SMALL = {"basis": "STO-3G", "grid_level": 1}


class Spring(Calculator):
    """A harmonic chain that leaves a line in a file for every calculation, or fails as told."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012  (as ASE declares it)

    def __init__(self, log=os.devnull, fail="", k_eV_per_A2=1.0):
        super().__init__()
        self.log, self.fail, self.k = Path(log), fail, k_eV_per_A2

    def calculate(self, atoms=None, properties=None, system_changes=None):
        super().calculate(atoms, properties, system_changes)
        with self.log.open("a") as file:
            file.write("calculated\n")
        if self.fail == "scf":
            raise SCFError("after 60 cycles")
        if self.fail == "bug":
            raise ZeroDivisionError("deep inside")
        if self.fail == "package":
            raise ModuleNotFoundError("No module named 'quantum'")
        if self.fail == "disk":
            raise OSError(28, "No space left on device")
        step = np.diff(atoms.positions, axis=0)
        forces = np.zeros_like(atoms.positions)
        forces[:-1] += self.k * step
        forces[1:] -= self.k * step
        if self.fail == "nan":
            forces[0, 0] = np.nan
        self.results = {"energy": 0.5 * self.k * float((step**2).sum()), "forces": forces}


def spring(**arguments):
    options = {"calculator": f"{__name__}.Spring", "arguments": arguments}
    return make_labeler("ase", options, base_dir=HERE)


def make(name, **options):
    return make_labeler(name, options, base_dir=HERE)


def label(atoms, labeler, root, **more):
    values = {"fidelity": "test", "gate": Gate(), **more}
    return label_structure(atoms, labeler=labeler, root=root, **values)


def slope_error(atoms, labeler, root, *, step_A):
    """|finite difference of the energy along a random direction − force along it|, in eV/Å."""
    direction = np.random.default_rng(3).normal(size=(len(atoms), 3))
    direction /= np.linalg.norm(direction)
    records = []
    for sign in (0, 1, -1):
        moved = atoms.copy()
        moved.positions += sign * step_A * direction
        records.append(label(moved, labeler, root))
    assert [(r.status, r.message) for r in records] == [("ok", "")] * 3
    here, up, down = records
    slope = (down.energy_eV - up.energy_eV) / (2 * step_A)
    return abs(slope - float((here.forces_eV_per_A * direction).sum()))


def water(seed=1):
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=seed)
    return atoms


# --- laws of nature -------------------------------------------------------------------------------


def test_emt_forces_are_the_slope_of_the_energy(tmp_path):
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    # EMT's cutoff function makes the curvature steep: O(h²) is 1e-7 at this step
    assert slope_error(atoms, make("emt"), tmp_path, step_A=1e-4) < 1e-5


@needs("tblite")
def test_tblite_forces_are_the_slope_of_the_free_energy(tmp_path):
    # accuracy 0.01 converges energies to 1e-9 eV, which step 1e-3 turns into 1e-6 eV/Å; O(h²) 1e-5
    labeler = make("tblite", accuracy=0.01)
    assert slope_error(water(), labeler, tmp_path, step_A=1e-3) < 1e-4
    hot = make("tblite", accuracy=0.01, electronic_temperature_K=20000.0)
    stretched = Atoms("N2", [[0, 0, 0], [0, 0, 1.8]])  # entropy matters here: 1 eV
    assert slope_error(stretched, hot, tmp_path, step_A=1e-3) < 1e-4
    assert label(stretched, hot, tmp_path).energy_kind == "free"


@needs("pyscf")
@pytest.mark.parametrize("charge", [0, 1])
def test_pyscf_forces_are_the_slope_of_the_energy(charge, tmp_path):
    atoms = water()
    atoms.info["charge"] = charge  # +1 is a doublet: unrestricted
    # grid level 1 on purpose: without the grid's response the error would be above 1e-3;
    # with it the rest is the SCF (1e-4) and O(h²) at 0.002 Å (1e-5)
    labeler = make("pyscf", conv_tol_hartree=1e-10, conv_tol_gradient=1e-6, **SMALL)
    assert slope_error(atoms, labeler, tmp_path, step_A=2e-3) < 3e-4


@needs("tblite")
def test_tblite_stress_is_the_slope_of_the_energy_under_strain(tmp_path):
    cell = [[4.0, 0.3, 0.0], [0.0, 4.0, 0.5], [0.2, 0.0, 4.0]]
    crystal = Atoms("H2", [[0, 0, 0], [0.1, 0.2, 0.75]], cell=cell, pbc=True)
    labeler, step = make("tblite", accuracy=0.01), 1e-3
    here = label(crystal, labeler, tmp_path)
    for voigt, (i, j) in {0: (0, 0), 2: (2, 2), 3: (1, 2), 5: (0, 1)}.items():
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[i, j] += sign * step / 2
            strain[j, i] += sign * step / 2
            moved = crystal.copy()
            moved.set_cell(crystal.cell @ strain, scale_atoms=True)
            energies.append(label(moved, labeler, tmp_path).energy_eV)
        slope = (energies[0] - energies[1]) / (2 * step * crystal.get_volume())
        # O(step²) is 1e-6 of stiffness, some eV/Å³; the components are 1e-3 to 2e-2 eV/Å³
        assert here.stress_eV_per_A3[voigt] == pytest.approx(slope, abs=1e-5)


@needs("pyscf")
def test_pyscf_agrees_with_nwchem_on_water(tmp_path):
    # NWChem 7.0.2, PBE/6-31G, this geometry: -2075.995983 eV. Different integration grids agree to
    # 1e-5 eV; constants differ by 1e-8 relative (CODATA), that is 2e-5 eV
    labeler = make("pyscf", method="PBE", basis="6-31G", density_fit=False, grid_level=3)
    assert label(water(), labeler, tmp_path).energy_eV == pytest.approx(-2075.995983, abs=2e-4)


@needs("pyscf")
def test_the_oxygen_atom_is_a_triplet(tmp_path):
    labeler = make("pyscf", **SMALL)
    triplet, singlet = isolated_atom("O"), isolated_atom("O")
    singlet.info["multiplicity"] = 1
    records = [label(atoms, labeler, tmp_path) for atoms in (triplet, singlet)]
    # experiment: 1.97 eV to the ¹D term; single determinants put the closed shell higher
    assert records[0].energy_eV < records[1].energy_eV - 1.0
    assert records[0].key != records[1].key


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("emt", {}),
        pytest.param("tblite", {}, marks=needs("tblite")),
        pytest.param("pyscf", SMALL, marks=needs("pyscf")),
    ],
)
def test_isolated_atoms_can_be_labelled(name, options, tmp_path):
    for symbol in "HCNO":
        record = label(isolated_atom(symbol), make(name, **options), tmp_path)
        assert record.status == "ok", record.message
        assert np.abs(record.forces_eV_per_A).max() < 1e-6  # nothing to pull at it


def test_isolated_atoms_follow_hund():
    spins = {symbol: isolated_atom(symbol).info["multiplicity"] for symbol in ("H", "C", "N", "Pd")}
    assert spins == {"H": 2, "C": 3, "N": 4, "Pd": 1}
    with pytest.raises(StructureError, match="Qq"):
        isolated_atom("Qq")


# --- done once, all or nothing --------------------------------------------------------------------


def test_a_second_call_computes_nothing(tmp_path):
    log, atoms = tmp_path / "log", water()
    labeler = spring(log=str(log))
    first, second = (label(atoms, labeler, tmp_path) for _ in range(2))
    assert log.read_text() == "calculated\n"
    assert first.to_document() == second.to_document()
    label(atoms, labeler, tmp_path, replica=1)
    label(atoms, labeler, tmp_path, fidelity="other")
    assert log.read_text() == "calculated\n" * 3


def test_a_kill_before_the_record_loses_nothing_and_repeats_nothing(tmp_path):
    log, atoms = tmp_path / "log", water()
    labeler = spring(log=str(log))
    record = label(atoms, labeler, tmp_path)
    path = tmp_path / record.key / "record.json"
    path.unlink()  # killed between output.json and record.json
    again = label(atoms, labeler, tmp_path)
    assert log.read_text() == "calculated\n"
    assert np.array_equal(again.forces_eV_per_A, record.forces_eV_per_A)
    assert again.cpu_s >= 0.0
    path.unlink()
    (tmp_path / record.key / "output.json").unlink()  # killed earlier
    assert label(atoms, labeler, tmp_path).energy_eV == record.energy_eV
    assert log.read_text() == "calculated\n" * 2


def test_an_output_of_another_input_is_not_taken_for_this_one(tmp_path):
    log, atoms = tmp_path / "log", water()
    labeler = spring(log=str(log))
    record = label(atoms, labeler, tmp_path)
    home = tmp_path / record.key
    (home / "record.json").unlink()
    output = json.loads((home / "output.json").read_text())
    write_json_atomic(home / "output.json", {**output, "energy_eV": -99.0, "input_hash": "0" * 32})
    assert label(atoms, labeler, tmp_path).energy_eV == record.energy_eV


def test_a_failure_is_final_for_its_attempt_and_kept_beside_the_next(tmp_path):
    log, atoms = tmp_path / "log", water()
    labeler = spring(log=str(log), fail="scf")
    for _ in range(2):
        record = label(atoms, labeler, tmp_path)
        assert (record.status, record.reason, record.attempt) == ("failed", "scf-not-converged", 1)
    assert log.read_text() == "calculated\n"
    second = label(atoms, labeler, tmp_path, attempt=2)
    assert (second.attempt, log.read_text()) == (2, "calculated\n" * 2)
    assert (
        LabelRecord.read(tmp_path / record.key / "failed-1").to_document() == record.to_document()
    )
    assert label(atoms, labeler, tmp_path, attempt=1).attempt == 2


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fail", "reason", "piece"),
    [
        ("scf", "scf-not-converged", "60 cycles"),
        ("nan", "not-finite", "forces"),
        ("bug", "engine-error", "ZeroDivisionError: deep inside"),
    ],
)
def test_a_failed_calculation_is_a_record(fail, reason, piece, tmp_path):
    record = label(water(), spring(fail=fail), tmp_path)
    assert (record.status, record.reason) == ("failed", reason)
    assert piece in record.message
    assert record.energy_eV is None and record.forces_eV_per_A is None


def test_rejected_numbers_stay_in_the_output_file(tmp_path):
    record = label(water(), spring(fail="nan"), tmp_path)
    output = json.loads((tmp_path / record.key / "output.json").read_text())
    assert output["forces_eV_per_A"][0][0] == "nan"


@pytest.mark.parametrize(
    ("fail", "error"), [("package", EnvironmentProblemError), ("disk", OSError)]
)
def test_broken_machinery_raises_and_records_nothing(fail, error, tmp_path):
    with pytest.raises(error):
        label(water(), spring(fail=fail), tmp_path)
    assert not list(tmp_path.rglob("record.json"))


def test_overlapping_atoms_are_never_computed(tmp_path):
    log = tmp_path / "log"
    close = Atoms("OH", [[0, 0, 0], [0, 0, 0.3]])
    record = label(close, spring(log=str(log)), tmp_path)
    assert (record.status, record.reason) == ("failed", "overlapping-atoms")
    assert not log.exists()


def test_a_wrong_reference_energy_is_noticed(tmp_path):
    record = label(water(), make("emt"), tmp_path, e0_eV={"H": -13.6, "O": -2040.0})
    assert record.reason == "energy-implausible"


@needs("pyscf")
def test_an_scf_that_does_not_converge_is_a_record_and_the_ladder_saves_what_it_can(tmp_path):
    options = {**SMALL, "max_cycle": 1, "coarse_grid_level": None}
    record = label(water(), make("pyscf", retries=0, **options), tmp_path)
    assert (record.status, record.reason) == ("failed", "scf-not-converged")
    assert "1 cycles of DIIS" in record.message
    rescued = label(water(), make("pyscf", retries=2, **options), tmp_path / "ladder")
    plain = label(water(), make("pyscf", **SMALL), tmp_path / "plain")
    # the ladder changes the way, not the answer (10 × the energy tolerance, in eV) nor the identity
    assert rescued.energy_eV == pytest.approx(plain.energy_eV, abs=3e-5)
    assert rescued.fingerprint == plain.fingerprint == record.fingerprint


@needs("pyscf")
@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        ({"pbc": True, "cell": [9, 9, 9]}, {}, "periodic-not-supported"),
        ({"numbers": [94, 1, 1], "scale": 3}, {"basis": "def2-SVP"}, "no-basis"),
        ({"multiplicity": 2}, {}, "bad-multiplicity"),
        ({"charge": 11}, {}, "bad-charge"),
    ],
)
def test_what_pyscf_cannot_treat_has_a_reason(change, options, reason, tmp_path):
    atoms = water()
    atoms.positions *= change.get("scale", 1)
    atoms.set_cell(change.get("cell"))
    atoms.pbc = change.get("pbc", False)
    atoms.numbers = change.get("numbers", atoms.numbers)
    atoms.info.update({k: v for k, v in change.items() if k in ("charge", "multiplicity")})
    assert label(atoms, make("pyscf", **{**SMALL, **options}), tmp_path).reason == reason


@needs("tblite")
def test_what_tblite_cannot_treat_has_a_reason(tmp_path):
    slab = water()
    slab.set_cell([8, 8, 8])
    slab.pbc = (True, True, False)  # tblite would treat it as periodic in z, silently
    assert label(slab, make("tblite"), tmp_path).reason == "periodic-not-supported"
    assert label(Atoms("U"), make("tblite"), tmp_path).reason == "element-not-supported"
    short = make("tblite", max_iterations=2)
    assert label(water(), short, tmp_path).reason == "scf-not-converged"


def test_a_charge_that_nobody_would_tell_the_calculator_is_refused(tmp_path):
    atoms = water()
    atoms.info["charge"] = 1
    assert label(atoms, spring(), tmp_path).reason == "charge-not-supported"


def test_a_failure_survives_pickling():
    failure = pickle.loads(pickle.dumps(LabelFailureError("why", "how")))
    assert (failure.reason, failure.message) == ("why", "how")


# --- raw, quiet, recorded -------------------------------------------------------------------------


def test_constraints_do_not_reach_the_label(tmp_path):
    slab = bulk("Cu", cubic=True)
    slab.rattle(0.1, seed=1)
    free = slab.copy()
    slab.set_constraint(FixAtoms([0, 1]))
    record = label(slab, make("emt"), tmp_path)
    free.calc = EMT()
    assert np.array_equal(record.forces_eV_per_A, free.get_forces())
    assert np.array_equal(record.stress_eV_per_A3, free.get_stress())


@needs("pyscf")
def test_pyscf_prints_nothing_and_leaves_only_our_files(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = label(water(), make("pyscf", **SMALL), tmp_path / "labels")
    assert capfd.readouterr() == ("", "")
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {"input.yaml", "structure.json", "output.json", "record.json"}
    # 0.4 e·Å is 1.9 D, water's dipole; it points from O (above) to the hydrogens (below)
    assert record.dipole_eA[2] == pytest.approx(-0.35, abs=0.1)


def test_a_record_read_back_is_the_record_written(tmp_path):
    atoms = water()
    atoms.info["multiplicity"] = 1
    record = label(atoms, make("emt"), tmp_path)
    again = LabelRecord.read(tmp_path / record.key)
    assert again.to_document() == record.to_document()
    assert np.array_equal(again.atoms.positions, atoms.positions)
    assert again.atoms.info == {"multiplicity": 1}
    assert (again.physics, again.key) == (make("emt").physics(), record.key)


def test_a_damaged_record_is_named(tmp_path):
    record = label(water(), make("emt"), tmp_path)
    path = tmp_path / record.key / "record.json"
    whole = path.read_text()
    without_forces = {**json.loads(whole), "forces_eV_per_A": [[0.0, 0.0, 0.0]]}
    for text in (whole[:100], "{}", json.dumps(without_forces), whole.replace('"ok"', '"fine"')):
        path.write_text(text)
        with pytest.raises(StoreDamagedError, match=str(path)):
            label(water(), make("emt"), tmp_path)


# --- templates, options, fingerprints -------------------------------------------------------------


def edited(tmp_path, name, old, new):
    text = files("alchemy_templates").joinpath(f"labelers/{name}.yaml.j2").read_text()
    assert old in text
    path = tmp_path / "mine.j2"
    path.write_text(text.replace(old, new))
    return make_labeler(name, {"template": "mine.j2"}, base_dir=tmp_path)


@needs("pyscf")
def test_the_fingerprint_follows_the_physics_and_nothing_else(tmp_path):
    plain = fingerprint(make("pyscf"))
    assert plain == fingerprint(make("pyscf", threads=4, max_cycle=7, retries=0))
    assert plain != fingerprint(make("pyscf", basis="STO-3G"))
    assert plain == fingerprint(edited(tmp_path, "pyscf", "# Input of", "# My input of"))
    assert plain != fingerprint(
        edited(tmp_path, "pyscf", "grid_response: true", "grid_response: false")
    )
    mine = edited(tmp_path, "pyscf", "attributes: {}", "attributes: {nonsense: 1}")
    with pytest.raises(InputError, match="no setting 'nonsense'"):
        label(water(), mine, tmp_path)


@needs("tblite")
def test_physics_in_a_template_must_not_depend_on_the_structure(tmp_path):
    labeler = edited(tmp_path, "tblite", "{{ accuracy | tojson }}", "{{ 1 + multiplicity }}")
    with pytest.raises(InputError, match="depends on the structure"):
        label(isolated_atom("O"), labeler, tmp_path)


@needs("tblite")
def test_mistakes_in_templates_name_file_and_key(tmp_path):
    with pytest.raises(InputError, match=r"mine\.j2.*'colour' is undefined.*method"):
        edited(tmp_path, "tblite", "{{ method | tojson }}", "{{ colour }}")
    with pytest.raises(
        InputError, match=r"physics: unknown key 'acuracy'; did you mean 'accuracy'"
    ):
        edited(tmp_path, "tblite", "accuracy:", "acuracy:")
    with pytest.raises(InputError, match=r"path\.threads is 'many', which is not int"):
        make("tblite", threads="many")
    with pytest.raises(InputError, match="cannot be read"):
        make("tblite", template="nowhere.j2")


def test_templates_cannot_run_code(tmp_path):
    path = tmp_path / "evil.j2"
    path.write_text("{{ ''.__class__.__mro__ }}")
    with pytest.raises(InputError, match="unsafe"):
        render(path, {})


def test_unknown_names_and_options_are_answered_with_the_nearest():
    with pytest.raises(PluginError, match="did you mean 'pyscf'"):
        make("pyscff")
    with pytest.raises(InputError, match=r"no option 'acuracy'; did you mean 'accuracy'\?.*method"):
        make("tblite", acuracy=1.0)
    with pytest.raises(InputError, match=r"labeler 'ase'.*calculator"):
        make("ase")


@needs("pyscf")
def test_misspelt_methods_stop_the_campaign_instead_of_failing_every_label(tmp_path):
    with pytest.raises(InputError, match="no functional 'PBEE'"):
        label(water(), make("pyscf", method="PBEE"), tmp_path)
    with pytest.raises(InputError, match="no basis set 'def2-SVQ'"):
        label(water(), make("pyscf", basis="def2-SVQ"), tmp_path)
    with pytest.raises(EnvironmentProblemError, match="no_such_code"):
        label(water(), make("ase", calculator="no_such_code.Calculator"), tmp_path)
