"""The result of a query."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from alchemy.errors import QueryError
from alchemy.store.fields import FIELDS, STRUCTURE_FIELDS, View, fields_of, kinds_of, symbols
from alchemy.store.ids import id_texts, texts16
from alchemy.store.query import Codes, Ids, Query, compile_query
from alchemy.store.syntax import resolve
from tace.wording import hint

if TYPE_CHECKING:
    from alchemy.store.snapshot import Snapshot

DEFAULT_COLUMNS = {
    "structures": ("uid", "formula", "n_atoms", "split", "sampler", "round"),
    "labels": ("uid", "formula", "n_atoms", "fidelity", "status", "energy", "max_force"),
    "predictions": ("uid", "formula", "model_set", "fidelity", "energy_std", "max_force_std"),
    "events": ("uid", "kind", "round", "sampler", "reason", "expected_error"),
    "failures": ("uid", "stage", "fidelity", "reason", "message", "attempt"),
}


@dataclass(frozen=True, eq=False)
class Table:
    """Columns by field name: arrays of numbers (NaN = unset; integers where none is unset), lists
    of text or True/False (None = unset), lists of symbols. `uids` are the structures of the rows.
    """

    columns: dict[str, np.ndarray | list[Any]]
    uids: list[str]
    matched: int  # rows for which the expression is true, before `limit`
    notes: tuple[str, ...] = ()  # texts of the query that no row has

    def __len__(self) -> int:
        return len(self.uids)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One dict per row that json.dumps accepts; unset is None."""
        lists = [_plain(name, column) for name, column in self.columns.items()]
        for values in zip(*lists, strict=True) if lists else ([] for _ in self.uids):
            yield dict(zip(self.columns, values, strict=True))


_INTEGERS = {n for fields in FIELDS.values() for n, f in fields.items() if f.kind == "integer"}


def _plain(name: str, column: np.ndarray | list[Any]) -> list[Any]:
    if isinstance(column, list):
        return column
    values = [None if value != value else value for value in column.tolist()]
    return [v if v is None else int(v) for v in values] if name in _INTEGERS else values


def select(
    snapshot: Snapshot,
    expression: str,
    *,
    rows: str,
    columns: Sequence[str] | None,
    sort: str | None,
    limit: int | None,
) -> Table:
    """See `Snapshot.select`."""
    if limit is not None and limit < 0:
        raise QueryError(f"limit {limit}: should not be negative")
    query, rows, order, names = _plan(expression, rows, columns, sort)
    view = View(snapshot, rows)
    chosen = np.flatnonzero(query.mask(view))
    matched = len(chosen)
    if order is not None:
        chosen = chosen[_order(view.at(chosen), order, descending=str(sort).startswith("-"))]
    shown = view.at(chosen[:limit])
    return Table(
        {name: _values(shown, name) for name in names or DEFAULT_COLUMNS[rows]},
        shown.uids(),
        matched,
        () if matched else tuple(_unknown_texts(view, query)),
    )


def matching(snapshot: Snapshot, expression: str, *, rows: str) -> np.ndarray:
    """Mask of the current rows for which the expression is true. Raises QueryError."""
    query, rows, _, _ = _plan(expression, rows, None, None)
    return query.mask(View(snapshot, rows))


def count(snapshot: Snapshot, expression: str, *, rows: str) -> int:
    """See `Snapshot.count`."""
    return int(np.count_nonzero(matching(snapshot, expression, rows=rows)))


def _plan(
    expression: str, rows: str, columns: Sequence[str] | None, sort: str | None
) -> tuple[Query, str, str | None, list[str] | None]:
    """(query, kind of rows, field to sort by, columns). Raises QueryError."""
    kinds = kinds_of(rows)
    query = compile_query(expression, kinds)
    order = None if sort is None else resolve(sort.removeprefix("-"), kinds)
    names = None if columns is None else [resolve(name, kinds) for name in columns]
    if rows == "auto":
        used = {*query.needs, *(names or ()), *([order] if order else ())}
        rows = "structures" if used <= STRUCTURE_FIELDS.keys() else "labels"
    return query, rows, order, names


def _unknown_texts(view: View, query: Query) -> Iterator[str]:
    for name, text in sorted(query.texts):
        column = view.codes(name)
        if isinstance(column, Ids):
            if len(text) != 32:
                yield f"{name} '{text}': all 32 hex digits are needed here; 'alchemy data show' takes fewer"
        elif text not in column.vocabulary:
            known = sorted(column.vocabulary)[:20]
            yield f"no row has {name} '{text}'; {hint(text, known, label='there are')}"


def explain(
    snapshot: Snapshot,
    expression: str,
    *,
    rows: str,
    columns: Sequence[str] | None,
    sort: str | None,
) -> dict[str, Any]:
    """How a query is answered: kind of rows, fields read, rows looked at and matched, by file."""
    query, rows, order, names = _plan(expression, rows, columns, sort)
    view = View(snapshot, rows)
    matched = view.raw[query.mask(view)]
    return {
        "rows": rows,
        "fields": {n: FIELDS[rows][n].meaning for n in sorted({*query.needs, *([order] if order else [])})},
        "columns": list(names or DEFAULT_COLUMNS[rows]),
        "looked_at": view.n,
        "matched": len(matched),
        "files": snapshot.raw.rows_by_file(rows, view.raw, matched),
    }


def _order(view: View, name: str, *, descending: bool) -> np.ndarray:
    """Stable order of the rows, unset values last in both directions."""
    kind, values = FIELDS[view.rows][name].kind, view.load(name)
    if kind == "elements":
        raise QueryError("sort: elements have no order")
    if isinstance(values, Codes):
        rank = np.full(len(values.vocabulary) + 1, np.nan)  # the last one is for code −1
        rank[[values.vocabulary[text] for text in sorted(values.vocabulary)]] = np.arange(len(rank) - 1)
        values = rank[values.codes]
    elif isinstance(values, Ids):
        ranks = np.unique(texts16(values.ids), return_inverse=True)[1]
        values = np.where(values.unset(), np.nan, ranks)
    return np.argsort(-values if descending else values, kind="stable")


def _values(view: View, name: str) -> np.ndarray | list[Any]:
    kind, values = FIELDS[view.rows][name].kind, view.load(name)
    if isinstance(values, Codes):
        texts = [*values.vocabulary, None]  # code −1 is the last
        return [texts[code] for code in values.codes.tolist()]
    if isinstance(values, Ids):
        return [text or None for text in id_texts(values.ids)]
    if kind == "elements":
        return [symbols(mask) for mask in values]
    numbers: np.ndarray = values
    if kind == "bool":
        return [None if value != value else bool(value) for value in numbers.tolist()]
    if kind == "integer" and not np.isnan(numbers).any():
        return numbers.astype(np.int64)
    return numbers


def field_meanings(rows: str) -> dict[str, str]:
    """Meaning and unit of every field of a kind of rows. Raises QueryError."""
    return {name: field.meaning for name, field in fields_of(rows).items()}
