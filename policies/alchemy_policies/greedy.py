"""What every selector of ours does around its own rule: screen, random slice, rare environments, quotas.

1. What can never be labelled is left out: not finite, known exactly, or beside the test set.
2. The random slice is drawn from all the rest, also from below the threshold: the statistics of the
   round rest on it, so it is bought even when nothing else is, and no quota touches it.
3. Frames that hold an environment which training hardly has, as many as the option `coverage` asks for.
4. Frames below the threshold on whose energy the members disagree far more than on the training set
   (`energy_spread`), the farthest out first, in at most a tenth of the budget: forces that agree do not
   show a slow mode or charge that has moved.
5. Frames above the threshold, one after another: the rule scores what is left, the best is bought
   unless its source has had its share or a frame like it is known already.

Budget that no frame claims stays unspent.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import rankdata

from .base import Choice, Pick, PolicyError, Pool
from .energy_spread import energy_spread_limit

DUPLICATE, NOT_FINITE, ABSURD = "near-duplicate", "not-finite", "absurd-force"
BELOW, BUDGET, QUOTA, NEAR_TEST = "below-threshold", "budget", "quota", "near-test"

ENERGY = "energy-spread"
ENERGY_SHARE = 0.1  # of the budget, as much as is drawn blindly by default

RARE = 5
"""An environment that fewer training frames than this hold is rare: four or five forces of an atom do
not pin down the response of its surroundings."""

_SAME = 1e-6  # of the largest feature norm: float32 features of one structure differ by this much


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Options that selectors share; their meaning is in the module's docstring.

    A near-duplicate lies closer than `dedup_distance` × the median distance from a training frame
    to its nearest neighbour in training, to a training frame or to an earlier pick. The ratio has
    no unit: a model whose features are ten times larger chooses the same. With fewer than two
    training frames the pool's own nearest neighbours set the scale. 0.25 joins frames a few fs
    apart; thermal neighbours are at about 1.
    """

    threshold_eV_per_A: float = 0.0
    random_fraction: float = 0.0
    dedup_distance: float = 0.25
    max_force_eV_per_A: float = math.inf
    quota: Mapping[str, float] = field(default_factory=dict)  # source or reason -> largest share
    coverage: float = 0.0  # share of the budget for rare environments
    energy_spread_factor: float | None = None  # × the training set's median; None: no veto

    def __post_init__(self) -> None:
        if self.energy_spread_factor is not None and not self.energy_spread_factor > 0:
            raise PolicyError(f"energy_spread_factor must be above zero, or None, got {self}")
        if not (0 <= self.random_fraction <= 1 and self.dedup_distance >= 0):
            raise PolicyError(f"need 0 ≤ random_fraction ≤ 1 and dedup_distance ≥ 0, got {self}")
        if not (self.threshold_eV_per_A >= 0 and self.max_force_eV_per_A > 0):
            raise PolicyError(f"thresholds must not be negative, got {self}")
        if not (0 <= self.coverage <= 1 and all(0 <= q <= 1 for q in self.quota.values())):
            raise PolicyError(f"shares of the budget lie between 0 and 1, got {self}")


def limits_of(options: Any) -> Limits:
    """The shared options among the fields of a selector; raises PolicyError."""
    names = {f.name for f in fields(Limits)}
    return Limits(**{f.name: getattr(options, f.name) for f in fields(options) if f.name in names})


class Reach:
    """How far each frame of the pool is from what is known, and which known frame is nearest."""

    def __init__(self, pool: Pool) -> None:
        self.features = pool.features
        self.distance, self.centre = nearest(pool.features, pool.train_features)
        self.centres = len(pool.train_features)
        self.novelty = np.zeros(len(pool.uids))
        """Percentile in [0, 1] of the distance to training, among the frames that can be picked."""

    def add(self, index: int) -> None:
        """A frame of the pool is known from now on."""
        gap = distances(self.features, index)
        closer = gap < self.distance
        self.distance[closer], self.centre[closer] = gap[closer], self.centres
        self.centres += 1


Rule = Callable[[Reach, list[int]], np.ndarray]
"""Scores of the frames that are left [n], in their order; the largest is bought next."""


def assemble(
    pool: Pool, budget: int, rng: np.random.Generator, *, limits: Limits, rule: Rule
) -> Choice:
    """The choice of a round by the four steps of the module."""
    reach = Reach(pool)
    rejected, unique = screen(pool, reach)
    reach.novelty[unique] = _percentile(reach.distance[unique])
    wanted = random_count(budget, limits.random_fraction)
    chance = draw(unique, wanted, rng=rng)
    buyer = _Buyer(pool, reach, limits, budget - len(chance), limits.dedup_distance * scale(pool, unique))
    for i in chance:
        reach.add(i)
    free = []
    for i in (i for i in unique if i not in chance):
        if pool.max_force_eV_per_A[i] > limits.max_force_eV_per_A:
            rejected[i] = ABSURD
        else:
            free.append(i)
    rare = buyer.fill_gaps(free, round(limits.coverage * budget), chance)
    vetoed = buyer.veto([i for i in free if i not in rare], budget)
    rising = []
    for i in (i for i in free if i not in {*rare, *vetoed}):
        if pool.expected_error_eV_per_A[i] < limits.threshold_eV_per_A:
            rejected[i] = BELOW
        else:
            rising.append(i)
    worst, refused = buyer.buy(rising, rule)
    picks = [Pick(i, "error") for i in worst]
    picks += [Pick(i, ENERGY) for i in vetoed]
    picks += [Pick(i, "coverage") for i in rare] + [Pick(i, "random") for i in chance]
    return Choice(tuple(picks), rejected | refused)


class _Buyer:
    """Spends a budget frame by frame, within quotas and away from what is known."""

    def __init__(self, pool: Pool, reach: Reach, limits: Limits, budget: int, radius: float) -> None:
        self.pool, self.reach, self.limits = pool, reach, limits
        self.left, self.budget, self.radius = budget, budget, radius
        self.spent: Counter[str] = Counter()

    def refusal(self, i: int) -> str | None:
        """Why the frame is not bought although it is wanted."""
        if self.reach.distance[i] <= self.radius:  # at 0 too: then only exact duplicates are left out
            return DUPLICATE
        full = [n for n in self._names(i) if self.spent[n] >= math.ceil(self.limits.quota[n] * self.budget)]
        if full:
            return f"{QUOTA} of {full[0]}"
        return None if self.left > 0 else BUDGET

    def _names(self, i: int) -> list[str]:
        names = {self.pool.sources[i], self.pool.reasons[i] if self.pool.reasons else ""}
        return sorted(n for n in names if n in self.limits.quota)

    def take(self, i: int) -> None:
        self.reach.add(i)
        self.left -= 1
        self.spent.update(self._names(i))

    def buy(self, wanted: list[int], rule: Rule) -> tuple[list[int], dict[int, str]]:
        """Greedily by the rule; what is not bought has a reason."""
        bought: list[int] = []
        refused: dict[int, str] = {}
        left = list(wanted)
        while left and self.left > 0:
            i = left.pop(int(np.argmax(rule(self.reach, left))))  # ties: the first, in order of uids
            why = self.refusal(i)
            if why is not None:
                refused[i] = why
            else:
                self.take(i)
                bought.append(i)
        refused |= {i: self.refusal(i) or BUDGET for i in left}
        return bought, refused

    def fill_gaps(self, free: list[int], count: int, chance: list[int]) -> list[int]:
        """Frames with the rarest environments, whatever their error: a committee can agree and be wrong."""
        if not self.pool.environments or count < 1:
            return []
        known = Counter(self.pool.train_environments)
        known.update(name for i in chance for name in self.pool.environments[i])
        bought: list[int] = []
        left = [i for i in free if self.refusal(i) is None]
        while left and len(bought) < count and self.left > 0:
            worth = [
                sum(1 / (1 + known[n]) for n in self.pool.environments[i] if known[n] < RARE) for i in left
            ]
            best = int(np.argmax(worth))
            if worth[best] == 0:
                break
            i = left.pop(best)
            self.take(i)
            bought.append(i)
            known.update(self.pool.environments[i])
            left = [i for i in left if self.refusal(i) is None]
        return bought

    def veto(self, free: list[int], budget: int) -> list[int]:
        """Frames that their forces would leave out, farthest out in energy first."""
        spread, limits = self.pool.energy_spread_eV_per_atom, self.limits
        if spread is None:
            return []
        above = energy_spread_limit(self.pool.train_energy_spread_eV_per_atom, limits.energy_spread_factor)
        quiet = self.pool.expected_error_eV_per_A < limits.threshold_eV_per_A
        wanted = sorted((i for i in free if quiet[i] and spread[i] > above), key=lambda i: -spread[i])
        bought: list[int] = []
        for i in wanted:
            if len(bought) < math.ceil(ENERGY_SHARE * budget) and self.refusal(i) is None:
                self.take(i)
                bought.append(i)
        return bought


def random_count(budget: int, fraction: float) -> int:
    """How many of the budget are random: at least one of two, none of one."""
    if budget < 2 or fraction == 0:
        return 0
    return max(1, round(fraction * budget))


def screen(pool: Pool, reach: Reach | None = None) -> tuple[dict[int, str], list[int]]:
    """Reasons for what can never be picked, and the indices that are left, in the order of their
    uids.

    Going by uid makes the answer independent of the order in which the pool was collected.

    Args:
        reach: of the pool before any pick, where it is known already.
    """
    reach = Reach(pool) if reach is None else reach
    rejected: dict[int, str] = {}
    unique: list[int] = []
    features, train = pool.features, pool.train_features
    finite = np.isfinite(pool.expected_error_eV_per_A) & np.isfinite(pool.max_force_eV_per_A)
    finite &= np.isfinite(features).all(axis=1) if len(features) else True
    same = _SAME * max(_largest(features[finite]), _largest(train))
    known = reach.distance <= same
    taken = np.zeros(len(features), dtype=bool)
    forbidden = _beside_test(pool, same)
    for i in sorted(range(len(pool.uids)), key=lambda i: pool.uids[i]):
        if not finite[i]:
            rejected[i] = NOT_FINITE
        elif known[i] or taken[i]:
            rejected[i] = DUPLICATE
        elif forbidden[i]:
            rejected[i] = NEAR_TEST
        else:
            unique.append(i)
            taken |= distances(features, i) <= same
    return rejected, unique


def _beside_test(pool: Pool, same: float) -> np.ndarray:
    """Frames that a test frame is almost a copy of: trained on, they would flatter the test error.

    Almost: within a tenth of the test set's own median nearest distance.
    """
    test = pool.test_features
    if test is None or not len(test) or not len(pool.uids):
        return np.zeros(len(pool.uids), dtype=bool)
    radius = 0.1 * _median_gap(test) if len(test) > 1 else 0.0
    return np.asarray(nearest(pool.features, test)[0] <= max(radius, same))


def _percentile(values: np.ndarray) -> np.ndarray:
    """Rank in [0, 1]; ties share their mean rank, and a pool of one is not novel among itself."""
    if len(values) < 2:
        return np.zeros(len(values))
    return np.asarray((rankdata(values) - 1) / (len(values) - 1))


def draw(unique: list[int], count: int, *, rng: np.random.Generator) -> list[int]:
    """Uniformly, without replacement."""
    drawn = rng.choice(len(unique), size=min(max(count, 0), len(unique)), replace=False)
    return [unique[n] for n in drawn]


def scale(pool: Pool, unique: list[int]) -> float:
    """Median distance to the nearest neighbour of the training frames, else of the pool, else 0.

    A structure that is trained on at two fidelities counts once: its twin is no neighbour.
    """
    return _median_gap(pool.train_features if len(pool.train_features) > 1 else pool.features[unique])


def _median_gap(points: np.ndarray) -> float:
    same = _SAME * _largest(points)
    if same > 0:
        _, first = np.unique(np.round(points / same), axis=0, return_index=True)
        points = points[first]
    if len(points) < 2:
        return 0.0
    return float(np.median(nearest(points, points, skip_self=True)[0]))


def nearest(
    points: np.ndarray, others: np.ndarray, *, skip_self: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each point to the nearest of the others, and which that is; inf and −1 without any."""
    gap, which = np.full(len(points), np.inf), np.full(len(points), -1)
    if len(others) == 0:
        return gap, which
    block = max(1, 10_000_000 // len(others))  # bounds memory
    for begin in range(0, len(points), block):
        distance = cdist(points[begin : begin + block], others)
        if skip_self:
            rows = np.arange(len(distance))
            distance[rows, begin + rows] = np.inf
        which[begin : begin + block] = distance.argmin(1)
        gap[begin : begin + block] = distance.min(1)
    return gap, which


def distances(points: np.ndarray, index: int) -> np.ndarray:
    """From every point to the one at `index`."""
    return np.asarray(np.linalg.norm(points - points[index], axis=1))


def _largest(points: np.ndarray) -> float:
    return float(np.linalg.norm(points, axis=1).max(initial=0.0)) if len(points) else 0.0
