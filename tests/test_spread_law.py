"""Errors that do not grow in proportion to the spread, and what follows for bounds."""

from __future__ import annotations

import numpy as np
import pytest
from alchemy_policies.calibration import Calibration, fit_calibration
from alchemy_policies.spread_law import LEAST_EXPONENT, RESOLUTION_eV_per_A, SpreadLaw, fit_law
from test_calibration import simulate

from alchemy.report_figures import _formula, _law
from tace.prediction import force_spread


def with_a_shared_flaw(rng, *, frames, scatter=0.06, atoms=20, members=4, flaw=0.1):
    """(numbers, spread, error, frame): what the members have in common does not shrink with their scatter."""
    size = frames * atoms
    sigma = scatter * np.repeat(rng.lognormal(0, 0.3, frames), atoms) * rng.lognormal(0, 0.5, size)
    forces = sigma[:, None] * rng.standard_normal((members, size, 3))
    error = np.linalg.norm(forces.mean(0) - flaw * rng.standard_normal((size, 3)), axis=1)
    return np.ones(size, int), force_spread(forces), error, np.repeat(np.arange(frames), atoms)


def of_frames(data, keep):
    numbers, spread, error, frame = data
    mask = np.isin(frame, keep)
    return numbers[mask], spread[mask], error[mask], frame[mask]


@pytest.mark.parametrize("exponent", [0.3, 0.6, 1.0])
def test_the_exponent_is_found(exponent):
    rng = np.random.default_rng(0)
    spread = rng.lognormal(-2.5, 0.6, 4000)
    error = 0.4 * spread**exponent * rng.lognormal(0, 0.6, 4000)
    law = fit_law(np.ones(4000, int), spread, error, mass=np.full(4000, 0.05), frames=200)
    # slope of 4000 points: ± 0.6/(0.6 √4000) = 0.016; four frames of 200 pull by 2 % × (1 − γ) or less
    assert law.exponent == pytest.approx(exponent, abs=0.06)
    assert law.typical_eV_per_A == pytest.approx(np.exp(-2.5), rel=0.05)  # ± 0.6/√4000, four of these


def test_elements_with_errors_of_their_own_do_not_bend_the_law():
    rng = np.random.default_rng(1)
    numbers = rng.choice([1, 8], 4000)
    spread = rng.lognormal(np.where(numbers == 1, -4.0, -2.0), 0.5)
    error = np.where(numbers == 1, 6.0, 1.0) * spread * rng.lognormal(0, 0.5, 4000)  # each in proportion
    law = fit_law(numbers, spread, error, mass=np.full(4000, 0.05), frames=200)
    assert law.exponent == pytest.approx(1.0, abs=0.06)  # as above; across elements the slope is 0.4


def test_a_few_frames_say_little():
    numbers, spread, error, _ = with_a_shared_flaw(np.random.default_rng(2), frames=400)
    many = fit_law(numbers, spread, error, mass=np.full(8000, 0.05), frames=400)
    rows = [slice(20 * n, 20 * n + 20) for n in range(200)]
    few = [fit_law(numbers[r], spread[r], error[r], mass=np.full(20, 0.05), frames=1).exponent for r in rows]
    assert many.exponent < 0.6 < 0.7 < np.mean(few)  # each one frame against four with γ = 1
    assert fit_law(numbers[:0], spread[:0], error[:0], mass=spread[:0], frames=1) == SpreadLaw()


def test_a_spread_that_says_nothing_keeps_its_order():
    rng = np.random.default_rng(3)
    spread, error = rng.lognormal(-2, 0.5, 2000), rng.lognormal(-2, 0.5, 2000)
    law = fit_law(np.ones(2000, int), spread, error, mass=np.full(2000, 0.05), frames=100)
    assert law.exponent == LEAST_EXPONENT
    assert (np.diff(law(np.geomspace(1e-6, 1e3, 200))) > 0).all()


def test_outside_what_was_seen_the_law_is_proportional_and_it_is_continuous():
    law = SpreadLaw(0.5, 0.1, 0.3)
    assert law(np.array([0.1]))[0] == pytest.approx(0.1)
    assert law(np.array([0.2]))[0] == pytest.approx(0.1 * 2**0.5)
    for edge in (RESOLUTION_eV_per_A, 0.3):
        below, above = law(edge * np.array([1 - 1e-9, 1 + 1e-9]))
        assert below == pytest.approx(above, rel=1e-8)
    assert law(np.array([30.0]))[0] == pytest.approx(100 * law(np.array([0.3]))[0])  # as alarming as it was
    assert law(np.array([0.0]))[0] == 0.0
    np.testing.assert_array_equal(SpreadLaw()(np.array([1e-7, 0.3, 40.0])), [1e-7, 0.3, 40.0])


def test_frames_chosen_for_their_spread_calibrate_for_all():
    rng = np.random.default_rng(4)
    shares, proportional = [], []
    for _ in range(10):
        data = with_a_shared_flaw(rng, frames=100)
        mean = np.bincount(data[3], data[1])
        chosen = np.argsort(mean)[-25:]
        numbers, spread, error, frame = of_frames(data, chosen)
        fit = fit_calibration(numbers, spread, error, frame)
        rest = of_frames(data, np.argsort(mean)[:-25])[:3]
        shares.append(fit.coverage(*rest))
        ratio = np.quantile(error / spread, 0.9)
        proportional.append((rest[2] <= ratio * rest[1]).mean())
    # the promise of the docs; ten fits of 25 frames scatter by 1 % together
    assert np.mean(shares) == pytest.approx(0.90, abs=0.05)
    assert np.mean(proportional) < 0.80  # what the law is there for


def test_a_committee_that_draws_together_is_still_covered_by_the_calibration_before():
    rng = np.random.default_rng(5)
    earlier = fit_calibration(*with_a_shared_flaw(rng, frames=60))
    later = with_a_shared_flaw(rng, frames=300, scatter=0.04)  # two thirds of the spread, the same flaws
    assert earlier.coverage(*later[:3]) == pytest.approx(0.90, abs=0.05)
    assert earlier.law.exponent < 0.7


@pytest.mark.parametrize("frames", [4, 8, 12, 20])
def test_few_frames_are_not_overcautious_on_average(frames):
    rng = np.random.default_rng(frames)
    held = simulate(rng, frames=400)[:3]
    shares = [fit_calibration(*simulate(rng, frames=frames)).coverage(*held) for _ in range(60)]
    # one fit of four frames scatters by 5 %, the mean of 60 by 0.7 %, and four frames are biased by 2 %
    assert np.mean(shares) == pytest.approx(0.90, abs=0.035)


def test_a_frame_held_out_of_many_alike_is_held_as_the_level_says():
    rng = np.random.default_rng(6)
    ratio = rng.random(2000)  # atoms that know nothing of their frames: an ordinary quantile
    ones = np.ones(2000, int)
    fit = fit_calibration(ones, np.ones(2000), ratio, np.repeat(np.arange(20), 100), min_frames=1)
    assert fit.elements[1].bound_90 == pytest.approx(0.9, abs=0.03)  # ± √(0.09/2000) = 0.7 %, four of these


def test_calibrations_of_earlier_versions_are_proportional():
    fit = fit_calibration(*with_a_shared_flaw(np.random.default_rng(7), frames=60))
    document = fit.to_json()
    assert Calibration.from_json(document) == fit and fit.law.exponent < 1
    del document["spread_law"]
    assert Calibration.from_json(document).law == SpreadLaw()


def test_the_report_writes_the_law_out():
    document = {"spread_law": {"exponent": 0.5, "typical_eV_per_A": 0.08, "linear_above_eV_per_A": 0.3}}
    assert _formula(1.5, _law(document)) == "120 (spread/80)^0.50 meV/Å"
    for broken in ({}, {"spread_law": {"exponent": "x"}}, {"spread_law": {"exponent": 0.5}}):
        assert _formula(1.5, _law(broken)) == "1.50 × spread"
