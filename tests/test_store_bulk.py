"""Columns say the same as atoms and rows: same identities, files of the same contents, the same errors."""

import json
import string

import numpy as np
import pytest
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st
from store_helpers import told, water

from alchemy.errors import StoreError
from alchemy.identity import (
    canonical_uid,
    canonical_uids,
    content_hash,
    label_key,
    label_keys,
    structure_uid,
    structure_uids,
)
from alchemy.store import LabelColumns, LabelRow, SplitRow, Store, StructureColumns
from alchemy.store.layout import Image
from alchemy.store.segment import Segment

CELLS = (
    np.eye(3) * 7.0,
    np.zeros((3, 3)),
    np.diag([5.0, 6.0, 0.0]),
    np.array([[0.0, 2.0, 2.0], [2.0, 0.0, 2.0], [2.0, 2.0, 0.0]]),
    np.ones((3, 3)),  # flat
)


def frames(n, seed=0, spread=4.0):
    rng, found = np.random.default_rng(seed), []
    for number in range(n):
        size = int(rng.integers(1, 12))
        atoms = Atoms(
            rng.choice([1, 6, 8, 46, 118], size),
            rng.normal(size=(size, 3)) * spread,
            cell=CELLS[number % len(CELLS)],
            pbc=rng.random(3) < 0.5 if number % len(CELLS) else True,
        )
        if number % 3 == 0:
            atoms.info.update(charge=int(rng.integers(-2, 3)), multiplicity=int(rng.integers(0, 4)))
        found.append(atoms)
    return found


def numbers_for(given, seed=1):
    rng = np.random.default_rng(seed)
    atoms = sum(map(len, given))
    return rng.normal(size=len(given)), rng.normal(size=(atoms, 3)), rng.normal(size=(len(given), 6))


def columns(given, **more):
    states = [(a.info.get("charge", 0), a.info.get("multiplicity", 0)) for a in given]
    charges, multiplicities = np.array(states, int).reshape(-1, 2).T
    return StructureColumns(
        np.array([len(a) for a in given], int),
        np.concatenate([a.numbers for a in given]),
        np.concatenate([a.positions for a in given]),
        np.array([a.cell.array for a in given]),
        np.array([a.pbc for a in given]),
        charges,
        multiplicities,
        **more,
    )


def label_columns(given, **change):
    energies, forces, stresses = numbers_for(given)
    values = {"energies_eV": energies, "forces_eV_per_A": forces, "stresses_eV_per_A3": stresses}
    own = {"wall_s": 1.0, "cpu_s": 2.0, "created": 3.0, **values, **change}
    return LabelColumns("pbe", "f" * 32, "test 1.0", **own)


def label_rows(given):
    energies, forces, stresses = numbers_for(given)
    ends = np.cumsum([len(a) for a in given]).tolist()
    for atoms, end, energy, stress in zip(given, ends, energies.tolist(), stresses, strict=True):
        uid = structure_uid(atoms)
        yield LabelRow(
            label_key(uid, "pbe", "f" * 32), uid, "pbe", "f" * 32, "ok", "test 1.0", energy, "total",
            forces[end - len(atoms) : end], stress, 1.0, 2.0, 3.0,
        )  # fmt: skip


@pytest.mark.parametrize("spread", [1e-3, 4.0, 3e5])  # the last one does not fit into one number per atom
def test_identities_do_not_depend_on_what_they_are_computed_with(spread):
    given = frames(60, spread=spread)
    assert structure_uids(given) == [structure_uid(atoms) for atoms in given]
    assert canonical_uids(given) == [canonical_uid(atoms) for atoms in given]


def test_identities_are_those_of_the_stores_that_there_are():
    """Written down with the version before columns; a new hash would buy every label again."""
    assert structure_uid(water()) == "35a5b707e9aebf2a788eab4c4b2f4141"
    assert canonical_uid(water()) == "832578209d0f6db22e10cff1a860c577"
    both = [structure_uids(frames(40)), canonical_uids(frames(40))]
    assert content_hash(both) == "3e70cfe70e3e2a131b4d9944b32e7595"
    assert content_hash(canonical_uids(frames(10, spread=3e5))) == "cddf09147b8b06daaf7978c79b1b1433"


@settings(max_examples=100, deadline=None)
@given(st.text(min_size=1, max_size=20), st.text(string.hexdigits, max_size=32), st.integers(0, 9))
def test_many_keys_are_the_keys_of_each(fidelity, fingerprint, replica):
    uids = [structure_uid(water(x)) for x in (0.0, 0.1)]
    assert label_keys(uids, fidelity, fingerprint, replica) == [
        label_key(uid, fidelity, fingerprint, replica) for uid in uids
    ]


def test_columns_make_the_file_that_atoms_and_rows_make(store, tmp_path, monkeypatch):
    given, now = frames(30), 5.0
    monkeypatch.setattr("alchemy.store.ingest.time.time", lambda: now)
    store.append(structures=columns(given, part="train"), labels=label_columns(given))
    other = Store(tmp_path / "rows.h5", durability="nofsync")
    rows = [*label_rows(given)]
    splits = [SplitRow(row.structure_uid, "train", now) for row in rows]
    other.append(structures=given, labels=rows, splits=splits)
    mine, theirs = (Segment(s.fs, s.directory / "c0000000000.h5") for s in (store, other))
    assert mine.paths() == theirs.paths()
    for path in mine.paths():
        np.testing.assert_array_equal(mine[path], theirs[path])
    assert told(store.snapshot()) == told(other.snapshot())
    assert store.check() == []


def test_what_is_there_is_left_out_of_columns_too(store):
    given = frames(20)
    store.append(structures=columns(given[:8], part="test"), labels=label_columns(given[:8]))
    last = store.append(structures=columns(given[:8], part="test"), labels=label_columns(given[:8]))
    assert last == 0
    doubled = [*given, *given[5:9]]
    store.append(structures=columns(doubled), labels=label_columns(doubled))
    view = store.snapshot()
    assert (len(view), view.count("status == 'ok'")) == (20, 20)
    assert structure_uids(view.structures(structure_uids(given))) == structure_uids(given)
    segment = Segment(store.fs, store.directory / "c0000000001.h5")
    assert [segment.length(f"/{table}/uid") for table in ("structures", "labels")] == [12, 12]
    for row, atoms in zip(view.labels(uids=structure_uids(given[8:9])), given[8:9], strict=True):
        start = sum(map(len, doubled[:8]))
        expected = numbers_for(doubled)[1][start : start + len(atoms)]
        np.testing.assert_array_equal(row.forces_eV_per_A, expected)
    assert set(view.part_of().values()) == {"test"}


def test_columns_may_lack_energies_stresses_and_forces_and_have_properties_and_conditions(store):
    given = frames(3)
    store.append(structures=columns(given))
    energies, uids = np.array([np.nan, 1.0, 2.0]), structure_uids(given)
    stresses = np.full((3, 6), np.nan)
    stresses[0] = 1.0
    own = {"energies_eV": energies, "stresses_eV_per_A3": stresses, "forces_eV_per_A": None}
    store.append(labels=label_columns(given, structure_uids=uids, **own))
    dipoles = np.array([[np.nan] * 3, [1.0, 2.0, 3.0], [0.0] * 3])
    fields, moments = np.tile([0.0, 0.0, 0.1], (3, 1)), np.arange(sum(map(len, given)), dtype=float)
    store.append(
        labels=label_columns(
            given,
            structure_uids=uids,
            properties={"dipole": dipoles, "magmoms": moments},
            conditions={"electric_field": fields},
        )
    )
    first, *_ = store.snapshot().labels(keys=[label_key(uids[0], "pbe", "f" * 32)])
    assert (first.energy_eV, first.forces_eV_per_A) == (None, None)
    assert first.stress_eV_per_A3.tolist() == [1.0] * 6
    key = label_key(uids[1], "pbe", "f" * 32, 0, {"electric_field": fields[1]})
    (in_field,) = store.snapshot().labels(keys=[key])
    assert in_field.properties["dipole"].tolist() == [1.0, 2.0, 3.0]
    assert in_field.properties["magmoms"].tolist() == moments[len(given[0]) :][: len(given[1])].tolist()
    assert store.snapshot().count("has_dipole and electric_field > 0.05") == 2
    assert store.check() == []


WRONG = {
    "shape": ({"forces_eV_per_A": np.zeros((2, 3))}, r"forces_eV_per_A has shape \(2, 3\) of float64"),
    "stress": ({"stresses_eV_per_A3": np.zeros((5, 3, 3))}, r"stresses_eV_per_A3 has shape \(5, 3, 3\)"),
    "text": ({"energies_eV": np.array(["1"] * 5)}, "energies_eV has shape .* of <U1, should be"),
    "count": ({"structure_uids": ["ab" * 16]}, "5 energies of 1 structures"),
    "unknown": ({"structure_uids": ["ab" * 16] * 5}, "structure 'abab.*' is neither in the store nor"),
    "energy": ({"energies_eV": np.full(5, np.inf)}, "NaN or inf in energies_eV"),
    "forces": ({"forces_eV_per_A": "nan"}, "NaN or inf in forces_eV_per_A"),
    "half a stress": ({"stresses_eV_per_A3": "half"}, "NaN or inf in stresses_eV_per_A3"),
    "nothing": (
        {"energies_eV": np.full(5, np.nan), "forces_eV_per_A": None, "stresses_eV_per_A3": None},
        "should have anything but NaN",
    ),
    "property": ({"properties": {"dipol": np.zeros((5, 3))}}, "'dipol' unknown; did you mean 'dipole'"),
    "its shape": ({"properties": {"dipole": np.zeros((5, 2))}}, r"dipole has shape \(5, 2\)"),
    "pairs": ({"properties": {"hessian": np.zeros((5, 9))}}, "come as rows"),
    "condition": ({"conditions": {"electric_field": np.full((5, 3), np.inf)}}, "has NaN or inf"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_columns_of_labels_are_named_and_nothing_is_stored(store, name):
    change, words = WRONG[name]
    given, change = frames(5), dict(change)
    if isinstance(change.get("forces_eV_per_A"), str):
        change["forces_eV_per_A"] = numbers_for(given)[1] * [1, 1, np.nan]
    if isinstance(change.get("stresses_eV_per_A3"), str):
        change["stresses_eV_per_A3"] = numbers_for(given)[2] * [1, 1, 1, 1, 1, np.nan]
    with pytest.raises(StoreError, match=words):
        store.append(structures=columns(given), labels=label_columns(given, **change))
    assert not store.directory.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"positions_A": np.zeros((4, 3))}, r"positions_A has shape \(4, 3\), should be \(3, 3\)"),
        ({"positions_A": np.full((3, 3), np.nan)}, r"structure 0 \(H2O\): NaN or inf in its geometry"),
        ({"numbers": np.array([8.0, 1.0, 1.0])}, "numbers is float64, should be int64"),
        ({"numbers": np.array([8, 0, 1])}, "structure 0: needs atoms with Z in 1–118"),
        ({"sizes": np.array([3, 0])}, "structure 1: needs atoms"),
        ({"sizes": np.array([3.0])}, "sizes are whole numbers"),
        ({"charges_e": np.array([1 << 20])}, "charge 1048576, multiplicity 0: no such state"),
        ({"multiplicities": np.array([-1])}, "no such state"),
    ],
)
def test_wrong_columns_of_structures_are_named_and_nothing_is_stored(store, change, words):
    atoms = water()
    own = {"sizes": np.array([3]), "numbers": atoms.numbers, "positions_A": atoms.positions, **change}
    with pytest.raises(StoreError, match=words):
        store.append(structures=StructureColumns(**own))
    assert not store.directory.exists()


@pytest.mark.parametrize("info", [{"charge": "two"}, {"multiplicity": 1 << 40}, {"charge": 1 << 20}])
def test_a_charge_that_is_none_is_an_error_and_not_a_crash(store, info):
    atoms = water()
    atoms.info |= info
    with pytest.raises(StoreError, match="charge"):
        store.append(structures=[atoms])


def test_layouts_of_equal_dtypes_keep_their_meaning():
    """A text of 4 bytes and bytes of 4 have one dtype for numpy, and two kinds in HDF5."""
    import h5py

    from alchemy.store.layout import Dataset, build_image
    from alchemy.store.schema import fixed_strings

    text, raw = fixed_strings(["abcd"]), np.array([b"abcd"], "S4")
    datasets = {"/a/raw": Dataset(raw, "1", "bytes"), "/a/text": Dataset(text, "1", "text")}
    assert Image(datasets, kind="commit").size
    import io

    with h5py.File(io.BytesIO(build_image(datasets, kind="commit")), "r") as file:
        kinds = [h5py.check_string_dtype(file[path].dtype).encoding for path in ("a/raw", "a/text")]
        assert kinds == ["ascii", "utf-8"]
        assert json.loads(file.attrs["units"])["length"] == "Angstrom"
