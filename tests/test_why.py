"""What a campaign decided and would have: why, whatif, select, and the record they stand on."""

from __future__ import annotations

import json
from dataclasses import fields

import numpy as np
import pytest
from alchemy_policies import testing
from ase.io import read, write
from user_campaign import campaign_folder, edited

from alchemy import reasons
from alchemy.cli import main
from alchemy.config_select import Select
from alchemy.selection import divide, make_selector, pool_bytes, read_pool
from alchemy.store import EventRow, Store


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A campaign of two rounds that has run to its end."""
    folder = campaign_folder(tmp_path_factory.mktemp("why"))
    edited(folder, "walkers: 1", "walkers: 3, sample_every: 4")
    edited(folder, "{per_round: 2, random: 0.5", "{per_round: 3, random: 0.4, quota: {sampled: 0.4}")
    edited(folder, "rounds: 1", "rounds: 2")
    assert main(["run", str(folder)]) == 0
    return folder


def said(capsys, *words):
    """What a command prints, as JSON."""
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_pool_is_read_back_as_it_was_written(tmp_path):
    pool = testing.random_pool(np.random.default_rng(0))
    (tmp_path / "pool.npz").write_bytes(pool_bytes(pool, {"seed": 3}))
    found, facts = read_pool(tmp_path / "pool.npz")
    assert facts == {"seed": 3}
    for field in fields(pool):
        before, after = getattr(pool, field.name), getattr(found, field.name)
        assert np.array_equal(before, after) if isinstance(before, np.ndarray) else before == after


def test_with_unchanged_settings_whatif_repeats_what_happened(done, capsys):
    answers = said(capsys, "whatif", str(done))
    assert [answer["round"] for answer in answers] == [1, 2]
    snapshot = Store(done / "copper" / "store.h5").snapshot()
    for answer in answers:
        bought = {e.structure_uid for e in snapshot.events(kind="selected", round=answer["round"])}
        assert set(answer["kept"]) == bought
        assert not answer["dropped"] and not answer["added"]
        rejected = [e.reason for e in snapshot.events(kind="rejected", round=answer["round"])]
        assert answer["would"]["rejected"] == {r: rejected.count(r) for r in set(rejected)}


def test_whatif_shows_what_other_settings_would_have_bought_and_changes_nothing(done, capsys):
    before = Store(done / "copper" / "store.h5").snapshot().last
    first = ("whatif", str(done), "--round", "1")
    (answer,) = said(capsys, *first, "--set", "per_round=1", "--set", "random=0.0")
    assert answer["would"]["frames"] == 1 < answer["was"]["frames"]
    (none,) = said(capsys, *first, "--set", "threshold='40 eV/A'", "--set", "random=0")
    assert none["would"]["frames"] == 0
    assert {frame["reason"] for frame in none["dropped"]} == {"below-threshold"}
    (other,) = said(capsys, *first, "--set", "method=lcmd")
    assert "recorded invariants" in other["notes"][0]
    assert main(["whatif", str(done), "--set", "method=random", "--frames"]) == 0
    assert "would be" in capsys.readouterr().out
    assert Store(done / "copper" / "store.h5").snapshot().last == before


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("tresh=1", "did you mean 'threshold'"),
        ("threshold=20", "bare number"),
        ("threshold", "KEY=VALUE"),
        ("method=lcmdd", "did you mean 'lcmd'"),
        ("cost_per_round='1 h'", "not replayed"),
    ],
)
def test_a_wrong_setting_is_refused_with_a_hint(done, capsys, setting, message):
    assert main(["whatif", str(done), "--set", setting]) == 2
    assert message in capsys.readouterr().err


def test_why_answers_for_every_frame_of_the_store(done, capsys):
    snapshot = Store(done / "copper" / "store.h5").snapshot()
    for uid in snapshot.uids():
        text = "\n".join(said(capsys, "why", str(done), uid)["text"])
        kinds = {e.kind for e in snapshot.events() if e.structure_uid == uid}
        assert ("selected for" in text or "selected in" in text) == ("selected" in kinds)
        assert ("not selected:" in text) == ("rejected" in kinds)
        if kinds & {"selected", "rejected"}:
            assert "expected force error" in text and "threshold 1 meV/Å" in text
            assert "(Cu)" in text  # the atom that the members differ on
    one = snapshot.events(kind="selected")[0].structure_uid
    row = next(r for r in snapshot.labels() if r.structure_uid == one)
    by_key = said(capsys, "why", str(done), f"job:{row.key[:16]}")
    assert by_key["about"] == one
    assert by_key["labels"][0]["key"] == row.key


def test_a_saddle_is_no_word_of_code_and_has_no_temperature():
    found = {"round": 1, "step": 20, "temperature_K": 0.0, "time": 0.0}
    offered = EventRow("1a2b", "candidate", sampler="ts", reason="saddle", **found)
    (line,) = reasons._event(None, None, offered)
    assert line == "round 1: offered by ts (saddle) at step 20"
    assert "label says whether the model is right" in reasons.WORDS[offered.reason]


def test_why_stop_names_the_rule_and_what_every_round_measured(done, capsys):
    answer = said(capsys, "why", str(done), "stop")
    assert answer["stop"]["rule"] == "rounds"
    assert "2 rounds, 2 were planned (exit code 0, done)" in answer["text"][0]
    assert "force RMSE in meV/Å: test" in answer["text"][1]
    assert "worst element Cu" in answer["text"][1]


def test_why_says_when_there_is_no_such_thing(done, capsys):
    assert main(["why", str(done), "zzz"]) == 2
    assert "no structure and no label" in capsys.readouterr().err
    assert main(["why", str(done), "frame:"]) == 2


def test_frames_of_a_file_are_selected_by_a_committee_alone(done, tmp_path, capsys):
    snapshot = Store(done / "copper" / "store.h5").snapshot()
    known = snapshot.structures([r.structure_uid for r in snapshot.labels()])
    known = [atoms for atoms in known if len(atoms) > 1]
    pool = []
    for n in range(6):
        atoms = known[0].copy()
        atoms.rattle(0.02 * (n + 1), seed=n)
        pool.append(atoms)
    write(tmp_path / "pool.xyz", [*pool, pool[3], known[0]])
    write(tmp_path / "train.xyz", known)
    out = tmp_path / "next.xyz"
    words = ["select", str(tmp_path / "pool.xyz"), "--models", str(done / "copper" / "final"), "--count", "3"]
    words += ["--train", str(tmp_path / "train.xyz"), "--out", str(out)]
    for method in ("calibrated", "lcmd", "farthest_point"):
        answer = said(capsys, *words, "--method", method, "--set", "dedup=0.0")
        rows = answer["frames"]
        assert len(rows) == 8
        chosen = sorted((row["rank"], row["frame"]) for row in rows if row["rank"])
        assert [rank for rank, _ in chosen] == [1, 2, 3]
        assert rows[6]["reason"] == "near-duplicate"  # it stands in the file twice
        assert rows[7]["reason"] == "near-duplicate"  # trained on
        written = read(out, ":")
        assert [atoms.info["selected_for"] for atoms in written] == [rows[f]["reason"] for _, f in chosen]
        for (_, frame), atoms in zip(chosen, written, strict=True):
            np.testing.assert_allclose(atoms.positions, pool[frame].positions, atol=1e-7)  # 8 digits
    assert main([*words[:-1], str(out), "--set", "threshold='90 eV/A'", "--set", "random=0"]) == 5
    assert main(["select", str(out), "--models", str(tmp_path), "--count", "1"]) == 2
    assert "a committee needs two or more" in capsys.readouterr().err


def test_a_cheaper_level_gets_the_pairs_and_what_is_left():
    pool = testing.random_pool(np.random.default_rng(2))
    selector = make_selector(Select(per_round={"pbe": 4}, threshold="1 meV/A"))
    seeds = {"pbe": 1, "xtb": 2}
    bought, rejected = divide(pool, selector, {"pbe": 4, "xtb": 10}, order=["pbe", "xtb"], seeds=seeds)
    both = [one for one in bought if one.fidelities == ("pbe", "xtb")]
    assert len(both) == 4
    assert sum("xtb" in one.fidelities for one in bought) == 10
    assert {one.uid for one in bought} | set(rejected) == set(pool.uids)
    assert not {one.uid for one in bought} & set(rejected)
    nothing, left = divide(pool, selector, {"pbe": 0, "xtb": 0}, order=["pbe", "xtb"], seeds=seeds)
    assert not nothing and set(left.values()) == {"budget"}


def test_a_round_without_candidates_buys_nothing_and_is_recorded(tmp_path):
    empty = testing.random_pool(np.random.default_rng(0), frames=0)
    (tmp_path / "pool.npz").write_bytes(pool_bytes(empty, {}))
    found, _ = read_pool(tmp_path / "pool.npz")
    for method in ("calibrated", "lcmd", "dpgen", "first_come", "random"):
        selector = make_selector(Select(method=method, per_round={"pbe": 4}))
        assert divide(found, selector, {"pbe": 4}, order=["pbe"], seeds={"pbe": 1}) == ([], {})
