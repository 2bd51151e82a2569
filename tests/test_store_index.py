"""Which rows count, and where they are found: the index against one that looks at row after row."""

import random
import time
from pathlib import Path

import numpy as np
import pytest
from store_helpers import fill, hydrogen, label_of, told

from alchemy.errors import StoreError
from alchemy.identity import structure_uid
from alchemy.store import EventRow, RetractionRow, SplitRow, Store, StructureColumns
from alchemy.store.derived import is_derived
from alchemy.store.filesystem import FileSystem
from alchemy.store.ids import begins, id_bytes
from alchemy.store.index import Index, current
from alchemy.store.layout import Dataset, Image, build_image
from alchemy.store.segment import Segment


def reference(commits):
    """Row after row: a retraction hides what came before, an ok label gives way to nothing else."""
    labels, parts, births = {}, {}, {}
    for number, commit in enumerate(commits):
        for target in commit["retractions"]:
            labels.pop(target.target, None)
        for row in commit["labels"]:
            if row.key not in labels or labels[row.key].status != "ok":
                labels[row.key] = row
        parts |= {row.structure_uid: row.part for row in commit["splits"]}
        for event in commit["events"]:
            births.setdefault(event.structure_uid, (number, event.round))
    return labels, parts, births


def random_commits(rng, n):
    atoms = [hydrogen(i) for i in range(6)]
    known = {}
    for number in range(n):
        commit = {"structures": [rng.choice(atoms)], "labels": [], "retractions": [], "splits": []}
        uid = structure_uid(commit["structures"][0])
        commit["events"] = [EventRow(uid, "candidate", round=number, time=0.0)]
        if rng.random() < 0.7:
            status = rng.choice(["ok", "ok", "failed"])
            commit["labels"] = [label_of(commit["structures"][0], status=status, energy=float(number))]
        if known and rng.random() < 0.3:
            key = rng.choice(sorted(known))
            if known[key]:
                commit["retractions"], known[key] = [RetractionRow(key, "wrong", 0.0)], False
        if rng.random() < 0.4:
            commit["splits"] = [SplitRow(uid, rng.choice(["train", "test"]), 0.0)]
        known |= {row.key: True for row in commit["labels"]}
        yield commit


@pytest.mark.parametrize("seed", range(4))
def test_what_counts_is_what_a_row_by_row_reading_says_at_every_commit_however_it_is_merged(tmp_path, seed):
    rng, store, done = random.Random(seed), Store(tmp_path / "store.h5", durability="nofsync"), []
    for commit in random_commits(rng, 24):
        before = store.snapshot().last
        if store.append(**commit) > before:
            done.append(commit)
        if rng.random() < 0.15:
            store.compact(full=rng.random() < 0.5)
    for last in range(len(done)):
        view = Store(store.path).snapshot(as_of=last)
        labels, parts, births = reference(done[: last + 1])
        assert {row.key: row.energy_eV for row in view.labels(status=None)} == {
            key: row.energy_eV for key, row in labels.items()
        }
        assert view.label_states(labels) == {key: row.status == "ok" for key, row in labels.items()}
        assert view.part_of() == parts
        table = view.select("", rows="structures", columns=["uid", "split", "round"])
        rows = {row["uid"]: (row["split"], row["round"]) for row in table.rows()}
        assert rows == {uid: (parts.get(uid), births[uid][1]) for uid in view.uids()}
        joined = view.select("count('H') == 1", rows="labels", columns=["energy"])
        assert sorted(joined.columns["energy"]) == sorted(row.energy_eV for row in labels.values())


def test_a_structure_that_two_writers_added_counts_once_and_the_first_one(tmp_path):
    stores = [Store(tmp_path / name) for name in ("a.h5", "b.h5")]
    frames = [hydrogen(i) for i in range(4)]
    for store, chosen in zip(stores, (frames[:3], frames[1:]), strict=True):
        store.append(structures=chosen, labels=[label_of(a) for a in chosen])
    late = stores[1].directory / "c0000000000.h5"
    (stores[0].directory / "c0000000001.h5").write_bytes(late.read_bytes())
    for compacted in (False, True):
        view = Store(stores[0].path).snapshot()
        assert view.uids() == [structure_uid(a) for a in frames]
        assert (len(view), view.count("n_atoms == 1"), view.count("energy < 0")) == (4, 4, 4)
        assert len(view.select("volume is None and energy < 0").uids) == 4
        if not compacted:
            stores[0].compact()


def test_ids_that_agree_in_eight_bytes_are_told_apart(tmp_path):
    twins = id_bytes(["ab" * 8 + "00" * 8, "ab" * 8 + "11" * 8, "cd" * 16])
    (tmp_path / "one.h5").write_bytes(build_image({"/labels/uid": Dataset(twins, "1", "ids")}, kind="commit"))
    index = Index().more([("one", Segment(FileSystem(), tmp_path / "one.h5"), 0)])
    assert index.repeated("/labels/uid").tolist() == [0, 1]
    ok, raw, nothing = np.ones(3, bool), np.arange(3), np.zeros(0, np.int64)
    assert current(twins, ok, raw, twins[:0], nothing).all()
    assert current(twins, ok, raw, twins[1:2], np.array([3])).tolist() == [True, False, True]
    assert begins(twins, "AB" * 8 + "1").tolist() == [False, True, False]
    assert begins(twins, "xy").tolist() == begins(twins, "").tolist() == [False] * 3


def test_what_is_derived_is_checked_and_its_damage_loses_no_row(tmp_path):
    store = Store(tmp_path / "store.h5")
    fill(store)
    store.compact()
    store.path.unlink()
    truth = told(store.snapshot())
    (path,) = store.directory.glob("m*.h5")
    segment = Segment(FileSystem(), path)
    derived = [name for name in segment.paths() if is_derived(name)]
    assert {"/structures/uid_order", "/labels/uid_order", "/labels/structure_row", "/labels/max_force"} <= {
        *derived
    }
    for name in derived:
        datasets = {
            other: Dataset(segment[other] + 1 if other == name else segment[other], "1", "x")
            for other in segment.paths()
            if not other.startswith(("/integrity/", "/index"))
        }
        image = Image(datasets, kind="merged", lo=0, hi=7)
        path.unlink()
        path.write_bytes(b"".join(data for _, data in sorted(image.pieces())))
        assert any(f"{name}: does not follow" in problem for problem in store.check()), (name, store.check())
    del datasets[derived[-1]]
    bare = {name: data for name, data in datasets.items() if not is_derived(name)}
    path.unlink()
    path.write_bytes(b"".join(data for _, data in sorted(Image(bare, kind="merged", lo=0, hi=7).pieces())))
    assert told(Store(store.path).snapshot()) == truth, "files without it say the same"


def test_an_abbreviated_uid_finds_structures_and_their_labels(tmp_path):
    store = Store(tmp_path / "store.h5")
    atoms = hydrogen(1)
    row = label_of(atoms)
    store.append(structures=[atoms, hydrogen(2)], labels=[row])
    view, uid = store.snapshot(), structure_uid(atoms)
    assert view.uids_beginning(uid[:9].upper()) == view.uids_beginning(row.key[:9]) == [uid]
    assert view.uids_beginning("g") == []
    assert view.select(f"uid == '{uid}'").uids == [uid]
    assert view.count(f"key == '{row.key}' and uid is not None") == 1
    assert view.count(f"uid != '{uid}'", rows="structures") == 1
    nothing = view.select(f"uid == '{uid[:9]}'")
    assert (len(nothing), nothing.matched) == (0, 0)
    assert "32 hex digits are needed" in nothing.notes[0]
    with pytest.raises(StoreError, match="has no structure 'abc'"):
        view.structures([uid, "abc"])


def test_rows_beyond_the_limit_are_counted_and_not_read(tmp_path):
    store = Store(tmp_path / "store.h5")
    store.append(structures=[hydrogen(i) for i in range(9)])
    table = store.snapshot().select("n_atoms == 1", limit=2)
    assert (len(table), table.matched) == (2, 9)


@pytest.mark.slow
def test_a_query_of_a_hundred_thousand_rows_takes_milliseconds(tmp_path):
    """15 ms is a tenth of what a million rows may take; ten times that for a machine that is busy."""
    store = Store(tmp_path / "store.h5", durability="nofsync")
    for k in range(20):
        frames = [hydrogen(i, k) for i in range(5000)]
        store.append(structures=frames, labels=[label_of(a) for a in frames])
    store.compact()
    start = time.process_time()
    view = Store(store.path).snapshot()
    assert view.count("fidelity == 'pbe' and max_force > 0 and 'H' in elements") == 100_000
    assert time.process_time() - start < 0.15


def mapped_kB(folder):
    """Pages of files in a folder that this process has in memory."""
    found, own = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if not line.split(" ", 1)[0].endswith(":"):
            own = str(folder) in line
        elif own and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_a_query_of_several_files_leaves_none_of_them_in_memory(tmp_path, monkeypatch):
    """The kernel maps 2 MB for each byte looked at: 300 MB for 32 files of 15 MB, measured."""
    monkeypatch.setattr("alchemy.store.segment.READ_WHOLE", 0)
    for number in range(3):
        store = Store(tmp_path / "store.h5", durability="nofsync")  # a new one: it has pages of its own
        sizes = np.full(2000, 5)
        positions = np.random.default_rng(number).normal(size=(10_000, 3))
        store.append(structures=StructureColumns(sizes, np.full(10_000, 29), positions))
    view = Store(store.path).snapshot()
    (opened := np.asarray(view.raw.column("structures", "cell"))).sum()
    assert len(opened) == 6000
    assert view.count("'Cu' in elements and n_atoms == 5") == 6000
    del store
    assert mapped_kB(tmp_path) == 0
