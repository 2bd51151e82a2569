"""Labels of every kind, their conditions, and stores written by older versions."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixAtoms
from store_helpers import in_conditions, label_of, same, water

from alchemy.conditions import conditions_of
from alchemy.datasets import labelled
from alchemy.errors import StoreError, StructureError
from alchemy.identity import canonical_uid, structure_uid
from alchemy.store import PROPERTIES, PropertySpec, Store
from alchemy.store.named import rows_of_atoms
from tace.config import InputConfig
from tace.inputs import read_inputs
from tace.quantities import INPUTS, LABELS

GOLDEN = Path(__file__).parent / "data" / "store-1.0"


def value_of(spec, n_atoms, seed):
    return np.random.default_rng(seed).normal(size=rows_of_atoms(spec, n_atoms))


def test_the_store_keeps_every_quantity_that_tace_trains_on():
    assert set(LABELS) - {"energy", "forces", "stress"} <= PROPERTIES.keys()


def test_every_quantity_comes_back_with_its_shape_in_any_mixture_of_rows(store):
    frames = [water(), bulk("Pd", cubic=True), molecule("CH3CH2OH")]
    rows = []
    for k, atoms in enumerate(frames):
        names = [name for i, name in enumerate(PROPERTIES) if (i + k) % 3]
        values = {n: value_of(PROPERTIES[n], len(atoms), i) for i, n in enumerate(names)}
        rows.append(label_of(atoms, properties=values))
    store.append(structures=frames, labels=rows[:2])
    store.append(labels=rows[2:])
    view = Store(store.path).snapshot()
    assert view.quantities() == dict(PROPERTIES)
    for row in rows:
        assert same(view.label(row.key), row)
        for name in PROPERTIES:
            table = view.select(f"has_{name}", rows="labels")
            assert (row.structure_uid in table.uids) == (name in row.properties)
    assert store.check() == []


def test_an_atom_may_lack_a_label_that_others_have(store):
    charges = np.array([0.1, np.nan, -0.1])
    row = label_of(water(), properties={"charges": charges})
    store.append(structures=[water()], labels=[row])
    np.testing.assert_array_equal(store.snapshot().label(row.key).properties["charges"], charges)
    for bad in (np.full(3, np.nan), np.array([0.1, np.inf, 0.0])):
        with pytest.raises(StoreError, match="charges has NaN or inf"):
            store.append(labels=[label_of(water(), "other", properties={"charges": bad})])


def test_a_label_needs_no_energy_but_something(store):
    bare = {"energy": None, "forces_eV_per_A": None}
    row = label_of(water(), properties={"dipole": np.ones(3)}, **bare)
    store.append(structures=[water()], labels=[row])
    assert store.snapshot().label(row.key).energy_eV is None
    assert store.snapshot().select("energy is None and has_dipole").uids == [row.structure_uid]
    with pytest.raises(StoreError, match="no energy, nor anything else"):
        store.append(labels=[label_of(water(), "other", **bare)])


def test_one_structure_in_two_fields_has_two_labels(store):
    atoms = water()
    field = [in_conditions(atoms, energy=e, electric_field=[0, 0, x]) for x, e in ((0.1, -1.0), (0.2, -2.0))]
    store.append(structures=[atoms], labels=[label_of(atoms, energy=0.0), *field])
    view = Store(store.path).snapshot()
    assert sorted(row.energy_eV for row in view.labels()) == [-2.0, -1.0, 0.0]
    assert view.select("electric_field > 0.15", columns=["energy"]).columns["energy"] == [-2.0]
    assert view.select("electric_field is None", columns=["energy"]).columns["energy"] == [0.0]
    assert same(view.label(field[0].key), field[0])
    store.append(labels=field)
    assert store.snapshot().last == 0, "the same labels again are not stored again"


def test_every_condition_comes_back_and_reaches_the_model(store):
    atoms = water()
    values = {
        name: value_of(PropertySpec(q.scope, q.shape, "", ""), 3, 1).round(8) for name, q in INPUTS.items()
    }
    values["spin_multiplicity"] = np.array(3.0)
    row = in_conditions(atoms, **values)
    store.append(structures=[atoms], labels=[row])
    view = Store(store.path).snapshot()
    assert same(view.label(row.key), row)
    (frame,) = labelled(view, view.labels())
    spin = "spin_multiplicity"
    kinds = [InputConfig(n, values=(float(v),) if n == spin else ()) for n, v in values.items()]
    found = read_inputs(frame.atoms, kinds)
    for name, value in values.items():
        np.testing.assert_array_equal(found[name], value)


def test_the_charge_of_a_structure_is_its_total_charge(store):
    ion = water()
    ion.info |= {"charge": 1, "multiplicity": 2, "total_charge": 1.0}
    assert conditions_of(ion) == {}
    store.append(structures=[ion], labels=[label_of(ion, properties={"dipole": np.ones(3)})])
    view = store.snapshot()
    (frame,) = labelled(view, view.labels())
    assert (frame.atoms.info["total_charge"], frame.atoms.info["spin_multiplicity"]) == (1, 2)
    np.testing.assert_array_equal(frame.labels["dipole"], np.ones(3))
    ion.info["total_charge"] = 2.0
    with pytest.raises(StructureError, match="total_charge is 2 but the structure's charge is 1"):
        conditions_of(ion)
    for name, bad in (("electric_field", [1.0]), ("electric_field", [1, 2, np.nan]), ("total_charge", "x")):
        wrong = water()
        wrong.info[name] = bad
        with pytest.raises(StructureError, match=name):
            conditions_of(wrong)


def test_a_key_that_leaves_out_the_conditions_is_refused(store):
    row = label_of(water(), conditions={"electric_field": np.ones(3)})
    with pytest.raises(StoreError, match=r"electric_field.*are part of the identity.*label_key"):
        store.append(structures=[water()], labels=[row])
    with pytest.raises(StoreError, match="unknown condition 'electric_fild'; did you mean"):
        store.append(structures=[water()], labels=[in_conditions(water(), electric_fild=np.ones(3))])
    with pytest.raises(StoreError, match=r"electric_field has shape \(2,\), should be \(3,\)"):
        store.append(structures=[water()], labels=[in_conditions(water(), electric_field=np.ones(2))])
    assert not store.directory.exists()


def test_tensors_of_heads_are_declared_once_and_mean_one_thing(store):
    spec = PropertySpec("atom", (3, 3), "e*A^2", "quadrupole of each atom")
    values = {"quadrupole": value_of(spec, 3, 0)}
    row = label_of(water(), properties=values)
    with pytest.raises(StoreError, match="unknown property 'quadrupole'"):
        store.append(structures=[water()], labels=[row])
    store.append(structures=[water()], labels=[row], quantities={"quadrupole": spec})
    again = label_of(water(), "ccsd", properties=values)
    store.append(labels=[again])
    view = Store(store.path).snapshot()
    assert view.quantities() == {"quadrupole": spec}
    assert same(view.label(again.key), again)
    other = label_of(water(), "hf", properties=values)
    with pytest.raises(StoreError, match=r"in e\*Bohr\^2 here but .* in e\*A\^2 in the store"):
        store.append(
            labels=[other], quantities={"quadrupole": PropertySpec("atom", (3, 3), "e*Bohr^2", "")}
        )
    with pytest.raises(StoreError, match="unknown unit 'fathom'"):
        store.append(labels=[other], quantities={"x": PropertySpec("atom", (), "fathom", "")})
    with pytest.raises(StoreError, match="found 'frame'"):
        store.append(labels=[other], quantities={"x": PropertySpec("frame", (), "e", "")})
    assert store.snapshot().last == 1


def test_arrays_that_describe_atoms_come_back_and_do_not_identify_them(store):
    pd = bulk("Pd", cubic=True)
    pd.set_tags([0, 1, 2, 0])
    pd.set_initial_magnetic_moments([0.5, -0.5, 0, 0])
    pd.set_constraint(FixAtoms([0, 2]))
    spins = water()
    spins.set_initial_magnetic_moments(np.arange(9.0).reshape(3, 3))
    plain = water(0.1)
    store.append(structures=[plain, pd, spins])
    found, xyz, bare = Store(store.path).snapshot().structures([structure_uid(a) for a in (pd, spins, plain)])
    assert found.get_tags().tolist() == [0, 1, 2, 0]
    assert found.get_initial_magnetic_moments().tolist() == [0.5, -0.5, 0, 0]
    assert found.arrays["fixed"].tolist() == [True, False, True, False]
    np.testing.assert_array_equal(xyz.get_initial_magnetic_moments(), spins.get_initial_magnetic_moments())
    assert set(bare.arrays) == {"numbers", "positions"}
    assert structure_uid(pd) == structure_uid(bulk("Pd", cubic=True))
    store.append(structures=[found])
    assert store.snapshot().last == 0, "what was read is what was stored"


@pytest.mark.parametrize("symbols", ["H2O", "CH4", "Pd3HC12", "NaCl", "C", "UOH2"])
def test_formulas_are_those_of_ase(store, symbols):
    atoms = Atoms(symbols, positions=np.arange(3.0 * len(Atoms(symbols))).reshape(-1, 3))
    store.append(structures=[atoms])
    (row,) = store.snapshot().select("", rows="structures", columns=["formula"]).rows()
    assert row["formula"] == atoms.get_chemical_formula(mode="hill")


@pytest.mark.parametrize("name", ["water", "crystal", "slab", "wire", "atom"])
def test_the_canonical_uid_ignores_order_images_and_float32(name, structure, rng):
    atoms = structure(name)
    first = canonical_uid(atoms)
    order = rng.permutation(len(atoms))
    shifted = atoms[order]
    steps = rng.integers(-2, 3, (len(atoms), 3)) * atoms.pbc
    shifted.positions += steps @ np.asarray(atoms.cell)
    assert canonical_uid(shifted) == first
    other = atoms.copy()
    other.positions[0] += [0.0, 0.0, 0.01] if len(atoms) > 1 else 0.0
    other.info["charge"] = 1
    assert canonical_uid(other) != first


def test_a_structure_of_few_digits_is_found_by_its_canonical_uid(store):
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)
    store.append(structures=[atoms])
    rounded = Atoms(atoms.numbers, atoms.positions.astype("f4"), cell=atoms.cell, pbc=True)
    assert structure_uid(rounded) != structure_uid(atoms)
    found = store.snapshot().select(f"canon == '{canonical_uid(rounded)}'")
    assert found.uids == [structure_uid(atoms)]


@pytest.fixture
def golden(tmp_path):
    """A store that version 0.1.0 wrote, format 1.0."""
    shutil.copytree(GOLDEN, tmp_path / "old")
    return Store(tmp_path / "old" / "store.h5", durability="nofsync")


def test_a_store_of_format_1_0_is_read_as_it_was_written(golden):
    expected = json.loads((GOLDEN / "expected.json").read_text())
    view = golden.snapshot()
    assert golden.check() == []
    assert view.uids() == expected["uids"]
    frames = view.structures(view.uids())
    assert [structure_uid(atoms) for atoms in frames] == expected["uids"]
    assert [atoms.positions.tolist() for atoms in frames] == expected["positions"]
    assert [atoms.info for atoms in frames] == expected["info"]
    rows = {row.key: row for row in view.labels(status=None)}
    assert rows.keys() == expected["labels"].keys()
    for key, old in expected["labels"].items():
        row = rows[key]
        assert (row.fidelity, row.status, row.energy_eV) == (old["fidelity"], old["status"], old["energy"])
        for name, array in (("forces", row.forces_eV_per_A), ("stress", row.stress_eV_per_A3)):
            assert (None if array is None else array.tolist()) == old[name]
        assert {n: v.tolist() for n, v in row.properties.items()} == old["properties"]
        assert row.conditions == {}
    assert (view.part_of(), view.registry()) == (expected["splits"], expected["registry"])
    assert [row.message for row in view.failures()] == ["é"]
    assert view.predictions("m")[0].force_std_eV_per_A.tolist() == [1, 1, 1, 1]
    everything = view.select("", rows="labels", columns=list(view.fields("labels")))
    assert len(list(everything.rows())) == len(rows)


def test_new_commits_go_on_top_of_format_1_0(golden):
    before = golden.snapshot()
    frame = bulk("Cu", cubic=True)
    row = in_conditions(frame, electric_field=[0, 0, 0.1])
    golden.append(structures=[frame], labels=[row])
    view = Store(golden.path).snapshot()
    assert same(view.label(row.key), row)
    assert view.select(f"canon == '{canonical_uid(frame)}'").uids == [structure_uid(frame)]
    assert len(view.select("canon is None")) == len(before)
    assert len(view.select("electric_field is None", rows="labels")) == len(before.labels(status=None))
    assert len(view.select("has_dipole")) == len(before.select("has_dipole")) == 1


@pytest.mark.parametrize("version", ["1.1", "1.2"])
def test_a_store_of_an_older_format_is_read_as_it_was_written(tmp_path, version):
    """A merged file of eight commits and one more; whoever changes the format keeps this readable."""
    shutil.copytree(GOLDEN.parent / f"store-{version}", tmp_path / "old")
    store = Store(tmp_path / "old" / "store.h5")
    ((last, uids), labels) = json.loads((tmp_path / "old" / "expected.json").read_text())[0]
    view = store.snapshot()
    assert (str(view.last), str(view.uids())) == (last, uids)

    def lists(arrays):
        return {name: value.tolist() for name, value in arrays.items()}

    rows = view.labels(status=None)
    facts = [(r.key, r.fidelity, r.status, r.energy_eV, r.properties, r.conditions) for r in rows]
    assert [[*own, lists(properties), lists(given)] for *own, properties, given in facts] == labels
    assert store.check() == []
    assert len(store.snapshot(as_of=3)) == 2
