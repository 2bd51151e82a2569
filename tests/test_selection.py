"""What the selectors by distance, the quotas and the choice of fidelity do beyond the laws."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from alchemy_policies import testing
from alchemy_policies.base import PolicyError, Pool
from alchemy_policies.diversity import FarthestPoint, Lcmd, MaxDist
from alchemy_policies.environments import atom_environments, count_frames, frame_environments
from alchemy_policies.fidelity_choice import Fixed, Level, ValuePerCost, force_correlation
from alchemy_policies.greedy import Limits
from alchemy_policies.selectors import CalibratedError, DpGen, FirstCome
from ase import Atoms
from ase.build import bulk, molecule


def pool_of(errors, features, *, train=((-100.0,),), **more):
    features = np.array(features, dtype=float).reshape(len(errors), -1)
    return Pool(
        uids=tuple(f"{n:04d}" for n in range(len(errors))),
        expected_error_eV_per_A=np.array(errors, dtype=float),
        features=features,
        sources=more.pop("sources", ("md",) * len(errors)),
        max_force_eV_per_A=np.ones(len(errors)),
        train_features=np.array(train, dtype=float).reshape(-1, features.shape[1]),
        **more,
    )


def picks_of(selector, pool, budget, *, why="error"):
    choice = selector(pool, budget, np.random.default_rng(0))
    return [pick.index for pick in choice.picks if pick.why == why], choice.rejected


NOT_RANDOM = {"random_fraction": 0.0, "dedup_distance": 0.0}


def test_max_dist_goes_to_the_farthest_from_training_first_and_then_from_its_own_picks():
    pool = pool_of(np.ones(5), [1, 2, 50, 51, -40], train=[[0.0]])
    assert picks_of(MaxDist(**NOT_RANDOM), pool, 3)[0] == [3, 4, 1]


def test_max_dist_ignores_what_the_committee_knows_and_farthest_point_does_not():
    pool = pool_of([0.5, 0.5, 0.01], [1, 2, 90], train=[[0.0]])
    far, rejected = picks_of(MaxDist(threshold_eV_per_A=0.1, **NOT_RANDOM), pool, 1)
    assert far == [1]
    assert rejected[2] == "below-threshold"
    assert picks_of(FarthestPoint(**NOT_RANDOM), pool, 1)[0] == [2]


def test_lcmd_serves_the_crowded_region_where_max_dist_runs_after_the_outlier():
    crowd = 20 + np.linspace(-3, 3, 40)
    pool = pool_of(np.ones(41), [*crowd, 45.0], train=[[0.0], [40.0]])
    # the crowd is 17 to 20 away from training, the outlier 5: Σd² of the crowd is far larger
    first = picks_of(Lcmd(**NOT_RANDOM), pool, 6)[0]
    assert 40 not in first[:3]
    assert len(first) == 6
    spread = np.ptp(pool.features[first[:5], 0])
    assert spread > 4  # and it spreads over the crowd: one after another from the largest gap


def test_errors_weigh_distances_when_they_are_asked_to():
    pool = pool_of([1.0, 0.1], [5, 6], train=[[0.0]])
    assert picks_of(MaxDist(**NOT_RANDOM), pool, 1)[0] == [1]
    assert picks_of(MaxDist(error_power=1.0, **NOT_RANDOM), pool, 1)[0] == [0]
    assert picks_of(Lcmd(error_power=1.0, **NOT_RANDOM), pool, 1)[0] == [0]


def test_without_training_the_most_uncertain_frame_comes_first():
    pool = pool_of([0.1, 0.9, 0.5], [1, 2, 3], train=())
    for selector in (MaxDist(**NOT_RANDOM), Lcmd(**NOT_RANDOM)):
        assert picks_of(selector, pool, 1)[0] == [1]


def test_first_come_takes_those_that_crossed_first():
    pool = pool_of([0.5, 0.9, 0.5, 0.01], [1, 2, 3, 4], steps=np.array([30, 20, 10, 0]))
    assert picks_of(FirstCome(threshold_eV_per_A=0.1), pool, 2)[0] == [2, 1]


def test_dpgen_takes_any_frame_inside_its_window_of_raw_deviations():
    deviation = np.array([0.01, 0.06, 0.1, 0.19, 0.2, 5.0])
    pool = pool_of(np.zeros(6), np.arange(6), deviation_eV_per_A=deviation)
    hits = Counter()
    for seed in range(300):
        choice = DpGen(threshold_eV_per_A=0.05, high_eV_per_A=0.2)(pool, 1, np.random.default_rng(seed))
        hits.update(pick.index for pick in choice.picks)
    assert set(hits) == {1, 2, 3}
    assert all(60 < count < 140 for count in hits.values())  # 100 ± 8, five of these
    assert choice.rejected[0] == "below-threshold"
    assert choice.rejected[4] == choice.rejected[5] == "above-window"


# ---- quotas, environments, test set


def test_a_source_gets_no_more_than_its_quota_and_leaves_the_rest_to_others():
    sources = ("md",) * 10 + ("reico",) * 10
    pool = pool_of([1.0] * 10 + [0.5] * 10, np.arange(20) * 10, sources=sources)
    options = {"threshold_eV_per_A": 0.1, **NOT_RANDOM}
    free, _ = picks_of(CalibratedError(**options), pool, 10)
    assert all(i < 10 for i in free[:5])
    bought, rejected = picks_of(CalibratedError(quota={"md": 0.3}, **options), pool, 10)
    assert Counter(sources[i] for i in bought) == {"md": 3, "reico": 7}
    assert "quota of md" in rejected.values()
    none, _ = picks_of(CalibratedError(quota={"md": 0.3, "reico": 0.0}, **options), pool, 10)
    assert Counter(sources[i] for i in none) == {"md": 3}  # what nobody may claim stays unspent


def test_recycled_failures_are_bought_under_their_quota_although_their_error_is_the_largest():
    reasons = ("failed",) * 10 + ("crossed",) * 10
    pool = pool_of([5.0] * 10 + [0.5] * 10, np.arange(20) * 10, reasons=reasons)
    selector = CalibratedError(threshold_eV_per_A=0.1, quota={"failed": 0.1}, **NOT_RANDOM)
    bought, _ = picks_of(selector, pool, 10)
    assert Counter(reasons[i] for i in bought) == {"failed": 1, "crossed": 9}


def test_a_quota_does_not_touch_the_random_slice():
    pool = pool_of(np.ones(20), np.arange(20) * 10)
    selector = CalibratedError(threshold_eV_per_A=0.1, random_fraction=0.5, quota={"md": 0.0})
    chance, _ = picks_of(selector, pool, 10, why="random")
    assert len(chance) == 5
    assert picks_of(selector, pool, 10)[0] == []


def test_frames_with_rare_environments_are_bought_even_below_the_threshold():
    environments = (*(frozenset({"C4CH"}) for _ in range(9)), frozenset({"C4CH", "H0"}))
    pool = pool_of(
        [0.5] * 9 + [0.01],
        np.arange(10) * 10,
        environments=environments,
        train_environments={"C4CH": 50},
    )
    selector = CalibratedError(threshold_eV_per_A=0.1, coverage=0.5, **NOT_RANDOM)
    rare, _ = picks_of(selector, pool, 4, why="coverage")
    assert rare == [9]  # one is all there is: the rest of the share goes to large errors
    assert len(picks_of(selector, pool, 4)[0]) == 3
    known = replace(pool, train_environments={"C4CH": 50, "H0": 5})
    assert picks_of(selector, known, 4, why="coverage")[0] == []


def test_a_copy_of_a_test_frame_is_never_bought_not_even_at_random():
    pool = pool_of(np.ones(4), [1.0, 20.0, 30.0, 40.0], test_features=np.array([[20.0], [60.0], [90.0]]))
    for seed in range(20):
        choice = CalibratedError(threshold_eV_per_A=0.1)(pool, 4, np.random.default_rng(seed))
        assert choice.rejected[1] == "near-test"


def test_shares_outside_of_zero_and_one_are_refused():
    for wrong in ({"quota": {"md": 1.5}}, {"coverage": -0.1}, {"random_fraction": 2}):
        with pytest.raises(PolicyError, match=r"between 0 and 1|random_fraction"):
            Limits(**wrong)


def test_environments_tell_bonds_apart_and_do_not_count_thermal_motion():
    methanol = molecule("CH3OH")
    kinds = atom_environments(methanol)
    assert Counter(kinds) == {"C4HO": 1, "O2CH": 1, "H1C": 3, "H1O": 1}
    rng = np.random.default_rng(0)
    for _ in range(20):  # 0.04 Å is what light atoms do at room temperature
        moved = methanol.copy()
        moved.positions += rng.normal(0, 0.04, moved.positions.shape)
        assert atom_environments(moved) == kinds
    copper = bulk("Cu", cubic=True).repeat(2)
    assert set(atom_environments(copper)) == {"Cu12Cu"}
    counts = count_frames(frame_environments([methanol, copper, copper]))
    assert counts["Cu12Cu"] == 2
    assert atom_environments(Atoms()) == []


# ---- value per cost


def test_every_fidelity_choice_keeps_the_laws():
    for make in (Fixed, ValuePerCost, lambda: ValuePerCost(exponent=0.3)):
        testing.check_fidelity_choice(make)


def two_levels(rho, *, ratio=100.0, cheap=1, dear=1):
    return [
        Level("xtb", 0, cheap, 1.0, rho, pairs=50),
        Level("dft", 0, dear, ratio, 1.0, pairs=50),
    ]


@pytest.mark.parametrize("rho", [0.7, 0.9, 0.99])
def test_from_nothing_the_shares_are_those_of_multi_fidelity_monte_carlo(rho):
    shares = ValuePerCost()(two_levels(rho), target="dft", budget_cpu_s=3e5).labels
    # the dear structure pays for its cheap label too, hence 101 and not 100
    expected = np.sqrt(101 * rho**2 / (1 - rho**2))
    assert shares["xtb"] / shares["dft"] == pytest.approx(expected, rel=0.03)  # whole numbers, 101 for 100
    assert shares["xtb"] + 100 * shares["dft"] == pytest.approx(3e5, abs=101)


def test_what_is_there_already_is_counted():
    bare = ValuePerCost()(two_levels(0.9), target="dft", budget_cpu_s=2000).labels
    cheap = ValuePerCost()(two_levels(0.9, cheap=5000, dear=20), target="dft", budget_cpu_s=2000).labels
    assert cheap["dft"] > bare["dft"]
    assert cheap["xtb"] == cheap["dft"]  # only pairs


def test_a_level_that_knows_nothing_of_the_target_is_not_bought():
    levels = two_levels(0.0)
    shares = ValuePerCost()(levels, target="dft", budget_cpu_s=1000).labels
    assert shares == {"xtb": 0, "dft": 10}
    dear_and_bad = [replace(levels[0], correlation=0.9, cpu_s_per_label=200.0), levels[1]]
    found = ValuePerCost()(dear_and_bad, target="dft", budget_cpu_s=1000)
    assert found.labels == {"xtb": 0, "dft": 10}
    assert "xtb costs more" in found.note


def test_a_quarter_of_the_planned_target_labels_is_bought_however_good_the_cheap_level_looks():
    xtb, dft = two_levels(0.9999, ratio=2.0, cheap=30, dear=14)
    planned = [xtb, replace(dft, per_round=6)]
    assert ValuePerCost()([xtb, dft], target="dft", budget_cpu_s=20).labels["dft"] == 0
    found = ValuePerCost()(planned, target="dft", budget_cpu_s=20)
    assert found.labels == {"xtb": 16, "dft": 2}  # 2 pairs at 3 CPU s, the rest at 1
    assert ValuePerCost()(planned, target="dft", budget_cpu_s=2.9).labels == {"xtb": 2, "dft": 0}


def test_until_pairs_and_costs_are_known_the_plan_stands():
    few = [replace(two_levels(0.9)[0], pairs=3, per_round=40), replace(two_levels(0.9)[1], per_round=4)]
    found = ValuePerCost()(few, target="dft", budget_cpu_s=None)
    assert found.labels == {"xtb": 40, "dft": 4}
    assert "3 pairs of xtb and dft, 8 are needed" in found.note


def test_a_fixed_plan_is_shortened_to_the_budget():
    levels = [replace(one, per_round=n) for one, n in zip(two_levels(0.9), (100, 10), strict=True)]
    assert Fixed()(levels, target="dft", budget_cpu_s=None).labels == {"xtb": 100, "dft": 10}
    half = Fixed()(levels, target="dft", budget_cpu_s=550)
    assert half.labels == {"xtb": 50, "dft": 5}
    assert "50% of the plan" in half.note


def test_the_correlation_of_forces_is_about_zero():
    forces = np.random.default_rng(1).normal(size=(50, 3))
    assert force_correlation(2 * forces, forces) == pytest.approx(1)
    assert force_correlation(-forces, forces) == pytest.approx(-1)
    assert np.isnan(force_correlation(0 * forces, forces))
