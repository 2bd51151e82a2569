"""Labels by a script of the user: what it finds, what it must leave, what reaches the shell."""

import json
import re
import subprocess
from importlib.resources import files

import numpy as np
import pytest
from ase.build import bulk
from ase.io import read
from label_helpers import label, make, needs, water
from program_helpers import needs_program

from alchemy.errors import EnvironmentProblemError, InputError
from alchemy.labelers.base import fingerprint


@pytest.fixture
def shell(tmp_path):
    def script(text, **options):
        path = tmp_path / "script.j2"
        path.write_text(f"#!/bin/bash\nset -eu\n{text}\n")
        return make("shell", **{"template": str(path), **options})

    return script


def answer(**document):
    return f"cat > result.json <<'END'\n{json.dumps(document)}\nEND"


GOOD = {"converged": True, "energy_eV": -1.5, "forces_eV_per_A": [[0.1, 0, 0], [-0.1, 0, 0], [0, 1e-9, 0]]}


def test_a_script_labels_and_the_record_has_its_numbers(shell, tmp_path):
    labeler = shell(answer(**GOOD), program="mycode")
    record = label(water(), labeler, tmp_path)
    assert (record.status, record.energy_eV, record.code) == ("ok", -1.5, "mycode")
    assert np.array_equal(record.forces_eV_per_A, GOOD["forces_eV_per_A"])


def test_the_script_finds_the_structure_in_full(shell, tmp_path):
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    atoms.info["charge"] = 1
    assert label(atoms, shell("true"), tmp_path).reason == "engine-error"
    (directory,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    found = read(directory / "structure.extxyz")
    assert np.abs(found.positions - atoms.positions).max() < 1e-11  # twelve decimals
    assert np.abs(np.asarray(found.cell) - np.asarray(atoms.cell)).max() < 1e-11
    assert found.pbc.all()
    assert json.loads((directory / "structure.json").read_text())["charge"] == 1
    assert list(read(directory / "structure.xyz").symbols) == ["Cu"] * 4


@pytest.mark.parametrize(
    ("text", "reason", "message"),
    [
        ("echo no room >&2; exit 4", "engine-error", "no result.json to read.*no room"),
        ("echo '[1' > result.json", "engine-error", "no result.json to read"),
        (answer(**GOOD) + "\nexit 3", "engine-error", "exit code 3"),
        (answer(converged=False, message="60 steps"), "scf-not-converged", "60 steps"),
        (answer(energy_eV=1.0), "scf-not-converged", "the script says so"),
        (answer(failed="too-large", message="9 atoms"), "too-large", "9 atoms"),
        (answer(failed="It was\ntoo large"), "engine-error", "It was"),
        (answer(converged=True, energy_eV=1.0), "truncated-output", "has no forces_eV_per_A"),
        (answer(**{**GOOD, "forces_eV_per_A": [[0, 0, 0.1]]}), "wrong-shape", "1 forces for 3 atoms"),
        (answer(**{**GOOD, "energy_eV": "NaN"}), "not-finite", "energy"),
        (answer(**GOOD, positions_A=[[0, 0, 0]] * 3), "geometry-mismatch", "from its place"),
        (answer(**GOOD, symbols=["H", "O", "H"], positions_A=[[0, 0, 0]] * 3), "geometry-mismatch", "order"),
    ],
)
def test_what_is_no_label_has_a_reason(text, reason, message, shell, tmp_path):
    record = label(water(), shell(text), tmp_path)
    assert (record.status, record.reason) == ("failed", reason)
    assert re.search(message, record.message, re.DOTALL)


def test_a_missing_program_in_the_script_is_not_the_structures_fault(shell, tmp_path):
    with pytest.raises(EnvironmentProblemError, match=r"no-such-code.*not found"):
        label(water(), shell("no-such-code structure.xyz"), tmp_path)


def test_rungs_change_values_of_the_path_only(shell, tmp_path):
    text = "if [ {{ path.steps }} -gt 50 ]; then\n" + answer(**GOOD) + "\nelse\n"
    text += answer(converged=False, message="steps") + "\nfi\necho {{ path.other }} {{ physics.cutoff }}"
    options = {"physics_values": {"cutoff": 300}, "path_values": {"steps": 20, "other": "a/b-c.d"}}
    longer = shell(text, **options, ladder={"longer": {"path_values": {"steps": 90}}})
    record = label(water(), longer, tmp_path)
    assert record.status == "ok"
    (directory,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert (directory / "label.out").read_text() == "a/b-c.d 300\n"  # what a rung does not name stays
    assert fingerprint(longer) == fingerprint(shell(text, **options))
    assert fingerprint(longer) != fingerprint(shell(text, **{**options, "physics_values": {"cutoff": 400}}))
    with pytest.raises(InputError, match="'physics_values' is physics"):
        shell(text, **options, ladder={"softer": {"physics_values": {"cutoff": 200}}})


@pytest.mark.parametrize("value", ["$(x)", "a; x", "a b", "`x`", "it's", 'a"b', "a\nb", "*", "a\\b", "&"])
def test_nothing_that_a_shell_could_read_otherwise_gets_there(value, shell):
    text = 'echo {{ path.x }} "{{ path.x }}"'
    with pytest.raises(InputError, match=r"path_values: x is .* may hold letters"):
        shell(text, path_values={"x": value})
    with pytest.raises(InputError, match="physics_values: x is"):
        shell(text, physics_values={"x": value})
    with pytest.raises(InputError, match="path_values: x is"):
        shell(text, path_values={"x": "a"}, ladder={"rung": {"path_values": {"x": value}}})


def test_what_is_let_through_reaches_the_shell_as_it_is():
    plain = "aZ09_./+=:,@%^-"
    for quoted in (plain, f'"{plain}"', f"'{plain}'"):
        said = subprocess.run(["bash", "-c", f"echo {quoted}"], capture_output=True, text=True, check=True)
        assert said.stdout == f"{plain}\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": None}, "name your script by `template`"),
        ({"result_format": "vasp-out"}, "must_contain must say"),
        ({"result_file": "../result.json"}, "must be a file in the label's directory"),
        ({"must_contain": {"/etc/passwd": "root"}}, "must be a file in the label's directory"),
        ({"path_values": {"a-b": 1}}, "'a-b' is not a name"),
    ],
)
def test_wrong_options_are_named(options, message, shell):
    with pytest.raises(InputError, match=message):
        shell("true", **options)


def test_files_of_codes_are_read_by_ase_and_compared_with_the_structure(shell, tmp_path):
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    from ase.calculators.emt import EMT

    done = atoms.copy()
    done.calc = EMT()
    done.get_forces()
    done.get_stress()
    done.write(tmp_path / "done.xyz", format="extxyz")
    options = {
        "result_file": "out.xyz", "result_format": "extxyz", "must_contain": {"log": "SCF converged"},
    }  # fmt: skip
    text = f"cp {tmp_path / 'done.xyz'} out.xyz; echo 'SCF converged' > log"
    record = label(atoms, shell(text, **options), tmp_path / "good")
    assert record.status == "ok"
    assert record.energy_eV == pytest.approx(done.get_potential_energy(), abs=1e-6)  # printed digits
    assert record.stress_eV_per_A3 == pytest.approx(done.get_stress(), abs=1e-7)
    atoms.positions[2, 1] += 0.01
    other = label(atoms, shell(text, **options), tmp_path / "other")
    assert (other.status, other.reason) == ("failed", "geometry-mismatch")
    loose = label(atoms, shell(text.replace("SCF converged", "stopped"), **options), tmp_path / "bad")
    assert (loose.status, loose.reason) == ("failed", "scf-not-converged")


@pytest.mark.codes
@needs_program("xtb")
@needs("tblite")
def test_the_template_labels_with_xtb_as_tblite_does(tmp_path):
    labeler = make(
        "shell",
        template=str(files("alchemy_templates").joinpath("labelers/shell.sh.j2")),
        program="xtb-gfn2",
        physics_values={"gfn": 2, "accuracy": 0.01},
        path_values={"iterations": 250},
        result_file="gradient",
        result_format="turbomole-gradient",
        must_contain={"label.out.err": "normal termination of xtb"},
    )
    record = label(water(), labeler, tmp_path)
    assert (record.status, record.message) == ("ok", "")
    same = label(water(), make("tblite", accuracy=0.01), tmp_path)
    # Hartree and Bohr of two releases of CODATA: 1e-9 of 138 eV; forces are printed with 1e-7
    assert record.energy_eV == pytest.approx(same.energy_eV, abs=1e-6)
    assert record.forces_eV_per_A == pytest.approx(same.forces_eV_per_A, abs=1e-5)
