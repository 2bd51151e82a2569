"""The forces of a nudged elastic band, and its shape.

Tangent    of the images' energies: Henkelman & Jónsson, JCP 113, 9978 (2000), Eqs. 8-11.
Force      F_i = F − (F·τ)τ + k(|R_{i+1}−R_i| − |R_i−R_{i−1}|)τ, Eqs. 3 and 12 there; on the climbing
           image F − 2(F·τ)τ, Henkelman, Uberuaga & Jónsson, JCP 113, 9901 (2000), Eq. 5.
Shapes     path [M, A, 3] with its two ends, which do not move.
"""

from __future__ import annotations

import numpy as np
from ase import Atoms

from .modes import orthonormal, turns_and_shifts
from .reactions import superposed
from .surface import fixed_atoms


def tangents(path: np.ndarray, energies_eV: np.ndarray) -> np.ndarray:
    """Unit tangents at the inner images, [M-2, A, 3]."""
    ahead, behind = path[2:] - path[1:-1], path[1:-1] - path[:-2]
    e0, e1, e2 = energies_eV[:-2], energies_eV[1:-1], energies_eV[2:]
    big = np.maximum(abs(e2 - e1), abs(e0 - e1))
    small = np.minimum(abs(e2 - e1), abs(e0 - e1))
    up = np.where(e2 > e0, big, small)[:, None, None] * ahead
    down = np.where(e2 > e0, small, big)[:, None, None] * behind
    rising, falling = (e2 > e1) & (e1 > e0), (e2 < e1) & (e1 < e0)
    mixed = up + down
    # a plateau has no slope to weigh with
    flat = np.linalg.norm(mixed, axis=(1, 2)) < 1e-12
    mixed = np.where(flat[:, None, None], ahead + behind, mixed)
    tau = np.where(rising[:, None, None], ahead, np.where(falling[:, None, None], behind, mixed))
    return np.asarray(tau / np.maximum(np.linalg.norm(tau, axis=(1, 2)), 1e-12)[:, None, None])


def band_forces(
    path: np.ndarray,
    energies_eV: np.ndarray,
    forces_eV_per_A: np.ndarray,
    *,
    spring_eV_per_A2: float,
    climb: bool,
) -> np.ndarray:
    """What moves the inner images, [M-2, A, 3], from the true forces on them."""
    tau = tangents(path, energies_eV)
    along = (forces_eV_per_A * tau).sum((1, 2))[:, None, None]
    gaps = np.linalg.norm(np.diff(path, axis=0), axis=(1, 2))
    spring = spring_eV_per_A2 * (gaps[1:] - gaps[:-1])[:, None, None]
    nudged = forces_eV_per_A - along * tau + spring * tau
    if climb:
        top = int(np.argmax(energies_eV[1:-1]))
        nudged[top] = forces_eV_per_A[top] - 2 * along[top] * tau[top]
    return np.asarray(nudged)


def turns(path: np.ndarray) -> np.ndarray:
    """Cosine of the angle between successive segments of a path [M,A,3], [M-2]; 1 is straight on."""
    step = np.diff(path.reshape(len(path), -1), axis=0)
    length = np.maximum(np.linalg.norm(step, axis=1), 1e-12)
    return np.asarray((step[1:] * step[:-1]).sum(1) / (length[1:] * length[:-1]))


def is_folded(path: np.ndarray) -> bool:
    """Whether the path turns back somewhere: two successive segments more than 90° apart."""
    return bool((turns(path) < 0.0).any())


def without_rigid(atoms: Atoms, path: np.ndarray, forces_eV_per_A: np.ndarray) -> np.ndarray:
    """Forces that neither shift nor turn an image as a whole, [M-2, A, 3].

    A free molecule could lengthen its path by turning, and the springs would make it do so. (Not
    mass-weighted: the springs are not.)
    """
    if fixed_atoms(atoms).any():
        return forces_eV_per_A
    kept = np.empty_like(forces_eV_per_A)
    for n, (x, force) in enumerate(zip(path, forces_eV_per_A, strict=True)):
        motions = turns_and_shifts(x, np.ones(len(x)))[: 3 if atoms.pbc.any() else 6]
        basis = orthonormal(motions)
        kept[n] = force - (basis.T @ (basis @ force.ravel())).reshape(-1, 3)
    return kept


def unturned(atoms: Atoms, path: np.ndarray) -> np.ndarray:
    """The path with each image of a free molecule turned onto the one before it."""
    path = path.copy()
    if not (fixed_atoms(atoms).any() or atoms.pbc.any()):
        for n in range(1, len(path)):
            path[n] = superposed(path[n], path[n - 1], np.ones(len(atoms)))
    return path
