"""Periodic neighbour lists as undirected pairs: each bond once, self-images included.

A pair (i, j, S) stands for the vector x_i − x_j − S·h; its two directed edges (receiver i, sender j and
the reverse) share distance and radial weights.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matscipy.neighbours import neighbour_list


class Pairs(NamedTuple):
    """i, j [P] atom indices and S [P,3] integer lattice shifts, with |x_i − x_j − S·h| < cutoff."""

    i: np.ndarray
    j: np.ndarray
    shift: np.ndarray


def find_pairs(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, *, cutoff: float
) -> Pairs:
    """All pairs closer than the cutoff, each once.

    Args:
        positions: [A,3], Å; atoms may lie outside the cell.
        cell: [3,3], rows are lattice vectors; ignored along axes without periodicity.
        pbc: [3] bool.

    Raises:
        ValueError: a periodic axis has a zero-volume cell.
    """
    pbc = np.asarray(pbc, dtype=bool)
    if not pbc.any():
        return _open_pairs(positions, cutoff)
    i, j, shift = neighbour_list(
        "ijS", positions=positions, cell=_padded_cell(positions, cell, pbc, cutoff), pbc=pbc, cutoff=cutoff
    )
    first = i < j
    image = i == j
    if image.any():  # of the two self-images ±S keep the one whose first non-zero component is positive
        s = shift
        sign = np.where(s[:, 0] != 0, s[:, 0], np.where(s[:, 1] != 0, s[:, 1], s[:, 2]))
        first = first | (image & (sign > 0))
    return Pairs(i[first].astype(np.int64), j[first].astype(np.int64), shift[first].astype(np.int64))


def _open_pairs(positions: np.ndarray, cutoff: float) -> Pairs:
    n = len(positions)
    if n <= 400:  # all pairs at once: cheaper than cell lists for molecules
        i, j = np.triu_indices(n, 1)
        near = ((positions[i] - positions[j]) ** 2).sum(1) < cutoff**2
        i, j = i[near], j[near]
    else:
        span = np.ptp(positions, axis=0) + 2.0 * cutoff
        i, j = neighbour_list(
            "ij",
            positions=positions - positions.min(0) + cutoff,
            cell=np.diag(span),
            pbc=np.zeros(3, bool),
            cutoff=cutoff,
        )
        i, j = i[i < j], j[i < j]
    return Pairs(i.astype(np.int64), j.astype(np.int64), np.zeros((len(i), 3), dtype=np.int64))


def _padded_cell(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> np.ndarray:
    """Give open axes a vector normal to the periodic ones that is longer than the structure."""
    cell = np.array(cell, dtype=np.float64)
    normals = np.linalg.svd(cell[pbc])[2][pbc.sum() :]  # complete the periodic vectors to a basis
    for axis, normal in zip(np.flatnonzero(~pbc), normals, strict=True):
        cell[axis] = normal * (np.ptp(positions @ normal) + 2.0 * cutoff + 1.0)
    if abs(np.linalg.det(cell)) < 1e-10:
        raise ValueError("a periodic structure needs three independent lattice vectors")
    return cell
