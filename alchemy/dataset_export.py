"""Labels of a store in the formats of other programs: ASE databases, parquet, pymatgen's JSON.

Units are eV, eV/Å, eV/Å³ (ASE's sign) and those of `tace.quantities`. A file appears complete or not at all.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from alchemy.errors import EnvironmentProblemError, InputError, StoreError
from alchemy.store import LabelRow, Snapshot, export_extxyz
from alchemy.store.export import attach, rows_to_export

FORMATS = {
    "extxyz": (".xyz", ".extxyz"),
    "ase-db": (".db", ".aselmdb"),
    "parquet": (".parquet",),
    "pymatgen": (".json",),
}

_OF_ASE = ("numbers", "positions", "tags", "initial_magmoms", "initial_charges")  # the database has fields


def format_of(path: Path, name: str | None) -> str:
    """The format that was named, or that of the suffix. Raises InputError."""
    if name is not None:
        return name
    for found, suffixes in FORMATS.items():
        if path.suffix in suffixes:
            return found
    known = ", ".join(suffix for suffixes in FORMATS.values() for suffix in suffixes)
    raise InputError(f"{path}: the suffix names no format; use {known}, or --format")


def export(
    snapshot: Snapshot,
    expression: str,
    path: Path,
    *,
    form: str,
    fidelity: str | None = None,
    overwrite: bool = False,
    ref_keys: bool = False,
) -> int:
    """Write the good labels that match; the number of them comes back.

    Raises:
        InputError: the file exists, or there is no such folder.
        EnvironmentProblemError: a package that the format needs is missing.
    """
    if not path.resolve().parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    if form == "extxyz":
        options = {"fidelity": fidelity, "overwrite": overwrite, "ref_keys": ref_keys}
        return export_extxyz(snapshot, expression, path, **options)  # type: ignore[arg-type]
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; give another name or --force")
    writers: dict[str, Callable[..., int]] = {
        "ase-db": _ase_db,
        "parquet": _parquet,
        "pymatgen": _pymatgen,
    }
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        written = writers[form](_frames(snapshot, expression, fidelity, ref_keys=ref_keys), temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise StoreError(f"{path}: cannot write: {error}") from error
    finally:
        for left in (temporary, temporary.with_name(f"{temporary.name}-lock")):  # LMDB makes the second
            left.unlink(missing_ok=True)
    return written


def _frames(
    snapshot: Snapshot, expression: str, fidelity: str | None, *, ref_keys: bool
) -> Iterator[tuple[Atoms, LabelRow]]:
    parts, specs = snapshot.part_of(), snapshot.quantities()
    for row in rows_to_export(snapshot, expression, fidelity):
        atoms = snapshot.structure(row.structure_uid)
        attach(atoms, row, parts.get(row.structure_uid), specs=specs, ref_keys=ref_keys)
        yield atoms, row


def _ase_db(frames: Iterator[tuple[Atoms, LabelRow]], path: Path) -> int:
    """Energy, forces and stress are those of the row; the rest is in its data."""
    number = 0
    with connect(path) as database:
        for number, (atoms, row) in enumerate(frames, 1):  # noqa: B007
            pairs = {k: v for k, v in atoms.info.items() if isinstance(v, str | int | float)}
            pairs.pop("charge", None)  # ASE reserves the name
            data = {k: v for k, v in atoms.info.items() if k not in pairs}
            data |= {name: value for name, value in atoms.arrays.items() if name not in _OF_ASE}
            database.write(atoms, key_value_pairs={**pairs, "uid": f"u{row.structure_uid}"}, data=data)
    return number


def connect(path: Path) -> Any:
    """A new database; LMDB's needs a package of its own. Raises EnvironmentProblemError."""
    from ase.db import connect as open_database

    try:
        if path.suffix == ".aselmdb":
            importlib.import_module("ase_db_backends.aselmdb")
        return open_database(str(path), append=False)
    except ImportError as error:
        raise EnvironmentProblemError(
            ".aselmdb needs the package ase-db-backends: pip install 'tace-alchemy[aselmdb]'"
        ) from error


def _parquet(frames: Iterator[tuple[Atoms, LabelRow]], path: Path) -> int:
    """One row per label; arrays are lists, flat in C order."""
    try:
        arrow, parquet = (importlib.import_module(f"pyarrow{name}") for name in ("", ".parquet"))
    except ImportError as error:
        raise EnvironmentProblemError(
            "parquet needs the package pyarrow: pip install 'tace-alchemy[parquet]'"
        ) from error
    rows: list[dict[str, Any]] = []
    for atoms, row in frames:
        rows.append(
            {
                "uid": row.structure_uid,
                "key": row.key,
                "fidelity": row.fidelity,
                "split": atoms.info.get("split"),
                "formula": atoms.get_chemical_formula(),
                "numbers": atoms.numbers.tolist(),
                "positions_A": atoms.positions.ravel().tolist(),
                "cell_A": np.asarray(atoms.cell).ravel().tolist(),
                "pbc": atoms.pbc.tolist(),
                "energy_eV": row.energy_eV,
                "forces_eV_per_A": _flat(row.forces_eV_per_A),
                "stress_eV_per_A3": _flat(row.stress_eV_per_A3),
                **{name: _flat(value) for name, value in row.properties.items()},
                **{f"condition_{name}": _flat(value) for name, value in row.conditions.items()},
            }
        )
    parquet.write_table(arrow.Table.from_pylist(_same_columns(rows)), str(path))
    return len(rows)


def _same_columns(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def _flat(value: np.ndarray | None) -> list[float] | None:
    return None if value is None else np.asarray(value, np.float64).ravel().tolist()


def _pymatgen(frames: Iterator[tuple[Atoms, LabelRow]], path: Path) -> int:
    """A list of {structure or molecule as pymatgen's dict, uid, fidelity, energy, forces, stress, …}."""
    from pymatgen.io.ase import AseAtomsAdaptor

    number = 0
    with path.open("w", encoding="utf-8") as file:
        file.write("[")
        for number, (atoms, row) in enumerate(frames, 1):
            atoms.calc = None
            bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
            periodic = bool(atoms.pbc.all())
            adapt = AseAtomsAdaptor.get_structure if periodic else AseAtomsAdaptor.get_molecule
            entry = {
                "structure" if periodic else "molecule": adapt(bare).as_dict(),
                "pbc": atoms.pbc.tolist(),
                "cell_A": np.asarray(atoms.cell).tolist(),
                "uid": row.structure_uid,
                "fidelity": row.fidelity,
                "split": atoms.info.get("split"),
                "energy_eV": row.energy_eV,
                "forces_eV_per_A": _lists(row.forces_eV_per_A),
                "stress_eV_per_A3": _lists(row.stress_eV_per_A3),
                "labels": {name: _lists(value) for name, value in row.properties.items()},
                "conditions": {name: _lists(value) for name, value in row.conditions.items()},
            }
            file.write((",\n" if number > 1 else "\n") + json.dumps(_no_nan(entry), default=float))
        file.write("\n]\n")
    return number


def _lists(value: np.ndarray | None) -> Any:
    return None if value is None else np.asarray(value, np.float64).tolist()


def _no_nan(value: Any) -> Any:
    """NaN, an atom without the label, becomes null: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _no_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_no_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value
