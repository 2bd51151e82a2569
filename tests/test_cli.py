"""The command line: help, exit codes and messages, and the commands before a campaign runs."""

from __future__ import annotations

import errno
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from ase.build import bulk
from ase.io import write
from click import Group
from user_campaign import campaign_folder, edited

from alchemy import cli_campaign
from alchemy.cli import cli, main
from alchemy.cli_docs import commands, help_of, markdown
from alchemy.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = list(commands())
HEAVY = ("torch", "ase", "dask", "distributed", "matplotlib", "pydantic", "h5py", "numpy", "rich")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return campaign_folder(tmp_path)


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(p) for p, _ in COMMANDS])
def test_every_command_has_help_and_an_example(path, command):
    text = help_of(path, command)
    assert command.help, path
    if path != ("alchemy",):
        assert " ".join(path) in text.partition("Example:")[2], path
    for parameter in command.params:
        if parameter.param_type_name == "option" and not parameter.help:
            # what is plain from name and default needs no words
            assert parameter.default is not None, (path, parameter.name)


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(p) for p, _ in COMMANDS])
def test_usage_begins_with_the_words_that_are_typed(path, command):
    assert help_of(path, command).startswith(f"Usage: {' '.join(path)} [OPTIONS]")


def test_first_lines_of_help_are_whole_in_the_list():
    text = help_of(("alchemy",), cli)
    assert "..." not in text.partition("Commands:")[2]


def test_commands_are_documented_as_they_are():
    found = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert found == markdown(), "run: make docs"


def test_help_imports_nothing_heavy():
    """It has to come at once; a timing would measure the machine."""
    words = [list(path[1:]) for path, _ in COMMANDS]
    program = (
        "import sys\nfrom alchemy.cli import main\n"
        f"for words in {words!r}:\n"
        "    assert main([*words, '-h']) == 0, words\n"
        f"found = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "sys.exit(f'imported: {found}' if found else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_module_is_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "alchemy", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout[:8]) == (0, "alchemy,"), done.stderr


@pytest.mark.parametrize("kind", ["molecule", "metal"])
def test_init_check_and_explain_round_trip(kind, tmp_path, capsys):
    target = tmp_path / "new"
    assert main(["init", kind, str(target)]) == 0
    assert "next: alchemy check" in capsys.readouterr().out
    assert main(["init", kind, str(target)]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["init", kind, str(target), "--force"]) == 0
    capsys.readouterr()
    assert main(["check", str(target), "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["ok"]
    assert first["structures"][0]["frames"] == 1
    assert main(["check", str(target), "--explain"]) == 0
    (target / "full.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert main(["check", str(target / "full.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fidelities"] == first["fidelities"]


def test_the_command_that_comes_next_can_be_pasted(tmp_path, capsys):
    folder = tmp_path / "my copper"
    assert main(["init", "metal", str(folder)]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert shlex.split(line) == ["next:", "alchemy", "check", str(folder / "campaign.yaml")]


def test_check_prints_the_schema(capsys):
    assert main(["check", "--schema"]) == 0
    assert "fidelities" in json.loads(capsys.readouterr().out)["properties"]
    assert main(["check"]) == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: copper", "name: [copper", "campaign.yaml:"),
        ("seed: 3", "sed: 3", "did you mean 'seed'?"),
        ("cu.xyz, count: 4", "copper.xyz, count: 4", "no such file"),
        ("labeler: emt", "labeler: emtt", "did you mean 'emt'?"),
        ("labeler: emt", "labeler: emt, basis: 3", "no option 'basis'"),
        ("elements: [Cu]", "elements: [Ag]", "Cu is not among the campaign's elements"),
        ("cutoff: 4 A", "cutoff: 4", "a bare number"),
    ],
)
def test_check_says_what_is_wrong(folder, capsys, old, new, message):
    assert main(["check", edited(folder, old, new)]) == 2
    said = capsys.readouterr()
    assert message in said.err + said.out
    assert "Traceback" not in said.err


def test_check_finds_atoms_on_top_of_each_other(folder, capsys):
    atoms = bulk("Cu", cubic=True)
    atoms.positions[1] = atoms.positions[0] + 0.1
    write(folder / "cu.xyz", atoms, format="extxyz")
    assert main(["check", str(folder), "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert "apart" in found["problems"][0]


def test_check_says_before_the_start_that_npt_lacks_a_volume(folder, capsys):
    slab = bulk("Cu", cubic=True)
    slab.pbc = [True, True, False]
    write(folder / "slab.xyz", [bulk("Cu", cubic=True), slab], format="extxyz")
    edited(folder, "md: {T: [300 K]", "md: {T: [300 K], ensemble: npt")
    assert main(["check", str(folder)]) == 0  # a crystal is there
    edited(folder, "cu.xyz, count: 4", "slab.xyz, count: 4")
    assert main(["check", str(folder)]) == 0  # one of two is enough
    capsys.readouterr()
    edited(folder, "ensemble: npt", "ensemble: npt, structures: slab.xyz")
    assert main(["check", str(folder)]) == 2
    said = capsys.readouterr()
    assert "explore[0].md.ensemble: npt needs" in said.err + said.out
    assert "slab.xyz holds Cu4" in said.err + said.out
    slab.pbc = True
    slab.cell[2, 2] += 8.0  # a vacuum between periodic images: no volume of its own
    write(folder / "slab.xyz", slab, format="extxyz")
    assert main(["check", str(folder)]) == 2
    assert "slab.xyz holds Cu4" in capsys.readouterr().err


def test_check_warns_of_elements_that_no_structure_has(folder, capsys):
    edited(folder, "[Cu]", "[Cu, Ag]")
    assert main(["check", str(folder)]) == 0
    assert "no start or test structure holds Ag" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check", "nowhere.yaml"], "no such file"),
        (["run", "nowhere.yaml"], "no such file"),
        (["status", "nowhere.yaml"], "no such file"),
        (["report", "."], "not the directory of a campaign"),
        (["train", "--data", "nowhere.xyz"], "no such file"),
        (["data", "query", "nowhere.h5"], "no store"),
        (["export", "."], "--out FILE"),
        (["frobnicate"], "No such command"),
    ],
)
def test_what_is_missing_is_said(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 7, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), 3, "/data/x: no space left"),
        (OSError(errno.EACCES, "Permission denied", "/root/x"), 3, "/root/x: Permission denied"),
        (InputError("so and so"), 2, "error: so and so"),
        (ValueError("oops"), 1, "This is a bug in alchemy"),
    ],
)
def test_errors_have_exit_codes(monkeypatch, capsys, folder, error, code, message):
    def fail(*_args: object, **_more: object) -> None:
        raise error

    monkeypatch.setattr(cli_campaign, "find_campaign", fail)
    assert main(["check", str(folder)]) == code
    said = capsys.readouterr().err
    assert message in said
    assert ("Traceback" in said) == (code == 1)


def test_policies_are_listed_with_what_they_are(capsys):
    assert main(["policies", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {(row["kind"], row["name"]) for row in found} >= {
        ("explorer", "md"), ("selector", "calibrated"), ("labeler", "emt"),
    }  # fmt: skip
    assert all(row["what"] for row in found)


def test_the_doctor_tries_the_levels_of_a_campaign(folder, capsys):
    assert main(["doctor", str(folder), "--json"]) == 0
    found = {row["what"]: row for row in json.loads(capsys.readouterr().out)}
    assert found["emt"]["ok"]
    assert "ours" in found["tace"]["text"]


def test_groups_hold_only_commands():
    assert all(command.callback for _, command in COMMANDS if not isinstance(command, Group))
