"""Who is who: content keys of structures and labels, and the seeds derived from the campaign's.

A structure's uid covers what the labels depend on: species, positions and cell on a grid of 1e-8 Å,
periodicity, total charge and spin multiplicity (`atoms.info['charge']`, `['multiplicity']`; 0 is unset).
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms

GRID_PER_A = 1e8
_CANON_PER_A = 1e3


def snap(values: np.ndarray) -> np.ndarray:
    """Round to the 1e-8 Å grid on which identity is defined; −0 becomes 0."""
    return np.asarray(np.rint(np.asarray(values, dtype=np.float64) * GRID_PER_A) / GRID_PER_A + 0.0)


def charge_and_multiplicity(atoms: Atoms) -> tuple[int, int]:
    """Total charge (e) and 2S+1 that the structure carries; 0 means unset."""
    return int(atoms.info.get("charge", 0)), int(atoms.info.get("multiplicity", 0))


def structure_uid(atoms: Atoms) -> str:
    """32 hex digits that change when, and only when, a label could."""
    return structure_uids([atoms])[0]


def structure_uids(frames: Sequence[Atoms]) -> list[str]:
    """`structure_uid` of each, rounded together."""
    if not frames:
        return []
    states = [charge_and_multiplicity(atoms) for atoms in frames]
    return uids_of_columns(
        [len(atoms) for atoms in frames],
        np.concatenate([atoms.numbers for atoms in frames]),
        np.concatenate([atoms.positions for atoms in frames]),
        cells=np.array([np.asarray(atoms.cell) for atoms in frames]),
        pbc=[atoms.pbc.tolist() for atoms in frames],
        states=states,
    )


def uids_of_columns(
    sizes: Sequence[int],
    numbers: np.ndarray,
    positions: np.ndarray,
    *,
    cells: np.ndarray,
    pbc: Sequence[Sequence[bool]],
    states: Sequence[tuple[int, int]],
) -> list[str]:
    """Uids of structures whose atoms stand one after another.

    Args:
        sizes: numbers of atoms [S]; numbers, positions: of all of them, [A] and [A,3] in Å.
        cells, pbc: [S,3,3] in Å and [S,3]; states: charge (e) and multiplicity of each.
    """
    kinds, places, boxes = np.asarray(numbers, "u1").tobytes(), _on_grid(positions), _on_grid(cells)
    moved, walls = memoryview(places.tobytes()), memoryview(boxes.tobytes())
    start, found = hashlib.blake2b(b"alchemy-uid-1", digest_size=16), []
    end = 0
    for i, (size, periodic, state) in enumerate(zip(sizes, pbc, states, strict=True)):
        first, end = end, end + size
        digest = start.copy()
        digest.update(struct.pack("<i3?ii", size, *periodic, *state))
        digest.update(kinds[first:end])
        digest.update(moved[24 * first : 24 * end])
        digest.update(walls[72 * i : 72 * i + 72])
        found.append(digest.hexdigest())
    return found


def _on_grid(values: np.ndarray) -> np.ndarray:
    return np.rint(np.asarray(values, dtype=np.float64) * GRID_PER_A).astype("<i8")


def content_hash(document: Any) -> str:
    """32 hex digits of a JSON document; key order does not matter, NaN is refused."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def canonical_uid(atoms: Atoms) -> str:
    """32 hex digits that do not change with the order of atoms, periodic images, or 1e-4 Å.

    For finding the same structure in files of fewer digits; best effort: two structures on different
    sides of a rounding edge differ, and so do rotated ones.
    """
    return canonical_uids([atoms])[0]


def canonical_uids(frames: Sequence[Atoms]) -> list[str]:
    """`canonical_uid` of each; a thousand at once cost a fifth of a thousand calls."""
    if not frames:
        return []
    sizes = np.array([len(atoms) for atoms in frames])
    owner, ends = np.repeat(np.arange(len(frames)), sizes), np.cumsum(sizes)
    numbers = np.concatenate([atoms.numbers for atoms in frames])
    cells = np.array([np.asarray(atoms.cell, np.float64) for atoms in frames])
    periodic = np.array([atoms.pbc for atoms in frames], bool)
    wrapped = _wrapped(np.concatenate([atoms.positions for atoms in frames]), owner, cells, periodic)
    rounded = np.rint(wrapped * _CANON_PER_A).astype("<i8")
    order = np.lexsort((*_sort_keys(rounded), owner * 256 + numbers))
    rounded, kinds = rounded[order], numbers[order].astype("u1").tobytes()
    moved = (rounded - rounded[ends - sizes][owner]).tobytes()
    boxes = np.rint(cells * _CANON_PER_A).astype("<i8")
    found = []
    for i, (atoms, end, size) in enumerate(zip(frames, ends.tolist(), sizes.tolist(), strict=True)):
        charge, multiplicity = charge_and_multiplicity(atoms)
        digest = hashlib.blake2b(b"alchemy-canon-1", digest_size=16)
        digest.update(struct.pack("<i3?ii", size, *periodic[i].tolist(), charge, multiplicity))
        digest.update(kinds[end - size : end])
        digest.update(moved[24 * (end - size) : 24 * end])
        digest.update(boxes[i].tobytes())
        found.append(digest.hexdigest())
    return found


def _sort_keys(rounded: np.ndarray) -> tuple[np.ndarray, ...]:
    """Keys, last one first, that order by x, y and z; in one number where they fit, which sorts faster."""
    above = rounded - rounded.min(axis=0)
    if above.max() < 1 << 21:
        return ((above[:, 0] << 42) | (above[:, 1] << 21) | above[:, 2],)
    return rounded[:, 2], rounded[:, 1], rounded[:, 0]


def _wrapped(
    positions: np.ndarray, owner: np.ndarray, cells: np.ndarray, periodic: np.ndarray
) -> np.ndarray:
    """Positions in the cell along periodic vectors. Sums are written out: no result depends on its batch."""
    full = np.where((np.abs(cells).sum(2) > 0)[:, :, None], cells, np.eye(3))
    # a flat cell has no images to choose from
    some = np.flatnonzero(periodic.any(axis=1) & (np.linalg.det(full) != 0))
    inverse = np.zeros_like(full)
    inverse[some] = np.linalg.inv(full[some])
    chosen = np.isin(owner, some) if len(some) < len(cells) else np.ones(len(owner), bool)
    x, own = positions[chosen], owner[chosen]
    steps = np.floor(_times(x, inverse[own]) + 1e-6)
    found = np.array(positions, np.float64)
    found[chosen] = x - _times(np.where(periodic[own], steps, 0.0), full[own])
    return found


def _times(rows: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    x, y, z = (rows[:, i, None] * matrices[:, i] for i in range(3))
    found: np.ndarray = x + y + z
    return found


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
