"""Radial tables and compiled graphs beside PyTorch, interleaved in one process, one JSON line each.

    python tests/bench/compiled.py --data DIR
    python tests/bench/compiled.py --data DIR --what step --sizes nano,64-0,64-2

DIR holds the folders 3bpa and water_revPBE0-D3. `forces`: energy and forces of 3BPA, Pd-108 and water-192 at
6 Å by the model as it is (`network`), with radial tables (`tables`), and with these in a compiled graph
(`graph`, which gives stresses and features too). `step`: loss and gradients of 3BPA (5 frames, no optimiser)
by PyTorch and by a graph, with --step-systems 3bpa,pd32 of two crystals too, whose forces are made up; with
--les the model has latent charges. C++ kernels are used by all. Graphs are built first, in half a minute to
two each, unless the cache has them. `start`: import, load and first force call, each in a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ours
import torch
from ase import Atoms
from ase.io import write
from edge_sum import systems
from harness import BATCH, SIZES, Record, machine, palladium, split_3bpa
from harness import emit_own as emit

from tace.compiling import made_up
from tace.config import PRESETS, LesConfig
from tace.data import Labelled, collate_samples, make_samples
from tace.graphs import build, graph_path, opened
from tace.io import save_model
from tace.model import Tace
from tace.radial_tables import with_tables
from tace.recorded import recordable
from tace.recording import batch_tensors, weights
from tace.settings import TrainSettings
from tace.training_graphs import TrainingGraph, build_step, difference
from tace.training_route import Route
from tace.validation import Plan

Calls = dict[str, Callable[[], object]]


def in_turns(calls: Calls, *, seconds: float, base: str) -> Record:
    """Median CPU milliseconds of each call, taken in turns, and ratios to `base`."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < 8 or (time.perf_counter() < end and rounds < 200):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if rounds >= 3:
                times[name].append(1e3 * (time.process_time() - start))
        rounds += 1
    medians = {name: statistics.median(found) for name, found in times.items()}
    ratios = {f"{name}/{base}": x / medians[base] for name, x in medians.items() if name != base}
    return {**{f"{name}_ms": x for name, x in medians.items()}, **ratios, "rounds": rounds - 3}


def model_of(size: str, atoms: Atoms, cutoff: float, *, les: bool = False) -> Tace:
    """Random, of a size of the other benchmarks or a preset."""
    sizes: dict[str, Any] = dict(PRESETS[size]) if size in PRESETS else {"L_max": SIZES[size]}
    sizes |= {"les": LesConfig()} if les else {}
    elements = sorted({int(z) for z in atoms.numbers})
    return ours.build(
        elements, cutoff=cutoff, L_max=sizes.pop("L_max"), avg_neighbors=20.0,
        e0=dict.fromkeys(elements, 0.0), sizes=sizes,
    )  # fmt: skip


def forces(size: str, atoms: Atoms, cutoff: float, seconds: float, *, graph: bool) -> Record:
    """The three forms of a force call, or two of them without the graph."""
    model = model_of(size, atoms, cutoff).requires_grad_(False)
    small = [ours.batch(model, [ours.graph(model, a)]) for a in made_up(model.config.elements)]
    start = time.perf_counter()
    tables, accuracy = with_tables(model, small)
    table_s = time.perf_counter() - start
    batch = ours.batch(model, [ours.graph(model, atoms)])
    calls: dict[str, Callable[[], Any]] = {
        "network": lambda: ours.call(model, batch, training=False),
        "tables": lambda: ours.call(tables, batch, training=False),
    }
    built = {}
    if graph:
        both = ours.batch(model, [ours.graph(model, a) for a in made_up(model.config.elements)])
        figures = build(tables, [both, *small])
        call = opened(graph_path(tables, "forces"), figures)
        values = list(weights(recordable(tables)).values())
        calls["graph"] = lambda: call(values, batch_tensors(batch))
        built["build_s"] = figures.seconds
    exact = calls["network"]()[1]
    off = {f"{name}_off_eV_per_A": each()[1] - exact for name, each in calls.items() if name != "network"}
    return {
        "atoms": len(atoms), "edges": 2 * len(batch.pair_i), "intervals": accuracy.intervals,
        "tables_s": table_s, **built,
        **{name: float(x.abs().max()) for name, x in off.items()},
        **in_turns(calls, seconds=seconds, base="network"),
    }  # fmt: skip


def labelled_of(system: str, folder: Path) -> list[Labelled]:
    """What a step is timed on."""
    if system == "3bpa":
        frames = split_3bpa(folder / "3bpa")[0][:BATCH]
        return [Labelled(a, "default", a.get_potential_energy(), a.get_forces()) for a in frames]
    crystals = [palladium(2) for _ in range(2)]
    for n, atoms in enumerate(crystals):
        atoms.rattle(0.05, seed=n)
    return [Labelled(a, "default", 0.0, np.zeros((len(a), 3))) for a in crystals]


def step(size: str, labelled: list[Labelled], seconds: float, *, les: bool) -> Record:
    """Loss and gradients of a training step."""
    model = model_of(size, labelled[0].atoms, ours.CUTOFF_A, les=les)
    samples = make_samples(labelled, model.config)
    plan, settings = Plan.of(model, samples), TrainSettings()
    batch = collate_samples(samples, len(model.config.elements))
    route = Route(model, plan, settings)

    def eager() -> Any:
        return route.gradients(*batch)

    path, figures = build_step(model, plan, settings, batch=batch, eager=eager)
    graph = TrainingGraph(opened(path, figures), model)
    calls: Calls = {
        "pytorch": lambda: route.step(*batch, progress=0.0),
        "graph": lambda: graph(*batch, settings, progress=0.0),
    }
    off = difference(graph(*batch, settings, progress=0.0), eager())
    found = in_turns(calls, seconds=seconds, base="pytorch")
    saved = 1e-3 * (found["pytorch_ms"] - found["graph_ms"])
    pays_after = round(figures.seconds / saved) if saved > 0 else None
    atoms = sum(len(x.atoms) for x in labelled)
    built = {"build_s": figures.seconds, "pays_after_steps": pays_after, "off": off}
    return {"atoms": atoms, "les": les, **built, **found}


FIRST_CALL = """
import sys, time
start = time.perf_counter(), time.process_time()
from ase.io import read
from tace import TaceCalculator
atoms = read(sys.argv[2])
atoms.calc = TaceCalculator(sys.argv[1])
atoms.get_forces()
print(time.perf_counter() - start[0], time.process_time() - start[1], atoms.calc.committee.graphs is not None)
"""


def first_call(size: str, atoms: Atoms, cutoff: float) -> Iterator[Record]:
    """Seconds of a process that imports, loads a file and calls once: a model, and the same compiled."""
    model = model_of(size, atoms, cutoff).requires_grad_(False)
    tables = with_tables(model, [])[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "atoms.xyz", atoms)
        for form, each in (("network", model), ("compiled", tables)):
            save_model(folder / f"{form}.pt", each)
            files = [str(folder / f"{form}.pt"), str(folder / "atoms.xyz")]
            command = [sys.executable, "-c", FIRST_CALL, *files]
            found = [subprocess.check_output(command, text=True).split() for _ in range(4)][1:]
            wall, cpu = (statistics.median(float(x[n]) for x in found) for n in (0, 1))
            yield {"form": form, "graph": found[-1][2] == "True", "wall_s": wall, "cpu_s": cpu}


def records(args: argparse.Namespace) -> Iterator[Record]:
    for size in args.sizes.split(","):
        places = systems(args.data)
        for name, (atoms, cutoff) in places.items():
            if "forces" in args.what and name in args.systems:
                found = forces(size, atoms, cutoff, args.seconds, graph=not args.no_graph)
                yield {"what": "forces", "size": size, "system": name, **found}
        if "step" in args.what:
            for name in args.step_systems.split(","):
                found = step(size, labelled_of(name, args.data), args.seconds, les=args.les)
                yield {"what": "step", "size": size, "system": name, **found}
        if "start" in args.what:
            for found in first_call(size, *places["3bpa"]):
                yield {"what": "start", "size": size, "system": "3bpa", **found}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="directory of 3bpa and water_revPBE0-D3")
    parser.add_argument("--sizes", default="nano,64-0,64-2", help="of " + ", ".join([*PRESETS, *SIZES]))
    parser.add_argument("--what", default="forces,step,start", help="of forces, step, start")
    parser.add_argument("--systems", default="3bpa,pd108,water192", help="of the force calls")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--step-systems", default="3bpa", help="of the training steps: 3bpa, pd32")
    parser.add_argument("--les", action="store_true", help="of training steps: with latent charges")
    parser.add_argument("--no-graph", action="store_true", help="of force calls: tables alone")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    for record in records(args):
        emit({"bench": "compiled", **record, **machine()})


if __name__ == "__main__":
    main()
