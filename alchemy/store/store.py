"""The store: `store.h5` (base, once there is one) and sealed commits in `store.h5.d/`.

    c<number>.h5     one commit
    m<lo>-<hi>.h5    merged commits
    .tmp-<uuid>      a commit being written, or one whose writer died; readers ignore it

Any number of processes may append: a commit takes its number with link(), which never replaces a
file. Nothing is modified after that, so readers need no locks.
"""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ase import Atoms

from alchemy.errors import StoreDamagedError, StoreError
from alchemy.store import segment as seg
from alchemy.store.ingest import select_new
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
from alchemy.store.snapshot import Index, Snapshot

DURABILITY = ("fsync", "nofsync")
_NAME = re.compile(r"c(\d{10})\.h5|m(\d{10})-(\d{10})\.h5")
_TRIES = 10


class _Entry(NamedTuple):
    lo: int
    hi: int
    path: Path
    name: str


def _cover(entries: Sequence[_Entry]) -> tuple[list[_Entry], list[_Entry]]:
    """(files that hold commits 0, 1, … without a gap, files beyond the first gap)."""
    chosen: list[_Entry] = []
    following = 0
    for entry in sorted(entries, key=lambda e: (e.lo, -e.hi)):
        if entry.lo == following:
            chosen.append(entry)
            following = entry.hi + 1
    return chosen, [entry for entry in entries if entry.lo > following]


class Store:
    """Append rows and take snapshots. Creates nothing before the first append.

    durability 'nofsync' survives a killed process but not a power cut; for tests and scratch.
    `fs` replaces the system calls in tests.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        durability: str = "fsync",
        fs: seg.FileSystem | None = None,
    ) -> None:
        if durability not in DURABILITY:
            raise StoreError(f"durability {durability!r}: use one of {', '.join(DURABILITY)}")
        self.path = Path(path)
        self.directory = self.path.with_name(self.path.name + ".d")
        self.durability = durability
        self._fs = fs or seg.FileSystem()
        self._index = Index()
        self._tip: Snapshot | None = None
        self._lock = threading.RLock()
        self._directory_is_safe = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self.durability)

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"

    def append(
        self,
        *,
        structures: Sequence[Atoms] = (),
        labels: Sequence[LabelRow] = (),
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
        of `rows.EXTRA`. `quantities` declares labels that are not in `PROPERTIES`, once per store.
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
            known = self.snapshot()
            batch = select_new(known, given, registry or {}, quantities)
            if not batch.tables():
                return known.last
            try:
                return self._commit(seg.build_image(encode(batch), kind="commit"), known.last + 1)
            except OSError as error:
                raise StoreError(f"{self.directory}: cannot write the commit: {error}") from error

    def _commit(self, image: bytes, number: int) -> int:
        fsync = self.durability == "fsync"
        self._fs.makedirs(self.directory, exist_ok=True)
        if fsync and not self._directory_is_safe:
            # Also when it existed: whoever made it may have died before this.
            seg.sync_directory(self._fs, self.directory.parent)
            self._directory_is_safe = True
        temporary = self.directory / f".tmp-{os.urandom(16).hex()}"
        seg.write_file(self._fs, temporary, image, fsync=fsync)
        try:
            number = seg.publish(self._fs, temporary, number)
        finally:
            seg.remove(self._fs, temporary)
        if fsync:
            seg.sync_directory(self._fs, self.directory)
        return number

    def snapshot(self, as_of: int | None = None) -> Snapshot:
        """The rows of all commits, or of commits 0…as_of.

        Raises StoreDamagedError for a damaged or missing commit, StoreError for one that is not
        there yet and when the files cannot be read.
        """
        with self._lock:
            for tries_left in reversed(range(_TRIES)):
                try:
                    return self._view(as_of)
                except (_GapError, FileNotFoundError) as error:
                    # Listing a directory is not atomic: a file may appear, or be merged, meanwhile.
                    if not tries_left:
                        raise StoreDamagedError(str(error)) from None
                    time.sleep(0.01)
                except OSError as error:
                    if error.errno != errno.ESTALE or not tries_left:
                        raise StoreError(f"{self.path}: cannot read: {error}") from error
        raise AssertionError("the last try returns or raises")

    def _view(self, as_of: int | None) -> Snapshot:
        chosen, beyond = _cover(list(self._entries()))
        last = chosen[-1].hi if chosen else -1
        wanted = last if as_of is None else as_of
        if beyond and (as_of is None or as_of > last):
            raise _GapError(_gap_message(self.directory, last, beyond))
        if not -1 <= wanted <= last:
            raise StoreError(f"{self.path}: no commit {wanted}; the last one is {last}")
        n_segments = sum(entry.hi <= wanted for entry in chosen)
        if wanted != (chosen[n_segments - 1].hi if n_segments else -1):
            raise StoreError(f"{self.path}: commit {wanted} is inside {chosen[n_segments].name}")
        self._open(chosen[:n_segments], [entry.name for entry in chosen])
        if n_segments < len(self._index.segments):
            return Snapshot(self._index, n_segments)
        if self._tip is None or self._tip.last != wanted:
            self._tip = Snapshot(self._index, n_segments)
        return self._tip

    def _open(self, wanted: Sequence[_Entry], names: Sequence[str]) -> None:
        have = self._index.names
        if have != list(names[: len(have)]):
            self._index, self._tip = Index(), None
        for entry in wanted[len(self._index.names) :]:
            self._index.add(entry.name, entry.hi, seg.Segment(self._fs, entry.path))

    def _entries(self, problems: list[str] | None = None) -> Iterator[_Entry]:
        """Every sealed file; a base whose header is damaged goes to `problems` if there are any."""
        try:
            fd = self._fs.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            pass
        else:
            try:
                header = seg.read_header(self._fs, fd, self.path)
                name = f"{self.path.name} {header['uuid']}"  # a base can be replaced under its name
                yield _Entry(header["lo"], header["hi"], self.path, name)
            except StoreError as error:
                if problems is None:
                    raise
                problems.append(str(error))
            finally:
                self._fs.close(fd)
        try:
            names = self._fs.listdir(self.directory)
        except FileNotFoundError:
            return
        for name in names:
            if match := _NAME.fullmatch(name):
                lo = int(match[1] or match[2])
                yield _Entry(lo, int(match[3] or lo), self.directory / name, name)

    def check(self) -> list[str]:
        """Read every byte of every file; messages name file and dataset. Empty when all is well.

        Raises StoreError when the directory cannot be listed.
        """
        problems: list[str] = []
        try:
            entries = sorted(self._entries(problems))
        except OSError as error:
            raise StoreError(f"{self.path}: cannot read: {error}") from error
        for entry in entries:
            problems += seg.inspect(self._fs, entry.path)
        chosen, beyond = _cover(entries)
        if beyond:
            problems.append(_gap_message(self.directory, chosen[-1].hi if chosen else -1, beyond))
        return problems


def _gap_message(directory: Path, last: int, beyond: Sequence[_Entry]) -> str:
    first, end = last + 1, min(entry.lo for entry in beyond) - 1
    missing = f"commit {first} is" if first == end else f"commits {first} to {end} are"
    return f"{directory}: {missing} missing although later ones exist"


class _GapError(Exception):
    """A commit number is missing; perhaps only in this listing of the directory."""


def _reopen(path: Path, durability: str) -> Store:
    return Store(path, durability=durability)
