"""Energies against a fit to compositions: which ones are far from what their atoms cost elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .data import Labelled

MEMBERS = 5  # frames of a composition that have a median of their own
LEAST_EV = 0.002  # per atom; closer is close enough for the weights
SPRING_EV_PER_A2 = 5.0  # of metals and of soft modes; bonds are stiffer
ROUNDS = 30  # of reweighting, which has long converged then


def composition_residuals(frames: Sequence[Labelled]) -> np.ndarray:
    """Energy per atom less a fit to compositions, eV; wrong energies do not pull it along.

    The fit is one of least absolute deviations (by reweighting); of a composition that is there five times
    the median of its frames takes its place.
    """
    every = np.unique(np.concatenate([f.atoms.numbers for f in frames]))
    counts = np.stack([(f.atoms.numbers[:, None] == every).sum(0) for f in frames]).astype(float)
    size = counts.sum(1)
    energy = np.array([f.energy_eV for f in frames], dtype=float) / size
    _, group, members = np.unique(counts, axis=0, return_inverse=True, return_counts=True)
    shares, weight = counts / size[:, None], np.ones(len(frames))
    residual = energy
    for _ in range(ROUNDS):
        root = np.sqrt(weight)[:, None]
        solution = np.linalg.lstsq(shares * root, energy * root[:, 0], rcond=None)[0]
        residual = energy - shares @ solution
        weight = 1.0 / np.maximum(np.abs(residual), LEAST_EV)
    for number in np.flatnonzero(members >= MEMBERS).tolist():
        own = group.ravel() == number
        residual[own] = energy[own] - np.median(energy[own])
    return np.asarray(residual)


def heat_of(frames: Sequence[Labelled]) -> np.ndarray:
    """Energy per atom that a frame may have above the rest for its forces, eV: |F|²/2k of springs."""
    squares = [0.0 if f.forces_eV_per_A is None else (f.forces_eV_per_A**2).sum(1).mean() for f in frames]
    return np.array(squares) / (2 * SPRING_EV_PER_A2)
