"""The benchmarks of runs/benchmarks: their run files are good and their tables say what the records hold."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ase import Atoms

from tace.data import Labelled
from tace.runfile import read_runfile

HERE = Path(__file__).resolve().parents[1] / "runs" / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the benchmarks' folder."""
    monkeypatch.syspath_prepend(str(HERE))

    def get(name: str) -> ModuleType:
        for known in ("run", "judge", "table"):
            sys.modules.pop(known, None)
        return importlib.import_module(name)

    return get


def test_every_run_file_is_used_and_every_benchmark_can_be_read(load):
    run = load("run")
    used = set()
    for name, entry in run.benchmarks().items():
        runfile = run.read_benchmark(name, entry, Path("/where/the/data/are"))
        used.add(entry.get("config", name))
        assert runfile.settings.steps > 0
    assert used == {path.stem for path in HERE.glob("*.yaml")}


@pytest.mark.parametrize("path", sorted(HERE.glob("*.yaml")), ids=lambda p: p.stem)
def test_a_run_file_names_no_machine(path):
    read_runfile(path)
    text = path.read_text()
    assert "/work" not in text and "/home" not in text and "/tmp" not in text
    assert text.startswith("#")


def test_the_folder_of_the_data_is_put_in_wherever_a_path_stands(load):
    run = load("run")
    given = {"train": ["data/a.xyz", {"file": "data/b.xyz", "index": ":"}], "e0_eV": "made/c.xyz"}
    found = run.with_folder(given, Path("/d"))
    assert found == {"train": ["/d/a.xyz", {"file": "/d/b.xyz", "index": ":"}], "e0_eV": "made/c.xyz"}


def test_a_benchmark_spends_its_budget_and_goes_on_with_a_larger_one(load, tmp_path, monkeypatch):
    run = load("run")
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    entry = run.benchmarks()["charge_pairs"]
    arguments = SimpleNamespace(data=tmp_path, out=tmp_path / "out", mace=None, cpu_minutes=0.01)
    first = run.benchmark("charge_pairs", entry, arguments)
    assert len(first["rounds"]) == 1 and first["cpu_s"] > 0
    # what was spent, because the timed steps may have promised slower ones than the run then had
    arguments.cpu_minutes = 0.5 * first["cpu_s"] / 60  # which is rounded
    again = run.benchmark("charge_pairs", entry, arguments)
    assert again["errors"] == first["errors"]  # the budget is spent: the same model is judged again
    arguments.cpu_minutes = 0.05
    more = run.benchmark("charge_pairs", entry, arguments)
    assert len(more["rounds"]) == 2 and more["steps"] > first["steps"]
    assert more["errors"]["dev"]["forces"]["rmse"] < first["errors"]["dev"]["forces"]["rmse"]
    assert json.loads((tmp_path / "results" / "charge_pairs.json").read_text()) == more


def test_a_run_that_was_cut_off_ends_as_one_that_was_not(load, tmp_path, monkeypatch):
    run = load("run")
    entry = run.benchmarks()["charge_pairs"]
    runfile = run.read_benchmark("charge_pairs", entry, tmp_path)
    data = run.read_run_data(runfile, runfile.heads, inputs=runfile.input_names)
    data.train, data.valid = data.train[:20], data.valid[:4]
    monkeypatch.setattr(run, "steps_for", lambda *a, **k: (45, 0.1))
    whole, state = run.trained(runfile, data, tmp_path / "whole", minutes=1.0)
    real = run.fit

    def cut(*args: Any, on_step: Any, **more: Any) -> Any:
        def stop(step: int, loss: float) -> bool:
            on_step(step, loss)
            if step == 30:
                raise KeyboardInterrupt
            return True

        return real(*args, on_step=stop, **more)

    monkeypatch.setattr(run, "fit", cut)
    with pytest.raises(KeyboardInterrupt):
        run.trained(runfile, data, tmp_path / "cut", minutes=1.0)
    monkeypatch.setattr(run, "fit", real)
    resumed, again = run.trained(runfile, data, tmp_path / "cut", minutes=1.0)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert (a == b).all()  # deterministic on one machine and thread count
    assert [h["step"] for h in again["history"]] == [h["step"] for h in state["history"]]


def test_the_tables_hold_the_numbers_of_the_records(load, tmp_path):
    table = load("table")
    record = {
        "benchmark": "b", "title": "a title", "frames": {"train": 7}, "cpu_s": 61.2, "steps": 50,
        "rounds": [{"steps": 50}],
        "history": [
            {"step": 25, "validation_loss": 1.0, "force_rmse_eV_per_A": 0.2},
            {"step": 50, "validation_loss": 0.5, "force_rmse_eV_per_A": 0.1},
        ],
        "errors": {"dev": {"energy": {"rmse": 0.00123, "mae": 0.001}, "forces": {"rmse": 0.1, "mae": 0.08}}},
        "mace": {"cpu_s": 60.0, "steps": 9, "errors": {"dev": {"forces": {"rmse": 0.2}}}},
        "ratios": {"dev": 0.5},
    }  # fmt: skip
    results = tmp_path / "results"
    results.mkdir()
    (results / "b.json").write_text(json.dumps(record))
    (results / "c.json").write_text(json.dumps({**record, "benchmark": "c", "mace": None}))
    page = tmp_path / "accuracy.md"
    page.write_text(f"before\n{table.START}\nold\n{table.END}\nafter\n")
    known = {"b": {"title": "a title", "published": "F 9"}, "c": {"compare": [["b", "dev", "dev"]]}}
    table.write_table(known, results, page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    errors = "RMSE dev: E 1.23 meV/atom; F 100 meV/Å"
    assert f"| `b`: a title | 7 | {errors} | F 9 | 61 (50) | F 200 → 100 |" in text
    assert "| `b` | dev | 100 | 200 | 0.50 | 61, 60 | 50, 9 |" in text
    assert "| `c` / `b` | dev | F, meV/Å | 100 | 100 | 1.00 |" in text
    table.write_table(known, results, page)
    assert page.read_text() == text


def test_every_result_kept_belongs_to_a_benchmark_and_names_its_cost(load):
    known = load("run").benchmarks()
    for path in (HERE / "results").glob("*.json"):
        record = json.loads(path.read_text())
        assert path.stem in known
        assert record["cpu_s"] > 0 and record["steps"] > 0 and record["errors"]


def test_a_net_force_is_that_on_one_of_two_molecules(load):
    judge = load("judge")
    atoms = Atoms("H4", positions=np.arange(12.0).reshape(4, 3))
    atoms.arrays["molecule"] = np.array([0, 0, 1, 1])
    true = np.array([[1.0, 0, 0], [2.0, 0, 0], [0, 5.0, 0], [0, 0, 7.0]])
    frame = Labelled(atoms, forces_eV_per_A=true)
    pair = judge._net_forces([frame], 2 * true)[0]
    assert np.array_equal(pair, [[6.0, 0, 0], [3.0, 0, 0]])
