"""Is a store sound? First every byte, then what the bytes say: offsets, codes, identities, references."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alchemy.errors import StoreDamagedError, StoreError
from alchemy.identity import Columns, uids_of_columns
from alchemy.store import files
from alchemy.store.columns import TABLES
from alchemy.store.derived import wrong_in
from alchemy.store.filesystem import FileSystem
from alchemy.store.ids import NOTHING, Sorted, id_texts, pairs, prefixes
from alchemy.store.named import GROUPS, specs_in
from alchemy.store.schema import NULL_CODE, row_count
from alchemy.store.segment import Segment, inspect, offset_path, read_header

if TYPE_CHECKING:
    from alchemy.store.store import Store

_ROWS_AT_ONCE = 10_000


def check(store: Store) -> list[str]:
    """See `Store.check`."""
    problems: list[str] = []
    try:
        entries = sorted(files.list_files(store.fs, store.path, problems))
    except OSError as error:
        raise StoreError(f"{store.path}: cannot read: {error}") from error
    chosen, beyond = files.cover(entries)
    in_use = {one.entry.path for one in chosen}
    owners: dict[str, files.Entry] = {}
    seen: dict[Any, tuple[Path, list[str]]] = {}
    for entry in entries:
        place = _place_on_disk(store.fs, entry.path)
        if place not in seen:  # `store.h5` is a second name, where the disk has such
            seen[place] = entry.path, inspect(store.fs, entry.path)
        first, problems_of_bytes = seen[place]
        found = [text.replace(str(first), str(entry.path)) for text in problems_of_bytes]
        if not found:
            segment = Segment(store.fs, entry.path, verify=False)  # every byte was just read
            found = _place(segment, entry, owners)
            if entry.path in in_use:
                found += [f"{entry.path}: {text}" for text in _inside(segment)]
        problems += found
    if beyond:
        last = chosen[-1].hi if chosen else -1
        problems.append(files.gap_message(store.directory, last, beyond))
    if not problems:
        segments = [Segment(store.fs, one.entry.path, verify=False) for one in chosen]
        ids = np.concatenate([NOTHING, *(_ids(segment, "structures", "uid") for segment in segments)])
        keys = prefixes(ids)
        order = np.argsort(keys)
        for segment in segments:
            problems += _references(segment, ids, Sorted(keys[order], order))
    return problems


def _place_on_disk(fs: FileSystem, path: Path) -> Any:
    """What a file and its second name have in common; the path where it cannot be opened.

    Raises StoreError for a file of a newer format: that is no damage, and a repair would not help.
    """
    try:
        fd = fs.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return path
    try:
        with contextlib.suppress(StoreDamagedError, OSError):
            read_header(fs, fd, path)
        stat = fs.fstat(fd)
        return stat.st_dev, stat.st_ino
    finally:
        fs.close(fd)


def _ids(segment: Segment, table: str, name: str) -> np.ndarray:
    array = segment.get(f"/{table}/{name}")
    return np.zeros((0, 16), "u1") if array is None else array


def _place(segment: Segment, entry: files.Entry, owners: dict[str, files.Entry]) -> list[str]:
    """Is the file the one that belongs under its name?"""
    header, found = segment.header, []
    if header["lo"] < 0 and (header.get("after", -1) >= entry.lo or entry.lo != entry.hi):
        found.append(f"{entry.path}: made after commit {header.get('after')}, so it was renamed or moved")
    if header["lo"] >= 0 and (header["lo"], header["hi"]) != (entry.lo, entry.hi):
        found.append(f"{entry.path}: holds commits {header['lo']} to {header['hi']}, so it was renamed")
    other = owners.setdefault(header["uuid"], entry)
    if other is not entry and (other.lo, other.hi) != (entry.lo, entry.hi):
        found.append(f"{entry.path}: is a copy of {other.path.name}")
    return found


def _inside(segment: Segment) -> Iterator[str]:
    """What a segment says that cannot be."""
    for path in segment.paths():
        if path.startswith("/integrity/") or path.split("/")[1] not in (*TABLES, "commits"):
            continue
        own = offset_path(path)
        if own == path or path.startswith("/commits/rows/"):
            yield from _offsets(segment, path)
    for table, shape in TABLES.items():
        n = row_count(segment, table)
        for column in shape.columns:
            path = f"/{table}/{column.name}"
            if column.kind == "code" and n:
                codes = segment[path]
                known = segment.length(f"/dict/{column.name}")
                if ((codes >= known) & (codes != NULL_CODE)).any():
                    yield f"{path}: a code is not in /dict/{column.name}"
            whole = column.kind in ("atoms", "text") or segment.get(path) is None
            if not whole and segment.length(path) != n:
                yield f"{path}: {segment.length(path)} rows, should be {n}"
    yield from wrong_in(segment)
    yield from _identities(segment)


def _offsets(segment: Segment, path: str) -> Iterator[str]:
    offset = segment[path]
    if len(offset) == 0 or offset[0] != 0 or (np.diff(offset) < 0).any():
        yield f"{path}: offsets do not grow from 0"
        return
    for cut, length in _cut_by(segment, path):
        if length != int(offset[-1]):
            yield f"{cut}: {length} entries, its offsets end at {int(offset[-1])}"


def _cut_by(segment: Segment, path: str) -> Iterator[tuple[str, int]]:
    """The datasets that an array of offsets cuts, and their lengths."""
    for other in segment.paths():
        is_data = not other.startswith("/integrity/") and other != path
        if is_data and other.split("/")[1] == path.split("/")[1] and offset_path(other) == path:
            yield other, segment.length(other)
    if path.startswith("/commits/rows/"):
        table = path.removeprefix("/commits/rows/")
        yield f"/{table}", row_count(segment, table)


def _identities(segment: Segment) -> Iterator[str]:
    """Structures hash to their uids, and have as many atoms as they say."""
    n = row_count(segment, "structures")
    if not n:
        return
    names = ("n_atoms", "offset", "atoms/numbers", "atoms/positions", "cell", "pbc", "charge", "multiplicity")
    sizes, offset, numbers, positions, cells, pbc, *states = (segment[f"/structures/{x}"] for x in names)
    if not np.array_equal(np.diff(offset), sizes):
        yield "/structures/n_atoms: not the numbers of atoms that the offsets say"
        return
    for start in range(0, n, _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, n)
        atoms, rows = slice(int(offset[start]), int(offset[stop])), slice(start, stop)
        boxes = (cells[rows], pbc[rows].astype(bool), *(column[rows] for column in states))
        found = uids_of_columns(Columns(sizes[rows], numbers[atoms], positions[atoms], *boxes))
        stored = segment["/structures/uid"][rows]
        right = np.frombuffer(b"".join(found), "u1").reshape(-1, 16)
        for uid in id_texts(stored[(stored != right).any(axis=1)]):
            yield f"/structures: {uid} is not the uid of what is stored under it"


def _references(segment: Segment, ids: np.ndarray, by_id: Sorted) -> Iterator[str]:
    """Rows that speak of a structure speak of one that is there; `ids` are those of all structures."""
    for table in ("labels", "predictions", "splits"):
        own = _ids(segment, table, "structure_uid")
        there = np.zeros(len(own), bool)
        there[pairs(ids, by_id, own)[0]] = True
        unknown = own[~there]
        for uid in sorted(set(id_texts(unknown)))[:5]:
            yield f"{segment.path}: /{table}/structure_uid: there is no structure {uid}"


def facts(store: Store) -> dict[str, Any]:
    """Size of the store: files, commits, bytes, rows by table, named quantities."""
    chosen = files.cover(files.list_files(store.fs, store.path))[0]
    rows = dict.fromkeys(TABLES, 0)
    size = 0
    named: dict[str, str] = {}
    for one in chosen:
        segment = Segment(store.fs, one.entry.path, verify=False)
        size += segment.header["size"]
        for table in TABLES:
            rows[table] += row_count(segment, table)
        for field in GROUPS:
            named.update({f"{field}/{n}": s.unit for n, s in specs_in(segment, field).items()})
    return {
        "files": len(chosen),
        "commits": chosen[-1].hi + 1 if chosen else 0,
        "bytes": size,
        "rows": rows,
        "named": named,
    }
