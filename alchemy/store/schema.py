"""Rows to columns and back: format 1.2 of the segments.

`/<table>/<column>` holds one entry per row. Column kinds:
plain   a number or fixed tensor per row
maybe   the same; a row without it holds NaN
id      u1 [16]; 32 hex digits in Python, zeros when unset
code    u4 into `/dict/<column>` (shared by the tables of a segment); 0xFFFFFFFF when the text is ''
text    free text: u1 bytes `/<table>/<column>` cut by `/<table>/<column>_offset`
atoms   `/<table>/atoms/<column>`, rows of all atoms one after another, cut by `/<table>/offset`
Named arrays are those of `alchemy.store.named`, what is repeated to be searched quickly is in
`alchemy.store.derived`. Format 1.0 lacks `/structures/canon_uid`, `/quantities`, conditions and extra arrays,
1.1 all that is derived.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from alchemy.errors import StoreError
from alchemy.store.bulk import Block, Ragged
from alchemy.store.columns import TABLES, Column
from alchemy.store.derived import of_labels
from alchemy.store.ids import id_bytes, id_texts
from alchemy.store.layout import Dataset
from alchemy.store.named import decode_named, describe, encode_named
from alchemy.store.rows import KNOWN, Batch
from alchemy.store.segment import Segment

NULL_CODE = 0xFFFFFFFF


def row_count(segment: Segment, table: str) -> int:
    """Rows of a table in a segment; 0 when it has none."""
    return segment.length(f"/{table}/{TABLES[table].columns[0].name}")


class _Vocabulary:
    """Codes of texts in order of first use, one numbering per column name."""

    def __init__(self) -> None:
        self.words: dict[str, dict[str, int]] = {}

    def encode(self, column: str, texts: Sequence[str] | str, n: int) -> np.ndarray:
        """Codes of n texts, or n times the code of one."""
        words = self.words.setdefault(column, {})
        for text in [texts] if isinstance(texts, str) else dict.fromkeys(texts):
            if "\0" in text:
                raise StoreError(f"{column}: {text!r} contains a NUL character")
            if text:
                words.setdefault(text, len(words))
        codes = {**words, "": NULL_CODE}
        if isinstance(texts, str):
            return np.full(n, codes[texts], "<u4")
        return np.fromiter(map(codes.__getitem__, texts), "<u4", n)

    def datasets(self) -> dict[str, Dataset]:
        return {
            f"/dict/{column}": Dataset(fixed_strings(words), "1", f"texts of {column}, by code")
            for column, words in self.words.items()
            if words
        }


def fixed_strings(words: Sequence[str] | dict[str, int]) -> np.ndarray:
    """UTF-8 of one length, marked as text for h5py."""
    encoded = [word.encode() for word in words]
    size = max(map(len, encoded))
    array = np.array(encoded, f"S{size}")
    return array.astype(np.dtype(f"S{size}", metadata={"h5py_encoding": "utf-8"}))


def _offsets(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype("<i8")


def _ragged(values: Any, dtype: str, tail: tuple[int, ...]) -> Ragged:
    """Values of one row each, None for none, one after another."""
    if isinstance(values, Ragged):
        return values
    nothing = np.zeros((0, *tail), dtype)
    parts = [nothing if v is None else np.asarray(v, dtype) for v in values]
    parts = [part if part.shape[1:] == tail else part.reshape(-1, *tail) for part in parts]
    return Ragged(np.array([len(part) for part in parts]), np.concatenate([nothing, *parts]))


def _encode_column(table: str, column: Column, values: Any) -> dict[str, Dataset]:
    """The datasets of the values of all rows: an array, a list, or Ragged."""
    path, rest = f"/{table}/{column.name}", (column.unit, column.description)
    if column.kind == "id":
        return {path: Dataset(values if isinstance(values, np.ndarray) else id_bytes(values), *rest)}
    if column.kind == "text":
        blobs = [np.frombuffer(v.encode(errors="backslashreplace"), "u1") for v in values]
        offset = Dataset(_offsets([len(b) for b in blobs]), "1", f"where each {column.name} begins")
        return {path + "_offset": offset, path: Dataset(np.concatenate(blobs), *rest)}
    if column.kind == "atoms":
        lengths, joined = _ragged(values, column.dtype, column.tail)
        offset = Dataset(_offsets(lengths), "1", "where the atoms of a row begin")
        own = np.ascontiguousarray(joined, column.dtype)
        return {f"/{table}/offset": offset, f"/{table}/atoms/{column.name}": Dataset(own, *rest)}
    if column.kind == "maybe" and not isinstance(values, np.ndarray):
        values = [np.full(column.tail, np.nan) if v is None else v for v in values]
    array = np.asarray(values, column.dtype).reshape(len(values), *column.tail)
    return {path: Dataset(array, *rest)}


def _values(rows: Sequence[Any] | Block, field: str) -> Any:
    return rows.columns[field] if isinstance(rows, Block) else [getattr(row, field) for row in rows]


def encode(batch: Batch) -> dict[str, Dataset]:
    """The datasets of a commit. Raises StoreError for a value that does not fit its column."""
    vocabulary = _Vocabulary()
    datasets: dict[str, Dataset] = {}
    for table, rows in batch.tables().items():
        for column in TABLES[table].columns:
            values = _values(rows, column.field)
            try:
                if column.kind == "code":
                    codes = vocabulary.encode(column.name, values, len(rows))
                    path = f"/{table}/{column.name}"
                    datasets[path] = Dataset(codes, column.unit, column.description)
                else:
                    datasets.update(_encode_column(table, column, values))
            except (TypeError, ValueError, OverflowError, AttributeError) as error:
                raise StoreError(f"{table}: {column.field}: {error}") from error
    datasets.update(_encode_named(batch))
    if len(batch.labels):
        arrays = (datasets[path].array for path in ("/labels/offset", "/labels/atoms/forces"))
        datasets.update(of_labels(*arrays))  # type: ignore[arg-type]
    return {**datasets, **vocabulary.datasets()}


_NAMED = {"labels": ("properties", "conditions"), "structures": ("extra",)}


def _encode_named(batch: Batch) -> dict[str, Dataset]:
    datasets: dict[str, Dataset] = {}
    used: dict[str, dict[str, Any]] = {}
    for table, fields in _NAMED.items():
        rows = getattr(batch, table)
        for field in fields:
            specs = {**KNOWN[field], **(batch.declared if field == "properties" else {})}
            if isinstance(rows, Block):
                values = rows.named.get(field, ())
            else:
                values = [getattr(row, field) for row in rows]
            datasets.update(encode_named(field, values, specs))
            names = sorted({name for value in values for name in value})
            used[field] = {name: specs[name] for name in names}
    return {**datasets, **describe(used)}


def words(segment: Segment, column: str) -> list[str]:
    """Texts of a code column, by code."""
    key = ("words", column)
    if key not in segment.derived:
        array = segment.get(f"/dict/{column}")
        segment.derived[key] = [] if array is None else [word.decode() for word in array.tolist()]
    found: list[str] = segment.derived[key]
    return found


def _cut(values: np.ndarray, offset: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    bounds = zip(offset[rows].tolist(), offset[rows + 1].tolist(), strict=True)
    return [values[lo:hi].copy() for lo, hi in bounds]


def _decode_column(segment: Segment, table: str, column: Column, *, rows: np.ndarray) -> list[Any]:
    path = f"/{table}/{column.name}"
    if column.since != "1.0" and segment.get(path) is None:
        return [""] * len(rows)  # only ids came later so far
    if column.kind == "id":
        return id_texts(segment[path][rows])
    if column.kind == "code":
        texts = words(segment, column.name)
        return ["" if c == NULL_CODE else texts[c] for c in segment[path][rows].tolist()]
    if column.kind == "text":
        parts = _cut(segment[path], segment[path + "_offset"], rows)
        return [part.tobytes().decode() for part in parts]
    if column.kind == "atoms":
        return _cut(segment[f"/{table}/atoms/{column.name}"], segment[f"/{table}/offset"], rows)
    array = segment[path][rows]
    if column.kind == "maybe" and not column.tail:
        return [None if value != value else value for value in array.tolist()]
    if column.kind == "maybe":
        return [None if np.isnan(value).all() else value.copy() for value in array]
    return [value.copy() for value in array] if column.tail else array.tolist()


def decode(segment: Segment, table: str, rows: np.ndarray) -> list[Any]:
    """Row values of the given row numbers, in their order. Arrays are copies: callers may write."""
    columns = TABLES[table].columns
    fields = {c.field: _decode_column(segment, table, c, rows=rows) for c in columns}
    if table == "labels":
        fields["forces_eV_per_A"] = [f if len(f) else None for f in fields["forces_eV_per_A"]]
    for field in _NAMED.get(table, ()):
        fields[field] = decode_named(segment, field, rows)
    if table == "events":
        fields["parent_uid"] = [uid or None for uid in fields["parent_uid"]]
    row = TABLES[table].row
    names = list(fields)
    return [
        row(**dict(zip(names, values, strict=True)))
        for values in zip(*fields.values(), strict=True)
    ]
