"""What a run reads of its data: energies of atoms, the split, units, levels."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.io import read
from numpy.testing import assert_allclose
from tace_cli_helpers import said, told
from tace_runs import MODEL, TRAIN, folder, frames, put

from tace.properties import predict
from tace.runfile import run_from_config, train_from_config
from tace.runfile_data import capped, read_run_data, split
from tace.runfile_train import execute


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
