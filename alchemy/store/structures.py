"""Structures on their way into the store: checked, snapped to the grid of identities, and named."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from alchemy.errors import StoreError
from alchemy.identity import Columns, canonical_of_columns, columns_of, snap, uids_of_columns
from alchemy.store.bulk import Block, Ragged, StructureColumns

MAX_ATOMIC_NUMBER = 118
_ALPHABET = sorted(range(1, MAX_ATOMIC_NUMBER + 1), key=lambda z: str(chemical_symbols[z]))
_HILL = np.array([6, 1, *_ALPHABET])


def structure_block(given: Sequence[Atoms] | StructureColumns) -> Block:
    """The rows of structures, as many as given. Raises StoreError for what cannot be stored."""
    if isinstance(given, StructureColumns):
        columns, extra = _columns(given), []
    else:
        try:
            columns = columns_of(given)
        except (TypeError, ValueError, OverflowError) as error:
            raise StoreError(f"structures: charge and multiplicity are whole numbers: {error}") from error
        extra = [_extra(atoms) for atoms in given]
    columns = columns._replace(positions=snap(columns.positions), cells=snap(columns.cells))
    _check(columns)
    n, sizes = len(columns.sizes), columns.sizes
    owner, width = np.repeat(np.arange(n), sizes), MAX_ATOMIC_NUMBER + 1
    counts = np.bincount(owner * width + columns.numbers, minlength=n * width).reshape(-1, width)
    return Block(
        n,
        {
            "uid": _ids(uids_of_columns(columns)),
            "n_atoms": sizes.astype("<i4"),
            "numbers": Ragged(sizes, columns.numbers.astype("u1")),
            "positions": Ragged(sizes, columns.positions),
            "cell": columns.cells,
            "pbc": columns.pbc.astype("u1"),
            "charge": columns.charges.astype("<i2"),
            "multiplicity": columns.multiplicities.astype("<i2"),
            "elements": _masks(counts),
            "formula": _hill_formulas(counts),
            "canon_uid": _ids(canonical_of_columns(columns)),
        },
        {"extra": extra} if any(extra) else {},
    )


def _ids(digests: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(digests), "u1").reshape(-1, 16)


def _columns(given: StructureColumns) -> Columns:
    """What is given as arrays, unset columns filled. Raises StoreError for wrong shapes."""
    n = len(given.sizes)
    sizes = np.asarray(given.sizes)
    if sizes.ndim != 1 or sizes.dtype.kind not in "iu" or (n and sizes.min() < 0):
        raise StoreError("structures: sizes are whole numbers of atoms, one of each structure")
    atoms = int(sizes.sum())
    found = []
    for name, shape, dtype in (
        ("numbers", (atoms,), np.int64),
        ("positions_A", (atoms, 3), np.float64),
        ("cells_A", (n, 3, 3), np.float64),
        ("pbc", (n, 3), bool),
        ("charges_e", (n,), np.int64),
        ("multiplicities", (n,), np.int64),
    ):
        value = getattr(given, name)
        array = np.zeros(shape, dtype) if value is None else np.asarray(value)
        if array.shape != shape:
            raise StoreError(f"structures: {name} has shape {array.shape}, should be {shape}")
        if array.dtype.kind not in ("biuf" if dtype is np.float64 else "biu"):
            raise StoreError(f"structures: {name} is {array.dtype}, should be {np.dtype(dtype)}")
        found.append(array.astype(dtype, copy=False))
    return Columns(sizes.astype(np.int64), *found)


def _check(columns: Columns) -> None:
    """Raises StoreError for the first structure that cannot be stored."""
    numbers, sizes = columns.numbers, columns.sizes
    states = np.stack([columns.charges, columns.multiplicities])
    n = len(sizes)
    if not n:
        return
    good = sizes.min() > 0 and numbers.min() > 0 and numbers.max() <= MAX_ATOMIC_NUMBER
    good = good and np.isfinite(columns.positions).all() and np.isfinite(columns.cells).all()
    if good and np.abs(states).max() < 1 << 15 and columns.multiplicities.min() >= 0:
        return
    ends = np.cumsum(sizes).tolist()
    for i, (size, end) in enumerate(zip(sizes.tolist(), ends, strict=True)):
        own, moved = numbers[end - size : end], columns.positions[end - size : end]
        if not size or own.min() < 1 or own.max() > MAX_ATOMIC_NUMBER:
            raise StoreError(f"structure {i}: needs atoms with Z in 1–118")
        who = f"structure {i} ({Atoms(own).get_chemical_formula()})"
        if not (np.isfinite(moved).all() and np.isfinite(columns.cells[i]).all()):
            raise StoreError(f"{who}: NaN or inf in its geometry")
        charge, multiplicity = states[:, i].tolist()
        if abs(charge) >= 1 << 15 or not 0 <= multiplicity < 1 << 15:
            raise StoreError(f"{who}: charge {charge}, multiplicity {multiplicity}: no such state")


def _masks(counts: np.ndarray) -> np.ndarray:
    """u8 [S,2]: bit Z set if the element is there; `counts` are of atomic numbers, [S,119]."""
    bits = np.zeros((len(counts), 128), "u1")
    bits[:, : counts.shape[1]] = counts > 0
    return np.packbits(bits, axis=1, bitorder="little").view("<u8")


def _hill_formulas(counts: np.ndarray) -> list[str]:
    """Carbon, hydrogen, then the alphabet; `counts` are of atomic numbers, [S,119]."""
    rows, columns = np.nonzero(counts[:, _HILL])
    numbers = counts[rows, _HILL[columns]]
    has_carbon = counts[:, 6] > 0
    once = has_carbon[rows] == (columns < 2)  # C and H stand first with carbon, in the alphabet without
    once |= np.isin(_HILL[columns], (1, 6), invert=True)
    texts = map(_with_number, _HILL[columns[once]].tolist(), numbers[once].tolist())
    ends = np.searchsorted(rows[once], np.arange(len(counts)), side="right").tolist()
    parts, starts = [*texts], [0, *ends]
    return ["".join(parts[lo:hi]) for lo, hi in zip(starts, ends, strict=False)]


@lru_cache(maxsize=4096)
def _with_number(z: int, number: int) -> str:
    return str(chemical_symbols[z]) if number == 1 else f"{chemical_symbols[z]}{number}"


def _extra(atoms: Atoms) -> dict[str, Any]:
    """Arrays that describe the atoms; those of zeros only are left out."""
    if len(atoms.arrays) == 2 and not atoms.constraints:  # numbers and positions, as most have
        return {}
    from ase.constraints import FixAtoms  # and scipy with it: 50 MB that a query does not need

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
