"""Merging sealed files into fewer, larger ones while others read and write.

A merged file holds the rows of its commits in their order, so that no snapshot sees a difference. It gets
its name with link() like a commit, is read back and verified, and only then are files removed of which it
holds every commit, known by their uuids. Nothing else keeps this right: the lock only saves double work,
and two compactors that do not see it may even publish files that overlap in part.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alchemy.errors import StoreDamagedError, StoreError
from alchemy.store import files
from alchemy.store import filesystem as disk
from alchemy.store.layout import Image
from alchemy.store.merge import merged_datasets
from alchemy.store.segment import Segment, inspect

if TYPE_CHECKING:
    from alchemy.store.store import Store

LOCK = "LOCK.compact"
LARGEST = 2 << 30  # bytes; files beyond it are not merged further
ORPHAN_S = 3600.0  # a temporary file this old has no writer any more
GROWTH = 4  # a file is merged with newer ones when it is at most that many times their size


@dataclass(frozen=True)
class Compaction:
    """What a compaction did."""

    merged: int  # files that were merged
    written: int  # files that came of it
    removed: int  # files that are gone
    busy: bool = False  # another process is compacting; nothing was done


def compact(store: Store, *, full: bool = True, grace_s: float = 0.0) -> Compaction:
    """Merge files; what snapshots see does not change.

    full: everything into one file (of at most 2 GiB; more files then), which `store.h5` names as well.
        Otherwise only the newest small files, so that each row is rewritten a few times in its life.
    grace_s: keep replaced files that long, for readers over a network file system.

    Raises:
        StoreDamagedError: a file is damaged or missing; nothing is removed then.
        StoreError: the disk refuses; what was there is untouched.
    """
    try:
        if not files.list_files(store.fs, store.path):
            return Compaction(0, 0, 0)
        store.make_directory()
        with disk.lock(store.fs, store.directory / LOCK, wait=False) as held:
            if held is False:
                return Compaction(0, 0, 0, busy=True)
            return _compact(store, full=full, grace_s=grace_s)
    except OSError as error:
        raise StoreError(f"{store.directory}: cannot compact: {error}; nothing is lost") from error


def _compact(store: Store, *, full: bool, grace_s: float) -> Compaction:
    chosen, beyond = files.cover(files.list_files(store.fs, store.path))
    if beyond:
        last = chosen[-1].hi if chosen else -1
        raise StoreDamagedError(files.gap_message(store.directory, last, beyond))
    merged = written = 0
    for run in _plan(store, chosen, full=full):
        _merge(store, run)
        merged, written = merged + len(run), written + 1
    if full:
        _name_base(store)
    return Compaction(merged, written, _clean(store, grace_s))


def _size(store: Store, path: Path) -> int:
    fd = store.fs.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(store.fs.fstat(fd).st_size)
    finally:
        store.fs.close(fd)


def _plan(store: Store, chosen: Sequence[files.Chosen], *, full: bool) -> list[list[files.Chosen]]:
    """Runs of neighbours to merge."""
    sizes = [_size(store, one.entry.path) for one in chosen]
    if not full:
        first, newer = len(chosen), 0
        while first and sizes[first - 1] <= max(GROWTH * newer, sizes[-1]) and newer < LARGEST:
            first -= 1
            newer += sizes[first]
        runs = [list(chosen[first:])]
    else:
        runs, total = [[]], 0
        for one, size in zip(chosen, sizes, strict=True):
            if runs[-1] and total + size > LARGEST:
                runs.append([])
                total = 0
            runs[-1].append(one)
            total += size
    return [run for run in runs if len(run) > 1 or (run and (_is_cut(run[0]) or _is_bare(run[0], full)))]


def _is_cut(one: files.Chosen) -> bool:
    return one.lo != one.entry.lo


def _is_bare(one: files.Chosen, full: bool) -> bool:
    """A single commit, which does not know its number: it could not be read as `store.h5`."""
    return full and one.entry.name.startswith("c")


def _merge(store: Store, run: Sequence[files.Chosen]) -> None:
    segments = []
    for one in run:
        segment = Segment(store.fs, one.entry.path)
        segments.append(segment if one.lo == one.entry.lo else segment.between(one.lo, one.hi))
    lo, hi = run[0].lo, run[-1].hi
    image = Image(merged_datasets(segments, [one.lo for one in run]), kind="merged", lo=lo, hi=hi)
    temporary = store.write_temporary(image)
    try:
        if problems := inspect(store.fs, temporary):
            raise StoreDamagedError(f"what was written is not what is read back: {problems[0]}")
        disk.publish(store.fs, temporary, files.merged_path(store.directory, lo, hi))
        store.sync_names()
    finally:
        disk.remove(store.fs, temporary)


def _name_base(store: Store) -> None:
    """Make `store.h5` a name of the merged file that begins with commit 0; it replaces an older one.

    It is a convenience for other programs: our readers would do without, so one that is behind does no harm.
    """
    entries = files.list_files(store.fs, store.path)
    merged = [e for e in entries if e.lo == 0 and e.name.startswith("m")]
    if not merged:
        return
    best = max(merged, key=lambda e: e.hi)
    temporary = store.directory / f"{files.TEMPORARY}{os.urandom(16).hex()}"
    try:
        try:
            store.fs.link(best.path, temporary)
        except OSError as error:
            if error.errno not in disk.NO_LINKS:
                raise
            size = _size(store, best.path)
            fd = store.fs.open(best.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                steps = range(0, size, 1 << 24)
                pieces = ((start, store.fs.pread(fd, 1 << 24, start)) for start in steps)
                disk.write_file(store.fs, temporary, pieces, size=size, fsync=store.durability == "fsync")
            finally:
                store.fs.close(fd)
        store.fs.replace(temporary, store.path)
        if store.durability == "fsync":
            disk.sync_directory(store.fs, store.directory.parent)
    finally:
        disk.remove(store.fs, temporary)  # two names of one file survive a rename onto each other


def _clean(store: Store, grace_s: float) -> int:
    """Remove files of which another one holds every commit, and orphans; how many are gone."""
    entries = [e for e in files.list_files(store.fs, store.path) if e.path.parent == store.directory]
    kept = {one.entry.path for one in files.cover(entries)[0]}
    held: set[str] = set()
    for path in kept:
        held.update(Segment(store.fs, path).commit_uuids())
    removed, now = 0, time.time()
    for entry in entries:
        if entry.path in kept or (grace_s > 0 and _age(store, entry.path, now) < grace_s):
            continue
        # A damaged file, or a commit that lost its number and is not acknowledged, is not ours to remove.
        with contextlib.suppress(FileNotFoundError, StoreError):
            if set(Segment(store.fs, entry.path, verify=False).commit_uuids()) <= held:
                store.fs.unlink(entry.path)
                removed += 1
    for name in store.fs.listdir(store.directory):
        path = store.directory / name
        if name.startswith(files.TEMPORARY) and _age(store, path, now) > ORPHAN_S:
            disk.remove(store.fs, path)
    return removed


def _age(store: Store, path: Path, now: float) -> float:
    try:
        fd = store.fs.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0.0
    try:
        return now - float(store.fs.fstat(fd).st_mtime)
    finally:
        store.fs.close(fd)
