"""What happened to a store: its commits, and what differs between two views of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from alchemy.store import files
from alchemy.store.columns import TABLES
from alchemy.store.merge import commits_in
from alchemy.store.rows import LabelRow
from alchemy.store.segment import Segment
from alchemy.store.snapshot import Snapshot

if TYPE_CHECKING:
    from alchemy.store.store import Store


@dataclass(frozen=True)
class Commit:
    """One commit: when, by which program on which host, and how many rows it brought to each table."""

    number: int
    uuid: str
    time: float
    by: str
    rows: Mapping[str, int]


def log(store: Store) -> list[Commit]:
    """Every commit, oldest first; compaction does not change it. Raises StoreError."""
    store.snapshot()  # says what is wrong with the files if anything is
    found = []
    for one in files.cover(files.list_files(store.fs, store.path))[0]:
        segment = Segment(store.fs, one.entry.path)
        commits = commits_in(segment, one.entry.lo)
        for i, number in enumerate(commits.seq.tolist()):
            if number >= one.lo:
                counts = {t: int(own[i + 1] - own[i]) for t, own in commits.rows.items() if t in TABLES}
                found.append(
                    Commit(
                        number,
                        commits.uuid[i].tobytes().hex(),
                        float(commits.time[i]),
                        bytes(commits.by[i]).decode(errors="replace"),
                        {table: n for table, n in counts.items() if n},
                    )
                )
    return found


@dataclass(frozen=True)
class Changes:
    """Keys that are only in the second view, only in the first, and in both with other contents."""

    added: list[str]
    removed: list[str]
    changed: list[str]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


def diff(old: Snapshot, new: Snapshot) -> dict[str, Changes]:
    """What differs between two views, of one store or of two: structures, labels, splits, registry."""
    labels = [{row.key: row for row in view.labels(status=None)} for view in (old, new)]
    return {
        "structures": _changes(dict.fromkeys(old.uids()), dict.fromkeys(new.uids())),
        "labels": _changes(labels[0], labels[1], label_contents),
        "splits": _changes(old.part_of(), new.part_of()),
        "registry": _changes(old.registry(), new.registry()),
    }


def label_contents(row: LabelRow) -> Hashable:
    """What of a label a person would call its contents: not when and how long it was computed."""
    arrays = {
        "forces": row.forces_eV_per_A,
        "stress": row.stress_eV_per_A3,
        **{f"property {name}": value for name, value in row.properties.items()},
    }
    bits = tuple((n, np.asarray(a, "<f8").tobytes()) for n, a in sorted(arrays.items()) if a is not None)
    return row.status, None if row.energy_eV is None else float(row.energy_eV), bits


def _changes(
    old: Mapping[str, Any], new: Mapping[str, Any], contents: Callable[[Any], Any] = lambda value: value
) -> Changes:
    both = old.keys() & new.keys()
    return Changes(
        sorted(new.keys() - old.keys()),
        sorted(old.keys() - new.keys()),
        sorted(key for key in both if contents(old[key]) != contents(new[key])),
    )
