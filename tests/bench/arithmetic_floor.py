"""How far a force call is from the time that its arithmetic alone would take; one JSON line each.

    python tests/bench/arithmetic_floor.py --data DIR

Floating-point operations are those that PyTorch's profiler counts (matrix products, products, sums) in the
form without compiled kernels, which does the same work spelled out, padding of neighbour lists included;
without those of the kernels, which it cannot see, they are at least `gflop_least`.
Their number over the measured peak of float32 matrix products, on one thread, is the floor; `ratio` is the
CPU time of a call over it. DIR holds the folders 3bpa and water_revPBE0-D3.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from ase.io import write
from harness import Record, described, emit, machine
from side_by_side import structures
from turns import quartiles, workers


def gemm_gflops(n: int, repeats: int = 5) -> float:
    """Rate of an n×n×n product in float32, the best of some, 1e9 operations per CPU second."""
    a, b = torch.randn(n, n), torch.randn(n, n)
    out, best = torch.empty(n, n), float("inf")
    for _ in range(repeats):
        start = time.process_time()
        torch.mm(a, b, out=out)
        best = min(best, time.process_time() - start)
    return 2e-9 * n**3 / best


def main(argv: Sequence[str] | None = None) -> None:
    parser = described(__doc__)
    parser.add_argument("--data", type=Path, help="directory of 3bpa and water_revPBE0-D3")
    parser.add_argument("--sizes", default="64-0,64-2")
    parser.add_argument("--systems", default="3bpa,pd108,water192")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.3, help="of one turn")
    parser.add_argument("--gemm", type=int, default=1536, help="edge length of the matrices")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    forms = ["ours", "ours-eager"]
    with tempfile.TemporaryDirectory() as folder, workers(forms) as running:
        for size in args.sizes.split(","):
            for system in args.systems.split(","):
                atoms, cutoff = structures(args.data, [system])[system]
                atoms.calc, path = None, Path(folder) / "structure.xyz"
                write(path, atoms, format="extxyz")
                for worker in running.values():
                    worker.ask("forces", size=size, structure=str(path), cutoff=cutoff)
                gflop, least = (running[form].ask("flops")["gflop"] for form in reversed(forms))
                cpu, peaks = [], []
                for _ in range(args.rounds):
                    cpu.append(statistics.median(running["ours"].ask("call", seconds=args.seconds)["cpu_ms"]))
                    peaks.append(gemm_gflops(args.gemm))
                floor = 1e3 * gflop / max(peaks)
                what: Record = {"bench": "arithmetic_floor", "size": size, "system": system, "model": "ours"}
                emit({
                    **what, "gflop": gflop, "gflop_least": least,
                    "gemm_gflops": max(peaks), "floor_ms": floor,
                    **quartiles("cpu_ms", cpu), **quartiles("ratio", [x / floor for x in cpu]),
                    "rounds": args.rounds, "threads": 1, "torch": torch.__version__, **machine(),
                })  # fmt: skip


if __name__ == "__main__":
    main()
