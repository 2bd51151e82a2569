"""Train and judge the published benchmarks, each within a budget of CPU minutes.

    python runs/benchmarks/run.py --data ../shared/data --cpu-minutes 4 3bpa acac
    python runs/benchmarks/run.py --data ../shared/data --mace VENV/bin/python 3bpa
    python runs/benchmarks/run.py --table

Without names all of `benchmarks.toml` are run. A benchmark is a run file NAME.yaml, as `tace train` reads
it; `data/…` in it is the folder of --data and `made/…` is beside this script. One thread. The steps
of the schedule are what the budget pays for: a few steps are timed, and the number is written down, so that
an interrupted run goes on exactly where it was. A run that has finished and gets a larger budget starts
another round of the schedule from where it stands. Prints one JSON line per benchmark.

The validation frames choose nothing (the weights are the averaged ones of the last step): "dev".
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts

import judge
import torch
from table import write_table

from tace.balance import with_weights
from tace.data import Labelled, Sample, make_samples
from tace.io import load_model, save_model
from tace.model import Tace
from tace.runfile import RunFile, read_runfile
from tace.runfile_data import RunData, read_run_data
from tace.runfile_model import new_model
from tace.settings import TrainSettings
from tace.train import Trainer, fit

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
BENCH = HERE.parents[1] / "tests" / "bench"
TIMED, WARM = 8, 3  # steps that set the number of steps
PART_FOR_STEPS = 0.93  # of a budget; the rest validates
MARKS = 4  # validations of a round

Record = dict[str, Any]


def benchmarks() -> dict[str, Record]:
    """What `benchmarks.toml` says of each."""
    with (HERE / "benchmarks.toml").open("rb") as file:
        return tomllib.load(file)


def read_benchmark(name: str, entry: Record, data: Path) -> RunFile:
    """The run file with its changes, and with the folder of the data put in."""
    run = read_runfile(HERE / f"{entry.get('config', name)}.yaml", changes=entry.get("set", []))
    return dataclasses.replace(run, plain=with_folder(run.plain, data.resolve()), base=HERE)


def with_folder(value: Any, data: Path) -> Any:
    """Every text that starts with data/ as a path in that folder."""
    if isinstance(value, dict):
        return {k: with_folder(v, data) for k, v in value.items()}
    if isinstance(value, list):
        return [with_folder(v, data) for v in value]
    return str(data / value[5:]) if isinstance(value, str) and value.startswith("data/") else value


# ------------------------------------------------------------------ training within a budget
class Budget:
    """CPU seconds spent and the rounds of the schedule, kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state: Record = {"cpu_s": 0.0, "rounds": [], "history": []}
        if path.exists():
            self.state = json.loads(path.read_text())

    def write(self) -> None:
        temporary = self.path.with_suffix(".part")
        temporary.write_text(json.dumps(self.state))
        temporary.replace(self.path)


def steps_for(
    model: Tace, train: list[Sample], settings: TrainSettings, *, cpu_s: float
) -> tuple[int, float]:
    """Steps that a budget pays for, and CPU seconds of one; the model is left as it was."""
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trial = Trainer(model, train, [], dataclasses.replace(settings, steps=TIMED + WARM))
    times = []
    for _ in range(TIMED + WARM):
        start = time.process_time()
        trial.one_step()
        times.append(time.process_time() - start)
    model.load_state_dict(before)
    cost = sum(times[WARM:]) / TIMED
    return max(MARKS, round(PART_FOR_STEPS * cpu_s / cost)), cost


def trained(run: RunFile, data: RunData, out: Path, *, minutes: float) -> tuple[Tace, Record]:
    """The model after the budget; goes on from whatever is in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    budget, last = Budget(out / "budget.json"), out / "model.pt"
    state = budget.state
    model, _ = new_model(run, data)
    train, valid = (make_samples(part, model.config, data.labels) for part in (data.train, data.valid))
    weighed = with_weights(run.settings, train)
    if last.exists():  # the statistics are those of the first round
        model.load_state_dict(load_model(last).state_dict())
    open_round = bool(state["rounds"]) and not state["rounds"][-1]["done"]
    left = 60 * minutes - state["cpu_s"]
    if not open_round and left < 0.05 * 60 * minutes:
        return model, state
    if not open_round:
        steps, cost = steps_for(model, train, weighed, cpu_s=left)
        state["rounds"].append({"steps": steps, "cpu_s_per_step": cost, "done": False})
        budget.write()
    now = state["rounds"][-1]
    settings = dataclasses.replace(
        weighed, steps=now["steps"], validate_every=max(1, -(-now["steps"] // MARKS))
    )
    spend(model, (train, valid), settings, budget=budget, checkpoint=out / "checkpoint.pt")
    now["done"] = True
    save_model(last, model)
    (out / "checkpoint.pt").unlink(missing_ok=True)
    budget.write()
    return model, state


def spend(
    model: Tace,
    samples: tuple[list[Sample], list[Sample]],
    settings: TrainSettings,
    *,
    budget: Budget,
    checkpoint: Path,
) -> None:
    """One round of the schedule; CPU time counts from here."""
    start, before, every = time.process_time(), budget.state["cpu_s"], max(20, settings.steps // 20)

    def used() -> float:
        return before + time.process_time() - start

    def on_step(step: int, loss: float) -> bool:
        if step % every == 0:
            budget.state["cpu_s"] = used()
            budget.write()
            rate = (used() - before) / step
            print(f"  step {step}/{settings.steps}  loss {loss:.3g}  {rate:.3f} s/step", file=sys.stderr)
        return True

    def on_validation(entry: dict[str, float]) -> None:
        budget.state["history"].append({"cpu_s": round(used(), 1), **entry})

    fit(
        model, *samples, settings=settings, checkpoint=checkpoint, checkpoint_every=every,
        on_step=on_step, on_validation=on_validation,
    )  # fmt: skip
    budget.state["cpu_s"] = used()


# ------------------------------------------------------------------ one benchmark
def sets_of(run: RunFile, data: RunData, tests: dict[str, Any]) -> dict[str, list[Labelled]]:
    """The validation frames and every test set, by name; of several levels each on its own."""
    named = {"dev": data.valid, "test": data.test}
    for name, files in tests.items():
        block = {**run.block("data"), "train": files, "valid": 0}
        block.pop("test", None)
        block.pop("e0_eV", None)
        own = dataclasses.replace(run, plain={**run.plain, "data": block})
        found = read_run_data(own, run.heads, inputs=run.input_names)
        named[name] = [*found.train, *found.test]
    sets: dict[str, list[Labelled]] = {}
    for name, frames in named.items():
        for frame in frames:
            level = f" {frame.fidelity}" if len(data.fidelities) > 1 else ""
            if frame.fidelity in data.fidelities:
                sets.setdefault(name + level, []).append(frame)
    return sets


def benchmark(name: str, entry: Record, args: argparse.Namespace) -> Record:
    """Train, judge and write results/NAME.json."""
    run = read_benchmark(name, entry, args.data)
    data = read_run_data(run, run.heads, inputs=run.input_names)
    out = args.out / name
    sets = sets_of(run, data, with_folder(entry.get("tests", {}), args.data.resolve()))
    minutes = args.cpu_minutes
    peer = start_mace(args.mace, data, sets, out=out, minutes=minutes, run=run) if args.mace else None
    model, state = trained(run, data, out, minutes=minutes)
    record: Record = {
        "benchmark": name,
        "title": entry["title"],
        "config": f"runs/benchmarks/{entry.get('config', name)}.yaml",
        "set": entry.get("set", []),
        "parameters": sum(p.numel() for p in model.parameters()),
        "frames": {"train": len(data.train), **{k: len(v) for k, v in sets.items()}},
        "rounds": state["rounds"],
        "steps": sum(r["steps"] for r in state["rounds"]),
        "cpu_s": round(state["cpu_s"], 1),
        "device": f"cpu, {torch.get_num_threads()} thread, {judge.processor()}",
        "torch": torch.__version__,
        "code": judge.code_hash(),
        "history": state["history"],
        "errors": {key: judge.errors(model, frames, data.labels) for key, frames in sets.items()},
    }
    if peer is not None:
        record["mace"] = read_mace(peer, out)
        record["ratios"] = judge.ratios(record)
    elif (RESULTS / f"{name}.json").exists():  # of an earlier call with --mace
        old = json.loads((RESULTS / f"{name}.json").read_text())
        if "mace" in old:
            record |= {"mace": old["mace"], "ratios": judge.ratios({**record, "mace": old["mace"]})}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


# ------------------------------------------------------------------ MACE beside ours
def start_mace(
    python: Path, data: RunData, sets: dict[str, list[Labelled]], *, out: Path, minutes: float, run: RunFile
) -> subprocess.Popen[str]:
    """Start MACE on the same frames with the same budget; it runs while ours does."""
    folder = out / "frames"
    folder.mkdir(parents=True, exist_ok=True)
    for name, frames in {"train": data.train, **sets}.items():
        judge.write_frames(folder / f"{name.replace(' ', '_')}.extxyz", frames)
    facts = {
        "e0": {str(z): e for own in data.e0_eV.values() for z, e in own.items()},
        "cutoff": run.block("model").get("cutoff_A", 5.0),
        "sets": list(sets),
    }
    (folder / "facts.json").write_text(json.dumps(facts))
    command = [str(python), str(BENCH / "accuracy_mace.py"), "--frames", str(folder),
               "--cpu-minutes", str(minutes), "--batch", str(run.settings.batch_size)]  # fmt: skip
    with (out / "mace.log").open("w") as log:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)


def read_mace(process: subprocess.Popen[str], out: Path) -> Record:
    text, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"MACE failed, see {out / 'mace.log'}")
    found: Record = json.loads(text.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", help="benchmarks; none: all")
    parser.add_argument("--data", type=Path, help="the folder with the published data")
    parser.add_argument("--cpu-minutes", type=float, default=10.0, metavar="M")
    parser.add_argument("--out", type=Path, default=HERE / "out", help="where models and checkpoints go")
    parser.add_argument("--mace", type=Path, metavar="PYTHON", help="train MACE beside it")
    parser.add_argument("--table", action="store_true", help="write the table of docs/accuracy.md")
    args = parser.parse_args()
    known = benchmarks()
    if args.table:
        write_table(known, RESULTS, HERE.parents[1] / "docs" / "accuracy.md")
        return
    if args.data is None or not args.data.is_dir():
        parser.error("--data must be the folder with the published data")
    for name in args.names or known:
        if name not in known:
            parser.error(f"no benchmark '{name}'; there are {', '.join(known)}")
    torch.set_num_threads(1)
    for name in args.names or known:
        print(json.dumps(benchmark(name, known[name], args)), flush=True)


if __name__ == "__main__":
    main()
