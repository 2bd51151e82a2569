"""Where the time of a force call and of a training step goes: phases, modules, operators; JSON lines.

    python tests/bench/breakdown.py --data DIR

`phase`: median CPU milliseconds of each part of the work. `module`: CPU time of a forward pass that is spent
in each kind of module, without those inside it. `operator`: PyTorch's profiler, own CPU time, of forward and
backward together; compiled kernels appear under the autograd function that calls them. The profiler and the
hooks make the work slower, so that only shares are given of these. DIR holds the folders 3bpa and
water_revPBE0-D3.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ours
import torch
from harness import BATCH, E0_3BPA, SIZES, Record, described, emit, machine, split_3bpa
from side_by_side import structures
from torch import nn
from torch.profiler import ProfilerActivity, profile

from tace.derivatives import evaluate

Phases = dict[str, Callable[[], Any]]


def phase_times(phases: Phases, *, repeats: int) -> dict[str, float]:
    """Median CPU milliseconds of each phase; called in order, so that one may use the result of the last."""
    times: dict[str, list[float]] = {name: [] for name in phases}
    for repeat in range(repeats + 2):
        for name, phase in phases.items():
            start = time.process_time()
            phase()
            if repeat >= 2:
                times[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(found) for name, found in times.items()}


def module_shares(model: nn.Module, call: Callable[[], object], *, repeats: int) -> dict[str, float]:
    """Share of each class of modules in the CPU time of their forward methods."""
    spent: Counter[str] = Counter()
    open_spans: list[list[float]] = []  # start, and time of the modules inside

    def enter(module: nn.Module, inputs: Any) -> None:
        open_spans.append([time.process_time(), 0.0])

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        start, inside = open_spans.pop()
        taken = time.process_time() - start
        spent[type(module).__name__] += taken - inside
        if open_spans:
            open_spans[-1][1] += taken

    call()
    hooks = []
    for module in model.modules():
        hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    for _ in range(repeats):
        call()
    for hook in hooks:
        hook.remove()
    total = sum(spent.values())
    return {name: value / total for name, value in spent.most_common() if value > 0.005 * total}


def operator_shares(call: Callable[[], object], *, repeats: int) -> Iterator[Record]:
    """The operators with the largest own CPU time."""
    call()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(repeats):
            call()
    events = found.key_averages()
    total = sum(e.self_cpu_time_total for e in events)
    for event in sorted(events, key=lambda e: -e.self_cpu_time_total)[:15]:
        share = event.self_cpu_time_total / total
        yield {"name": event.key, "share": share, "calls": event.count / repeats}
    yield {"name": "all", "share": 1.0, "calls": sum(e.count for e in events) / repeats}


def of_forces(size: str, system: str, args: argparse.Namespace) -> Iterator[Record]:
    """A force call."""
    atoms, cutoff = structures(args.data, [system])[system]
    elements = sorted({int(z) for z in atoms.numbers})
    model = ours.build(
        elements, cutoff=cutoff, L_max=SIZES[size], avg_neighbors=20.0, e0=dict.fromkeys(elements, 0.0)
    )
    model.requires_grad_(False)
    graph = ours.graph(model, atoms)
    batch = ours.batch(model, [graph])

    def whole() -> object:
        return ours.call(model, batch, training=False)

    times = phase_times(
        {
            "neighbour list": lambda: ours.graph(model, atoms),
            "batch": lambda: ours.batch(model, [graph]),
            "energies": lambda: evaluate(model, batch, forces=False),
            "energies and forces": whole,
        },
        repeats=args.repeats,
    )
    yield from ({"by": "phase", "name": name, "cpu_ms": value} for name, value in times.items())
    shares = module_shares(model, whole, repeats=args.repeats)
    yield from ({"by": "module", "name": name, "share": value} for name, value in shares.items())
    yield from ({"by": "operator", **r} for r in operator_shares(whole, repeats=args.repeats))


def of_step(size: str, args: argparse.Namespace) -> Iterator[Record]:
    """A training step of 3BPA, batch of 5."""
    train, _ = split_3bpa(args.data / "3bpa" if args.data else None)
    training = ours.Training(train, SIZES[size], E0_3BPA)
    frames = train[:BATCH]
    graphs = [ours.graph(training.model, a) for a in frames]
    ready = training.prepared(frames, graphs)
    kept: dict[str, Any] = {}
    times = phase_times(
        {
            "batch": lambda: training.prepared(frames, graphs),
            "zero": lambda: training.optimizer.zero_grad(set_to_none=True),
            "energies": lambda: evaluate(training.model, ready[0], forces=False),
            "energies, forces and loss": lambda: kept.update(loss=training.loss(*ready)),
            "backward": lambda: kept.pop("loss").backward(),
            "clip and Adam": lambda: training.optimizer.step(),
            "average": training.follow,
            "step": lambda: training.step(*ready),
        },
        repeats=args.repeats,
    )
    yield from ({"by": "phase", "name": name, "cpu_ms": value} for name, value in times.items())
    operators = operator_shares(lambda: training.step(*ready), repeats=args.repeats)
    yield from ({"by": "operator", **r} for r in operators)


def main(argv: Sequence[str] | None = None) -> None:
    parser = described(__doc__)
    parser.add_argument("--data", type=Path, help="directory of 3bpa and water_revPBE0-D3")
    parser.add_argument("--sizes", default="64-0,64-2", help="of " + ", ".join(SIZES))
    parser.add_argument("--systems", default="3bpa,pd108,step", help="step: a training step")
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    for size in args.sizes.split(","):
        for system in args.systems.split(","):
            what = {"bench": "breakdown", "size": size, "system": system}
            found = of_step(size, args) if system == "step" else of_forces(size, system, args)
            for record in found:
                emit({**what, **record, "threads": 1, "torch": torch.__version__, **machine()})


if __name__ == "__main__":
    main()
