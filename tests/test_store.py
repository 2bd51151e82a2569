"""Laws of the store: what went in comes out, once."""

import pickle

import numpy as np
import pytest
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st
from store_helpers import commits, label_of, same, water

from alchemy.errors import StoreError
from alchemy.identity import structure_uid
from alchemy.store import EventRow, FailureRow, PredictionRow, RetractionRow, SplitRow, Store

number = st.floats(-1e6, 1e6, allow_nan=False)


word = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=8
)


@st.composite
def structures(draw):
    n = draw(st.integers(1, 4))
    grid = st.integers(-(10**10), 10**10).map(lambda i: i / 1e8)
    atoms = Atoms(
        numbers=draw(st.lists(st.integers(1, 118), min_size=n, max_size=n)),
        positions=np.reshape(draw(st.lists(grid, min_size=3 * n, max_size=3 * n)), (n, 3)),
        cell=np.reshape(draw(st.lists(grid, min_size=9, max_size=9)), (3, 3)),
        pbc=draw(st.tuples(st.booleans(), st.booleans(), st.booleans())),
    )
    if charge := draw(st.integers(-3, 3)):
        atoms.info["charge"] = charge
    if multiplicity := draw(st.integers(0, 4)):
        atoms.info["multiplicity"] = multiplicity
    return atoms


@st.composite
def labelled(draw):
    atoms = draw(structures())
    n = len(atoms)

    def array(*shape):
        size = int(np.prod(shape))
        return np.reshape(draw(st.lists(number, min_size=size, max_size=size)), shape)

    properties = {"dipole": array(3)} if draw(st.booleans()) else {}
    if draw(st.booleans()):
        properties["charges"] = array(n)
    row = label_of(
        atoms,
        draw(word),
        energy=draw(number),
        code=draw(word),
        forces_eV_per_A=array(n, 3) if draw(st.booleans()) else None,
        stress_eV_per_A3=array(6) if draw(st.booleans()) else None,
        replica=draw(st.integers(0, 3)),
        attempt=draw(st.integers(1, 9)),
        properties=properties,
    )
    return atoms, row


@settings(max_examples=25, deadline=None)
@given(pairs=st.lists(labelled(), min_size=1, max_size=4), message=st.text(max_size=30))
def test_rows_come_back_as_they_went_in(tmp_path_factory, pairs, message):
    path = tmp_path_factory.mktemp("store") / "store.h5"
    Store(path, durability="nofsync").append(
        structures=[atoms for atoms, _ in pairs], labels=[row for _, row in pairs]
    )
    failure = FailureRow("", "label", "pbe", "crashed", message, 2, 1.5)
    Store(path, durability="nofsync").append(failures=[failure])
    view = Store(path).snapshot()
    first = {}
    for atoms, row in pairs:
        uid = structure_uid(atoms)
        found = view.structure(uid)
        assert found == atoms
        assert found.info == atoms.info
        assert structure_uid(found) == uid, "a stored structure has the uid of the given one"
        assert same(first.setdefault(row.key, row), view.label(row.key))
    expected = message.encode(errors="backslashreplace").decode()
    assert view.failures()[0].message == expected
    assert Store(path).check() == []


def test_all_kinds_of_rows_come_back(store):
    atoms = water()
    uid = structure_uid(atoms)
    event = EventRow(uid, "candidate", sampler="md", round=3, step=7, temperature_K=300.0, time=1.0)
    bare = EventRow(uid, "selected", parent_uid=uid, time=2.0)
    spread = np.array([0.1, 0.2, 0.3], np.float32)
    prediction = PredictionRow(uid, "m1", "pbe", -1.0, 0.1, 0.3, spread)
    failure = FailureRow(uid, "label", "pbe", "scf", "line 1\nline 2\0", 1, 5.0)
    store.append(
        structures=[atoms],
        events=[event, bare],
        predictions=[prediction],
        failures=[failure],
        splits=[SplitRow(uid, "train", 1.0)],
        registry={"m1": {"members": 4}},
    )
    view = Store(store.path).snapshot()
    assert same(view.events()[0], event)
    assert same(view.events(kind="selected")[0], bare)
    assert same(view.events(round=3)[0], event)
    assert same(view.predictions("m1")[0], prediction)
    assert view.predictions("other") == []
    assert view.failures() == [failure]
    assert view.part_of() == {uid: "train"}
    assert view.registry() == {"m1": {"members": 4}}


def test_positions_are_snapped_and_the_uid_stays(store):
    atoms = water()
    atoms.positions += np.random.default_rng(0).normal(size=(3, 3))
    store.append(structures=[atoms])
    found = store.snapshot().structure(structure_uid(atoms))
    # half of the 1e-8 Å grid, and the rounding of a number of order 1
    np.testing.assert_allclose(found.positions, atoms.positions, rtol=0, atol=5.0001e-9)
    assert structure_uid(found) == structure_uid(atoms)


def test_appending_again_changes_nothing(store):
    atoms = water()
    rows = {
        "structures": [atoms],
        "labels": [label_of(atoms)],
        "splits": [SplitRow(structure_uid(atoms), "train", 1.0)],
        "registry": {"k": {"a": 1}},
    }
    assert store.append(**rows) == 0
    before = commits(store)
    assert store.append(**rows) == 0
    assert Store(store.path).append(**rows) == 0
    assert commits(store) == before


def test_the_same_structure_or_label_twice_in_one_commit_is_stored_once(store):
    atoms = water()
    store.append(structures=[atoms, atoms], labels=[label_of(atoms), label_of(atoms, energy=9.0)])
    view = store.snapshot()
    assert len(view) == 1
    assert [row.energy_eV for row in view.labels()] == [-1.5]


def test_an_empty_append_writes_nothing(store):
    assert store.append() == -1
    assert not store.directory.exists()
    assert store.snapshot().last == -1
    assert len(store.snapshot()) == 0
    assert len(store.snapshot().select("fidelity == 'pbe'")) == 0
    assert store.check() == []
    for rows in ("structures", "labels", "events", "failures", "predictions"):
        assert len(store.snapshot().select(rows=rows, sort="uid")) == 0


def test_a_failed_label_gives_way_to_a_later_ok_one_and_never_the_other_way(store):
    atoms = water()
    failed = label_of(atoms, status="failed", energy=float("nan"), forces_eV_per_A=None)
    store.append(structures=[atoms], labels=[failed])
    assert store.snapshot().labels() == []
    assert store.snapshot().label(failed.key).status == "failed"
    store.append(labels=[label_of(atoms)])
    last = store.append(labels=[failed])
    assert last == 1, "a label that is ok already is left out"
    assert [row.status for row in store.snapshot().labels(status=None)] == ["ok"]


def test_a_retraction_hides_a_label_and_lets_it_be_made_again(store):
    atoms = water()
    label = label_of(atoms)
    store.append(structures=[atoms], labels=[label])
    store.append(retractions=[RetractionRow(label.key, "wrong pseudopotential", 1.0)])
    assert store.snapshot().labels(status=None) == []
    assert len(store.snapshot(as_of=0).labels()) == 1
    store.append(labels=[label_of(atoms, energy=-2.0)])
    assert [row.energy_eV for row in store.snapshot().labels()] == [-2.0]
    assert [row.energy_eV for row in Store(store.path).snapshot().labels()] == [-2.0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"energy": float("nan")}, "status is ok but energy_eV is nan"),
        ({"energy": float("inf")}, "energy_eV is inf"),
        ({"forces_eV_per_A": np.full((3, 3), np.nan)}, "forces_eV_per_A has NaN"),
        ({"forces_eV_per_A": np.zeros((2, 3))}, r"shape \(2, 3\), should be \(3, 3\)"),
        ({"stress_eV_per_A3": np.zeros((3, 3))}, r"should be \(6,\)"),
        ({"stress_eV_per_A3": np.full(6, np.inf)}, "NaN or inf"),
        ({"structure_uid": "0" * 31 + "1"}, "neither in the store nor in this commit"),
        ({"properties": {"dipol": np.zeros(3)}}, "unknown property 'dipol'; did you mean 'dipole'"),
        ({"properties": {"dipole": np.zeros(4)}}, r"dipole has shape \(4,\)"),
        ({"key": "xyz"}, "labels: key"),
        ({"key": "ab"}, "32 hex digits"),
        ({"code": "a\0"}, "NUL"),
        ({"status": ""}, "status is empty"),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_nothing_is_written(store, change, words):
    with pytest.raises(StoreError, match=words):
        store.append(structures=[water()], labels=[label_of(water(), **change)])
    assert not store.directory.exists()


def test_structures_that_cannot_be_stored_are_refused(store):
    wrong = water()
    wrong.positions[0, 0] = np.nan
    huge = water()
    huge.info["charge"] = 70000
    for atoms in (Atoms(), Atoms("X"), huge):
        with pytest.raises(StoreError):
            store.append(structures=[atoms])
    with pytest.raises(StoreError, match="NaN"), np.errstate(invalid="ignore"):
        store.append(structures=[wrong])
    with pytest.raises(StoreError, match="neither"):
        store.append(splits=[SplitRow("0" * 32, "test", 1.0)])
    assert store.append() == -1


def test_labels_are_filtered_and_sorted(store):
    frames = [water(i / 10) for i in range(3)]
    rows = [label_of(a, f) for a in frames for f in ("pbe", "gfn2")]
    store.append(structures=frames, labels=rows[:3])
    store.append(labels=rows[3:])
    view = store.snapshot()
    found = [(row.structure_uid, row.fidelity) for row in view.labels()]
    assert found == sorted((r.structure_uid, r.fidelity) for r in rows)
    uid = structure_uid(frames[1])
    assert [r.structure_uid for r in view.labels(fidelity="pbe", uids=[uid])] == [uid]
    assert view.labels(fidelity="ccsd") == []
    assert view.uids() == [structure_uid(a) for a in frames]
    assert view.structures(view.uids()[::-1]) == frames[::-1]


def test_arrays_of_rows_may_be_written_to(store):
    atoms = water()
    store.append(structures=[atoms], labels=[label_of(atoms)])
    store.snapshot().labels()[0].forces_eV_per_A[:] = 0
    assert store.snapshot().labels()[0].forces_eV_per_A.any()
    store.snapshot().structure(structure_uid(atoms)).positions[:] = 0
    assert store.snapshot().structure(structure_uid(atoms)) == atoms


def test_a_store_travels_to_a_worker_as_its_path(store):
    store.append(structures=[water()])
    assert len(pickle.loads(pickle.dumps(store)).snapshot()) == 1
