"""What one label left behind: `record.json`, the commit mark of a label's directory.

Arrays are JSON lists of float64 in shortest round-trip form, so reading gives the same bits.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms

from alchemy.errors import StoreDamagedError
from alchemy.identity import charge_and_multiplicity

FORMAT = "alchemy-label-record"
VERSION = 1
FILE_NAME = "record.json"


def write_json_atomic(path: Path, document: Any) -> None:
    """Replace `path` in one step that survives a power cut; NaN and infinity are refused."""
    text = json.dumps(document, allow_nan=False, indent=1, sort_keys=True) + "\n"
    write_text_atomic(path, text)


def write_text_atomic(path: Path, text: str) -> None:
    """Temp file beside `path`, fsync, rename, fsync of the directory."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp gives 0600; colleagues share campaign directories
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def finite_or_none(value: float) -> float | None:
    """NaN and infinity become null: JSON has neither."""
    return float(value) if math.isfinite(value) else None


def read_json(path: Path) -> Any:
    """Parse a file that `write_json_atomic` wrote; damage is an error that names the file."""
    text = path.read_bytes()
    try:
        return json.loads(text)
    except ValueError as error:
        raise StoreDamagedError(
            f"{path} is damaged ({error}); it is written in one step, so the disk or another "
            "program changed it: move it away and the work is done again"
        ) from error


def atoms_to_document(atoms: Atoms) -> dict[str, Any]:
    """Everything a label may depend on, and nothing else (see `identity.structure_uid`)."""
    charge, multiplicity = charge_and_multiplicity(atoms)
    return {
        "numbers": [int(number) for number in atoms.numbers],
        "positions_A": np.asarray(atoms.positions, dtype=np.float64).tolist(),
        "cell_A": np.asarray(atoms.cell, dtype=np.float64).tolist(),
        "pbc": [bool(flag) for flag in atoms.pbc],
        "charge": charge,
        "multiplicity": multiplicity,
    }


def frame_to_document(atoms: Atoms) -> dict[str, Any]:
    """The same with what holds atoms in place, of which no label depends: for walks, and for the store."""
    document = atoms_to_document(atoms)
    fixed = set(np.flatnonzero(atoms.arrays.get("fixed", np.zeros(0))).tolist())
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            fixed |= {int(n) for n in constraint.index}
    return {**document, "fixed": sorted(fixed)} if fixed else document


def atoms_from_document(document: Mapping[str, Any]) -> Atoms:
    """The inverse of `atoms_to_document` and of `frame_to_document`."""
    atoms = Atoms(
        numbers=document["numbers"],
        positions=np.asarray(document["positions_A"], dtype=np.float64).reshape(-1, 3),
        cell=document["cell_A"],
        pbc=document["pbc"],
    )
    for name in ("charge", "multiplicity"):
        if document[name]:
            atoms.info[name] = int(document[name])
    if document.get("fixed"):
        atoms.set_constraint(FixAtoms(document["fixed"]))
    return atoms


@dataclass(frozen=True, eq=False)
class LabelRecord:
    """One attempted label. `status` is 'ok' or 'failed'; a failed one has no numbers."""

    key: str
    structure_uid: str
    fidelity: str
    fingerprint: str
    replica: int
    attempt: int
    status: str
    reason: str
    message: str
    energy_eV: float | None
    energy_kind: str | None
    forces_eV_per_A: np.ndarray | None
    stress_eV_per_A3: np.ndarray | None
    dipole_eA: np.ndarray | None
    wall_s: float
    cpu_s: float
    code: str
    host: str
    created_utc: str
    atoms: Atoms
    physics: dict[str, Any]

    def to_document(self) -> dict[str, Any]:
        """JSON form, with format and version."""
        document = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}
        return {"format": FORMAT, "version": VERSION, **document}

    def write(self, directory: Path) -> None:
        """Commit: from the moment this returns, the label exists."""
        problem = _problem(self)
        if problem:
            raise ValueError(f"label record {self.key}: {problem}")
        write_json_atomic(directory / FILE_NAME, self.to_document())

    @classmethod
    def read(cls, directory: Path) -> LabelRecord:
        """Read and validate `directory/record.json`."""
        path = directory / FILE_NAME
        document = read_json(path)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise StoreDamagedError(f"{path} is not an {FORMAT} file")
        if document.get("version") != VERSION:
            raise StoreDamagedError(
                f"{path} has version {document.get('version')}; this program reads {VERSION}"
            )
        try:
            record = cls(**{f.name: _rich(f.name, document[f.name]) for f in fields(cls)})
            problem = _problem(record)
        except (KeyError, TypeError, ValueError) as error:
            raise StoreDamagedError(
                f"{path} is damaged: {type(error).__name__}: {error}"
            ) from error
        if problem:
            raise StoreDamagedError(f"{path} is damaged: {problem}")
        return record


_ARRAYS = ("forces_eV_per_A", "stress_eV_per_A3", "dipole_eA")


def _plain(value: Any) -> Any:
    if isinstance(value, Atoms):
        return atoms_to_document(value)
    return value.tolist() if isinstance(value, np.ndarray) else value


def _rich(name: str, value: Any) -> Any:
    if name == "atoms":
        return atoms_from_document(value)
    if name in _ARRAYS and value is not None:
        return np.asarray(value, dtype=np.float64)
    return value


def _problem(record: LabelRecord) -> str | None:
    """Why this record cannot be right, or None."""
    if record.status not in ("ok", "failed"):
        return f"status is {record.status!r}, not 'ok' or 'failed'"
    if record.attempt < 1 or record.replica < 0:
        return f"attempt {record.attempt} or replica {record.replica} is out of range"
    if record.status == "failed":
        return None if record.reason else "a failed record needs a reason"
    if record.energy_eV is None or record.forces_eV_per_A is None:
        return "status is 'ok' but energy or forces are missing"
    for name, shape in zip(_ARRAYS, ((len(record.atoms), 3), (6,), (3,)), strict=True):
        array = getattr(record, name)
        if array is not None and array.shape != shape:
            return f"{name} has shape {array.shape}, not {shape}"
        if array is not None and not np.isfinite(array).all():
            return f"{name} is not finite"
    return None if np.isfinite(record.energy_eV) else "energy_eV is not finite"
