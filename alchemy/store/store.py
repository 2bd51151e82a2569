"""The store: append rows, take snapshots. `files` says what is on disk.

Any number of processes may append: a commit takes its number with link(), which never replaces a
file. Nothing is modified after that, so readers need no locks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ase import Atoms

from alchemy.errors import StoreDamagedError, StoreError
from alchemy.store import files
from alchemy.store import filesystem as disk
from alchemy.store.bulk import LabelColumns, StructureColumns
from alchemy.store.check import check
from alchemy.store.compact import Compaction, compact
from alchemy.store.filesystem import FileSystem
from alchemy.store.index import Index
from alchemy.store.ingest import select_new
from alchemy.store.layout import Image
from alchemy.store.rows import (
    EventRow,
    FailureRow,
    LabelRow,
    PredictionRow,
    PropertySpec,
    RetractionRow,
    SplitRow,
)
from alchemy.store.schema import encode
from alchemy.store.segment import Segment, inspect
from alchemy.store.snapshot import Snapshot

DURABILITY = ("fsync", "nofsync")
IO = ("auto", "mmap", "pread")
_TRIES = 10
_Found = TypeVar("_Found")


class Store:
    """Append rows and take snapshots. Creates nothing before the first append.

    durability 'nofsync' survives a killed process but not a power cut; for tests and scratch.
    io 'mmap' maps large files; 'pread' reads them, so that a network file system that fails is an error
    and not the death of the process; 'auto' reads on network file systems and maps elsewhere.
    `fs` replaces the system calls in tests.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        durability: str = "fsync",
        io: str = "auto",
        fs: FileSystem | None = None,
    ) -> None:
        if durability not in DURABILITY:
            raise StoreError(f"durability {durability!r}: use one of {', '.join(DURABILITY)}")
        if io not in IO:
            raise StoreError(f"io {io!r}: use one of {', '.join(IO)}")
        self.path, self.io = Path(path), io
        self.directory = self.path.with_name(self.path.name + ".d")
        self.durability = durability
        reads = io == "pread" or (io == "auto" and disk.is_remote(self.path))
        self.fs = fs or (disk.ReadingFileSystem() if reads else FileSystem())
        self._index = Index()
        self._tip: Snapshot | None = None
        self._lock = threading.RLock()
        self._directory_is_safe = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self.durability, self.io)

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"

    def append(
        self,
        *,
        structures: Sequence[Atoms] | StructureColumns = (),
        labels: Sequence[LabelRow] | LabelColumns = (),
        predictions: Sequence[PredictionRow] = (),
        events: Sequence[EventRow] = (),
        failures: Sequence[FailureRow] = (),
        splits: Sequence[SplitRow] = (),
        retractions: Sequence[RetractionRow] = (),
        registry: Mapping[str, dict[str, Any]] | None = None,
        quantities: Mapping[str, PropertySpec] | None = None,
    ) -> int:
        """Commit rows, all or none; the number of the commit comes back once it is on disk.

        Structures, ok labels, splits and registry documents that are there already are left out;
        with nothing left, nothing is written and the last commit number comes back. Structures keep
        species, positions (on the 1e-8 Å grid), cell, periodicity, charge, multiplicity and the arrays
        of `rows.EXTRA`. Columns are for many at once. `quantities` declares labels that are not in
        `PROPERTIES`, once per store.
        Raises StoreError for rows that do not fit or when the disk refuses; nothing is stored then,
        except that the commit is there when no more than the last fsync, of its name, failed.
        """
        given = {
            "structures": structures,
            "labels": labels,
            "predictions": predictions,
            "events": events,
            "failures": failures,
            "splits": splits,
            "retractions": retractions,
        }
        with self._lock:
            last = self._retried(self._refresh)
            batch = select_new(self._index, given, registry or {}, quantities)
            if not batch.tables():
                return last
            try:
                return self._commit(Image(encode(batch), kind="commit", after=last), last + 1)
            except OSError as error:
                raise StoreError(f"{self.directory}: cannot write the commit: {error}") from error

    def make_directory(self) -> None:
        """The folder of the segments, its name synced. Raises OSError."""
        self.fs.makedirs(self.directory, exist_ok=True)
        if self.durability == "fsync" and not self._directory_is_safe:
            # Also when it existed: whoever made it may have died before this.
            disk.sync_directory(self.fs, self.directory.parent)
            self._directory_is_safe = True

    def write_temporary(self, image: Image) -> Path:
        """A finished file without a name that readers see. Raises OSError."""
        temporary = self.directory / f"{files.TEMPORARY}{os.urandom(16).hex()}"
        fsync = self.durability == "fsync"
        disk.write_file(self.fs, temporary, image.pieces(), size=image.size, fsync=fsync)
        return temporary

    def sync_names(self) -> None:
        """Names in the folder survive a power cut from here on. Raises OSError."""
        if self.durability == "fsync":
            disk.sync_directory(self.fs, self.directory)

    def _commit(self, image: Image, number: int) -> int:
        self.make_directory()
        temporary = self.write_temporary(image)
        source = temporary
        try:
            while True:
                while not disk.publish(self.fs, source, final := files.commit_path(self.directory, number)):
                    number += 1
                self.sync_names()
                shadow = self._shadow(number, image.uuid)
                if shadow < 0:
                    return number
                # A compactor merged commits up to there and freed our number before we took it.
                if temporary.name in self.fs.listdir(self.directory):
                    disk.remove(self.fs, final)
                else:
                    source = final
                number = shadow + 1
        finally:
            disk.remove(self.fs, temporary)

    def _shadow(self, number: int, uuid: str) -> int:
        """Newest commit of a merged file that covers the number without holding our commit; else −1."""
        for entry in files.list_files(self.fs, self.path):
            if entry.lo <= number <= entry.hi and entry.path != files.commit_path(self.directory, number):
                try:
                    held = Segment(self.fs, entry.path).commit_uuids()
                except FileNotFoundError:  # merged again meanwhile
                    return self._shadow(number, uuid)
                if uuid not in held:
                    return max(e.hi for e in files.list_files(self.fs, self.path))
        return -1

    def snapshot(self, as_of: int | None = None) -> Snapshot:
        """The rows of all commits, or of commits 0…as_of.

        Raises StoreDamagedError for a damaged or missing commit, StoreError for one that is not
        there yet and when the files cannot be read.
        """
        with self._lock:
            return self._retried(lambda: self._view(as_of))

    def salvage(self) -> tuple[Snapshot, list[str]]:
        """(the rows of all sound files, what was left out); reads every byte, changes nothing.

        Labels, predictions and splits of structures that are in a damaged file are left out as well.
        Raises StoreError when the files cannot be listed.
        """
        problems: list[str] = []
        try:
            entries = files.list_files(self.fs, self.path, problems)
            found = {entry: inspect(self.fs, entry.path) for entry in entries}
        except OSError as error:
            raise StoreError(f"{self.path}: cannot read: {error}") from error
        problems += [f"{text}; left out" for own in found.values() for text in own[:1]]
        sound, index, last = [entry for entry in entries if not found[entry]], Index(), -1
        while True:
            chosen, beyond = files.cover(sound, last + 1)
            index = index.more([(one.name, self._opened(one), one.hi) for one in chosen])
            last = chosen[-1].hi if chosen else last
            if not beyond:
                break
            end = min(entry.lo for entry in beyond) - 1
            problems.append(f"{self.directory}: commits {last + 1} to {end} are missing or damaged")
            last = end
        return Snapshot(index, complete=not problems), problems

    def _opened(self, one: files.Chosen) -> Segment:
        segment = Segment(self.fs, one.entry.path)
        return segment if one.lo == one.entry.lo else segment.between(one.lo, one.hi)

    def _retried(self, look: Callable[[], _Found]) -> _Found:
        for tries_left in reversed(range(_TRIES)):
            try:
                return look()
            except (_GapError, FileNotFoundError) as error:
                # Listing a directory is not atomic: a file may appear, or be merged, meanwhile.
                if not tries_left:
                    raise StoreDamagedError(str(error)) from None
                time.sleep(0.01)
            except OSError as error:
                if error.errno != errno.ESTALE or not tries_left:
                    raise StoreError(f"{self.path}: cannot read: {error}") from error
        raise AssertionError("the last try returns or raises")

    def _refresh(self) -> int:
        """Bring the index up to now; the last commit."""
        chosen, beyond = files.cover(files.list_files(self.fs, self.path))
        last = chosen[-1].hi if chosen else -1
        if beyond:
            raise _GapError(files.gap_message(self.directory, last, beyond))
        self._open(chosen)
        return last

    def _view(self, as_of: int | None) -> Snapshot:
        chosen, beyond = files.cover(files.list_files(self.fs, self.path))
        last = chosen[-1].hi if chosen else -1
        wanted = last if as_of is None else as_of
        if beyond and (as_of is None or as_of > last):
            raise _GapError(files.gap_message(self.directory, last, beyond))
        if not -1 <= wanted <= last:
            raise StoreError(f"{self.path}: no commit {wanted}; the last one is {last}")
        whole = [one for one in chosen if one.hi <= wanted]
        self._open(whole)
        index = self._index.first(len(whole))
        if wanted != (whole[-1].hi if whole else -1):  # the view ends inside a merged file
            one = chosen[len(whole)]
            part = Segment(self.fs, one.entry.path).between(one.lo, wanted)
            return Snapshot(index.more([(f"{one.name} to {wanted}", part, wanted)]))
        if len(whole) < len(self._index.segments):
            return Snapshot(index)
        if self._tip is None or self._tip.last != wanted:
            self._tip = Snapshot(self._index)
        return self._tip

    def _open(self, wanted: Sequence[files.Chosen]) -> None:
        """Make the index begin with these files; those that are open stay so."""
        names = [one.name for one in wanted]
        have = self._index.names
        if have[: len(names)] != names[: len(have)]:
            self._index, self._tip = Index(), None
        if found := wanted[len(self._index.names) :]:
            opened = [(one.name, self._opened(one), one.hi) for one in found]
            self._index, self._tip = self._index.more(opened), None

    def segments(self, as_of: int) -> list[Segment]:
        """The files of commits 0…as_of without an index of what is in them. Raises as `snapshot` does."""
        return self._retried(lambda: self._segments(as_of))

    def _segments(self, as_of: int) -> list[Segment]:
        found, last = [], -1
        for one in files.cover(files.list_files(self.fs, self.path))[0]:
            if one.lo <= as_of:
                segment, last = Segment(self.fs, one.entry.path), min(one.hi, as_of)
                whole = (one.lo, last) == (one.entry.lo, one.entry.hi)
                found.append(segment if whole else segment.between(one.lo, last))
        if last < as_of:
            raise _GapError(f"{self.path}: commit {as_of} is missing")
        return found

    def check(self) -> list[str]:
        """Read every byte of every file; messages name file and dataset. Empty when all is well.

        Raises StoreError when the directory cannot be listed, or a file is of a newer format.
        """
        return check(self)

    def compact(self, *, full: bool = True, grace_s: float = 0.0) -> Compaction:
        """Merge files while others read and write; snapshots see no difference. See `compact.compact`."""
        return compact(self, full=full, grace_s=grace_s)

    def tidy(self, limit: int = 32) -> None:
        """Merge the newest small files once there are more than `limit`; errors wait for `snapshot`."""
        with contextlib.suppress(StoreError, OSError):
            if len(files.list_files(self.fs, self.path)) > limit:
                self.compact(full=False)


class _GapError(Exception):
    """A commit number is missing; perhaps only in this listing of the directory."""


def _reopen(path: Path, durability: str, io: str) -> Store:
    return Store(path, durability=durability, io=io)
