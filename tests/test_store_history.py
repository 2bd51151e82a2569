"""What happened to a store, how two views differ, and one store into another."""

import shutil

import numpy as np
import pytest
from store_helpers import fill, hydrogen, label_of, same, told, water

from alchemy.errors import InputError, StoreError
from alchemy.identity import structure_uid
from alchemy.store import (
    EventRow,
    PropertySpec,
    RetractionRow,
    SplitRow,
    Store,
    diff,
    log,
    merge_into,
)


@pytest.fixture
def other(tmp_path):
    (tmp_path / "other").mkdir()
    return Store(tmp_path / "other" / "store.h5", durability="nofsync")


def test_the_log_says_what_each_commit_brought(store):
    fill(store)
    history = log(store)
    assert [c.number for c in history] == list(range(8))
    assert history[0].rows == {"structures": 1, "labels": 1, "events": 1}
    assert history[6].rows == {"retractions": 1}
    assert all("alchemy" in c.by for c in history)
    assert [c.time for c in history] == sorted(c.time for c in history)


def test_a_diff_names_what_came_went_and_changed(store):
    fill(store)
    same_view = diff(store.snapshot(), store.snapshot())
    assert not any(same_view.values())
    changes = diff(store.snapshot(as_of=1), store.snapshot())
    assert len(changes["structures"].added) == 2
    assert len(changes["labels"].removed) == 1, "a retraction"
    assert len(changes["labels"].added) == 3
    assert changes["splits"].changed == [store.snapshot().uids()[1]]
    assert changes["registry"].added == ["m"]
    before = store.snapshot()
    row = next(r for r in before.labels())
    store.append(retractions=[RetractionRow(row.key, "", 0.0)])
    store.append(labels=[type(row)(**{**vars(row), "energy_eV": 7.0})])
    assert diff(before, store.snapshot())["labels"].changed == [row.key]


def test_a_store_merged_into_an_empty_one_says_the_same(store, other):
    fill(store)
    merge_into(other, store.snapshot())
    theirs, ours = told(store.snapshot()), told(other.snapshot())
    assert sorted(theirs[1]) == sorted(ours[1])
    assert theirs[4:6] == ours[4:6]
    assert not any(diff(store.snapshot(), other.snapshot()).values())
    labels = zip(store.snapshot().labels(status=None), other.snapshot().labels(status=None), strict=True)
    assert all(same(a, b) for a, b in labels)
    last = other.snapshot().last
    again = merge_into(other, store.snapshot())
    assert (set(again.added.values()), other.snapshot().last) == ({0}, last), "twice is as good as once"


def test_where_two_stores_disagree_the_target_stays_and_says_so(store, other):
    atoms = water()
    uid = structure_uid(atoms)
    mine = label_of(atoms, energy=-1.0)
    failed = label_of(atoms, "ccsd", status="scf", energy=None, forces_eV_per_A=None)
    store.append(structures=[atoms], labels=[mine, failed], splits=[SplitRow(uid, "train", 0.0)])
    gone = label_of(atoms, "hf")
    store.append(labels=[gone])
    store.append(retractions=[RetractionRow(gone.key, "wrong", 0.0)])
    good = label_of(atoms, "ccsd", energy=-5.0)
    theirs = [label_of(atoms, energy=-2.0), good, gone]
    other.append(structures=[atoms, hydrogen(1)], labels=theirs, splits=[SplitRow(uid, "test", 0.0)])
    other.append(events=[EventRow(uid, "start", time=0.0)])
    result = merge_into(store, other.snapshot())
    view = store.snapshot()
    assert view.label(mine.key).energy_eV == -1.0
    assert view.label(good.key).energy_eV == -5.0, "a good label replaces a failed one"
    assert view.label(gone.key) is None, "a retracted label does not come back"
    assert view.part_of() == {uid: "train"}
    assert len(result.kept) == 2
    assert f"label {mine.key}" in result.kept[0]
    assert "split 'train'" in result.kept[1]
    assert len(view) == 2
    assert len(view.events()) == 1


def test_copies_that_went_different_ways_are_merged(store, other):
    store.append(structures=[water()])
    shutil.copytree(store.directory, other.directory)
    store.append(structures=[hydrogen(1)])
    other.append(structures=[hydrogen(2)])
    assert merge_into(store, other.snapshot()).added["structures"] == 1
    assert len(store.snapshot()) == 3


def test_a_store_is_not_merged_into_itself_nor_in_other_units(store, other):
    store.append(structures=[water()])
    store.compact()
    with pytest.raises(InputError, match="the same store"):
        merge_into(store, Store(store.path).snapshot())
    tensors = {"q": np.ones(3)}
    for target, unit in ((store, "e*A"), (other, "D")):
        target.append(
            structures=[water()],
            labels=[label_of(water(), unit[0], properties=tensors)],
            quantities={"q": PropertySpec("structure", (3,), unit, "")},
        )
    last = store.snapshot().last
    with pytest.raises(StoreError, match=r"'q' is .* in D here but .* in e\*A in the store; convert"):
        merge_into(store, other.snapshot())
    assert store.snapshot().last == last
