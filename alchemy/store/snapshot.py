"""A frozen view of the store: the rows of commits 0…last, whatever is committed later."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from ase import Atoms

from alchemy.errors import StoreError
from alchemy.store.columns import TABLES
from alchemy.store.index import Index, fold_labels
from alchemy.store.named import GROUPS, specs_in
from alchemy.store.query import Codes
from alchemy.store.rows import (
    KNOWN,
    EventRow,
    FailureRow,
    LabelRow,
    PredictionRow,
    PropertySpec,
    SplitRow,
)
from alchemy.store.schema import NULL_CODE, decode, id_texts, row_count, words
from alchemy.store.segment import Segment
from alchemy.store.table import Table, field_meanings, select


class Snapshot:
    """Commits 0…`last` of a store (−1: none). Made by `Store.snapshot`; len() counts structures."""

    def __init__(self, index: Index, n_segments: int) -> None:
        self._index = index
        self._segments = index.segments[:n_segments]
        self._n_structures = index.counts[n_segments - 1] if n_segments else 0
        self.last = index.last[n_segments - 1] if n_segments else -1
        if n_segments == len(index.segments):
            self._labels = dict(index.labels)
        else:
            self._labels = {}
            for number, segment in enumerate(self._segments):
                fold_labels(self._labels, segment, number)
        self._columns: dict[tuple[str, str], Any] = {}

    def __len__(self) -> int:
        return self._n_structures

    def __contains__(self, uid: object) -> bool:
        place = self._index.places.get(uid) if isinstance(uid, str) else None
        return place is not None and place[0] < len(self._segments)

    def __repr__(self) -> str:
        return f"<Snapshot of commit {self.last}: {len(self)} structures>"

    def uids(self) -> list[str]:
        """Uids of all structures in the order in which they came."""
        return self._index.uids[: self._n_structures]

    def structure(self, uid: str) -> Atoms:
        """One structure; charge and multiplicity are in `info` when set. Raises StoreError."""
        return self.structures([uid])[0]

    def structures(self, uids: Sequence[str]) -> list[Atoms]:
        """Structures in the order asked for. Raises StoreError for an unknown uid."""
        places = np.array([self._place(uid) for uid in uids]).reshape(-1, 2)
        return [atoms_of(row) for row in self._decode_places("structures", places)]

    def atom_count(self, uid: str) -> int:
        """Number of atoms of a structure. Raises StoreError for an unknown uid."""
        number, row = self._place(uid)
        return int(self._segments[number]["/structures/n_atoms"][row])

    def _place(self, uid: str) -> tuple[int, int]:
        if uid not in self:
            raise StoreError(f"the store has no structure {uid!r} (commit {self.last})")
        return self._index.places[uid]

    def labels(
        self,
        *,
        fidelity: str | None = None,
        status: str | None = "ok",
        uids: Collection[str] | None = None,
    ) -> list[LabelRow]:
        """The current row of every label key, by (structure_uid, fidelity); status None: any."""
        raw = self.label_rows
        for column, wanted in (("fidelity", fidelity), ("status", status)):
            if wanted is not None:
                codes, vocabulary = self.codes("labels", column)
                raw = raw[codes[raw] == vocabulary.get(wanted, -2)]
        if uids is not None:
            among = set(uids)
            of = id_texts(self.column("labels", "structure_uid")[raw])
            raw = raw[np.array([uid in among for uid in of], bool)]
        rows: list[LabelRow] = self.decode_raw("labels", raw)
        return sorted(rows, key=lambda r: (r.structure_uid, r.fidelity, r.fingerprint, r.replica))

    def label(self, key: str) -> LabelRow | None:
        """The current row of a label key, failed ones included; None when there is none."""
        place = self._labels.get(key)
        if place is None:
            return None
        row: LabelRow = decode(self._segments[place.segment], "labels", np.array([place.row]))[0]
        return row

    def label_is_ok(self, key: str) -> bool | None:
        """Whether the current row of a label is ok; None when there is none."""
        place = self._labels.get(key)
        return None if place is None else place.ok

    def part_of(self) -> dict[str, str]:
        """Part (train, test, …) of every structure that has one."""
        return dict(self._parts)

    @cached_property
    def _parts(self) -> dict[str, str]:
        rows: list[SplitRow] = self._all("splits")
        return {row.structure_uid: row.part for row in rows}

    def split_rows(self) -> list[SplitRow]:
        """The current split of every structure that has one."""
        rows: list[SplitRow] = self._all("splits")
        return list({row.structure_uid: row for row in rows}.values())

    def retracted(self) -> list[str]:
        """Keys of labels that were hidden at some time; some may have been made again."""
        return [row.target for row in self._all("retractions")]

    def commit_uuids(self) -> list[str]:
        """Identities of the commits 0…last; two stores with the same ones are copies of each other."""
        return [uuid for segment in self._segments for uuid in segment.commit_uuids()]

    def events(self, *, kind: str | None = None, round: int | None = None) -> list[EventRow]:
        """Events in the order of their commits."""
        raw = np.arange(self.raw_count("events"))
        if kind is not None:
            codes, vocabulary = self.codes("events", "kind")
            raw = raw[codes[raw] == vocabulary.get(kind, -2)]
        if round is not None:
            raw = raw[self.column("events", "round")[raw] == round]
        return self.decode_raw("events", raw)

    def failures(self) -> list[FailureRow]:
        """Failures in the order of their commits."""
        return self._all("failures")

    def predictions(self, model_set: str | None = None) -> list[PredictionRow]:
        """The newest prediction of every (structure, model set, fidelity)."""
        raw = self.prediction_rows
        if model_set is not None:
            codes, vocabulary = self.codes("predictions", "model_set")
            raw = raw[codes[raw] == vocabulary.get(model_set, -2)]
        return self.decode_raw("predictions", raw)

    def quantities(self) -> dict[str, PropertySpec]:
        """What the named labels of this store are; those in `PROPERTIES` only where they occur."""
        found: dict[str, PropertySpec] = {}
        for segment in self._segments:
            found.update(specs_in(segment, "properties"))
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

    def registry(self) -> dict[str, dict[str, Any]]:
        """The newest document of every registry key."""
        return {row.key: json.loads(row.document) for row in self._all("registry")}

    def select(
        self,
        expression: str = "",
        *,
        rows: str = "auto",
        columns: Sequence[str] | None = None,
        sort: str | None = None,
        limit: int | None = None,
    ) -> Table:
        """Rows for which the expression is true; unknown values never match.

        rows: 'structures', 'labels', 'failures', 'events', 'predictions' or 'auto' (labels when a
        field of labels is used, else structures). sort: a field, '-field' for descending; unknown
        values come last. Raises QueryError.
        """
        return select(self, expression, rows=rows, columns=columns, sort=sort, limit=limit)

    def fields(self, rows: str = "auto") -> dict[str, str]:
        """Meaning and unit of every field of a kind of rows. Raises QueryError."""
        return field_meanings(rows)

    # What follows are columns over all segments; a raw row number counts the rows of a table from
    # the first segment on, rows that are not current included.

    def raw_count(self, table: str) -> int:
        """Rows of a table, rows that are not current included."""
        return int(self._starts(table)[-1])

    def _starts(self, table: str) -> np.ndarray:
        key = (table, "/starts")
        if key not in self._columns:
            counts = [row_count(segment, table) for segment in self._segments]
            self._columns[key] = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        starts: np.ndarray = self._columns[key]
        return starts

    def column(self, table: str, name: str) -> np.ndarray:
        """A column by raw row number; per-atom columns hold the atoms of all rows."""
        key = (table, name)
        if key not in self._columns:
            arrays = [_column(segment, table, name) for segment in self._segments]
            present = [array for array in arrays if array is not None]
            empty = [] if present else [_empty(table, name)]
            self._columns[key] = np.concatenate(present + empty)
        found: np.ndarray = self._columns[key]
        return found

    def codes(self, table: str, name: str) -> Codes:
        """A text column by raw row number, with one numbering for all segments."""
        key = (table, f"{name}/codes")
        if key not in self._columns:
            vocabulary: dict[str, int] = {}
            parts = [np.zeros(0, np.int32)]
            for segment in self._segments:
                local = segment.get(f"/{table}/{name}")
                if local is not None:
                    new = [vocabulary.setdefault(w, len(vocabulary)) for w in words(segment, name)]
                    lookup = np.array([*new, -1], np.int32)
                    parts.append(lookup[np.where(local == NULL_CODE, len(new), local)])
            self._columns[key] = Codes(np.concatenate(parts), vocabulary)
        found: Codes = self._columns[key]
        return found

    def segment_columns(self, table: str, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(offset, values) of a per-atom column, segment by segment."""
        for segment in self._segments:
            if row_count(segment, table):
                yield segment[f"/{table}/offset"], segment[f"/{table}/atoms/{name}"]

    def per_segment(self, table: str, compute: Callable[[Segment], np.ndarray]) -> list[np.ndarray]:
        """What a function makes of each segment that has rows of a table; kept, as segments never change."""
        found = []
        for segment in self._segments:
            if row_count(segment, table):
                key = ("computed", compute.__name__)
                if key not in segment.derived:
                    segment.derived[key] = compute(segment)
                found.append(segment.derived[key])
        return found

    @cached_property
    def structure_rows(self) -> np.ndarray:
        """Raw row number of each structure, in the order of `uids`."""
        return self._raw("structures", [self._index.places[uid] for uid in self.uids()])

    @cached_property
    def label_rows(self) -> np.ndarray:
        """Raw row number of the current row of each label."""
        return self._raw("labels", [(p.segment, p.row) for p in self._labels.values()])

    @cached_property
    def prediction_rows(self) -> np.ndarray:
        """Raw row number of the newest prediction of each (structure, model set, fidelity)."""
        uids = id_texts(self.column("predictions", "structure_uid"))
        model_set = self.codes("predictions", "model_set").codes.tolist()
        fidelity = self.codes("predictions", "fidelity").codes.tolist()
        newest = {key: i for i, key in enumerate(zip(uids, model_set, fidelity, strict=True))}
        return np.array(sorted(newest.values()), np.int64)

    @cached_property
    def positions(self) -> dict[str, int]:
        """Position in `uids` of each structure."""
        return {uid: i for i, uid in enumerate(self.uids())}

    def rows_by_file(self, table: str, *raws: np.ndarray) -> dict[str, list[int]]:
        """How many of each set of raw row numbers are in each file."""
        names, edges = self._index.names[: len(self._segments)], self._starts(table)
        counts = [np.histogram(raw, edges)[0].tolist() if names else [] for raw in raws]
        return {name: list(each) for name, *each in zip(names, *counts, strict=True)}

    def _raw(self, table: str, places: Iterable[tuple[int, int]]) -> np.ndarray:
        pairs = np.array(list(places), np.int64).reshape(-1, 2)
        return self._starts(table)[pairs[:, 0]] + pairs[:, 1]

    def _all(self, table: str) -> list[Any]:
        return self.decode_raw(table, np.arange(self.raw_count(table)))

    def decode_raw(self, table: str, raw: np.ndarray) -> list[Any]:
        """Row values of raw row numbers, in their order."""
        starts = self._starts(table)
        numbers = np.searchsorted(starts, raw, side="right") - 1
        return self._decode_places(table, np.stack([numbers, raw - starts[numbers]], axis=1))

    def _decode_places(self, table: str, places: np.ndarray) -> list[Any]:
        found: list[Any] = [None] * len(places)
        order = np.argsort(places[:, 0], kind="stable")
        cuts = np.flatnonzero(np.diff(places[order, 0])) + 1
        for group in np.split(order, cuts):
            if len(group):
                segment = self._segments[places[group[0], 0]]
                values = decode(segment, table, places[group, 1])
                for i, value in zip(group.tolist(), values, strict=True):
                    found[i] = value
        return found


def _column(segment: Segment, table: str, name: str) -> np.ndarray | None:
    """None when the segment has no such rows; zeros when it is older than the column."""
    array = segment.get(f"/{table}/{name}")
    if array is None and (n := row_count(segment, table)):
        empty = _empty(table, name)
        return np.zeros((n, *empty.shape[1:]), empty.dtype)
    return array


def _empty(table: str, name: str) -> np.ndarray:
    for column in TABLES[table].columns:
        if column.name == name:
            return np.zeros((0, 16), "u1") if column.kind == "id" else np.zeros((0, *column.tail))
    raise KeyError(f"{table} has no column {name}")


def atoms_of(row: Any) -> Atoms:
    """A structure row as ASE has it."""
    atoms = Atoms(numbers=row.numbers, positions=row.positions, cell=row.cell, pbc=row.pbc)
    for name in ("charge", "multiplicity"):
        if getattr(row, name):
            atoms.info[name] = getattr(row, name)
    kinds = {"tags": int, "fixed": bool}
    for name, values in row.extra.items():
        atoms.set_array(name.removesuffix("_xyz"), values.astype(kinds.get(name, float)))
    return atoms
