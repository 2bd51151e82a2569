"""The first guess of a path: IDPP between two structures, around what would collide.

IDPP: Smidstrup et al., JCP 140, 214106 (2014); all images in one array (HCN → HNC with nine images took
3 s with ASE's, and takes 0.2 s here). A straight line may carry an atom through another, as it does there:
then the middle of the path is first kicked aside, at random.
"""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.geometry import find_mic

from ..base import PolicyError
from ..guards import Guards, Reference, is_too_close
from .band import band_forces, is_folded, unturned, without_rigid
from .fire import Fire, largest_force
from .reactions import Reaction
from .surface import fixed_atoms

KICKS_A = (0.0, 0.3, 0.6, 1.0, 1.5)
IDPP_FORCE, IDPP_STEPS = 0.05, 600
ROOMY = 0.75  # of the sum of covalent radii: shorter than any bond that is half made


def first_path(
    reaction: Reaction, images: int, rng: np.random.Generator, *, pair_factor: float
) -> np.ndarray:
    """Positions [images + 2, A, 3] from reactant to product; periodic images unwrapped.

    Args:
        pair_factor: no two atoms of an image closer than this × the sum of their covalent radii; paths
            that keep them at `ROOMY` and do not fold are preferred.

    Raises:
        PolicyError: no kick keeps the atoms apart.
    """
    assert reaction.product is not None
    start, end = reaction.reactant, reaction.product
    if reaction.guess is not None:
        # both halves meet in the guess, which therefore is an image of its own
        left = (images + 1) // 2
        first = _interpolated(start, reaction.guess, left - 1)
        second = _interpolated(reaction.guess, end, images - left)
        return np.concatenate([first[:-1], second])
    reference = Reference.of(start, Guards())
    free = ~fixed_atoms(start)
    # light atoms get out of the way of heavy ones
    directions = rng.normal(size=(len(start), 3)) * (free / np.sqrt(start.get_masses()))[:, None]
    directions /= max(1e-12, float(np.linalg.norm(directions, axis=1).max()))
    line = np.linspace(start.positions, end.positions, images + 2)
    bump = np.sin(np.pi * np.linspace(0, 1, images + 2))[:, None, None]
    kicked: list[tuple[int, float, np.ndarray]] = []
    for kick in KICKS_A:
        if kick == 0 and _collides(reference, line, ROOMY):
            continue
        found, misfit = _relaxed(start, line + kick * bump * directions)
        if not _collides(reference, found[1:-1], pair_factor):
            if kick == 0:
                return found
            flaws = int(_collides(reference, found[1:-1], ROOMY)) + int(is_folded(found))
            kicked.append((flaws, misfit, found))
    if kicked:
        return min(kicked, key=lambda path: path[:2])[2]
    raise PolicyError(
        f"reaction '{reaction.name}': atoms collide on every path that was tried between the ends; give a "
        "guess of the saddle"
    )


def _collides(reference: Reference, path: np.ndarray, factor: float) -> bool:
    return any(is_too_close(reference, x, factor) for x in path)


def _interpolated(start: Atoms, end: Atoms, between: int) -> np.ndarray:
    return _relaxed(start, np.linspace(start.positions, end.positions, between + 2))[0]


def _relaxed(start: Atoms, path: np.ndarray) -> tuple[np.ndarray, float]:
    """IDPP from this path, and how far its images are from the distances that they should have."""
    if len(path) < 3:
        return path, 0.0
    wanted = np.linspace(_gaps(start, path[:1])[1][0], _gaps(start, path[-1:])[1][0], len(path))
    free = ~fixed_atoms(start)[:, None]
    path = path.copy()
    # short steps: the potential is 1/d⁴ steep where atoms meet
    optimiser = Fire(1, step_A=0.05, start_dt=0.05)
    for _ in range(IDPP_STEPS):
        energies, force = _pair_potential(start, path, wanted)
        pull = band_forces(path, energies, force[1:-1] * free, spring_eV_per_A2=1.0, climb=False)
        pull = without_rigid(start, path[1:-1], pull)
        if largest_force(pull) < IDPP_FORCE:
            break
        path[1:-1] += optimiser.moves(pull[None])[0]
    # without the weights 1/d⁴, to which atoms that flew apart are as good as in place
    return unturned(start, path), float(((_gaps(start, path)[1] - wanted) ** 2).sum())


def _gaps(atoms: Atoms, path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [M,A,A,3] between all atoms, of the nearest images, and their lengths [M,A,A]."""
    apart = path[:, :, None] - path[:, None, :]
    if atoms.pbc.any():
        apart = find_mic(apart.reshape(-1, 3), atoms.cell, atoms.pbc)[0].reshape(apart.shape)
    return apart, np.linalg.norm(apart, axis=-1) + np.eye(path.shape[1])


def _pair_potential(atoms: Atoms, path: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Σ_{i<j} w (d − d⁰)² of every image [M], and the forces [M,A,3]; Eq. 2 of the paper.

    Differs: w is 1/min(d, d⁰)⁴ and not 1/d⁴, with which atoms that are far apart go farther for ever.
    """
    apart, d = _gaps(atoms, path)
    off, near = d - wanted, np.minimum(d, wanted)
    energy = 0.5 * (off**2 / near**4).sum((1, 2))
    slope = 2 * off / near**4 - np.where(d < wanted, 4 * off**2 / near**5, 0.0)
    return energy, -((slope / d)[..., None] * apart).sum(2)
