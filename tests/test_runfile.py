"""Run files: every mistake is told with its line and what would work, and a right one becomes a run."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from tace.config import TaceConfig
from tace.documents import read_document
from tace.errors import TaceError
from tace.runfile import (
    RUN_FILE,
    RunFileError,
    config_of,
    filled,
    heads_of,
    read_runfile,
    run_from_config,
    with_changes,
)
from tace.runfile_schema import FINETUNE_RUN, RUN

EXAMPLE = Path(__file__).resolve().parent.parent / "tace" / "example.yaml"


def told(tmp_path, text: str, **options) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RunFileError) as caught:
        read_runfile(path, **options)
    return str(caught.value).replace(str(path), "run.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "run.yaml:1: the file is empty"),
        ("- a\n", "run.yaml:1: found a list; a run file starts with 'data:'"),
        ("data: {train: a\n", "run.yaml:2: not YAML"),
        ("data:\n\ttrain: a\n", "run.yaml:2: not YAML"),
        ("%YAML 1.1\n---\na: 1\n", "run.yaml:1: found a %YAML directive"),
        ("data: {train: a}\ndata: {train: b}\n", "run.yaml:2: data: given twice, first in line 1"),
        ("data: {train: a, 1: b}\n", 'run.yaml:1: data.1: a key must be text; write "1":'),
        ("model: {}\n", "run.yaml:1: data: missing; add 'data:'"),
        ("data: {}\n", "run.yaml:1: data.train: missing; add 'train:'"),
        ("data:\n  train: a\n  vald: 0.1\n", "run.yaml:3: data.vald: unknown key; did you mean 'valid'?"),
        ("data: {train: []}\n", "data.train: found an empty list; must be a file or a list of files"),
        ("data: {train: [{fil: a}]}\n", "run.yaml:1: data.train[0].file: missing"),
        (
            "data: {train: [{file: a, wight: 1}]}\n",
            "data.train[0].wight: unknown key; did you mean 'weight'?",
        ),
        ("data: {train: a, valid: 1.5}\n", "data.valid: found 1.5; must be a number at least 0, at most 0.9"),
        ("data: {train: a, keys: {enrgy: E}}\n", "there is no quantity 'enrgy'; did you mean 'energy'?"),
        (
            "data: {train: a, keys: {energy: {kye: E}}}\n",
            "data.keys.energy.kye: unknown key; did you mean 'key'?",
        ),
        (
            "data: {train: [{file: a, units: {enrgy: Ha}}]}\n",
            "data.train[0].units.enrgy: there is no quantity",
        ),
        (
            "data: {train: a}\nmodel: {preset: smal}\n",
            "run.yaml:2: model.preset: found 'smal'; did you mean 'small'?",
        ),
        ("data: {train: a}\nmodel: {chanels: 4}\n", "model.chanels: unknown key; did you mean 'channels'?"),
        ("data: {train: a}\nmodel: {channels: 4.5}\n", "model.channels: found 4.5; must be a whole number"),
        ("data: {train: a}\nmodel: {channels: true}\n", "model.channels: found true; must be a whole number"),
        ("data: {train: a}\nmodel:\n  channels: 0\n", "run.yaml:3: model.channels: "),
        ("data: {train: a}\nmodel: {elements: [1]}\n", "model.elements: comes from the data; leave it out"),
        (
            "data: {train: a}\nmodel: {les: {sgma_A: 1}}\n",
            "model.les.sgma_A: unknown key; did you mean 'sigma_A'?",
        ),
        ("data: {train: a}\nmodel: {inputs: [total_chrge]}\n", "did you mean 'total_charge'?"),
        ("data: {train: a}\nmodel: {heads: [{nam: x}]}\n", "model.heads[0].name: missing"),
        ("data: {train: a}\nmodel: {dtype: float16}\n", "found 'float16'; did you mean 'float"),
        (
            "data: {train: a}\ntrain: {step: 5}\n",
            "run.yaml:2: train.step: unknown key; did you mean 'steps'?",
        ),
        (
            "data: {train: a}\ntrain:\n  schedule: cosin\n",
            "run.yaml:3: train.schedule: unknown schedule 'cosin'",
        ),
        (
            "data: {train: a}\ntrain: {learning_rate: -1}\n",
            "train.learning_rate: training setting learning_rate",
        ),
        (
            "data: {train: a}\ntrain: {learning_rate: .nan}\n",
            "train.learning_rate: found nan; must be a finite number",
        ),
        ("data: {train: a}\ntrain: {seed: 1}\n", "train.seed: is a key of the run file itself"),
        ("data: {train: a}\nseed: -1\n", "run.yaml:2: seed: found -1; must be a whole number, at least 0"),
        ("data: {train: a}\nchecks: {labels: no}\n", "checks.labels: found 'no'"),
        ("data: {train: a}\nfinetune: {}\n", "finetune: unknown key"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_what_would_work(tmp_path, text, message):
    assert message in told(tmp_path, text)


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(tmp_path):
    lines = told(tmp_path, "data: {train: 1}\nmodel: {chanels: 4}\ntrian: {}\n").splitlines()
    assert [line.split(":")[1] for line in lines] == ["1", "2", "3"]


def test_yaml_1_2_keeps_no_and_on_as_text():
    data = read_document("data: {train: No, keys: {on: y}}", "f", RUN_FILE).data
    assert data == {"data": {"train": "No", "keys": {"on": "y"}}}


def test_a_change_replaces_one_value_and_leaves_the_document_alone():
    document = read_document("data: {train: a}\ntrain: {steps: 5, batch_size: 2}\n", "f", RUN_FILE)
    changed = with_changes(document, ["train.steps=500", "model.les=true", "data.fidelities=[a, b]"])
    assert changed.data["train"] == {"steps": 500, "batch_size": 2}
    assert changed.data["model"] == {"les": True}
    assert changed.data["data"] == {"train": "a", "fidelities": ["a", "b"]}
    assert document.data["train"]["steps"] == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.steps", "--set train.steps: write it as train.steps=500"),
        ("train.steps=[", "is not a YAML value"),
        ("data.train.x=1", "'train' is 'a'"),
        ("train.setps=1", "train.setps: unknown key; did you mean 'steps'?"),
        ("train.steps=many", "train.steps: found 'many'; must be a whole number"),
    ],
)
def test_a_change_that_cannot_be_made_is_told(tmp_path, change, message):
    assert message in told(tmp_path, "data: {train: a}\n", changes=[change])


def test_paths_and_the_output_start_at_the_run_file(tmp_path):
    path = tmp_path / "sub" / "my.yaml"
    path.parent.mkdir()
    path.write_text("data: {train: a}\nmodel: {init: old.pt}\n", encoding="utf-8")
    run = read_runfile(path)
    assert run.out == tmp_path / "sub" / "my"
    assert run.init == tmp_path / "sub" / "old.pt"
    assert run.path("x.xyz") == tmp_path / "sub" / "x.xyz"
    assert read_runfile(path, out=Path("other")).out == Path("other")


@pytest.mark.parametrize(
    ("make", "message"), [("folder", "is a folder"), ("", "no such file"), ("binary", "not a text")]
)
def test_what_is_no_file_of_text_is_told(tmp_path, make, message):
    path = tmp_path / "x.yaml"
    if make == "folder":
        path.mkdir()
    elif make == "binary":
        path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(RunFileError, match=message):
        read_runfile(path)


def test_a_mapping_is_told_its_mistakes_by_key():
    with pytest.raises(
        RunFileError, match=r"^configuration: train\.stps: unknown key; did you mean 'steps'\?"
    ):
        run_from_config({"data": {"train": "a"}, "train": {"stps": 1}})


def test_the_example_parses_as_it_is_and_with_every_comment_taken_away():
    text = EXAMPLE.read_text(encoding="utf-8")
    data = YAML(typ="safe", pure=True).load(text)
    assert RUN(data, ()) == []
    assert run_from_config(data).settings.steps == 2000
    lines = [re.sub(r"^(\s*)# ", r"\1", line) for line in text.splitlines()[3:]]
    full = YAML(typ="safe", pure=True)
    full.allow_duplicate_keys = True  # data.train stands there twice, in two forms
    data = full.load("\n".join(lines))
    finetune = data.pop("finetune")
    assert RUN(data, ()) == []
    assert FINETUNE_RUN({"data": {"train": "a"}, "finetune": finetune}, ()) == []
    known = set(TaceConfig.__dataclass_fields__)
    assert set(data["model"]) - {"preset", "dtype", "init"} <= known


def test_the_example_shows_the_defaults_of_training():
    data = YAML(typ="safe", pure=True).load(EXAMPLE.read_text(encoding="utf-8"))
    shown = data.pop("train")
    plain = run_from_config(data).settings
    assert run_from_config({**data, "train": shown}).settings == plain


def test_a_head_named_alone_gets_the_symmetry_of_its_quantity():
    dipole, charges, own = heads_of(["dipole", "charges", {"name": "mine", "symmetry": "ij"}])
    assert (dipole.symmetry, dipole.scope) == ("i", "structure")
    assert (charges.charges, charges.scope) == ("qeq", "atom")
    assert own.symmetry == "ij"


def test_an_input_keeps_what_was_written_and_takes_the_rest_from_the_data():
    assert filled("total_charge", scale=3.0, values=()).scale == 3.0
    assert filled({"name": "total_charge", "scale": 2.0}, scale=3.0, values=()).scale == 2.0
    assert filled("spin_multiplicity", scale=9.0, values=(1, 3)).values == (1, 3)


def test_les_true_false_and_settings_make_the_right_model():
    facts = {"elements": (1,), "fidelities": ("a",)}
    assert config_of({"les": True}, [], **facts).les is not None
    assert config_of({"les": False}, [], **facts).les is None
    settings = config_of({"les": {"sigma_A": 0.5}}, [], **facts).les
    assert settings is not None
    assert settings.sigma_A == 0.5


def test_settings_that_do_not_fit_together_are_told_before_data_are_read():
    config = {"data": {"train": "none.xyz"}, "model": {"les": {"constraint": "total_charge"}}}
    with pytest.raises(TaceError, match=r"les\.constraint total_charge needs the input"):
        run_from_config(config)


def test_the_same_geometry_under_other_conditions_is_another_structure():
    from ase import Atoms

    from tace.data import Labelled
    from tace.runfile_data import geometry_key

    here, there, again = (Labelled(Atoms("NiO", positions=[[0, 0, 0], [0, 0, 2.0]])) for _ in range(3))
    assert geometry_key(here) == geometry_key(there)
    here.atoms.arrays["magnetic_moments"] = np.ones((2, 3))
    there.atoms.info["electric_field"] = np.array([0.0, 0.0, 0.1])
    assert len({geometry_key(f) for f in (here, there, again)}) == 3
