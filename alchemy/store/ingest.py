"""What may enter the store, and what of it is new."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from ase.data import chemical_symbols

from alchemy.errors import StoreError
from alchemy.identity import canonical_uids, charge_and_multiplicity, label_key, snap, structure_uids
from alchemy.store.named import rows_of_atoms
from alchemy.store.rows import (
    CONDITIONS,
    PROPERTIES,
    Batch,
    LabelRow,
    PredictionRow,
    PropertySpec,
    RegistryRow,
    RetractionRow,
    SplitRow,
    StructureRow,
)
from tace.units import UnitError, parse_unit
from tace.wording import hint

MAX_ATOMIC_NUMBER = 118
_ALPHABET = sorted(range(1, MAX_ATOMIC_NUMBER + 1), key=lambda z: str(chemical_symbols[z]))


class Known(Protocol):
    """What an index tells about rows already there; of many at once, as each question opens columns."""

    def atom_counts(self, uids: Iterable[str]) -> dict[str, int]: ...
    def label_states(self, keys: Iterable[str]) -> dict[str, bool]: ...
    def parts_of(self, uids: Iterable[str]) -> dict[str, str]: ...
    def registry(self) -> dict[str, dict[str, Any]]: ...
    def quantities(self) -> dict[str, PropertySpec]: ...


def structure_row(atoms: Atoms) -> StructureRow:
    """Snap to the identity grid. Raises StoreError for atoms that cannot be stored."""
    return structure_rows([atoms])[0]


def structure_rows(frames: Sequence[Atoms]) -> list[StructureRow]:
    """`structure_row` of each; together, as the steps of a single one cost more than its atoms."""
    if not frames:
        return []
    sizes = [len(atoms) for atoms in frames]
    ends = np.cumsum(sizes)
    positions, cells = (
        snap(np.concatenate([atoms.positions for atoms in frames])),
        snap(np.array([np.asarray(atoms.cell) for atoms in frames])),
    )
    numbers = np.concatenate([atoms.numbers for atoms in frames])
    finite = np.isfinite(positions).all() and np.isfinite(cells).all()
    if min(sizes) == 0 or numbers.min() < 1 or numbers.max() > MAX_ATOMIC_NUMBER or not finite:
        raise _cannot_be_stored(frames)
    pbc, kinds = np.array([atoms.pbc for atoms in frames], "u1"), numbers.astype("u1")
    owner = np.repeat(np.arange(len(frames)), sizes)
    width = MAX_ATOMIC_NUMBER + 1
    counts = np.bincount(owner * width + numbers, minlength=len(frames) * width).reshape(-1, width)
    bits = np.where(counts > 0, np.uint64(1) << np.arange(width, dtype=np.uint64) % np.uint64(64), 0)
    bits = bits.astype(np.uint64)
    elements = np.stack([bits[:, :64].sum(1), bits[:, 64:].sum(1)], axis=1).astype("<u8")
    identities = zip(structure_uids(frames), canonical_uids(frames), _hill_formulas(counts), strict=True)
    rows = []
    for i, (atoms, end, own) in enumerate(zip(frames, ends.tolist(), identities, strict=True)):
        charge, multiplicity = charge_and_multiplicity(atoms)
        among = slice(end - sizes[i], end)
        rows.append(
            StructureRow(
                uid=own[0],
                n_atoms=sizes[i],
                numbers=kinds[among],
                positions=positions[among],
                cell=cells[i],
                pbc=pbc[i],
                charge=charge,
                multiplicity=multiplicity,
                elements=elements[i],
                formula=own[2],
                canon_uid=own[1],
                extra=_extra(atoms),
            )
        )
    return rows


def _cannot_be_stored(frames: Sequence[Atoms]) -> StoreError:
    for number, atoms in enumerate(frames):
        who = f"structure {number} ({atoms.get_chemical_formula()})" if len(atoms) else f"structure {number}"
        if not len(atoms) or atoms.numbers.min() < 1 or atoms.numbers.max() > MAX_ATOMIC_NUMBER:
            return StoreError(f"{who}: needs atoms with Z in 1–118")
        if not (np.isfinite(snap(atoms.positions)).all() and np.isfinite(np.asarray(atoms.cell)).all()):
            return StoreError(f"{who}: NaN or inf in its geometry")
    return StoreError("structures: NaN or inf in a cell")


def _hill_formulas(counts: np.ndarray) -> list[str]:
    """Carbon, hydrogen, then the alphabet; `counts` are of atomic numbers, [S,119]."""
    found: list[list[str]] = [[] for _ in counts]
    hill = [6, 1, *_ALPHABET]
    rows, columns = np.nonzero(counts[:, hill])
    numbers = counts[rows, np.array(hill)[columns]]
    has_carbon = counts[:, 6] > 0
    once = has_carbon[rows] == (columns < 2)  # C and H stand first with carbon, in the alphabet without
    once |= np.isin(np.array(hill)[columns], (1, 6), invert=True)
    cells = zip(rows[once].tolist(), columns[once].tolist(), numbers[once].tolist(), strict=True)
    for row, column, number in cells:
        symbol = chemical_symbols[hill[column]]
        found[row].append(symbol if number == 1 else f"{symbol}{number}")
    return ["".join(parts) for parts in found]


def _extra(atoms: Atoms) -> dict[str, np.ndarray]:
    """Arrays that describe the atoms; those of zeros only are left out."""
    if len(atoms.arrays) == 2 and not atoms.constraints:  # numbers and positions, as most have
        return {}
    fixed = np.zeros(len(atoms))
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            fixed[constraint.index] = 1
    moments = atoms.arrays.get("initial_magmoms", np.zeros(0))
    found = {
        "tags": atoms.arrays.get("tags"),
        "fixed": atoms.arrays.get("fixed", fixed),
        "initial_charges": atoms.arrays.get("initial_charges"),
        "initial_magmoms" if moments.ndim == 1 else "initial_magmoms_xyz": moments,
    }
    arrays = {name: np.asarray(a, np.float64) for name, a in found.items() if a is not None}
    return {name: a for name, a in arrays.items() if a.any() and np.isfinite(a).all()}


def select_new(
    known: Known,
    given: Mapping[str, Sequence[Any]],
    registry: Mapping[str, dict[str, Any]],
    quantities: Mapping[str, PropertySpec] | None = None,
) -> Batch:
    """The rows of an append that are not in the store yet, checked. Raises StoreError.

    quantities: labels beyond `PROPERTIES` that the rows carry, unless the store has them already.
    """
    rows = {row.uid: row for row in reversed(structure_rows(given["structures"]))}
    about = (row.structure_uid for name in ("labels", "predictions", "splits") for row in given[name])
    sizes = known.atom_counts({*rows, *about})
    structures = [row for row in reversed(rows.values()) if row.uid not in sizes]
    sizes |= {row.uid: row.n_atoms for row in structures}
    declared = _declared(known, quantities or {}) if given["labels"] else {}
    keys = {row.key for row in given["labels"]} | {row.target for row in given["retractions"]}
    states = known.label_states(keys)
    return Batch(
        structures=structures,
        labels=_new_labels(
            {key for key, ok in states.items() if ok} - {row.target for row in given["retractions"]},
            given["labels"],
            sizes,
            {**PROPERTIES, **declared},
        ),
        predictions=[_checked_prediction(row, sizes) for row in given["predictions"]],
        events=list(given["events"]),
        failures=list(given["failures"]),
        splits=_new_splits(known, given["splits"], sizes),
        retractions=_checked_retractions(states, given["retractions"]),
        registry=_new_documents(known, registry),
        declared=declared,
    )


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


def _size(sizes: Mapping[str, int], uid: str, who: str) -> int:
    """Number of atoms of a structure that rows of this commit may refer to."""
    if uid not in sizes:
        raise StoreError(f"{who}: structure {uid!r} is neither in the store nor in this commit")
    return sizes[uid]


def _new_labels(
    ok: set[str], labels: Sequence[LabelRow], sizes: Mapping[str, int], specs: Mapping[str, PropertySpec]
) -> list[LabelRow]:
    """Those that are not ok already; one that this commit retracts may be made again in it."""
    new = []
    for label in labels:
        _check_label(label, _size(sizes, label.structure_uid, f"label {label.key}"), specs)
        if label.key not in ok:
            new.append(label)
            if label.status == "ok":
                ok.add(label.key)
    return new


def _check_label(label: LabelRow, n_atoms: int, specs: Mapping[str, PropertySpec]) -> None:
    who = f"label {label.key} ({label.fidelity})"
    if not label.status or not label.fidelity:
        raise StoreError(f"{who}: {'fidelity' if label.status else 'status'} is empty")
    shapes: dict[str, tuple[Any, tuple[int, ...], bool]] = {
        "forces_eV_per_A": (label.forces_eV_per_A, (n_atoms, 3), False),
        "stress_eV_per_A3": (label.stress_eV_per_A3, (6,), False),
    }
    for what, given, table in (
        ("property", label.properties, specs),
        ("condition", label.conditions, CONDITIONS),
    ):
        for name, value in given.items():
            if name not in table:
                raise StoreError(f"{who}: unknown {what} {name!r}; {hint(name, table)}")
            partial = what == "property" and table[name].scope == "atom"
            shapes[name] = (value, rows_of_atoms(table[name], n_atoms), partial)
    _check_conditions(label, who)
    ok = label.status == "ok"
    if ok and label.energy_eV is not None and not np.isfinite(label.energy_eV):
        raise StoreError(f"{who}: status is ok but energy_eV is {label.energy_eV}")
    values = (label.energy_eV, label.forces_eV_per_A, label.stress_eV_per_A3, *label.properties.values())
    if ok and all(value is None for value in values):
        raise StoreError(f"{who}: status is ok but there is no energy, nor anything else")
    for name, (value, shape, partial) in shapes.items():
        if value is None:
            continue
        array = np.asarray(value)
        if array.shape != shape:
            raise StoreError(f"{who}: {name} has shape {array.shape}, should be {shape}")
        if ok or name in label.conditions:
            _check_finite(np.asarray(array, np.float64), f"{who}: status is ok but {name}", partial)


def _check_finite(array: np.ndarray, who: str, partial: bool) -> None:
    """NaN may stand for single atoms without the label (`partial`), never for all of them."""
    absent = np.isnan(array).reshape(len(array), -1).all(axis=1) if partial else np.zeros(1, bool)
    good = np.isfinite(array[~absent]) if partial else np.isfinite(array)
    if not good.all() or absent.all():
        raise StoreError(f"{who} has NaN or inf")


def _check_conditions(label: LabelRow, who: str) -> None:
    if not label.conditions:
        return
    own = label_key(
        label.structure_uid, label.fidelity, label.fingerprint, label.replica, label.conditions
    )
    if label.key != own:
        raise StoreError(
            f"{who}: conditions ({', '.join(sorted(label.conditions))}) are part of the identity, so "
            f"the key should be {own}: alchemy.identity.label_key(…, conditions=…)"
        )


def _checked_prediction(row: PredictionRow, sizes: Mapping[str, int]) -> PredictionRow:
    who = f"prediction of {row.model_set}"
    n_atoms = _size(sizes, row.structure_uid, who)
    shape = np.shape(row.force_std_eV_per_A)
    if shape != (n_atoms,):
        raise StoreError(f"{who}: force_std_eV_per_A has shape {shape}, should be ({n_atoms},)")
    return row


def _checked_retractions(there: Mapping[str, bool], rows: Sequence[RetractionRow]) -> list[RetractionRow]:
    for row in rows:
        if row.target not in there:
            raise StoreError(f"retraction: the store has no label {row.target!r}")
    return list(rows)


def _new_splits(known: Known, rows: Sequence[SplitRow], sizes: Mapping[str, int]) -> list[SplitRow]:
    parts = known.parts_of({row.structure_uid for row in rows})
    new = []
    for row in rows:
        _size(sizes, row.structure_uid, f"split {row.part!r}")
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
