"""Selection by distance in feature space, conditioned on what is trained on already.

Farthest point   the frame farthest from training and earlier picks: greedy k-centre (Sener & Savarese,
                 arXiv:1708.00489, alg. 1), in invariant features and blind to the error.
MaxDist          the same in gradients of the energy with respect to the readout's weights, among frames
                 above the threshold (Zaverkin et al., Digital Discovery 1, 605 (2022)).
Lcmd             largest cluster, maximum distance (Holzmüller et al., arXiv:2203.09410, §4.3): known
                 frames are centres, frames belong to the nearest; in the cluster with the largest Σd² the
                 frame farthest from its centre is bought. Dense regions of the pool get more labels than
                 by MaxDist, which chases outliers.

`error_power` p scales distances by ê^p, so that of two frames equally far from training the one with the
larger expected error counts as the farther; 0 is the published rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from .base import Choice, PolicyError, Pool
from .greedy import Reach, Rule, assemble, limits_of


@dataclass(frozen=True, kw_only=True)
class _InGradients:
    """What rules of distance in readout gradients share: they choose among frames above the threshold."""

    needs_gradients: ClassVar[bool] = True

    threshold_eV_per_A: float = 0.0
    random_fraction: float = 0.1
    dedup_distance: float = 0.25
    max_force_eV_per_A: float = 50.0
    quota: Mapping[str, float] = field(default_factory=dict)
    coverage: float = 0.0
    energy_spread_factor: float | None = None
    error_power: float = 0.0

    def __post_init__(self) -> None:
        limits_of(self)
        if not self.error_power >= 0:
            raise PolicyError(f"error_power is {self.error_power}; must not be negative")


@dataclass(frozen=True, kw_only=True)
class MaxDist(_InGradients):
    """The frame above the threshold that is farthest from training and picks, in readout gradients;
    plus a random slice.
    """

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Choice:
        rule = _farthest(pool, self.error_power)
        return assemble(pool, budget, rng, limits=limits_of(self), rule=rule)


@dataclass(frozen=True, kw_only=True)
class Lcmd(_InGradients):
    """Of the largest cluster of frames above the threshold the one farthest from its centre, in
    readout gradients; plus a random slice.
    """

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Choice:
        weight = _weight(pool, self.error_power)

        def rule(reach: Reach, left: list[int]) -> np.ndarray:
            if reach.centres == 0:
                return pool.expected_error_eV_per_A[left]
            far, centre = reach.distance[left] * weight[left], reach.centre[left]
            size = np.bincount(centre, weights=far**2, minlength=reach.centres)
            return np.where(centre == size.argmax(), far, -1.0)

        return assemble(pool, budget, rng, limits=limits_of(self), rule=rule)


@dataclass(frozen=True, kw_only=True)
class FarthestPoint:
    """The frame farthest from training and picks in invariant features, whatever its error; plus a
    random slice.
    """

    random_fraction: float = 0.1
    dedup_distance: float = 0.25
    max_force_eV_per_A: float = 50.0
    quota: Mapping[str, float] = field(default_factory=dict)
    coverage: float = 0.0

    def __post_init__(self) -> None:
        limits_of(self)

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Choice:
        return assemble(pool, budget, rng, limits=limits_of(self), rule=_farthest(pool, 0.0))


def _farthest(pool: Pool, power: float) -> Rule:
    weight = _weight(pool, power)

    def rule(reach: Reach, left: list[int]) -> np.ndarray:
        if reach.centres == 0:  # everything is infinitely far: begin where the error is largest
            return pool.expected_error_eV_per_A[left]
        return np.asarray(reach.distance[left] * weight[left])

    return rule


def _weight(pool: Pool, power: float) -> np.ndarray:
    return np.ones(len(pool.uids)) if power == 0 else pool.expected_error_eV_per_A**power
