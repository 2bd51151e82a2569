"""Which files a store has and which of them a snapshot reads.

    store.h5                 a second name of the newest complete merged file, for other programs
    store.h5.d/c<number>.h5  one commit
    store.h5.d/m<lo>-<hi>.h5 merged commits
    store.h5.d/.tmp-<uuid>   a file being written, or one whose writer died; readers ignore it
    store.h5.d/quarantine/   damaged files that a repair has replaced, and its reports
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from alchemy.errors import StoreDamagedError, StoreError
from alchemy.store.filesystem import FileSystem
from alchemy.store.segment import read_header

NAME = re.compile(r"c(\d{10})\.h5|m(\d{10})-(\d{10})\.h5")
TEMPORARY = ".tmp-"


class Entry(NamedTuple):
    """A sealed file; the name changes when, and only when, the contents do."""

    lo: int
    hi: int
    path: Path
    name: str


class Chosen(NamedTuple):
    """An entry of which commits `lo`… are read; they may begin inside it."""

    entry: Entry
    lo: int

    @property
    def hi(self) -> int:
        return self.entry.hi

    @property
    def name(self) -> str:
        return self.entry.name if self.lo == self.entry.lo else f"{self.entry.name} from {self.lo}"


def commit_path(directory: Path, number: int) -> Path:
    return directory / f"c{number:010d}.h5"


def merged_path(directory: Path, lo: int, hi: int) -> Path:
    return directory / f"m{lo:010d}-{hi:010d}.h5"


def list_files(fs: FileSystem, path: Path, problems: list[str] | None = None) -> list[Entry]:
    """Every sealed file. What is wrong with the header of the base goes to `problems`, if given.

    Without `problems` a damaged base is passed over where there is a merged file that begins with commit 0,
    of which it is, or is older than, the second name; else it raises StoreDamagedError.
    """
    found, damage = [], None
    directory = path.with_name(path.name + ".d")
    try:
        fd = fs.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        pass
    else:
        try:
            header = read_header(fs, fd, path)
            name = f"{path.name} {header['uuid']}"  # a base can be replaced under its name
            found.append(Entry(max(header["lo"], 0), max(header["hi"], 0), path, name))
        except StoreError as error:
            if problems is not None:
                problems.append(str(error))
            elif isinstance(error, StoreDamagedError):
                damage = error
            else:
                raise
        finally:
            fs.close(fd)
    try:
        names = fs.listdir(directory)
    except FileNotFoundError:
        names = []
    for name in names:
        if match := NAME.fullmatch(name):
            lo = int(match[1] or match[2])
            found.append(Entry(lo, int(match[3] or lo), directory / name, name))
    if damage is not None and not any(one.lo == 0 and one.name.startswith("m") for one in found):
        raise damage
    return found


def cover(entries: Sequence[Entry], following: int = 0) -> tuple[list[Chosen], list[Entry]]:
    """(files that hold commits 0, or `following`, … without a gap, files beyond the first gap)."""
    chosen: list[Chosen] = []
    while True:
        fitting = [e for e in entries if e.lo <= following <= e.hi]
        if not fitting:
            return chosen, [e for e in entries if e.lo > following]
        # the one that reaches farthest; a merged file before the base, which is its second name
        best = max(fitting, key=lambda e: (e.hi, -e.lo, e.name.startswith("m")))
        chosen.append(Chosen(best, following))
        following = best.hi + 1


def gap_message(directory: Path, last: int, beyond: Sequence[Entry]) -> str:
    first, end = last + 1, min(entry.lo for entry in beyond) - 1
    missing = f"commit {first} is" if first == end else f"commits {first} to {end} are"
    return f"{directory}: {missing} missing although later ones exist; 'alchemy data repair' goes on without"
