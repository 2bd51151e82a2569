"""Labels of a campaign judged by further labels, near frames, the committee and the code's version."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from alchemy_policies.calibration import Calibration, ElementCalibration
from emt_campaign import write_campaign

from alchemy.campaign import run_campaign
from alchemy.cli import main
from alchemy.config import load_campaign
from alchemy.datasets import CHECK, counts, rows_of, total_labels
from alchemy.errors import EnvironmentProblemError, InputError
from alchemy.quarantine import quarantine, quarantined, release
from alchemy.stages import trust
from alchemy.state import Home, RoundState
from alchemy.status import render_status, status
from alchemy.store import Store


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Round 0 of the miniature campaign with a block `trust` and a fault of its EMT: (home, its facts)."""

    def call(block, *, fault="", edit=("", ""), **more):
        monkeypatch.setenv("TRUST_FAULT", fault)
        path = write_campaign(tmp_path, calculator="trust_calculators.FaultyEMT")
        text = path.read_text().replace("stop: {rounds: 2}", f"trust: {block}\nstop: {{rounds: 2}}")
        path.write_text(text.replace(*edit))
        home = Home(tmp_path / "mini")
        run_campaign(load_campaign(path), home.path, until=0, **more)
        return home, RoundState(home, 0).facts

    return call


ALL = "{force_every: 2, repeat_every: 3}"


def test_right_labels_pass_and_their_checks_are_counted_and_never_trained_on(started):
    home, facts = started(ALL)
    found = facts["trust"]["emt"]
    assert (found["force_checks"], found["repeats"], found["quarantined"]) == (3, 2, {})  # of 7 labels
    # central difference over 2 × 0.01 Å: h²/6 times the third derivative, some 100 eV/Å³
    assert found["force_gap_eV_per_A"] < 5e-3
    assert found["label_noise_eV_per_A"] == 0.0
    view = Store(home.store).snapshot()
    assert list(view.part_of().values()).count(CHECK) == 6
    assert len(rows_of(view, "train", ["emt"])) == 5
    assert total_labels(counts(view, ["emt"])) == {"emt": 7}, "neither checks nor repeats use up a budget"
    assert facts["label"]["emt"]["ok"] == 8
    (row,) = status(home.path)["trust"]
    assert (row["force_checks"], row["repeats"]) == (3, 2)
    assert "3 force checks" in str(render_status(status(home.path)).renderables[0].caption)


def test_one_wrong_force_is_set_aside_with_its_reason_and_not_computed_again(started):
    home, facts = started("{force_every: 1, repeat_every: null}", fault="one-sign")
    reasons = facts["trust"]["emt"]["quarantined"]
    assert list(reasons) == [trust.FORCE]
    view = Store(home.store).snapshot()
    aside = quarantined(view)
    assert len(aside) == reasons[trust.FORCE] > 0
    assert all(row.forces_eV_per_A is not None for row in aside), "the numbers stay"
    trained = {row.key for row in rows_of(view, "train", ["emt"])}
    assert not trained & {row.key for row in aside}
    assert facts["label"]["emt"]["failed"] == reasons
    assert any("most likely the opposite sign" in f.message for f in view.failures())
    before = view.last
    started("{force_every: 1, repeat_every: null}", fault="one-sign")
    assert Store(home.store).snapshot().last == before


def test_a_level_whose_forces_have_the_wrong_sign_ends_the_campaign(started):
    with pytest.raises(EnvironmentProblemError, match=r"none of 7 checked labels .* opposite sign"):
        started("{force_every: 1, repeat_every: null}", fault="sign")


def test_near_frames_betray_a_wrong_unit_without_a_single_further_label(started):
    """Rattled by a twentieth of an ångström, frames are near enough for the trapezoid rule."""
    edit = ("count: 5, stdev: 0.08 A", "count: 12, stdev: 0.02 A")
    with pytest.raises(EnvironmentProblemError, match=r"energies in Ha.*contradict themselves"):
        started("{force_every: null, repeat_every: null}", fault="hartree", edit=edit)
    off = "{force_every: null, repeat_every: null, neighbours: false}"
    home, _ = started(off, fault="hartree", edit=edit)
    assert CHECK not in Store(home.store).snapshot().part_of().values()


def test_noise_of_labels_is_measured_and_is_no_reason_to_doubt_one(started):
    """0.05 eV/Å per component, less the mean over 4 atoms: 0.043."""
    _, facts = started("{force_every: null, repeat_every: 1}", fault="noise")
    found = facts["trust"]["emt"]
    assert (found["repeats"], found["quarantined"]) == (7, {})
    # 7 × 12 pairs of components: the standard deviation is known to a tenth
    assert found["label_noise_eV_per_A"] == pytest.approx(0.05 * np.sqrt(0.75), rel=0.35)


def test_another_version_of_the_program_asks_to_be_accepted_once(started, monkeypatch):
    home, _ = started(ALL)
    before = json.loads(home.facts.read_text())["accepted_codes"]["emt"]
    monkeypatch.setattr("alchemy.labelers.ase_calculator.AseLabeler.code", lambda self: "emt 2.0")
    with pytest.raises(InputError, match=r"now with emt 2\.0; .*--accept-code-version"):
        started(ALL)
    started(ALL, accept_code=True)
    started(ALL)
    assert json.loads(home.facts.read_text())["accepted_codes"]["emt"] == [*before, "emt 2.0"]


def test_the_gate_of_a_level_has_limits_of_its_own(started):
    edit = ("target: true}", "target: true, gate: {max_force: 1 meV/A}}")
    with pytest.raises(EnvironmentProblemError, match="force-too-large"):
        started(ALL, edit=edit)


def test_a_checked_direction_has_much_of_the_forces_and_something_of_everything():
    rng = np.random.default_rng(0)
    forces = rng.normal(size=(20, 3))
    forces[7] = 0.0
    for _ in range(20):
        along = trust.direction(forces, rng)
        assert np.linalg.norm(along) == pytest.approx(1.0)
        share = (along * forces).sum() / np.linalg.norm(forces)
        assert share > 0.5, "halfway between two directions that are nearly orthogonal: 0.71"
        assert np.abs(along[7]).max() > 0
    still = trust.direction(np.zeros((2, 3)), rng)
    assert np.isfinite(still).all()


def scores(error, n_atoms=4):
    """A committee that expects 0.05 eV/Å, and labels off by `error` from it."""
    forces = [np.full((n_atoms, 3), e / np.sqrt(3)) for e in error]
    return SimpleNamespace(
        mean_forces_eV_per_A=forces, force_spread_eV_per_A=[np.full(n_atoms, 0.05)] * len(error),
        per_structure=lambda values: values,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("error", "frames", "suspect"),
    [
        ([0.05, 0.04, 0.06, 0.9], 50, [3]),  # 18 times the expected error, the others once
        ([0.05, 0.04, 0.06, 0.3], 50, []),  # 6 times
        ([0.5, 0.6, 0.55, 0.9], 50, []),  # all are far off: the committee is wrong, not the label
        ([0.05, 0.04, 0.06, 0.9], 5, []),  # a calibration on five frames may not doubt anybody
    ],
)
def test_a_label_is_suspect_where_a_committee_is_right_about_the_others(
    monkeypatch, error, frames, suspect
):
    pooled = ElementCalibration(1.0, 2.0, 4 * frames, frames, pooled=True)
    zero = [SimpleNamespace(forces_eV_per_A=np.zeros((4, 3)), atoms=SimpleNamespace(numbers=np.full(4, 29)))]
    monkeypatch.setattr(trust, "labelled", lambda snapshot, rows: zero * len(rows))
    context = SimpleNamespace(
        campaign=SimpleNamespace(trust=SimpleNamespace(suspect=8.0)),
        target="emt",
        store=SimpleNamespace(snapshot=lambda: None),
        score=lambda *args, **options: scores(error),
    )
    rows = [SimpleNamespace(structure_uid=str(n)) for n in range(len(error))]
    calibration = Calibration({}, pooled, "")
    found = trust._suspects(context, SimpleNamespace(number=1), rows, "emt", calibration)
    assert found == [str(n) for n in suspect]


def test_a_doubted_label_comes_back_as_it_was_when_it_is_released(started):
    home, _ = started("{force_every: null, repeat_every: null}")
    store = Store(home.store)
    (row, *_) = rows_of(store.snapshot(), "train", ["emt"])
    assert quarantine(store, {row.key: ("suspect", "far from the committee")}) == [row.key]
    assert quarantine(store, {row.key: ("suspect", "again")}) == [], "it is set aside already"
    assert store.snapshot().label(row.key).status == "suspect"
    with pytest.raises(InputError, match="not 'ok'"):
        quarantine(store, {row.key: ("ok", "")})
    assert release(store, [row.key, "0" * 32]) == [row.key]
    again = store.snapshot().label(row.key)
    assert again.status == "ok"
    np.testing.assert_array_equal(again.forces_eV_per_A, row.forces_eV_per_A)
    assert quarantined(store.snapshot()) == []


def test_the_command_release_gives_back_by_key_or_reason_and_lists_without(started, capsys):
    home, _ = started("{force_every: null, repeat_every: null}")
    store = Store(home.store)
    rows = rows_of(store.snapshot(), "train", ["emt"])
    doubts = [("suspect", "far off"), ("suspect", "far off"), ("energy-outlier", "too low")]
    quarantine(store, {row.key: why for row, why in zip(rows, doubts, strict=False)})

    def told(*words):
        code = main(["data", "release", str(home.path), *words])
        said = capsys.readouterr()
        return code, said.out + said.err

    code, said = told()
    assert code == 0 and said.count("suspect") == 2 and "energy-outlier" in said
    assert len(quarantined(store.snapshot())) == 3, "a list changes nothing"
    assert told(rows[0].key[:10]) == (0, "released: 1 label, 2 still set aside\n")
    code, said = told(rows[0].key)
    assert code == 2 and "2 labels in quarantine" in said and "is none of them" in said
    code, said = told("--reason", "energy-outlyer")
    assert code == 2 and "did you mean 'energy-outlier'?" in said
    assert told("--reason", "energy-outlier", rows[1].key) == (0, "released: 2 labels, 0 still set aside\n")
    assert told() == (0, "no label is in quarantine\n")
    assert {row.status for row in store.snapshot().labels(keys=[r.key for r in rows])} == {"ok"}


def test_limits_of_a_gate_are_written_with_units_and_read_back_as_they_are(tmp_path):
    from alchemy.config import load_campaign_text
    from alchemy.config_explain import explain
    from alchemy.errors import ConfigError

    text = write_campaign(tmp_path).read_text()
    good = text.replace("target: true}", "target: true, gate: {net_force: 5 meV/A, max_force: null}}")
    campaign = load_campaign_text(good, "x", tmp_path)
    limits = campaign.fidelities["emt"].gate.limits()
    assert limits["net_force_eV_per_A_per_atom"] == 0.005
    assert limits["max_force_eV_per_A"] is None
    assert load_campaign_text(explain(campaign), "x", tmp_path) == campaign
    for wrong, words in (("{net_force: 5}", "a bare number"), ("{netforce: 1 eV/A}", "net_force")):
        bad = text.replace("target: true}", f"target: true, gate: {wrong}}}")
        with pytest.raises(ConfigError, match=words):
            load_campaign_text(bad, "x", tmp_path)
