
"""Which candidates are worth a label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import rankdata

from .base import Choice, Pick, PolicyError, Pool

DUPLICATE, NOT_FINITE, ABSURD = "near-duplicate", "not-finite", "absurd-force"
BELOW, BUDGET = "below-threshold", "budget"

_SAME = 1e-6  # of the largest feature norm: float32 features of one structure differ by this much


@dataclass(frozen=True, kw_only=True)
class CalibratedError:
    """Expected error × (1 + novelty percentile), greedily and without near-duplicates; plus a
    random slice.

    Novelty is the distance to the nearest training feature; its percentile is taken over the pool.

    A near-duplicate lies closer than `dedup_distance` × the median distance from a training frame
    to its nearest neighbour in training, to a training frame or to an earlier pick. The ratio has
    no unit: a model whose features are ten times larger chooses the same. With fewer than two
    training frames the pool's own nearest neighbours set the scale. 0.25 joins frames a few fs
    apart; thermal neighbours are at about 1.

    The random slice is drawn first and from everything (exact duplicates and NaN apart), also
    from below the threshold: it is what the statistics of the round rest on, so it is bought even
    when nothing else is. Budget that no frame above the threshold claims stays unspent.
    """

    threshold_eV_per_A: float
    random_fraction: float = 0.1
    dedup_distance: float = 0.25
    max_force_eV_per_A: float = 50.0

    def __post_init__(self) -> None:
        if not (0 <= self.random_fraction <= 1 and self.dedup_distance >= 0):
            raise PolicyError(f"need 0 ≤ random_fraction ≤ 1 and dedup_distance ≥ 0, got {self}")
        if not (self.threshold_eV_per_A >= 0 and self.max_force_eV_per_A > 0):
            raise PolicyError(f"thresholds must not be negative, got {self}")

    def random_count(self, budget: int) -> int:
        """How many of the budget are random: at least one of two, none of one."""
        if budget < 2 or self.random_fraction == 0:
            return 0
        return max(1, round(self.random_fraction * budget))

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Choice:
        rejected, unique = _screen(pool)
        chance = _draw(pool, unique, self.random_count(budget), rng=rng)
        error = pool.expected_error_eV_per_A
        novelty = _nearest(pool.features, pool.train_features)
        rising = []
        for i in (i for i in unique if i not in chance):
            if pool.max_force_eV_per_A[i] > self.max_force_eV_per_A:
                rejected[i] = ABSURD
            elif error[i] < self.threshold_eV_per_A:
                rejected[i] = BELOW
            else:
                rising.append(i)
        percentile = np.zeros(len(error))
        percentile[unique] = _percentile(novelty[unique])
        score = error * (1 + percentile)
        rising.sort(key=lambda i: (-score[i], pool.uids[i]))

        radius = self.dedup_distance * _scale(pool, unique)
        gap = novelty.copy()  # to training and to what is picked
        for i in chance:
            gap = np.minimum(gap, _distance(pool.features, i))
        worst: list[int] = []
        for i in rising:
            if gap[i] <= radius:  # at 0 too: then only exact duplicates are left out
                rejected[i] = DUPLICATE
            elif len(worst) + len(chance) < budget:
                worst.append(i)
                gap = np.minimum(gap, _distance(pool.features, i))
            else:
                rejected[i] = BUDGET
        picks = [Pick(i, "error") for i in worst] + [Pick(i, "random") for i in chance]
        return Choice(tuple(picks), rejected)


@dataclass(frozen=True)
class Random:
    """The baseline every study needs: uniform over the pool, exact duplicates apart."""

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Choice:
        rejected, unique = _screen(pool)
        chance = _draw(pool, unique, budget, rng=rng)
        rejected |= {i: BUDGET for i in unique if i not in chance}
        return Choice(tuple(Pick(i, "random") for i in chance), rejected)


def _screen(pool: Pool) -> tuple[dict[int, str], list[int]]:
    """Reasons for what can never be picked, and the indices that are left, in the order of their
    uids.

    Going by uid makes the answer independent of the order in which the pool was collected.
    """
    rejected: dict[int, str] = {}
    unique: list[int] = []
    features, train = pool.features, pool.train_features
    finite = np.isfinite(pool.expected_error_eV_per_A) & np.isfinite(pool.max_force_eV_per_A)
    finite &= np.isfinite(features).all(axis=1) if len(features) else True
    same = _SAME * max(_largest(features[finite]), _largest(train))
    known = _nearest(features, train) <= same
    taken = np.zeros(len(features), dtype=bool)
    for i in sorted(range(len(pool.uids)), key=lambda i: pool.uids[i]):
        if not finite[i]:
            rejected[i] = NOT_FINITE
        elif known[i] or taken[i]:
            rejected[i] = DUPLICATE
        else:
            unique.append(i)
            taken |= _distance(features, i) <= same
    return rejected, unique


def _draw(pool: Pool, unique: list[int], count: int, *, rng: np.random.Generator) -> list[int]:
    drawn = rng.choice(len(unique), size=min(max(count, 0), len(unique)), replace=False)
    return [unique[n] for n in drawn]


def _scale(pool: Pool, unique: list[int]) -> float:
    """Median distance to the nearest neighbour of the training frames, else of the pool, else 0.

    A structure that is trained on at two fidelities counts once: its twin is no neighbour.
    """
    points = pool.train_features if len(pool.train_features) > 1 else pool.features[unique]
    same = _SAME * _largest(points)
    if same > 0:
        _, first = np.unique(np.round(points / same), axis=0, return_index=True)
        points = points[first]
    if len(points) < 2:
        return 0.0
    return float(np.median(_nearest(points, points, skip_self=True)))


def _percentile(values: np.ndarray) -> np.ndarray:
    """Rank in [0, 1]; ties share their mean rank, and a pool of one is not novel among itself."""
    if len(values) < 2:
        return np.zeros(len(values))
    return np.asarray((rankdata(values) - 1) / (len(values) - 1))


def _nearest(points: np.ndarray, others: np.ndarray, *, skip_self: bool = False) -> np.ndarray:
    """Distance of each point to the nearest of the others; inf without any. Blocks bound memory."""
    nearest = np.full(len(points), np.inf)
    if len(others) == 0:
        return nearest
    block = max(1, 10_000_000 // len(others))
    for begin in range(0, len(points), block):
        distance = cdist(points[begin : begin + block], others)
        if skip_self:
            rows = np.arange(len(distance))
            distance[rows, begin + rows] = np.inf
        nearest[begin : begin + block] = distance.min(1)
    return nearest


def _distance(points: np.ndarray, index: int) -> np.ndarray:
    return np.asarray(np.linalg.norm(points - points[index], axis=1))


def _largest(points: np.ndarray) -> float:
    return float(np.linalg.norm(points, axis=1).max(initial=0.0)) if len(points) else 0.0
