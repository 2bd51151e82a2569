"""Force calls and training steps on one and on two threads, in turns; wall time, one JSON line each.

    python tests/bench/threads.py --data DIR

Wall time of several threads means nothing on a busy machine: read `load1`, and keep only runs where it is
well below the number of cores. `ratio` is that of the wall times, most threads to one.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from ase.io import write
from harness import BATCH, Record, emit, machine
from side_by_side import harness_data, options, structures
from turns import Worker, quartiles, ratio, rounds_of


def work(system: str, data: Path | None, folder: Path) -> Record:
    """What is asked of the workers: a training step, or a force call."""
    if system == "step":
        return {"do": "step", "data": str(data / "3bpa" if data else ""), "frames": BATCH}
    atoms, cutoff = structures(data, [system])[system]
    atoms.calc, path = None, folder / "structure.xyz"
    write(path, atoms, format="extxyz")
    return {"do": "forces", "structure": str(path), "cutoff": cutoff}


def main(argv: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--threads", default="1,2", help="numbers of threads, that of the reference first")
    parser.add_argument("--models", default="ours")
    parser.add_argument("--systems", default="3bpa,pd108,water192,step")
    args = parser.parse_args(argv)
    with harness_data(args.data), tempfile.TemporaryDirectory() as folder:
        for model in args.models.split(","):
            counts = args.threads.split(",")
            peers = {"peers_bench": args.peers_bench, "peers_venvs": args.peers_venvs}
            running = {n: Worker(model, threads=int(n), **peers) for n in counts}
            for size in args.sizes.split(","):
                for system in args.systems.split(","):
                    request = work(system, args.data, Path(folder))
                    for worker in running.values():
                        worker.ask(**request, size=size)
                    cpu, wall = rounds_of(running, rounds=args.rounds, seconds=args.seconds)
                    what = {"bench": "threads", "model": model, "size": size, "system": system}
                    for n in counts:
                        emit({
                            **what, "threads": int(n), **quartiles("wall_ms", wall[n]),
                            "cpu_ms": statistics.median(cpu[n]), "rounds": args.rounds,
                            "torch": torch.__version__, **machine(),
                        })  # fmt: skip
                    for n in counts[1:]:
                        emit({**what, "what": "ratio of wall times", **ratio(wall, n, counts[0])})
            for worker in running.values():
                worker.close()


if __name__ == "__main__":
    main()
