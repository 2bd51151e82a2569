"""The `tace` command: training, exact resume, evaluation, prediction, the card, and every message."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import read
from matplotlib.image import imread
from numpy.testing import assert_allclose
from tace_runs import MODEL, TRAIN, folder, frames, put, run_file

from tace import runfile_watch
from tace.calculator import TaceCalculator
from tace.cli import main
from tace.io import load_model, read_archive, save_model, write_archive
from tace.properties import predict
from tace.runfile import run_from_config, train_from_config
from tace.runfile_data import capped, read_run_data, split
from tace.runfile_train import execute


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    """A folder with data, a run file that asks for a dipole too, and the finished run."""
    path = folder(tmp_path_factory.mktemp("cli"))
    model = {"heads": ["dipole"]}
    train = {"steps": 120, "validate_every": 30, "label_weights": {"dipole": 1.0}}
    run_file(path / "train.yaml", model=model, train=train)
    assert main(["train", str(path / "train.yaml")]) == 0
    return path


def told(capsys, *arguments, code: int = 2) -> str:
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def said(capsys, *arguments) -> str:
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


# ------------------------------------------------------------------ train
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


def test_energies_of_atoms_come_from_the_file_the_data_or_a_fit(tmp_path):
    folder(tmp_path)
    atoms = [Atoms("C", info={"REF_energy": -2.5}), Atoms("O", info={"REF_energy": -3.5})]
    put(tmp_path / "atoms.extxyz", atoms)
    base = {"train": "train.extxyz", "valid": 0}

    def e0(**data):
        run = run_from_config({"data": {**base, **data}}, base=tmp_path)
        return read_run_data(run, (), inputs=()).e0_eV

    assert e0() == {}
    assert e0(e0_eV="atoms.extxyz") == {"default": {6: -2.5, 8: -3.5}}
    assert e0(e0_eV={"default": "atoms.extxyz"}) == {"default": {6: -2.5, 8: -3.5}}
    assert e0(train=["train.extxyz", "atoms.extxyz"]) == {"default": {6: -2.5, 8: -3.5}}
    assert e0(train=["train.extxyz", "atoms.extxyz"], e0_eV="fit") == {}
    assert e0(e0_eV={"C": -1.0, "O": -2.0}) == {"default": {6: -1.0, 8: -2.0}}


def test_labels_of_one_structure_are_split_together_and_the_seed_decides(tmp_path):
    folder(tmp_path)
    run = run_from_config({"data": {"train": ["train.extxyz", "train.extxyz"], "valid": 0.25}}, base=tmp_path)
    data = read_run_data(run, (), inputs=())
    assert len(data.valid) == 8
    places = {f.atoms.positions.tobytes() for f in data.valid}
    assert len(places) == 4
    assert not places & {f.atoms.positions.tobytes() for f in data.train}
    again = split([*data.train, *data.valid], 0.25, seed=1)[1]
    assert {f.atoms.positions.tobytes() for f in again} != places


def test_frames_with_large_forces_weigh_less_and_stay(tmp_path):
    folder(tmp_path)
    run = run_from_config({"data": {"train": "train.extxyz", "valid": 0}}, base=tmp_path)
    data = read_run_data(run, (), inputs=()).train
    largest = [float(np.linalg.norm(f.forces_eV_per_A, axis=1).max()) for f in data]
    cap = float(np.median(largest))
    found = capped(data, cap)
    assert_allclose([f.weight for f in found], [min(1.0, cap / x) ** 2 for x in largest])
    assert capped(data, None) == data


def test_units_and_conditions_of_a_file_reach_the_model(tmp_path, capsys):
    made = frames(6)
    for n, atoms in enumerate(made):
        atoms.info["REF_energy"] /= 27.211386245981
        atoms.info["q"] = float(n % 3 - 1) * 2
    put(tmp_path / "a.extxyz", made)
    config = {
        "data": {
            "train": [{"file": "a.extxyz", "units": {"energy": "Ha"}, "keys": {"total_charge": "q"}}],
            "valid": 0,
        },
        "model": {**MODEL, "inputs": ["total_charge"]},
        "train": {**TRAIN, "steps": 1},
    }
    model = train_from_config(config, base=tmp_path, out=tmp_path / "out").model
    assert model is not None
    assert model.config.inputs[0].scale == 2.0  # the largest charge
    assert -5.0 < float(model.e0_eV.min()) < float(model.e0_eV.max()) < -0.5
    out, arguments = tmp_path / "p.extxyz", (tmp_path / "out/model.pt", tmp_path / "a.extxyz")
    said(capsys, "predict", *arguments, "-o", out, "--key", "total_charge=q")
    for atoms in made:
        atoms.info["total_charge"] = atoms.info["q"]
    found = [atoms.info["TACE_energy"] for atoms in read(out, ":")]
    want = [float(v["energy"]) for v in predict([model], made, ["default"] * 6)]
    assert_allclose(found, want, rtol=1e-6)  # a float32 model
    neutral = [float(v["energy"]) for v in predict([model], frames(6), ["default"] * 6)]
    assert np.abs(np.subtract(found, neutral)).max() > 1e-4
    message = told(capsys, "predict", *arguments, "-o", tmp_path / "x.extxyz", "--key", "total_charge=qq")
    assert "no frame has total_charge under 'qq'; did you mean 'q'?" in message
    message = told(capsys, "predict", *arguments, "-o", tmp_path / "x.extxyz", "--key", "energy=E")
    assert "a prediction needs no labels" in message


# ------------------------------------------------------------------ eval and predict
def test_evaluation_agrees_with_the_report(where, capsys):
    report = json.loads((where / "train/report.json").read_text())
    want = {r["quantity"]: r for r in report["errors"] if r["set"] == "test"}
    found = json.loads(said(capsys, "eval", where / "train/model.pt", where / "test.extxyz", "--json"))
    for row in found["errors"]:
        assert_allclose(row["rmse"], want[row["quantity"]]["rmse"], rtol=1e-6)
        assert_allclose(row["mae"], want[row["quantity"]]["mae"], rtol=1e-6)
    plot = where / "eval.png"
    text = said(capsys, "eval", where / "train/model.pt", where / "test.extxyz", "--plot", plot)
    assert [line.split()[1] for line in text.splitlines()] == ["quantity", "energy", "forces", "dipole"]
    assert imread(plot).shape[0] > 300
    message = told(capsys, "eval", where / "train/model.pt", where / "test.extxyz", "--plot", plot)
    assert "eval.png exists; --force overwrites" in message


def test_keys_and_levels_can_be_told_to_the_evaluation(where, capsys):
    made = frames(3, seed=1)
    for atoms in made:
        atoms.info["E"] = atoms.info.pop("REF_energy") / 27.211386245981
    put(where / "hartree.extxyz", made)
    model, data = where / "train/model.pt", where / "hartree.extxyz"
    found = json.loads(said(capsys, "eval", model, data, "--key", "energy=E:Ha", "--json"))
    truth = json.loads(said(capsys, "eval", model, where / "test.extxyz", "--json"))
    assert found["errors"][0]["quantity"] == "energy"
    assert found["errors"][0]["rmse"] < 3.0 * truth["errors"][0]["rmse"]
    assert "--fidelity says" in told(capsys, "eval", model, data, "--fidelity", "dft", "--key", "energy=E:Ha")
    assert "write it as energy=REF_energy" in told(capsys, "eval", model, data, "--key", "energy")


def test_predictions_are_the_calculators_and_keep_the_labels(where, capsys):
    model, out = where / "train/model.pt", where / "out.extxyz"
    said(capsys, "predict", model, where / "test.extxyz", "-o", out, "--properties", "energy,forces,dipole")
    calculator = TaceCalculator(model)
    for before, after in zip(frames(5, seed=1), read(out, ":"), strict=True):
        before.calc = calculator
        assert_allclose(after.info["TACE_energy"], before.get_potential_energy(), atol=1e-6)  # float32 model
        assert_allclose(after.arrays["TACE_forces"], before.get_forces(), atol=2e-6)
        assert after.info["TACE_dipole"].shape == (3,)
        assert after.info["TACE_units"] == "energy eV, forces eV/A, dipole e*A"
        assert after.info["REF_energy"] == pytest.approx(before.info["REF_energy"])
    assert "out.extxyz exists" in told(capsys, "predict", model, where / "test.extxyz", "-o", out)
    both = where / "both.extxyz"
    said(
        capsys, "predict", model, where / "train/best.pt", where / "test.extxyz", "-o", both, "--index", "-1"
    )
    last = read(both, ":")
    assert len(last) == 1
    assert last[0].arrays["TACE_force_spread"].shape == (len(last[0]),)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "train/model.pt"], "give a file of labelled structures besides the model"),
        (["eval", "test.extxyz"], "give a model: a file that ends in .pt"),
        (["eval", "none.pt", "test.extxyz"], "none.pt: no such file"),
        (["eval", "train/model.pt", "none.xyz"], "none.xyz: no such file"),
        (["eval", "train/model.pt", "copper.extxyz"], "the model does not know Cu; it was built for C, O"),
        (["eval", "broken.pt", "test.extxyz"], "broken.pt: not a readable model file"),
        (["eval", "train/checkpoint.pt", "test.extxyz"], "checkpoint.pt: not a tace model"),
        (["predict", "train/model.pt", "test.extxyz", "-o", "no/x.extxyz"], "there is no folder"),
        (
            ["predict", "train/model.pt", "test.extxyz", "-o", "x.extxyz", "--properties", "dipol"],
            "does not predict 'dipol'",
        ),
        (
            ["predict", "train/model.pt", "test.extxyz", "-o", "x.extxyz", "--fidelity", "dft"],
            "fidelity 'dft' is unknown",
        ),
        (["predict", "train/model.pt", "copper.extxyz", "-o", "x.extxyz"], "the model does not know Cu"),
        (["info", "none.pt"], "none.pt: no such file"),
        (["info", "broken.pt"], "broken.pt: not a readable model file"),
        (["info", "test.extxyz"], "not a readable model file"),
        (["info", "bare.pt", "--check"], "the card has no self-test"),
        (["train", "none.yaml"], "none.yaml: no such file"),
        (["train", "test.extxyz"], "test.extxyz:1: "),
        (["train"], "Missing argument 'CONFIG'"),
        (["trian"], "No such command 'trian'"),
    ],
)
def test_what_a_command_cannot_use_is_told(where, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(where)
    (where / "broken.pt").write_bytes((where / "train/model.pt").read_bytes()[:-2000])
    put(where / "copper.extxyz", [Atoms("Cu2", positions=[[0, 0, 0], [2, 0, 0]], info={"REF_energy": 1.0})])
    save_model(where / "bare.pt", load_model(where / "train/model.pt"))
    assert message in told(capsys, *arguments)
    assert not (where / "x.extxyz").exists()


# ------------------------------------------------------------------ info
def test_info_shows_the_card_and_checks_it(where, capsys):
    text = said(capsys, "info", where / "train/model.pt", "--check")
    for part in (
        "elements    C O",
        "levels      default",
        "energies of isolated atoms",
        "dipole",
        "self-test   the same",
        "train.steps: 120",
    ):
        assert part in text
    card = json.loads(said(capsys, "info", where / "train/model.pt", "--json"))
    report = json.loads((where / "train/report.json").read_text())
    assert card["data_hash"] == report["data_hash"]
    assert card["errors"] == report["errors"]
    assert card["labels"][0] == {
        "set": "train",
        "fidelity": "default",
        "frames": 13,
        "energy": 13,
        "forces": 13,
        "stress": 0,
        "dipole": 13,
    }
    assert card["settings"]["model"]["heads"] == ["dipole"]
    assert card["versions"]["torch"] == torch.__version__


def test_a_tampered_model_fails_its_check(where, capsys):
    document = read_archive(where / "train/model.pt")
    document["state"]["reference.e0_eV"] += 0.01
    write_archive(where / "tampered.pt", document)
    assert "the self-test failed" in told(capsys, "info", where / "tampered.pt", "--check")


# ------------------------------------------------------------------ the command itself
def test_help_needs_no_torch_and_the_example_is_printed(capsys):
    code = (
        "import sys; from tace.cli import main; main(['-h']); main(['train', '-h']); main(['example']); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'ase', 'matplotlib', 'numpy')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "tace train train.yaml" in done.stdout
    assert "force_cap_eV_per_A" in done.stdout


def test_a_run_of_several_levels_reports_each(tmp_path):
    put(tmp_path / "cheap.extxyz", frames(10))
    put(tmp_path / "dear.extxyz", frames(6, seed=3, r0=1.35))
    config = {
        "data": {
            "train": [
                {"file": "dear.extxyz", "fidelity": "dear"},
                {"file": "cheap.extxyz", "fidelity": "cheap"},
            ],
            "fidelities": ["cheap", "dear"],
            "valid": 0.3,
        },
        "model": MODEL,
        "train": {**TRAIN, "steps": 2},
    }
    result = execute(run_from_config(config, base=tmp_path, out=tmp_path / "out"))
    assert result.model is not None
    assert result.model.config.fidelities == ("cheap", "dear")
    assert {row["fidelity"] for row in result.report["errors"]} == {"cheap", "dear"}
