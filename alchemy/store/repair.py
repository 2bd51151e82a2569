"""Saving what is sound from a damaged store.

Nothing is edited: a damaged file moves to `store.h5.d/quarantine/` and a new one with its good rows takes its
name. A row is good when every 64 KiB block that it touches matches its checksum. A label whose retraction is
lost comes back. Where the header or the
index is lost, libhdf5 finds the datasets. Commits that are missing become empty ones.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from alchemy.errors import StoreDamagedError, StoreError
from alchemy.store import files
from alchemy.store import filesystem as disk
from alchemy.store.check import check
from alchemy.store.columns import TABLES
from alchemy.store.derived import is_derived
from alchemy.store.ids import id_texts
from alchemy.store.layout import BLOCK, USER_BLOCK, Image
from alchemy.store.merge import Commits, commit_datasets, commits_in
from alchemy.store.named import specs_in
from alchemy.store.rows import Batch, PropertySpec
from alchemy.store.schema import decode, encode, row_count
from alchemy.store.segment import Segment, inspect, offset_path, unpack_header

if TYPE_CHECKING:
    from alchemy.store.store import Store

QUARANTINE = "quarantine"


@dataclass
class Repair:
    """What a repair found and did; uids and keys only where they could still be read."""

    replaced: list[str] = field(default_factory=list)
    saved_rows: int = 0
    lost_rows: int = 0
    lost_structures: list[str] = field(default_factory=list)
    lost_labels: list[str] = field(default_factory=list)
    lost_commits: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    report: str = ""


class Wreck(Segment):
    """A damaged file: what can be read of it, and which rows are sound."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path, self._data, self.derived = path, data, {}
        self._unverified, self._verified = False, set()
        try:
            self.header = unpack_header(data[:USER_BLOCK], path)
            offset, length, _ = self.header["index"]
            self._index = json.loads(data[offset : offset + length])
            self._index = {p: e for p, e in self._index.items() if self._fits(e)}
        except (StoreDamagedError, ValueError, TypeError, AttributeError):
            self.header = {"lo": -1, "hi": -1, "time": 0.0, "by": "", "uuid": "0" * 32}
            self._index = self._from_hdf5()

    def _fits(self, entry: Sequence[Any]) -> bool:
        dtype, shape, offset = entry
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        return offset >= 0 and offset + size <= len(self._data)

    def _from_hdf5(self) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}

        def visit(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                entry = [item.dtype.str, list(item.shape), item.id.get_offset() or 0]
                if self._fits(entry):
                    found[f"/{name}"] = entry

        try:
            with h5py.File(io.BytesIO(self._data), "r") as file:
                file.visititems(visit)
        except (OSError, RuntimeError, KeyError, ValueError):
            return {}
        return found

    def good_rows(self, table: str) -> np.ndarray:
        """Mask of the rows of a table of which every byte is as it was written."""
        paths = [p for p in self._index if p.split("/")[1] == table and not is_derived(p)]
        good = np.ones(row_count(self, table), bool)
        needed = [c.name for c in TABLES[table].columns if c.since == "1.0" and c.kind != "atoms"]
        if any(f"/{table}/{name}" not in self._index for name in needed):
            return np.zeros(len(good), bool)
        for column in TABLES[table].columns:
            if column.kind == "code" and self._touched(f"/dict/{column.name}"):
                return np.zeros(len(good), bool)
        if self._touched("/quantities") or any(f"/integrity{p}" not in self._index for p in paths):
            return np.zeros(len(good), bool)
        for path in paths:
            good &= self._good(path, len(good))
        return good

    def _touched(self, path: str) -> bool:
        return path in self._index and bool(self.bad_blocks(path))

    def _good(self, path: str, n: int) -> np.ndarray:
        """Rows of which a dataset has no damaged byte."""
        good = np.ones(n, bool)
        bad = self.bad_blocks(path)
        if not bad:
            return good
        own = offset_path(path)
        array = self._raw(path)
        per_row = array.nbytes // max(len(array), 1)
        first = np.arange(n, dtype=np.int64)
        last = first + 1
        if own == path:  # an offset counts for the rows on both its sides
            last = last + 1
        elif own in self._index:
            offset = np.clip(self._raw(own), 0, len(array))
            first, last = offset[:-1], offset[1:]
        for block in bad:
            lo, hi = block * BLOCK, (block + 1) * BLOCK
            good &= ~((first * per_row < hi) & (last * per_row > lo))
        return good


def repair(store: Store) -> Repair:
    """Replace damaged files by what is sound in them and fill gaps, so that the store can be read again.

    Raises:
        StoreError: the disk refuses, or a file is of a newer alchemy; nothing is lost by that.
    """
    result = Repair()
    try:
        _damaged_files(store, result)
        _damaged_base(store, result)
        _fill_gaps(store, result)
        if result.replaced or result.lost_commits:
            _drop_orphans(store, result)
            _report(store, result)
    except OSError as error:
        raise StoreError(f"{store.directory}: cannot repair: {error}; nothing is lost") from error
    result.notes += [f"still wrong: {problem}" for problem in check(store)]
    return result


def _damaged_files(store: Store, result: Repair) -> None:
    entries = files.list_files(store.fs, store.path, [])
    entries.sort(key=lambda e: (e.path == store.path, e.lo, e.hi))  # the base is a second name
    damaged = [entry for entry in entries if inspect(store.fs, entry.path)]
    sound = [entry for entry in entries if entry not in damaged]
    for entry in damaged:
        held = {n for e in sound for n in range(e.lo, e.hi + 1)}
        if held >= set(range(entry.lo, entry.hi + 1)):
            _bury(store, entry.path, result)
        else:
            _replace(store, entry, result)
            sound.append(entry)


def _bury(store: Store, path: Path, result: Repair) -> None:
    """Move a damaged file away of which other files hold every commit."""
    grave = store.directory / QUARANTINE
    store.make_directory()
    store.fs.makedirs(grave, exist_ok=True)
    store.fs.replace(path, grave / f"{int(time.time())}-{os.urandom(4).hex()}-{path.name}")
    store.sync_names()
    result.replaced.append(path.name)
    result.notes.append(f"{path.name}: damaged and not needed, other files hold its commits")


def _contents(store: Store, path: Path) -> bytes:
    fd = store.fs.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return disk.read_all(store.fs, fd, store.fs.fstat(fd).st_size)
    finally:
        store.fs.close(fd)


def _replace(store: Store, entry: files.Entry, result: Repair) -> None:
    wreck = Wreck(entry.path, _contents(store, entry.path))
    batch, commits = _salvage(wreck, entry, result)
    _write(store, batch, commits, entry)
    result.replaced.append(entry.path.name)


def _salvage(wreck: Wreck, entry: files.Entry, result: Repair) -> tuple[Batch, Commits]:
    """The good rows of a file and, for each of its commits, how many there are."""
    found: dict[str, list[Any]] = {}
    starts: dict[str, np.ndarray] = {}
    numbers = np.arange(entry.lo, entry.hi + 1)
    known = commits_in(wreck, entry.lo) if not wreck._touched("/commits/seq") else None
    fits = known is not None and np.array_equal(known.seq, numbers)
    for table in TABLES:
        n = row_count(wreck, table)
        good = wreck.good_rows(table) if n else np.zeros(0, bool)
        try:
            found[table] = decode(wreck, table, np.flatnonzero(good)) if good.any() else []
        except (StoreError, ValueError, IndexError, KeyError):
            good, found[table] = np.zeros(n, bool), []
        result.saved_rows += int(good.sum())
        result.lost_rows += n - int(good.sum())
        _name_lost(wreck, table, ~good, result)
        path = f"/commits/rows/{table}"
        if known is not None and fits and not wreck._touched(path):
            old = np.clip(known.rows[table], 0, n)
            starts[table] = np.concatenate([[0], np.cumsum(good)])[old]
        else:  # which commit they came with is lost: all with the first
            starts[table] = np.array([0] + [len(found[table])] * len(numbers))
    if known is None or not fits:
        blank = np.zeros((len(numbers), 16), "u1")
        blank[:, :8] = numbers.astype(">u8").view("u1").reshape(-1, 8)
        known = Commits(numbers, blank, np.zeros(len(numbers)), np.array([b"repair"] * len(numbers)), starts)
    return Batch(**found, declared=_declared(wreck)), known._replace(rows=starts)


def _declared(wreck: Wreck) -> dict[str, PropertySpec]:
    try:
        return {} if wreck._touched("/quantities") else specs_in(wreck, "properties")
    except (StoreError, ValueError):
        return {}


def _name_lost(wreck: Wreck, table: str, lost: np.ndarray, result: Repair) -> None:
    if table not in ("structures", "labels") or not lost.any():
        return
    path = f"/{table}/uid"
    if path in wreck.paths():
        readable = lost & wreck._good(path, len(lost))
        names = id_texts(wreck._raw(path)[readable])
        (result.lost_structures if table == "structures" else result.lost_labels).extend(names)


def _write(store: Store, batch: Batch, commits: Commits, entry: files.Entry) -> None:
    """Put a new file under the name of a damaged one, which moves to the quarantine; never a gap between."""
    datasets = encode(batch)
    datasets |= commit_datasets([commits])
    image = Image(datasets, kind="repaired", lo=entry.lo, hi=entry.hi)
    store.make_directory()
    temporary = store.write_temporary(image)
    try:
        grave = store.directory / QUARANTINE
        store.fs.makedirs(grave, exist_ok=True)
        kept = grave / f"{int(time.time())}-{os.urandom(4).hex()}-{entry.path.name}"
        try:
            store.fs.link(entry.path, kept)
        except FileNotFoundError:
            pass  # a gap: there is nothing to keep
        except OSError as error:
            if error.errno not in disk.NO_LINKS:
                raise
            data = _contents(store, entry.path)
            disk.write_file(store.fs, kept, [(0, data)], size=len(data), fsync=True)
        disk.sync_directory(store.fs, grave)
        store.fs.replace(temporary, entry.path)
        store.sync_names()
    finally:
        disk.remove(store.fs, temporary)


def _damaged_base(store: Store, result: Repair) -> None:
    """A `store.h5` without readable header: it may be a second name, or hold what nothing else does."""
    problems: list[str] = []
    entries = files.list_files(store.fs, store.path, problems)
    if not problems:
        return
    wreck = Wreck(store.path, _contents(store, store.path))
    seq = None if wreck._touched("/commits/seq") else wreck.get("/commits/seq")
    chosen, beyond = files.cover(entries)
    last = chosen[-1].hi if chosen else -1
    hi = int(seq[-1]) if seq is not None else min((e.lo for e in beyond), default=max(last, 0) + 1) - 1
    if hi > last:
        _replace(store, files.Entry(0, hi, store.path, store.path.name), result)
    else:
        _bury(store, store.path, result)


def _fill_gaps(store: Store, result: Repair) -> None:
    while True:
        chosen, beyond = files.cover(files.list_files(store.fs, store.path))
        if not beyond:
            return
        first = chosen[-1].hi + 1 if chosen else 0
        end = min(entry.lo for entry in beyond) - 1
        numbers = np.arange(first, end + 1)
        empty = {table: np.zeros(len(numbers) + 1, "<i8") for table in TABLES}
        uuid = np.frombuffer(os.urandom(16 * len(numbers)), "u1").reshape(-1, 16)
        times, by = np.full(len(numbers), time.time()), np.array([b"repair"] * len(numbers))
        path = files.merged_path(store.directory, first, end)
        entry = files.Entry(first, end, path, path.name)
        _write(store, Batch(), Commits(numbers, uuid, times, by, empty), entry)
        result.lost_commits += numbers.tolist()


def _drop_orphans(store: Store, result: Repair) -> None:
    """Rows whose structure is lost say nothing any more: they are taken out, file by file."""
    chosen = files.cover(files.list_files(store.fs, store.path))[0]
    segments = [Segment(store.fs, one.entry.path) for one in chosen]
    uids = {u for s in segments if row_count(s, "structures") for u in id_texts(s["/structures/uid"])}
    for one, segment in zip(chosen, segments, strict=True):
        masks = {t: np.ones(row_count(segment, t), bool) for t in TABLES}
        for table in ("labels", "predictions", "splits"):
            if len(masks[table]):
                own = id_texts(segment[f"/{table}/structure_uid"])
                masks[table] = np.array([uid in uids for uid in own], bool)
        if all(mask.all() for mask in masks.values()):
            continue
        lost = ~masks["labels"]
        if lost.any():
            result.lost_labels += id_texts(segment["/labels/uid"][lost])
        rows = {t: decode(segment, t, np.flatnonzero(mask)) for t, mask in masks.items() if mask.any()}
        commits = commits_in(segment, one.entry.lo)
        starts = {t: np.concatenate([[0], np.cumsum(m)])[commits.rows[t]] for t, m in masks.items()}
        batch = Batch(**rows, declared=specs_in(segment, "properties"))
        _write(store, batch, commits._replace(rows=starts), one.entry)
        result.replaced.append(one.entry.path.name)
        result.lost_rows += sum(int((~mask).sum()) for mask in masks.values())
        result.saved_rows -= sum(int((~mask).sum()) for mask in masks.values())


def _report(store: Store, result: Repair) -> None:
    document = {name: value for name, value in vars(result).items() if name != "report"}
    text = json.dumps(document, indent=1).encode()
    grave = store.directory / QUARANTINE
    store.fs.makedirs(grave, exist_ok=True)
    path = grave / f"report-{int(time.time())}-{os.urandom(4).hex()}.json"
    disk.write_file(store.fs, path, [(0, text)], size=len(text), fsync=store.durability == "fsync")
    result.report = str(path)
