"""CPU time of labels to a target error: one level against two, shared by value per cost.

    python tests/bench/value_per_cost.py --pools DIR [--problem urea] > out.jsonl
    python tests/bench/value_per_cost.py --pools DIR --data DIR --smoke

Both campaigns may spend the same CPU seconds on labels at the start and in every round: `single` on the
target alone, `two` on what `ValuePerCost` says, from the costs and correlations of its own labels. The start
of `two` is a few pairs, as many as a correlation needs, and cheap labels for what is left of `single`'s bill;
with `--start-in-full` it is all structures of `single` at both levels, which costs more than `single`'s.
Every label is in the bill. One JSON line per round, then the ratio of label costs on the hard part of the
test at the target: the error that every `single` campaign reaches. The rule does not know what `two` reaches.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from alchemy_policies.calibration import Calibration
from alchemy_policies.fidelity_choice import MIN_PAIRS, Level, Shares, ValuePerCost, force_correlation
from alchemy_policies.selectors import CalibratedError
from harness import emit_own as emit
from harness import machine
from label_efficiency import interval, labels_to_target
from pools import PROBLEMS, Problem, problem
from replayed import (
    THRESHOLD,
    Plan,
    fresh_pairs,
    one_thread,
    refitted,
    scored_pool,
    test_errors,
    train_committee,
)

from alchemy.selection import divide
from tace.committee import Committee
from tace.model import Tace

PLAN = Plan(start=12, per_round=6)


def levels_of(given: Problem, bought: dict[str, list[int]]) -> list[Level]:
    """What the labels bought so far say; no label of the pool that was not bought is looked at."""
    target = given.levels[-1]
    out = []
    for name in given.levels:
        pairs = sorted(set(bought[name]) & set(bought[target]))
        cheap, dear = (
            np.concatenate([given.pool[level][n].forces_eV_per_A for n in pairs]) for level in (name, target)
        )
        rho = 1.0 if name == target else force_correlation(cheap, dear)
        out.append(Level(name, 0, len(bought[name]), given.cpu_s[name], rho, len(pairs)))
    return out


def started(
    given: Problem, order: list[int], plan: Plan, *, two: bool, in_full: bool
) -> dict[str, list[int]]:
    """What is labelled before the first round, by level; the first of `order` in any case."""
    target = given.levels[-1]
    if not two:
        return {target: order[: plan.start]}
    if in_full:
        return {name: list(order[: plan.start]) for name in given.levels}
    pairs = min(MIN_PAIRS, plan.start)
    left = plan.start * given.cpu_s[target] - pairs * sum(given.cpu_s.values())
    cheap = pairs + max(0, int(left / given.cpu_s[given.levels[0]]))
    return {name: order[: cheap if name == given.levels[0] else pairs] for name in given.levels}


def replay_levels(
    given: Problem, *, two: bool, seed: int, plan: Plan, in_full: bool = False
) -> Iterator[dict[str, Any]]:
    """A record per round: labels per level, what they cost, errors at the target."""
    used = given.levels if two else given.levels[-1:]
    target = given.levels[-1]
    shuffled = np.random.default_rng([seed, 1]).permutation(len(given.pool[target])).tolist()
    bought = started(given, shuffled, plan, two=two, in_full=in_full)
    budget = plan.per_round * given.cpu_s[target]
    selector = CalibratedError(threshold_eV_per_A=THRESHOLD)
    calibration, pairs = Calibration.uncalibrated(plan.members), []
    members: list[Tace] = []
    for number in range(1, plan.rounds + 1):
        frames = [given.pool[name][n] for name in used for n in bought[name]]
        members = train_committee(frames, members, number, seed=seed, plan=plan, levels=used)
        committee = Committee(members)
        cost = sum(len(own) * given.cpu_s[name] for name, own in bought.items())
        labels = {name: len(own) for name, own in bought.items()}
        yield {"round": number, "labels": labels, "labels_cpu_s": cost, **test_errors(committee, given)}
        left = [n for n in range(len(given.pool[target])) if n not in set(bought[target])]
        if number == plan.rounds or not left:
            return
        known = sorted({n for own in bought.values() for n in own})
        pool, prediction = scored_pool(given, committee, left, known, calibration=calibration, method="")
        shares = Shares({target: plan.per_round}, budget, "the target alone")
        if two:
            shares = ValuePerCost()(levels_of(given, bought), target=target, budget_cpu_s=budget)
        order = [target, *(name for name in reversed(used) if name != target)]
        seeds = {name: 100 * seed + number + 1000 * n for n, name in enumerate(order)}
        chosen, _ = divide(
            pool, selector, shares.labels, order=order, seeds=seeds, unpaired=shares.unpaired
        )
        place = {uid: n for n, uid in enumerate(pool.uids)}
        at_target = [(place[one.uid], one.why) for one in chosen if target in one.fidelities]
        if at_target:
            pairs += fresh_pairs(given.pool[target], prediction, left, at_target, number)
            calibration = refitted(pairs, plan.members)
        for one in chosen:
            for name in one.fidelities:
                if left[place[one.uid]] not in bought[name]:
                    bought[name].append(left[place[one.uid]])


def main(argv: Sequence[str] | None = None) -> None:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    two_levels = [name for name, (_, levels, _) in PROBLEMS.items() if len(levels) > 1]
    parser.add_argument("--problem", default="urea", choices=two_levels)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, help="directory of the 3BPA files")
    parser.add_argument("--pools", type=Path, help="where labelled pools are kept")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the pool")
    parser.add_argument("--start-in-full", action="store_true", help="the start of `two` at both levels")
    parser.add_argument("--smoke", action="store_true", help="two xTB levels, two rounds")
    for name, value in vars(PLAN).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    args = parser.parse_args(argv)
    one_thread()
    plan = replace(PLAN, **{name: getattr(args, name) for name in vars(PLAN)})
    if args.smoke:
        plan = Plan(members=2, start=9, per_round=3, rounds=2, steps=3, size="nano", cutoff_A=4.0)
        args.scale, args.seeds, args.problem = 0.02, 1, "3bpa-levels"
    with tempfile.TemporaryDirectory() as scratch:
        given = problem(args.problem, folder=args.pools or Path(scratch), data=args.data, scale=args.scale)
    curves: dict[bool, list[list[tuple[float, float]]]] = {False: [], True: []}
    for seed in range(args.seeds):
        for two in (False, True):
            records = list(replay_levels(given, two=two, seed=seed, plan=plan, in_full=args.start_in_full))
            for record in records:
                name = {"problem": given.name, "campaign": "two" if two else "single", "seed": seed}
                print(json.dumps({"bench": "value_per_cost", **name, **record, **machine()}), flush=True)
            errors = [r["force_rmse_eV_per_A"][given.hard] for r in records]
            curves[two].append([(r["labels_cpu_s"], e) for r, e in zip(records, errors, strict=True)])
    goal = max(min(e for _, e in curve) for curve in curves[False])
    cost = {two: [labels_to_target(curve, goal) for curve in own] for two, own in curves.items()}
    reached = sum(math.isfinite(c) for c in cost[True])
    emit({"bench": "value_per_cost", "problem": given.name, "target_eV_per_A": goal, "two_reached": reached})
    if reached == len(cost[True]):
        low, high = interval(cost[True], cost[False])
        ratio = float(np.mean(cost[True]) / np.mean(cost[False]))
        found = {"target_eV_per_A": goal, "ratio": ratio, "low_90": low, "high_90": high}
        emit({"bench": "value_per_cost", "problem": given.name, **found})


if __name__ == "__main__":
    main()
