"""Which structures and labels the segments of a store hold, and where."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np

from alchemy.store.named import specs_in
from alchemy.store.rows import PropertySpec
from alchemy.store.schema import NULL_CODE, decode, id_texts, row_count, words
from alchemy.store.segment import Segment


class Place(NamedTuple):
    """Where the current row of a label is; only an ok one is never displaced by a later one."""

    segment: int
    row: int
    ok: bool


class Index:
    """Which structures and labels the segments hold, extended as commits appear.

    Snapshots share it: everything but `labels` only grows at the end, so a snapshot of the first k
    segments sees the entries below its own limits.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.segments: list[Segment] = []
        self.last: list[int] = []
        self.uids: list[str] = []
        self.places: dict[str, tuple[int, int]] = {}
        self.counts: list[int] = []
        self.labels: dict[str, Place] = {}
        self._parts: dict[str, str] = {}
        self._documents: dict[str, str] = {}
        self._quantities: dict[str, PropertySpec] = {}

    # What `ingest` asks about rows already there: answered from here, an append need not make a view.

    def __contains__(self, uid: object) -> bool:
        return uid in self.places

    def atom_count(self, uid: str) -> int:
        number, row = self.places[uid]
        return int(self.segments[number]["/structures/n_atoms"][row])

    def label_is_ok(self, key: str) -> bool | None:
        place = self.labels.get(key)
        return None if place is None else place.ok

    def part_of(self) -> dict[str, str]:
        return self._parts

    def registry(self) -> dict[str, dict[str, Any]]:
        return {key: json.loads(text) for key, text in self._documents.items()}

    def quantities(self) -> dict[str, PropertySpec]:
        return self._quantities

    def add(self, name: str, last: int, segment: Segment) -> None:
        """Append one segment whose newest commit is `last`."""
        number = len(self.segments)
        fold_labels(self.labels, segment, number)
        for row, uid in enumerate(_ids_of(segment, "/structures/uid")):
            if uid not in self.places:  # two writers may add the same structure at the same time
                self.places[uid] = (number, row)
                self.uids.append(uid)
        if row_count(segment, "splits"):
            texts, codes = words(segment, "part"), segment["/splits/part"].tolist()
            own = ["" if code == NULL_CODE else texts[code] for code in codes]
            self._parts.update(zip(_ids_of(segment, "/splits/structure_uid"), own, strict=True))
        if n := row_count(segment, "registry"):
            rows = decode(segment, "registry", np.arange(n))
            self._documents.update((row.key, row.document) for row in rows)
        self._quantities.update(specs_in(segment, "properties"))
        self.segments.append(segment)
        self.counts.append(len(self.uids))
        self.last.append(last)
        self.names.append(name)


def _ids_of(segment: Segment, path: str) -> list[str]:
    array = segment.get(path)
    return [] if array is None else id_texts(array)


def fold_labels(current: dict[str, Place], segment: Segment, number: int) -> None:
    """Apply a segment, commit by commit: retractions hide earlier labels, then its own labels come in."""
    targets, keys = _ids_of(segment, "/retractions/target"), _ids_of(segment, "/labels/uid")
    texts = words(segment, "status") if keys else []
    status = [texts[code] for code in segment["/labels/status"].tolist()] if keys else []
    spans = [(0, len(targets), 0, len(keys))]
    hidden, own = segment.get("/commits/rows/retractions"), segment.get("/commits/rows/labels")
    if targets and hidden is not None and own is not None:
        spans = list(zip(*(c.tolist() for c in (hidden[:-1], hidden[1:], own[:-1], own[1:])), strict=True))
    for first, last, begin, end in spans:
        for target in targets[first:last]:
            current.pop(target, None)
        for row in range(begin, end):
            key, ok = keys[row], status[row] == "ok"
            if ok or key not in current or not current[key].ok:
                current[key] = Place(number, row, ok)
