"""Force error on 3BPA after a budget of CPU seconds of training, one JSON line per mark.

    python tests/bench/train_budget.py --data DIR --seconds 100
    python tests/bench/train_budget.py --data DIR --peers-bench DIR --peers-venvs DIR

450 frames to train and 50 to validate, batches of 5, learning rate 1e-2 (constant, or falling linearly with
the time used to 1 % of it: --schedule), Adam AMSGrad, clip 10, EMA 0.99, loss energy per atom 1 : forces 10
(a peer uses its own weights). Only training counts; the error is that of the averaged weights, after each of
--marks equal parts of the time. With peers, all train in turns of 20 seconds. Every seed is a training anew;
the last lines are the medians over the seeds and their ratios.

    python tests/bench/train_budget.py ... --models mace,ours --seconds 300 --marks 3 --seeds 0,1,2
    python tests/bench/train_budget.py ... --models mace,ours --seconds 300 --marks 1 --schedule linear
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence

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

LEAST_RATE = 0.01  # of the linear schedule, as in the peers' harness


def alone(size: str, seed: int, args: argparse.Namespace) -> Iterator[Record]:
    """Our model only."""
    train, valid = split_3bpa(args.data)
    training = ours.Training(train, SIZES[size], E0_3BPA, seed=seed)
    rng, order, used, steps = np.random.default_rng(seed), [], 0.0, 0
    graphs = [ours.graph(training.model, a) for a in train]
    held_out = training.prepared(valid, [ours.graph(training.model, a) for a in valid])
    for mark in range(1, args.marks + 1):
        while used < args.seconds * mark / args.marks:
            if len(order) < BATCH:
                order = rng.permutation(len(train)).tolist()
            chosen, order = order[:BATCH], order[BATCH:]
            start = time.process_time()
            if args.schedule == "linear":
                training.at_rate(max(LEAST_RATE, 1.0 - used / args.seconds))
            frames, ready = [train[n] for n in chosen], [graphs[n] for n in chosen]
            training.step(*training.prepared(frames, ready))
            used, steps = used + time.process_time() - start, steps + 1
        yield {
            "bench": "train_budget", "model": "ours", "size": size, "schedule": args.schedule, "seed": seed,
            "mark_s": args.seconds * mark / args.marks, "used_s": used, "steps": steps,
            "ms_per_step": 1e3 * used / steps, "F_rmse_meV_per_A": training.force_rmse(*held_out),
            "threads": args.threads, "torch": torch.__version__, **machine(),
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


def together(size: str, seed: int, args: argparse.Namespace) -> Iterator[Record]:
    """Our model and the peers, in turns."""
    extra = f"--clock cpu --budget {args.seconds} --n-eval {args.marks} --batch {BATCH} --seed {seed}".split()
    extra += ["--lr-schedule", "linear" if args.schedule == "linear" else "const"]
    with peers(args) as others:
        marks: dict[str, int] = {}
        for record in map(from_peer, others.in_slices("train-budget", size, *extra)):
            n = marks[record["model"]] = marks.get(record["model"], 0) + 1
            yield {
                **record, "schedule": args.schedule, "seed": seed, "mark_s": args.seconds * n / args.marks
            }  # fmt: skip


def medians(records: Sequence[Record]) -> list[Record]:
    """Over the seeds, of every model, size and mark."""
    groups: dict[tuple[str, str, float], list[float]] = {}
    for r in records:
        if "F_rmse_meV_per_A" in r:
            groups.setdefault((r["model"], r["size"], r["mark_s"]), []).append(r["F_rmse_meV_per_A"])
    return [
        {
            "bench": "train_budget", "what": "median of the seeds", "model": model, "size": size,
            "mark_s": mark, "schedule": records[0]["schedule"],
            "F_rmse_meV_per_A": statistics.median(found), "seeds": len(found),
        }
        for (model, size, mark), found in groups.items()
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = options(__doc__, seconds=100.0)
    parser.add_argument("--marks", type=int, default=4, help="evaluations, evenly over the time")
    parser.add_argument("--schedule", choices=("constant", "linear"), default="constant")
    parser.add_argument("--seeds", default="0")
    args = parsed(parser, argv)
    records = []
    for size in args.sizes:
        for seed in map(int, args.seeds.split(",")):
            for record in (alone if args.peers_bench is None else together)(size, seed, args):
                emit(record)
                records.append(record)
    found = medians(records)
    for record in found:
        emit(record)
    ratios(found, value="F_rmse_meV_per_A", by=["size", "mark_s", "schedule"])


if __name__ == "__main__":
    main()
