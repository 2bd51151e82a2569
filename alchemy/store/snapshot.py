"""A frozen view of the store: the rows of commits 0…last, whatever is committed later."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from ase import Atoms

from alchemy.errors import StoreError
from alchemy.store.ids import begins, id_bytes, id_texts, is_id, sound_ids
from alchemy.store.index import Index
from alchemy.store.raw import RawRows
from alchemy.store.rows import (
    EventRow,
    FailureRow,
    LabelRow,
    PredictionRow,
    PropertySpec,
    SplitRow,
)
from alchemy.store.table import Table, count, field_meanings, select


class Snapshot:
    """Commits 0…`last` of a store (−1: none). Made by `Store.snapshot`; len() counts structures."""

    def __init__(self, index: Index, *, complete: bool = True) -> None:
        self._index = index
        self._segments = index.segments
        self.last = index.last[-1] if index.last else -1
        self.raw: RawRows = RawRows(index, complete=complete)

    def __len__(self) -> int:
        return self.raw.count("structures") - len(self.raw.repeats[0])

    def __contains__(self, uid: object) -> bool:
        return isinstance(uid, str) and bool(self._index.atom_counts([uid]))

    def __repr__(self) -> str:
        return f"<Snapshot of commit {self.last}: {len(self)} structures>"

    def uids(self) -> list[str]:
        """Uids of all structures in the order in which they came."""
        return list(self._uids)

    @cached_property
    def _uids(self) -> list[str]:
        return id_texts(self.raw.column("structures", "uid")[self.raw.structure_rows])

    def uids_beginning(self, text: str) -> list[str]:
        """Uids of the structures, or of those with a label, whose uid or key begins with these hex digits."""
        for table, name, raw in (
            ("structures", "uid", self.raw.structure_rows),
            ("labels", "uid", self.raw.label_rows),
        ):
            raw = raw[begins(self.raw.column(table, name)[raw], text)]
            if len(raw):
                name = "uid" if table == "structures" else "structure_uid"
                return sorted(set(id_texts(self.raw.column(table, name)[raw])))
        return []

    def structure(self, uid: str) -> Atoms:
        """One structure; charge and multiplicity are in `info` when set. Raises StoreError."""
        return self.structures([uid])[0]

    def structures(self, uids: Sequence[str]) -> list[Atoms]:
        """Structures in the order asked for. Raises StoreError for an unknown uid."""
        for uid in uids:
            if not is_id(uid):
                raise self._unknown(uid)
        raw = self._index.first_raw("/structures/uid", id_bytes(uids))
        if (raw < 0).any():
            raise self._unknown(uids[int(np.argmin(raw))])
        return [atoms_of(row) for row in self.raw.decode("structures", raw)]

    def atom_count(self, uid: str) -> int:
        """Number of atoms of a structure. Raises StoreError for an unknown uid."""
        found = self._index.atom_counts([uid])
        if uid not in found:
            raise self._unknown(uid)
        return found[uid]

    def atom_counts(self, uids: Iterable[str]) -> dict[str, int]:
        """Number of atoms of those structures that are there."""
        return self._index.atom_counts(uids)

    def _unknown(self, uid: object) -> StoreError:
        return StoreError(f"the store has no structure {uid!r} (commit {self.last})")

    def labels(
        self,
        *,
        fidelity: str | None = None,
        status: str | None = "ok",
        uids: Collection[str] | None = None,
        keys: Collection[str] | None = None,
    ) -> list[LabelRow]:
        """The current row of every label key, or of some, by (structure_uid, fidelity); status None: any."""
        if keys is None:
            raw = self.raw.label_rows
        else:
            places = self._index.label_places(keys).values()
            raw = np.array(sorted(row for row, _ in places), np.int64)
        for column, wanted in (("fidelity", fidelity), ("status", status)):
            if wanted is not None:
                raw = raw[self.raw.codes("labels", column).same(wanted)[raw]]
        if uids is not None:
            own = self._index.first_raw("/structures/uid", sound_ids(uids)[1])
            raw = raw[np.isin(self.raw.structure_of("labels")[raw], own[own >= 0])]
        rows: list[LabelRow] = self.raw.decode("labels", raw)
        return sorted(rows, key=lambda r: (r.structure_uid, r.fidelity, r.fingerprint, r.replica))

    def label(self, key: str) -> LabelRow | None:
        """The current row of a label key, failed ones included; None when there is none."""
        found = self.labels(status=None, keys=[key])
        return found[0] if found else None

    def label_states(self, keys: Iterable[str]) -> dict[str, bool]:
        """Of those labels that are there, whether the current row is ok."""
        return self._index.label_states(keys)

    def part_of(self) -> dict[str, str]:
        """Part (train, test, …) of every structure that has one."""
        return {row.structure_uid: row.part for row in self.split_rows()}

    def split_rows(self) -> list[SplitRow]:
        """The current split of every structure that has one."""
        return list({row.structure_uid: row for row in self._split_rows}.values())

    @cached_property
    def _split_rows(self) -> list[SplitRow]:
        return self.raw.every("splits")

    def levels(self) -> dict[str, dict[str, int]]:
        """Good labels per fidelity and fingerprint of their physics."""
        return self._index.current_levels()

    def retracted(self) -> list[str]:
        """Keys of labels that were hidden at some time; some may have been made again."""
        return [row.target for row in self.raw.every("retractions")]

    def commit_uuids(self) -> list[str]:
        """Identities of the commits 0…last; two stores with the same ones are copies of each other."""
        return [uuid for segment in self._segments for uuid in segment.commit_uuids()]

    def events(self, *, kind: str | None = None, round: int | None = None) -> list[EventRow]:
        """Events in the order of their commits."""
        raw = np.arange(self.raw.count("events"))
        if kind is not None:
            raw = raw[self.raw.codes("events", "kind").same(kind)[raw]]
        if round is not None:
            raw = raw[self.raw.column("events", "round")[raw] == round]
        return self.raw.decode("events", raw)

    def failures(self) -> list[FailureRow]:
        """Failures in the order of their commits."""
        return self.raw.every("failures")

    def predictions(self, model_set: str | None = None) -> list[PredictionRow]:
        """The newest prediction of every (structure, model set, fidelity)."""
        raw = self.raw.prediction_rows
        if model_set is not None:
            raw = raw[self.raw.codes("predictions", "model_set").same(model_set)[raw]]
        return self.raw.decode("predictions", raw)

    def quantities(self) -> dict[str, PropertySpec]:
        """What the named labels of this store are; those in `PROPERTIES` only where they occur."""
        return self._index.quantities()

    def registry(self) -> dict[str, dict[str, Any]]:
        """The newest document of every registry key."""
        return self._index.registry()

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

    def count(self, expression: str = "", *, rows: str = "auto") -> int:
        """How many rows `select` would find. Raises QueryError."""
        return count(self, expression, rows=rows)

    def fields(self, rows: str = "auto") -> dict[str, str]:
        """Meaning and unit of every field of a kind of rows. Raises QueryError."""
        return field_meanings(rows)


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
