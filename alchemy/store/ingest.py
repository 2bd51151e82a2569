"""What may enter the store, and what of it is new."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from ase import Atoms

from alchemy.errors import StoreError
from alchemy.identity import charge_and_multiplicity, snap, structure_uid
from alchemy.store.rows import (
    PROPERTIES,
    Batch,
    LabelRow,
    PredictionRow,
    RegistryRow,
    RetractionRow,
    SplitRow,
    StructureRow,
)

MAX_ATOMIC_NUMBER = 118


class Known(Protocol):
    """What a snapshot tells about rows already there."""

    def __contains__(self, uid: object) -> bool: ...
    def atom_count(self, uid: str) -> int: ...
    def label_is_ok(self, key: str) -> bool | None: ...
    def part_of(self) -> dict[str, str]: ...
    def registry(self) -> dict[str, dict[str, Any]]: ...


def structure_row(atoms: Atoms) -> StructureRow:
    """Snap to the identity grid. Raises StoreError for atoms that cannot be stored."""
    numbers = np.asarray(atoms.numbers)
    if not len(atoms) or numbers.min() < 1 or numbers.max() > MAX_ATOMIC_NUMBER:
        raise StoreError(f"structure {atoms.get_chemical_formula()!r}: needs atoms with Z in 1–118")
    positions, cell = snap(atoms.positions), snap(np.asarray(atoms.cell))
    if not (np.isfinite(positions).all() and np.isfinite(cell).all()):
        raise StoreError(f"structure {atoms.get_chemical_formula()}: NaN or inf in its geometry")
    charge, multiplicity = charge_and_multiplicity(atoms)
    elements = np.zeros(2, "<u8")
    for z in np.unique(numbers).tolist():
        elements[z >> 6] |= np.uint64(1 << (z & 63))
    return StructureRow(
        uid=structure_uid(atoms),
        n_atoms=len(atoms),
        numbers=numbers.astype("u1"),
        positions=positions,
        cell=cell,
        pbc=np.asarray(atoms.pbc, "u1"),
        charge=charge,
        multiplicity=multiplicity,
        elements=elements,
        formula=atoms.get_chemical_formula(mode="hill"),
    )


def select_new(
    known: Known, given: Mapping[str, Sequence[Any]], registry: Mapping[str, dict[str, Any]]
) -> Batch:
    """The rows of an append that are not in the store yet, checked. Raises StoreError."""
    structures: dict[str, StructureRow] = {}
    for atoms in given["structures"]:
        row = structure_row(atoms)
        if row.uid not in known:
            structures.setdefault(row.uid, row)
    sizes = _Sizes(known, structures)
    return Batch(
        structures=list(structures.values()),
        labels=_new_labels(known, given["labels"], sizes),
        predictions=[_checked_prediction(row, sizes) for row in given["predictions"]],
        events=list(given["events"]),
        failures=list(given["failures"]),
        splits=_new_splits(known, given["splits"], sizes),
        retractions=[_checked_retraction(known, row) for row in given["retractions"]],
        registry=_new_documents(known, registry),
    )


class _Sizes:
    """Number of atoms of every structure that rows of this commit may refer to."""

    def __init__(self, known: Known, new: Mapping[str, StructureRow]) -> None:
        self.known, self.new = known, new

    def of(self, uid: str, who: str) -> int:
        if uid in self.new:
            return self.new[uid].n_atoms
        if uid not in self.known:
            raise StoreError(f"{who}: structure {uid!r} is neither in the store nor in this commit")
        return self.known.atom_count(uid)


def _new_labels(known: Known, labels: Iterable[LabelRow], sizes: _Sizes) -> list[LabelRow]:
    new, ok = [], set()
    for label in labels:
        _check_label(label, sizes.of(label.structure_uid, f"label {label.key}"))
        if label.key in ok or known.label_is_ok(label.key):
            continue
        new.append(label)
        if label.status == "ok":
            ok.add(label.key)
    return new


def _check_label(label: LabelRow, n_atoms: int) -> None:
    who = f"label {label.key} ({label.fidelity})"
    shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
        "forces_eV_per_A": (label.forces_eV_per_A, (n_atoms, 3)),
        "stress_eV_per_A3": (label.stress_eV_per_A3, (6,)),
    }
    for name, value in label.properties.items():
        if name not in PROPERTIES:
            raise StoreError(f"{who}: unknown property {name!r}; known: {', '.join(PROPERTIES)}")
        spec = PROPERTIES[name]
        shapes[name] = (value, spec.tail if spec.scope == "frame" else (n_atoms, *spec.tail))
    if not label.status:
        raise StoreError(f"{who}: status is empty")
    finite = label.status == "ok"
    if finite and not np.isfinite(label.energy_eV):
        raise StoreError(f"{who}: status is ok but energy_eV is {label.energy_eV}")
    for name, (value, shape) in shapes.items():
        if value is None:
            continue
        array = np.asarray(value)
        if array.shape != shape:
            raise StoreError(f"{who}: {name} has shape {array.shape}, should be {shape}")
        if finite and not np.isfinite(array).all():
            raise StoreError(f"{who}: status is ok but {name} has NaN or inf")


def _checked_prediction(row: PredictionRow, sizes: _Sizes) -> PredictionRow:
    who = f"prediction of {row.model_set}"
    n_atoms = sizes.of(row.structure_uid, who)
    shape = np.shape(row.force_std_eV_per_A)
    if shape != (n_atoms,):
        raise StoreError(f"{who}: force_std_eV_per_A has shape {shape}, should be ({n_atoms},)")
    return row


def _checked_retraction(known: Known, row: RetractionRow) -> RetractionRow:
    if known.label_is_ok(row.target) is None:
        raise StoreError(f"retraction: the store has no label {row.target!r}")
    return row


def _new_splits(known: Known, rows: Collection[SplitRow], sizes: _Sizes) -> list[SplitRow]:
    parts = dict(known.part_of()) if rows else {}
    new = []
    for row in rows:
        sizes.of(row.structure_uid, f"split {row.part!r}")
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
