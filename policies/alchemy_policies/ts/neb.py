"""Nudged elastic band with a climbing image (`band` has the forces); all images are one batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .band import band_forces, is_folded, unturned, without_rigid
from .fire import Fire, largest_force
from .surface import Look, Surface
from .watch import CONVERGED, FOLDED, NOT_CONVERGED, Watch

FOLDED_CHECKS = 30  # steps in a row: a band may buckle for a moment while it relaxes


@dataclass(frozen=True)
class Band:
    """A path as the search left it."""

    positions_A: np.ndarray  # [M,A,3]
    energies_eV: np.ndarray  # [M]
    outcome: str
    largest_force_eV_per_A: float  # of the band's own forces
    steps: int

    @property
    def top(self) -> int:
        """Index of the highest image between the ends; the ends themselves are no saddles."""
        return 1 + int(np.argmax(self.energies_eV[1:-1]))

    @property
    def barrier_eV(self) -> float:
        """Highest image above the first."""
        return float(self.energies_eV.max() - self.energies_eV[0])


def relax_band(
    surface: Surface,
    path_A: np.ndarray,
    watch: Watch,
    *,
    fmax_eV_per_A: float,
    max_steps: int,
    spring_eV_per_A2: float = 5.0,
    climb_below_eV_per_A: float = 0.5,
) -> Band:
    """Relax a path with `Fire`; the highest image climbs once the band has roughly settled.

    Args:
        spring_eV_per_A2: k; with the improved tangent it only spaces the images.
        climb_below_eV_per_A: from here on the highest image climbs, and it does not stop to.
    """
    path = unturned(surface.atoms, path_A)
    ends = surface(path[[0, -1]])
    energies = np.full(len(path), np.nan)
    energies[[0, -1]] = ends.energies_eV
    optimiser, climb, folded = Fire(1), False, 0
    outcome, largest, step = NOT_CONVERGED, np.inf, 0
    watch.begin(path[1:-1])
    for step in range(max_steps + 1):
        look: Look = surface(path[1:-1], members=watch.due())
        energies[1:-1] = look.energies_eV
        code = watch.judge(path[1:-1], look)
        if code is not None:
            outcome = code
            break
        force = band_forces(
            path, energies, look.forces_eV_per_A, spring_eV_per_A2=spring_eV_per_A2, climb=climb
        )
        force = without_rigid(surface.atoms, path[1:-1], force)
        largest = largest_force(force)
        if climb and largest < fmax_eV_per_A:
            outcome = FOLDED if is_folded(path) else CONVERGED
            break
        climb = climb or largest < max(climb_below_eV_per_A, fmax_eV_per_A) or step > max_steps // 2
        folded = folded + 1 if is_folded(path) else 0
        if folded >= FOLDED_CHECKS:
            outcome = FOLDED
            break
        if step < max_steps:
            path[1:-1] += optimiser.moves(force[None])[0]
    return Band(path, energies, outcome, largest, step)
