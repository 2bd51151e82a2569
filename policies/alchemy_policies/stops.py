
"""When a campaign is done. Exit code 0: the plan was fulfilled; 4: a budget ran out before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .base import PolicyError, RoundFacts, StopReason


@dataclass(frozen=True)
class FreshForceRmse:
    """Done when the committee predicts labels that it has not seen well enough, `patience` rounds
    running.

    The random slice stands for the pool and is used alone once it has `min_frames` frames. Until
    then all fresh labels are: they were chosen for being hard, so this can only stop too late.
    The message says which.
    """

    target_eV_per_A: float
    patience: int = 1
    min_frames: int = 4

    def __post_init__(self) -> None:
        if not (self.target_eV_per_A > 0 and self.patience >= 1 and self.min_frames >= 1):
            raise PolicyError(f"target, patience and min_frames must be positive, got {self}")

    def __call__(self, history: Sequence[RoundFacts]) -> StopReason | None:
        if len(history) < self.patience:
            return None
        judged = [self._judge(facts) for facts in history[-self.patience :]]
        for verdict in judged:
            if verdict is None or not verdict[0] <= self.target_eV_per_A:
                return None
        assert judged[-1] is not None
        rmse, basis = judged[-1]
        rounds = "" if self.patience == 1 else f", for {self.patience} rounds"
        message = f"force RMSE {rmse:.4g} ≤ {self.target_eV_per_A:.4g} eV/Å on {basis}{rounds}"
        return StopReason("force_rmse", message, 0)

    def _judge(self, facts: RoundFacts) -> tuple[float, str] | None:
        slice_rmse, slice_frames = facts.fresh_random_force_rmse_eV_per_A, facts.fresh_random_frames
        if slice_rmse is not None and slice_frames is not None and slice_frames >= self.min_frames:
            return slice_rmse, f"{slice_frames} fresh random {facts.target} labels"
        if facts.fresh_force_rmse_eV_per_A is None or facts.fresh_frames < self.min_frames:
            return None
        return (
            facts.fresh_force_rmse_eV_per_A,
            f"all {facts.fresh_frames} fresh {facts.target} labels (the random slice is too small)",
        )


@dataclass(frozen=True)
class LabelCount:
    """Done when any fidelity has as many labels as planned."""

    limits: Mapping[str, int]

    def __post_init__(self) -> None:
        if not self.limits or any(limit < 1 for limit in self.limits.values()):
            raise PolicyError(
                f"limits must name a fidelity and a positive count, got {self.limits}"
            )

    def __call__(self, history: Sequence[RoundFacts]) -> StopReason | None:
        if not history:
            return None
        for fidelity, limit in self.limits.items():
            have = history[-1].labels.get(fidelity, 0)
            if have >= limit:
                message = f"{have} {fidelity} labels, {limit} were planned"
                return StopReason("labels", message, 0)
        return None


@dataclass(frozen=True)
class Rounds:
    """Done after round n; the rounds count from 1, the start is round 0."""

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise PolicyError(f"plan at least one round, got {self.n}")

    def __call__(self, history: Sequence[RoundFacts]) -> StopReason | None:
        if not history or history[-1].round < self.n:
            return None
        return StopReason("rounds", f"{history[-1].round} rounds, {self.n} were planned", 0)


@dataclass(frozen=True)
class WallTime:
    """The campaign has used its time; asked between rounds, so the last round may overrun."""

    seconds: float

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise PolicyError(f"the wall time must be positive, got {self.seconds} s")

    def __call__(self, history: Sequence[RoundFacts]) -> StopReason | None:
        if not history or history[-1].wall_s < self.seconds:
            return None
        message = f"{history[-1].wall_s:.0f} s used of {self.seconds:.0f} s"
        return StopReason("wall", message, 4)
