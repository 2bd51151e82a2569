"""Energy and forces, and training steps, of our model and of the peers, interleaved; one JSON line each.

    python tests/bench/side_by_side.py --data DIR --peers-bench DIR --peers-venvs DIR

Every model is in a process of its own, all are built first, and then they take turns. `ours` is our model as
it is, `ours-compiled` the same after `tace compile` and `ours-eager` without compiled kernels;
`nequip-compiled` is NequIP by its own compile. Systems: 3BPA (5 Å), Pd-108 (5 Å), water-192 (6 Å); DIR holds
the folders 3bpa and water_revPBE0-D3. With --what step: a training step of 3BPA, batch of 5. Afterwards
`ratio` lines: ours to every peer, eager to eager, and best to best (ours to the fastest of the peers).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from ase.io import read, write
from harness import BATCH, SIZES, Record, described, emit, frames_3bpa, machine, palladium
from turns import Times, Worker, WorkerError, quartiles, ratio, rounds_of, workers


def structures(data: Path | None, names: Sequence[str]) -> dict[str, tuple[Atoms, float]]:
    """Structure and cutoff in Å by name."""
    found: dict[str, tuple[Atoms, float]] = {}
    for name in names:
        if name == "3bpa":
            found[name] = frames_3bpa(data / "3bpa" if data else None)[0], 5.0
        elif name == "water192":
            assert data is not None
            found[name] = read(data / "water_revPBE0-D3" / "dev_80.extxyz.gz", "0"), 6.0
        else:
            found[name] = palladium(round((int(name.removeprefix("pd")) / 4) ** (1 / 3))), 5.0
    return found


def prepared(
    running: Mapping[str, Worker], request: Record, what: Record
) -> Iterator[tuple[str, Record | None]]:
    """What each model says of itself; None, after a line that says why, of one that cannot do it."""
    for name, worker in running.items():
        try:
            yield name, worker.ask(**request)
        except WorkerError as error:
            emit({**what, "model": name, "error": str(error)})
            yield name, None


def pairs(times: Times) -> Iterator[Record]:
    """Ours to every peer, ours without kernels to every peer, and ours to the fastest."""
    peers = [name for name in times if not name.startswith("ours")]
    for mine in (name for name in times if name.startswith("ours")):
        eager = [p for p in peers if mine != "ours-eager" or not p.endswith("-compiled")]
        for peer in eager:
            yield ratio(times, mine, peer)
        if eager:
            fastest = min(eager, key=lambda p: statistics.median(times[p]))
            yield {**ratio(times, mine, fastest), "pair": f"{mine}/fastest peer", "fastest": fastest}


def measured(
    running: Mapping[str, Worker], request: Record, what: Record, args: argparse.Namespace
) -> Iterator[Record]:
    """The records of one row of the table."""
    known = {name: found for name, found in prepared(running, request, what) if found is not None}
    cpu, wall = rounds_of(
        {name: running[name] for name in known}, rounds=args.rounds, seconds=args.seconds
    )
    for name, found in known.items():
        yield {
            **what, "model": name, **found, **quartiles("cpu_ms", cpu[name]),
            "wall_ms": statistics.median(wall[name]), "rounds": args.rounds, **machine(),
        }  # fmt: skip
    for record in pairs(cpu):
        yield {**what, "what": f"{what['what']}: ratio of CPU times", **record}
    for peer in (name for name in known if not name.startswith("ours")):
        mine, other = (known.get(name, {}).get("peak_MiB", 0.0) for name in ("ours", peer))
        if min(mine, other) > 0:  # zero: less than a page
            kind = f"{what['what']}: ratio of peak memories"
            yield {**what, "what": kind, "pair": f"ours/{peer}", "ratio": mine / other}


def requests(args: argparse.Namespace, folder: Path) -> Iterator[tuple[Record, Record]]:
    """What is asked of every model, and what the records say of it."""
    for size in args.sizes.split(","):
        if "forces" in args.what.split(","):
            for name, (atoms, cutoff) in structures(args.data, args.systems.split(",")).items():
                path = folder / f"{name}.xyz"
                bare = Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
                write(path, bare, format="extxyz")
                request = {"do": "forces", "size": size, "structure": str(path), "cutoff": cutoff}
                yield request, {"what": "forces", "size": size, "system": name}
        if "step" in args.what.split(","):
            request = {"do": "step", "size": size, "data": str(args.data / "3bpa"), "frames": BATCH}
            yield request, {"what": "step", "size": size, "system": "3bpa"}


def options(doc: str | None) -> argparse.ArgumentParser:
    parser = described(doc)
    parser.add_argument("--data", type=Path, help="directory of 3bpa and water_revPBE0-D3")
    parser.add_argument("--sizes", default="64-0,64-2", help="of " + ", ".join(SIZES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.4, help="of one turn of one model")
    parser.add_argument("--peers-bench", type=Path, help="directory of common.py and peer_*.py")
    parser.add_argument("--peers-venvs", type=Path, help="directory of one virtual environment per peer")
    return parser


@contextlib.contextmanager
def harness_data(data: Path | None) -> Iterator[Path]:
    """A folder with 3BPA as the peers' harness reads it; their processes find it by BENCH_DATA."""
    with tempfile.TemporaryDirectory() as folder:
        if data is not None:
            write(Path(folder) / "train_300K.xyz", frames_3bpa(data / "3bpa"), format="extxyz")
        before = os.environ.get("BENCH_DATA")
        os.environ["BENCH_DATA"] = folder
        try:
            yield Path(folder)
        finally:
            os.environ.pop("BENCH_DATA")
            if before is not None:
                os.environ["BENCH_DATA"] = before


def main(argv: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--what", default="forces,step")
    parser.add_argument("--systems", default="3bpa,pd108,water192")
    parser.add_argument("--models", default="ours,ours-eager,mace,nequip,tace01,tace02")
    args = parser.parse_args(argv)
    if args.data is None and args.systems != "pd108" and not args.systems.startswith("pd"):
        parser.error("--data is needed for 3bpa and water192")
    common: dict[str, Any] = {"peers_bench": args.peers_bench, "peers_venvs": args.peers_venvs}
    with harness_data(args.data) as folder, workers(args.models.split(","), **common) as running:
        facts = {"bench": "side_by_side", "threads": 1, "torch": torch.__version__}
        for request, what in requests(args, folder):
            for record in measured(running, request, {**facts, **what}, args):
                emit(record)


if __name__ == "__main__":
    main()
