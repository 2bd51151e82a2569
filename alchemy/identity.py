"""Who is who: content keys of structures and labels, and the seeds derived from the campaign's.

A structure's uid covers what the labels depend on: species, positions and cell on a grid of 1e-8 Å,
periodicity, total charge and spin multiplicity (`atoms.info['charge']`, `['multiplicity']`; 0 is unset).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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
    return [digest.hex() for digest in uids_of_columns(columns_of(frames))]


class Columns(NamedTuple):
    """Structures whose atoms stand one after another: S of them with A atoms in all."""

    sizes: np.ndarray  # [S] numbers of atoms
    numbers: np.ndarray  # [A] atomic numbers
    positions: np.ndarray  # [A,3] Å
    cells: np.ndarray  # [S,3,3] Å
    pbc: np.ndarray  # [S,3]
    charges: np.ndarray  # [S] e
    multiplicities: np.ndarray  # [S] 2S+1, 0 is unset


def columns_of(frames: Sequence[Atoms]) -> Columns:
    """The same structures as columns. Raises OverflowError for charges that are no charges of atoms."""
    states = [charge_and_multiplicity(atoms) if atoms.info else (0, 0) for atoms in frames]
    moved = [atoms.arrays["positions"] for atoms in frames]
    charges, multiplicities = zip(*states, strict=True) if states else ((), ())
    return Columns(
        np.array([len(x) for x in moved], np.int64),
        np.concatenate([np.zeros(0, int), *(atoms.arrays["numbers"] for atoms in frames)]),
        np.concatenate([np.zeros((0, 3)), *moved]),
        np.array([atoms.cell.array for atoms in frames], np.float64).reshape(-1, 3, 3),
        np.array([atoms.pbc for atoms in frames], bool).reshape(-1, 3),
        np.array(charges, "<i4"),
        np.array(multiplicities, "<i4"),
    )


def uids_of_columns(given: Columns) -> list[bytes]:
    """The 16 bytes of the uid of each structure."""
    places, boxes = _on_grid(given.positions), _on_grid(given.cells)
    return _digests(b"alchemy-uid-1", given, np.asarray(given.numbers, "u1"), places, boxes)


def _digests(
    name: bytes, given: Columns, kinds: np.ndarray, *numbers: np.ndarray
) -> list[bytes]:
    """Of number of atoms, periodicity, charge, multiplicity, species, and positions and cells on a grid."""
    shape = [("name", f"S{len(name)}"), ("n", "<i4"), ("pbc", "?", 3), ("charge", "<i4"), ("spin", "<i4")]
    heads = np.empty(len(given.sizes), shape)  # packed, as struct has it with '<'
    heads["name"], heads["n"], heads["pbc"] = name, given.sizes, given.pbc
    heads["charge"], heads["spin"] = given.charges, given.multiplicities
    width = heads.dtype.itemsize
    start, species = memoryview(heads.tobytes()), memoryview(kinds.tobytes())
    moved, walls = (np.ascontiguousarray(a, "<i8").reshape(-1).view(np.uint8).data for a in numbers)
    found, first = [], 0
    for i, size in enumerate(given.sizes.tolist()):
        end = first + size
        parts = (
            start[width * i : width * (i + 1)],
            species[first:end],
            moved[24 * first : 24 * end],
            walls[72 * i : 72 * i + 72],
        )
        found.append(hashlib.blake2b(b"".join(parts), digest_size=16).digest())
        first = end
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
    """`canonical_uid` of each; a thousand at once cost a tenth of a thousand calls."""
    return [digest.hex() for digest in canonical_of_columns(columns_of(frames))]


def canonical_of_columns(given: Columns) -> list[bytes]:
    """The 16 bytes of the canonical uid of each structure."""
    cells = np.rint(given.cells * _CANON_PER_A).astype("<i8")
    axes = [np.rint(x * _CANON_PER_A).astype("<i8") for x in _wrapped(given)]
    ends = np.cumsum(given.sizes)
    kinds, axes = _sorted_atoms(given, axes, ends)
    first = ends - given.sizes
    moved = np.stack([x - np.repeat(x[first], given.sizes) for x in axes], axis=1)
    return _digests(b"alchemy-canon-1", given, kinds, moved, cells)


def _sorted_atoms(
    given: Columns, axes: list[np.ndarray], ends: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Species and rounded positions in each structure by species, x, y, z; positions but for a shift.

    Where an atom fits into one number, those are sorted, several times as fast as rows.
    """
    above = [x - x.min(initial=0) for x in axes]
    bits = [int(x.max(initial=0)).bit_length() for x in above]
    if sum(bits) + 7 > 63:
        owner = np.repeat(np.arange(len(ends)), given.sizes)
        order = np.lexsort((*above[::-1], given.numbers, owner))
        return given.numbers[order].astype("u1"), [x[order] for x in above]
    keys = given.numbers.astype(np.int64)
    for x, n in zip(above, bits, strict=True):
        keys = (keys << n) | x
    start = 0
    for end in ends.tolist():
        keys[start:end].sort()
        start = end
    found = []
    for n in bits[::-1]:
        found.append(keys & ((1 << n) - 1))
        keys = keys >> n
    return keys.astype("u1"), found[::-1]


def _wrapped(given: Columns) -> list[np.ndarray]:
    """x, y and z in the cell along periodic vectors. Sums are written out: no result depends on its batch."""
    cells, positions = given.cells, given.positions
    full = np.where((np.abs(cells).sum(2) > 0)[:, :, None], cells, np.eye(3))
    # a flat cell has no images to choose from
    some = given.pbc.any(axis=1) & (np.linalg.det(full) != 0)
    inverse = np.zeros_like(full)
    inverse[some] = np.linalg.inv(full[some])
    axes = [np.ascontiguousarray(positions[:, i], np.float64) for i in range(3)]
    if not some.any():
        return axes
    steps = [np.floor(x + 1e-6) for x in _times(axes, inverse, given.sizes)]
    periodic = given.pbc & some[:, None]
    steps = [np.where(np.repeat(periodic[:, i], given.sizes), steps[i], 0.0) for i in range(3)]
    return [x - shift for x, shift in zip(axes, _times(steps, full, given.sizes), strict=True)]


def _times(rows: list[np.ndarray], matrices: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    """Rows of each structure times its matrix, component by component."""
    found = []
    for j in range(3):
        # Most cells have right angles; a product with zeros adds nothing.
        of = [i for i in range(3) if i == j or matrices[:, i, j].any()]
        terms = [rows[i] * np.repeat(matrices[:, i, j], sizes) for i in of]
        found.append(sum(terms[1:], terms[0]))
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


def label_keys(uids: Sequence[str], fidelity: str, fingerprint: str, replica: int = 0) -> list[str]:
    """`label_key` of many structures at one level without conditions; the JSON text is written out here."""
    rest = [json.dumps(value, allow_nan=False) for value in (fidelity, fingerprint, replica)]
    end = f'",{",".join(rest)}]'
    texts = (f'["alchemy-label-1","{uid}{end}' for uid in uids)
    return [hashlib.blake2b(text.encode(), digest_size=16).hexdigest() for text in texts]


def imported_fingerprint(fidelity: str) -> str:
    """Stands for the physics of labels that were read from files: their level's name is all that is known."""
    return content_hash(["imported", fidelity])


def seed_for(campaign_seed: int, *path: int | str) -> int:
    """A 63-bit seed for (campaign seed, round, stage, item, …), the same on every machine."""
    digest = hashlib.blake2b(repr((int(campaign_seed), *path)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
