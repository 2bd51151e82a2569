"""Figures of the store beside ASE's database and extended XYZ, on the same structures in one run.

    python tests/bench/store_figures.py --structures 100000 > figures.jsonl

One line of JSON per figure: what, seconds of CPU and elapsed, structures per CPU second, and what the design
asks for on a quiet laptop, where it asks. One process, page cache warm. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from platform import python_version as version
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import read, write

from alchemy.identity import label_keys, structure_uids
from alchemy.store import LabelColumns, LabelRow, SplitRow, Store, StructureColumns
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


def row(atoms: Atoms, uid: str, key: str) -> LabelRow:
    results = atoms.calc.results
    return LabelRow(
        key=key,
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


TARGETS = {  # docs of the design, per elapsed second on a quiet laptop
    "store: append, 1 a commit": "25 ms a commit",
    "store: append, 100 a commit": "4,000/s",
    "store: append, 1000 a commit": "25,000/s",
    "store: append of arrays, 1000 a commit": "25,000/s",
    "store: random batches of 32, arrays": "100,000/s",
    "store: scan of positions, forces and energies": "1,000,000/s",
    "store: bytes per structure": "3,100 bytes",
    "store: open, 32 files or fewer": "100 ms",
    "store: query of four conditions": "150 ms for a million rows, opening included",
    "store: compact": "50 MB/s",
    "store: check": "300 MB/s",
}


def say(name: str, **figures: object) -> None:
    target = {"target": TARGETS[name]} if name in TARGETS else {}
    print(json.dumps({"figure": name, **figures, **target}), flush=True)


def clock(name: str, work: Callable[[], Any], n: int | None = None, *, megabytes: float | None = None) -> Any:
    """What the work returns; its time is said."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    found: dict[str, Any] = {"cpu_s": round(cpu, 4), "wall_s": round(wall, 4)}
    if n is not None:
        found |= {"structures": n, "per_cpu_s": round(n / max(cpu, 1e-9)), "per_wall_s": round(n / wall)}
    if megabytes is not None:
        found |= {"MB": round(megabytes, 1), "MB_per_cpu_s": round(megabytes / cpu)}
    say(name, **found)
    return result


def append_in(store: Store, given: list[Atoms], size: int) -> None:
    for start in range(0, len(given), size):
        chunk = given[start : start + size]
        uids = structure_uids(chunk)
        keys = label_keys(uids, "pbe", "f" * 32)
        rows = [row(*own) for own in zip(chunk, uids, keys, strict=True)]
        splits = [SplitRow(r.structure_uid, "train", 0.0) for r in rows]
        store.append(structures=chunk, labels=rows, splits=splits)


def columns_of(chunk: list[Atoms]) -> dict[str, Any]:
    """What `Store.append` takes, as a program has it that keeps its data in arrays."""
    results = [atoms.calc.results for atoms in chunk]
    structures = StructureColumns(
        np.array([len(atoms) for atoms in chunk]),
        np.concatenate([atoms.numbers for atoms in chunk]),
        np.concatenate([atoms.positions for atoms in chunk]),
        np.array([atoms.cell.array for atoms in chunk]),
        np.array([atoms.pbc for atoms in chunk]),
        part="train",
    )
    labels = LabelColumns(
        "pbe",
        "f" * 32,
        "bench",
        np.array([own["energy"] for own in results]),
        np.concatenate([own["forces"] for own in results]),
        np.array([own["stress"] for own in results]),
    )
    return {"structures": structures, "labels": labels}


def arrays(store: Store, given: list[Atoms]) -> None:
    ready = [columns_of(given[start : start + 1000]) for start in range(0, len(given), 1000)]

    def work() -> None:
        for own in ready:
            store.append(**own)

    clock("store: append of arrays, 1000 a commit", work, len(given))


QUERY = "fidelity == 'pbe' and max_force > 3 and 'Pd' in elements and n_atoms < 50"


def ours(folder: Path, given: list[Atoms]) -> None:
    n = len(given)
    few = given[: min(n, 2000)]
    clock("store: append, 1 a commit", lambda: append_in(Store(folder / "one.h5"), few[:100], 1), 100)
    clock("store: append, 100 a commit", lambda: append_in(Store(folder / "h.h5"), few, 100), len(few))
    arrays(Store(folder / "arrays.h5"), given[:30_000])
    store = Store(folder / "store.h5")
    clock("store: append, 1000 a commit", lambda: append_in(store, given[:30_000], 1000), min(n, 30_000))
    clock("store: open, 32 files or fewer", lambda: Store(store.path).snapshot())
    clock("store: open 30 files and query", lambda: Store(store.path).snapshot().count(QUERY), min(n, 30_000))
    append_in(store, given[30_000:], 1000)
    size = sum(p.stat().st_size for p in store.directory.iterdir())
    say("store: bytes per structure", bytes=round(size / n))
    clock("store: compact", store.compact, megabytes=size / 1e6)
    view = clock("store: open, one file", lambda: Store(store.path).snapshot())
    clock("store: query of four conditions", lambda: view.count(QUERY), n)
    clock("store: query, rows with ten columns", lambda: view.select(QUERY, columns=COLUMNS), n)
    clock("store: check", store.check, megabytes=size / 1e6)
    dataset = clock("store: dataset for training", lambda: StoreDataset(store.path))
    rng = np.random.default_rng(1)
    dataset.arrays([0])
    batches = [rng.integers(0, n, 32) for _ in range(200)]
    clock("store: random batches of 32, arrays", lambda: [dataset.arrays(b) for b in batches], 6400)
    clock("store: random batches of 32, frames", lambda: [dataset.__getitems__(b) for b in batches], 6400)
    segments = store.segments(dataset.as_of)
    clock("store: scan of positions, forces and energies", lambda: scan(segments), n)
    clock("store: the same again", lambda: scan(segments), n)


COLUMNS = ["uid", "formula", "n_atoms", "fidelity", "status"]
COLUMNS += ["energy", "max_force", "split", "volume", "code"]


def scan(segments: list[Any]) -> float:
    names = ("/structures/atoms/positions", "/labels/atoms/forces", "/labels/energy")
    return sum(float(segment[name].sum()) for segment in segments for name in names)


def peers(folder: Path, given: list[Atoms]) -> None:
    n = len(given)
    path = folder / "peer.db"

    def write_db() -> None:
        with connect(str(path)) as database:
            for atoms in given:
                database.write(atoms, fidelity="pbe")

    clock("ASE db: append", write_db, n)
    say("ASE db: bytes per structure", bytes=round(path.stat().st_size / n))
    database = connect(str(path))
    clock("ASE db: count of three conditions", lambda: database.count("fidelity=pbe,Pd,natoms<50"), n)

    def filtered() -> int:
        return sum(1 for _ in database.select("fidelity=pbe,Pd,natoms<50", filter=lambda row: row.fmax > 3))

    clock("ASE db: the query of four conditions", filtered, n)
    rng = np.random.default_rng(1)
    chosen = [int(i) for i in rng.integers(1, n + 1, 640)]
    clock("ASE db: random reads", lambda: [database.get(id=i).forces for i in chosen], 640)
    xyz = folder / "peer.xyz"
    clock("extxyz: write", lambda: write(xyz, given), n)
    clock("extxyz: read all", lambda: read(xyz, ":"), n)
    say("extxyz: bytes per structure", bytes=round(xyz.stat().st_size / n))


def main(argv: Sequence[str] | None = None) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--structures", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    args = parser.parse_args(argv)
    load, n = os.getloadavg()[0], args.structures
    say("machine", cores=os.cpu_count(), load=round(load, 1), structures=n, python=version())
    given = frames(args.structures)
    gc.freeze()  # else the collector goes through millions of the frames' objects within what is measured
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        ours(Path(folder), given)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        say("peak memory of the store and its input", MB=memory >> 10)
        peers(Path(folder), given)


if __name__ == "__main__":
    main()
