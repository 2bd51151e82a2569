"""Force error on 3BPA after a budget of CPU seconds of training, one JSON line per mark.

    python tests/bench/train_budget.py --data DIR --seconds 100
    python tests/bench/train_budget.py --data DIR --peers-bench DIR --peers-venvs DIR

450 frames to train and 50 to validate, batches of 5, constant learning rate 1e-2, Adam AMSGrad,
clip 10, EMA 0.99, loss energy per atom 1 : forces 10 (a peer uses its own weights). Only training
counts; the error is that of the averaged weights. With peers, all train in turns of 20 seconds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
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
)

MARKS = 4


def alone(size: str, folder: Path | None, seconds: float, threads: int) -> Iterator[Record]:
    """Our model only."""
    train, valid = split_3bpa(folder)
    training = ours.Training(train, SIZES[size], E0_3BPA)
    rng, order, used, steps = np.random.default_rng(0), [], 0.0, 0
    graphs = [ours.graph(training.model, a) for a in train]
    held_out = training.prepared(valid, [ours.graph(training.model, a) for a in valid])
    for mark in range(1, MARKS + 1):
        while used < seconds * mark / MARKS:
            if len(order) < BATCH:
                order = rng.permutation(len(train)).tolist()
            chosen, order = order[:BATCH], order[BATCH:]
            start = time.process_time()
            frames, ready = [train[n] for n in chosen], [graphs[n] for n in chosen]
            training.step(*training.prepared(frames, ready))
            used, steps = used + time.process_time() - start, steps + 1
        yield {
            "bench": "train_budget", "model": "ours", "size": size, "used_s": used, "steps": steps,
            "ms_per_step": 1e3 * used / steps, "F_rmse_meV_per_A": training.force_rmse(*held_out),
            "threads": threads, "torch": torch.__version__, **machine(),
        }  # fmt: skip


def from_peer(r: Record) -> Record:
    """A line of the peers' harness in our words."""
    names = {
        "error": "error", "used_s": "used_s", "steps": "steps", "ms_per_step": "ms_per_step",
        "F_rmse": "F_rmse_meV_per_A", "E_rmse_per_atom": "E_rmse_meV_per_atom",
        "threads": "threads", "torch": "torch", "params": "parameters", "peak_rss_mib": "rss_MiB",
    }  # fmt: skip
    found = {new: r[old] for old, new in names.items() if old in r}
    return {"bench": "train_budget", "model": r["peer"], "size": r["size"], **found, **machine()}


def main() -> None:
    args = parsed(options(__doc__, seconds=100.0))
    if args.peers_bench is None:
        for size in args.sizes:
            for record in alone(size, args.data, args.seconds, args.threads):
                emit(record)
        return
    records = []
    with peers(args) as others:
        for size in args.sizes:
            extra = f"--clock cpu --budget {args.seconds} --n-eval {MARKS} --batch {BATCH}".split()
            for record in map(from_peer, others.in_slices("train-budget", size, *extra)):
                emit(record)
                records.append(record)
    last = {(r["model"], r["size"]): r for r in records}
    ratios(list(last.values()), value="F_rmse_meV_per_A", by=["size"])


if __name__ == "__main__":
    main()
