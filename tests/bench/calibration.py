"""Do nominal 90 % bounds hold 90 % of fresh forces? Replayed campaigns with committees of 3, 4 and 8.

    python tests/bench/calibration.py --data DIR --pools DIR [--problems 3bpa] > out.jsonl
    python tests/bench/calibration.py --pools DIR --smoke

Each round the calibration that was fitted before is asked about frames that nobody has trained on and that
were drawn blindly from what is left of the pool. One JSON line per campaign, then per committee and element
the share within the bound, pooled over rounds and seeds, with a 90 % interval from resampling frames.
Rounds before the first calibration on random frames (eight of them) are told apart: `rounds` says which.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from harness import emit_own as emit
from harness import machine
from pools import PROBLEMS, problem
from replayed import Plan, one_thread, replay

Probe = Mapping[str, Any]  # of one frame: atoms within the bound and atoms, by atomic number


def covered(probes: Sequence[Probe], number: int | None, *, draws: int = 2000) -> dict[str, Any]:
    """Share of atoms within their bound, all or of one element, and its interval by frame."""
    rows = [
        [sum(own[k] for z, own in probe["covered"].items() if number in (None, z)) for k in range(2)]
        for probe in probes
    ]
    counts = np.array([row for row in rows if row[1] > 0], dtype=float).reshape(-1, 2)
    if not len(counts):
        return {"frames": 0}
    drawn = counts[np.random.default_rng(0).integers(len(counts), size=(draws, len(counts)))].sum(1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.05, 0.95])
    share = counts[:, 0].sum() / counts[:, 1].sum()
    return {"frames": len(counts), "covered": float(share), "low_90": float(low), "high_90": float(high)}


def pooled(probes: Sequence[Probe]) -> Iterator[dict[str, Any]]:
    """One record for all elements, and one for each; early rounds and later ones."""
    for rounds, want in (("before 8 random frames", False), ("later", True)):
        own = [probe for probe in probes if probe["on_random"] is want]
        elements = sorted({z for probe in own for z in probe["covered"]})
        for number in (None, *elements):
            name = "all" if number is None else chemical_symbols[number]
            yield {"rounds": rounds, "element": name, **covered(own, number)}


def main(argv: Sequence[str] | None = None) -> None:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--problems", default="3bpa", help="of " + ", ".join(PROBLEMS))
    parser.add_argument("--committees", default="3,4,8")
    parser.add_argument("--method", default="calibrated")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--probe", type=int, default=20, help="fresh frames per round")
    parser.add_argument("--data", type=Path, help="directory of the 3BPA files")
    parser.add_argument("--pools", type=Path, help="where labelled pools are kept")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the pools")
    for name, value in vars(Plan()).items():
        if name != "members":
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--smoke", action="store_true", help="seconds: three rounds of a tiny pool")
    args = parser.parse_args(argv)
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
                probes: list[Probe] = []
                for seed in range(args.seeds):
                    own = replace(plan, members=members)
                    records = list(replay(given, args.method, seed, own, probe=args.probe))
                    found = list(itertools.chain.from_iterable(r.get("probes", []) for r in records))
                    probes += found
                    head = {"bench": "calibration", "problem": name, "members": members}
                    cost = {"seed": seed, "cpu_s": records[-1]["cpu_s"], **machine()}
                    emit({**head, **cost, **covered(found, None)})
                for record in pooled(probes):
                    emit({**head, **record})


if __name__ == "__main__":
    main()
