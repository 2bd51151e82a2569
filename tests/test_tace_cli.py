"""The `tace` command: evaluation, prediction, the card, and every message."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from ase import Atoms
from ase.io import read
from matplotlib.image import imread
from numpy.testing import assert_allclose
from tace_cli_helpers import said, told, trained
from tace_runs import frames, put

from tace.calculator import TaceCalculator
from tace.io import load_model, read_archive, save_model, write_archive


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("cli"))


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
