"""`tace train`: what it writes, exact resume, and every message."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from numpy.testing import assert_allclose
from tace_cli_helpers import said, told, trained
from tace_runs import MODEL, TRAIN, folder, frames, put, run_file

from tace import runfile_watch
from tace.cli import main
from tace.io import load_model, read_archive
from tace.runfile import train_from_config


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("cli"))


def test_training_lowers_the_errors_and_writes_everything(where):
    out = where / "train"
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in lines] == [30, 60, 90, 120]
    for entry in lines:
        assert {
            "loss",
            "force_rmse_eV_per_A",
            "force_mae_eV_per_A",
            "energy_rmse_eV_per_atom",
            "dipole_rmse",
            "learning_rate",
            "cpu_s",
            "wall_s",
        } <= entry.keys()
    assert lines[-1]["force_rmse_eV_per_A"] < 0.8 * lines[0]["force_rmse_eV_per_A"]
    assert all(a["cpu_s"] < b["cpu_s"] for a, b in pairwise(lines))
    report = json.loads((out / "report.json").read_text())
    rows = {(r["set"], r["quantity"]): r for r in report["errors"]}
    assert set(rows) == {(s, q) for s in ("train", "valid", "test") for q in ("energy", "forces", "dipole")}
    # the same weights; the shift, which is corrected in the end, acts on forces of atoms with few neighbours
    assert_allclose(rows["valid", "forces"]["rmse"], lines[-1]["force_rmse_eV_per_A"], rtol=0.02)
    assert report["training"]["steps"] == 120
    assert report["divergence"] is None
    for name in ("learning_curve.png", "parity.png"):
        image = imread(out / name)
        assert image.shape[0] > 300
        assert float(image[..., :3].std()) > 0.02  # something is drawn on it
    for name in ("best.pt", "last.pt", "model.pt"):
        assert load_model(out / name).config.heads[0].name == "dipole"


def test_a_run_that_was_ended_continues_to_the_same_weights_bit_by_bit(where, capsys, monkeypatch):
    """By CPU budget in the middle of two validations, then by Ctrl-C, against one that was never ended."""
    path = run_file(where / "resume.yaml")
    assert main(["train", str(path), "--out", str(where / "whole")]) == 0
    out = where / "parts"
    assert main(["train", str(path), "--out", str(out), "--set", "train.max_cpu_minutes=1e-9"]) == 0
    assert read_archive(out / "checkpoint.pt")["step"] == 1
    report = json.loads((out / "report.json").read_text())
    assert report["training"]["stopped"] == "cpu budget"
    advance = runfile_watch.Bar.advance
    monkeypatch.setattr(runfile_watch.Bar, "advance", lambda bar, step: interrupt(bar, step, advance))
    assert main(["train", str(path), "--out", str(out)]) == 7
    monkeypatch.undo()
    assert read_archive(out / "checkpoint.pt")["step"] == 13
    text = said(capsys, "train", path, "--out", out)
    assert "continuing at step 13 of 24" in text
    whole, parts = (load_model(where / name / "model.pt").state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    first, second = ((where / n / "metrics.jsonl").read_text().splitlines() for n in ("whole", "parts"))
    for a, b in zip(map(json.loads, first), map(json.loads, second), strict=True):
        assert {k: v for k, v in a.items() if k[-2:] != "_s"} == {
            k: v for k, v in b.items() if k[-2:] != "_s"
        }


def interrupt(bar, step, advance):
    import os
    import signal

    if step == 13:
        os.kill(os.getpid(), signal.SIGINT)
    advance(bar, step)


def test_another_configuration_or_other_data_are_refused_and_restart_starts_over(where, capsys):
    path, out = run_file(where / "refused.yaml"), where / "refused"
    short = ("--set", "train.steps=2", "--out", out)
    assert "written:" in said(capsys, "train", path, *short)
    assert "this run is finished" in said(capsys, "train", path, *short)
    before = (out / "model.pt").read_bytes()
    message = told(capsys, "train", path, "--set", "train.steps=3", "--out", out)
    assert (
        "(train.steps was 2, now 3); --restart starts over and deletes it, --out writes elsewhere" in message
    )
    put(where / "other.extxyz", frames(16, seed=5))
    message = told(capsys, "train", path, *short, "--set", "data.train=other.extxyz")
    assert 'data.train was "train.extxyz", now "other.extxyz"' in message
    shutil.copy(where / "other.extxyz", where / "refused_data.extxyz")
    assert (out / "model.pt").read_bytes() == before
    assert "written:" in said(capsys, "train", path, "--set", "train.steps=3", "--out", out, "--restart")
    assert json.loads((out / "report.json").read_text())["training"]["steps"] == 3


def test_a_file_whose_labels_changed_is_another_run(tmp_path, capsys):
    folder(tmp_path)
    path = run_file(tmp_path / "a.yaml", train={"steps": 1})
    assert main(["train", str(path)]) == 0
    made = frames(16)
    made[3].info["REF_energy"] += 1e-6
    put(tmp_path / "train.extxyz", made)
    assert "the training data changed" in told(capsys, "train", path)


def test_threads_device_and_budget_do_not_make_another_run(tmp_path, capsys):
    folder(tmp_path)
    path = run_file(tmp_path / "a.yaml", train={"steps": 1})
    assert main(["train", str(path)]) == 0
    changes = ["--set", "threads=2", "--set", "device=cpu", "--set", "train.max_cpu_minutes=5"]
    assert "this run is finished" in said(capsys, "train", path, *changes)


def test_an_early_stop_keeps_the_best_and_is_finished(tmp_path):
    folder(tmp_path)
    config = {
        "data": {"train": "train.extxyz", "valid": 0.2},
        "model": MODEL,
        "train": {**TRAIN, "steps": 400, "validate_every": 2, "patience": 1, "learning_rate": 0.3},
    }
    result = train_from_config(config, base=tmp_path, out=tmp_path / "out")
    assert result.stopped == "early"
    assert result.finished
    assert result.report["training"]["steps"] < 400
    best, final = (load_model(tmp_path / "out" / n).state_dict() for n in ("best.pt", "model.pt"))
    assert all(torch.equal(best[name], final[name]) for name in best)


def test_a_run_without_validation_logs_its_loss(tmp_path):
    folder(tmp_path)
    config = {"data": {"train": "train.extxyz", "valid": 0}, "model": MODEL, "train": TRAIN}
    short = {**config, "train": {**TRAIN, "max_cpu_minutes": 1e-9}}
    assert train_from_config(short, base=tmp_path, out=tmp_path / "out").stopped == "cpu budget"
    result = train_from_config(config, base=tmp_path, out=tmp_path / "out")
    lines = [json.loads(x) for x in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == [8, 16, 24]
    best, final = (load_model(tmp_path / "out" / n).state_dict() for n in ("best.pt", "model.pt"))
    assert all(torch.equal(best[name], final[name]) for name in best)  # nothing says which was better
    assert {row["set"] for row in result.report["errors"]} == {"train"}


def test_planted_outliers_are_named_when_training_turns(tmp_path, capsys):
    """Two frames with absurd forces in the validation set: the RMSE is theirs, and they are named."""
    made = frames(16)
    for n in (3, 11):
        made[n].arrays["REF_forces"][0] = [150.0, -90.0, 0.0]
    put(tmp_path / "valid.extxyz", made)
    put(tmp_path / "train.extxyz", frames(12, seed=4))
    path = run_file(
        tmp_path / "a.yaml",
        data={"valid": "valid.extxyz", "test": "train.extxyz"},
        train={"steps": 40, "validate_every": 5},
        checks={"labels": "off"},
    )
    text = said(capsys, "train", path)
    found = json.loads((tmp_path / "a/report.json").read_text())["divergence"]
    assert found["kind"] == "tail"
    named = {frame["name"].rpartition(" ")[2] for frame in found["frames"]}
    assert named <= {"3", "11"}
    assert found["frames"][0]["max_force_eV_per_A"] == pytest.approx(np.hypot(150, 90), rel=1e-6)
    assert "warning: heavy-tailed errors" in text  # in the report at the end
    assert "warning: step 20: heavy-tailed errors" in text  # and while it runs, as soon as there is a history
    assert "model.les: true" in text


def test_a_training_that_ends_in_nan_says_what_helps(tmp_path, capsys):
    folder(tmp_path)
    path = run_file(tmp_path / "a.yaml", train={"learning_rate": 1e25})
    message = told(capsys, "train", path)
    assert "training diverged at step" in message
    assert "model.les: true" in message


def test_label_errors_stop_a_run_unless_told_otherwise(tmp_path, capsys):
    made = frames(16)
    made[2].positions[1] = made[2].positions[0] + 1e-3
    folder(tmp_path)
    put(tmp_path / "train.extxyz", made)
    path = run_file(tmp_path / "a.yaml", train={"steps": 1})
    message = told(capsys, "train", path)
    assert "the labels have errors" in message
    assert "train.extxyz, frame 2" in message
    assert not (tmp_path / "a").exists()
    assert "atoms closer than" in said(capsys, "train", path, "--set", "checks.labels=warn")
    assert "atoms closer than" not in said(capsys, "train", path, "--set", "checks.labels=off", "--restart")


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"data": {"train": "none.extxyz"}}, "none.extxyz: no such file"),
        ({"data": {"keys": {"energy": "REF_enrgy"}}}, "did you mean 'REF_energy'?"),
        (
            {"data": {"keys": {"energy": {"key": "REF_energy", "unit": "Debye"}}}},
            "is a dipole moment but an energy is needed",
        ),
        (
            {"data": {"labels": ["dipol"]}},
            "data.labels: there is no quantity 'dipol'; did you mean 'dipole'?",
        ),
        ({"data": {"labels": ["polarizability"]}}, "no training frame has 'polarizability'; give its key"),
        ({"data": {"labels": ["dipole"]}}, "the model does not predict 'dipole'; add 'electric_field'"),
        ({"data": {"fidelities": ["dft"]}}, "no level 'dft' in the data"),
        ({"data": {"e0_eV": {"default": {"Q": 1.0}}}}, "'Q' is not an element"),
        ({"data": {"e0_eV": {"dft": {"C": 1.0}}}}, "data.e0_eV: no level 'dft' in the data"),
        ({"data": {"e0_eV": {"default": {"C": 1.0}}}}, "no isolated-atom energy for O"),
        ({"data": {"e0_eV": "test.extxyz"}}, "not every element has a single atom with an energy"),
        ({"data": {"test": "hydrogen.extxyz"}}, "the model does not know H; it was built for C, O"),
        ({"model": {"inputs": ["electronic_temperature"]}}, "set atoms.info['electronic_temperature']"),
        ({"model": {"inputs": ["spin_multiplicity"]}}, "which this frame does not give"),
        ({"device": "cuda:77"}, "device cuda:77 cannot be used"),
        ({"out": "train.extxyz"}, "is a file, not a folder"),
        ({"out": "."}, "exists and is not the folder of a run; choose another --out"),
    ],
)
def test_what_stops_a_run_is_told(where, capsys, blocks, message):
    put(where / "hydrogen.extxyz", frames(4, symbols="COH", seed=4))
    path = run_file(where / "wrong.yaml", **{"train": {"steps": 1}, **blocks})
    assert message in told(capsys, "train", path)
    assert not (where / "wrong").exists()
