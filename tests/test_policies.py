"""Selectors and stop rules: the laws of their protocols, and what each of ours does beyond them."""

import re
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import alchemy_policies
import numpy as np
import pytest
from alchemy_policies import testing
from alchemy_policies.base import Choice, Pick, PolicyError, Pool, StopReason
from alchemy_policies.diversity import FarthestPoint, Lcmd, MaxDist
from alchemy_policies.selectors import CalibratedError, DpGen, FirstCome, Random
from alchemy_policies.stops import FreshForceRmse, LabelCount, Rounds, WallTime
from hypothesis import given, settings
from hypothesis import strategies as st

from tace.errors import TaceError

SELECTORS = {
    "calibrated": lambda: CalibratedError(threshold_eV_per_A=0.1),
    "no slice": lambda: CalibratedError(threshold_eV_per_A=0.1, random_fraction=0.0),
    "no threshold": lambda: CalibratedError(threshold_eV_per_A=0.0, dedup_distance=0.0),
    "quotas": lambda: CalibratedError(
        threshold_eV_per_A=0.1, quota={"failed": 0.2, "md": 0.5}, coverage=0.3
    ),
    "random": Random,
    "max_dist": MaxDist,
    "max_dist by error": lambda: MaxDist(threshold_eV_per_A=0.1, error_power=1.0),
    "lcmd": Lcmd,
    "lcmd by error": lambda: Lcmd(threshold_eV_per_A=0.1, error_power=0.5, coverage=0.5),
    "farthest_point": FarthestPoint,
    "dpgen": DpGen,
    "first_come": FirstCome,
}


def pool_of(errors, features, *, train=(), forces=None):
    """A pool with one feature per frame; uids in order."""
    return Pool(
        uids=tuple(f"{n:032x}" for n in range(len(errors))),
        expected_error_eV_per_A=np.array(errors, dtype=float),
        features=np.array(features, dtype=float)[:, None],
        sources=("md",) * len(errors),
        max_force_eV_per_A=np.ones(len(errors)) if forces is None else np.array(forces, float),
        train_features=np.array(train, dtype=float)[:, None],
    )


def choose(selector, pool, budget, *, seed=0):
    return selector(pool, budget, np.random.default_rng(seed))


def picked(choice, why="error"):
    return [pick.index for pick in choice.picks if pick.why == why]


# ---- laws


@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_keeps_the_laws(name):
    for seed in range(5):
        testing.check_selector(SELECTORS[name], seed=seed)


@pytest.mark.parametrize("name", SELECTORS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_frame_is_accounted_for_whatever_the_pool_holds(name, data):
    """Ties, duplicates, NaN and infinity included: hypothesis draws from few values on purpose."""
    frames = data.draw(st.integers(0, 12))
    value = st.sampled_from([0.0, 0.1, 0.2, 1.0, np.nan, np.inf])
    errors = data.draw(st.lists(value, min_size=frames, max_size=frames))
    features = data.draw(st.lists(value, min_size=frames, max_size=frames))
    forces = data.draw(st.lists(value, min_size=frames, max_size=frames))
    train = data.draw(st.lists(st.sampled_from([0.0, 0.2, 3.0]), max_size=4))
    pool = pool_of(errors, features, train=train, forces=forces)
    budget = data.draw(st.integers(0, 15))
    choice = choose(SELECTORS[name](), pool, budget)
    testing.check_choice(choice, pool, budget)
    for pick in choice.picks:
        assert np.isfinite(pool.expected_error_eV_per_A[pick.index])
        assert np.isfinite(pool.features[pick.index]).all()
        assert not (pool.features[pick.index] == pool.train_features).any()


class Greedy:
    """Breaks the law that style.md §1 quotes: never looks at what is trained on."""

    def __call__(self, pool, budget, rng):
        order = np.argsort(-pool.expected_error_eV_per_A)
        picks = tuple(Pick(int(i), "error") for i in order[:budget])
        return Choice(picks, {int(i): "budget" for i in order[budget:]})


class Silent:
    def __call__(self, pool, budget, rng):
        return Choice((), {})


class Nervous:
    def __call__(self, pool, budget, rng):
        order = np.random.default_rng().permutation(len(pool.uids))
        picks = tuple(Pick(int(i), "random") for i in order[:budget])
        return Choice(picks, {int(i): "budget" for i in order[budget:]})


@pytest.mark.parametrize(
    ("broken", "law"), [(Greedy, "training"), (Silent, "reason"), (Nervous, "must")]
)
def test_the_contract_catches_a_selector_that_breaks_it(broken, law):
    with pytest.raises(AssertionError, match=law):
        testing.check_selector(broken)


# ---- CalibratedError


def test_the_worst_frames_are_bought_first_and_the_rest_knows_why():
    pool = pool_of(
        [0.5, 0.05, 0.9, 0.3, 0.7], [0, 10, 20, 30, 40], train=[5, 6], forces=[1, 1, 1, 1, 80]
    )
    choice = choose(CalibratedError(threshold_eV_per_A=0.1, random_fraction=0), pool, 2)
    assert picked(choice) == [2, 0]
    assert choice.rejected == {1: "below-threshold", 3: "budget", 4: "absurd-force"}


def test_of_two_frames_with_equal_error_the_more_novel_one_wins():
    pool = pool_of([0.5, 0.5, 0.01], [1.0, 9.0, 0.5], train=[0.0, 0.1])
    choice = choose(CalibratedError(threshold_eV_per_A=0.1, random_fraction=0), pool, 2)
    assert picked(choice) == [1, 0]


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e4])
def test_near_duplicates_are_bought_once_in_whatever_unit_the_features_are(unit):
    # training neighbours are 4 apart, so near means closer than 1
    pool = pool_of(
        [0.9, 0.7, 0.6, 0.6, 0.5],
        unit * np.array([50.0, 50.9, 52.0, 8.5, 30.0]),
        train=unit * np.array([0.0, 4.0, 8.0]),
    )
    choice = choose(CalibratedError(threshold_eV_per_A=0.1, random_fraction=0), pool, 5)
    assert choice.rejected == {1: "near-duplicate", 3: "near-duplicate"}
    assert set(picked(choice)) == {0, 2, 4}


def test_a_structure_trained_on_at_two_fidelities_does_not_change_what_is_near():
    pool = testing.random_pool(np.random.default_rng(4))
    twice = replace(pool, train_features=np.repeat(pool.train_features, 2, axis=0))
    selector = CalibratedError(threshold_eV_per_A=0.1, dedup_distance=1.0)
    choice = choose(selector, pool, 10)
    assert "near-duplicate" in choice.rejected.values()
    assert choose(selector, twice, 10) == choice


def test_without_training_frames_the_pool_sets_its_own_scale():
    pool = pool_of([0.9, 0.8, 0.7, 0.6], [0.0, 0.1, 10.0, 20.0])
    # nearest neighbours 0.1, 0.1, 9.9, 10: median 5, a quarter of it 1.25
    choice = choose(CalibratedError(threshold_eV_per_A=0.1, random_fraction=0), pool, 4)
    assert choice.rejected == {1: "near-duplicate"}


def test_budget_that_no_frame_deserves_stays_unspent_but_the_slice_is_bought():
    errors = np.full(30, 0.01)
    errors[3] = 0.5
    pool = pool_of(errors, np.arange(30) * 10, train=[-10, -20])
    choice = choose(CalibratedError(threshold_eV_per_A=0.1), pool, 20)
    assert len(picked(choice, "random")) == 2 and len(choice.picks) <= 3
    assert 3 in [pick.index for pick in choice.picks]


@pytest.mark.parametrize(
    ("budget", "fraction", "count"),
    [
        (0, 0.1, 0),
        (1, 0.1, 0),
        (1, 1.0, 0),
        (2, 0.1, 1),
        (10, 0.1, 1),
        (40, 0.1, 4),
        (5, 1.0, 5),
        (9, 0.0, 0),
    ],
)
def test_the_size_of_the_random_slice(budget, fraction, count):
    selector = CalibratedError(threshold_eV_per_A=0.1, random_fraction=fraction)
    assert selector.random_count(budget) == count


def test_the_random_slice_is_uniform_over_the_pool_below_the_threshold_and_absurd_ones_too():
    errors = np.array([0.01, 0.01, 0.5, 0.9, 2.0, 0.3])
    pool = pool_of(errors, np.arange(6) * 10.0, train=[-10, -20], forces=[1, 1, 1, 1, 90, 1])
    selector = CalibratedError(threshold_eV_per_A=0.1)
    hits = np.zeros(6)
    for seed in range(1200):
        hits[picked(choose(selector, pool, 3, seed=seed), "random")] += 1
    # 1200 draws of 1 in 6: 200 ± 13; four of these
    assert (abs(hits - 200) < 52).all() and hits.sum() == 1200


def test_exact_duplicates_are_not_even_bought_at_random():
    pool = pool_of([0.01, 0.01, 0.01], [5.0, 5.0, 0.0], train=[0.0])
    for seed in range(20):
        choice = choose(CalibratedError(threshold_eV_per_A=0.1), pool, 3, seed=seed)
        assert picked(choice, "random") == [0]
        assert choice.rejected == {1: "near-duplicate", 2: "near-duplicate"}


def test_a_pool_that_contradicts_itself_is_refused():
    good = testing.random_pool(np.random.default_rng(0))
    with pytest.raises(PolicyError, match="twice"):
        replace(good, uids=("a",) * 40)
    with pytest.raises(PolicyError, match="max_force"):
        replace(good, max_force_eV_per_A=np.ones(3))
    with pytest.raises(PolicyError, match="columns"):
        replace(good, train_features=np.ones((3, 2)))
    for wrong in ({"random_fraction": 1.5}, {"dedup_distance": -1}, {"max_force_eV_per_A": 0}):
        with pytest.raises(PolicyError):
            CalibratedError(threshold_eV_per_A=0.1, **wrong)
    assert issubclass(PolicyError, TaceError)


# ---- stop rules

HISTORY = testing.example_history()  # rounds 1 to 6; slice RMSE 0.4 0.2 0.1 0.05 0.025 0.0125


@pytest.mark.parametrize(
    "make_rule",
    [
        lambda: FreshForceRmse(0.06),
        lambda: FreshForceRmse(0.06, patience=3),
        lambda: LabelCount({"pbe": 30}),
        lambda: Rounds(3),
        lambda: WallTime(200.0),
    ],
)
def test_every_stop_rule_keeps_the_laws(make_rule):
    testing.check_stop_rule(make_rule)


@pytest.mark.parametrize(
    ("rule", "first", "exit_code"),
    [
        (FreshForceRmse(0.06), 4, 0),
        (FreshForceRmse(0.05), 4, 0),  # reaching it is meeting it
        (FreshForceRmse(0.06, patience=2), 5, 0),
        (FreshForceRmse(0.06, min_frames=6), 5, 0),  # the slice has five: all fresh labels count
        (FreshForceRmse(0.06, min_frames=11), None, None),
        (LabelCount({"pbe": 30}), 3, 0),
        (LabelCount({"pbe": 99, "gfn2": 150}), 2, 0),  # any of them
        (LabelCount({"ccsd": 1}), None, None),
        (Rounds(1), 1, 0),
        (Rounds(6), 6, 0),
        (Rounds(7), None, None),
        (WallTime(180.0), 3, 4),
        (WallTime(1e9), None, None),
    ],
)
def test_when_each_rule_stops_and_with_which_exit_code(rule, first, exit_code):
    reasons = [rule(HISTORY[: n + 1]) for n in range(len(HISTORY))]
    stopped = [n + 1 for n, reason in enumerate(reasons) if reason]
    if first is None:
        assert not stopped
        return
    assert stopped[0] == first
    assert reasons[first - 1].exit_code == exit_code


def test_the_rmse_rule_says_on_what_it_judged():
    def says(**changes):
        return FreshForceRmse(0.06)([replace(HISTORY[-1], **changes)])

    assert says() == StopReason(
        "force_rmse", "force RMSE 0.0125 ≤ 0.06 eV/Å on 5 fresh random pbe labels", 0
    )
    for frames in (1, None):
        assert (
            "all 10 fresh pbe labels (the random slice is too small)"
            in says(fresh_random_frames=frames).message
        )
    # a hard selected frame is no excuse once the slice is large enough, and none to go on without
    assert says(fresh_force_rmse_eV_per_A=9.0) is not None
    assert says(fresh_force_rmse_eV_per_A=9.0, fresh_random_frames=1) is None
    assert says(fresh_random_force_rmse_eV_per_A=float("nan")) is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: FreshForceRmse(0),
        lambda: FreshForceRmse(0.1, patience=0),
        lambda: LabelCount({}),
        lambda: LabelCount({"pbe": 0}),
        lambda: Rounds(0),
        lambda: WallTime(float("nan")),
    ],
)
def test_an_impossible_rule_is_refused(make):
    with pytest.raises(PolicyError):
        make()


# ---- the package


def test_the_public_names_are_exactly_those_of_the_package():
    for name in alchemy_policies.__all__:
        assert hasattr(alchemy_policies, name)
    assert list(alchemy_policies.__all__) == sorted(set(alchemy_policies.__all__))


def test_policies_load_neither_torch_nor_the_engine():
    code = (
        "import sys, alchemy_policies, alchemy_policies.testing;"
        "print([m for m in ('torch', 'alchemy', 'dask', 'h5py') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"


def test_the_policy_in_the_readme_keeps_the_laws():
    readme = (Path(__file__).parents[1] / "policies" / "README.md").read_text(encoding="utf-8")
    source = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)[0]
    module = types.ModuleType("my_policies")
    sys.modules["my_policies"] = module  # dataclass looks its module up
    try:
        exec(compile(source, "my_policies.py", "exec"), vars(module))
        testing.check_selector(module.Novel)
    finally:
        del sys.modules["my_policies"]
    assert len([line for line in source.splitlines() if line]) <= 25
