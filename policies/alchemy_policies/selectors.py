"""Which candidates are worth a label: by expected error, and the baselines of studies.

Selection by distance in feature space is in `diversity.py`; what all of them share in `greedy.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from .base import Choice, Pick, PolicyError, Pool
from .greedy import ABSURD, BELOW, BUDGET, Reach, assemble, draw, limits_of, random_count, screen

ABOVE = "above-window"


@dataclass(frozen=True, kw_only=True)
class CalibratedError:
    """Expected error × (1 + novelty percentile), greedily and without near-duplicates; plus a
    random slice.

    Novelty is the distance to the nearest training feature; its percentile is taken over the pool.
    """

    threshold_eV_per_A: float
    random_fraction: float = 0.1
    dedup_distance: float = 0.25
    max_force_eV_per_A: float = 50.0
    quota: Mapping[str, float] = field(default_factory=dict)
    coverage: float = 0.0
    energy_spread_factor: float | None = None

    def __post_init__(self) -> None:
        limits_of(self)

    def random_count(self, budget: int) -> int:
        """How many of the budget are random: at least one of two, none of one."""
        return random_count(budget, self.random_fraction)

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Choice:
        error = pool.expected_error_eV_per_A

        def rule(reach: Reach, left: list[int]) -> np.ndarray:
            return np.asarray(error[left] * (1 + reach.novelty[left]))

        return assemble(pool, budget, rng, limits=limits_of(self), rule=rule)


@dataclass(frozen=True)
class Random:
    """The baseline every study needs: uniform over the pool, exact duplicates apart."""

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Choice:
        rejected, unique = screen(pool)
        chance = draw(unique, budget, rng=rng)
        rejected |= {i: BUDGET for i in unique if i not in chance}
        return Choice(tuple(Pick(i, "random") for i in chance), rejected)


@dataclass(frozen=True, kw_only=True)
class DpGen:
    """DP-GEN's rule, a baseline: any frame whose model deviation lies in a window, at random.

    Zhang et al., Comput. Phys. Commun. 253, 107206 (2020): the deviation is the largest over atoms of
    √⟨|F − ⟨F⟩|²⟩; below `threshold_eV_per_A` a frame is accurate, from `high_eV_per_A` on it has failed.
    A pool without raw deviations is judged by its expected errors.
    """

    threshold_eV_per_A: float = 0.05
    high_eV_per_A: float = 0.2
    max_force_eV_per_A: float = 50.0

    def __post_init__(self) -> None:
        if not 0 <= self.threshold_eV_per_A < self.high_eV_per_A or not self.max_force_eV_per_A > 0:
            raise PolicyError(f"need 0 ≤ threshold < high and max_force > 0, got {self}")

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Choice:
        rejected, unique = screen(pool)
        deviation = pool.deviation_eV_per_A
        if deviation is None:
            deviation = pool.expected_error_eV_per_A
        inside = []
        for i in unique:
            if pool.max_force_eV_per_A[i] > self.max_force_eV_per_A:
                rejected[i] = ABSURD
            elif not deviation[i] >= self.threshold_eV_per_A:
                rejected[i] = BELOW
            elif not deviation[i] < self.high_eV_per_A:
                rejected[i] = ABOVE
            else:
                inside.append(i)
        bought = draw(inside, budget, rng=rng)
        rejected |= {i: BUDGET for i in inside if i not in bought}
        return Choice(tuple(Pick(i, "error") for i in bought), rejected)


@dataclass(frozen=True, kw_only=True)
class FirstCome:
    """The first frames to cross a threshold, a baseline: in the order in which walkers meet them.

    So do aims-PAX (arXiv:2508.12888) and others that label as soon as a walker crosses; within one step,
    and in pools that know no steps, uids decide.
    """

    threshold_eV_per_A: float = 0.05
    max_force_eV_per_A: float = 50.0

    def __post_init__(self) -> None:
        if not (self.threshold_eV_per_A >= 0 and self.max_force_eV_per_A > 0):
            raise PolicyError(f"thresholds must not be negative, got {self}")

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Choice:
        rejected, unique = screen(pool)
        crossed = []
        for i in unique:
            if pool.max_force_eV_per_A[i] > self.max_force_eV_per_A:
                rejected[i] = ABSURD
            elif pool.expected_error_eV_per_A[i] < self.threshold_eV_per_A:
                rejected[i] = BELOW
            else:
                crossed.append(i)
        if pool.steps is not None:
            when = np.where(pool.steps >= 0, pool.steps, math.inf)
            crossed.sort(key=lambda i: (when[i], pool.uids[i]))
        rejected |= dict.fromkeys(crossed[budget:], BUDGET)
        return Choice(tuple(Pick(i, "error") for i in crossed[:budget]), rejected)
