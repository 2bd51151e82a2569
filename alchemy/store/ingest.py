"""What may enter the store, and what of it is new."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from alchemy.errors import StoreError
from alchemy.identity import imported_fingerprint
from alchemy.store.bulk import Block, LabelColumns, StructureColumns
from alchemy.store.ids import id_texts
from alchemy.store.labels import check_labels, from_columns, size_of
from alchemy.store.rows import (
    PROPERTIES,
    Batch,
    LabelRow,
    PredictionRow,
    PropertySpec,
    RegistryRow,
    RetractionRow,
    SplitRow,
)
from alchemy.store.structures import structure_block
from tace.units import UnitError, parse_unit


class Known(Protocol):
    """What an index tells about rows already there; of many at once, as each question opens columns."""

    def has_structures(self, ids: np.ndarray) -> np.ndarray: ...
    def atom_counts(self, uids: Iterable[str]) -> dict[str, int]: ...
    def label_states(self, keys: Iterable[str]) -> dict[str, bool]: ...
    def parts_of(self, uids: Iterable[str]) -> dict[str, str]: ...
    def registry(self) -> dict[str, dict[str, Any]]: ...
    def quantities(self) -> dict[str, PropertySpec]: ...
    def levels(self) -> dict[str, set[str]]: ...
    def current_levels(self) -> dict[str, dict[str, int]]: ...


def select_new(
    known: Known,
    given: Mapping[str, Any],
    registry: Mapping[str, dict[str, Any]],
    quantities: Mapping[str, PropertySpec] | None = None,
) -> Batch:
    """The rows of an append that are not in the store yet, checked. Raises StoreError.

    quantities: labels beyond `PROPERTIES` that the rows carry, unless the store has them already.
    """
    structures = structure_block(given["structures"])
    names = id_texts(structures.columns["uid"])
    sizes = dict(zip(names, structures.columns["n_atoms"].tolist(), strict=True))
    sizes |= known.atom_counts(_others(sizes, given))
    labels = given["labels"]
    declared = _declared(known, quantities or {}) if len(labels) else {}
    specs = {**PROPERTIES, **declared}
    if isinstance(labels, LabelColumns):
        labels = from_columns(labels, names, sizes, specs=specs)
    keys = labels.columns["key"] if isinstance(labels, Block) else [row.key for row in labels]
    states = known.label_states({*keys, *(row.target for row in given["retractions"])})
    ok = {key for key, good in states.items() if good} - {row.target for row in given["retractions"]}
    refuse_other_physics(known, labels)
    return Batch(
        structures=_new_structures(known, structures, names),
        labels=_new_labels(ok, labels, sizes, specs),
        predictions=[_checked_prediction(row, sizes) for row in given["predictions"]],
        events=list(given["events"]),
        failures=list(given["failures"]),
        splits=_new_splits(known, given, names, sizes=sizes),
        retractions=_checked_retractions(states, given["retractions"]),
        registry=_new_documents(known, registry),
        declared=declared,
    )


def _others(sizes: Mapping[str, int], given: Mapping[str, Any]) -> set[str]:
    """Structures that rows speak of and that are not in this commit."""
    labels = given["labels"]
    found = set(labels.structure_uids or ()) if isinstance(labels, LabelColumns) else set()
    if not isinstance(labels, LabelColumns):
        found |= {row.structure_uid for row in labels}
    found |= {row.structure_uid for name in ("predictions", "splits") for row in given[name]}
    return found - sizes.keys()


def _new_structures(known: Known, structures: Block, names: Sequence[str]) -> Block:
    """Those that are not stored, each once; of two with one identity the first."""
    new = ~known.has_structures(structures.columns["uid"])
    seen: set[str] = set()
    if len(set(names)) < len(names):
        for i, name in enumerate(names):
            new[i] &= name not in seen
            seen.add(name)
    return structures.take(np.flatnonzero(new))


def _declared(known: Known, given: Mapping[str, PropertySpec]) -> dict[str, PropertySpec]:
    """Quantities that the store has or this commit brings; one name means one thing."""
    found = {**PROPERTIES, **known.quantities()}
    for name, spec in given.items():
        if found.get(name) == spec:
            continue
        if not name.isidentifier():
            raise StoreError(f"quantity {name!r}: a name is made of letters, digits and _")
        if spec.scope not in ("structure", "atom") or any(n < 1 for n in spec.tail):
            raise StoreError(f"quantity {name!r}: scope is 'structure' or 'atom', found {spec.scope!r}")
        try:
            parse_unit(spec.unit or "e")
        except UnitError as error:
            raise StoreError(f"quantity {name!r}: {error}; '' is a pure number") from None
        own = found.setdefault(name, spec)
        if (own.scope, own.tail, own.unit) != (spec.scope, spec.tail, spec.unit):
            raise StoreError(
                f"quantity {name!r} is {_words(spec)} here but {_words(own)} in the store; "
                "convert it, or give it another name"
            )
    return {name: spec for name, spec in found.items() if name not in PROPERTIES}


def _words(spec: PropertySpec) -> str:
    return f"per {spec.scope}, shape {spec.tail}, in {spec.unit or 'no unit'}"


def refuse_other_physics(known: Known, labels: Sequence[LabelRow] | Block) -> None:
    """Labels of one fidelity are of one physics, or were imported under its name. Raises StoreError.

    A store that holds several already may take more of each: `alchemy data audit` names them.
    """
    given: dict[str, dict[str, str]] = {}
    for fidelity, mark, code in _levels_of(labels):
        if mark not in ("", imported_fingerprint(fidelity)):
            given.setdefault(fidelity, {}).setdefault(mark, code)
    there = known.levels() if given else {}
    for fidelity, marks in given.items():
        new = sorted(set(marks) - there.get(fidelity, set()))
        if not new:
            continue
        # what was withdrawn, or failed, binds nobody: only looked at where there is a conflict
        foreign = {"", imported_fingerprint(fidelity)}
        own = set(marks) | (there.get(fidelity, set()) - foreign)
        if len(own) > 1:
            own = set(marks) | (known.current_levels().get(fidelity, {}).keys() - foreign)
        if len(own) > 1:
            others = ", ".join(sorted(mark[:8] for mark in own - {new[0]}))
            raise StoreError(
                f"fidelity '{fidelity}': labels of other physics cannot enter it: these are of {new[0][:8]} "
                f"({marks[new[0]]}), and there are labels of {others}; give the new level a name of its own"
            )


def _levels_of(labels: Sequence[LabelRow] | Block) -> set[tuple[str, str, str]]:
    """Fidelity, fingerprint and code of the ok ones."""
    if isinstance(labels, Block):
        fidelity, mark, code = (labels.columns[name] for name in ("fidelity", "fingerprint", "code"))
        return {(fidelity, mark, code)} if len(labels) else set()
    return {(row.fidelity, row.fingerprint, row.code) for row in labels if row.status == "ok"}


def _new_labels(
    ok: set[str],
    labels: Sequence[LabelRow] | Block,
    sizes: Mapping[str, int],
    specs: Mapping[str, PropertySpec],
) -> Sequence[LabelRow] | Block:
    """Those that are not ok already; one that this commit retracts may be made again in it."""
    if isinstance(labels, Block):
        fresh = {key: i for i, key in reversed([*enumerate(labels.columns["key"])]) if key not in ok}
        return labels.take(np.array(sorted(fresh.values()), np.int64))
    check_labels(labels, sizes, specs)
    new = []
    for label in labels:
        if label.key not in ok:
            new.append(label)
            if label.status == "ok":
                ok.add(label.key)
    return new


def _checked_prediction(row: PredictionRow, sizes: Mapping[str, int]) -> PredictionRow:
    who = f"prediction of {row.model_set}"
    n_atoms = size_of(sizes, row.structure_uid, who)
    shape = np.shape(row.force_std_eV_per_A)
    if shape != (n_atoms,):
        raise StoreError(f"{who}: force_std_eV_per_A has shape {shape}, should be ({n_atoms},)")
    return row


def _checked_retractions(there: Mapping[str, bool], rows: Sequence[RetractionRow]) -> list[RetractionRow]:
    for row in rows:
        if row.target not in there:
            raise StoreError(f"retraction: the store has no label {row.target!r}")
    return list(rows)


def _new_splits(
    known: Known, given: Mapping[str, Any], names: Sequence[str], *, sizes: Mapping[str, int]
) -> Sequence[SplitRow] | Block:
    """Those that say something new; `names` are the structures of the commit, which may be in a part."""
    rows, structures, now = given["splits"], given["structures"], time.time()
    whole = structures.part if isinstance(structures, StructureColumns) else ""
    parts = known.parts_of({*(names if whole else ()), *(row.structure_uid for row in rows)})
    moved = [uid for uid in dict.fromkeys(names) if parts.get(uid) != whole] if whole else []
    if moved and not rows:
        columns = {"structure_uid": moved, "part": whole, "time": np.full(len(moved), now)}
        return Block(len(moved), columns, {})
    new = [SplitRow(uid, whole, now) for uid in moved]
    parts |= dict.fromkeys(moved, whole)
    for row in rows:
        size_of(sizes, row.structure_uid, f"split {row.part!r}")
        if parts.get(row.structure_uid) != row.part:
            parts[row.structure_uid] = row.part
            new.append(row)
    return new


def _new_documents(known: Known, registry: Mapping[str, dict[str, Any]]) -> list[RegistryRow]:
    present = known.registry() if registry else {}
    new = []
    for key, document in registry.items():
        if not key:
            raise StoreError("registry: a key is empty")
        try:
            text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise StoreError(f"registry {key}: not a JSON document: {error}") from error
        if present.get(key) != json.loads(text):
            new.append(RegistryRow(key=key, document=text))
    return new
