"""Named arrays beside the fixed columns: further labels, conditions of labels, extra arrays of atoms.

`/labels/props/<name>`, `/labels/conditions/<name>` and `/structures/extra/<name>` are
of a structure   [n, …]; a row without the quantity holds NaN
of atoms         rows of all atoms one after another, cut by `…/props_offset/<name>`; an empty row has none
of pairs         a [3A, 3A] matrix per row, flat, cut likewise (a Hessian)
`/quantities` is a JSON map of each to [scope, shape, unit, meaning]; segments of format 1.0 have none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from alchemy.errors import StoreDamagedError
from alchemy.store.layout import Dataset
from alchemy.store.rows import KNOWN, PropertySpec
from alchemy.store.segment import Part, Segment

GROUPS = {"properties": "/labels/props", "conditions": "/labels/conditions", "extra": "/structures/extra"}
PATH = "/quantities"


def rows_of_atoms(spec: PropertySpec, n_atoms: int) -> tuple[int, ...]:
    """The shape that a value has in Python."""
    if spec.scope == "structure":
        return spec.tail
    return (n_atoms, *spec.tail) if spec.scope == "atom" else (3 * n_atoms, 3 * n_atoms)


def encode_named(
    field: str, rows: Sequence[Mapping[str, Any]], specs: Mapping[str, PropertySpec]
) -> dict[str, Dataset]:
    """The datasets of one field of rows: of each row a mapping of names to arrays."""
    datasets: dict[str, Dataset] = {}
    for name in sorted({name for row in rows for name in row}):
        spec = specs[name]
        values = [row.get(name) for row in rows]
        path = f"{GROUPS[field]}/{name}"
        about = {"scope": spec.scope, "rank": str(len(spec.tail) if spec.scope != "pair" else 2)}
        if spec.scope == "structure":
            filled = [np.full(spec.tail, np.nan) if v is None else v for v in values]
            array = np.array(filled, "<f8").reshape(len(values), *spec.tail)
        else:
            tail = spec.tail if spec.scope == "atom" else ()
            present = [np.asarray([] if v is None else v, "<f8").reshape(-1, *tail) for v in values]
            array = np.concatenate(present)
            lengths = [len(v) for v in present]
            datasets[f"{GROUPS[field]}_offset/{name}"] = Dataset(
                np.concatenate([[0], np.cumsum(lengths)]).astype("<i8"),
                "1",
                "where the values of a row begin; an empty row has none",
            )
        datasets[path] = Dataset(array, spec.unit or "1", spec.description, about)
    return datasets


def describe(specs: Mapping[str, Mapping[str, PropertySpec]]) -> dict[str, Dataset]:
    """The dataset that says what the named arrays are; nothing when there are none."""
    table = {
        f"{GROUPS[field]}/{name}": [spec.scope, list(spec.tail), spec.unit, spec.description]
        for field, own in specs.items()
        for name, spec in own.items()
    }
    if not table:
        return {}
    text = np.frombuffer(json.dumps(table, separators=(",", ":")).encode(), "u1")
    return {PATH: Dataset(text, "1", "JSON: named array -> [scope, shape, unit, meaning]")}


def specs_in(segment: Segment, field: str) -> dict[str, PropertySpec]:
    """What the named arrays of a segment are."""
    key = ("specs", field)
    if key not in segment.derived:
        segment.derived[key] = _specs_in(segment, field)
    found: dict[str, PropertySpec] = segment.derived[key]
    return found


def _specs_in(segment: Segment, field: str) -> dict[str, PropertySpec]:
    prefix = GROUPS[field] + "/"
    names = [path.removeprefix(prefix) for path in segment.paths() if path.startswith(prefix)]
    if not names:
        return {}
    text = segment.get(PATH)
    if text is None:  # format 1.0: a fixed list of names
        return {name: KNOWN[field][name] for name in names if name in KNOWN[field]}
    table = json.loads(text.tobytes())
    try:
        entries = {name: table[prefix + name] for name in names}
    except KeyError as error:
        raise StoreDamagedError(f"{segment.path}: {PATH} does not describe {error}") from None
    found = {n: PropertySpec(scope, tuple(s), unit, text) for n, (scope, s, unit, text) in entries.items()}
    if isinstance(segment, Part):  # its commits need not have what others in the file have
        return {n: spec for n, spec in found.items() if not np.isnan(segment[prefix + n]).all()}
    return found


def decode_named(segment: Segment, field: str, rows: np.ndarray) -> list[dict[str, np.ndarray]]:
    """The mapping of each row; arrays are copies."""
    found: list[dict[str, np.ndarray]] = [{} for _ in rows]
    for name, spec in specs_in(segment, field).items():
        for row, value in zip(found, values_of(segment, field, name, spec=spec, rows=rows), strict=True):
            if value is not None:
                row[name] = value.copy()
    return found


def values_of(
    segment: Segment, field: str, name: str, *, spec: PropertySpec, rows: np.ndarray
) -> Iterable[np.ndarray | None]:
    """One named array row by row, as views; None where a row has none."""
    array = segment[f"{GROUPS[field]}/{name}"]
    if spec.scope == "structure":
        return [None if np.isnan(value).all() else np.asarray(value) for value in array[rows]]
    offset = segment[f"{GROUPS[field]}_offset/{name}"]
    cuts = [array[lo:hi] for lo, hi in zip(offset[rows].tolist(), offset[rows + 1].tolist(), strict=True)]
    if spec.scope == "pair":
        sides = [round(len(cut) ** 0.5) for cut in cuts]
        cuts = [cut.reshape(side, side) for cut, side in zip(cuts, sides, strict=True)]
    return [cut if len(cut) else None for cut in cuts]
