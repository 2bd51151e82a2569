"""The maturity ladder: what opens when."""

import pytest
from alchemy_policies.base import PolicyError
from alchemy_policies.ladder import Climb, Ladder
from hypothesis import given, settings
from hypothesis import strategies as st

LADDER = Ladder((300.0, 600.0, 900.0), (1000.0, 4000.0), (0.0, 0.01), survive=0.75)


def rungs(climbs):
    return [(c.temperature_K, c.pressure_eV_per_A3, c.time_fs) for c in climbs]


def walked(climb, survived, walkers=4):
    return climb.after([{"outcome": "finished" if n < survived else "force"} for n in range(walkers)])


def test_only_the_easiest_rung_is_open_at_first():
    assert rungs(LADDER.open([])) == [(300.0, 0.0, 1000.0)]


def test_the_next_temperature_pressure_and_length_open_when_enough_walkers_survive():
    (first,) = LADDER.open([])
    failed = [walked(first, 2)]
    assert rungs(LADDER.open(failed)) == [(300.0, 0.0, 1000.0)]
    past = [*failed, walked(first, 3)]
    assert rungs(LADDER.open(past)) == [(300.0, 0.0, 4000.0), (300.0, 0.01, 1000.0), (600.0, 0.0, 1000.0)]


def test_a_corner_opens_only_when_both_ways_to_it_are_passed():
    a, b = Climb(300.0, 0.0, 1000.0, 4, 4), Climb(600.0, 0.0, 1000.0, 4, 4)
    assert (600.0, 0.01, 1000.0) not in rungs(LADDER.open([a, b]))
    assert (600.0, 0.01, 1000.0) in rungs(LADDER.open([a, b, Climb(300.0, 0.01, 1000.0, 4, 4)]))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=40))
def test_no_rung_is_ever_walked_before_what_is_easier_was_survived(outcomes):
    past, passed = [], set()
    for survived in outcomes:
        for climb in LADDER.open(past):
            at = (climb.temperature_K, climb.pressure_eV_per_A3)
            for easier in LADDER.temperatures_K[: LADDER.temperatures_K.index(at[0])]:
                assert (easier, at[1]) in passed
            past.append(walked(climb, survived))
            if survived >= 3:
                passed.add(at)
        good = [c for c in past if c.survived >= 3 and c.time_fs == LADDER.times_fs[-1]]
        top = set(rungs(good))
        assert bool(LADDER.left(past)) == (len(top) < 6)


def test_who_always_survives_climbs_to_the_top_and_stays_there():
    past, rounds = [], 0
    while LADDER.left(past):
        past += [walked(climb, 4) for climb in LADDER.open(past)]
        rounds += 1
    assert rounds == 5  # four doors to the farthest corner, and its second length
    assert rungs(LADDER.open(past)) == [(t, p, 4000.0) for t in (300.0, 600.0, 900.0) for p in (0.0, 0.01)]


def test_a_record_survives_json():
    climb = Climb(300.0, 0.01, 1000.0, 4, 3)
    assert Climb.from_json(climb.to_json()) == climb


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"temperatures_K": (300.0, 300.0)}, "temperatures_K"),
        ({"times_fs": (4000.0, 1000.0)}, "short to long"),
        ({"survive": 0.0}, "survive"),
    ],
)
def test_ladders_that_make_no_sense_are_refused(wrong, says):
    with pytest.raises(PolicyError, match=says):
        Ladder(**({"temperatures_K": (300.0,), "times_fs": (1000.0,)} | wrong))
