"""One store into another: what the target does not have is appended, what it has stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from alchemy.errors import InputError
from alchemy.identity import imported_fingerprint
from alchemy.store.history import label_contents
from alchemy.store.rows import SplitRow
from alchemy.store.snapshot import Snapshot

if TYPE_CHECKING:
    from alchemy.store.store import Store

_AT_ONCE = 2000  # rows of a commit, so that large stores need not fit into memory


@dataclass
class Merged:
    """What a merge brought, by table, and where the two stores contradict each other."""

    added: dict[str, int] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)  # what the target says otherwise, and keeps


def merge_into(target: Store, source: Snapshot) -> Merged:
    """Append what `source` has and the target does not; doing it again appends nothing.

    Labels that the target has retracted do not come back. Where both have a label, a split or a document
    of one key with different contents, the target's stays and the key is in `kept`.

    Raises:
        InputError: the source is the target, or an exact copy, or its labels of a fidelity are of
            other physics.
        StoreError: a quantity is in other units there; nothing of the chunk is written.
    """
    view = target.snapshot()
    if source.last >= 0 and source.commit_uuids() == view.commit_uuids():
        raise InputError(f"{target.path}: source and target are the same store; give two")
    _refuse_other_physics(target, view, source)
    result = Merged()
    known = view.atom_counts(source.uids())
    structures = [uid for uid in source.uids() if uid not in known]
    for uids in _chunks(structures):
        target.append(structures=source.structures(uids))
    labels = _labels(view, source, result)
    for keys in _chunks(labels):
        rows = source.labels(status=None, keys=keys)
        target.append(labels=rows, quantities=source.quantities())
    result.added |= {"structures": len(structures), "labels": len(labels)}
    others = {
        "predictions": _new(view.predictions(), source.predictions()),
        "events": _new(view.events(), source.events()),
        "failures": _new(view.failures(), source.failures()),
    }
    for table, rows in others.items():
        for chunk in _chunks(rows):
            target.append(**{table: chunk})  # type: ignore[arg-type]
        result.added[table] = len(rows)
    splits = _splits(view, source, result)
    documents = _documents(view, source, result)
    target.append(splits=splits, registry=documents)
    result.added |= {"splits": len(splits), "registry": len(documents)}
    return result


def _labels(view: Snapshot, source: Snapshot, result: Merged) -> list[str]:
    retracted, given = set(view.retracted()), source.labels(status=None)
    doubted = set(source.retracted())
    owns = {row.key: row for row in view.labels(status=None, keys=[row.key for row in given])}
    wanted = []
    for row in given:
        own = owns.get(row.key)
        if own is None or (own.status != "ok" and row.status == "ok"):
            if row.key not in retracted:
                wanted.append(row.key)
        elif own.status == "ok" and row.status == "ok" and label_contents(own) != label_contents(row):
            result.kept.append(f"label {row.key} ({row.fidelity}) of structure {row.structure_uid}")
        elif own.status == "ok" and row.key in doubted:
            result.kept.append(f"label {row.key} ({row.fidelity}), which the source doubts: {row.status}")
    return wanted


def _refuse_other_physics(target: Store, view: Snapshot, source: Snapshot) -> None:
    """Said before anything is written."""
    own = view.levels()
    for fidelity, marks in source.levels().items():
        foreign = {"", imported_fingerprint(fidelity)}
        there = own.get(fidelity, {}).keys() - foreign
        new = sorted(marks.keys() - there - foreign)
        if len(there) + len(new) > 1 and new:
            found, others = sorted(there or new[1:])[0][:8], f"{marks[new[0]]} of the source"
            raise InputError(
                f"{target.path}: '{fidelity}' would be of several physics: of {found}, and {others} of "
                f"{new[0][:8]}; a level is one physics, so that nothing was merged"
            )


def _splits(view: Snapshot, source: Snapshot, result: Merged) -> list[SplitRow]:
    own, new = view.part_of(), []
    for row in source.split_rows():
        if row.structure_uid not in own:
            new.append(row)
        elif own[row.structure_uid] != row.part:
            result.kept.append(f"split '{own[row.structure_uid]}' of structure {row.structure_uid}")
    return new


def _documents(view: Snapshot, source: Snapshot, result: Merged) -> dict[str, dict[str, Any]]:
    own, new = view.registry(), {}
    for key, document in source.registry().items():
        if key not in own:
            new[key] = document
        elif own[key] != document:
            result.kept.append(f"document '{key}'")
    return new


def _new(own: Iterable[Any], given: Iterable[Any]) -> list[Any]:
    known = {_contents(row) for row in own}
    return [row for row in given if _contents(row) not in known]


def _contents(row: Any) -> str:
    """A text that is equal for equal rows; NaN equals NaN."""
    values = vars(row).items()
    return repr([(name, v.tolist() if isinstance(v, np.ndarray) else v) for name, v in values])


def _chunks(rows: Sequence[Any]) -> Iterable[Sequence[Any]]:
    for start in range(0, len(rows), _AT_ONCE):
        yield rows[start : start + _AT_ONCE]
