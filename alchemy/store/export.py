"""Extended XYZ files of labelled structures, as ASE and most training codes read them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms

from alchemy.errors import InputError, StoreError
from alchemy.store.rows import CONDITIONS, LabelRow, PropertySpec

if TYPE_CHECKING:
    from alchemy.store.snapshot import Snapshot

_FRAMES_AT_ONCE = 500
PREFIX = "REF_"


def export_extxyz(
    snapshot: Snapshot,
    expression: str,
    path: Path | str,
    *,
    fidelity: str | None = None,
    overwrite: bool = False,
    ref_keys: bool = False,
) -> int:
    """Write the ok labels that match, one frame each; the number of frames comes back.

    Energy (eV), forces (eV/Å) and stress (eV/Å³) are the results of ASE's SinglePointCalculator, or
    with `ref_keys` info['REF_energy'], arrays['REF_forces'] and info['REF_stress'] [3,3], which ASE
    does not interpret. info has fidelity, split, charge and multiplicity where set; further labels and
    conditions stand under their names (labels with the prefix) in info and arrays. The file appears at
    once and complete. Raises InputError when it exists, QueryError, StoreError.
    """
    from ase.io import write  # and scipy with it: 50 MB and a second that a query does not need

    path = Path(path)
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; give another name or allow overwriting")
    labels = rows_to_export(snapshot, expression, fidelity)
    parts, specs = snapshot.part_of(), snapshot.quantities()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        for start in range(0, len(labels), _FRAMES_AT_ONCE):
            chunk = labels[start : start + _FRAMES_AT_ONCE]
            frames = snapshot.structures([row.structure_uid for row in chunk])
            for atoms, row in zip(frames, chunk, strict=True):
                attach(atoms, row, parts.get(row.structure_uid), specs=specs, ref_keys=ref_keys)
            write(temporary, frames, format="extxyz", append=True)
        os.replace(temporary, path)
    except OSError as error:
        raise StoreError(f"{path}: cannot write: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return len(labels)


def rows_to_export(snapshot: Snapshot, expression: str, fidelity: str | None) -> list[LabelRow]:
    """The good labels that match, in the order of the query. Raises QueryError."""
    keys = snapshot.select(expression, rows="labels", columns=["key"]).columns["key"]
    rows = {row.key: row for row in snapshot.labels(fidelity=fidelity)}
    return [rows[key] for key in keys if key in rows]


def attach(
    atoms: Atoms,
    row: LabelRow,
    part: str | None,
    *,
    specs: Mapping[str, PropertySpec],
    ref_keys: bool,
) -> None:
    """Labels and conditions as `tace.readers` finds them: results of a calculator, `info`, `arrays`.

    specs: of the labels beyond energy, forces and stress (`Snapshot.quantities`).
    """
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.stress import voigt_6_to_full_3x3_stress

    atoms.info["fidelity"] = row.fidelity
    if part is not None:
        atoms.info["split"] = part
    for name, value in row.conditions.items():
        _place(atoms, name, np.asarray(value), CONDITIONS[name].scope)
    prefix = PREFIX if ref_keys else ""
    for name, value in row.properties.items():
        _place(atoms, prefix + name, np.asarray(value), specs[name].scope)
    if not ref_keys:
        results = {
            "energy": row.energy_eV,
            "forces": row.forces_eV_per_A,
            "stress": row.stress_eV_per_A3,
        }
        present = {name: value for name, value in results.items() if value is not None}
        atoms.calc = SinglePointCalculator(atoms, **present)
        return
    if row.energy_eV is not None:
        atoms.info[f"{PREFIX}energy"] = row.energy_eV
    if row.forces_eV_per_A is not None:
        atoms.arrays[f"{PREFIX}forces"] = row.forces_eV_per_A
    if row.stress_eV_per_A3 is not None:
        atoms.info[f"{PREFIX}stress"] = voigt_6_to_full_3x3_stress(row.stress_eV_per_A3)


def _place(atoms: Atoms, name: str, value: np.ndarray, scope: str) -> None:
    """Of atoms as columns, of structures as a value, of pairs as one line of numbers."""
    if scope == "atom":
        atoms.arrays[name] = value.reshape(len(atoms), -1) if value.ndim > 2 else value
    elif scope == "pair":
        atoms.info[name] = value.ravel()
    else:
        atoms.info[name] = float(value) if value.ndim == 0 else value
