"""The second veto: what the members' energies say where their forces agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from alchemy_policies.base import PolicyError
from alchemy_policies.diversity import Lcmd, MaxDist
from alchemy_policies.energy_spread import FLOOR_eV_per_atom, energy_spread_limit, energy_spread_per_atom
from alchemy_policies.selectors import CalibratedError
from alchemy_policies.testing import check_selector
from md_scripts import LABEL, Scripted, crowd, explore, options
from test_selection import NOT_RANDOM, picks_of, pool_of
from user_campaign import campaign_folder, edited

from alchemy.campaign import run_campaign
from alchemy.config import load_campaign
from alchemy.reasons import why
from alchemy.records import read_json
from alchemy.store import Store
from tace.prediction import CommitteePrediction

WARY = {"threshold_eV_per_A": 0.1, "energy_spread_factor": 10.0}


class Torn(Scripted):
    """Walkers whose members' energies differ by what the script says of the walker, forces as ever."""

    def __init__(self, homes, spread_at, script=lambda tag, call: {}):
        super().__init__(homes, script)
        self.spread_at = spread_at

    def __call__(self, frames):
        session, tags = super().__call__(frames), [atoms.info["charge"] for atoms in frames]

        def torn(positions_A, member_forces):
            said = session(positions_A, member_forces)
            gap = np.array([self.spread_at(self.calls[tag]) for tag in tags]) * said.n_atoms
            return replace(said, energies=said.energies + np.array([[1.0], [-1.0], [0.0]]) * gap)

        return torn


def pool_with(errors, spreads, usual=0.001, **more):
    return pool_of(
        errors,
        np.arange(len(errors)) * 10.0,
        energy_spread_eV_per_atom=np.array(spreads),
        train_energy_spread_eV_per_atom=np.full(5, usual),
        **more,
    )


@pytest.mark.parametrize(
    ("calls", "outcome", "offers"),
    [
        ((30,), "finished", [("survivor", 100)]),  # one check is noise here too
        ((30, 40), "label-stop", [("last-good", 20), ("energy-spread", 30)]),
        ((), "finished", [("survivor", 100)]),
    ],
)
def test_a_walk_whose_energies_part_while_its_forces_agree_is_stopped_for_a_label(calls, outcome, offers):
    starts, homes = crowd(1)
    factory = Torn(homes, lambda call: 0.05 if call in calls else 1e-4)
    found = explore(options(**LABEL, energy_spread_above_eV_per_atom=0.01), starts, factory)
    assert found.walkers[0].outcome == outcome
    assert [(c.reason, c.step) for c in found.candidates] == offers


def test_a_walk_is_not_watched_by_energies_unless_asked():
    starts, homes = crowd(1)
    found = explore(options(**LABEL), starts, Torn(homes, lambda call: 5.0))
    assert found.walkers[0].outcome == "finished"


def test_forces_name_the_reason_where_both_object_and_the_first_frame_decides():
    starts, homes = crowd(1)
    explorer = options(**LABEL, energy_spread_above_eV_per_atom=0.01)

    def forces(first):
        return lambda tag, call: {"spread": 0.2 if call >= first else 0.01}

    for first, reason in ((30, "crossed"), (40, "energy-spread")):
        found = explore(explorer, starts, Torn(homes, lambda call: 0.05 * (call >= 30), forces(first)))
        assert [(c.reason, c.step) for c in found.candidates] == [("last-good", 20), (reason, 30)]


def test_the_limit_is_a_multiple_of_the_usual_spread_with_a_floor_and_nothing_where_nothing_is_known():
    usual = np.array([0.001, 0.003, 0.5])  # a median: one odd frame does not lift it
    assert energy_spread_limit(usual, 10.0) == pytest.approx(0.03)
    assert energy_spread_limit(np.append(usual, np.nan), 10.0) == pytest.approx(0.03)  # nor an undefined one
    assert energy_spread_limit(usual * 1e-6, 10.0) == FLOOR_eV_per_atom
    for nothing in (None, np.empty(0), np.full(3, np.nan)):
        assert energy_spread_limit(nothing, 10.0) == np.inf
    assert energy_spread_limit(usual, None) == np.inf


def test_a_supercell_of_the_same_structure_has_the_same_spread_per_atom():
    energies = np.array([[1.0], [1.1], [1.3]])
    one, eight = (
        CommitteePrediction(np.array([4 * n]), n * energies, np.zeros((4 * n, 3))) for n in (1, 8)
    )
    np.testing.assert_allclose(energy_spread_per_atom(eight), energy_spread_per_atom(one), rtol=1e-12)


@pytest.mark.parametrize("selector", [CalibratedError, MaxDist, Lcmd])
def test_a_frame_with_sure_forces_and_torn_energies_is_bought_and_that_is_the_reason(selector):
    pool = pool_with([0.5, 0.01, 0.01, 0.01], [0.0, 0.05, 0.002, 0.3])
    torn, rejected = picks_of(selector(**WARY, **NOT_RANDOM), pool, 10, why="energy-spread")
    assert torn == [3]  # a tenth of the budget, the farthest out
    assert rejected[1] == rejected[2] == "below-threshold"
    both = picks_of(selector(**WARY, **NOT_RANDOM), pool, 20, why="energy-spread")[0]
    assert both == [3, 1]
    deaf = selector(threshold_eV_per_A=0.1, **NOT_RANDOM)
    assert picks_of(deaf, pool, 20, why="energy-spread")[0] == []


def test_the_veto_leaves_what_is_bought_for_its_forces_to_them():
    pool = pool_with([0.5, 0.4, 0.3], [0.9, 0.9, 0.9])
    choice = CalibratedError(**WARY, **NOT_RANDOM)(pool, 3, np.random.default_rng(0))
    assert [pick.why for pick in choice.picks] == ["error"] * 3


def test_a_veto_takes_no_near_duplicate_and_keeps_the_budget():
    twins = pool_of(
        [0.01] * 4, [0.0, 0.0, 30.0, 60.0], train=[[-10.0], [-20.0]],
        energy_spread_eV_per_atom=np.array([0.4, 0.5, 0.3, 0.2]),
        train_energy_spread_eV_per_atom=np.full(2, 0.001),
    )  # fmt: skip
    choice = CalibratedError(**WARY, random_fraction=0.0)(twins, 40, np.random.default_rng(0))
    assert [pick.index for pick in choice.picks] == [0, 2, 3]
    assert choice.rejected[1] == "near-duplicate"
    check_selector(lambda: CalibratedError(**WARY))


def test_a_campaign_stops_walks_and_buys_labels_for_energies_and_says_so(tmp_path):
    folder = campaign_folder(tmp_path)
    walks = "stop_md: {label_above: 50 eV/A, abort_above: 99 eV/A, energy_spread: 1e-9}\nselect:"
    edited(folder, "select:", walks)
    edited(folder, "time: 40 fs", "time: 80 fs")  # two checks after the grace
    chosen = "random: 0, threshold: 50 eV/A, energy_spread: 1e-9"
    path = edited(folder, "random: 0.5, threshold: 1 meV/A", chosen)
    home = run_campaign(load_campaign(Path(path)), folder / "copper", until=1).home
    facts = read_json(home.round(1) / "round.json")
    # five steps of training leave the members far more than the floor apart
    assert facts["explore"]["energy_spread_above_eV_per_atom"] == FLOOR_eV_per_atom
    assert facts["explore"]["outcomes"] == {"label-stop": 1}
    bought = [pick["uid"] for pick in facts["select"]["picked"] if pick["why"] == "energy-spread"]
    assert bought
    met = [e for e in Store(home.store).snapshot().events(kind="candidate") if e.reason == "energy-spread"]
    assert {e.structure_uid for e in met} & set(bought)
    said = "\n".join(why(home, bought[0])["lines"])
    assert "disagree on its energy" in said and "the members' energies spread by" in said


def test_senseless_limits_are_refused():
    for factor in (0.0, -1.0, float("nan")):
        with pytest.raises(PolicyError, match="energy_spread_factor"):
            CalibratedError(threshold_eV_per_A=0.1, energy_spread_factor=factor)
    with pytest.raises(PolicyError, match="energy_spread_above"):
        options(energy_spread_above_eV_per_atom=0.0)
