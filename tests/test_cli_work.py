"""Commands that work: campaigns that ran, their export, training and labels."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from user_campaign import campaign_folder, edited

from alchemy.cli import main
from alchemy.cli_paths import find_campaign, find_home, find_store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return campaign_folder(tmp_path)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a campaign that has run to its end."""
    folder = campaign_folder(tmp_path_factory.mktemp("done"))
    assert main(["run", str(folder)]) in (0, 5)
    return folder


def frames(number: int, *, stress: bool = True) -> list[Atoms]:
    """Rattled copper with EMT's labels."""
    found = []
    for seed in range(number):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=seed)
        atoms.calc = EMT()
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        if stress:
            results["stress"] = atoms.get_stress()
        atoms.calc = SinglePointCalculator(atoms, **results)
        found.append(atoms)
    return found


def test_a_campaign_is_found_by_file_folder_and_directory(done):
    home = done / "copper"
    for path in (done, done / "campaign.yaml", home):
        assert find_home(path) == home
        assert find_store(path) == home / "store.h5"
        assert find_campaign(path).campaign.name == "copper"
    assert find_campaign(home).campaign.base_dir == done.resolve()
    assert find_campaign(done, only=["emt"]).home.name == "copper-only-emt"
    for path in (home / "store.h5", home / "store.h5.d"):
        assert find_store(path) == home / "store.h5"


def test_a_finished_campaign_can_be_read_back(done, tmp_path, capsys):
    assert main(["status", str(done), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["name"] == "copper"
    assert main(["status", str(done / "copper")]) == 0
    assert main(["report", str(done), "--beside", str(done / "copper"), "--output",
                 str(tmp_path / "r.html")]) == 0  # fmt: skip
    assert (tmp_path / "r.html").stat().st_size > 1000
    capsys.readouterr()
    assert main(["data", "query", str(done), "n_atoms > 1 and fidelity == 'emt'", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["fidelity"] for row in rows} == {"emt"}
    assert main(["data", "query", str(done), "max_forc > 1"]) == 2
    assert "did you mean 'max_force'?" in capsys.readouterr().err
    assert main(["data", "query", str(done), "--fields"]) == 0
    assert "max_force" in capsys.readouterr().out
    assert main(["data", "query", str(done), "fidelity == 'emt'", "--count"]) == 0
    assert int(capsys.readouterr().out) >= len(rows)


def test_a_campaign_can_be_moved(done, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(done, moved)
    facts = json.loads((moved / "copper" / "campaign.json").read_text(encoding="utf-8"))
    facts["base_dir"] = str(tmp_path / "gone")
    (moved / "copper" / "campaign.json").write_text(json.dumps(facts), encoding="utf-8")
    assert find_campaign(moved / "copper").campaign.base_dir == moved.resolve()


def test_a_file_is_no_folder(done, tmp_path, capsys):
    (tmp_path / "file").touch()
    below = str(tmp_path / "file" / "x")
    for words in (
        ["init", "metal", below],
        ["train", "--data", str(done), "--out", below],
        ["export", str(done), "--models", below],
        ["export", str(done), "--out", below],
    ):
        assert main(words) == 2, words
        assert "Traceback" not in capsys.readouterr().err


def test_a_directory_continues_from_its_own_copy(done, capsys):
    assert main(["run", str(done / "copper")]) in (0, 5)
    assert "report:" in capsys.readouterr().out
    assert main(["run", str(done / "copper"), "--dir", "elsewhere"]) == 2


def test_only_makes_a_campaign_of_its_own(folder, capsys):
    both = "emt: {labeler: emt}\n  other: {labeler: ase, calculator: ase.calculators.emt.EMT}"
    edited(folder, "emt: {labeler: emt}", both)
    edited(folder, "label: {emt: all}", "label: {emt: all, other: 3}")
    edited(folder, "label: [emt]", "label: [other]")
    assert main(["run", str(folder), "--only", "othr"]) == 2
    assert "emt, other" in capsys.readouterr().err
    assert main(["run", str(folder), "--only", "other", "--until", "0"]) == 0
    home = folder / "copper-only-other"
    assert main(["run", str(home), "--until", "0"]) == 0, "the directory knows its fidelities"
    assert not (folder / "copper").exists()
    capsys.readouterr()
    assert main(["data", "query", str(home), "status == 'ok'", "--json"]) == 0
    assert {row["fidelity"] for row in json.loads(capsys.readouterr().out)} == {"other"}


def test_export_writes_data_and_models(done, tmp_path, capsys):
    out = tmp_path / "all.extxyz"
    assert main(["export", str(done), "n_atoms > 1", "--out", str(out)]) == 0
    exported = read(out, ":")
    assert {a.info["fidelity"] for a in exported} == {"emt"}
    assert main(["export", str(done), "--out", str(out)]) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["export", str(done), "--out", str(out), "--fidelity", "pbe", "--force"]) == 2
    models = tmp_path / "model"
    assert main(["export", str(done), "--models", str(models), "--json"]) == 0
    card = json.loads((models / "model-card.json").read_text(encoding="utf-8"))
    assert card["elements"] == ["Cu"]
    assert sorted(card["files"]) == ["member-0.pt", "member-1.pt"]
    from tace.calculator import TaceCalculator

    atoms = exported[0]
    atoms.calc = TaceCalculator(models)
    assert np.isfinite(atoms.get_forces()).all()


def test_train_reads_labels_as_they_are(tmp_path, capsys):
    """A frame without forces, one without anything, and single atoms for the reference energy."""
    data = frames(6, stress=False)
    data[1].calc.results.pop("forces")
    data[2].calc = None
    atom = Atoms("Cu")
    atom.calc = SinglePointCalculator(atom, energy=3.5, forces=np.zeros((1, 3)))
    data[5].info["split"] = "test"
    write(tmp_path / "data.extxyz", [*data, atom], format="extxyz")
    out = tmp_path / "model.pt"
    words = ["train", "--data", str(tmp_path / "data.extxyz"), "--preset", "nano"]
    words += ["--steps", "3", "--cutoff", "3.5", "--out", str(out)]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["labels"] == [
        {"fidelity": "default", "frames": 4, "energies": 4, "forces": 3, "stresses": 0}
    ]
    assert {row["set"]: row["frames"] for row in found["errors"]} == {
        "train": 3, "validation": 1, "test": 1,
    }  # fmt: skip
    assert out.exists()
    assert not list(tmp_path.glob(".*checkpoint"))
    assert main(words) == 2
    assert "--force overwrites" in capsys.readouterr().err
    assert main([*words, "--force"]) == 0
    said = capsys.readouterr().out
    assert "left out: 1 frame with neither label" in said
    assert "from single atoms in the data" in said


def test_train_makes_a_committee_from_other_keys(tmp_path, capsys):
    data = frames(4)
    for atoms in data:
        results, atoms.calc = atoms.calc.results, None
        atoms.info.update(dft_energy=results["energy"], level="pbe")
        atoms.arrays["dft_forces"] = results["forces"]
    write(tmp_path / "data.extxyz", data, format="extxyz")
    words = ["train", "--data", str(tmp_path / "data.extxyz"), "--preset", "nano", "--steps", "2"]
    words += ["--cutoff", "3.5", "--members", "2", "--out", str(tmp_path / "models")]
    assert main(words) == 2
    assert "--energy-key" in capsys.readouterr().err
    keys = ["--energy-key", "dft_energy", "--fidelity-key", "level"]
    assert main([*words, *keys, "--forces-key", "dft_force"]) == 2
    assert "did you mean 'dft_forces'?" in capsys.readouterr().err
    assert main([*words, *keys, "--forces-key", "dft_forces", "--json"]) == 0
    assert {row["fidelity"] for row in json.loads(capsys.readouterr().out)["errors"]} == {"pbe"}
    from tace.calculator import TaceCalculator

    assert len(TaceCalculator(tmp_path / "models").committee.members) == 2


def test_train_takes_a_campaign(done, tmp_path, capsys):
    out = tmp_path / "one.pt"
    words = ["train", "--data", str(done), "--preset", "nano", "--steps", "2", "--out", str(out)]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["set"] for row in found["errors"]} >= {"train", "test"}
    assert main([*words, "--fidelity", "emtt", "--force"]) == 2
    assert "did you mean 'emt'?" in capsys.readouterr().err


def training_on(folder: Path, data: list[Atoms]) -> list[str]:
    """The words of a short training on labelled frames."""
    write(folder / "data.extxyz", data, format="extxyz")
    words = ["train", "--data", str(folder / "data.extxyz"), "--preset", "nano", "--steps", "2"]
    return [*words, "--cutoff", "3.5", "--out", str(folder / "model.pt")]


def with_wrong_sign(number: int) -> list[Atoms]:
    """As from a code that prints gradients."""
    data = frames(number)
    for atoms in data:
        atoms.calc.results["forces"] = -atoms.calc.results["forces"]
    return data


WRONG_SIGN = "most likely the opposite sign of the forces"


def test_train_refuses_labels_with_errors_and_names_the_frames(tmp_path, capsys):
    data = frames(6)
    data[2].positions[1] = data[2].positions[0] + 1e-3
    words = training_on(tmp_path, data)
    for more in ([], ["--json"]):
        assert main([*words, *more]) == 2
        said = capsys.readouterr()
        assert "the labels have errors:\n  atoms closer than 0.1 Å in 1 frame: " in said.err
        assert "data.extxyz, frame 2\ncorrect them, or go on in spite of them with --checks warn" in said.err
        assert "Traceback" not in said.err
        assert ("error: atoms closer than" in said.out) == (not more), "only JSON is printed with --json"
        assert not (tmp_path / "model.pt").exists()


def test_train_refuses_an_error_of_all_frames_together(tmp_path, capsys):
    assert main(training_on(tmp_path, with_wrong_sign(30))) == 2
    said = capsys.readouterr()
    assert f"{WRONG_SIGN}\ncorrect them" in said.err, "there are no frames to be named"
    assert f"{WRONG_SIGN}\n" in said.out
    assert not (tmp_path / "model.pt").exists()


def test_train_goes_on_in_spite_of_errors_when_told_to(tmp_path, capsys):
    words = training_on(tmp_path, with_wrong_sign(30))
    assert main([*words, "--checks", "warn"]) == 0
    said = capsys.readouterr()
    assert "error: the energy changes by" in said.out
    assert WRONG_SIGN in said.out
    assert (tmp_path / "model.pt").exists()
    assert main([*words, "--checks", "warn", "--json", "--force"]) == 0
    found = json.loads(capsys.readouterr().out)["checks"]
    assert [(f["kind"], f["severity"]) for f in found] == [("energy_force", "error")]


def test_train_without_checks_says_nothing_of_the_labels(tmp_path, capsys, monkeypatch):
    words = [*training_on(tmp_path, with_wrong_sign(30)), "--checks", "off"]
    monkeypatch.setattr("tace.checks.check_labels", lambda _: pytest.fail("checked"))
    assert main(words) == 0
    said = capsys.readouterr()
    assert "the energy changes by" not in said.out + said.err
    assert "nothing wrong" not in said.out
    assert main([*words, "--json", "--force"]) == 0
    assert json.loads(capsys.readouterr().out)["checks"] is None


def test_train_says_that_nothing_is_wrong_with_good_labels(tmp_path, capsys):
    words = training_on(tmp_path, frames(6))
    assert main(words) == 0
    assert "labels: nothing wrong was found\n" in capsys.readouterr().out
    assert main([*words, "--json", "--force"]) == 0
    assert json.loads(capsys.readouterr().out)["checks"] == []


def test_train_checks_all_labels_of_a_campaign(done, tmp_path, capsys, monkeypatch):
    """Those to train on and those to test with."""
    from tace.checks import Finding

    def spoiled(labels):
        return [Finding("shape", "error", f"{len(labels)} are wrong", tuple(f.name for f in labels))]

    words = ["train", "--data", str(done), "--preset", "nano", "--steps", "2"]
    assert main([*words, "--out", str(tmp_path / "a.pt"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(f["severity"] != "error" for f in found["checks"])
    total = sum(row["frames"] for row in found["errors"])
    monkeypatch.setattr("tace.checks.check_labels", spoiled)
    assert main([*words, "--out", str(tmp_path / "b.pt")]) == 2
    assert f"{total} are wrong: " in capsys.readouterr().err
    assert {row["set"] for row in found["errors"]} == {"train", "validation", "test"}


def test_labels_are_computed_once_and_failures_have_reasons(folder, monkeypatch, capsys):
    good = frames(2)
    wreck = good[0].copy()
    wreck.positions[1] = wreck.positions[0] + 0.1
    write(folder / "in.xyz", [*good, wreck, good[0]], format="extxyz")
    out = folder / "labels.extxyz"
    words = ["label", str(folder / "in.xyz"), "--campaign", str(folder), "--with", "emt"]
    words += ["--out", str(out)]
    assert main([*words, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert [row["status"] for row in first["labels"]] == ["ok", "ok", "failed", "ok"]
    assert first["failed"] == {"overlapping-atoms": 1}
    written = read(out, ":")
    assert len(written) == 3
    for found, atoms in zip(written, [*good, good[0]], strict=True):
        # extended XYZ keeps eight decimals of the positions, and EMT is stiff
        np.testing.assert_allclose(found.get_forces(), atoms.get_forces(), atol=1e-6)
    monkeypatch.setattr(
        "alchemy.labelers.ase_calculator.compute", lambda *_: pytest.fail("computed again")
    )
    assert main(words) == 0
    assert "3 labels" in capsys.readouterr().out
    assert main([*words, "--with", "emtt"]) == 2
    assert main([*words[:-1], str(folder / "in.xyz")]) == 2


def test_nothing_labelled_is_not_a_success(folder, capsys):
    wreck = bulk("Cu", cubic=True)
    wreck.positions[1] = wreck.positions[0] + 0.1
    write(folder / "in.xyz", wreck, format="extxyz")
    words = ["label", str(folder / "in.xyz"), "--campaign", str(folder), "--with", "emt"]
    assert main([*words, "--out", str(folder / "out.extxyz")]) == 5
    assert not (folder / "out.extxyz").exists()
    assert "overlapping-atoms" in capsys.readouterr().out


def test_a_reader_that_has_enough_is_no_bug(done):
    words = [sys.executable, "-m", "alchemy", "data", "query", str(done), "--json"]
    program = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert program.stdout is not None
    assert program.stderr is not None
    program.stdout.close()
    assert program.wait(60) == 128 + signal.SIGPIPE
    assert b"Traceback" not in program.stderr.read()
    program.stderr.close()
