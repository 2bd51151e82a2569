"""Who is who: content keys of structures and labels, and the seeds derived from the campaign's.

A structure's uid covers what the labels depend on: species, positions and cell on a grid of 1e-8 Å,
periodicity, total charge and spin multiplicity (`atoms.info['charge']`, `['multiplicity']`; 0 is unset).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from ase import Atoms

GRID_PER_A = 1e8


def snap(values: np.ndarray) -> np.ndarray:
    """Round to the 1e-8 Å grid on which identity is defined; −0 becomes 0."""
    return np.asarray(np.rint(np.asarray(values, dtype=np.float64) * GRID_PER_A) / GRID_PER_A + 0.0)


def charge_and_multiplicity(atoms: Atoms) -> tuple[int, int]:
    """Total charge (e) and 2S+1 that the structure carries; 0 means unset."""
    return int(atoms.info.get("charge", 0)), int(atoms.info.get("multiplicity", 0))


def structure_uid(atoms: Atoms) -> str:
    """32 hex digits that change when, and only when, a label could."""
    charge, multiplicity = charge_and_multiplicity(atoms)
    digest = hashlib.blake2b(b"alchemy-uid-1", digest_size=16)
    digest.update(struct.pack("<i3?ii", len(atoms), *map(bool, atoms.pbc), charge, multiplicity))
    digest.update(np.asarray(atoms.numbers, dtype="u1").tobytes())
    for array in (atoms.positions, np.asarray(atoms.cell)):
        digest.update(np.rint(np.asarray(array, dtype=np.float64) * GRID_PER_A).astype("<i8").tobytes())
    return digest.hexdigest()


def content_hash(document: Any) -> str:
    """32 hex digits of a JSON document; key order does not matter, NaN is refused."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def canonical_uid(atoms: Atoms) -> str:
    """32 hex digits that do not change with the order of atoms, periodic images, or 1e-4 Å.

    For finding the same structure in files of fewer digits; best effort: two structures on different
    sides of a rounding edge differ, and so do rotated ones.
    """
    numbers, positions = np.asarray(atoms.numbers), np.asarray(atoms.positions, np.float64)
    cell, periodic = np.asarray(atoms.cell, np.float64), np.asarray(atoms.pbc, bool)
    grid = 1e3
    if periodic.any():
        full = np.where((np.abs(cell).sum(1) > 0)[:, None], cell, np.eye(3))
        with contextlib.suppress(np.linalg.LinAlgError):  # a flat cell has no images to choose from
            steps = np.floor(positions @ np.linalg.inv(full) + 1e-6)
            positions = positions - np.where(periodic, steps, 0.0) @ full
    rounded = np.rint(positions * grid).astype("<i8")
    order = np.lexsort((rounded[:, 2], rounded[:, 1], rounded[:, 0], numbers))
    charge, multiplicity = charge_and_multiplicity(atoms)
    digest = hashlib.blake2b(b"alchemy-canon-1", digest_size=16)
    digest.update(struct.pack("<i3?ii", len(atoms), *periodic.tolist(), charge, multiplicity))
    digest.update(numbers[order].astype("u1").tobytes())
    digest.update((rounded - rounded[order[0]])[order].astype("<i8").tobytes())
    digest.update(np.rint(cell * grid).astype("<i8").tobytes())
    return digest.hexdigest()


def label_key(
    uid: str,
    fidelity: str,
    fingerprint: str,
    replica: int = 0,
    conditions: Mapping[str, Any] | None = None,
) -> str:
    """The identity of one label: structure × fidelity × physics × conditions; replica > 0 measures noise."""
    if not conditions:
        return content_hash(["alchemy-label-1", uid, fidelity, fingerprint, replica])
    values = {name: snap(np.asarray(value)).tolist() for name, value in conditions.items()}
    return content_hash(["alchemy-label-2", uid, fidelity, fingerprint, replica, values])


def imported_fingerprint(fidelity: str) -> str:
    """Stands for the physics of labels that were read from files: their level's name is all that is known."""
    return content_hash(["imported", fidelity])


def seed_for(campaign_seed: int, *path: int | str) -> int:
    """A 63-bit seed for (campaign seed, round, stage, item, …), the same on every machine."""
    digest = hashlib.blake2b(repr((int(campaign_seed), *path)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
