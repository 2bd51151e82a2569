"""Every script of tests/bench runs, on made-up data and for a moment, and prints lines that can be read."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "tests" / "bench"
# options of the smoke run; {data}: parent of the folder 3bpa, {peers}: options for a harness that is made up
SMOKE = {
    "arithmetic_floor": "--sizes 64-0 --systems pd4 --rounds 1 --seconds 0 --gemm 64",
    "breakdown": "--sizes 64-0 --systems 3bpa,step --repeats 1 --data {data}",
    "calibration": "--smoke --data {data}/3bpa",
    "committee": "--systems acetamide --seconds 0",
    "compiled": "--what forces --sizes nano --systems 3bpa --no-graph --seconds 0 --data {data}",
    "edge_sum": "--sizes 64-0 --seconds 0 --data {data}",
    "force_call": "--sizes 64-0 --seconds 0 --data {data}/3bpa {peers} --models ours",
    "growth": "--sizes 64-0 --forms ours --cells 1 --rounds 1 --seconds 0",
    "label_alarms": "{data} --corrupt --only 3bpa/ood_piece_300K",
    "label_efficiency": "--smoke --data {data}/3bpa",
    "label_overhead": "--labels 20 --workers 0",
    "product": "--basis --atoms 8 --seconds 0",
    "reico_generator": "--smoke",
    "shared_trunk": "--frames 10 --test-frames 2 --steps 4 --data {data}",
    "side_by_side": "--sizes 64-0 --systems pd4 --rounds 1 --seconds 0 --data {data} {peers} "
    "--models ours,stub",
    "start_up": "--sizes 64-0 --rounds 1",
    "store_figures": "--structures 40",
    "store_million": "--rows 200",
    "threads": "--sizes 64-0 --systems pd4 --threads 1 --rounds 1 --seconds 0",
    "train_budget": "--sizes 64-0 --seconds 0.01 --marks 1 --seeds 0,1 --schedule linear --data {data}/3bpa",
    "train_step": "--sizes 64-0 --seconds 0 --data {data}/3bpa",
    "transition_states": "--smoke",
    "value_per_cost": "--smoke --data {data}/3bpa",
}
# scripts that others start, and scripts that need a package which is not among our dependencies
STARTED = {"worker": "side_by_side", "peer_ours": "force_call"}
ELSEWHERE = {"accuracy_mace": "BENCH_MACE_PYTHON"}
SIGNED = ("rank_correlation_spread_error", "rank_correlation_of_the_two_spreads")
# scripts with keys of their own, which they explain: their lines are only read
OWN_KEYS = (
    "calibration", "compiled", "label_alarms", "label_efficiency", "label_overhead", "reico_generator",
    "store_figures", "store_million", "transition_states", "value_per_cost",
)  # fmt: skip
# these may be zero: memory is counted in pages and load averages start at nothing, and the rest are numbers
MAY_BE_ZERO = ("load1", "peak_MiB", "peak_from_start_MiB", "seed")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with the names of the public sets, small molecules and numbers of no meaning in them."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    frames = []
    for _ in range(56):  # 50 of them are to validate
        atoms = molecule("CH3CONH2")
        atoms.rattle(0.05, rng=rng)
        results = {"energy": rng.normal(), "forces": rng.normal(size=(len(atoms), 3))}
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    water = Atoms(cell=[5.0, 5.0, 5.0], pbc=True)
    for place in ([0.5, 0.5, 0.5], [3.0, 3.0, 3.0]):
        one = molecule("H2O")
        one.translate(place)
        water += one
    for name, given in (("3bpa/train_300K.extxyz", frames), ("water_revPBE0-D3/dev_80.extxyz.gz", water)):
        path = folder / name
        path.parent.mkdir()
        write(path, given, format="extxyz")
    for name in ("train_300K", "ood_piece_300K", "ood_piece_600K", "ood_piece_1200K"):
        write(folder / "3bpa" / f"{name}.extxyz.gz", frames[:20], format="extxyz")
    return folder


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Options that name the stub of a harness, and environments with this interpreter in them."""
    folder = tmp_path_factory.mktemp("venvs")
    python = folder / "stub" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return f"--peers-bench {BENCH / 'stub'} --peers-venvs {folder}"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Imports a script, and forgets afterwards what it imported from its folder."""
    monkeypatch.syspath_prepend(str(BENCH))
    names = {path.stem for path in BENCH.glob("*.py")}
    assert not names & sys.modules.keys()
    yield importlib.import_module
    for name in names & sys.modules.keys():
        del sys.modules[name]


def lines_of(text: str) -> list[dict[str, Any]]:
    """JSON lines that hold nothing but names, whole numbers and positive finite numbers."""
    found = [json.loads(line) for line in text.splitlines()]
    assert found
    for record in found:
        assert "error" not in record, record
        for key, value in record.items():
            assert isinstance(value, str | int | float), (key, value)
            if not isinstance(value, str):
                least = 0.0 if key in MAY_BE_ZERO else -1.0 if key in SIGNED else sys.float_info.min
                assert least <= value < math.inf, (key, value)
    return found


@pytest.mark.parametrize("name", OWN_KEYS)
def test_a_benchmark_with_keys_of_its_own_prints_json_lines(name, script, data, capsys):
    script(name).main(SMOKE[name].format(data=data).split())
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    numbers = [x for record in found for x in record.values() if isinstance(x, float)]
    assert numbers
    assert all(math.isfinite(x) for x in numbers)


@pytest.mark.parametrize("name", sorted(SMOKE.keys() - set(OWN_KEYS)))
def test_a_benchmark_prints_json_lines_of_documented_keys(name, script, data, peers, capsys):
    module = script(name)
    module.main(SMOKE[name].format(data=data, peers=peers).split())
    found = lines_of(capsys.readouterr().out)
    known = sys.modules["harness"].known
    for record in found:
        assert all(known(key) for key in record), record
        assert record["bench"] in (name, "ratio")
    assert any(isinstance(value, float) for record in found for value in record.values())


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_benchmark_of_another_environment_prints_a_json_line(name, data, tmp_path):
    python = os.environ.get(ELSEWHERE[name])
    if python is None:
        pytest.skip(f"{ELSEWHERE[name]} names no interpreter that has the package")
    frames = (data / "3bpa" / "train_300K.extxyz").read_text()
    frames = frames.replace("forces:", "REF_forces:").replace(" energy=", " REF_energy=")
    (tmp_path / "train.extxyz").write_text(frames)
    facts = {"e0": {}, "cutoff": 3.0, "sets": ["train"]}
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    command = [python, BENCH / f"{name}.py", "--frames", tmp_path, "--cpu-minutes", "0.001"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    record = json.loads(done.stdout.splitlines()[-1])  # MACE prints lines of its own before
    assert record["steps"] > 0
    assert 0 < record["errors"]["train"]["forces"]["rmse"] < math.inf


def test_every_script_has_a_smoke_run():
    scripts = {p.stem for p in BENCH.glob("*.py") if '__name__ == "__main__"' in p.read_text()}
    assert scripts == SMOKE.keys() | STARTED.keys() | ELSEWHERE.keys()
    for part, whole in STARTED.items():  # what is started is named by what starts it
        started = (BENCH / f"{whole}.py").read_text() + "".join(
            (BENCH / f"{module}.py").read_text() for module in ("harness", "turns")
        )
        assert f"{part}.py" in started


def test_the_page_lists_the_keys_and_the_scripts(script):
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", page, re.MULTILINE))
    assert listed == script("harness").KEYS
    for name in (*SMOKE, *ELSEWHERE):
        assert f"`{name}.py`" in page, name


def test_an_unknown_key_is_refused_where_it_is_printed(script, capsys):
    harness = script("harness")
    harness.emit({"bench": "x", "cpu_ms_q1": 1.0, "ours/mace": 0.5})
    with pytest.raises(AssertionError, match="speed_of_light"):
        harness.emit({"bench": "x", "speed_of_light": 1.0})
    assert json.loads(capsys.readouterr().out) == {"bench": "x", "cpu_ms_q1": 1.0, "ours/mace": 0.5}


def test_a_worker_says_why_it_cannot_and_goes_on(script, data):
    turns = script("turns")
    with pytest.raises(turns.WorkerError, match="peers-venvs"):
        turns.Worker("mace")
    with turns.workers(["ours"]) as running:
        path = data / "3bpa" / "train_300K.extxyz"
        with pytest.raises(turns.WorkerError, match="KeyError"):
            running["ours"].ask("forces", size="no such size", structure=str(path), cutoff=3.0)
        answer = running["ours"].ask("forces", size="64-0", structure=str(path), cutoff=3.0)
        assert answer["atoms"] == 9
        assert len(running["ours"].ask("call", seconds=0)["cpu_ms"]) == 1


def test_quartiles_ratios_and_exponents_are_what_they_say(script):
    turns = script("turns")
    assert turns.quartiles("x", [4.0, 1.0, 2.0, 3.0, 5.0]) == {"x": 3.0, "x_q1": 2.0, "x_q3": 4.0}
    times = {"a": [1.0, 2.0, 9.0], "b": [2.0, 8.0, 9.0]}
    found = turns.ratio(times, "a", "b")
    assert (found["pair"], found["ratio"], found["rounds"]) == ("a/b", 0.25, 3)  # medians: 2 and 8
    assert (found["ratio_q1"], found["ratio_q3"]) == (0.375, 0.75)  # of 0.5, 0.25 and 1
    sizes = [32, 108, 256]
    assert turns.slope(sizes, [3.0 * n**1.5 for n in sizes]) == pytest.approx(1.5, rel=1e-12)


def test_what_a_study_of_calibration_keeps_is_judged_the_same_again(script, tmp_path):
    bench, rng = script("calibration"), np.random.default_rng(0)

    def frames(count: int, number: int, chance: float) -> list[tuple[Any, ...]]:
        numbers = np.array([1, 1, 8])
        values = rng.lognormal(-2, 0.5, (count, 2, 3))
        return [(numbers, s, e, bool(rng.random() < chance), number) for s, e in values]

    campaign = [
        {"bought": frames(6, n, 0.5), "asked": frames(5, n, 1.0), "named": rng.permutation(90)[:5].tolist()}
        for n in (1, 2, 3)
    ]
    bench.keep(tmp_path / "kept" / "toy-4-0.npz", campaign)
    again = bench.kept(tmp_path / "kept" / "toy-4-0.npz")
    for rule in (bench.refitted, bench.before):
        assert bench.judged(again, 4, 0, rule) == bench.judged(campaign, 4, 0, rule)


def test_two_levels_start_within_the_bill_of_one(script):
    bench = script("value_per_cost")
    given = SimpleNamespace(levels=("hf", "pbe"), cpu_s={"hf": 0.4, "pbe": 5.0})
    order = list(range(100))
    bills = {
        two: sum(given.cpu_s[name] * len(own) for name, own in found.items())
        for two in (False, True)
        for found in [bench.started(given, order, bench.PLAN, two=two, in_full=False)]
    }
    assert 0 <= bills[False] - bills[True] < 2 * given.cpu_s["hf"]  # a label may be missed by round-off


def test_labels_to_target_take_what_random_ends_with_and_never_flatter_ours(script):
    module = script("label_efficiency")
    ends = {"random": (0.4, 0.2, 0.3), "dpgen": (0.5, 0.25, 0.35), "calibrated": (0.2, 0.1, 0.15)}
    runs = [
        {"problem": "p", "hard": "hot", "method": method, "seed": seed, "labels": labels,
         "force_rmse_eV_per_A": {"hot": error}}
        for method, last in ends.items()
        for seed, error in enumerate(last)
        for labels, error in ((10, 0.6), (40, error))
    ]  # fmt: skip
    found = list(module.summary(runs, None))
    assert {r["target_eV_per_A"] for r in found if "method" in r} == {0.3}  # the median of random's ends
    ratios = {r["to"]: r for r in found if "to" in r}
    labels = {r["method"]: r["labels_to_target"] for r in found if "method" in r}
    assert labels["random"][0] is None and labels["random"][2] == pytest.approx(40)
    assert ratios["random"]["baseline_unreached"] == 1 and ratios["dpgen"]["baseline_unreached"] == 2
    # what never reached it counts with the 40 labels that it had, as if it had just got there
    at_least = sum(n or 40 for n in labels["dpgen"]) / 3
    ours = sum(labels["calibrated"]) / 3
    assert ratios["dpgen"]["ratio"] == pytest.approx(ours / at_least, rel=0.01)  # labels are rounded
    swap = {"calibrated": "random", "random": "calibrated", "dpgen": "dpgen"}
    worse = [{**r, "method": swap[r["method"]]} for r in runs]
    assert not any("ratio" in r for r in module.summary(worse, None))  # ours never got there: no ratio
