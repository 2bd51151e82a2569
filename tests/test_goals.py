"""Goals and alarms: when each stops a campaign, with which exit code, and what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from alchemy_policies import testing
from alchemy_policies.base import PolicyError
from alchemy_policies.goals import (
    AllGoals,
    BarrierError,
    CandidateFraction,
    Coverage,
    ElementForceRmse,
    LabelCost,
    ModelLimited,
    Stalled,
)
from alchemy_policies.stops import FreshForceRmse

HISTORY = testing.example_history()  # six rounds; everything halves in every round
FLAT = [  # learns for two rounds, then no more
    replace(
        facts,
        test_force_rmse_eV_per_A=max(0.5 / 2**n, 0.12) + 0.001 * (n % 2),
        train_force_rmse_eV_per_A=max(0.4 / 2**n, 0.11),
    )
    for n, facts in enumerate(HISTORY)
]
RULES = {
    "element": lambda: ElementForceRmse(0.05),
    "coverage": lambda: Coverage(min_frames=4),
    "barriers": lambda: BarrierError(0.05, patience=2),
    "candidates": lambda: CandidateFraction(0.2),
    "all": lambda: AllGoals((ElementForceRmse(0.05), BarrierError(0.1))),
    "cost": lambda: LabelCost(4000.0),
    "stalled": Stalled,
    "model": ModelLimited,
}


@pytest.mark.parametrize("name", RULES)
def test_every_rule_keeps_the_laws(name):
    testing.check_stop_rule(RULES[name])


def first_stop(rule, history):
    """Number of the round after which the rule stops, and its reason."""
    for n in range(len(history)):
        reason = rule(history[: n + 1])
        if reason is not None:
            return n + 1, reason
    return None, None


@pytest.mark.parametrize(
    ("rule", "first", "exit_code", "says"),
    [
        (ElementForceRmse(0.05), 5, 0, "worst element, O, 0.0375"),
        (ElementForceRmse(0.05, patience=2), 6, 0, "for 2 rounds"),
        (Coverage(min_frames=4), 2, 0, "hold 90% of the forces in 5"),
        (Coverage(min_frames=6), None, None, None),  # the slice has five
        (BarrierError(0.05), 4, 0, "0.0312 ≤ 0.05 eV over 3 reactions"),
        (CandidateFraction(0.2), 4, 0, "8 of 50"),
        (LabelCost(4000.0), 4, 4, "4000 CPU s"),
        (AllGoals((FreshForceRmse(0.06), BarrierError(0.05))), 4, 0, "eV/Å"),
        (AllGoals((FreshForceRmse(0.06), ElementForceRmse(0.02))), 6, 0, "; force RMSE of the worst"),
    ],
)
def test_when_each_stops_and_what_it_says(rule, first, exit_code, says):
    found, reason = first_stop(rule, HISTORY)
    assert found == first
    if reason is not None:
        assert reason.exit_code == exit_code
        assert says in reason.message


def test_a_campaign_that_learns_is_not_stalled_and_one_that_does_not_is():
    assert first_stop(Stalled(rounds=3), HISTORY) == (None, None)
    found, reason = first_stop(Stalled(rounds=3), FLAT)
    assert (found, reason.exit_code) == (6, 5)  # rounds 4 to 6 gained nothing on round 3
    assert "on the test set fell by" in reason.message or "did not fall" in reason.message
    assert "30 pbe labels" in reason.message


def test_errors_of_different_kinds_are_not_compared():
    mixed = [*FLAT[:3], *(replace(f, test_force_rmse_eV_per_A=None) for f in FLAT[3:])]
    assert first_stop(Stalled(rounds=3), mixed) == (None, None)


def test_a_stall_is_the_models_fault_only_if_it_errs_on_its_training_set_too():
    assert first_stop(ModelLimited(rounds=3), FLAT)[1].exit_code == 6
    learned = [replace(f, train_force_rmse_eV_per_A=0.01) for f in FLAT]
    assert first_stop(ModelLimited(rounds=3), learned) == (None, None)
    noisy = [replace(f, label_noise_eV_per_A=0.08) for f in FLAT]  # nobody fits noise
    assert first_stop(ModelLimited(rounds=3), noisy) == (None, None)
    unknown = [replace(f, train_force_rmse_eV_per_A=None) for f in FLAT]
    assert first_stop(ModelLimited(rounds=3), unknown) == (None, None)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ElementForceRmse(0),
        lambda: Coverage(tolerance=0.95),
        lambda: BarrierError(-1),
        lambda: CandidateFraction(0),
        lambda: AllGoals(()),
        lambda: LabelCost(float("nan")),
        lambda: Stalled(rounds=0),
        lambda: ModelLimited(ratio=0),
    ],
)
def test_an_impossible_rule_is_refused(make):
    with pytest.raises(PolicyError):
        make()
