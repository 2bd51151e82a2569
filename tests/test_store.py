"""Laws of the store: what went in comes out, once, and a commit is one file that never changes."""

import json
import os
import pickle
import re
import stat
import subprocess
import sys
from pathlib import Path

import ase.io
import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from alchemy.errors import InputError, QueryError, StoreDamagedError, StoreError
from alchemy.identity import label_key, structure_uid
from alchemy.store import (
    EventRow,
    FailureRow,
    LabelRow,
    PredictionRow,
    RetractionRow,
    SplitRow,
    Store,
    export_extxyz,
)
from alchemy.store.ingest import structure_row
from alchemy.store.rows import Batch
from alchemy.store.schema import encode
from alchemy.store.segment import FileSystem, Segment, build_image

ROOT = Path(__file__).parents[1]


def water(shift=0.0):
    atoms = molecule("H2O")
    atoms.positions[0, 0] += shift
    return atoms


def label_of(atoms, fidelity="pbe", *, status="ok", energy=-1.5, **values):
    uid = structure_uid(atoms)
    rng = np.random.default_rng(len(atoms))
    given = {
        "key": label_key(uid, fidelity, "f" * 32, values.get("replica", 0)),
        "structure_uid": uid,
        "fidelity": fidelity,
        "fingerprint": "f" * 32,
        "status": status,
        "code": "test 1.0",
        "energy_eV": energy,
        "energy_kind": "total",
        "forces_eV_per_A": rng.normal(size=(len(atoms), 3)),
        "stress_eV_per_A3": None,
        "wall_s": 1.0,
        "cpu_s": 2.0,
        "created": 3.0,
    }
    return LabelRow(**(given | values))


def same(a, b):
    """Equality of rows; NaN equals NaN and arrays are compared by value."""
    for name, value in vars(a).items():
        other = getattr(b, name)
        if name == "properties":
            assert value.keys() == other.keys()
            for key in value:
                np.testing.assert_array_equal(value[key], other[key])
        elif value is None or other is None:
            assert value is other, name
        elif isinstance(value, str):
            assert value == other, name
        else:
            np.testing.assert_array_equal(value, other, err_msg=name)
    return True


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store.h5", durability="nofsync")


def commits(store):
    return sorted(path.name for path in store.directory.iterdir())


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
        ({"properties": {"dipol": np.zeros(3)}}, "unknown property 'dipol'; known: dipole"),
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


def test_a_commit_is_one_new_read_only_file_and_old_ones_do_not_change(store):
    contents = {}
    for i in range(3):
        assert store.append(structures=[water(i / 10)]) == i
        assert commits(store) == [f"c{k:010d}.h5" for k in range(i + 1)]
        for path in store.directory.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o444
            assert contents.setdefault(path, path.read_bytes()) == path.read_bytes()


def test_as_of_shows_the_store_as_it_was(store):
    for i in range(4):
        atoms = water(i / 10)
        split = SplitRow(structure_uid(water()), ["train", "test"][i % 2], float(i))
        store.append(structures=[atoms], labels=[label_of(atoms)], splits=[split])
    frozen = store.snapshot(as_of=1)
    store.append(structures=[water(9.0)])
    for again in (Store(store.path), store):
        for last in (-1, 0, 1, 2, 3):
            view = again.snapshot(as_of=last)
            assert (view.last, len(view), len(view.labels())) == (last, last + 1, last + 1)
            assert len(view.select("energy < 0")) == last + 1
    assert len(store.snapshot()) == 5
    assert len(frozen) == 2
    assert set(frozen.part_of().values()) == {"test"}
    with pytest.raises(StoreError, match="no commit 9; the last one is 4"):
        store.snapshot(as_of=9)
    with pytest.raises(StoreError, match="has no structure"):
        frozen.structure(structure_uid(water(9.0)))


def test_repeated_snapshots_open_no_file_again(store):
    store.append(structures=[water()])
    first = store.snapshot()
    assert store.snapshot() is first
    segments = first._segments
    store.append(structures=[water(0.1)])
    assert store.snapshot()._segments[0] is segments[0]


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


def test_select_joins_structures_labels_and_births(store):
    pd = bulk("Pd", cubic=True)
    frames = [water(), pd, water(0.3)]
    uids = [structure_uid(a) for a in frames]
    big = label_of(pd, energy=-8.0, stress_eV_per_A3=np.ones(6))
    failed = label_of(frames[2], status="failed", energy=np.nan, forces_eV_per_A=None)
    store.append(structures=frames, events=[EventRow(uids[0], "start", sampler="file", time=0.0)])
    store.append(
        labels=[label_of(frames[0]), big, failed],
        splits=[SplitRow(uids[1], "test", 0.0)],
        events=[EventRow(uids[1], "candidate", sampler="md", round=2, time=0.0)],
        failures=[FailureRow("f" * 32, "explore", "", "exploded", "T > 1e5 K", 1, 0.0)],
        predictions=[PredictionRow(uids[0], "m", "pbe", -1.0, 0.1, 0.5, np.ones(3))],
    )
    view = store.snapshot()

    def found(expression, **options):
        return [uids.index(uid) for uid in view.select(expression, **options).uids]

    assert found("'Pd' in elements") == [1]
    assert found("count('H') == 2 and not 'Pd' in elements") == [0, 2]
    assert found("periodic and volume > 50") == [1]
    assert found("volume is None") == [0, 2]
    assert found("sampler == 'md' and round == 2 and split == 'test'") == [1]
    assert found("round is None") == [0, 2]
    assert found("status != 'ok'") == [2]
    assert found("energy is None and max_force is None") == [2]
    assert found("has_stress and energy_per_atom == -2") == [1]
    assert found("status == 'ok'", sort="energy") == [1, 0]
    assert found("", rows="labels", sort="-energy") == [0, 1, 2], "unset values come last"
    assert found("", rows="labels", sort="-energy", limit=1) == [0]
    assert found("formula == 'OH2'") == [0, 2]
    assert found("max_force_std > 0.1", rows="predictions") == [0]
    norms = np.linalg.norm(big.forces_eV_per_A, axis=1)
    table = view.select("'Pd' in elements", columns=["fmax", "elements", "n_atoms", "periodic"])
    assert list(table.rows()) == [
        {"max_force": norms.max(), "elements": ["Pd"], "n_atoms": 4, "periodic": True}
    ]
    unknown = view.select("reason == 'exploded'", rows="failures", columns=["n_atoms", "message"])
    assert list(unknown.rows()) == [{"n_atoms": None, "message": "T > 1e5 K"}]
    assert len(view.select("n_atoms > 0", rows="failures")) == 0
    for rows in ("structures", "labels", "events", "failures", "predictions"):
        everything = view.select(rows=rows, columns=list(view.fields(rows)))
        assert json.loads(json.dumps(list(everything.rows()), allow_nan=False))
    for wrong in ({"columns": ["enrgy"]}, {"sort": "enrgy"}, {"rows": "label"}, {"limit": -1}):
        with pytest.raises(QueryError):
            view.select("", **wrong)


def test_queries_of_many_commits_equal_queries_of_one(tmp_path):
    frames = [bulk(s, cubic=s != "Pd") for s in ("Cu", "Pd", "Au", "Ag")] + [water()]
    rows = [label_of(a, f, energy=float(i)) for i, a in enumerate(frames) for f in ("gfn2", "pbe")]
    one, many = (Store(tmp_path / f"{n}.h5", durability="nofsync") for n in ("one", "many"))
    one.append(structures=frames, labels=rows)
    for atoms in frames:
        many.append(structures=[atoms])
    for row in reversed(rows):
        many.append(labels=[row])
    for expression in ("fidelity == 'pbe' and energy > 1", "count('Pd') >= 1 or fmax < 2", ""):
        tables = [
            sorted(map(str, s.snapshot().select(expression, rows="labels").rows()))
            for s in (one, many)
        ]
        assert tables[0] == tables[1]


def test_exported_frames_are_read_by_ase(store, tmp_path):
    pd = bulk("Pd", cubic=True)
    ion = water()
    ion.info |= {"charge": 1, "multiplicity": 2}
    strained = label_of(pd, "pbe", stress_eV_per_A3=np.arange(6) / 100)
    rows = [strained, label_of(ion, "pbe"), label_of(ion, "gfn2")]
    store.append(
        structures=[pd, ion], labels=rows, splits=[SplitRow(structure_uid(pd), "train", 0.0)]
    )
    view, path = store.snapshot(), tmp_path / "all.xyz"
    assert export_extxyz(view, "", path) == 3
    with pytest.raises(InputError, match="exists"):
        export_extxyz(view, "", path)
    assert export_extxyz(view, "", path, fidelity="pbe", overwrite=True) == 2
    first, second = ase.io.read(path, ":")
    assert (structure_uid(first), structure_uid(second)) == (structure_uid(pd), structure_uid(ion))
    assert first.info["fidelity"] == "pbe"
    assert first.info["split"] == "train"
    assert first.get_potential_energy() == strained.energy_eV
    # extxyz writes forces with 8 decimals
    np.testing.assert_allclose(first.get_forces(), strained.forces_eV_per_A, rtol=0, atol=1e-8)
    np.testing.assert_allclose(first.get_stress(), strained.stress_eV_per_A3)
    assert export_extxyz(view, "'Pd' in elements", path, ref_keys=True, overwrite=True) == 1
    atoms = ase.io.read(path)
    assert atoms.calc is None
    assert atoms.info["REF_energy"] == strained.energy_eV
    assert atoms.arrays["REF_forces"].shape == (4, 3)
    assert np.shape(atoms.info["REF_stress"]) == (3, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["all.xyz", "store.h5.d"]


def test_stock_h5py_reads_a_commit_and_agrees_with_our_reader(store):
    atoms = water()
    label = label_of(atoms, properties={"dipole": np.ones(3), "charges": np.zeros(3)})
    store.append(structures=[atoms], labels=[label], registry={"é": {}})
    segment = Segment(FileSystem(), store.directory / "c0000000000.h5")
    seen = []

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            assert item.attrs["unit"]
            assert item.attrs["description"]
            assert item.chunks is None
            if name != "index":
                np.testing.assert_array_equal(item[()], segment[f"/{name}"])
                seen.append(f"/{name}")

    with h5py.File(segment.path, "r") as file:
        assert file.attrs["format"] == b"alchemy-store"
        assert file["labels/energy"].attrs["unit"] == b"eV"
        np.testing.assert_array_equal(file["labels/atoms/forces"][()], label.forces_eV_per_A)
        assert file["dict/key"].asstr()[0] == "é"
        file.visititems(visit)
    assert sorted(seen) == sorted(segment.paths())


def test_large_files_are_mapped_and_read_the_same(store, monkeypatch):
    monkeypatch.setattr("alchemy.store.segment.READ_WHOLE", 1000)
    atoms = water()
    store.append(structures=[atoms], labels=[label_of(atoms)])
    view = Store(store.path).snapshot()
    assert view.structures([structure_uid(atoms)]) == [atoms]
    assert same(view.labels()[0], label_of(atoms))
    assert store.check() == []


def merged(path, frames, *, lo, hi, kind):
    batch = Batch(structures=[structure_row(a) for a in frames])
    path.write_bytes(build_image(encode(batch), kind=kind, lo=lo, hi=hi))


def test_a_base_and_merged_files_replace_the_commits_they_cover(store):
    frames = [water(i / 10) for i in range(6)]
    for atoms in frames:
        store.append(structures=[atoms])
    uids = store.snapshot().uids()
    merged(store.path, frames[:2], lo=0, hi=1, kind="base")
    merged(store.directory / "m0000000002-0000000004.h5", frames[2:5], lo=2, hi=4, kind="merged")
    for again in (store, Store(store.path)):
        assert (again.snapshot().last, again.snapshot().uids()) == (5, uids)
    for i in range(5):
        (store.directory / f"c{i:010d}.h5").unlink()
    for again in (store, Store(store.path)):
        assert again.snapshot().uids() == uids
        assert again.snapshot(as_of=1).uids() == uids[:2]
        with pytest.raises(StoreError, match=r"commit 3 is inside m0000000002-0000000004\.h5"):
            again.snapshot(as_of=3)
        assert again.check() == []
    assert store.append(structures=[water(7.0)]) == 6


def test_a_newer_format_is_refused_and_says_so(store, monkeypatch):
    monkeypatch.setattr("alchemy.store.segment.FORMAT_VERSION", "2.0")
    store.append(structures=[water()])
    monkeypatch.undo()
    with pytest.raises(StoreError, match=r"format 2\.0 is newer than the 1\.0"):
        Store(store.path).snapshot()


WRITER = """
import sys
from ase import Atoms
from alchemy.store import Store
store = Store(sys.argv[1])
numbers = [store.append(structures=[Atoms("H", positions=[[i, int(sys.argv[2]), 0]]),
                                    Atoms("H", positions=[[i, 9, 0]])]) for i in range(10)]
print(*numbers)
"""


def test_two_writers_at_once_lose_nothing(tmp_path):
    path = tmp_path / "store.h5"
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [
        subprocess.Popen([*command, str(k)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for k in (1, 2)
    ]
    numbers = [int(n) for writer in writers for n in writer.communicate(timeout=120)[0].split()]
    assert sorted(numbers) == list(range(20)), "every commit has its own number"
    view = Store(path).snapshot()
    assert view.last == 19
    # 10 of each writer and 10 that both tried to add
    assert len(view) == len(set(view.uids())) == 30
    assert Store(path).check() == []


def test_only_the_store_opens_hdf5_files_for_writing():
    """libhdf5 writing to a disk loses data silently or crashes when the disk is full."""
    pattern = re.compile(r"h5py\.File\((?!.*[\"']r[\"'])")
    folders = ("alchemy", "policies", "tace", "templates")
    guarded = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    found = [
        str(p)
        for p in guarded
        if pattern.search(p.read_text()) and p.parent != ROOT / "alchemy" / "store"
    ]
    assert found == []


def test_an_unknown_durability_is_refused(tmp_path):
    with pytest.raises(StoreError, match="fsync, nofsync"):
        Store(tmp_path / "store.h5", durability="maybe")


def test_a_missing_commit_is_named(store):
    for i in range(5):
        store.append(structures=[water(i / 10)])
    os.unlink(store.directory / "c0000000002.h5")
    again = Store(store.path)
    assert len(again.snapshot(as_of=1)) == 2
    for read in (again.snapshot, lambda: again.snapshot(as_of=4), lambda: again.append()):
        with pytest.raises(StoreDamagedError, match="commit 2 is missing"):
            read()
    assert any("commit 2 is missing" in problem for problem in again.check())
