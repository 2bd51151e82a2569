"""Datasets that only repeat what others say, in a form that is quick to search.

`/labels/max_force` is in every file; merged files also have, for every id that is looked up, the order of
its rows (`/structures/uid_order`), and for rows that speak of a structure its row in the same file
(`/labels/structure_row`; −1: in another one). Files of formats before 1.2 have none: it is computed then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from alchemy.store.columns import TABLES
from alchemy.store.ids import Sorted, first_rows, pairs, prefixes
from alchemy.store.layout import Dataset
from alchemy.store.segment import BY_PLACE, Segment

MAX_FORCE = "/labels/max_force"
ABOUT_MAX_FORCE = ("eV/Angstrom", "largest norm of a force, NaN without forces")
ORDERED = ("/structures/uid", "/labels/uid")
OF_STRUCTURES = tuple(
    table for table, shape in TABLES.items() if any(c.name == "structure_uid" for c in shape.columns)
)


_ABOUT = tuple(f"/{table}/structure_uid" for table in OF_STRUCTURES)


def max_force(offset: np.ndarray, forces: np.ndarray) -> np.ndarray:
    """Largest norm per row, eV/Å; NaN for a row without forces."""
    norms = np.append(np.sqrt(np.einsum("ai,ai->a", forces, forces)), 0.0)
    largest = np.maximum.reduceat(norms, offset[:-1]) if len(offset) > 1 else np.zeros(0)
    return np.where(np.diff(offset) > 0, largest, np.nan)


def max_force_in(segment: Segment) -> np.ndarray:
    """The column, computed once where the file is too old to have it."""
    stored = segment.get(MAX_FORCE)
    if stored is not None:
        return stored
    if "max_force" not in segment.derived:
        own = max_force(segment["/labels/offset"], segment["/labels/atoms/forces"])
        segment.derived["max_force"] = own
    found: np.ndarray = segment.derived["max_force"]
    return found


def of_labels(offset: np.ndarray, forces: np.ndarray) -> dict[str, Dataset]:
    return {MAX_FORCE: Dataset(max_force(offset, forces), *ABOUT_MAX_FORCE)}


def of_merged(ids: Mapping[str, np.ndarray]) -> dict[str, Dataset]:
    """Orders and joins of a merged file; `ids` are all its columns of ids by path."""
    datasets = {}
    orders = {path: order_of(ids[path]) for path in ORDERED if path in ids}
    for path, order in orders.items():
        datasets[f"{path}_order"] = Dataset(order, "1", "rows by the first 8 bytes of their ids")
    structures = ids.get("/structures/uid")
    for table in OF_STRUCTURES:
        own = ids.get(f"/{table}/structure_uid")
        if own is not None:
            rows = np.full(len(own), -1, "<i8")
            if structures is not None:
                by_id = Sorted(prefixes(structures)[orders["/structures/uid"]], orders["/structures/uid"])
                rows = first_rows(len(own), *pairs(structures, by_id, own)).astype("<i8")
            meaning = "row of the structure in this file, -1: it is in another one"
            datasets[f"/{table}/structure_row"] = Dataset(rows, "1", meaning)
    return datasets


def order_of(ids: np.ndarray) -> np.ndarray:
    return np.argsort(prefixes(ids), kind="stable").astype("<i8")


def wrong_in(segment: Segment) -> Iterator[str]:
    """Derived datasets that do not follow from the others."""
    ids = {path: segment[path] for path in segment.paths() if path in ORDERED or path in _ABOUT}
    expected = {path: np.asarray(dataset.array) for path, dataset in of_merged(ids).items()}
    if "/labels/offset" in segment.paths():
        expected[MAX_FORCE] = max_force(segment["/labels/offset"], segment["/labels/atoms/forces"])
    for path, right in expected.items():
        stored = segment.get(path)
        if stored is not None and not np.array_equal(stored, right, equal_nan=path == MAX_FORCE):
            yield f"{path}: does not follow from the other datasets"


def is_derived(path: str) -> bool:
    """Whether a dataset says nothing that others do not."""
    return path == MAX_FORCE or (path.endswith(BY_PLACE) and not path.startswith("/integrity/"))
