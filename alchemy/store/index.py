"""Rows of all segments as if they were one: numbered through, found by identity, and which labels count.

A raw row number counts the rows of a table from the first segment on. Nothing here grows with the store
before it is asked for, and what is made of a segment is kept with it, as segments never change.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from alchemy.store.ids import NOTHING, first_rows, matches, prefixes, sound_ids, texts16
from alchemy.store.named import specs_in
from alchemy.store.rows import PropertySpec
from alchemy.store.schema import NULL_CODE, decode, row_count, words
from alchemy.store.segment import Segment


class Index:
    """The segments of a view. Answers what `ingest` asks about rows already there."""

    def __init__(
        self, names: Sequence[str] = (), segments: Sequence[Segment] = (), last: Sequence[int] = ()
    ) -> None:
        self.names, self.segments, self.last = list(names), list(segments), list(last)
        self._starts: dict[str, np.ndarray] = {}

    def more(self, found: Sequence[tuple[str, Segment, int]]) -> Index:
        """An index of these segments, (name, segment, newest commit), after the own ones."""
        names, segments, last = zip(*found, strict=True) if found else ((), (), ())
        return Index([*self.names, *names], [*self.segments, *segments], [*self.last, *last])

    def first(self, n: int) -> Index:
        """An index of the first n segments."""
        return Index(self.names[:n], self.segments[:n], self.last[:n])

    def starts(self, table: str) -> np.ndarray:
        """Raw number of the first row of each segment, and of all rows at the end."""
        if table not in self._starts:
            counts = [row_count(segment, table) for segment in self.segments]
            self._starts[table] = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return self._starts[table]

    def ids(self, path: str) -> list[np.ndarray]:
        """A column of ids of every segment."""
        return [NOTHING if (a := segment.get(path)) is None else a for segment in self.segments]

    def find(self, path: str, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(place in `wanted`, raw row) of all rows with one of these ids, by row."""
        starts = self.starts(path.split("/")[1])
        needles, rows = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for segment, start in zip(self.segments, starts.tolist(), strict=False):
            places, found = matches(segment, path, wanted)
            order = np.argsort(found, kind="stable")
            needles.append(places[order])
            rows.append(found[order] + start)
        return np.concatenate(needles), np.concatenate(rows)

    def first_raw(self, path: str, wanted: np.ndarray) -> np.ndarray:
        """The first raw row with each id, −1 where there is none."""
        return first_rows(len(wanted), *self.find(path, wanted))

    def places(self, table: str, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(number of the segment, row in it) of raw rows."""
        starts = self.starts(table)
        numbers = np.searchsorted(starts, raw, side="right") - 1
        return numbers, raw - starts[numbers]

    # Answers for `ingest`: an append need not make a view.

    def has_structures(self, ids: np.ndarray) -> np.ndarray:
        """Which of these ids, u1 [n,16], are of structures that are there."""
        found: np.ndarray = self.first_raw("/structures/uid", ids) >= 0
        return found

    def atom_counts(self, uids: Iterable[str]) -> dict[str, int]:
        """Number of atoms of those structures that are there."""
        names, ids = sound_ids(uids)
        raw = self.first_raw("/structures/uid", ids)
        numbers, rows = self.places("structures", raw)
        known = np.flatnonzero(raw >= 0).tolist()
        columns = {n: self.segments[n]["/structures/n_atoms"] for n in set(numbers[known].tolist())}
        return {names[i]: int(columns[int(numbers[i])][rows[i]]) for i in known}

    def label_states(self, keys: Iterable[str]) -> dict[str, bool]:
        """Of those labels that are there, whether the current row is ok."""
        return {key: ok for key, (_, ok) in self.label_places(keys).items()}

    def label_places(self, keys: Iterable[str]) -> dict[str, tuple[int, bool]]:
        """(raw number of the current row, whether it is ok) of those labels that are there."""
        names, wanted = sound_ids(keys)
        needles, raw = self.find("/labels/uid", wanted)
        ok = self._is_ok(raw)
        counts = current(wanted[needles], ok, raw, *self.retractions())
        found = zip(needles[counts].tolist(), raw[counts].tolist(), ok[counts].tolist(), strict=True)
        return {names[i]: (row, good) for i, row, good in found}

    def parts_of(self, uids: Iterable[str]) -> dict[str, str]:
        """Part of those structures that have one."""
        names, ids = sound_ids(uids)
        needles, raw = self.find("/splits/structure_uid", ids)
        newest = dict(zip(needles.tolist(), raw.tolist(), strict=True))
        numbers, rows = self.places("splits", np.array([*newest.values()], np.int64))
        cells = zip(newest, numbers.tolist(), rows.tolist(), strict=True)
        return {names[i]: self._part(number, row) for i, number, row in cells}

    def _part(self, number: int, row: int) -> str:
        segment = self.segments[number]
        code = int(segment["/splits/part"][row])
        return "" if code == NULL_CODE else words(segment, "part")[code]

    def registry(self) -> dict[str, dict[str, Any]]:
        """The newest document of every key."""
        found: dict[str, str] = {}
        for segment in self.segments:
            if n := row_count(segment, "registry"):
                if "registry" not in segment.derived:
                    rows = decode(segment, "registry", np.arange(n))
                    segment.derived["registry"] = {row.key: row.document for row in rows}
                found.update(segment.derived["registry"])
        return {key: json.loads(text) for key, text in found.items()}

    def quantities(self) -> dict[str, PropertySpec]:
        """What the named labels of these segments are."""
        found: dict[str, PropertySpec] = {}
        for segment in self.segments:
            found.update(specs_in(segment, "properties"))
        return found

    def levels(self) -> dict[str, set[str]]:
        """Fingerprints of the labels of every fidelity, failed and withdrawn ones included."""
        found: dict[str, set[str]] = {}
        for segment in self.segments:
            for fidelity, mark in _levels_in(segment):
                found.setdefault(fidelity, set()).add(mark)
        return found

    def current_levels(self) -> dict[str, dict[str, int]]:
        """Labels that count and are ok, per fidelity and fingerprint."""
        found: dict[str, dict[str, int]] = {}
        raw = self.current_labels()
        numbers, rows = self.places("labels", raw[self._is_ok(raw)])
        for number in np.unique(numbers).tolist():
            for (fidelity, mark), n in _levels_at(self.segments[number], rows[numbers == number]).items():
                own = found.setdefault(fidelity, {})
                own[mark] = own.get(mark, 0) + n
        return found

    def _is_ok(self, raw: np.ndarray) -> np.ndarray:
        """Whether the status of raw rows of labels is 'ok'."""
        numbers, rows = self.places("labels", raw)
        found = np.zeros(len(raw), bool)
        for number in np.unique(numbers).tolist():
            segment, own = self.segments[number], numbers == number
            texts = words(segment, "status")
            code = texts.index("ok") if "ok" in texts else -1
            found[own] = segment["/labels/status"][rows[own]] == code
        return found

    def retractions(self) -> tuple[np.ndarray, np.ndarray]:
        """(id of each hidden label, number of raw rows of labels that came before its retraction)."""
        targets, limits = [NOTHING], [np.zeros(0, np.int64)]
        for segment, start in zip(self.segments, self.starts("labels").tolist(), strict=False):
            own = segment.get("/retractions/target")
            if own is None or not len(own):
                continue
            targets.append(own)
            hidden, labels = (segment.get(f"/commits/rows/{t}") for t in ("retractions", "labels"))
            if hidden is None or labels is None:  # one commit
                limits.append(np.full(len(own), start))
            else:
                limits.append(start + np.repeat(labels[:-1], np.diff(hidden)))
        return np.concatenate(targets), np.concatenate(limits)

    def current_labels(self) -> np.ndarray:
        """Raw rows of labels that count: see `current`."""
        n = int(self.starts("labels")[-1])
        targets, limits = self.retractions()
        among = self.repeated("/labels/uid")
        if len(targets):
            among = np.union1d(among, self.find("/labels/uid", targets)[1])
        if not len(among):
            return np.arange(n)
        counts = np.ones(n, bool)
        keys = _rows_of(self.ids("/labels/uid"), among)
        counts[among] = current(keys, self._is_ok(among), among, targets, limits)
        return np.flatnonzero(counts)

    def repeated(self, path: str) -> np.ndarray:
        """Raw rows of which the first 8 bytes of the id occur more than once."""
        keys = self._prefixes(path)
        keys.sort()
        twice = keys[1:][keys[1:] == keys[:-1]]
        return np.flatnonzero(np.isin(self._prefixes(path), twice)) if len(twice) else np.zeros(0, np.int64)

    def _prefixes(self, path: str) -> np.ndarray:
        starts = self.starts(path.split("/")[1]).tolist()
        found = np.empty(starts[-1], np.uint64)
        for segment, start, end in zip(self.segments, starts, starts[1:], strict=False):
            if end > start:
                found[start:end] = prefixes(segment[path])
                segment.release()
        return found

    def repeats(self) -> tuple[np.ndarray, np.ndarray]:
        """(raw rows of structures that were there before, the first row of each): of two writers at once."""
        among = self.repeated("/structures/uid")
        if not len(among):
            return among, among
        ids = texts16(_rows_of(self.ids("/structures/uid"), among))
        _, first, which = np.unique(ids, return_index=True, return_inverse=True)
        origin = among[first][which]
        again = origin != among
        return among[again], origin[again]


def current(
    ids: np.ndarray, ok: np.ndarray, raw: np.ndarray, targets: np.ndarray, limits: np.ndarray
) -> np.ndarray:
    """Which rows of labels count: of each id the last ok one, else the last; none from before a retraction.

    Args:
        ids, ok, raw: of rows of labels: [n,16], whether the status is ok, and raw row number.
        targets, limits: of retractions: [m,16], and the rows of labels that came before.
    """
    _, group = np.unique(texts16(np.concatenate([ids, targets])), return_inverse=True)
    hidden = np.zeros(group.max(initial=0) + 1, np.int64)
    np.maximum.at(hidden, group[len(ids) :], limits)
    group = group[: len(ids)]
    order = np.lexsort((raw, ok, group))
    order = order[raw[order] >= hidden[group[order]]]
    last = np.flatnonzero(np.append(np.diff(group[order]) > 0, True)) if len(order) else order
    found = np.zeros(len(ids), bool)
    found[order[last]] = True
    return found


def _rows_of(columns: Sequence[np.ndarray], raw: np.ndarray) -> np.ndarray:
    """Raw rows, ascending, of a column that is in pieces."""
    starts = np.cumsum([0, *map(len, columns)])
    cuts = np.searchsorted(raw, starts)
    pieces = zip(columns, starts, cuts, cuts[1:], strict=False)
    return np.concatenate([NOTHING, *(column[raw[lo:hi] - start] for column, start, lo, hi in pieces)])


def _levels_in(segment: Segment) -> list[tuple[str, str]]:
    """(fidelity, fingerprint) of the rows of a segment, kept with it: each append asks."""
    if "levels" not in segment.derived:
        every = np.arange(row_count(segment, "labels"))
        segment.derived["levels"] = list(_levels_at(segment, every)) if len(every) else []
    found: list[tuple[str, str]] = segment.derived["levels"]
    return found


def _levels_at(segment: Segment, rows: np.ndarray) -> dict[tuple[str, str], int]:
    """How many of these rows have each pair of fidelity and fingerprint."""
    columns = [segment[f"/labels/{name}"][rows].astype(np.int64) for name in ("fidelity", "fingerprint")]
    pairs, counts = np.unique(columns[0] << 32 | columns[1], return_counts=True)
    texts = [words(segment, name) for name in ("fidelity", "fingerprint")]
    found = {}
    for pair, n in zip(pairs.tolist(), counts.tolist(), strict=True):
        codes = (pair >> 32, pair & NULL_CODE)
        first, second = ("" if c == NULL_CODE else t[c] for c, t in zip(codes, texts, strict=True))
        found[first, second] = n
    return found
