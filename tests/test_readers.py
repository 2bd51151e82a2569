"""Readers: labels as they stand in files, in one unit and shape, and never invented."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.db import connect
from ase.io import write
from ase.stress import full_3x3_to_voigt_6_stress
from reader_helpers import ENERGY, FORCES, FULL, RNG, SIX, crystal, one, saved, with_info

from tace.config import InputConfig
from tace.errors import DataError, TaceError
from tace.inputs import read_inputs
from tace.keys import Key, quantity_of_head
from tace.readers import Source, data_hash, read_dataset, read_frames
from tace.units import conversion


def test_labels_stand_under_their_reference_names_or_in_a_calculator(tmp_path):
    frame = one(saved(tmp_path, with_info(REF_stress=SIX)))
    assert frame.energy_eV == ENERGY
    np.testing.assert_array_equal(frame.forces_eV_per_A, FORCES.round(8))  # as extxyz writes arrays
    np.testing.assert_array_equal(frame.stress_eV_per_A3, SIX)
    assert frame.atoms.calc is None
    assert frame.name.endswith("data.extxyz, frame 0")
    atoms = crystal()
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=FORCES, stress=SIX, dipole=[1.0, 2.0, 3.0])
    plain = one(saved(tmp_path, atoms))
    assert plain.energy_eV == -1.0
    np.testing.assert_allclose(plain.stress_eV_per_A3, SIX, rtol=1e-15)
    np.testing.assert_array_equal(plain.labels["dipole"], [1.0, 2.0, 3.0])


def test_forces_of_fixed_atoms_are_read_raw(tmp_path):
    atoms = crystal()
    atoms.set_constraint(FixAtoms([0, 1]))
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=FORCES)
    write(tmp_path / "fixed.traj", atoms)
    np.testing.assert_array_equal(one(tmp_path / "fixed.traj").forces_eV_per_A, FORCES)


def test_compressed_files_read_the_same(tmp_path):
    path = saved(tmp_path, with_info(), with_info())
    with gzip.open(tmp_path / "data.xyz.gz", "wb") as file:
        file.write(path.read_bytes())
    a, b = read_dataset([path]), read_dataset([tmp_path / "data.xyz.gz"])
    assert len(b.frames) == 2
    assert data_hash(a.frames) == data_hash(b.frames)


@pytest.mark.parametrize("suffix", ["db", "json"])
def test_databases_give_results_key_value_pairs_and_data(tmp_path, suffix):
    path = tmp_path / f"data.{suffix}"
    first, second = crystal(), crystal()
    first.calc = SinglePointCalculator(first, energy=ENERGY, forces=FORCES)
    with connect(str(path)) as database:
        database.write(first, total_charge=1.0)
        database.write(second, REF_energy=ENERGY, total_charge=-1.0, data={"REF_forces": FORCES})
    a = one(Source(path, index="0"))
    b = one(Source(path, index="1"))
    for frame in (a, b):
        assert frame.energy_eV == ENERGY
        np.testing.assert_array_equal(frame.forces_eV_per_A, FORCES)
    assert (a.atoms.info["total_charge"], b.atoms.info["total_charge"]) == (1.0, -1.0)


def test_an_index_chooses_frames_that_keep_their_number(tmp_path):
    path = saved(tmp_path, *(with_info(n=n) for n in range(7)))
    assert [a.info["n"] for a in read_frames(path, "1::3")] == [1, 4]
    assert one(Source(path, index="-2")).name.endswith("frame 5")
    for index, fragment in (("9", "no frame 9 among 7"), ("first", "not understood"), ("8:", "at index 8:")):
        with pytest.raises(DataError, match=fragment):
            read_frames(path, index)


@pytest.mark.parametrize(
    ("unit", "target"),
    [("kcal/mol", "eV"), ("Ha", "eV"), ("a.u.", "eV"), ("meV", "eV")],
)
def test_units_are_converted(tmp_path, unit, target):
    frame = one(Source(saved(tmp_path, with_info()), keys={"energy": Key(unit=unit)}))
    assert frame.energy_eV == pytest.approx(ENERGY * conversion(unit, target), rel=1e-15)


def test_energies_per_atom_become_energies(tmp_path):
    frame = one(Source(saved(tmp_path, with_info()), keys={"energy": Key("REF_energy", "meV/atom")}))
    assert frame.energy_eV == pytest.approx(4 * ENERGY * 1e-3, rel=1e-15)


@pytest.mark.parametrize(
    ("value", "how"),
    [
        (SIX, Key()),
        (FULL, Key()),
        (FULL.ravel(), Key()),
        (SIX[[0, 1, 2, 5, 3, 4]], Key(order="vasp")),  # xx yy zz xy yz zx
        (-SIX, Key(sign="vasp")),
        (-SIX[[0, 1, 2, 5, 3, 4]] / conversion("kbar", "eV/A^3"), Key(None, "kbar", "vasp", "vasp")),
    ],
)
def test_a_stress_may_have_nine_numbers_six_in_two_orders_and_two_signs(tmp_path, value, how):
    frame = one(Source(saved(tmp_path, with_info(REF_stress=value)), keys={"stress": how}))
    np.testing.assert_allclose(frame.stress_eV_per_A3, SIX, rtol=1e-14)  # two roundings
    np.testing.assert_array_equal(frame.stress_eV_per_A3.shape, (6,))


@pytest.mark.parametrize("name", ["REF_virial", "virial"])
def test_a_virial_becomes_a_stress(tmp_path, name):
    """σ = −W/V."""
    volume = crystal().cell.volume
    frame = one(saved(tmp_path, with_info(**{name: -FULL * volume})))
    np.testing.assert_allclose(frame.stress_eV_per_A3, full_3x3_to_voigt_6_stress(FULL), rtol=1e-13)
    assert "virial" not in frame.labels


def test_a_stress_is_preferred_to_a_virial_unless_the_virial_is_asked_for(tmp_path):
    path = saved(tmp_path, with_info(REF_stress=SIX, dft_virial=-2 * FULL * crystal().cell.volume))
    np.testing.assert_allclose(one(path).stress_eV_per_A3, SIX, rtol=1e-15)
    frame = one(Source(path, keys={"virial": "dft_virial"}))
    np.testing.assert_allclose(frame.stress_eV_per_A3, 2 * SIX, rtol=1e-13)


def test_the_stress_of_a_slab_is_left_out_and_said_so(tmp_path):
    atoms = with_info(REF_stress=SIX)
    atoms.pbc = (True, True, False)
    data = read_dataset([saved(tmp_path, atoms)])
    assert data.frames[0].stress_eV_per_A3 is None
    assert any("left out: the stress of 1 frame" in note for note in data.notes)


def test_tensors_of_atoms_are_unfolded_and_may_be_transposed(tmp_path):
    atoms = with_info(REF_polarizability=np.arange(9.0))
    charges = np.arange(36.0)
    atoms.arrays["REF_becs"] = charges.reshape(4, 9)
    path = saved(tmp_path, atoms)
    frame = one(path)
    np.testing.assert_array_equal(frame.labels["born_charges"], charges.reshape(4, 3, 3))
    np.testing.assert_array_equal(frame.labels["polarizability"], np.arange(9.0).reshape(3, 3))
    turned = one(Source(path, keys={"born_charges": Key(transpose=True)}))
    np.testing.assert_array_equal(turned.labels["born_charges"], charges.reshape(4, 3, 3).swapaxes(1, 2))


def test_a_hessian_is_a_square_matrix(tmp_path):
    matrix = RNG.normal(size=(12, 12))
    frame = one(saved(tmp_path, with_info(REF_hessian=matrix)))
    np.testing.assert_array_equal(frame.labels["hessian"], matrix)
    with pytest.raises(DataError, match=r"the Hessian needs \(12, 12\)"):
        read_dataset([saved(tmp_path, with_info(REF_hessian=matrix[:3]))])


def test_atoms_without_label_are_nan_and_a_frame_without_any_has_none(tmp_path):
    first, second = with_info(), with_info()
    first.arrays["REF_nmr"] = np.arange(36.0).reshape(4, 9)
    first.arrays["has_nmr"] = np.array([1, 0, 1, 1])
    second.arrays["REF_nmr"] = np.zeros((4, 9))
    second.arrays["has_nmr"] = np.zeros(4, dtype=int)
    path = saved(tmp_path, first, second)
    extra = {"nmr": quantity_of_head("nmr", "atom", 2)}
    data = read_dataset([Source(path, keys={"nmr": Key(mask="has_nmr")})], extra=extra)
    label = data.frames[0].labels["nmr"]
    assert label.shape == (4, 3, 3)
    assert np.isnan(label[1]).all()
    assert np.isfinite(label[[0, 2, 3]]).all()
    assert "nmr" not in data.frames[1].labels
    assert data.counts()["default"]["nmr"] == 1
    assert any("nmr is missing in 1 of 2 frames" in note for note in data.notes)
    with pytest.raises(DataError, match="did you mean 'has_nmr'"):
        read_dataset([Source(path, keys={"nmr": Key(mask="has_nm")})], extra=extra)


def test_nan_in_a_label_of_an_atom_means_that_the_atom_has_none(tmp_path):
    atoms = with_info()
    atoms.arrays["REF_charges"] = np.array([0.1, np.nan, -0.1, 0.0])
    np.testing.assert_array_equal(one(saved(tmp_path, atoms)).labels["charges"], [0.1, np.nan, -0.1, 0.0])


def test_heads_of_any_rank_are_read_by_name(tmp_path):
    tensor = RNG.normal(size=(3, 3, 3, 3))
    extra = {"elastic": quantity_of_head("elastic", "structure", 4, "GPa")}
    source = Source(saved(tmp_path, with_info(C=tensor.ravel())), keys={"elastic": Key("C", "kbar")})
    frame = one(source, extra=extra)
    np.testing.assert_allclose(frame.labels["elastic"], 0.1 * tensor, rtol=1e-15)
    with pytest.raises(DataError, match="scope is 'structure' or 'atom'"):
        quantity_of_head("elastic", "cell", 4)


def test_conditions_are_put_where_the_model_reads_them(tmp_path):
    atoms = with_info(T=3000.0, charge=-1.0, field_au=np.array([0.0, 0.0, 0.001]))
    atoms.arrays["spin_vector"] = np.ones((4, 3))
    source = Source(
        saved(tmp_path, atoms),
        inputs={
            "electronic_temperature": Key("T", "K"),
            "electric_field": Key("field_au", "a.u."),
            "magnetic_moments": "spin_vector",
        },
    )
    names = ("total_charge", "electronic_temperature", "electric_field", "magnetic_moments")
    found = read_inputs(one(source).atoms, [InputConfig(name) for name in names])
    assert found["total_charge"] == -1
    assert found["electronic_temperature"] == pytest.approx(3000 * 8.617333262e-5, rel=1e-9)
    np.testing.assert_allclose(found["electric_field"], [0, 0, 0.0514220675], rtol=1e-9)
    np.testing.assert_array_equal(found["magnetic_moments"], np.ones((4, 3)))


def test_a_missing_label_is_counted_and_never_zero(tmp_path):
    bare = crystal()
    bare.info["REF_energy"] = -1.0
    path = saved(tmp_path, with_info(), bare, with_info())
    data = read_dataset([Source(path, keys={"forces": "REF_forces"})])
    assert data.frames[1].forces_eV_per_A is None
    assert data.table() == [{"fidelity": "default", "frames": 3, "energy": 3, "forces": 2, "stress": 0}]
    assert any("forces is missing in 1 of 3 frames" in note for note in data.notes)


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"keys": {"energy": "REF_energie"}}, "did you mean 'REF_energy'?"),
        ({"keys": {"dipole": Key(unit="Debye")}}, "no frame has dipole under 'REF_dipole, dipole'"),
        ({"keys": {"energies": "REF_energy"}}, "there is no quantity 'energies'; did you mean"),
        ({"keys": {"energy": Key(unit="GPa")}}, "'GPa' is a pressure but an energy is needed"),
        ({"keys": {"energy": "tag"}}, "frame 0: 'tag' is not a number"),
        ({"keys": {"energy": "REF_forces"}}, "has shape (4, 3); energy needs ()"),
        ({"keys": {"forces": "REF_energy"}}, "forces needs (4, 3)"),
        ({"inputs": {"charge": "q"}}, "there is no quantity 'charge'; did you mean"),
        ({"fidelity_key": "levle"}, "info['levle'] is missing; did you mean 'level'?"),
    ],
)
def test_a_wrong_key_is_told_with_what_would_work(tmp_path, options, fragment):
    source = Source(saved(tmp_path, with_info(tag="gold", level="pbe")), **options)
    with pytest.raises(TaceError) as caught:
        read_dataset([source])
    assert fragment in str(caught.value)


def test_bad_files_are_named(tmp_path):
    (tmp_path / "bad.xyz").write_text("three\nlines\nof text\n")
    (tmp_path / "empty.xyz").write_text("")
    far = crystal()
    far.positions[0] = np.inf
    for path, fragment in (
        (tmp_path / "none.xyz", "no such file"),
        (tmp_path / "bad.xyz", "cannot be read as structures"),
        (tmp_path / "empty.xyz", "empty.xyz"),
        (saved(tmp_path, far, name="far.xyz"), "positions that are not finite"),
        (saved(tmp_path, crystal()), "no frame has any label; name them: data.keys"),
    ):
        with pytest.raises(DataError, match=fragment):
            read_dataset([path])
    with pytest.raises(DataError, match="no data"):
        read_dataset([])
    with pytest.raises(DataError, match="'ase' or 'vasp'"):
        Key(sign="castep")
