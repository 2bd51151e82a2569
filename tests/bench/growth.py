"""How time and memory of a force call grow with the number of atoms: Pd of 32 to 2048, one JSON line each.

    python tests/bench/growth.py

Energy and forces of one structure, with the compiled kernels (`ours`) and without (`ours-eager`). Every
system is in a process of its own and they take turns; the exponent is of a power law through the medians,
its quartiles those of the single rounds. Memory is `peak_MiB`, that of a call over the one between calls.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from ase.io import write
from harness import SIZES, Record, described, emit, machine, palladium
from turns import Worker, quartiles, rounds_of, slope

LARGE = 256  # atoms from which on the fixed cost of a call is small


def exponents(
    atoms: Sequence[int], times: Sequence[Sequence[float]], memory: Sequence[float]
) -> Iterator[Record]:
    """Of time and of memory, through all systems and through the large ones."""
    for name, least in (("all", 0), (f"from {LARGE} atoms", LARGE)):
        chosen = [n for n, a in enumerate(atoms) if a >= least]
        if len(chosen) < 2:
            continue
        sizes = [atoms[n] for n in chosen]
        by_round = [slope(sizes, [times[n][r] for n in chosen]) for r in range(len(times[0]))]
        middle = slope(sizes, [statistics.median(times[n]) for n in chosen])
        yield {"of": "time", "systems": name, **quartiles("exponent", by_round), "exponent": middle}
        yield {"of": "memory", "systems": name, "exponent": slope(sizes, [memory[n] for n in chosen])}


def ready(
    form: str, size: str, cells: Sequence[int], *, folder: Path
) -> tuple[dict[str, Worker], dict[str, Record]]:
    """A worker per system, and what it says of itself."""
    running, known = {}, {}
    for n in cells:
        atoms = palladium(n)
        path = folder / f"pd{len(atoms)}.xyz"
        write(path, atoms, format="extxyz")
        name = f"pd{len(atoms)}"
        running[name] = Worker(form)
        known[name] = running[name].ask("forces", size=size, structure=str(path), cutoff=5.0)
    return running, known


def records(form: str, size: str, args: argparse.Namespace, folder: Path) -> Iterator[Record]:
    """Those of one form of the model."""
    running, known = ready(form, size, args.cells, folder=folder)
    cpu, wall = rounds_of(running, rounds=args.rounds, seconds=args.seconds)
    closed(running)
    what = {"bench": "growth", "size": size, "model": form, "threads": 1, "torch": torch.__version__}
    for name, found in known.items():
        yield {
            **what, "system": name, **found, **quartiles("cpu_ms", cpu[name]),
            "wall_ms": statistics.median(wall[name]), "rounds": args.rounds,
            "us_per_atom": 1e3 * statistics.median(cpu[name]) / found["atoms"], **machine(),
        }  # fmt: skip
    atoms = [found["atoms"] for found in known.values()]
    memory = [found["peak_MiB"] for found in known.values()]
    for record in exponents(atoms, [cpu[name] for name in known], memory):
        yield {**what, **record}


def closed(running: Mapping[str, Worker]) -> None:
    for worker in running.values():
        worker.close()


def main(argv: Sequence[str] | None = None) -> None:
    parser = described(__doc__)
    parser.add_argument("--sizes", default="64-0,64-2", help="of " + ", ".join(SIZES))
    parser.add_argument("--forms", default="ours,ours-eager")
    parser.add_argument("--cells", default="2,3,4,5,6,7,8", help="edge lengths in cubic cells of 4 atoms")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of one turn of one system")
    args = parser.parse_args(argv)
    args.cells = [int(n) for n in args.cells.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes.split(","):
            for form in args.forms.split(","):
                for record in records(form, size, args, Path(folder)):
                    emit(record)


if __name__ == "__main__":
    main()
