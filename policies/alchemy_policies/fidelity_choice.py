"""How a round's budget is shared among the levels of theory.

Model of the error   E² ∝ Σ_i (ρ_i² − ρ_{i+1}²) / N_i^{2β}
    levels from the target (i = 0, ρ = 1) downwards in correlation with it, ρ after the last being 0; N_i
    structures that have a label of level i or a dearer one. The first N_0 teach what only the target
    knows, a share 1 − ρ_1² of the variance of its forces; cheaper labels teach the rest. With β = ½, the
    default, this is the variance of multi-fidelity Monte Carlo (Peherstorfer, Willcox & Gunzburger, SIAM
    J. Sci. Comput. 38, A3163 (2016), eq. 3.5), whose optimum is N_1/N_0 = √(ρ²c_0 / ((1 − ρ²)c_1)).
Value per cost       −∂E²/∂N_i of the next structure at level i, over what its labels cost
    A structure labelled at a dear level is labelled at the cheaper ones too (the pair teaches the
    difference), so that its cost is the sum. Labels are dealt one by one to the level with the largest
    value per cost until the budget is spent.
Differs              a regression is not a mean: ρ is taken between force components of pairs, and a network
    may learn a non-linear map, so the dear share that comes out is an upper estimate.

A level that is dearer than another and correlates no better is not bought. A part of the plan's target
labels is bought before anything else (`least_of_target`): a cheap level with ρ = 0.999 on the first pairs
would get everything, and nothing fresh would be left to calibrate the committee, to stop by, or to measure
ρ on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .base import PolicyError

MIN_PAIRS = 8  # structures; fewer leave ρ² of a well-correlated level uncertain by its own 1 − ρ²


@dataclass(frozen=True)
class Level:
    """What is known of a level of theory."""

    name: str
    per_round: int  # labels that the campaign file plans
    labels: int  # already there
    cpu_s_per_label: float | None  # measured, failed attempts included; None: no label was timed
    correlation: float | None  # ρ of its forces with the target's on pairs; None: unknown; target: 1
    pairs: int = 0  # structures behind it


@dataclass(frozen=True)
class Shares:
    """Structures to label at each level (those of dearer levels included), and why so."""

    labels: Mapping[str, int]
    expected_cpu_s: float | None
    note: str
    unpaired: tuple[str, ...] = ()  # levels that are not worth even the pairs of a dearer one


class FidelityChoice(Protocol):
    """Levels cheap to dear and the CPU seconds of a round (None: what `per_round` costs) in, labels out.

    Never more than the budget pays; a structure counts at every level that it is labelled at.
    """

    def __call__(
        self, levels: Sequence[Level], *, target: str, budget_cpu_s: float | None
    ) -> Shares: ...


@dataclass(frozen=True)
class Fixed:
    """The labels that the campaign file plans, fewer of all where the budget of a round does not pay them."""

    def __call__(
        self, levels: Sequence[Level], *, target: str, budget_cpu_s: float | None
    ) -> Shares:
        plan = _paired({level.name: level.per_round for level in levels}, levels, target)
        price = _cost(plan, levels)
        if budget_cpu_s is None or price is None or price <= budget_cpu_s:
            return Shares(plan, price, "as planned")
        share = budget_cpu_s / price
        less = {name: math.floor(share * count + 1e-9) for name, count in plan.items()}
        note = f"{share:.0%} of the plan: {price:.4g} CPU s planned, {budget_cpu_s:.4g} in the budget"
        return Shares(less, _cost(less, levels), note)


@dataclass(frozen=True, kw_only=True)
class ValuePerCost:
    """The level whose next label lowers the expected error of the target most per CPU second.

    Until costs and correlations are measured the plan of the campaign file stands.
    """

    exponent: float = 0.5
    """β of the learning curve E ∝ N^−β."""
    least_of_target: float = 0.25
    """Share of the target labels in the plan, rounded up, that is bought as far as the budget pays it."""

    def __post_init__(self) -> None:
        if not 0 <= self.least_of_target <= 1:
            raise PolicyError(f"least_of_target is {self.least_of_target}, a share between 0 and 1")
        if not self.exponent > 0:
            raise PolicyError(f"exponent is {self.exponent}; errors fall with labels: above zero")

    def __call__(
        self, levels: Sequence[Level], *, target: str, budget_cpu_s: float | None
    ) -> Shares:
        plan = Fixed()(levels, target=target, budget_cpu_s=budget_cpu_s)
        unknown = _unknown(levels, target)
        if unknown or len(levels) < 2:
            why = "; ".join(unknown) or "there is one level only"
            return Shares(plan.labels, plan.expected_cpu_s, f"the plan of the file: {why}")
        budget = budget_cpu_s if budget_cpu_s is not None else _cost(plan.labels, levels)
        assert budget is not None
        chain = _chain(levels, target)
        counts = self._deal(chain, budget)
        names = {level.name for level in chain}
        labels = {level.name: counts.get(level.name, 0) for level in levels}
        spent = _cost(labels, levels)
        ratios = ", ".join(
            f"{level.name} ρ {level.correlation:.3f} at {level.cpu_s_per_label:.3g} CPU s"
            for level in levels
        )
        left_out = tuple(level.name for level in levels if level.name not in names)
        note = f"value per cost: {ratios}"
        if left_out:
            note += f"; {', '.join(left_out)} costs more than a level that knows the target better"
        return Shares(labels, spent, note, left_out)

    def _deal(self, chain: list[Level], budget: float) -> dict[str, int]:
        """Structures per level, dearer ones included; `chain` begins at the target."""
        rho2 = np.array([1.0, *(_rho(level) ** 2 for level in chain[1:]), 0.0])
        share = rho2[:-1] - rho2[1:]
        price = np.array([_price(level) for level in chain])
        bundle = np.cumsum(price[::-1])[::-1]  # a structure of level i pays for i and all cheaper ones
        have = np.maximum.accumulate([max(level.labels, 1) for level in chain]).astype(float)
        bought = np.zeros(len(chain), dtype=int)
        least = math.ceil(self.least_of_target * chain[0].per_round - 1e-9)
        least = min(least, int(budget / bundle[0] + 1e-9))
        bought += least
        left = budget - least * bundle[0]
        possible = bundle <= left * (1 + 1e-9)
        while possible.any():
            slope = 2 * self.exponent * share / (have + bought) ** (2 * self.exponent + 1)
            value = np.cumsum(slope[::-1])[::-1]  # it adds to N of its own level and of those below
            best = int(np.where(possible, value / bundle, -1.0).argmax())
            paid = int(left / bundle[best] + 1e-9)
            if value[best] <= 0 or paid == 0:
                break  # what is left does not pay the best; the next best would be worth less than its price
            count = min(paid, max(1, int(0.01 * (have + bought)[best])))  # slopes hardly move within 1 %
            bought[best:] += count
            left -= count * bundle[best]
        return {level.name: int(n) for level, n in zip(chain, bought, strict=True)}


def _paired(
    plan: Mapping[str, int], levels: Sequence[Level], target: str
) -> dict[str, int]:
    """With the pairs: what is labelled at the target or a dearer level is at the cheaper ones too."""
    out, so_far = {}, 0
    order = [target, *(level.name for level in reversed(levels) if level.name != target)]
    for name in order:
        so_far = max(so_far, plan[name])
        out[name] = so_far
    return {level.name: out[level.name] for level in levels}


def _chain(levels: Sequence[Level], target: str) -> list[Level]:
    """Target first, then in falling correlation; who is not cheaper than all before is left out."""
    others = [level for level in levels if level.name != target]
    chain = [next(level for level in levels if level.name == target)]
    for level in sorted(others, key=lambda one: -_rho(one)):
        if _price(level) < _price(chain[-1]) and _rho(level) > 0:
            chain.append(level)
    return chain


def _rho(level: Level) -> float:
    """At most just below 1: a cheap level that seems perfect still needs target labels to prove it."""
    return min(max(float(level.correlation or 0.0), 0.0), 0.9999)


def _price(level: Level) -> float:
    assert level.cpu_s_per_label is not None
    return max(level.cpu_s_per_label, 1e-3)


def _unknown(levels: Sequence[Level], target: str) -> list[str]:
    found = []
    for level in levels:
        if level.cpu_s_per_label is None:
            found.append(f"no label of {level.name} was timed yet")
        if level.name != target and (level.correlation is None or level.pairs < MIN_PAIRS):
            found.append(f"{level.pairs} pairs of {level.name} and {target}, {MIN_PAIRS} are needed")
    return found


def _cost(labels: Mapping[str, int], levels: Sequence[Level]) -> float | None:
    """CPU s; None where a level with labels was never timed."""
    total = 0.0
    for level in levels:
        count = labels.get(level.name, 0)
        if count and level.cpu_s_per_label is None:
            return None
        total += count * (level.cpu_s_per_label or 0.0)
    return total


def force_correlation(cheap: np.ndarray, target: np.ndarray) -> float:
    """ρ of force components [..., 3] of the same atoms at two levels; NaN where one does not vary.

    About zero, not about their means: forces have no offset to subtract.
    """
    norm = float(np.sqrt((cheap**2).sum() * (target**2).sum()))
    return float((cheap * target).sum() / norm) if norm > 0 else float("nan")
