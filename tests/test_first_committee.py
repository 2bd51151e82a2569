"""The first committee of a campaign is cold in every member: what its errors say about the later ones."""

from __future__ import annotations

import numpy as np
import pytest
from alchemy_policies.base import PolicyError
from alchemy_policies.calibration import fit_calibration, fresh_weights
from alchemy_policies.first_committee import at_later_level
from test_calibration import simulate

SELECTED = np.zeros(40, dtype=bool)
FIRST = np.arange(40) < 20  # of 40 frames


def two_rounds(seed, factor, *, frames=40, first=20):
    """Frames of a first committee that erred by `factor` times as much at a given spread, then others."""
    numbers, spread, error, frame = simulate(np.random.default_rng(seed), frames=frames)
    return numbers, spread, np.where(frame < first, factor, 1.0) * error, frame


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_errors_of_the_first_committee_are_taken_to_the_level_of_the_later(factor):
    shifts = []
    for seed in range(10):
        data = two_rounds(seed, factor)
        found = at_later_level(*data, random=SELECTED, first=FIRST)
        assert (found[data[3] >= 20] == data[2][data[3] >= 20]).all()  # the later are what they were
        shift = (found / data[2])[data[3] < 20]
        assert shift == pytest.approx(np.full(len(shift), shift[0]), rel=1e-12)  # round-off; the shape stays
        shifts.append(np.log(shift[0]))
    # 20 frames and four without a difference on either side; ten times two means of 20 frames that scatter
    # by 0.4: ± 0.04
    assert np.mean(shifts) == pytest.approx(-np.log(factor) / 1.4, abs=0.12)


def test_a_first_committee_like_the_others_is_left_alone_up_to_chance():
    data = simulate(np.random.default_rng(0), frames=400)
    found = at_later_level(*data, random=np.zeros(400, bool), first=np.arange(400) < 100)
    assert found == pytest.approx(data[2], rel=0.2)  # a mean of 100 frames that scatter by 0.4, four of these


@pytest.mark.parametrize("first", [1, 20])
def test_one_strange_label_hardly_moves_what_is_known(first):
    numbers, spread, error, frame = two_rounds(1, 1.0, frames=21)
    strange = np.where(frame == (0 if first == 1 else 20), 10.0, 1.0) * error
    found = at_later_level(numbers, spread, strange, frame, random=SELECTED[:21], first=np.arange(21) < first)
    shift = (found / strange)[frame < first]
    # one frame against four: k = 0.19, and its level is ten times that of the others, up to their scatter
    assert (np.abs(np.log10(shift)) < 0.3).all()


def test_what_kind_of_frames_a_round_bought_makes_no_difference():
    data = two_rounds(2, 0.6)  # all selected, then all random: nothing tells kind from committee
    unchanged = at_later_level(*data, random=~FIRST, first=FIRST)
    np.testing.assert_allclose(unchanged, data[2], rtol=1e-12)


def test_one_committee_alone_is_left_as_it_is():
    data = two_rounds(3, 2.0)
    for first in (FIRST | True, FIRST & False):  # the first round; or a first round without fresh labels
        np.testing.assert_array_equal(at_later_level(*data, random=SELECTED, first=first), data[2])


def test_atoms_whose_spread_says_nothing_have_no_level():
    numbers, spread, error, frame = two_rounds(4, 2.0)
    still = np.isin(frame, (0, 1, 39)) | (np.arange(len(frame)) % 5 == 0)
    spread, error = np.where(still, 0.0, spread), np.where(still, 1e-12, error)
    found = at_later_level(numbers, spread, error, frame, random=SELECTED, first=FIRST)
    _, index = np.unique(frame[~still], return_inverse=True)
    rest = (numbers[~still], spread[~still], error[~still], index)
    without = at_later_level(*rest, random=SELECTED[2:39], first=FIRST[2:39])
    # the law of the others is the same up to the weight of frames that lost atoms
    np.testing.assert_allclose(found[~still], without, rtol=0.02)
    nothing = at_later_level(numbers, 0 * spread, error, frame, random=SELECTED, first=FIRST)
    np.testing.assert_array_equal(nothing, error)


def test_what_is_told_of_frames_must_be_told_of_each():
    with pytest.raises(PolicyError, match="39 frames first or later, 40 kinds, atoms of 40"):
        at_later_level(*two_rounds(5, 2.0), random=SELECTED, first=FIRST[1:])


def test_bounds_after_a_cold_first_committee_hold_ninety_percent():
    held = simulate(np.random.default_rng(6), frames=500)[:3]
    corrected, plain = [], []
    for seed in range(20):
        numbers, spread, error, frame = two_rounds(seed, 2.0)
        weights = fresh_weights(SELECTED, FIRST.astype(int))[frame]
        later = at_later_level(numbers, spread, error, frame, random=SELECTED, first=FIRST)
        for found, used in ((corrected, later), (plain, error)):
            found.append(fit_calibration(numbers, spread, used, frame, weights=weights).coverage(*held))
    # the promise of the docs; one fit scatters by 4 %, the mean of 20 by 1 %
    assert np.mean(corrected) == pytest.approx(0.90, abs=0.05)
    assert np.mean(plain) > 0.95  # what it is there for


def test_an_element_of_few_effective_frames_keeps_its_mean_and_shares_the_shape():
    own, shared = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        numbers, spread, error, frame = simulate(rng, frames=80, flaws={1: 0.5, 8: 1.5})
        numbers = np.where(np.arange(len(numbers)) % 12 == 0, 8, 1)  # one atom of O in each frame
        error = np.where(numbers == 8, 1.5, 1.0) * error
        weights = fresh_weights(np.arange(80) % 10 == 0, np.repeat([3, 2, 1, 0], 20))[frame]
        fit = fit_calibration(numbers, spread, error, frame, weights=weights)
        oxygen, hydrogen = fit.elements[8], fit.elements[1]
        ratio = oxygen.bound_90 / oxygen.expected
        assert ratio == pytest.approx(hydrogen.bound_90 / hydrogen.expected, rel=1e-12)  # round-off
        assert not oxygen.pooled and oxygen.expected != hydrogen.expected
        shared.append(ratio)
        alone = fit_calibration(numbers, spread, error, frame, weights=weights, min_frames=5).elements[8]
        own.append(alone.bound_90 / alone.expected)
    # with a quantile of its own the bound of O rests on about ten atoms, with the shape of all on ten frames
    # of twelve: a third of the scatter, less what atoms of a frame have in common
    assert np.std(shared) < 0.6 * np.std(own)
