"""Labels on their way into the store: checked, and given their keys where they come as columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from alchemy.errors import StoreError
from alchemy.identity import label_key, label_keys
from alchemy.store.bulk import Block, LabelColumns, Ragged
from alchemy.store.named import rows_of_atoms
from alchemy.store.rows import CONDITIONS, LabelRow, PropertySpec
from tace.wording import hint


def size_of(sizes: Mapping[str, int], uid: str, who: str) -> int:
    """Number of atoms of a structure that rows of a commit may refer to. Raises StoreError."""
    if uid not in sizes:
        raise StoreError(f"{who}: structure {uid!r} is neither in the store nor in this commit")
    return sizes[uid]


def check_labels(
    labels: Sequence[LabelRow], sizes: Mapping[str, int], specs: Mapping[str, PropertySpec]
) -> None:
    """Raises StoreError for the first row that says what cannot be."""
    if not _plainly_right(labels, sizes):
        for label in labels:
            check_label(label, size_of(sizes, label.structure_uid, f"label {label.key}"), specs)


def _plainly_right(labels: Sequence[LabelRow], sizes: Mapping[str, int]) -> bool:
    """Whether all are ok, of energy, forces and stress alone, and as they should be: most are, and to look
    at all their numbers at once takes a tenth of the time. False says nothing.
    """
    energies, tensors = [], [np.zeros((0, 3))]
    for label in labels:
        energy, forces, stress = label.energy_eV, label.forces_eV_per_A, label.stress_eV_per_A3
        if label.status != "ok" or not label.fidelity or label.properties or label.conditions:
            return False
        if not isinstance(energy, float) or label.structure_uid not in sizes:  # numpy's float64 is one
            return False
        energies.append(energy)
        for array, shape in ((forces, (sizes[label.structure_uid], 3)), (stress, (6,))):
            if array is not None:
                if type(array) is not np.ndarray or array.dtype != float or array.shape != shape:
                    return False
                tensors.append(array.reshape(-1, 3))
    return bool(np.isfinite(energies).all() and np.isfinite(np.concatenate(tensors)).all())


def check_label(label: LabelRow, n_atoms: int, specs: Mapping[str, PropertySpec]) -> None:
    """Raises StoreError for a row that says what cannot be."""
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
            why = "a condition," if name in label.conditions else "status is ok but"
            _check_finite(np.asarray(array, np.float64), f"{who}: {why} {name}", partial)
    _check_conditions(label, who)


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


def from_columns(
    given: LabelColumns,
    names: Sequence[str],
    sizes: Mapping[str, int],
    *,
    specs: Mapping[str, PropertySpec],
) -> Block | list[LabelRow]:
    """The labels of columns: a block of plain ones, rows where there are properties or conditions.

    Args:
        names: uids of the structures of the same append.
        sizes: numbers of atoms of structures that the labels may refer to.
        specs: the properties that there are.

    Raises:
        StoreError: a shape is wrong, a number is not finite, or a structure is not there.
    """
    uids = names if given.structure_uids is None else list(given.structure_uids)
    who = f"labels ({given.fidelity})"
    if not given.fidelity:
        raise StoreError(f"{who}: fidelity is empty")
    if len(uids) != len(given):
        raise StoreError(f"{who}: {len(given)} energies of {len(uids)} structures; give one of each, or NaN")
    lengths = np.array([size_of(sizes, uid, who) for uid in uids], np.int64)
    columns = {
        "energy_eV": _floats(given.energies_eV, (len(uids),), f"{who}: energies_eV"),
        "forces_eV_per_A": None,
        "stress_eV_per_A3": np.full((len(uids), 6), np.nan),
    }
    if given.forces_eV_per_A is not None:
        shape = (int(lengths.sum()), 3)
        columns["forces_eV_per_A"] = _floats(given.forces_eV_per_A, shape, f"{who}: forces_eV_per_A")
    if given.stresses_eV_per_A3 is not None:
        shape = (len(uids), 6)
        columns["stress_eV_per_A3"] = _floats(given.stresses_eV_per_A3, shape, f"{who}: stresses_eV_per_A3")
    if given.properties or given.conditions:
        named = _named(given, specs, lengths)
        return list(_rows(given, columns, named, uids=uids, lengths=lengths))
    return _block(given, columns, uids=uids, lengths=lengths)


def _floats(values: Any, shape: tuple[int, ...], who: str) -> np.ndarray:
    array = np.asarray(values)
    if array.shape != shape or array.dtype.kind not in "iuf":
        raise StoreError(f"{who} has shape {array.shape} of {array.dtype}, should be {shape} of float64")
    return array.astype(np.float64, copy=False)


def _block(
    given: LabelColumns, columns: Mapping[str, Any], *, uids: Sequence[str], lengths: np.ndarray
) -> Block:
    n, who = len(uids), f"labels ({given.fidelity})"
    energies, forces, stresses = columns.values()
    absent = np.isnan(stresses).all(axis=1)
    for name, bad in (
        ("energies_eV", np.isinf(energies)),
        ("stresses_eV_per_A3", ~np.isfinite(stresses).all(axis=1) & ~absent),
        ("anything but NaN", np.isnan(energies) & absent & (forces is None)),
    ):
        if bad.any():
            row = int(np.argmax(bad))
            problem = "should have" if name.startswith("any") else "NaN or inf in"
            raise StoreError(f"{who}: structure {uids[row]}: {problem} {name}")
    if forces is None:
        forces, lengths = np.zeros((0, 3)), np.zeros(n, np.int64)
    elif not np.isfinite(forces).all():
        atom = int(np.argmax(~np.isfinite(forces).all(axis=1)))
        row = int(np.searchsorted(np.cumsum(lengths), atom, side="right"))
        raise StoreError(f"{who}: structure {uids[row]}: NaN or inf in forces_eV_per_A")
    fixed = {"wall_s": given.wall_s, "cpu_s": given.cpu_s, "created": given.created}
    return Block(
        n,
        {
            "key": label_keys(uids, given.fidelity, given.fingerprint, given.replica),
            "structure_uid": uids,
            "fidelity": given.fidelity,
            "fingerprint": given.fingerprint,
            "status": "ok",
            "code": given.code,
            "energy_eV": energies,
            "energy_kind": given.energy_kind,
            "forces_eV_per_A": Ragged(lengths, forces),
            "stress_eV_per_A3": stresses,
            **{name: np.full(n, value, np.float64) for name, value in fixed.items()},
            "replica": np.full(n, given.replica, np.int64),
            "attempt": np.ones(n, np.int64),
        },
        {},
    )


def _named(
    given: LabelColumns, specs: Mapping[str, PropertySpec], lengths: np.ndarray
) -> dict[str, list[dict[str, np.ndarray]]]:
    """Properties and conditions of each structure; absent where all is NaN."""
    found: dict[str, list[dict[str, np.ndarray]]] = {}
    for what, values, known in (
        ("properties", given.properties, specs),
        ("conditions", given.conditions, CONDITIONS),
    ):
        own: list[dict[str, np.ndarray]] = [{} for _ in lengths]
        for name, value in values.items():
            if name not in known:
                raise StoreError(f"labels ({given.fidelity}): {what} {name!r} unknown; {hint(name, known)}")
            parts = _parts(value, known[name], lengths, who=f"labels ({given.fidelity}): {name}")
            for row, part in zip(own, parts, strict=True):
                if what == "conditions" and not np.isnan(part).all():
                    _check_finite(part, f"labels ({given.fidelity}): a condition, {name}", False)
                if not np.isnan(part).all():
                    row[name] = part
        found[what] = own
    return found


def _parts(
    values: Any, spec: PropertySpec, lengths: np.ndarray, *, who: str
) -> Sequence[np.ndarray]:
    if spec.scope == "pair":
        raise StoreError(f"{who}: matrices of pairs of atoms come as rows (LabelRow), not as columns")
    n = int(lengths.sum()) if spec.scope == "atom" else len(lengths)
    array = _floats(values, (n, *spec.tail), who)
    return np.split(array, np.cumsum(lengths)[:-1]) if spec.scope == "atom" else [*map(np.asarray, array)]


def _rows(
    given: LabelColumns,
    columns: Mapping[str, Any],
    named: Mapping[str, Sequence[Mapping[str, np.ndarray]]],
    *,
    uids: Sequence[str],
    lengths: np.ndarray,
) -> Iterator[LabelRow]:
    energies, forces, stresses = columns.values()
    for i, (uid, end) in enumerate(zip(uids, np.cumsum(lengths).tolist(), strict=True)):
        energy, stress = float(energies[i]), stresses[i]
        properties, conditions = named["properties"][i], named["conditions"][i]
        yield LabelRow(
            key=label_key(uid, given.fidelity, given.fingerprint, given.replica, conditions),
            structure_uid=uid,
            fidelity=given.fidelity,
            fingerprint=given.fingerprint,
            status="ok",
            code=given.code,
            energy_eV=None if np.isnan(energy) else energy,
            energy_kind=given.energy_kind,
            forces_eV_per_A=None if forces is None else forces[end - int(lengths[i]) : end],
            stress_eV_per_A3=None if np.isnan(stress).all() else stress,
            wall_s=given.wall_s,
            cpu_s=given.cpu_s,
            created=given.created,
            replica=given.replica,
            properties=properties,
            conditions=conditions,
        )
