"""Goals and alarms beside the force error and the plans of `stops.py`.

Goals (exit code 0) say that the potential is good: worst element, coverage, barriers, few candidates. A
campaign that asks for several is done when all hold in the same round (`AllGoals`). Cost is a budget
(exit code 4). `Stalled` (5) and `ModelLimited` (6) say that more labels of this kind will not help.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .base import PolicyError, RoundFacts, StopReason, StopRule
from .calibration import LEVEL


@dataclass(frozen=True)
class ElementForceRmse:
    """Done when fresh random labels are predicted well enough for the worst element too, `patience`
    rounds running.

    An element of one atom in a hundred hardly moves the mean error; here it decides.
    """

    target_eV_per_A: float
    patience: int = 1

    def __post_init__(self) -> None:
        _require_positive(target_eV_per_A=self.target_eV_per_A, patience=self.patience)

    def __call__(self, history: Sequence[RoundFacts]) -> StopReason | None:
        def judge(facts: RoundFacts) -> str | None:
            by_element = facts.fresh_element_rmse_eV_per_A
            if not by_element:
                return None
            worst = max(by_element, key=lambda symbol: by_element[symbol])
            if not by_element[worst] <= self.target_eV_per_A:
                return None
            return (
                f"force RMSE of the worst element, {worst}, {by_element[worst]:.4g} ≤ "
                f"{self.target_eV_per_A:.4g} eV/Å on fresh random {facts.target} labels"
            )

        return _met("element_rmse", history, self.patience, judge)


@dataclass(frozen=True)
class Coverage:
    """Done when the 90 % bounds hold 90 % of fresh random labels, within a tolerance, `patience` rounds
    running.

    Until then the errors that the committee reports of itself are not to be believed.
    """

    tolerance: float = 0.05
    patience: int = 1
    min_frames: int = 8

    def __post_init__(self) -> None:
        _require_positive(tolerance=self.tolerance, patience=self.patience, min_frames=self.min_frames)
        if self.tolerance >= LEVEL:
            raise PolicyError(f"tolerance is {self.tolerance}; every coverage would pass")

    def __call__(self, history: Sequence[RoundFacts]) -> StopReason | None:
        def judge(facts: RoundFacts) -> str | None:
            found, frames = facts.coverage_90, facts.fresh_random_frames or 0
            if found is None or frames < self.min_frames or not abs(found - LEVEL) <= self.tolerance + 1e-12:
                return None
            return f"the 90 % bounds hold {found:.0%} of the forces in {frames} fresh random labels"

        return _met("coverage", history, self.patience, judge)


@dataclass(frozen=True)
class BarrierError:
    """Done when the barriers of the probe reactions are right on average, `patience` rounds running."""

    target_eV: float
    patience: int = 1

    def __post_init__(self) -> None:
        _require_positive(target_eV=self.target_eV, patience=self.patience)

    def __call__(self, history: Sequence[RoundFacts]) -> StopReason | None:
        def judge(facts: RoundFacts) -> str | None:
            found = facts.barrier_mae_eV
            if found is None or not found <= self.target_eV:
                return None
            return f"mean barrier error {found:.3g} ≤ {self.target_eV:.3g} eV over {facts.barriers} reactions"

        return _met("barrier_mae", history, self.patience, judge)


@dataclass(frozen=True)
class CandidateFraction:
    """Done when hardly a candidate is above the threshold of the selection, `patience` rounds running."""

    below: float
    patience: int = 1
    min_candidates: int = 20

    def __post_init__(self) -> None:
        _require_positive(below=self.below, patience=self.patience, min_candidates=self.min_candidates)

    def __call__(self, history: Sequence[RoundFacts]) -> StopReason | None:
        def judge(facts: RoundFacts) -> str | None:
            if facts.candidates < self.min_candidates:
                return None
            share = facts.candidates_above_threshold / facts.candidates
            if not share < self.below:
                return None
            return (
                f"{facts.candidates_above_threshold} of {facts.candidates} candidates are above the "
                f"threshold, fewer than {self.below:.3g} of them"
            )

        return _met("candidate_fraction", history, self.patience, judge)


@dataclass(frozen=True)
class AllGoals:
    """Done when every one of several goals is met by the same round, and all that dynamics is to survive was.

    What a ladder has not opened yet has been seen by no goal.
    """

    goals: tuple[StopRule, ...]

    def __post_init__(self) -> None:
        if not self.goals:
            raise PolicyError("give at least one goal; without any everything is reached")

    def __call__(self, history: Sequence[RoundFacts]) -> StopReason | None:
        if history and history[-1].unclimbed:
            return None
        reasons = [goal(history) for goal in self.goals]
        met = [reason for reason in reasons if reason is not None]
        if len(met) < len(reasons):
            return None
        if len(met) == 1:
            return met[0]
        rules = " and ".join(reason.rule for reason in met)
        return StopReason(rules, "; ".join(reason.message for reason in met), 0)


@dataclass(frozen=True)
class LabelCost:
    """The labels have cost what was budgeted; asked between rounds, so the last round may overrun."""

    cpu_s: float

    def __post_init__(self) -> None:
        _require_positive(cpu_s=self.cpu_s)

    def __call__(self, history: Sequence[RoundFacts]) -> StopReason | None:
        if not history or history[-1].labels_cpu_s is None or history[-1].labels_cpu_s < self.cpu_s:
            return None
        spent = history[-1].labels_cpu_s
        return StopReason("cost", f"labels cost {spent:.4g} CPU s, {self.cpu_s:.4g} were budgeted", 4)


@dataclass(frozen=True)
class Stalled:
    """More labels have not helped: the error fell by less than `gain` in the last `rounds` rounds.

    Judged on the test set, whose frames are the same in every round; without one on fresh random labels.
    The best error of the last rounds counts, so that one unlucky committee is no stall.
    """

    rounds: int = 3
    gain: float = 0.05

    def __post_init__(self) -> None:
        _require_positive(rounds=self.rounds, gain=self.gain)

    def __call__(self, history: Sequence[RoundFacts]) -> StopReason | None:
        found = stall(history, self.rounds, self.gain)
        return None if found is None else StopReason("stalled", found, 5)


@dataclass(frozen=True)
class ModelLimited:
    """Stalled, and the committee errs as much on what it was trained on: the model cannot do better.

    Labels help a model whose training error is far below its test error. Where the two are within
    `ratio` of each other, and above what repeated labels scatter by, the network is too small, sees too
    little, or lacks a term.
    """

    rounds: int = 3
    gain: float = 0.05
    ratio: float = 0.7

    def __post_init__(self) -> None:
        _require_positive(rounds=self.rounds, gain=self.gain, ratio=self.ratio)

    def __call__(self, history: Sequence[RoundFacts]) -> StopReason | None:
        stalled = stall(history, self.rounds, self.gain)
        if stalled is None:
            return None
        train, error = history[-1].train_force_rmse_eV_per_A, _error(history[-1])
        noise = history[-1].label_noise_eV_per_A or 0.0
        if train is None or error is None or train < self.ratio * error[0] or train <= 2 * noise:
            return None
        message = (
            f"{stalled}; on its training set the committee errs by {train:.3g} eV/Å, so the model and not "
            "the data is the limit: a larger preset, a longer cutoff, more steps, or les: true if charges "
            "reach further"
        )
        return StopReason("model_limited", message, 6)


def stall(history: Sequence[RoundFacts], rounds: int, gain: float) -> str | None:
    """How little was gained, in words; None while something is."""
    errors = [_error(facts) for facts in history]
    known = [error for error in errors if error is not None]
    if len(known) < len(errors) or len(history) <= rounds or len({basis for _, basis in known}) > 1:
        return None
    before, after = min(e for e, _ in known[:-rounds]), min(e for e, _ in known[-rounds:])
    if not before > 0 or not 1 - after / before < gain:
        return None
    target = history[-1].target
    labels = history[-1].labels.get(target, 0) - history[-rounds - 1].labels.get(target, 0)
    change = f"fell by {1 - after / before:.1%}" if after < before else "did not fall"
    return (
        f"force RMSE {known[-1][1]} {change} in {rounds} rounds and {labels} {target} labels "
        f"(best {after:.4g} eV/Å, {before:.4g} before); {gain:.1%} was asked for"
    )


def _error(facts: RoundFacts) -> tuple[float, str] | None:
    if facts.test_force_rmse_eV_per_A is not None:
        return facts.test_force_rmse_eV_per_A, "on the test set"
    if facts.fresh_random_force_rmse_eV_per_A is not None:
        return facts.fresh_random_force_rmse_eV_per_A, "on fresh random labels"
    return None


def _met(
    rule: str, history: Sequence[RoundFacts], patience: int, judge: Callable[[RoundFacts], str | None]
) -> StopReason | None:
    """A goal's reason when the last `patience` rounds all meet it."""
    if len(history) < patience:
        return None
    verdicts = [judge(facts) for facts in history[-patience:]]
    if any(verdict is None for verdict in verdicts):
        return None
    rounds = "" if patience == 1 else f", for {patience} rounds"
    return StopReason(rule, f"{verdicts[-1]}{rounds}", 0)


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise PolicyError(f"{name} is {value}; must be positive")
