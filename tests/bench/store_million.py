"""A query of a million rows, opening included: one file and 32, made up column by column.

    python tests/bench/store_million.py --rows 1000000 --files 1

One line of JSON: milliseconds of CPU and elapsed, best of three, and the memory of the process before and
after, mapped pages included. The rows are laid down as a compaction would; their atoms are few, as no query
reads them.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alchemy.store import Store, files
from alchemy.store.columns import TABLES
from alchemy.store.derived import of_labels, of_merged
from alchemy.store.layout import Dataset, Image
from alchemy.store.merge import Commits, commit_datasets
from alchemy.store.schema import fixed_strings

QUERY = "fidelity == 'pbe' and max_force > 3 and 'Pd' in elements and n_atoms < 100"
TEXTS = {
    "fidelity": ["pbe", "gfn2", "ccsd"],
    "formula": [f"H{i + 2}Pd" for i in range(500)],
    **{name: ["x"] for name in ("fingerprint", "code", "energy_kind", "part")},
    "status": ["ok"],
}


def columns(n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Every column of n labelled structures of 2 to 4 atoms that claim to have 10 to 200."""
    offset = np.concatenate([[0], np.cumsum(rng.integers(2, 5, n))]).astype("<i8")
    atoms, uid = int(offset[-1]), np.frombuffer(rng.bytes(16 * n), "u1").reshape(-1, 16)
    key = np.frombuffer(rng.bytes(16 * n), "u1").reshape(-1, 16)
    masks = np.zeros((n, 2), "<u8")
    masks[:, 0] = np.where(rng.random(n) < 0.3, np.uint64(1 << 46), np.uint64(1 << 8)) | np.uint64(2)
    own = {
        "/structures/uid": uid,
        "/structures/canon_uid": uid,
        "/structures/n_atoms": rng.integers(10, 200, n).astype("<i4"),
        "/structures/elements": masks,
        "/labels/uid": key,
        "/labels/structure_uid": uid,
        "/labels/energy": rng.normal(size=n),
        "/splits/structure_uid": uid,
    }
    for table in ("structures", "labels", "splits"):
        for column in TABLES[table].columns:
            path = f"/{table}/{column.name}"
            if column.kind == "atoms":
                own[f"/{table}/offset"] = offset
                values = rng.normal(size=(atoms, *column.tail))
                own[f"/{table}/atoms/{column.name}"] = values.astype(column.dtype)
            elif column.kind == "code":
                own[path] = rng.integers(0, len(TEXTS[column.name]), n).astype("<u4")
            elif path not in own:
                own[path] = np.zeros((n, *column.tail), column.dtype)
    return own


def make(path: Path, n: int, parts: int) -> None:
    """A store of so many merged files of one commit each."""
    rng, store = np.random.default_rng(0), Store(path)
    store.make_directory()
    for number in range(parts):
        own = columns(n // parts, rng)
        datasets = {name: Dataset(array, "1", "made up") for name, array in own.items()}
        for name, texts in TEXTS.items():
            words = fixed_strings({text: i for i, text in enumerate(texts)})
            datasets[f"/dict/{name}"] = Dataset(words, "1", "made up")
        datasets |= of_labels(own["/labels/offset"], own["/labels/atoms/forces"])
        datasets |= of_merged({p: a for p, a in own.items() if p.endswith("uid") and "canon" not in p})
        filled = ("structures", "labels", "splits")
        rows = {table: np.array([0, n // parts if table in filled else 0]) for table in TABLES}
        uuid = np.frombuffer(rng.bytes(16), "u1").reshape(1, 16)
        commit = Commits(np.array([number]), uuid, np.zeros(1), np.array([b"bench"]), rows)
        image = Image({**datasets, **commit_datasets([commit])}, kind="merged", lo=number, hi=number)
        os.rename(store.write_temporary(image), files.merged_path(store.directory, number, number))


def memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def main(argv: Sequence[str] | None = None) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "store.h5"
        if not (child := os.fork()):  # its memory is not that of the query
            make(path, args.rows, args.files)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        before, times = memory(), []
        for _ in range(3):
            cpu, wall = time.process_time(), time.perf_counter()
            matched = Store(path).snapshot().count(QUERY)
            times.append((1e3 * (time.process_time() - cpu), 1e3 * (time.perf_counter() - wall)))
        cpu_ms, wall_ms = (round(min(own), 1) for own in zip(*times, strict=True))
        found = {"rows": args.rows, "files": args.files, "matched": matched}
        found |= {"cpu_ms": cpu_ms, "wall_ms": wall_ms, "memory_MB": [before, memory()]}
        print(json.dumps({**found, "load": round(os.getloadavg()[0], 1)}))


if __name__ == "__main__":
    main()
