"""Figures of the store beside ASE's database and extended XYZ, on the same structures in one run.

    python tests/bench/store_figures.py --structures 100000 --peers 5000

CPU seconds of one process, page cache warm; with --wall elapsed seconds as well. Peers are slow, so they may
get fewer structures; figures are per structure. Prints JSON lines and asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import read, write
from harness import emit

from alchemy.identity import label_key, structure_uid
from alchemy.store import LabelRow, SplitRow, Store
from alchemy.training_data import StoreDataset


def frames(n: int) -> list[Atoms]:
    """10 to 100 atoms, energies, forces and stresses."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(n):
        size = int(rng.integers(10, 101))
        atoms = Atoms(
            rng.choice([1, 6, 8, 46], size), rng.normal(size=(size, 3)) * 5, cell=np.eye(3) * 15, pbc=True
        )
        results = {"energy": rng.normal(), "forces": rng.normal(size=(size, 3)), "stress": rng.normal(size=6)}
        atoms.calc = SinglePointCalculator(atoms, **results)
        found.append(atoms)
    return found


def row(atoms: Atoms) -> LabelRow:
    uid, results = structure_uid(atoms), atoms.calc.results
    return LabelRow(
        key=label_key(uid, "pbe", "f" * 32),
        structure_uid=uid,
        fidelity="pbe",
        fingerprint="f" * 32,
        status="ok",
        code="bench",
        energy_eV=results["energy"],
        energy_kind="total",
        forces_eV_per_A=results["forces"],
        stress_eV_per_A3=results["stress"],
        wall_s=0.0,
        cpu_s=0.0,
        created=0.0,
    )


class Clock:
    """Figures by name; a figure is per CPU second, and per elapsed second too with `wall`."""

    def __init__(self, wall: bool) -> None:
        self.wall, self.figures = wall, {}

    def __call__(self, name: str, work: Callable[[], Any], n: int | None = None) -> Any:
        cpu, wall = time.process_time(), time.perf_counter()
        result = work()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        found = {"cpu_s": round(cpu, 6), "wall_s": round(wall, 6)} if self.wall else {"cpu_s": round(cpu, 6)}
        if n is not None:
            found["per_cpu_s"] = round(n / max(cpu, 1e-9))
        self.tell(name, found)
        return result

    def tell(self, name: str, found: dict[str, Any]) -> None:
        """Keep a figure, and print its line."""
        self.figures[name] = found
        emit({"bench": "store_figures", "what": name, **found})


def append_in(store: Store, given: list[Atoms], size: int) -> None:
    for start in range(0, len(given), size):
        chunk = given[start : start + size]
        rows = [row(atoms) for atoms in chunk]
        splits = [SplitRow(r.structure_uid, "train", 0.0) for r in rows]
        store.append(structures=chunk, labels=rows, splits=splits)


def ours(folder: Path, given: list[Atoms], clock: Clock) -> None:
    n = len(given)
    few = given[: min(n, 2000)]
    clock("store: append, 1 a commit", lambda: append_in(Store(folder / "one.h5"), few[:100], 1), 100)
    clock("store: append, 100 a commit", lambda: append_in(Store(folder / "h.h5"), few, 100), len(few))
    store = Store(folder / "store.h5")
    clock("store: append, 1000 a commit, identity included", lambda: append_in(store, given, 1000), n)
    size = sum(p.stat().st_size for p in store.directory.iterdir())
    clock.tell("store: bytes per structure", {"bytes": round(size / n)})
    clock("store: open, commits", lambda: Store(store.path).snapshot())
    clock("store: compact", store.compact, size)
    fresh = Store(store.path)
    view = clock("store: open, compacted", fresh.snapshot)
    text = "fidelity == 'pbe' and max_force > 3 and 'Pd' in elements and n_atoms < 50"
    clock("store: query", lambda: len(view.select(text)), n)
    clock("store: query again", lambda: len(view.select(text)), n)
    clock("store: check", store.check, size)
    dataset = clock("store: dataset", lambda: StoreDataset(store.path))
    rng = np.random.default_rng(1)
    dataset.arrays([0])
    batches = [rng.integers(0, n, 32) for _ in range(200)]
    clock("store: random batches of 32, arrays", lambda: [dataset.arrays(b) for b in batches], 6400)
    clock("store: random batches of 32, frames", lambda: [dataset.__getitems__(b) for b in batches], 6400)
    segments = store.segments(dataset.as_of)
    clock("store: scan of positions and forces", lambda: scan(segments), n)


def scan(segments: list[Any]) -> float:
    names = ("/structures/atoms/positions", "/labels/atoms/forces", "/labels/energy")
    return sum(float(segment[name].sum()) for segment in segments for name in names)


def peers(folder: Path, given: list[Atoms], clock: Clock) -> None:
    n = len(given)
    path = folder / "peer.db"

    def write_db() -> None:
        with connect(str(path)) as database:
            for atoms in given:
                database.write(atoms, fidelity="pbe")

    clock("ASE db: append", write_db, n)
    clock.tell("ASE db: bytes per structure", {"bytes": round(path.stat().st_size / n)})
    database = connect(str(path))
    clock("ASE db: query", lambda: database.count("fidelity=pbe,Pd,natoms<50"), n)
    rng = np.random.default_rng(1)
    chosen = [int(i) for i in rng.integers(1, n + 1, 640)]
    clock("ASE db: random reads", lambda: [database.get(id=i).forces for i in chosen], 640)
    xyz = folder / "peer.xyz"
    clock("extxyz: write", lambda: write(xyz, given), n)
    clock("extxyz: read all", lambda: read(xyz, ":"), n)
    clock.tell("extxyz: bytes per structure", {"bytes": round(xyz.stat().st_size / n)})


def main(argv: Sequence[str] | None = None) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--structures", type=int, default=10_000)
    parser.add_argument("--peers", type=int, default=1000, help="structures that the peers get")
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    parser.add_argument("--wall", action="store_true")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args(argv)
    clock = Clock(args.wall)
    given = frames(args.structures)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        ours(Path(folder), given, clock)
        peers(Path(folder), given[: args.peers], clock)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clock.tell("peak memory", {"MB": round(memory / 1024)})
    if args.json:
        args.json.write_text(json.dumps({"structures": args.structures, **clock.figures}, indent=1))


if __name__ == "__main__":
    main()
