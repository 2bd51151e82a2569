"""Do nominal 90 % bounds hold 90 % of fresh forces? Replayed campaigns with committees of 3, 4 and 8.

    python tests/bench/calibration.py --data DIR --pools DIR [--problems 3bpa,alloy-20,alloy-200] > out.jsonl
    python tests/bench/calibration.py --again KEPT        # what --keep KEPT left, fitted anew in seconds
    python tests/bench/calibration.py --pools DIR --smoke

Each round the calibration that was fitted before is asked about frames that nobody has trained on and that
were drawn blindly from what is left of the pool. Per problem, committee and element one JSON line: the share
of atoms within the bound, pooled over rounds and seeds, the least and most of single rounds, and a 90 %
interval from resampling frames; a frame that is asked in several rounds or campaigns is one frame. Rounds
before there were eight random frames are told apart: `rounds` says which. `old` is the rule before this one:
errors in proportion to the spread, a frame's worth of mass at infinity, and random frames alone as soon as
there are eight.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from alchemy_policies import calibration as fitting
from alchemy_policies.calibration import Calibration, ElementCalibration, normal_bound
from ase.data import chemical_symbols
from harness import emit_own as emit
from harness import machine
from pools import PROBLEMS, problem
from replayed import ENOUGH, Fresh, Plan, coverage, enough_random, one_thread, refitted, replay

Probe = Mapping[str, Any]  # of one frame: atoms within the bound and atoms, by atomic number
Campaign = list[dict[str, Any]]  # of each round what was bought and what was asked
COLUMNS = ("number", "spread_eV_per_A", "error_eV_per_A")


def covered(probes: Sequence[Probe], number: int | None, *, draws: int = 2000) -> dict[str, Any]:
    """Share of atoms within their bound, all or of one element, and its interval by frame."""
    by_frame: dict[int, np.ndarray] = {}
    by_round: dict[tuple[int, int], np.ndarray] = {}
    for probe in probes:
        own = [v for z, v in probe["covered"].items() if number in (None, z)]
        row = np.array(own).reshape(-1, 2).sum(0)
        if row[1]:
            by_frame[probe["frame"]] = by_frame.get(probe["frame"], 0) + row
            place = (probe.get("seed", 0), probe.get("round", 0))
            by_round[place] = by_round.get(place, 0) + row
    if not by_frame:
        return {"frames": 0}
    counts, rounds = (np.array(list(d.values()), dtype=float) for d in (by_frame, by_round))
    drawn = counts[np.random.default_rng(0).integers(len(counts), size=(draws, len(counts)))].sum(1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.05, 0.95])
    single = rounds[:, 0] / rounds[:, 1]
    return {
        "frames": len(counts), "atoms": int(counts[:, 1].sum()),
        "covered": float(counts[:, 0].sum() / counts[:, 1].sum()),
        "low_90": float(low), "high_90": float(high),
        "least_round": float(single.min()), "most_round": float(single.max()),
    }  # fmt: skip


def pooled(probes: Sequence[Probe]) -> Iterator[dict[str, Any]]:
    """One record for all elements, and one for each; early rounds, later ones, and both."""
    for rounds, wanted in (("before 8 random frames", (False,)), ("later", (True,)), ("all", (False, True))):
        own = [probe for probe in probes if probe["on_random"] in wanted]
        elements = sorted({z for probe in own for z in probe["covered"]})
        for number in (None, *elements):
            name = "all" if number is None else chemical_symbols[number]
            yield {"rounds": rounds, "element": name, **covered(own, number)}


def before(pairs: Sequence[Fresh], members: int) -> Calibration:
    """The rule that ours replaced; kept here to be compared with."""
    chance = [f for f in pairs if f[3]]
    used = chance if len(chance) >= ENOUGH else pairs
    ratio = np.concatenate([f[2] / np.maximum(f[1], fitting.RESOLUTION_eV_per_A) for f in used])
    mass = np.concatenate([np.full(len(f[0]), 1 / len(f[0])) for f in used]) / (len(used) + 1)
    order = np.argsort(ratio)
    place = int(np.searchsorted(np.cumsum(mass[order]), fitting.LEVEL - 1e-12))
    bound = ratio[order][place] if place < len(ratio) else max(normal_bound(members), ratio.max())
    return Calibration({}, ElementCalibration(1.0, float(bound), len(ratio), len(used), pooled=True), "")


def judged(
    campaign: Campaign, members: int, seed: int, rule: Callable[[Sequence[Fresh], int], Calibration]
) -> list[Probe]:
    """What the bounds of a rule, fitted on the rounds before, hold of what each round asked."""
    pairs: list[Fresh] = []
    found: list[Probe] = []
    for number, asked in enumerate(campaign, 1):
        if pairs:
            probes = coverage(
                rule(pairs, members), asked["asked"], asked["named"], enough=enough_random(pairs)
            )
            found += [{**probe, "seed": seed, "round": number} for probe in probes]
        pairs += asked["bought"]
    return found


def keep(path: Path, campaign: Campaign) -> None:
    """Every atom of what was bought and asked, as an npz archive."""
    columns: dict[str, list[Any]] = {name: [] for name in (*COLUMNS, "random", "round", "asked", "frame")}
    for asked in campaign:
        named = [-1] * len(asked["bought"]) + list(asked["named"])
        for place, (frame, name) in enumerate(zip(asked["bought"] + asked["asked"], named, strict=True)):
            values = (*frame, place >= len(asked["bought"]), name)
            for column, value in zip(columns.values(), values, strict=True):
                column.append(np.broadcast_to(value, len(frame[0])))
    sizes = [len(numbers) for numbers in columns["number"]]
    path.parent.mkdir(parents=True, exist_ok=True)
    joined = {name: np.concatenate(column) for name, column in columns.items()}
    np.savez_compressed(path, sizes=np.array(sizes), **joined)


def kept(path: Path) -> Campaign:
    """The inverse of `keep`."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    cuts = np.cumsum(arrays.pop("sizes"))[:-1]
    pieces = {name: np.split(array, cuts) for name, array in arrays.items()}
    rounds = [int(piece[0]) for piece in pieces["round"]]
    campaign: Campaign = [{"bought": [], "asked": [], "named": []} for _ in range(max(rounds))]
    for n, number in enumerate(rounds):
        numbers, spread, error = (pieces[name][n] for name in COLUMNS)
        frame: Fresh = (numbers, spread, error, bool(pieces["random"][n][0]), number)
        asked = bool(pieces["asked"][n][0])
        campaign[number - 1]["asked" if asked else "bought"].append(frame)
        if asked:
            campaign[number - 1]["named"].append(int(pieces["frame"][n][0]))
    return campaign


def report(name: str, members: int, campaigns: Mapping[int, Campaign]) -> None:
    """Lines of a problem and a committee, by both rules."""
    for rule, said in ((refitted, "ours"), (before, "old")):
        probes = [p for seed, one in campaigns.items() for p in judged(one, members, seed, rule)]
        for record in pooled(probes):
            emit({"bench": "calibration", "problem": name, "members": members, "rule": said, **record})


def again(folder: Path) -> None:
    """Judge what `--keep` left; a file is named PROBLEM-MEMBERS-SEED.npz."""
    groups: dict[tuple[str, int], dict[int, Campaign]] = {}
    for path in sorted(folder.glob("*.npz")):
        name, members, seed = path.stem.rsplit("-", 2)
        groups.setdefault((name, int(members)), {})[int(seed)] = kept(path)
    for (name, members), campaigns in groups.items():
        report(name, members, campaigns)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--problems", default="3bpa", help="of " + ", ".join(PROBLEMS))
    parser.add_argument("--committees", default="3,4,8")
    parser.add_argument("--method", default="calibrated")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0, help="for campaigns besides kept ones")
    parser.add_argument("--probe", type=int, default=20, help="fresh frames per round")
    parser.add_argument("--data", type=Path, help="directory of the 3BPA files")
    parser.add_argument("--pools", type=Path, help="where labelled pools are kept")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the pools")
    parser.add_argument("--keep", type=Path, help="folder for what was bought and asked")
    parser.add_argument("--again", type=Path, help="only judge what --keep left in this folder")
    for name, value in vars(Plan()).items():
        if name != "members":
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--smoke", action="store_true", help="seconds: three rounds of a tiny pool")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    if args.again is not None:
        again(args.again)
        return
    one_thread()
    plan = Plan(**{name: getattr(args, name) for name in vars(Plan()) if name != "members"})
    if args.smoke:
        plan = Plan(start=4, per_round=3, rounds=3, steps=3, size="nano", cutoff_A=4.0)
        args.scale, args.seeds, args.committees, args.probe = 0.02, 1, "2,3", 3
        args.problems = "3bpa" if args.data else "pdag"
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.problems.split(","):
            given = problem(name, folder=args.pools or Path(scratch), data=args.data, scale=args.scale)
            for members in map(int, args.committees.split(",")):
                campaigns: dict[int, Campaign] = {}
                for seed in range(args.first_seed, args.first_seed + args.seeds):
                    own = replace(plan, members=members)
                    campaign = replay(given, args.method, seed, own, probe=args.probe)
                    records = list(islice(campaign, plan.rounds - 1))  # the last round asks nothing
                    campaigns[seed] = [r["pairs"] for r in records if "pairs" in r]
                    if args.keep is not None:
                        keep(args.keep / f"{name}-{members}-{seed}.npz", campaigns[seed])
                    cost = {"seed": seed, "cpu_s": records[-1]["cpu_s"], **machine()}
                    emit({"bench": "calibration", "problem": name, "members": members, **cost})
                report(name, members, campaigns)


if __name__ == "__main__":
    main()
