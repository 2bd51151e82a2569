"""Labels: work is done once, all or nothing; every failure has a recorded reason."""

import json
import pickle

import numpy as np
import pytest
from ase import Atoms
from label_helpers import SMALL, label, make, needs, spring, water

from alchemy.errors import EnvironmentProblemError
from alchemy.labelers.base import LabelFailureError
from alchemy.records import LabelRecord, write_json_atomic

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
def test_no_rung_of_the_ladder_changes_the_physics(tmp_path):
    """Functional, grid, basis, fit and convergence of the solver that each rung ends in."""
    from alchemy.labelers import pyscf, staging

    labeler = make("pyscf", **SMALL)
    labeler.write_input(water(), tmp_path)
    sections = staging.parse_input((tmp_path / "input.yaml").read_text(), pyscf.SCHEMA, source="input")
    sections["structure"] = {"charge": 0, "multiplicity": 1}
    molecule = pyscf.build_molecule(water(), sections)

    def physics(solver):
        names = ("xc", "conv_tol", "conv_tol_grad")
        locked = {name: getattr(solver, name) for name in names}
        return {**locked, "grid": solver.grids.level, "fit": solver.with_df.auxbasis, "in": solver.mol.basis}

    plain = pyscf.mean_field(molecule, sections)
    plain.kernel()
    for step in (pyscf._level_shifted, pyscf._second_order):
        solver, _ = step(plain, molecule, sections)
        assert physics(solver) == physics(plain)
        assert (getattr(solver, "level_shift", 0), getattr(solver, "damp", 0)) == (0, 0)
        assert solver.e_tot == pytest.approx(plain.e_tot, abs=1e-6)  # 10 × its tolerance, hartree


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
