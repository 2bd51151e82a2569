"""Segments to one segment that holds the same rows in the same order, without joining them in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from alchemy.errors import StoreError
from alchemy.store import layout
from alchemy.store.columns import TABLES, Column
from alchemy.store.derived import ABOUT_MAX_FORCE, MAX_FORCE, OF_STRUCTURES, ORDERED, max_force_in, of_merged
from alchemy.store.layout import Chain, Dataset
from alchemy.store.named import GROUPS, describe, specs_in
from alchemy.store.rows import PropertySpec
from alchemy.store.schema import NULL_CODE, fixed_strings, row_count, words
from alchemy.store.segment import Segment, version_of


def merged_datasets(segments: Sequence[Segment], numbers: Sequence[int]) -> dict[str, Dataset]:
    """What a file of all these commits holds; `numbers` are the first commit of each segment.

    Raises:
        StoreError: a segment is newer than we are, or two of them disagree about a quantity.
    """
    for segment in segments:
        version = segment.header["format_version"]
        if version_of(version) > version_of(layout.FORMAT_VERSION):
            raise StoreError(
                f"{segment.path}: format {version} may hold what this alchemy ({layout.FORMAT_VERSION}) does "
                "not know and would drop; upgrade alchemy to compact"
            )
    vocabulary = _Vocabulary(segments)
    datasets: dict[str, Dataset] = {}
    for table, shape in TABLES.items():
        counts = [row_count(segment, table) for segment in segments]
        if any(counts):
            for column in shape.columns:
                datasets.update(_column(segments, table, column, counts=counts, vocabulary=vocabulary))
    specs: dict[str, dict[str, PropertySpec]] = {}
    for field in GROUPS:
        specs[field] = _common_specs(segments, field)
        for name, spec in specs[field].items():
            datasets.update(_named(segments, field, name, spec=spec))
    datasets.update(_derived(segments, datasets))
    commits = [commits_in(segment, number) for segment, number in zip(segments, numbers, strict=True)]
    return {**datasets, **describe(specs), **vocabulary.datasets(), **commit_datasets(commits)}


def _derived(segments: Sequence[Segment], datasets: Mapping[str, Dataset]) -> dict[str, Dataset]:
    ids = {
        path: np.concatenate(datasets[path].chain.parts)
        for path in (*ORDERED, *(f"/{table}/structure_uid" for table in OF_STRUCTURES))
        if path in datasets
    }
    found = of_merged(ids)
    if "/labels/uid" in ids:
        parts = [max_force_in(segment) for segment in segments if row_count(segment, "labels")]
        found[MAX_FORCE] = Dataset(Chain(parts), *ABOUT_MAX_FORCE)
    return found


class _Vocabulary:
    """One numbering of the texts of every code column."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.words: dict[str, dict[str, int]] = {}
        for segment in segments:
            for path in segment.paths():
                if path.startswith("/dict/"):
                    column = path.removeprefix("/dict/")
                    known = self.words.setdefault(column, {})
                    for word in words(segment, column):
                        known.setdefault(word, len(known))

    def translate(self, segment: Segment, column: str, codes: np.ndarray) -> np.ndarray:
        known = self.words.get(column, {})
        lookup = np.array([*(known[w] for w in words(segment, column)), NULL_CODE], "<u4")
        found: np.ndarray = lookup[np.where(codes == NULL_CODE, len(lookup) - 1, codes)]
        return found

    def datasets(self) -> dict[str, Dataset]:
        return {
            f"/dict/{column}": Dataset(fixed_strings(known), "1", f"texts of {column}, by code")
            for column, known in self.words.items()
        }


def _joined_offsets(offsets: Sequence[np.ndarray]) -> np.ndarray:
    starts = np.cumsum([0, *(int(offset[-1]) for offset in offsets)])
    parts = [offset[1:] + start for offset, start in zip(offsets, starts, strict=False)]
    return np.concatenate([[0], *parts]).astype("<i8")


def _column(
    segments: Sequence[Segment],
    table: str,
    column: Column,
    *,
    counts: Sequence[int],
    vocabulary: _Vocabulary,
) -> dict[str, Dataset]:
    having = [(segment, n) for segment, n in zip(segments, counts, strict=True) if n]
    path, about = f"/{table}/{column.name}", (column.unit, column.description)
    if column.kind == "code":
        codes = [vocabulary.translate(segment, column.name, segment[path]) for segment, _ in having]
        return {path: Dataset(np.concatenate(codes), *about)}
    if column.kind == "text":
        offset = _joined_offsets([segment[path + "_offset"] for segment, _ in having])
        return {
            path + "_offset": Dataset(offset, "1", f"where each {column.name} begins"),
            path: Dataset(Chain([segment[path] for segment, _ in having]), *about),
        }
    if column.kind == "atoms":
        offset = _joined_offsets([segment[f"/{table}/offset"] for segment, _ in having])
        own = f"/{table}/atoms/{column.name}"
        return {
            f"/{table}/offset": Dataset(offset, "1", "where the atoms of a row begin"),
            own: Dataset(Chain([segment[own] for segment, _ in having]), *about),
        }
    arrays = [segment.get(path) for segment, _ in having]
    if all(array is None for array in arrays):
        return {}
    filled = [
        np.zeros((n, 16), "u1") if array is None else array  # only ids came later than 1.0
        for array, (_, n) in zip(arrays, having, strict=True)
    ]
    return {path: Dataset(Chain(filled), *about)}


def _common_specs(segments: Sequence[Segment], field: str) -> dict[str, PropertySpec]:
    found: dict[str, PropertySpec] = {}
    for segment in segments:
        for name, spec in specs_in(segment, field).items():
            own = found.setdefault(name, spec)
            if (own.scope, own.tail, own.unit) != (spec.scope, spec.tail, spec.unit):
                raise StoreError(
                    f"{segment.path}: {name} is in {spec.unit!r} with shape {spec.tail} here, in "
                    f"{own.unit!r} with shape {own.tail} before: two writers declared it at once; retract one"
                )
    return found


def _named(
    segments: Sequence[Segment], field: str, name: str, *, spec: PropertySpec
) -> dict[str, Dataset]:
    table, path = GROUPS[field].split("/")[1], f"{GROUPS[field]}/{name}"
    about = {"scope": spec.scope, "rank": str(len(spec.tail) if spec.scope != "pair" else 2)}
    tail = () if spec.scope == "pair" else spec.tail
    arrays, offsets = [], []
    for segment in segments:
        n, array = row_count(segment, table), segment.get(path)
        if spec.scope == "structure":
            arrays.append(np.full((n, *tail), np.nan) if array is None else array)
        elif array is None:
            offsets.append(np.zeros(n + 1, "<i8"))
        else:
            arrays.append(array)
            offsets.append(segment[f"{GROUPS[field]}_offset/{name}"])
    datasets = {path: Dataset(Chain(arrays), spec.unit or "1", spec.description, about)}
    if offsets:
        meaning = "where the values of a row begin; an empty row has none"
        datasets[f"{GROUPS[field]}_offset/{name}"] = Dataset(_joined_offsets(offsets), "1", meaning)
    return datasets


def commit_datasets(parts: Sequence[Commits]) -> dict[str, Dataset]:
    """Which rows came with which commit, so that a merged file still knows its history."""
    datasets = {
        "/commits/seq": Dataset(np.concatenate([p.seq for p in parts]).astype("<i8"), "1", "number"),
        "/commits/uuid": Dataset(np.concatenate([p.uuid for p in parts]), "1", "identity of the commit"),
        "/commits/time": Dataset(np.concatenate([p.time for p in parts]).astype("<f8"), "s", "unix time"),
        "/commits/by": Dataset(np.concatenate([p.by for p in parts]), "1", "program, version and host"),
    }
    for table in TABLES:
        counts = np.concatenate([np.diff(own.rows[table]) for own in parts])
        starts = np.concatenate([[0], np.cumsum(counts)]).astype("<i8")
        datasets[f"/commits/rows/{table}"] = Dataset(starts, "1", f"first row of each commit in {table}")
    return datasets


class Commits(NamedTuple):
    """The commits in a segment, in order."""

    seq: np.ndarray  # [n]
    uuid: np.ndarray  # [n,16]
    time: np.ndarray  # [n] unix time, s
    by: np.ndarray  # [n] program and host, UTF-8
    rows: dict[str, np.ndarray]  # by table, [n+1] first row of each


def commits_in(segment: Segment, number: int) -> Commits:
    """The commits in a segment; `number` is the one of a file that holds a single commit."""
    seq = segment.get("/commits/seq")
    if seq is None:
        lo, hi = segment.header["lo"], segment.header["hi"]
        ends = [number] if lo < 0 else list(range(lo, hi + 1))
        counts = {t: [0] * (len(ends) - 1) + [row_count(segment, t)] for t in TABLES}  # all with the last
        uuid = np.frombuffer(bytes.fromhex(segment.header["uuid"]), "u1")
        return Commits(
            np.array(ends),
            np.repeat(uuid[None], len(ends), axis=0),
            np.full(len(ends), segment.header["time"]),
            np.array([segment.header["by"].encode()] * len(ends)),
            {t: np.concatenate([[0], np.cumsum(own)]) for t, own in counts.items()},
        )
    found = {table: segment.get(f"/commits/rows/{table}") for table in TABLES}
    nothing = np.zeros(len(seq) + 1, "<i8")
    rows = {table: nothing if starts is None else starts for table, starts in found.items()}
    return Commits(seq, segment["/commits/uuid"], segment["/commits/time"], segment["/commits/by"], rows)
