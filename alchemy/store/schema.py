"""Rows to columns and back: format 1.0 of the segments.

`/<table>/<column>` holds one entry per row. Column kinds:
plain   a number or fixed tensor per row
maybe   the same; a row without it holds NaN
id      u1 [16]; 32 hex digits in Python, zeros when unset
code    u4 into `/dict/<column>` (shared by the tables of a segment); 0xFFFFFFFF when the text is ''
text    free text: u1 bytes `/<table>/<column>` cut by `/<table>/<column>_offset`
atoms   `/<table>/atoms/<column>`, rows of all atoms one after another, cut by `/<table>/offset`
`/labels/props/<name>` is 'maybe' (scope frame) or cut by `/labels/props_offset/<name>` (atom).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from alchemy.errors import StoreError
from alchemy.store.rows import (
    PROPERTIES,
    Batch,
    EventRow,
    FailureRow,
    LabelRow,
    PredictionRow,
    PropertySpec,
    RegistryRow,
    RetractionRow,
    SplitRow,
    StructureRow,
)
from alchemy.store.segment import Dataset, Segment

NULL_CODE = 0xFFFFFFFF


class Column(NamedTuple):
    """How a field of a row dataclass becomes a dataset."""

    field: str
    name: str
    kind: str
    unit: str
    description: str
    dtype: str = "<f8"
    tail: tuple[int, ...] = ()


@dataclass(frozen=True)
class Table:
    """A row dataclass and its columns; the first column is there whenever the table is."""

    row: Any
    columns: tuple[Column, ...]


def _id(field: str, description: str, name: str = "") -> Column:
    return Column(field, name or field, "id", "1", description)


def _code(name: str, description: str) -> Column:
    return Column(name, name, "code", "1", description)


def _int(name: str, description: str) -> Column:
    return Column(name, name, "plain", "1", description, "<i8")


_STRUCTURE = _id("structure_uid", "identity of the structure")
_TIME = Column("time", "time", "plain", "s", "unix time")

TABLES: dict[str, Table] = {
    "structures": Table(
        StructureRow,
        (
            _id("uid", "blake2b-128 of what labels depend on"),
            Column("n_atoms", "n_atoms", "plain", "1", "number of atoms", "<i4"),
            Column("numbers", "numbers", "atoms", "1", "atomic numbers", "|u1"),
            Column("positions", "positions", "atoms", "Angstrom", "on a 1e-8 grid", "<f8", (3,)),
            Column("cell", "cell", "plain", "Angstrom", "rows are vectors", "<f8", (3, 3)),
            Column("pbc", "pbc", "plain", "1", "periodic along each vector", "|u1", (3,)),
            Column("charge", "charge", "plain", "e", "total charge", "<i2"),
            Column("multiplicity", "multiplicity", "plain", "1", "2S+1, 0 = unset", "<i2"),
            Column("elements", "elements", "plain", "1", "bit Z set if present", "<u8", (2,)),
            _code("formula", "Hill formula"),
        ),
    ),
    "labels": Table(
        LabelRow,
        (
            _id("key", "hash of structure, fidelity, physics and replica", "uid"),
            _STRUCTURE,
            _code("fidelity", "level of theory as the campaign names it"),
            _code("fingerprint", "hash of everything that changes the number"),
            _code("status", "ok or the reason of failure"),
            _code("code", "program and version"),
            Column("energy_eV", "energy", "plain", "eV", "energy of the whole structure"),
            _code("energy_kind", "total or free energy"),
            Column("forces_eV_per_A", "forces", "atoms", "eV/Angstrom", "raw", "<f8", (3,)),
            Column(
                "stress_eV_per_A3",
                "stress",
                "maybe",
                "eV/Angstrom^3",
                "Voigt xx yy zz yz xz xy, tension positive",
                "<f8",
                (6,),
            ),
            Column("wall_s", "wall_s", "plain", "s", "elapsed time"),
            Column("cpu_s", "cpu_s", "plain", "s", "processor time"),
            Column("created", "created", "plain", "s", "unix time"),
            _int("replica", "repetitions of the same calculation"),
            _int("attempt", "which try this is, from 1"),
        ),
    ),
    "predictions": Table(
        PredictionRow,
        (
            _STRUCTURE,
            _code("model_set", "hash of the committee"),
            _code("fidelity", "level of theory predicted"),
            Column("energy_eV", "energy", "plain", "eV", "mean over members"),
            Column("energy_std_eV", "energy_std", "plain", "eV", "standard deviation over members"),
            Column(
                "max_force_std_eV_per_A",
                "max_force_std",
                "plain",
                "eV/Angstrom",
                "largest force_std",
            ),
            Column("force_std_eV_per_A", "force_std", "atoms", "eV/Angstrom", "per atom", "<f4"),
        ),
    ),
    "events": Table(
        EventRow,
        (
            _STRUCTURE,
            _code("kind", "start, candidate, selected, rejected, duplicate"),
            _id("parent_uid", "structure it was made from"),
            _code("sampler", "what made it"),
            _code("reason", "why"),
            _int("round", "round of the campaign, -1 = none"),
            _int("step", "step of the trajectory, -1 = none"),
            Column("temperature_K", "temperature", "plain", "K", "of the trajectory"),
            Column(
                "expected_error_eV_per_A", "expected_error", "plain", "eV/Angstrom", "of the forces"
            ),
            _TIME,
        ),
    ),
    "failures": Table(
        FailureRow,
        (
            _STRUCTURE,
            _code("stage", "stage of the campaign"),
            _code("fidelity", "level of theory"),
            _code("reason", "reason code"),
            Column("message", "message", "text", "1", "what the program said", "|u1"),
            _int("attempt", "which try this was, from 1"),
            _TIME,
        ),
    ),
    "splits": Table(SplitRow, (_STRUCTURE, _code("part", "train, test, ..."), _TIME)),
    "retractions": Table(
        RetractionRow, (_id("target", "label hidden"), _code("reason", "why"), _TIME)
    ),
    "registry": Table(
        RegistryRow,
        (
            _code("key", "hash or name"),
            Column("document", "document", "text", "1", "JSON", "|u1"),
        ),
    ),
}


def row_count(segment: Segment, table: str) -> int:
    """Rows of a table in a segment; 0 when it has none."""
    return segment.length(f"/{table}/{TABLES[table].columns[0].name}")


class _Vocabulary:
    """Codes of texts in order of first use, one numbering per column name."""

    def __init__(self) -> None:
        self.words: dict[str, dict[str, int]] = {}

    def encode(self, column: str, texts: Sequence[str]) -> np.ndarray:
        words = self.words.setdefault(column, {})
        for text in texts:
            if "\0" in text:
                raise StoreError(f"{column}: {text!r} contains a NUL character")
        return np.array([words.setdefault(t, len(words)) if t else NULL_CODE for t in texts], "<u4")

    def datasets(self) -> dict[str, Dataset]:
        return {
            f"/dict/{column}": Dataset(_fixed_strings(words), "1", f"texts of {column}, by code")
            for column, words in self.words.items()
            if words
        }


def _fixed_strings(words: Sequence[str] | dict[str, int]) -> np.ndarray:
    encoded = [word.encode() for word in words]
    size = max(map(len, encoded))
    array = np.array(encoded, f"S{size}")
    return array.astype(np.dtype(f"S{size}", metadata={"h5py_encoding": "utf-8"}))


def _ids(values: Sequence[str | None]) -> np.ndarray:
    data = b"".join(bytes.fromhex(value or "0" * 32) for value in values)
    if len(data) != 16 * len(values):
        raise ValueError("uids and keys are 32 hex digits")
    return np.frombuffer(data, "u1").reshape(-1, 16)


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype("<i8")


def _join(arrays: Sequence[Any], dtype: str, tail: tuple[int, ...]) -> np.ndarray:
    parts = [np.asarray(a, dtype).reshape(-1, *tail) for a in arrays]
    return np.concatenate(parts) if parts else np.zeros((0, *tail), dtype)


def _encode_column(table: str, column: Column, values: list[Any]) -> dict[str, Dataset]:
    path, rest = f"/{table}/{column.name}", (column.unit, column.description)
    if column.kind == "id":
        return {path: Dataset(_ids(values), *rest)}
    if column.kind == "text":
        blobs = [np.frombuffer(v.encode(errors="backslashreplace"), "u1") for v in values]
        offset = Dataset(_offsets([len(b) for b in blobs]), "1", f"where each {column.name} begins")
        return {path + "_offset": offset, path: Dataset(np.concatenate(blobs), *rest)}
    if column.kind == "atoms":
        filled = [np.zeros((0, *column.tail)) if v is None else v for v in values]
        joined = Dataset(_join(filled, column.dtype, column.tail), *rest)
        offset = Dataset(_offsets([len(v) for v in filled]), "1", "where the atoms of a row begin")
        return {f"/{table}/offset": offset, f"/{table}/atoms/{column.name}": joined}
    if column.kind == "maybe":
        values = [np.full(column.tail, np.nan) if v is None else v for v in values]
    array = np.array(values, column.dtype).reshape(len(values), *column.tail)
    return {path: Dataset(array, *rest)}


def encode(batch: Batch) -> dict[str, Dataset]:
    """The datasets of a commit. Raises StoreError for a value that does not fit its column."""
    vocabulary = _Vocabulary()
    datasets: dict[str, Dataset] = {}
    for table, rows in batch.tables().items():
        for column in TABLES[table].columns:
            values = [getattr(row, column.field) for row in rows]
            try:
                if column.kind == "code":
                    codes = vocabulary.encode(column.name, values)
                    path = f"/{table}/{column.name}"
                    datasets[path] = Dataset(codes, column.unit, column.description)
                else:
                    datasets.update(_encode_column(table, column, values))
            except (TypeError, ValueError, OverflowError, AttributeError) as error:
                raise StoreError(f"{table}: {column.field}: {error}") from error
    datasets.update(_encode_properties(batch.labels))
    return {**datasets, **vocabulary.datasets()}


def _encode_properties(labels: Sequence[LabelRow]) -> dict[str, Dataset]:
    datasets = {}
    for name in sorted({name for label in labels for name in label.properties}):
        spec = PROPERTIES[name]
        values = [label.properties.get(name) for label in labels]
        description = f"{spec.description} (per {spec.scope})"
        if spec.scope == "frame":
            filled = [np.full(spec.tail, np.nan) if v is None else v for v in values]
            array = np.array(filled, "<f8").reshape(len(values), *spec.tail)
        else:
            present = [np.zeros((0, *spec.tail)) if v is None else np.asarray(v) for v in values]
            array = _join(present, "<f8", spec.tail)
            offset = _offsets([len(v) for v in present])
            datasets[f"/labels/props_offset/{name}"] = Dataset(
                offset, "1", "where the atoms of a row begin; an empty row has no value"
            )
        datasets[f"/labels/props/{name}"] = Dataset(array, spec.unit, description)
    return datasets


def id_texts(array: np.ndarray) -> list[str]:
    """32 hex digits per row of a u1 [n,16] array; '' for zeros."""
    digits = array.tobytes().hex()
    unset = "0" * 32
    texts = [digits[i : i + 32] for i in range(0, len(digits), 32)]
    return ["" if text == unset else text for text in texts]


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
    if column.kind == "maybe":
        return [None if np.isnan(value).all() else value.copy() for value in array]
    return [value.copy() for value in array] if column.tail else array.tolist()


def decode(segment: Segment, table: str, rows: np.ndarray) -> list[Any]:
    """Row values of the given row numbers, in their order. Arrays are copies: callers may write."""
    columns = TABLES[table].columns
    fields = {c.field: _decode_column(segment, table, c, rows=rows) for c in columns}
    if table == "labels":
        fields["forces_eV_per_A"] = [f if len(f) else None for f in fields["forces_eV_per_A"]]
        fields["properties"] = _decode_properties(segment, rows)
    if table == "events":
        fields["parent_uid"] = [uid or None for uid in fields["parent_uid"]]
    row = TABLES[table].row
    names = list(fields)
    return [
        row(**dict(zip(names, values, strict=True)))
        for values in zip(*fields.values(), strict=True)
    ]


def _decode_properties(segment: Segment, rows: np.ndarray) -> list[dict[str, np.ndarray]]:
    found: list[dict[str, np.ndarray]] = [{} for _ in rows]
    for name, spec in PROPERTIES.items():
        array = segment.get(f"/labels/props/{name}")
        if array is None:
            continue
        for properties, value in zip(found, _property(segment, (name, spec), rows), strict=True):
            if value is not None:
                properties[name] = value
    return found


def _property(
    segment: Segment, named: tuple[str, PropertySpec], rows: np.ndarray
) -> list[np.ndarray | None]:
    name, spec = named
    array = segment[f"/labels/props/{name}"]
    if spec.scope == "frame":
        return [None if np.isnan(v).all() else np.array(v) for v in array[rows]]
    cut = _cut(array, segment[f"/labels/props_offset/{name}"], rows)
    return [value if len(value) else None for value in cut]
