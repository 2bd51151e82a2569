"""`alchemy data`: what users ask of a store, bring into it and take out of it; and their mistakes."""

import json
import os

import pytest
from ase.build import molecule
from store_helpers import hydrogen, label_of, same, water

from alchemy.errors import InputError, StoreError
from alchemy.identity import structure_uid
from alchemy.store import RetractionRow, Store, merge_into


def test_query_counts_sorts_explains_and_looks_back(run, filled):
    path = filled.path
    assert run("data", "query", path, "'H' in elements", "--count")[1] == "3\n"
    code, out, _ = run("data", "query", path, "energy < 0", "--sort", "-energy", "--limit", "1", "--json")
    assert (code, len(json.loads(out))) == (0, 1)
    assert run("data", "query", path, "--as-of", "0", "--count")[1] == "1\n"
    out = run("data", "query", path, "fidelity == 'gfn2' and n_atoms > 1", "--explain")[1]
    assert "rows: labels; 1 of 3 match" in out
    assert "reads fidelity: level of theory" in out
    assert "c0000000002.h5" in out
    out = run("data", "query", path, "fidelity == 'gfn'")[1]
    assert "no row has fidelity 'gfn'; did you mean 'gfn2'? there are" in out
    code, _, err = run("data", "query", path, "--as-of", "99")
    assert (code, "no commit 99; the last one is 7" in err) == (3, True)


def test_show_tells_a_structure_its_labels_and_its_history(run, filled, monkeypatch):
    uid = filled.snapshot().uids()[1]
    row = filled.snapshot().labels(uids=[uid])[0]
    code, out, _ = run("data", "show", filled.path, uid[:6])
    assert code == 0
    assert "Pd4" in out
    assert f"label {row.key[:8]} gfn2 ok: -1.500000 eV; forces, dipole, q" in out
    assert "part: train" in out
    document = json.loads(run("data", "show", filled.path, row.key[:10], "--json")[1])
    assert document["uid"] == uid
    assert document["arrays"]["tags"] == [1, 2, 3, 4]
    shown = []
    monkeypatch.setattr("ase.visualize.view", shown.append)
    assert run("data", "show", filled.path, uid, "--view")[0] == 0
    assert structure_uid(shown[0]) == uid
    code, _, err = run("data", "show", filled.path, "zz")
    assert (code, "no structure or label begins with 'zz'" in err) == (2, True)


def test_stats_count_levels_elements_and_rounds(run, filled, tmp_path):
    plot = tmp_path / "labels.png"
    code, out, _ = run("data", "stats", filled.path, "--plot", plot, "--json")
    facts = json.loads(out)
    assert (code, plot.stat().st_size > 1000) == (0, True)
    assert {row["fidelity"]: (row["labels"], row["failed"]) for row in facts["fidelity"]} == {
        "gfn2": (1, 0),
        "pbe": (1, 0),
        "é2": (0, 1),
    }
    assert [row["element"] for row in facts["element"]] == ["H", "O", "Pd"]
    assert "per fidelity" in run("data", "stats", filled.path, "fidelity == 'pbe'")[1]
    assert run("data", "stats", filled.path, "--plot", "nowhere/x.png")[0] == 2


def test_check_repair_and_compact_from_the_command_line(run, filled):
    path = filled.path
    code, out, _ = run("data", "check", path)
    assert (code, ": sound; 4 structures, 4 labels" in out) == (0, True)
    victim = filled.directory / "c0000000003.h5"
    victim.chmod(0o644)
    victim.write_bytes(victim.read_bytes()[:5000])
    code, out, _ = run("data", "check", path)
    assert (code, "c0000000003.h5: header: 5000 bytes" in out) == (2, True)
    assert "'alchemy data repair" in out
    code, _, err = run("data", "query", path)
    assert (code, "c0000000003.h5" in err) == (2, True)
    code, out, _ = run("data", "repair", path)
    assert (code, "replaced: c0000000003.h5" in out, "report: " in out) == (0, True, True)
    assert run("data", "repair", path)[1] == "nothing to repair\n"
    code, out, _ = run("data", "compact", path)
    assert (code, out) == (0, "8 files merged into 1, 8 removed\n")
    assert run("data", "compact", path)[1] == "nothing to merge\n"
    assert json.loads(run("data", "check", path, "--json")[1])["files"] == 1


def test_log_diff_and_merge_from_the_command_line(run, filled, tmp_path):
    out = run("data", "log", filled.path, "--limit", "2")[1]
    assert [line.split()[0] for line in out.splitlines()] == ["commit", "7", "6"]
    out = run("data", "diff", filled.path, "--since", "1")[1]
    assert out.splitlines()[1].split() == ["structures", "2", "0", "0"]
    assert run("data", "diff", filled.path)[0] == 2
    target = tmp_path / "all.h5"
    code, out, err = run("data", "merge", target, filled.path)
    assert (code, "4 structures, 3 labels" in out) == (0, True), err
    assert "nothing new" in run("data", "merge", target, filled.path)[1]
    document = json.loads(run("data", "diff", filled.path, target, "--json")[1])
    assert not any(own[kind] for own in document.values() for kind in ("added", "removed", "changed"))
    store = Store(target)
    row = store.snapshot().labels()[0]
    store.append(retractions=[RetractionRow(row.key, "x", 0.0)])
    store.append(labels=[type(row)(**{**vars(row), "energy_eV": 9.0})])
    assert f"kept: label {row.key}" in run("data", "merge", target, filled.path)[1]


def test_paths_that_are_no_store_say_what_they_are(run, tmp_path):
    (tmp_path / "x.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(9000))
    (tmp_path / "folder").mkdir()
    for words in (["query"], ["check"], ["compact"], ["log"]):
        code, out, err = run("data", *words, tmp_path / "x.h5")
        assert (code, "not a store segment" in out + err) == (2, True), words
    for path in ("nowhere.h5", tmp_path / "folder", tmp_path / "none.yaml"):
        code, _, err = run("data", "query", path)
        assert (code, str(path) in err) == (2, True)
    assert (tmp_path / "x.h5").stat().st_size == 9008
    assert sorted(os.listdir(tmp_path)) == ["folder", "x.h5"]


def test_a_store_of_a_newer_alchemy_is_left_alone(run, store, monkeypatch):
    monkeypatch.setattr("alchemy.store.layout.FORMAT_VERSION", "2.0")
    store.append(structures=[water()])
    monkeypatch.undo()
    before = {p.name: p.read_bytes() for p in store.directory.iterdir()}
    for words in (["query"], ["check"], ["compact"], ["repair"], ["log"]):
        code, out, err = run("data", *words, store.path)
        assert code in (2, 3)
        assert "format 2.0 is newer than the 1.2 of this alchemy; upgrade" in out + err, words
    after = {p.name: p.read_bytes() for p in store.directory.iterdir() if p.name.endswith(".h5")}
    assert after == before


def test_labels_of_another_physics_cannot_enter_a_level_of_a_store(store):
    """Same level name, other physics: refused at once, at an append and before a merge writes anything."""
    atoms = molecule("H2O")
    one = label_of(atoms, energy=-1.0)
    two = label_of(atoms, energy=-2.0, key="e" * 32, fingerprint="e" * 32)
    Store(store.path).append(structures=[atoms], labels=[one])
    with pytest.raises(StoreError, match=f"'{one.fidelity}': labels of other physics"):
        Store(store.path).append(structures=[atoms, hydrogen(1)], labels=[two])
    view = store.snapshot()
    assert len(view) == 1
    assert same(view.label(one.key), one)
    other = Store(store.path.with_name("other.h5"))
    other.append(structures=[atoms, hydrogen(1)], labels=[two])
    with pytest.raises(InputError, match="a level is one physics, so that nothing was merged"):
        merge_into(store, other.snapshot())
    assert len(store.snapshot()) == 1
    store.append(retractions=[RetractionRow(one.key, "wrong basis", 0.0)])
    merge_into(store, other.snapshot())  # what was withdrawn binds nobody
    assert same(store.snapshot().label(two.key), two)
