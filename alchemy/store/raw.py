"""Columns over all segments of a view, by raw row number (see `index`); rows that are not current included.

Made when they are first asked for, and kept with the view.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np

from alchemy.store.columns import TABLES
from alchemy.store.derived import max_force_in
from alchemy.store.ids import first_rows, matches
from alchemy.store.index import Index
from alchemy.store.named import GROUPS
from alchemy.store.query import Codes
from alchemy.store.rows import KNOWN
from alchemy.store.schema import NULL_CODE, decode, row_count, words
from alchemy.store.segment import Segment, joined


class RawRows:
    """The rows of every table of an index.

    complete: every structure that rows speak of is there; those of a damaged store need not be.
    """

    def __init__(self, index: Index, *, complete: bool = True) -> None:
        self._index, self._complete = index, complete
        self._segments = index.segments
        self._columns: dict[tuple[str, str], Any] = {}

    def count(self, table: str) -> int:
        """Rows of a table, rows that are not current included."""
        return int(self._index.starts(table)[-1])

    def _having(self, table: str) -> Iterator[Segment]:
        return (segment for segment in self._segments if row_count(segment, table))

    def column(self, table: str, name: str) -> np.ndarray:
        """A column by raw row number; not to be written to."""
        key = (table, name)
        if key not in self._columns:
            arrays = ((segment, _column(segment, table, name)) for segment in self._having(table))
            self._columns[key] = joined(self.count(table), arrays, empty=_empty(table, name))
        found: np.ndarray = self._columns[key]
        return found

    def codes(self, table: str, name: str) -> Codes:
        """A text column by raw row number, with one numbering for all segments."""
        key = (table, f"{name}/codes")
        if key not in self._columns:
            vocabulary: dict[str, int] = {}
            path = f"/{table}/{name}"
            parts = ((s, _recoded(s, path, vocabulary)) for s in self._having(table))
            codes = joined(self.count(table), parts, empty=np.zeros(0, np.int32))
            self._columns[key] = Codes(codes, vocabulary)
        found: Codes = self._columns[key]
        return found

    def codes_at(self, table: str, name: str, raw: np.ndarray) -> Codes:
        """The texts of some rows; of few, without reading all the texts that others have."""
        if (table, f"{name}/codes") in self._columns or len(raw) * 8 > self.count(table):
            codes, vocabulary = self.codes(table, name)
            return Codes(codes[raw], vocabulary)
        numbers, rows = self._index.places(table, raw)
        found, vocabulary = np.full(len(raw), -1, np.int32), {}
        for number in np.unique(numbers).tolist():
            segment, own = self._segments[number], np.flatnonzero(numbers == number)
            local = segment[f"/{table}/{name}"][rows[own]]
            own, local = own[local != NULL_CODE], local[local != NULL_CODE]
            kinds, which = np.unique(local, return_inverse=True)
            texts = [word.decode() for word in segment[f"/dict/{name}"][kinds].tolist()] if len(kinds) else []
            new = [vocabulary.setdefault(text, len(vocabulary)) for text in texts]
            found[own] = np.array(new, np.int32)[which]
        return Codes(found, vocabulary)

    def segment_columns(self, table: str, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(offset, values) of a per-atom column, segment by segment."""
        for segment in self._segments:
            if row_count(segment, table):
                yield segment[f"/{table}/offset"], segment[f"/{table}/atoms/{name}"]

    @cached_property
    def max_forces(self) -> np.ndarray:
        """Largest norm of a force by raw row number of labels, eV/Å; NaN without forces."""
        parts = ((segment, max_force_in(segment)) for segment in self._having("labels"))
        return joined(self.count("labels"), parts, empty=np.zeros(0))

    @cached_property
    def repeats(self) -> tuple[np.ndarray, np.ndarray]:
        return self._index.repeats()

    @cached_property
    def structure_rows(self) -> np.ndarray:
        """Raw row number of each structure, in the order of `uids`."""
        return np.delete(np.arange(self.count("structures")), self.repeats[0])

    @cached_property
    def label_rows(self) -> np.ndarray:
        """Raw row number of the current row of each label, oldest first."""
        return self._kept("labels", self._index.current_labels())

    def _kept(self, table: str, rows: np.ndarray) -> np.ndarray:
        return rows if self._complete else rows[self.structure_of(table)[rows] >= 0]

    @cached_property
    def prediction_rows(self) -> np.ndarray:
        """Raw row number of the newest prediction of each (structure, model set, fidelity)."""
        ids = self.column("predictions", "structure_uid").view("<u8")
        codes = [self.codes("predictions", name).codes for name in ("model_set", "fidelity")]
        order = np.lexsort((*codes, ids[:, 0], ids[:, 1]))  # stable: the newest of equals comes last
        alike = np.ones(max(len(order) - 1, 0), bool)
        for values in (*codes, ids[:, 0], ids[:, 1]):
            alike &= values[order][1:] == values[order][:-1]
        return self._kept("predictions", np.sort(order[np.append(~alike, True)] if len(order) else order))

    def structure_of(self, table: str) -> np.ndarray:
        """Raw row of the structure that each raw row of a table is about, −1 where it is not stored."""
        key = (table, "/structure")
        if key not in self._columns:
            self._columns[key] = self._structure_of(table)
        found: np.ndarray = self._columns[key]
        return found

    def _structure_of(self, table: str) -> np.ndarray:
        found = joined(self.count(table), self._own_structures(table), empty=np.zeros(0, np.int64))
        elsewhere = np.flatnonzero(found < 0)
        again, origin = self.repeats
        if len(elsewhere) or len(again):
            found = np.array(found)
            uids = self.column(table, "structure_uid")[elsewhere]
            found[elsewhere] = self._index.first_raw("/structures/uid", uids)
        if len(again):
            first = np.arange(self.count("structures") + 1)  # the last one is for −1
            first[again], first[-1] = origin, -1
            found = first[found]
        return found

    def _own_structures(self, table: str) -> Iterator[tuple[Segment, np.ndarray]]:
        """Of each segment the raw rows of structures that are in it themselves, −1 for others."""
        for segment, start in zip(self._segments, self._index.starts("structures").tolist(), strict=False):
            if n := row_count(segment, table):
                own = segment.get(f"/{table}/structure_row")
                if own is None:
                    uids = segment[f"/{table}/structure_uid"]
                    own = first_rows(n, *matches(segment, "/structures/uid", uids))
                yield segment, own if start == 0 else np.where(own < 0, -1, own + start)

    @cached_property
    def parts(self) -> Codes:
        """Part of each structure, by its raw row: that of its last split."""
        rows, (codes, vocabulary) = self.structure_of("splits"), self.codes("splits", "part")
        found = np.full(self.count("structures"), -1, np.int32)
        found[rows[rows >= 0]] = codes[rows >= 0]  # of equal places the last assignment stays
        return Codes(found, vocabulary)

    @cached_property
    def births(self) -> np.ndarray:
        """Raw row of the first event of each structure, by its raw row; −1 when it has none."""
        found = np.full(self.count("structures"), -1, np.int64)
        rows = self.structure_of("events")
        events = np.flatnonzero(rows >= 0)[::-1]
        found[rows[events]] = events
        return found

    def rows_by_file(self, table: str, *raws: np.ndarray) -> dict[str, list[int]]:
        """How many of each set of raw row numbers are in each file."""
        n = len(self._segments)
        counts = [np.bincount(self._index.places(table, raw)[0], minlength=n).tolist() for raw in raws]
        return {name: list(each) for name, *each in zip(self._index.names, *counts, strict=True)}

    def every(self, table: str) -> list[Any]:
        """All rows of a table."""
        rows = np.arange(self.count(table))
        return self.decode(table, self._kept(table, rows) if table == "splits" else rows)

    def decode(self, table: str, raw: np.ndarray) -> list[Any]:
        """Row values of raw row numbers, in their order."""
        numbers, rows = self._index.places(table, raw)
        found: list[Any] = [None] * len(raw)
        order = np.argsort(numbers, kind="stable")
        cuts = np.flatnonzero(np.diff(numbers[order])) + 1
        for group in np.split(order, cuts):
            if len(group):
                values = decode(self._segments[numbers[group[0]]], table, rows[group])
                for i, value in zip(group.tolist(), values, strict=True):
                    found[i] = value
        return found

    def named(self, field: str, name: str) -> np.ndarray:
        """A named quantity of structures by raw row number of its table; NaN where there is none."""
        table, tail = GROUPS[field].split("/")[1], KNOWN[field][name].tail
        key = (table, f"{field}/{name}")
        if key not in self._columns:
            parts = [np.zeros((0, *tail))]
            for segment in self._segments:
                array = segment.get(f"{GROUPS[field]}/{name}")
                parts.append(np.full((row_count(segment, table), *tail), np.nan) if array is None else array)
            self._columns[key] = np.concatenate(parts)
        found: np.ndarray = self._columns[key]
        return found

    def has_named(self, field: str, name: str) -> np.ndarray:
        """By raw row number, whether a row has the quantity."""
        table = GROUPS[field].split("/")[1]
        parts = [np.zeros(0, bool)]
        for segment in self._segments:
            array, n = segment.get(f"{GROUPS[field]}/{name}"), row_count(segment, table)
            offset = segment.get(f"{GROUPS[field]}_offset/{name}")
            if offset is not None:
                parts.append(np.diff(offset) > 0)
            elif array is not None:
                parts.append(~np.isnan(array.reshape(n, -1)).all(axis=1))
            else:
                parts.append(np.zeros(n, bool))
        return np.concatenate(parts)


def _column(segment: Segment, table: str, name: str) -> np.ndarray:
    """Zeros when the segment is older than the column."""
    array = segment.get(f"/{table}/{name}")
    if array is None:
        empty = _empty(table, name)
        return np.zeros((row_count(segment, table), *empty.shape[1:]), empty.dtype)
    return array


def _recoded(segment: Segment, path: str, vocabulary: dict[str, int]) -> np.ndarray:
    """Codes of a segment as those of a common vocabulary, which grows by its texts."""
    local = segment[path]
    new = [vocabulary.setdefault(w, len(vocabulary)) for w in words(segment, path.split("/")[-1])]
    if new == list(range(len(new))):  # the code of nothing is −1 as a signed number
        return local.view(np.int32)
    lookup = np.array([*new, -1], np.int32)
    found: np.ndarray = lookup[np.where(local == NULL_CODE, len(new), local)]
    return found


def _empty(table: str, name: str) -> np.ndarray:
    for column in TABLES[table].columns:
        if column.name == name:
            return np.zeros((0, 16), "u1") if column.kind == "id" else np.zeros((0, *column.tail))
    raise KeyError(f"{table} has no column {name}")
