
"""Signs that a trajectory has left physics. Pure functions, reason codes.

`not-finite`     a position, force or energy is NaN or infinite
`force`          |F| of an atom above `max_force_eV_per_A`
`pair-distance`  two atoms closer than `pair_factor` × the sum of their covalent radii
`temperature`    far above the thermostat for `hot_checks` checks in a row
`volume`         the cell is `max_volume_ratio` times larger or smaller than at the start
`dissociated`    a fragment left: its gap to the rest exceeds `fragment_gap_A`; none did at first
`through-vacuum` an atom of a slab is nearer to the slab's image than to where it came from
`energy-drift`   what only the error of the time step changes did so by `max_drift_eV_per_atom`

Why 0.6 and not the 0.7 of NepTrain (engine.md §5.3). With Cordero radii, which ASE carries, sound
bonds sit at 0.675 (U=O in uranyl), 0.73 (V=O), 0.78 (N≡N, C≡N, C≡C): 0.7 rejects uranyl at rest,
and for N2 (Morse, D 9.9 eV, a 2.7/Å) it costs only 1.0 eV to get there, 20 kT at 600 K but 6 kT
at 2000 K. At 0.6 N2 needs 9 eV, C-H 8 eV and H2 5 eV: a hundred kT at 600 K. A collapse passes
0.6 within a few steps all the same.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.geometry import complete_cell
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from scipy.stats import chi2

from .base import PolicyError


@dataclass(frozen=True, kw_only=True)
class Guards:
    pair_factor: float = 0.6
    max_force_eV_per_A: float = 50.0
    max_temperature_ratio: float = 3.0
    max_volume_ratio: float = 1.8
    hot_checks: int = 20
    fragment_gap_A: float | None = None  # off: desorption is often what one looks for
    vacuum_A: float | None = 5.0  # a gap this wide, beyond any bond, is a vacuum; None: slabs are not watched
    max_drift_eV_per_atom: float = 0.1  # kT at 1200 K; a sound time step drifts by a thousandth of it

    def __post_init__(self) -> None:
        limits = [self.pair_factor, self.max_force_eV_per_A, self.max_temperature_ratio]
        limits += [self.hot_checks, self.max_drift_eV_per_atom]
        limits += [gap for gap in (self.fragment_gap_A, self.vacuum_A) if gap is not None]
        if not all(limit > 0 for limit in limits):
            raise PolicyError(f"every guard needs a positive limit, got {self}")
        if not self.max_volume_ratio > 1:
            raise PolicyError(f"max_volume_ratio is {self.max_volume_ratio}, must be above 1")

    def allow_forces(self, forces_eV_per_A: np.ndarray, energies_eV: np.ndarray) -> bool:
        """Whether `guard_forces` passes all walkers of a batch; NaN does not."""
        largest = (forces_eV_per_A**2).sum(-1).max(initial=0.0)
        return bool(largest <= self.max_force_eV_per_A**2 and np.isfinite(energies_eV).all())

    def allow_volume(self, ratio: np.ndarray) -> np.ndarray:
        """Mask of cells that neither collapsed nor burst; of volumes in units of the start's."""
        return (ratio >= 1 / self.max_volume_ratio) & (ratio <= self.max_volume_ratio)


@dataclass(frozen=True)
class Vacuum:
    """An empty layer across a periodic axis, in fractions of the cell."""

    axis: int
    start: np.ndarray  # [A], fractional coordinates at the start
    above_middle: np.ndarray  # [A], in (0, 1): how far above the middle of the layer each atom starts


@dataclass(frozen=True)
class Reference:
    """What does not change along a walker, computed once."""

    numbers: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    fragments: int  # at the start; 0 where nobody asked
    vacua: tuple[Vacuum, ...] = ()  # of a slab

    @classmethod
    def of(cls, atoms: Atoms, guards: Guards) -> Reference:
        cell = np.asarray(complete_cell(atoms.cell), dtype=float)
        bare = cls(atoms.numbers.copy(), cell, np.asarray(atoms.pbc).copy(), 0)
        if not np.isfinite(atoms.positions).all():
            return bare
        found, vacua = 0, bare.vacua
        if guards.fragment_gap_A is not None:
            found = count_fragments(bare, atoms.positions, guards.fragment_gap_A)
        if guards.vacuum_A is not None:
            vacua = vacua_of(bare, atoms.positions, guards.vacuum_A)
        return replace(bare, fragments=found, vacua=vacua)

    def at(self, cell_A: np.ndarray) -> Reference:
        """The same in a cell [3,3] that has changed."""
        return replace(self, cell=np.asarray(complete_cell(cell_A), dtype=float))


def guard_frame(
    guards: Guards,
    reference: Reference,
    positions_A: np.ndarray,
    *,
    forces_eV_per_A: np.ndarray,
    energy_eV: float = 0.0,
    hot_checks: int = 0,
) -> str | None:
    """The first guard that fires, cheapest first.

    Args:
        hot_checks: how many checks in a row, this one included, were hot; see `is_hot`.
    """
    code = guard_forces(guards, forces_eV_per_A, energy_eV)
    if code is not None or not np.isfinite(positions_A).all():
        return code or "not-finite"
    if is_too_close(reference, positions_A, guards.pair_factor):
        return "pair-distance"
    if hot_checks >= guards.hot_checks:
        return "temperature"
    if crossed_vacuum(reference, positions_A):
        return "through-vacuum"
    if guards.fragment_gap_A is not None and (
        count_fragments(reference, positions_A, guards.fragment_gap_A) > reference.fragments
    ):
        return "dissociated"
    return None


def guard_forces(guards: Guards, forces_eV_per_A: np.ndarray, energy_eV: float = 0.0) -> str | None:
    """The part that is cheap enough for every step: an explosion cannot wait for a check."""
    if not (np.isfinite(forces_eV_per_A).all() and np.isfinite(energy_eV)):
        return "not-finite"
    return None if guards.allow_forces(forces_eV_per_A, np.asarray(energy_eV)) else "force"


def is_hot(temperature_K: float, limit_K: float) -> bool:
    return temperature_K > limit_K


def hot_limit(target_K: float, degrees_of_freedom: int, *, ratio: float) -> float:
    """Above this a kinetic temperature is hot: `ratio` × target, or more where few atoms
    fluctuate more.

    The kinetic temperature of n degrees of freedom is T χ²_n/n. Checks 5 fs apart are correlated
    over a friction time (100 fs), so twenty in a row are hardly more than one independent look:
    the bound itself must be improbable, one in a million. It exceeds 3 × target up to 24 degrees
    of freedom (8 atoms).
    """
    if degrees_of_freedom < 1:
        return np.inf
    fluctuation = float(chi2.isf(1e-6, degrees_of_freedom)) / degrees_of_freedom
    return target_K * max(ratio, fluctuation)


def is_too_close(reference: Reference, positions_A: np.ndarray, factor: float) -> bool:
    radii = covalent_radii[reference.numbers]
    if len(radii) == 0:
        return False
    i, j, distance = close_pairs(reference, positions_A, 2 * factor * float(radii.max()))
    return bool((distance < factor * (radii[i] + radii[j])).any())


def count_fragments(reference: Reference, positions_A: np.ndarray, gap_A: float) -> int:
    """Groups of atoms that are farther than `gap_A` from every other atom, images included."""
    atoms = len(positions_A)
    i, j, _ = close_pairs(reference, positions_A, gap_A)
    graph = coo_matrix((np.ones(len(i)), (i, j)), shape=(atoms, atoms))
    return int(connected_components(graph, directed=False)[0])


def vacua_of(reference: Reference, positions_A: np.ndarray, gap_A: float) -> tuple[Vacuum, ...]:
    """The empty layers of a slab: along some of its periodic axes, but not along all, or it is a molecule."""
    if len(positions_A) == 0:
        return ()
    inverse = np.linalg.inv(reference.cell)
    heights = 1.0 / np.linalg.norm(inverse, axis=0)
    fractional, found = positions_A @ inverse, []
    for axis in np.flatnonzero(reference.pbc).tolist():
        along = np.sort(fractional[:, axis] % 1.0)
        gaps = np.diff(np.append(along, along[0] + 1.0))
        widest = int(gaps.argmax())
        if gaps[widest] * heights[axis] >= gap_A:
            middle = along[widest] + 0.5 * gaps[widest]
            found.append(Vacuum(axis, fractional[:, axis].copy(), (fractional[:, axis] - middle) % 1.0))
    return tuple(found) if len(found) < reference.pbc.sum() else ()


def is_slab(atoms: Atoms) -> bool:
    """Whether there is vacuum along some periodic axes and matter along others: its volume means nothing."""
    return bool(Reference.of(atoms, Guards(fragment_gap_A=None)).vacua)


def crossed_vacuum(reference: Reference, positions_A: np.ndarray) -> bool:
    """Whether an atom has passed the middle of a vacuum; the slab as a whole may drift."""
    for vacuum in reference.vacua:
        moved = (positions_A @ np.linalg.inv(reference.cell))[:, vacuum.axis] - vacuum.start
        place = vacuum.above_middle + moved - np.median(moved)
        if (place < 0).any() or (place > 1).any():
            return True
    return False


def close_pairs(
    reference: Reference, positions_A: np.ndarray, cutoff_A: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (i, j, distance) within the cutoff, both ways round, through every periodic image.

    A tree over the atoms and the images next to the cell: O(A log A), right for skewed and tiny
    cells, and quicker at these short cutoffs than a general neighbour list.
    """
    heights = 1.0 / np.linalg.norm(np.linalg.inv(reference.cell), axis=0)
    fractional = positions_A @ np.linalg.inv(reference.cell)
    fractional = np.where(reference.pbc, fractional % 1.0, fractional)
    home = fractional @ reference.cell
    margin = cutoff_A / heights
    reach = np.where(reference.pbc, np.ceil(margin), 0).astype(int)
    owners, points = [np.arange(len(home))], [home]
    for shift in itertools.product(*(range(-n, n + 1) for n in reach)):
        if not any(shift):
            continue
        image = fractional + np.array(shift)
        near = ((image >= -margin) & (image <= 1 + margin)) | ~reference.pbc
        inside = np.flatnonzero(near.all(1))
        owners.append(inside)
        points.append(image[inside] @ reference.cell)
    found = cKDTree(home).sparse_distance_matrix(
        cKDTree(np.concatenate(points)), cutoff_A, output_type="ndarray"
    )
    found = found[found["i"] != found["j"]]  # an atom and itself, not an atom and its image
    return found["i"], np.concatenate(owners)[found["j"]], found["v"]
