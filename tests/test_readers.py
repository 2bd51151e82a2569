"""Readers: labels as they stand in files, in one unit and shape, and never invented."""

from __future__ import annotations

import gzip
from dataclasses import replace
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.db import connect
from ase.io import write
from ase.stress import full_3x3_to_voigt_6_stress
from emt_campaign import write_campaign

from alchemy.campaign import run_campaign
from alchemy.config import load_campaign
from tace import readers
from tace.config import InputConfig
from tace.data import Labelled
from tace.errors import DataError, TaceError
from tace.inputs import read_inputs
from tace.keys import Key, quantity_of_head
from tace.readers import Dataset, Source, data_hash, read_dataset, read_frames
from tace.units import conversion

RNG = np.random.default_rng(0)
ENERGY = -3.25
FORCES = RNG.normal(size=(4, 3))
SIX = RNG.normal(size=6)  # ASE order
FULL = SIX[[0, 5, 4, 5, 1, 3, 4, 3, 2]].reshape(3, 3)


def crystal() -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, rng=np.random.default_rng(1))
    return atoms


def with_info(**info) -> Atoms:
    atoms = crystal()
    atoms.info.update(REF_energy=ENERGY, **info)
    atoms.arrays["REF_forces"] = FORCES.copy()
    return atoms


def saved(tmp_path, *frames, name="data.extxyz"):
    path = tmp_path / name
    write(path, list(frames), format="extxyz")
    return path


def one(source, **options):
    (frame,) = read_dataset([source], **options).frames
    return frame


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


def test_levels_come_from_the_source_or_from_each_frame(tmp_path):
    path = saved(tmp_path, with_info(level="pbe"), with_info(level="hse"), with_info(level="pbe"))
    assert read_dataset([Source(path, fidelity_key="level")]).fidelities == ("pbe", "hse")
    assert read_dataset([Source(path, fidelity="lda")]).fidelities == ("lda",)
    sources = [Source(path, fidelity_key="level"), Source(path, fidelity="lda")]
    both = read_dataset(sources, fidelities=("lda", "hse"))
    assert both.fidelities == ("lda", "hse")
    assert [row["frames"] for row in both.table()] == [3, 1]
    with pytest.raises(DataError, match="did you mean 'hse'"):
        read_dataset([Source(path, fidelity_key="level")], fidelities=("hs",))
    marked, bare = saved(tmp_path, with_info(fidelity="pbe")), saved(tmp_path, with_info(), name="bare.xyz")
    with pytest.raises(DataError, match=r"bare.xyz, frame 0 does not say its level"):
        read_dataset([marked, bare])


def test_single_atoms_become_reference_energies_of_their_level(tmp_path):
    atom = Atoms("Cu", info={"REF_energy": -1.5})
    data = read_dataset([saved(tmp_path, with_info(), atom)])
    assert data.e0_eV == {"default": {29: -1.5}}
    assert len(data.frames) == 1
    alloy = with_info()
    alloy.numbers[0] = 28
    data = read_dataset([saved(tmp_path, alloy, atom)])
    assert data.e0_eV == {}
    assert len(data.frames) == 2, "an atom that cannot serve as a reference is trained on"
    assert any("fitted (no single Ni atom)" in note for note in data.notes)
    with pytest.raises(DataError, match="nothing to train on"):
        read_dataset([saved(tmp_path, atom)])


def test_frames_marked_as_test_are_set_aside(tmp_path):
    data = read_dataset([saved(tmp_path, with_info(), with_info(split="test"), with_info(split="train"))])
    assert (len(data.frames), len(data.test)) == (2, 1)


def test_frames_without_a_needed_label_are_left_out(tmp_path):
    dipole = crystal()
    dipole.info["REF_dipole"] = np.ones(3)
    path = saved(tmp_path, with_info(), dipole)
    assert len(read_dataset([path]).frames) == 2
    data = read_dataset([path], need=("energy", "forces"))
    assert len(data.frames) == 1
    assert any("left out: 1 frame with neither label" in note for note in data.notes)


def test_labels_that_nobody_reads_are_told(tmp_path):
    data = read_dataset([saved(tmp_path, with_info(REF_quadrupole=np.ones(9)))])
    assert any("not read: REF_quadrupole" in note for note in data.notes)


def test_weights_of_a_source_reach_its_frames(tmp_path):
    assert one(Source(saved(tmp_path, with_info()), weight=0.25)).weight == 0.25


def test_the_hash_follows_the_content_and_nothing_else(tmp_path):
    frames = read_dataset([saved(tmp_path, with_info(REF_stress=SIX), with_info())]).frames
    frames[1] = replace(frames[1], labels={"dipole": np.ones(3)})
    mark = data_hash(frames)
    assert len(mark) == 64
    assert data_hash(frames[::-1]) == mark
    renamed = [replace(f, name="other") for f in frames]
    for frame in renamed:
        frame.atoms.info["comment"] = "x"
    assert data_hash(renamed) == mark
    moved = frames[0].atoms.copy()
    moved.positions[0, 0] = np.nextafter(moved.positions[0, 0], 9)
    charged = frames[0].atoms.copy()
    charged.info["total_charge"] = 1
    open_ = frames[0].atoms.copy()
    open_.pbc[0] = False
    wider = frames[0].atoms.copy()
    wider.cell[0, 0] += 1e-12
    other = frames[0].atoms.copy()
    other.numbers[0] = 28
    changes = [
        *({"atoms": a} for a in (moved, charged, open_, wider, other)),
        {"energy_eV": np.nextafter(ENERGY, 0)}, {"energy_eV": None}, {"forces_eV_per_A": FORCES + 1},
        {"stress_eV_per_A3": None}, {"fidelity": "b"}, {"weight": 2.0}, {"labels": {"dipole": np.ones(3)}},
    ]  # fmt: skip
    marks = {data_hash([replace(frames[0], **change), frames[1]]) for change in changes}
    assert len(marks | {mark}) == len(changes) + 1


def reader(path, **options):
    if path.suffix != ".yaml":
        return None
    frames = read_dataset([Source(path.with_suffix(".extxyz"), fidelity="plug")]).frames
    return Dataset(frames, ("plug",), (29,), e0_eV={"plug": {29: 0.0}}, cutoff_A=options.get("cutoff", 4.0))


def careless(path):
    return Dataset([Labelled(crystal(), energy_eV=1.0)], ("plug",), (29,))


def plugin(monkeypatch, value):
    point = EntryPoint("mine", value, readers.PLUGINS)
    monkeypatch.setattr(readers, "entry_points", lambda group: [point] if group == readers.PLUGINS else [])


def test_a_plug_in_reads_what_ase_does_not(tmp_path, monkeypatch):
    plugin(monkeypatch, f"{__name__}:reader")
    path = saved(tmp_path, with_info())
    mine = tmp_path / "data.yaml"
    mine.touch()
    data = read_dataset([Source(mine, options={"cutoff": 3.0})])
    assert data.cutoff_A == 3.0
    assert data.fidelities == ("plug",)
    assert read_dataset([path]).fidelities == ("default",), "what ASE reads is not given to a plug-in"
    assert one(Source(mine, weight=0.5)).weight == 0.5
    for options in ({"keys": {"energy": "x"}}, {"index": "0"}, {"fidelity": "pbe"}):
        with pytest.raises(DataError, match="keys, fidelities and indices are for files"):
            read_dataset([Source(mine, **options)])
    with pytest.raises(DataError, match="a folder that no reader knows; installed: mine"):
        read_dataset([tmp_path])


def test_a_broken_plug_in_is_named(tmp_path, monkeypatch):
    wrong = {"nowhere:reader": "'mine' .* cannot be loaded", "builtins:str": "returned str"}
    wrong[f"{__name__}:careless"] = "frames of level 'default', which it does not list"
    for value, fragment in wrong.items():
        plugin(monkeypatch, value)
        with pytest.raises(DataError, match=fragment):
            read_dataset([tmp_path])


def test_a_campaign_is_read_through_the_plug_in_of_alchemy(tmp_path, monkeypatch):
    """With its cutoff and reference energies, and in its own words where it has no labels."""
    plugin(monkeypatch, "alchemy.cli_dataset:read_campaign")
    path = write_campaign(tmp_path)
    with pytest.raises(DataError, match="start the campaign with 'alchemy run"):
        read_dataset([path])
    run_campaign(load_campaign(path), tmp_path / "mini", source=path, until=0)
    for place in (path, tmp_path / "mini"):
        data = read_dataset([place])
        assert len(data.frames) == 5
        assert len(data.test) == 2
        assert (data.fidelities, data.cutoff_A, list(data.e0_eV)) == (("emt",), 3.5, ["emt"])
    with pytest.raises(DataError, match="did you mean 'emt'"):
        read_dataset([Source(path, options={"fidelities": ["emd"]})])
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(DataError, match="a folder that no reader knows; installed: mine"):
        read_dataset([other])
