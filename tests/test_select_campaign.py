"""Selection, held-out parts and stop rules as a campaign file asks for them."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from alchemy_policies.diversity import Lcmd
from alchemy_policies.fidelity_choice import Level
from alchemy_policies.goals import AllGoals
from alchemy_policies.selectors import CalibratedError, DpGen
from ase.io import read, write
from demo_campaign import GOOD, demo_folder
from user_campaign import campaign_folder, edited

from alchemy.campaign import run_campaign
from alchemy.config import load_campaign, load_campaign_text
from alchemy.config_explain import explain
from alchemy.config_select import OPTIONS_OF_BLOCK, READS, Select
from alchemy.errors import ConfigError, InputError
from alchemy.plugins import find, installed
from alchemy.records import read_json
from alchemy.selection import OPTIONS, make_selector
from alchemy.stages import pool as pool_stage
from alchemy.state import Home, RoundState
from alchemy.stopping import nothing_new, stop_rules
from alchemy.store import Store


def loaded(folder, old="", new=""):
    return load_campaign_text(GOOD.replace(old, new), "c.yaml", demo_folder(folder))


# ---- the select block


def test_what_a_method_reads_is_what_its_class_takes():
    for method, names in READS.items():
        options = {OPTIONS[name] for name in names}
        made = make_selector(Select(method=method, per_round={"pbe": 1}))
        assert options == {field.name for field in fields(made)}
    assert set(READS) == set(installed("selectors"))
    assert set(OPTIONS) == set(OPTIONS_OF_BLOCK)


def test_options_reach_every_selector_of_ours(tmp_path):
    block = "{method: lcmd, threshold: 20 meV/A, error_power: 0.5, quota: {md: 0.5}, energy_spread: 4.0}"
    made = make_selector(loaded(tmp_path, "{per_round: 5}", block).select)
    wanted = Lcmd(threshold_eV_per_A=0.02, error_power=0.5, quota={"md": 0.5}, energy_spread_factor=4.0)
    assert made == wanted
    deaf = make_selector(loaded(tmp_path, "{per_round: 5}", "{coverage: 0.2, energy_spread: null}").select)
    assert deaf == CalibratedError(threshold_eV_per_A=0.05, quota={"failed": 0.1}, coverage=0.2)
    made = make_selector(loaded(tmp_path, "{per_round: 5}", "{method: dpgen, high: 300 meV/A}").select)
    assert made == DpGen(high_eV_per_A=0.3)
    default = make_selector(loaded(tmp_path).select)
    ours = {"quota": {"failed": 0.1}, "energy_spread_factor": 10.0}
    assert default == CalibratedError(threshold_eV_per_A=0.05, **ours)


class Greedy:
    """Another package's selector."""

    def __init__(self, *, threshold_eV_per_A: float, least: int = 3) -> None:
        if least < 0:
            raise ValueError("least must not be negative")
        self.known = (threshold_eV_per_A, least)


def test_another_packages_selector_gets_shared_and_own_options(monkeypatch):
    monkeypatch.setattr("alchemy.selection.find", lambda kind, name: Greedy)
    block = {"per_round": {"pbe": 1}, "threshold": "10 meV/A"}
    own = Select.model_validate(block).model_copy(update={"method": "greedy", "options": {"least": 5}})
    assert make_selector(own).known == (0.01, 5)
    wrong = own.model_copy(update={"options": {"leest": 5}})
    with pytest.raises(InputError, match=r"select.leest: greedy has no such option; did you mean 'least'"):
        make_selector(wrong)
    with pytest.raises(InputError, match="must not be negative"):
        make_selector(own.model_copy(update={"options": {"least": -1}}))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("{method: first_come, dedup: 0.5}", "select.dedup: has no effect: method first_come does not"),
        ("{method: random, threshold: 1 eV/A}", "select.threshold: has no effect"),
        ("{error_power: 1}", "only max_dist, lcmd"),
        ("{treshold: 1 eV/A}", "select.treshold: unknown key; did you mean 'threshold'"),
        ("{quota: {md: 1.5}}", "select.quota.md: found 1.5; must be at most 1"),
        ("{fidelity_choice: value_per_cots}", "no such choice of fidelity; did you mean 'value_per_cost'"),
        ("{cost_per_round: 5}", "a bare number"),
    ],
)
def test_mistakes_in_the_select_block_are_named(tmp_path, block, message):
    with pytest.raises(ConfigError) as error:
        loaded(tmp_path, "{per_round: 5}", block)
    assert message in str(error.value)


def test_the_resolved_file_reads_back_equal_with_every_new_key(tmp_path):
    text = GOOD.replace("{per_round: 5}", "{method: max_dist, quota: {md: 0.5}, cost_per_round: 2 h}")
    stop = "rounds: 2, coverage: 0.05, barrier_mae: 50 meV, cost: 40 h, stalled: 3"
    text = text.replace("rounds: 2", stop)
    text = text.replace("explore:", "holdout: {by: composition}\nexplore:")
    first = load_campaign_text(text, "c.yaml", demo_folder(tmp_path))
    again = load_campaign_text(explain(first), "c.yaml", tmp_path)
    assert again == first


# ---- stop rules


def test_goals_stand_together_and_limits_alone(tmp_path):
    asked = "rounds: 2, force_rmse: 50 meV/A, element_rmse: 80 meV/A, coverage: 0.05, barrier_mae: 0.1 eV"
    campaign = loaded(tmp_path, "rounds: 2", asked + ", candidate_fraction: 0.05, cost: 1 h, stalled: 3")
    rules = stop_rules(campaign)
    assert [type(rule).__name__ for rule in rules] == [
        "AllGoals", "LabelCount", "LabelCost", "WallTime", "ModelLimited", "Stalled", "Rounds",
    ]  # fmt: skip
    assert isinstance(rules[0], AllGoals) and len(rules[0].goals) == 5
    assert all(find("stops", name) for name in installed("stops"))


def test_a_round_that_buys_nothing_says_whether_nothing_was_offered_or_why_it_was_left(tmp_path):
    state = RoundState(Home(tmp_path), 1)
    state.facts = {"explore": {"candidates": 0}}
    assert "the explorers offered no structure" in nothing_new(state).message
    rejected = {"near-duplicate": 2, "below-threshold": 1}
    state.facts = {"explore": {"candidates": 3}, "select": {"rejected": rejected}}
    assert "(3 candidates: 1 below-threshold, 2 near-duplicate)" in nothing_new(state).message


# ---- campaigns


def test_a_campaign_selects_in_readout_gradients_and_measures_what_the_rules_need(tmp_path):
    folder = campaign_folder(tmp_path)
    edited(folder, "{per_round: 2, random: 0.5", "{method: lcmd, per_round: 3, random: 0.4")
    edited(folder, "walkers: 1", "walkers: 2, sample_every: 4")
    edited(folder, "{rounds: 1}", "{rounds: 5, candidate_fraction: 0.9, coverage: 0.8, stalled: 4}")
    path = edited(folder, "explore:", "holdout: {by: frame, fraction: 0.25, near: 0.0}\nexplore:")
    outcome = run_campaign(load_campaign(Path(path)), folder / "copper", until=1)
    home = outcome.home
    gradients = sorted(p.name for p in home.round(1).glob("score-candidates-gradients-*.npz"))
    assert gradients
    facts = read_json(home.round(1) / "round.json")
    assert facts["select"]["shares"]["labels"] == {"emt": 3}
    assert facts["train"]["force_rmse_eV_per_A"] > 0
    random = facts["fresh"]["emt"]["random"]
    assert set(random["element_force_rmse_eV_per_A"]) == {"Cu"}
    assert random["element_force_rmse_eV_per_A"]["Cu"] == pytest.approx(random["force_rmse_eV_per_A"])
    assert 0 <= random["coverage_90"] <= 1
    parts = list(Store(home.store).snapshot().part_of().values())
    assert parts.count("test") == 3  # two of the test block and one of four start structures
    assert "stop" in RoundState(home, 1).outputs("assess")


def test_a_holdout_keeps_trajectories_whole_and_copies_of_test_structures_out_of_training(tmp_path):
    folder = campaign_folder(tmp_path)
    cell = read(folder / "cu.xyz")
    frames = []
    for name in ("a", "b", "c"):
        base = cell.copy()
        base.rattle(0.1, seed=ord(name))
        for n in range(4):
            atoms = base.copy()
            atoms.positions += 0.02 * np.random.default_rng(n).normal(size=atoms.positions.shape)
            atoms.info["trajectory"] = name
            frames.append(atoms)
    write(folder / "walks.xyz", frames)
    write(folder / "test.xyz", frames[4])  # of walk b: its copy in the start block may not be trained on
    edited(folder, "rattle: {structures: cu.xyz, count: 4, stdev: 0.05 A}", "files: {path: walks.xyz}")
    edited(folder, "rattle: {structures: cu.xyz, count: 2, stdev: 0.08 A}", "files: {path: test.xyz}")
    path = edited(folder, "explore:", "holdout: {by: trajectory, fraction: 0.34, near: 0.001}\nexplore:")
    outcome = run_campaign(load_campaign(Path(path)), folder / "copper", until=0)
    snapshot = Store(outcome.home.store).snapshot()
    parts = snapshot.part_of()
    of_walk: dict[str, list[str]] = {}
    for uid in snapshot.uids():
        positions = snapshot.structure(uid).positions
        for n, atoms in enumerate(frames):
            if len(atoms) == len(positions) and np.abs(atoms.positions - positions).max() < 1e-6:
                of_walk.setdefault("abc"[n // 4], []).append(parts[uid])
    assert sorted(map(len, of_walk.values())) == [4, 4, 4]
    whole = [set(found) for walk, found in of_walk.items() if walk != "b"]
    assert all(len(found) == 1 for found in whole)
    assert {"test"} in [set(found) for found in of_walk.values()]
    broken = edited(folder, "by: trajectory, fraction: 0.34, near: 0.001", "by: composition, near: 0.001")
    with pytest.raises(InputError, match=r"holdout: by composition, .*one label"):
        run_campaign(load_campaign(Path(broken)), folder / "other", until=0)


def test_shares_stay_within_the_limits_of_the_campaign(tmp_path, monkeypatch):
    levels = [Level("cheap", 20, 10, 1.0, 0.95, pairs=20), Level("dear", 4, 8, 10.0, 1.0, pairs=20)]
    monkeypatch.setattr(pool_stage, "measured_levels", lambda context: levels)

    class Asked:
        target = "dear"
        open_pairs = ()
        campaign = loaded(tmp_path, "{per_round: 5}", "{per_round: {cheap: 20, dear: 4}}")

    assert pool_stage.shares(Asked()).labels == {"cheap": 20, "dear": 4}
    block = "{fidelity_choice: value_per_cost, cost_per_round: 100 s}"
    Asked.campaign = loaded(tmp_path, "{per_round: 5}", block)
    found = pool_stage.shares(Asked())
    assert found.labels["cheap"] + 10 * found.labels["dear"] <= 100
    assert found.labels["cheap"] > found.labels["dear"] > 0
    assert "cheap ρ 0.950 at 1 CPU s" in found.note
    levels[1] = replace(levels[1], labels=39)  # of the 40 that stop.labels allows
    assert pool_stage.shares(Asked()).labels["dear"] <= 1


def test_value_per_cost_divides_a_round_by_what_the_labels_of_the_campaign_say(tmp_path):
    folder = campaign_folder(tmp_path)
    lj = "  lj: {labeler: ase, calculator: ase.calculators.lj.LennardJones, arguments: {sigma: 2.3}}"
    edited(folder, "fidelities:\n", f"fidelities:\n{lj}\n")
    old = "count: 4, stdev: 0.05 A}\n    label: {emt: all}"
    edited(folder, old, "count: 9, stdev: 0.05 A}\n    label: [lj, emt]")
    edited(folder, "walkers: 1", "walkers: 3, sample_every: 2")
    block = "{per_round: {lj: 4, emt: 2}, fidelity_choice: value_per_cost, random: 0.5, threshold: 1 meV/A}"
    path = edited(folder, "{per_round: 2, random: 0.5, threshold: 1 meV/A}", block)
    outcome = run_campaign(load_campaign(Path(path)), folder / "copper", until=1)
    facts = read_json(outcome.home.round(1) / "round.json")["select"]
    shares = facts["shares"]
    assert "value per cost: lj ρ" in shares["note"] or "costs more" in shares["note"]
    assert shares["expected_cpu_s"] > 0
    bought = [f for picked in facts["picked"] for f in picked["fidelities"]]
    assert all(bought.count(name) <= shares["labels"][name] for name in shares["labels"])
