"""Hessians, and what their modes mean.

A committee of models has second derivatives of its own. They cost more than finite differences of the forces
(`nano`, three members, one core: 57 against 27 ms for 9 atoms, 0.67 against 0.53 s for 30), but differences
are off by up to 0.07 eV/Å² and 2 to 6 cm⁻¹, which decides whether a soft mode is imaginary; in float32 they
are off by 4e-5 eV/Å². Calculators have none: there all displaced copies are evaluated in batches, 6 per
moving atom. Rigid motions are projected out before a mode is called imaginary, so that a turning molecule is
never mistaken for a reacting one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ase import Atoms, units

from .bonds import bonds, fragments
from .surface import Surface

STEP_A = 0.01  # float32 forces carry 1e-5 eV/Å of noise: 1e-3 eV/Å² here, 3 cm⁻¹ for a stiff mode
_TO_CM = units._hbar * 1e10 / math.sqrt(units._e * units._amu) / units.invcm  # of √(eV/Å²/amu)


class NotFiniteError(ArithmeticError):
    """No Hessian here; ends the search that asked for it."""


@dataclass(frozen=True)
class Hessians:
    """[3F,3F] of the mean and [K,3F,3F] of the members, eV/Å², over the F moving atoms."""

    mean: np.ndarray
    members: np.ndarray


def hessians(
    surface: Surface, positions_A: np.ndarray, *, members: bool = True, step_A: float = STEP_A
) -> Hessians:
    """The surface's own second derivatives; where it has none, central differences of the forces.

    Args:
        members: the members' own too, which costs each of them its forces where these are differenced.

    Raises:
        NotFiniteError: the structure, or a displaced one, could not be computed.
    """
    if not np.isfinite(positions_A).all():
        raise NotFiniteError("a position is not finite")
    exact = surface.exact_hessians(positions_A)
    if exact is not None:
        if not np.isfinite(exact).all():
            raise NotFiniteError("a second derivative is not finite")
        return Hessians(exact.mean(0), exact)
    free = np.flatnonzero(~surface.fixed)
    count = 3 * len(free)
    moves = np.zeros((count, len(positions_A), 3))
    moves[np.arange(count), np.repeat(free, 3), np.tile(np.arange(3), len(free))] = step_A
    copies = np.concatenate([positions_A + moves, positions_A - moves])
    look = surface(copies, members=members)
    every = look.member_forces_eV_per_A
    if every is None:
        every = look.forces_eV_per_A[None]
    if not np.isfinite(every).all():
        raise NotFiniteError("a force beside the structure is not finite")
    slopes = (every[:, count:] - every[:, :count])[:, :, free] / (2 * step_A)
    each = slopes.reshape(len(every), count, count)
    each = (each + each.swapaxes(1, 2)) / 2
    return Hessians(each.mean(0), each)


@dataclass(frozen=True)
class Vibrations:
    """Normal modes, softest first; an imaginary frequency is negative."""

    frequencies_per_cm: np.ndarray  # [m]
    curvatures_eV_per_A2: np.ndarray  # [m], along the displacements
    weighted: np.ndarray  # [m, 3F], orthonormal, of mass-weighted coordinates
    displacements: np.ndarray  # [m, A, 3], Cartesian, each of unit length


def vibrations(surface: Surface, positions_A: np.ndarray, hessian_eV_per_A2: np.ndarray) -> Vibrations:
    """Modes of one Hessian without the rigid motions that the structure has."""
    free = ~surface.fixed
    root = np.sqrt(np.repeat(surface.masses[free], 3))
    rest = _complement(rigid_motions(surface, positions_A))
    weighted = hessian_eV_per_A2 / np.outer(root, root)
    values, vectors = np.linalg.eigh(rest @ weighted @ rest.T)
    modes = vectors.T @ rest
    moves = np.zeros((len(modes), len(positions_A), 3))
    moves[:, free] = (modes / root).reshape(len(modes), -1, 3)
    moves /= np.maximum(np.linalg.norm(moves, axis=(1, 2)), 1e-300)[:, None, None]
    frequencies = np.sign(values) * np.sqrt(np.abs(values)) * _TO_CM
    heft = np.einsum("mai,a->m", moves**2, surface.masses)
    return Vibrations(frequencies, values * heft, modes, moves)


def rigid_motions(surface: Surface, positions_A: np.ndarray) -> np.ndarray:
    """Orthonormal mass-weighted translations and rotations, [r, 3F].

    Fixed atoms hold everything; a periodic structure may be shifted, but not turned.
    """
    count = 3 * int((~surface.fixed).sum())
    if surface.fixed.any():
        return np.zeros((0, count))
    rigid = turns_and_shifts(positions_A, surface.masses)[:3] if surface.atoms.pbc.any() else None
    return orthonormal(turns_and_shifts(positions_A, surface.masses) if rigid is None else rigid)


def turns_and_shifts(positions_A: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """Three translations and three rotations about the centre of mass, mass-weighted, [6, 3A]."""
    root = np.sqrt(masses)[:, None]
    centred = positions_A - (masses[:, None] * positions_A).sum(0) / masses.sum()
    shifts = [root * axis for axis in np.eye(3)]
    turns = [root * np.cross(axis, centred) for axis in np.eye(3)]
    return np.array([v.ravel() for v in (*shifts, *turns)])


def orthonormal(rows: np.ndarray) -> np.ndarray:
    """A basis of what the rows span; a linear molecule has only two rotations."""
    if len(rows) == 0:
        return rows
    _, sizes, basis = np.linalg.svd(rows, full_matrices=False)
    return np.asarray(basis[sizes > 1e-4 * max(sizes[0], 1e-300)])


def _complement(rows: np.ndarray) -> np.ndarray:
    """An orthonormal basis of everything else."""
    count = rows.shape[1]
    if len(rows) == 0:
        return np.eye(count)
    basis = np.linalg.svd(rows, full_matrices=True)[2]
    return np.asarray(basis[len(rows) :])


@dataclass(frozen=True)
class Agreement:
    """What each member says of the mode on which a saddle stands."""

    curvatures_eV_per_A2: np.ndarray  # [K], along the mean's mode
    overlaps: np.ndarray  # [K], |cosine| between the member's softest mode and the mean's


def agreement(surface: Surface, positions_A: np.ndarray, found: Hessians) -> Agreement:
    """Curvature of every member along the mean's softest mode, and how alike their own are."""
    mean = vibrations(surface, positions_A, found.mean)
    mode = mean.displacements[0][~surface.fixed].ravel()
    overlaps = [
        abs(float(vibrations(surface, positions_A, own).weighted[0] @ mean.weighted[0]))
        for own in found.members
    ]
    curvatures = np.einsum("i,kij,j->k", mode, found.members, mode)
    return Agreement(curvatures, np.array(overlaps))


def rotation_share(surface: Surface, positions_A: np.ndarray, weighted_mode: np.ndarray) -> float:
    """How much of a mode turns groups about bonds, or whole molecules; 0 none of it, 1 all.

    The norm of its projection on the span of the rotations of every group about an acyclic bond and
    of the rotations of every separate molecule, itself without motions of the whole.
    """
    atoms = surface.frame(positions_A)
    if atoms.pbc.any():  # a periodic network has no groups to turn
        return 0.0
    spins = [v for v in _spins(atoms) if np.linalg.norm(v) > 1e-6]
    if not spins:
        return 0.0
    root = np.sqrt(surface.masses)[:, None]
    rows = np.array([(root * v)[~surface.fixed].ravel() for v in spins])
    rigid = rigid_motions(surface, positions_A)
    rows = rows - rows @ rigid.T @ rigid
    basis = orthonormal(rows[np.linalg.norm(rows, axis=1) > 1e-6])
    return float(np.linalg.norm(basis @ weighted_mode)) if len(basis) else 0.0


def _spins(atoms: Atoms) -> list[np.ndarray]:
    """Velocities [A,3] of groups about bonds whose loss cuts the molecule, and of whole molecules."""
    edges, x = bonds(atoms), atoms.positions
    spins = []
    for a, b in sorted(edges):
        parts = fragments(len(atoms), edges - {(a, b)})
        if parts[a] == parts[b]:
            continue
        axis = (x[b] - x[a]) / np.linalg.norm(x[b] - x[a])
        group = parts == parts[b]
        spins.append(np.cross(axis, x - x[b]) * group[:, None])
    molecules = fragments(len(atoms), edges)
    for molecule in np.unique(molecules):
        group = molecules == molecule
        if len(np.unique(molecules)) > 1 and group.sum() > 1:
            centre = x[group].mean(0)
            spins += [np.cross(axis, x - centre) * group[:, None] for axis in np.eye(3)]
    return spins
