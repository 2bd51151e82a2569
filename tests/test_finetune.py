"""Fine-tuning: what is frozen stays, what is added starts as a copy, what is replayed is not forgotten."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from tace_runs import MODEL, TRAIN, frames, put

from tace.cli import main
from tace.comparison import compare
from tace.config import HeadConfig, InputConfig, LesConfig, preset
from tace.data import Labelled, make_samples
from tace.errors import TaceError
from tace.finetune import extend_fidelities, fit_new_level, freeze, groups, load_trainable, with_replay
from tace.io import load_model, save_model
from tace.model import Tace
from tace.properties import predict
from tace.runfile import read_runfile, run_from_config, train_from_config
from tace.runfile_train import execute

CONFIG = preset(
    "nano",
    elements=(6, 8),
    fidelities=("old",),
    cutoff_A=3.0,
    channels=4,
    l_max=2,
    L_max=1,
    radial_hidden=(8,),
    readout_hidden=3,
    avg_neighbors=3.0,
)


def model(**changes) -> Tace:
    made = Tace(dataclasses.replace(CONFIG, **changes), seed=3, dtype=torch.float64)
    levels, z = made.config.fidelities, made.config.elements
    table = {f: {k: -10.0 * k - n for k in z} for n, f in enumerate(levels)}
    made.set_reference(
        table, {f: 1.0 + n for n, f in enumerate(levels)}, {f: -0.2 - n for n, f in enumerate(levels)}
    )
    generator = torch.Generator().manual_seed(5)
    for name, buffer in made.named_buffers():  # sizes and offsets of heads, all different
        if name.startswith("heads.") and name in made.state_dict():
            buffer.copy_(torch.rand(buffer.shape, generator=generator))
    return made


# ------------------------------------------------------------------ fidelities
HEADS = (
    HeadConfig("dipole", symmetry="i"),
    HeadConfig("tensor", scope="atom", symmetry="ij=ji", hidden=3),
    HeadConfig("charges", scope="atom", charges="qeq", hidden=2),
)


@pytest.mark.parametrize("readout", ["shared", "per_fidelity"])
@pytest.mark.parametrize("levels", [("old",), ("a", "b", "old")])
@pytest.mark.parametrize("extra", ["plain", "everything"])
def test_old_levels_stay_as_they_are_and_new_ones_start_as_copies(readout, levels, extra):
    more = (
        {}
        if extra == "plain"
        else {
            "heads": HEADS,
            "les": LesConfig(),
            "inputs": (InputConfig("total_charge"), InputConfig("electric_field")),
        }
    )
    before = model(readout=readout, fidelities=levels, **more)
    after = extend_fidelities(before, ["new", "newer"])
    assert after.config.fidelities == (*levels, "new", "newer")
    # the maps of per-fidelity readouts get wider, and wider matrix products add up in another order
    tolerance = {"rtol": 0.0, "atol": 0.0} if readout == "shared" else {"rtol": 1e-10, "atol": 1e-13}
    names = ["energy", "forces", *(h.name for h in before.config.heads)]
    atoms = frames(3, symbols="CO")
    for one in atoms:
        one.info["total_charge"] = 1.0
    for level in levels:
        then, now = (predict([m], atoms, [level] * 3, names=names) for m in (before, after))
        for a, b in zip(then, now, strict=True):
            for name in names:
                assert_allclose(a[name], b[name], err_msg=f"{level} {name}", **tolerance)
    copied = [predict([after], atoms, [level] * 3, names=names) for level in ("old", "new", "newer")]
    for other in copied[1:]:
        for a, b in zip(copied[0], other, strict=True):
            for name in names:
                assert_allclose(a[name], b[name], err_msg=name, **tolerance)


def test_a_new_level_can_learn_apart_from_the_old_one():
    """The copy is no dead end: the gradient reaches the new rows, though they start at exactly zero."""
    after = extend_fidelities(model(), ["new"])
    from tace.batch import collate, make_graph
    from tace.derivatives import evaluate

    graph = make_graph(frames(1, symbols="CO")[0], (6, 8), cutoff=3.0, fidelity=1)
    evaluate(after, collate([graph], 2), create_graph=True).energies.sum().backward()
    assert after.fidelity_table is not None
    assert after.fidelity_table.grad is not None
    assert float(after.fidelity_table.grad[1].abs().max()) > 1e-6
    assert float(after.fidelity_table.grad[0].abs().max()) == 0.0


def test_a_level_to_copy_can_be_chosen_and_a_known_one_is_refused():
    before = model(fidelities=("a", "b"))
    after = extend_fidelities(before, ["c"], like="a")
    atoms = frames(1, symbols="CO")
    energies = [float(predict([after], atoms, [f])[0]["energy"]) for f in ("a", "b", "c")]
    assert energies[2] == energies[0] != energies[1]
    with pytest.raises(TaceError, match="has the level 'b' already"):
        extend_fidelities(before, ["b"])
    with pytest.raises(TaceError, match="has no level 'x' to copy; it has a, b"):
        extend_fidelities(before, ["c"], like="x")


def test_energies_of_atoms_of_a_new_level_are_found_from_its_labels():
    after = extend_fidelities(model(), ["new"])
    atoms = frames(8, symbols="CO")
    offset = {6: -1000.0, 8: 37.5}
    truth = predict([after], atoms, ["old"] * 8)
    data = [
        Labelled(a, "new", float(v["energy"]) + sum(offset[int(z)] for z in a.numbers))
        for a, v in zip(atoms, truth, strict=True)
    ]
    fit_new_level(after, data, "new")
    moved = after.e0_eV[1] - after.e0_eV[0]
    assert_allclose(moved, [-1000.0, 37.5], rtol=1e-9)  # rounding of sums of thousands of eV
    given = extend_fidelities(model(), ["new"])
    fit_new_level(given, data, "new", {6: -1060.0, 8: -42.5})
    assert_allclose(given.e0_eV[1], [-1060.0, -42.5])
    assert_allclose(given.shift_eV[1], given.shift_eV[0], atol=1e-9)
    with pytest.raises(TaceError, match="no isolated-atom energy for O"):
        fit_new_level(given, data, "new", {6: 1.0})


# ------------------------------------------------------------------ frozen parts
def test_every_part_can_be_frozen_and_the_backbone_is_all_but_the_readouts():
    made = model(heads=HEADS, les=LesConfig(), fidelities=("a", "old"))
    every = {n for n, _ in made.named_parameters()}
    readouts = {n for n in every if n.split(".")[0] in ("energy_readout", "charge_readout", "heads")}
    assert set(freeze(made, ["backbone"])) == every - readouts
    assert {n for n, p in made.named_parameters() if p.requires_grad} == readouts
    assert set(freeze(made, ["layers.0", "layers.1"])) == set(freeze(made, ["layers"]))
    assert set(freeze(made, ["heads.dipole"])) == {n for n in every if "dipole" in n}
    assert all(".radial." in n for n in freeze(made, ["radial"]))
    covered = {
        n for part in ("embedding", "layers", "readout", "heads") for n in every if groups(made)[part](n)
    }
    assert covered == every


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["layer.0"], "no part 'layer.0' in the model; it has"),
        (["layers.2"], "no part 'layers.2'"),
        (["heads"], "no parameters in 'heads'"),
        (["backbone", "readout"], "everything is frozen"),
    ],
)
def test_a_part_that_cannot_be_frozen_is_told(parts, message):
    with pytest.raises(TaceError, match=message):
        freeze(model(), parts)


# ------------------------------------------------------------------ replay
@pytest.mark.parametrize(
    ("n_new", "n_old", "fraction"), [(5, 40, 0.3), (40, 5, 0.3), (7, 7, 0.5), (3, 2, 0.9)]
)
def test_replayed_samples_have_their_share_and_none_is_left_out(n_new, n_old, fraction):
    config = dataclasses.replace(CONFIG, fidelities=("old",))
    data = [Labelled(a, "old", 0.0, name=f"{n}") for n, a in enumerate(frames(n_new + n_old, symbols="CO"))]
    samples = make_samples(data, config)
    mixed = with_replay(samples[:n_new], samples[n_new:], fraction=fraction, seed=0)
    names = [int(s.name) for s in mixed]
    assert set(names) == set(range(n_new + n_old))
    share = np.mean([n >= n_new for n in names])
    assert abs(share - fraction) < 0.5 / len(mixed) + 1e-9
    counts = np.bincount(names)
    for own in (counts[:n_new], counts[n_new:]):
        assert own.max() - own.min() <= 1


# ------------------------------------------------------------------ whole runs
@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with old and new data, and a model that knows the old: another bond length is new."""
    where = tmp_path_factory.mktemp("finetune")
    put(where / "old.extxyz", frames(24))
    put(where / "new.extxyz", frames(12, seed=2, r0=1.42))
    config = {
        "data": {"train": "old.extxyz", "valid": 0},
        "model": MODEL,
        "train": {**TRAIN, "steps": 150, "validate_every": 150},
    }
    train_from_config(config, base=where, out=where / "start")
    return where


def error(path, data) -> float:
    """Force RMSE on other structures of the same kind."""
    atoms = frames(12, seed={"old": 9, "new": 8}[data], r0={"old": 1.3, "new": 1.42}[data])
    labelled = [Labelled(a, "default", float(a.info["REF_energy"]), a.arrays["REF_forces"]) for a in atoms]
    return compare([load_model(path)], labelled)["default"]["forces"].rmse


def finetune(where, name, **blocks):
    config = {
        "data": {"train": "new.extxyz", "valid": 0},
        "train": {**TRAIN, "steps": 80, "validate_every": 80, "learning_rate": 5e-3},
        **blocks,
    }
    run = run_from_config(config, base=where, out=where / name, model=where / "start/model.pt", finetune=True)
    return execute(run)


def test_frozen_parts_stay_bit_for_bit_and_the_readouts_learn(trained):
    result = finetune(trained, "frozen", finetune={"freeze": ["backbone"]})
    before, after = load_model(trained / "start/model.pt"), result.model
    assert after is not None
    changed = set()
    for (name, a), (_, b) in zip(before.named_parameters(), after.named_parameters(), strict=True):
        if not torch.equal(a, b):
            changed.add(name.split(".")[0])
    assert changed == {"energy_readout"}
    assert torch.equal(before.e0_eV, after.e0_eV)
    new = error(trained / "frozen/model.pt", "new")
    assert new < error(trained / "start/model.pt", "new")


def test_replay_learns_the_new_and_keeps_the_old(trained):
    """Without it the old error grows; with it, it stays close, and the report says so."""
    # the two potentials contradict each other on one level, as two functionals would
    alone = finetune(trained, "alone")
    both = finetune(trained, "both", finetune={"replay": {"data": "old.extxyz", "fraction": 0.5}})
    old = {name: error(trained / name / "model.pt", "old") for name in ("start", "alone", "both")}
    new = {name: error(trained / name / "model.pt", "new") for name in ("start", "alone", "both")}
    assert new["both"] < new["start"]
    assert new["alone"] < new["start"]
    assert old["alone"] - old["start"] > 2.0 * max(0.0, old["both"] - old["start"])
    assert "replay" not in alone.report
    told = both.report["replay"]
    assert [row["quantity"] for row in told["before"]] == ["energy", "forces"]
    assert told["after"][1]["rmse"] != told["before"][1]["rmse"]


def test_a_new_level_is_added_beside_the_old_one(trained):
    config = {
        "data": {"train": [{"file": "new.extxyz", "fidelity": "dear"}], "valid": 0, "fidelities": ["dear"]}
    }
    result = finetune(trained, "levels", **config)
    assert result.model is not None
    assert result.model.config.fidelities == ("default", "dear")
    atoms = frames(12, seed=8, r0=1.42)
    labelled = [Labelled(a, "dear", float(a.info["REF_energy"]), a.arrays["REF_forces"]) for a in atoms]
    dear = compare([result.model], labelled)["dear"]["forces"].rmse
    assert dear < error(trained / "start/model.pt", "new")


def test_the_learning_rate_is_a_tenth_unless_given(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text("data: {train: a}\n", encoding="utf-8")
    assert read_runfile(path, model=tmp_path / "m.pt", finetune=True).settings.learning_rate == 1e-3
    path.write_text("data: {train: a}\ntrain: {learning_rate: 0.02}\n", encoding="utf-8")
    assert read_runfile(path, model=tmp_path / "m.pt", finetune=True).settings.learning_rate == 0.02


def told(capsys, *arguments) -> str:
    assert main([str(a) for a in arguments]) == 2
    return capsys.readouterr().err


def test_what_cannot_be_fine_tuned_is_told_with_what_works(trained, capsys, tmp_path):
    start, out = trained / "start/model.pt", tmp_path / "out"
    put(trained / "hydrogen.extxyz", frames(6, symbols="COH", seed=4))
    path = trained / "h.yaml"
    path.write_text(json.dumps({"data": {"train": "hydrogen.extxyz", "valid": 0}}), encoding="utf-8")
    said = told(capsys, "finetune", start, path, "--out", out)
    assert "the data hold H, which" in said
    assert "train a new one with 'tace train'" in said
    path.write_text(
        json.dumps({"data": {"train": {"file": "new.extxyz", "fidelity": "dear"}}}), encoding="utf-8"
    )
    said = told(capsys, "finetune", start, path, "--out", out)
    assert "the data are at 'dear', a level that" in said
    assert "name it in data.fidelities to add it" in said
    path.write_text('{"data": {"train": "new.extxyz"}, "model": {"channels": 8}}', encoding="utf-8")
    assert "model.channels: is that of the model which is fine-tuned" in told(capsys, "finetune", start, path)
    path.write_text('{"data": {"train": "new.extxyz"}, "finetune": {"freeze": ["all"]}}', encoding="utf-8")
    assert "no part 'all' in the model" in told(capsys, "finetune", start, path, "--out", out)
    assert "no such file" in told(capsys, "finetune", trained / "none.pt", path, "--out", out)
    assert not (tmp_path / "out" / "model.pt").exists()


def test_an_old_model_is_trained_further_and_the_card_says_from_where(trained, capsys):
    path = trained / "more.yaml"
    path.write_text(
        json.dumps({"data": {"train": "new.extxyz", "valid": 0}, "train": {"steps": 3}}), encoding="utf-8"
    )
    assert main(["finetune", str(trained / "start/model.pt"), str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["training"]["started_from"] == str(trained / "start/model.pt")


def test_a_warm_start_takes_the_weights_and_refuses_another_architecture(trained):
    config = {
        "data": {"train": "old.extxyz", "valid": 0},
        "model": {"init": "start/model.pt"},
        "train": {**TRAIN, "steps": 1, "learning_rate": 1e-9},
    }
    result = train_from_config(config, base=trained, out=trained / "warm")
    assert result.model is not None
    before = load_model(trained / "start/model.pt")
    for a, b in zip(before.parameters(), result.model.parameters(), strict=True):
        assert_allclose(b, a, atol=1e-7)  # one step of 1e-9
    config["model"] = {"init": "start/model.pt", "channels": 8}
    with pytest.raises(TaceError, match=r"model\.channels is 8, but .* has 4"):
        train_from_config(config, base=trained, out=trained / "other")
    config["model"] = {"init": "start/model.pt", "channels": 4, "cutoff_A": 3.0, "radial_hidden": [8]}
    assert train_from_config(config, base=trained, out=trained / "same").finished


def test_a_loaded_model_can_be_trained_again(tmp_path):
    save_model(tmp_path / "m.pt", model())
    assert all(p.requires_grad for p in load_trainable(tmp_path / "m.pt").parameters())
