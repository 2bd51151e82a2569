"""Committee spread and its calibration, by simulation against known truth."""

import json
import math

import numpy as np
import pytest
from alchemy_policies.base import PolicyError
from alchemy_policies.calibration import (
    Calibration,
    fit_calibration,
    fresh_weights,
    normal_bound,
    worst_decile,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tace.prediction import force_spread, small_sample_factor

FLAWS = {1: 0.5, 8: 1.5}  # shared error over members' scatter: what a committee cannot see


def simulate(rng, *, frames, atoms=12, members=4, flaws=FLAWS):
    """(numbers, spread, error, frame): members scatter normally about a flawed mean."""
    size = frames * atoms
    numbers = rng.choice(list(flaws), size)
    hardness = np.repeat(rng.lognormal(0, 0.3, frames), atoms)  # atoms of a frame err together
    sigma = 0.05 * hardness * rng.lognormal(0, 0.5, size)
    flaw = np.array([flaws[z] for z in numbers]) * sigma
    truth = flaw[:, None] * rng.standard_normal((size, 3))
    forces = sigma[:, None] * rng.standard_normal((members, size, 3))
    error = np.linalg.norm(forces.mean(0) - truth, axis=1)
    return numbers, force_spread(forces), error, np.repeat(np.arange(frames), atoms)


@pytest.mark.parametrize("members", [2, 3, 4, 8])
def test_the_spread_estimates_root_three_sigma_without_bias_for_any_committee(members):
    rng = np.random.default_rng(members)
    atoms = 40_000
    spread = force_spread(0.2 * rng.standard_normal((members, atoms, 3)))
    # scatter of one spread is below 45 %, so that of the mean is below 0.23 %; four of these
    assert spread.mean() == pytest.approx(0.2 * math.sqrt(3), rel=0.009)


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_c4_is_the_mean_sample_deviation_of_normal_draws(n):
    draws = np.random.default_rng(n).standard_normal((100_000, n))
    # the deviation of two draws scatters by 76 %, its mean over 1e5 by 0.24 %; four of these
    assert draws.std(axis=1, ddof=1).mean() == pytest.approx(small_sample_factor(n), rel=0.01)


def test_the_spread_does_not_depend_on_a_rotation_or_a_common_shift():
    rng = np.random.default_rng(0)
    forces = rng.standard_normal((4, 30, 3))
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    moved = forces @ turn.T + rng.standard_normal((30, 3))
    np.testing.assert_allclose(force_spread(moved), force_spread(forces), rtol=1e-12)  # round-off


@pytest.mark.parametrize("members", [2, 4, 8])
def test_a_ninety_percent_bound_covers_ninety_percent_of_unseen_errors_per_element(members):
    rng = np.random.default_rng(members)
    fit = fit_calibration(*simulate(rng, frames=300, members=members))
    numbers, spread, error, _ = simulate(rng, frames=1000, members=members)
    for z in FLAWS:
        of = numbers == z
        # the promise of engine.md W1; 300 correlated frames leave a scatter of about 1 %
        assert fit.coverage(numbers[of], spread[of], error[of]) == pytest.approx(0.90, abs=0.05)


def test_the_bound_keeps_its_promise_on_average_when_frames_are_few():
    rng = np.random.default_rng(1)
    held = simulate(rng, frames=500)[:3]
    fits = [fit_calibration(*simulate(rng, frames=12)) for _ in range(150)]
    coverage = np.mean([fit.coverage(*held) for fit in fits])
    # the level is that at which left-out frames are held to 0.90; scatter of one fit is about 4 %
    assert 0.88 < coverage < 0.93


def test_the_expected_error_is_the_mean_error_per_element():
    rng = np.random.default_rng(2)
    fit = fit_calibration(*simulate(rng, frames=300))
    numbers, spread, error, _ = simulate(rng, frames=1000)
    for z in FLAWS:
        of = numbers == z
        # 300 frames × 6 atoms that scatter by 60 %, hardness in common: about 2 %
        assert fit.expected_error(numbers, spread)[of].mean() == pytest.approx(
            error[of].mean(), rel=0.08
        )
    assert fit.elements[8].expected > fit.elements[1].expected


def test_the_same_threshold_asks_for_as_many_labels_whatever_the_committee_and_the_cell():
    rates = {}
    for members, atoms in [(3, 20), (4, 20), (8, 20), (4, 200)]:
        rng = np.random.default_rng(members)
        fit = fit_calibration(*simulate(rng, frames=200, atoms=atoms, members=members))
        numbers, spread, _, _ = simulate(rng, frames=1000, atoms=atoms, members=members)
        errors = np.split(fit.expected_error(numbers, spread), 1000)
        rates[members, atoms] = np.mean([worst_decile(frame) > 0.2 for frame in errors])
    typical = np.median(list(rates.values()))
    # engine.md W1: within ±25 %
    assert max(rates.values()) < 1.25 * typical and min(rates.values()) > 0.75 * typical, rates


def test_a_rare_element_is_pooled_and_that_is_said():
    rng = np.random.default_rng(3)
    numbers, spread, error, frame = simulate(rng, frames=100)
    rare = (frame < 10) & (numbers == 8)
    numbers = np.where((numbers == 8) & ~rare, 1, numbers)
    fit = fit_calibration(numbers, spread, error, frame)
    assert fit.elements[8].pooled and not fit.elements[1].pooled
    assert fit.elements[8].expected == fit.pooled.expected
    assert fit.elements[8].frames == 10 and fit.elements[8].atoms == rare.sum()
    assert fit.note == "fewer than 50 frames of O: pooled over elements"
    # an element that was never seen gets the pooled numbers too
    typical = np.array([fit.law.typical_eV_per_A])
    assert fit.expected_error(np.array([26]), typical) == fit.pooled.expected * typical


def test_few_frames_give_no_guarantee_and_that_is_said():
    fit = fit_calibration(*simulate(np.random.default_rng(4), frames=5, atoms=1))
    assert "5 frames are too few" in fit.note
    assert math.isfinite(fit.pooled.bound_90) and fit.pooled.bound_90 >= normal_bound(4)


def test_without_labels_the_bound_is_that_of_normal_members():
    nothing = np.empty(0)
    fit = fit_calibration(nothing.astype(int), nothing, nothing, nothing.astype(int))
    assert fit == Calibration.uncalibrated() and "not calibrated" in fit.note
    assert math.isnan(fit.coverage(nothing.astype(int), nothing, nothing))
    for members in (2, 4, 8):
        # the truth is one more draw: its flaw equals the members' scatter
        numbers, spread, error, _ = simulate(
            np.random.default_rng(5), frames=2000, members=members, flaws={1: 1.0}
        )
        theory = Calibration.uncalibrated(members)
        # 24 000 atoms: ± 0.2 %; the theory is exact
        assert theory.coverage(numbers, spread, error) == pytest.approx(0.90, abs=0.01)
    assert normal_bound(4) == pytest.approx(1.82, abs=0.005)  # as the module says


def test_with_one_atom_per_frame_the_quantile_is_the_usual_one():
    ratio = np.arange(1.0, 20.0)  # n = 19: ⌈20 · 0.9⌉ = the 18th
    ones = np.ones(19, dtype=int)
    fit = fit_calibration(ones, np.ones(19), ratio, np.arange(19), min_frames=1)
    assert fit.elements[1].bound_90 == 18.0


def test_a_large_frame_counts_as_one_frame_in_the_bound():
    frame = np.append(np.zeros(1000, dtype=int), np.arange(1, 30))  # one of 1000 atoms, 29 of one
    ratio = np.where(frame == 0, 5.0, 1.0)
    ones = np.ones(len(frame), dtype=int)
    fit = fit_calibration(ones, np.ones(len(frame)), ratio, frame, min_frames=1)
    # 29 of 31 parts lie at 1, one at 5, one at infinity
    assert fit.elements[1].bound_90 == 1.0


def test_weights_move_the_calibration_to_the_pool_they_stand_for():
    rng = np.random.default_rng(6)
    easy = simulate(rng, frames=100, flaws={1: 0.5})
    hard = simulate(rng, frames=100, flaws={1: 3.0})
    both = [np.concatenate(pair) for pair in zip(easy, hard, strict=True)]
    both[3][1200:] += 100
    weights = np.repeat([1.0, 1e-9], 1200)
    fit = fit_calibration(*both, weights=weights)
    alone = fit_calibration(*easy)
    # the end of the power law is a quantile of the spreads, which one atom may move
    assert fit.elements[1].expected == pytest.approx(alone.elements[1].expected, rel=1e-3)
    # the unseen frame has the mean weight, half of an easy frame's: a slightly lower quantile
    assert fit.elements[1].bound_90 == pytest.approx(alone.elements[1].bound_90, rel=0.05)


def test_selected_frames_together_count_as_four_random_ones_and_old_rounds_fade():
    random = np.array([True] * 3 + [False] * 40)
    weights = fresh_weights(random, np.zeros(43))
    assert (weights[:3] == 1).all() and weights[3:].sum() == pytest.approx(4.0)
    assert (fresh_weights(np.array([False, False]), np.zeros(2)) == 1).all()  # not more than a random one
    old = fresh_weights(random, np.r_[np.zeros(20), np.full(23, 5)])
    np.testing.assert_allclose(old[20:], weights[20:] * 0.6**5)


def test_atoms_on_symmetry_elements_do_not_blow_up_the_calibration():
    numbers, spread, error, frame = simulate(np.random.default_rng(7), frames=100)
    still = np.arange(len(numbers)) % 5 == 0
    quiet = fit_calibration(
        numbers, np.where(still, 0.0, spread), np.where(still, 1e-12, error), frame
    )
    plain = fit_calibration(numbers[~still], spread[~still], error[~still], frame[~still])
    for z in FLAWS:
        # frames with more such atoms weigh a little less in the exponent
        assert quiet.elements[z].expected == pytest.approx(plain.elements[z].expected, rel=5e-3)
        assert quiet.elements[z].bound_90 <= plain.elements[z].bound_90
    assert quiet.coverage(numbers[still], spread[still] * 0, error[still] * 0) == 1.0


def test_members_that_agree_exactly_are_not_calibrated():
    ones = np.ones(3, dtype=int)
    fit = fit_calibration(ones, np.zeros(3), np.ones(3), np.arange(3))
    assert "agree exactly" in fit.note and fit.pooled.expected == 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_an_unknown_spread_is_refused(bad):
    ones = np.ones(3, dtype=int)
    with pytest.raises(PolicyError, match="spread"):
        fit_calibration(ones, np.array([1.0, bad, 1.0]), np.ones(3), np.arange(3))
    with pytest.raises(PolicyError, match="at least two"):
        Calibration.uncalibrated(1)


def test_a_calibration_survives_json():
    fit = fit_calibration(*simulate(np.random.default_rng(8), frames=60))
    document = json.loads(json.dumps(fit.to_json(), allow_nan=False))
    assert Calibration.from_json(document | {"pairs": {}}) == fit
    assert set(document["elements"]) == {"H", "O"}
    with pytest.raises(PolicyError, match="not a calibration"):
        Calibration.from_json({"elements": {}})


@given(arrays(float, st.integers(1, 60), elements=st.floats(0, 1e3)))
def test_a_tenth_of_the_atoms_at_least_one_reach_the_worst_decile(errors):
    value = worst_decile(errors)
    reached, above = (errors >= value).sum(), (errors > value).sum()
    assert reached >= max(1, len(errors) / 10)
    assert above < max(1, len(errors) / 10)  # and it is the largest such value


def test_the_worst_decile_of_an_unknown_error_is_unknown():
    assert math.isnan(worst_decile(np.array([1.0, np.nan])))
    assert math.isnan(worst_decile(np.empty(0)))
