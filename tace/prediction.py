"""What a committee says about a list of structures: members first on every axis.

Axes: K members, S structures, A atoms of all structures one after another, D features.
Units: eV, eV/Å, eV/Å³ (ASE sign, Voigt xx yy zz yz xz xy).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


def small_sample_factor(n: int) -> float:
    """c4(n) = E[sample standard deviation of n normal draws] / σ."""
    if n < 2:
        raise ValueError(f"c4 needs at least two draws, got {n}")
    return math.sqrt(2.0 / (n - 1)) * math.exp(math.lgamma(n / 2.0) - math.lgamma((n - 1) / 2.0))


def force_spread(forces: np.ndarray) -> np.ndarray:
    """Spread of the force vector on each atom over the members, eV/Å.

    s_i = √(K/(K−1)) · √(mean_k |F_ki − F̄_i|²) / c4(3(K−1)+1): for members that scatter normally with
    σ per component it estimates √3·σ without bias at any K (3(K−1) degrees of freedom).

    Args:
        forces: [K, A, 3], eV/Å.

    Returns:
        [A]; NaN for a single member, whose spread is unknown.
    """
    members = forces.shape[0]
    if members < 2:
        return np.full(forces.shape[1], np.nan)
    deviation = forces - forces.mean(0)
    mean_square = (deviation**2).sum(-1).mean(0)
    bias = math.sqrt(members / (members - 1)) / small_sample_factor(3 * (members - 1) + 1)
    return np.asarray(bias * np.sqrt(mean_square))


@dataclass(frozen=True)
class CommitteePrediction:
    """`forces` and `stresses` are None when they were not asked for; `mean_forces` is then still set."""

    n_atoms: np.ndarray  # [S]
    energies: np.ndarray  # [K, S]
    mean_forces: np.ndarray  # [A, 3]
    forces: np.ndarray | None = None  # [K, A, 3]
    stresses: np.ndarray | None = None  # [K, S, 6]
    features: np.ndarray | None = None  # [A, D], invariant, of the first member

    @property
    def mean_energies(self) -> np.ndarray:
        """[S], eV."""
        return np.asarray(self.energies.mean(0))

    @property
    def energy_spread(self) -> np.ndarray:
        """[S], unbiased sample standard deviation over members, eV; NaN for one member."""
        members = self.energies.shape[0]
        if members < 2:
            return np.full(self.energies.shape[1], np.nan)
        return np.asarray(self.energies.std(0, ddof=1) / small_sample_factor(members))

    @property
    def force_spread(self) -> np.ndarray:
        """[A], eV/Å; see `force_spread`."""
        if self.forces is None:
            raise ValueError("member forces were not computed: ask for them with member_forces=True")
        return force_spread(self.forces)

    @property
    def mean_stresses(self) -> np.ndarray:
        """[S, 6], eV/Å³; NaN for a structure that is not periodic along all three axes."""
        if self.stresses is None:
            raise ValueError("stresses were not computed: ask for them with stress=True")
        return np.asarray(self.stresses.mean(0))

    def per_structure(self, per_atom: np.ndarray) -> list[np.ndarray]:
        """Cut an array whose first axis is A into S pieces."""
        return np.split(per_atom, np.cumsum(self.n_atoms)[:-1])
