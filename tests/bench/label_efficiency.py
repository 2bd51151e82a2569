"""Labels needed to reach a force RMSE: ours against random, DP-GEN's rule and first-come, by replay.

    python tests/bench/label_efficiency.py --data DIR --pools DIR [--problems 3bpa,pdag,urea] > out.jsonl
    python tests/bench/label_efficiency.py --pools DIR --smoke
    python tests/bench/label_efficiency.py --summary out.jsonl

One JSON line per round of every replayed campaign, then per problem the ratio of labels to target between
each method and each baseline, with a bootstrap interval over seeds. The target is an error on the hard part
of the test, by a rule that is fixed before anything runs (--target-rule): the median over seeds of what
random selection ends with, or the largest of the last errors of all runs, which every run reaches; --target
sets a number instead. A baseline that never reaches it counts with its last number of labels, so that the
ratio is an upper bound; where ours never reaches it there is no ratio. A campaign that spends --limit CPU s
ends; the pool is labelled once and costs it nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import emit_own as emit
from harness import machine
from pools import PROBLEMS, problem
from replayed import Begun, Plan, one_thread, replay

OURS, BASELINES = ("calibrated", "lcmd"), ("random", "dpgen", "dpgen-wide", "first_come")
RULES = ("random", "every")

Runs = dict[tuple[str, int], list[tuple[float, float]]]  # method and seed -> (labels, error), ascending


def labels_to_target(curve: Sequence[tuple[float, float]], target: float) -> float:
    """Labels at which the error first falls to the target, between rounds on a power law; inf if never.

    Args:
        curve: (labels, error), labels ascending.
    """
    for (n0, e0), (n1, e1) in itertools.pairwise(curve):
        if e0 <= target:
            return float(n0)
        if e1 <= target:
            share = math.log(e0 / target) / math.log(e0 / e1)
            return math.exp(math.log(n0) + share * math.log(n1 / n0))
    return float(curve[-1][0]) if curve and curve[-1][1] <= target else math.inf


def interval(ours: Sequence[float], theirs: Sequence[float], *, draws: int = 4000) -> tuple[float, float]:
    """90 % bootstrap interval of the ratio of means, both resampled over seeds."""
    rng = np.random.default_rng(0)
    a, b = np.asarray(ours), np.asarray(theirs)
    ratio = a[rng.integers(len(a), size=(draws, len(a)))].mean(1)
    ratio = ratio / b[rng.integers(len(b), size=(draws, len(b)))].mean(1)
    low, high = np.quantile(ratio, [0.05, 0.95])
    return float(low), float(high)


def target_of(runs: Runs, rule: str) -> float:
    """The error that counts, by a rule; the rules are in the module's docstring."""
    if rule == "random" and any(method == "random" for method, _ in runs):
        return float(np.median([curve[-1][1] for (method, _), curve in runs.items() if method == "random"]))
    return max(min(e for _, e in curve) for curve in runs.values())


def summary(
    records: Sequence[Mapping[str, Any]], target: float | None, rule: str = "random"
) -> Iterator[dict[str, Any]]:
    """Labels to target of every run, and ratios between methods."""
    for name in sorted({r["problem"] for r in records}):
        own = [r for r in records if r["problem"] == name]
        runs: Runs = {}
        for r in own:
            point = (r["labels"], r["force_rmse_eV_per_A"][r["hard"]])
            runs.setdefault((r["method"], r["seed"]), []).append(point)
        runs = {key: sorted(curve) for key, curve in runs.items()}
        goal = target if target is not None else target_of(runs, rule)
        reached = {key: labels_to_target(curve, goal) for key, curve in runs.items()}
        methods = sorted({method for method, _ in runs})
        by_method = {m: [n for (method, _), n in sorted(reached.items()) if method == m] for m in methods}
        for method, found in by_method.items():
            yield {
                "bench": "label_efficiency", "problem": name, "method": method, "target_eV_per_A": goal,
                "labels_to_target": [round(n, 1) if math.isfinite(n) else None for n in found],
            }  # fmt: skip
        for ours, theirs in itertools.product(methods, BASELINES):
            if ours in BASELINES or theirs not in by_method:
                continue
            a, b = by_method[ours], by_method[theirs]
            if not all(map(math.isfinite, a)):
                continue
            unreached = sum(map(math.isinf, b))
            last = [curve[-1][0] for (method, _), curve in sorted(runs.items()) if method == theirs]
            b = [n if math.isfinite(n) else least for n, least in zip(b, last, strict=True)]
            low, high = interval(a, b)
            yield {
                "bench": "label_efficiency", "problem": name, "ratio_of": ours, "to": theirs,
                "ratio": float(np.mean(a) / np.mean(b)), "low_90": low, "high_90": high, "seeds": len(a),
                "baseline_unreached": unreached,
            }  # fmt: skip


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--problems", default="3bpa,pdag,urea", help="of " + ", ".join(PROBLEMS))
    parser.add_argument("--methods", default=",".join(OURS + BASELINES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0, help="the seeds are this one and those after it")
    parser.add_argument("--data", type=Path, help="directory of the 3BPA files")
    parser.add_argument("--pools", type=Path, help="where labelled pools are kept")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the pools")
    parser.add_argument("--limit", type=float, default=600.0, help="CPU s of a replayed campaign")
    parser.add_argument("--target-rule", choices=RULES, default="random")
    parser.add_argument("--target", type=float, help="force RMSE on the hard part, eV/Å")
    parser.add_argument("--summary", type=Path, help="only sum up the lines of this file")
    for name, value in vars(Plan()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--smoke", action="store_true", help="seconds: two rounds of a tiny pool")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    if args.summary is not None:
        lines = [json.loads(line) for line in args.summary.read_text(encoding="utf-8").splitlines()]
        for line in summary([r for r in lines if "round" in r], args.target, args.target_rule):
            emit(line)
        return
    one_thread()
    plan = Plan(**{name: getattr(args, name) for name in vars(Plan())})
    if args.smoke:
        plan = Plan(members=2, start=4, per_round=3, rounds=2, steps=3, size="nano", cutoff_A=4.0)
        args.scale, args.seeds = 0.02, 1
        args.problems = "3bpa" if args.data else "pdag"
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.pools or Path(scratch)
        records = []
        for name in args.problems.split(","):
            given = problem(name, folder=folder, data=args.data, scale=args.scale)
            head = {"bench": "label_efficiency", "problem": name, "hard": given.hard}
            head |= {"plan": vars(plan), **machine()}
            begun: Begun = {}
            seeds = range(args.first_seed, args.first_seed + args.seeds)
            for seed, method in itertools.product(seeds, args.methods.split(",")):
                for record in replay(given, method, seed, plan, begun=begun):
                    records.append({**head, "method": method, "seed": seed, **record})
                    print(json.dumps(records[-1]), flush=True)
                    if record["cpu_s"] > args.limit:
                        print(f"{name} {method} {seed}: over {args.limit:g} CPU s", file=sys.stderr)
                        break
        for line in summary(records, args.target, args.target_rule):
            emit(line)


if __name__ == "__main__":
    main()
