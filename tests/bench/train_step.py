"""Time of one training step on 3BPA, one JSON line each.

    python tests/bench/train_step.py --data DIR
    python tests/bench/train_step.py --data DIR --peers-bench DIR --peers-venvs DIR

A batch of 5 frames (135 atoms), already made: forward, forces, backward through the forces, clip,
Adam, average of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ours
import torch
from harness import (
    BATCH,
    E0_3BPA,
    SIZES,
    Record,
    emit,
    machine,
    options,
    parsed,
    peers,
    ratios,
    split_3bpa,
    timed,
)


def alone(size: str, folder: Path | None, seconds: float) -> Record:
    """Our model only."""
    train, _ = split_3bpa(folder)
    training = ours.Training(train, SIZES[size], E0_3BPA)
    frames = train[:BATCH]
    ready = training.prepared(frames, [ours.graph(training.model, a) for a in frames])
    times = timed(lambda: training.step(*ready), seconds=seconds)
    return {"model": "ours", "atoms": sum(map(len, frames)), **times}


def from_peer(r: Record) -> Record:
    """A line of the peers' harness in our words."""
    names = {
        "error": "error", "n_atoms": "atoms", "params": "parameters", "cpu_median_ms": "cpu_ms",
        "cpu_min_ms": "cpu_least_ms", "median_ms": "wall_ms", "reps": "repeats",
        "peak_mib_over_rss": "peak_MiB", "threads": "threads", "torch": "torch",
    }  # fmt: skip
    found = {new: r[old] for old, new in names.items() if old in r}
    return {"bench": "train_step", "model": r["peer"], "size": r["size"], **found, **machine()}


def main(argv: Sequence[str] | None = None) -> None:
    args = parsed(options(__doc__, seconds=6.0), argv)
    if args.peers_bench is None:
        what = {"threads": args.threads, "torch": torch.__version__, **machine()}
        for size in args.sizes:
            found = alone(size, args.data, args.seconds)
            emit({"bench": "train_step", "size": size, **found, **what})
        return
    records = []
    with peers(args) as others:
        # the harness measures a step for twice this long
        extra = ["--batch", BATCH, "--budget-per-point", args.seconds / 2]
        for record in map(from_peer, others.one_by_one("train-step", *extra)):
            emit(record)
            records.append(record)
    ratios(records, value="cpu_ms", by=["size"])


if __name__ == "__main__":
    main()
