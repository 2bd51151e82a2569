"""`alchemy data import` and `export`: files of other programs, and mistakes in them."""

import json
import sys

import numpy as np
import pytest
from ase.build import bulk
from ase.db import connect
from ase.io import read, write
from store_helpers import in_conditions, label_of, labelled_frames, water
from user_campaign import campaign_folder

from alchemy.identity import structure_uid
from alchemy.store import PropertySpec, SplitRow, Store


@pytest.mark.parametrize("suffix", ["xyz", "db", "aselmdb"])
def test_what_is_exported_and_imported_again_is_the_same(run, tmp_path, suffix):
    if suffix == "aselmdb":
        pytest.importorskip("ase_db_backends.aselmdb", reason="pip install ase-db-backends to test .aselmdb")
    source = Store(tmp_path / "a.h5")
    frames = labelled_frames()
    rng = np.random.default_rng(1)
    rows = [
        in_conditions(atoms, energy=-1.0, electric_field=[0, 0, 0.1 * (i + 1)])
        for i, atoms in enumerate(frames)
    ]
    values = {
        "dipole": rng.normal(size=3),
        "polarizability": rng.normal(size=(3, 3)),
        "charges": np.array([0.1, np.nan, 0.3, 0.4]),
        "born_charges": rng.normal(size=(4, 3, 3)).round(6),
        "hessian": rng.normal(size=(12, 12)),
        "octupole": rng.normal(size=(3, 3, 3)),
    }
    rows = [type(r)(**{**vars(r), "properties": values, "stress_eV_per_A3": np.arange(6.0)}) for r in rows]
    octupole = PropertySpec("structure", (3, 3, 3), "e*A^3", "octupole")
    uid = structure_uid(frames[0])
    split = [SplitRow(uid, "test", 0.0)]
    source.append(structures=frames, labels=rows, splits=split, quantities={"octupole": octupole})
    file = tmp_path / f"all.{suffix}"
    code, out, _ = run("data", "export", source.path, file, "--ref-keys")
    assert (code, out) == (0, f"3 labelled structures in {file}\n")
    code, out, err = run("data", "import", tmp_path / "b.h5", file, "--label", "octupole:structure:3:e*A^3")
    assert code == 0, err
    assert "3 new structures; new labels: 3 of pbe" in out
    found = Store(tmp_path / "b.h5").snapshot()
    assert found.uids() == source.snapshot().uids()
    assert found.part_of() == {uid: "test"}
    ours = {row.structure_uid: row for row in source.snapshot().labels()}
    for row in found.labels():
        own = ours[row.structure_uid]
        assert row.energy_eV == own.energy_eV
        np.testing.assert_allclose(row.forces_eV_per_A, own.forces_eV_per_A, atol=1e-8)
        np.testing.assert_allclose(row.stress_eV_per_A3, own.stress_eV_per_A3, atol=1e-8)
        np.testing.assert_allclose(row.conditions["electric_field"], own.conditions["electric_field"])
        assert row.properties.keys() == own.properties.keys()
        for name, value in own.properties.items():
            np.testing.assert_allclose(row.properties[name], value, atol=1e-8, err_msg=name)
    code, out, _ = run("data", "import", tmp_path / "b.h5", file, "--label", "octupole:structure:3:e*A^3")
    assert "0 new structures; new labels: none; known already: 3" in out
    assert run("data", "export", source.path, file)[0] == 2, "it exists"
    assert run("data", "export", source.path, file, "--force", "--where", "split == 'test'")[0] == 0
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []
    number = len(read(file, ":")) if suffix == "xyz" else connect(file).count()
    assert number == 1


def test_import_reads_keys_units_and_conditions(run, tmp_path):
    frames = labelled_frames()
    for atoms in frames:
        atoms.info["E"] = atoms.calc.results["energy"] / 27.211386245981
        atoms.calc = None
    write(tmp_path / "in.xyz", frames)
    words = ("data", "import", tmp_path / "b.h5", tmp_path / "in.xyz", "--fidelity", "ccsd")
    assert run(*words, "--key", "energy=E:Ha", "--part", "train", "--json")[0] == 0
    rows = Store(tmp_path / "b.h5").snapshot().labels()
    np.testing.assert_allclose(sorted(row.energy_eV for row in rows), [-3, -2, -1], rtol=1e-7)
    assert sum("electric_field" in row.conditions for row in rows) == 3
    assert all("charges" in row.properties and "charges" not in row.conditions for row in rows)
    assert set(Store(tmp_path / "b.h5").snapshot().part_of().values()) == {"train"}
    code, _, err = run(*words, "--key", "energy=E:fathom")
    assert (code, "unknown unit 'fathom'" in err) == (2, True)
    code, _, err = run(*words, "--key", "energy=E:Bohr")
    assert (code, "is a length but an energy is needed" in err) == (2, True)
    assert "write it as energy=REF_energy" in run(*words, "--key", "energy")[2]
    assert "write it as quadrupole:atom:2" in run(*words, "--label", "x:frame:2")[2]


VASP = """<?xml version="1.0" encoding="ISO-8859-1"?>
<modeling>
 <incar><i type="string" name="PREC">normal</i></incar>
 <kpoints><generation param="Gamma"><v type="int" name="divisions"> 1 1 1 </v></generation>
  <varray name="kpointlist"><v> 0.0 0.0 0.0 </v></varray>
  <varray name="weights"><v> 1.0 </v></varray></kpoints>
 <parameters></parameters>
 <atominfo><atoms> 2 </atoms><types> 1 </types>
  <array name="atoms"><set><rc><c>Cu</c><c>1</c></rc><rc><c>Cu</c><c>1</c></rc></set></array>
  <array name="atomtypes"><set>
   <rc><c>2</c><c>Cu</c><c>63.5</c><c>11.0</c><c> PAW_PBE Cu </c></rc></set></array>
 </atominfo>
 <structure name="initialpos">{crystal}{positions}</structure>
 <calculation>
  <scstep><energy><i name="e_fr_energy"> -7.50 </i><i name="e_wo_entrp"> -7.30 </i>
   <i name="e_0_energy"> -7.40 </i></energy></scstep>
  <structure>{crystal}{positions}</structure>
  <varray name="forces"><v> 0.1 0.0 0.0 </v><v> -0.1 0.0 0.0 </v></varray>
  <varray name="stress">
   <v> 10.0 0.0 0.0 </v><v> 0.0 20.0 0.0 </v><v> 0.0 0.0 30.0 </v></varray>
  <energy><i name="e_fr_energy"> -7.50 </i><i name="e_wo_entrp"> -7.30 </i>
   <i name="e_0_energy"> -7.40 </i></energy>
 </calculation>
</modeling>
"""
CRYSTAL = """<crystal><varray name="basis">
<v> 4.0 0.0 0.0 </v><v> 0.0 4.0 0.0 </v><v> 0.0 0.0 4.0 </v></varray>
<i name="volume"> 64.0 </i></crystal>"""
POSITIONS = """<varray name="positions"><v> 0.0 0.0 0.0 </v><v> 0.5 0.5 0.5 </v></varray>"""


def test_a_run_of_vasp_is_imported_with_the_energy_that_is_asked_for(run, tmp_path):
    (tmp_path / "vasprun.xml").write_text(VASP.format(crystal=CRYSTAL, positions=POSITIONS))
    words = ("data", "import", tmp_path / "v.h5", tmp_path / "vasprun.xml", "--fidelity")
    assert run(*words, "pbe")[0] == 0
    code, _, err = run(*words, "pbe-free", "--key", "energy=free_energy")
    assert code == 0, err
    rows = {row.fidelity: row for row in Store(tmp_path / "v.h5").snapshot().labels()}
    assert (rows["pbe"].energy_eV, rows["pbe"].energy_kind) == (-7.4, "total")
    assert (rows["pbe-free"].energy_eV, rows["pbe-free"].energy_kind) == (-7.5, "free")
    np.testing.assert_allclose(rows["pbe"].forces_eV_per_A, [[0.1, 0, 0], [-0.1, 0, 0]])
    # VASP's stress is in kbar and positive under compression; ASE's sign is the other one
    np.testing.assert_allclose(
        rows["pbe"].stress_eV_per_A3[:3], -np.array([10, 20, 30]) * 6.241509074e-4, rtol=1e-6
    )


def test_pymatgen_reads_what_is_exported_for_it(run, tmp_path):
    from pymatgen.core import Molecule, Structure

    store = Store(tmp_path / "a.h5")
    cu = bulk("Cu", cubic=True)
    rows = [label_of(cu), label_of(water(), properties={"charges": np.array([np.nan, 1.0, 2.0])})]
    store.append(structures=[cu, water()], labels=rows)
    assert run("data", "export", store.path, tmp_path / "x.json")[0] == 0
    entries = {e["uid"]: e for e in json.loads((tmp_path / "x.json").read_text())}
    crystal = Structure.from_dict(entries[structure_uid(cu)]["structure"])
    np.testing.assert_allclose(crystal.lattice.matrix, cu.cell)
    np.testing.assert_allclose(crystal.cart_coords, cu.positions, atol=1e-8)
    assert len(Molecule.from_dict(entries[structure_uid(water())]["molecule"])) == 3
    assert entries[structure_uid(water())]["labels"]["charges"] == [None, 1.0, 2.0]


@pytest.mark.parametrize(
    ("suffix", "module", "package"),
    [("parquet", "pyarrow", "pyarrow"), ("aselmdb", "ase_db_backends.aselmdb", "ase-db-backends")],
)
def test_a_format_without_its_package_says_which(run, filled, tmp_path, monkeypatch, suffix, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / f"given.{suffix}").write_bytes(b"PAR1")
    code, _, err = run("data", "export", filled.path, tmp_path / f"x.{suffix}")
    assert (code, f"needs the package {package}: pip install 'tace-alchemy[{suffix}]'" in err) == (3, True)
    assert not (tmp_path / f"x.{suffix}").exists()
    if suffix == "aselmdb":
        words = ("data", "import", tmp_path / "b.h5", tmp_path / f"given.{suffix}", "--fidelity", "pbe")
        code, _, err = run(*words)
        assert (code, "pip install ase-db-backends" in err) == (2, True), err


def test_parquet_holds_every_label_with_its_conditions(run, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install pyarrow to test parquet")
    store, atoms = Store(tmp_path / "a.h5"), water()
    rows = [
        label_of(atoms, properties={"charges": np.array([0.1, np.nan, 0.3])}),
        in_conditions(atoms, energy=-2.5, electric_field=[0, 0, 0.1]),
    ]
    store.append(structures=[atoms, water(0.1)], labels=rows)
    assert run("data", "export", store.path, tmp_path / "x.parquet")[0] == 0
    table = {row["key"]: row for row in parquet.read_table(tmp_path / "x.parquet").to_pylist()}
    assert table.keys() == {row.key for row in rows}
    for row in rows:
        found = table[row.key]
        assert found["energy_eV"] == row.energy_eV
        np.testing.assert_array_equal(found["forces_eV_per_A"], row.forces_eV_per_A.ravel())
        np.testing.assert_array_equal(found["positions_A"], atoms.positions.round(8).ravel())
        assert (found["stress_eV_per_A3"], found["numbers"]) == (None, [8, 1, 1])
    np.testing.assert_array_equal(table[rows[0].key]["charges"], [0.1, np.nan, 0.3])
    assert table[rows[1].key]["condition_electric_field"] == [0, 0, 0.1]


def test_an_export_needs_a_format_and_a_level_that_is_there(run, filled, tmp_path):
    code, _, err = run("data", "export", filled.path, tmp_path / "x.csv")
    assert (code, "the suffix names no format; use .xyz" in err) == (2, True)
    assert "no labels of 'pbr'; did you mean 'pbe'" in run(
        "data", "export", filled.path, tmp_path / "x.xyz", "--fidelity", "pbr"
    )[2]


def test_a_level_that_a_campaign_does_not_have_is_refused(run, tmp_path):
    folder = campaign_folder(tmp_path)
    write(tmp_path / "in.xyz", labelled_frames(1))
    code, _, err = run("data", "import", folder, tmp_path / "in.xyz", "--fidelity", "emtt")
    assert (code, "the campaign has no level 'emtt'; did you mean 'emt'?" in err) == (2, True)
    assert run("data", "import", folder, tmp_path / "in.xyz", "--fidelity", "emt")[0] == 0
    assert run("data", "query", folder / "copper" / "store.h5", "fidelity == 'emt'", "--count")[1] == "1\n"


def nan_energy(tmp_path):
    atoms = labelled_frames(1)[0]
    atoms.calc.results["energy"] = float("nan")
    return [atoms]


def wrong_shape(tmp_path):
    atoms = labelled_frames(1)[0]
    atoms.info["dipole"] = [1.0, 2.0]
    return [atoms]


def no_level(tmp_path):
    return labelled_frames(1)


@pytest.mark.parametrize(
    ("frames", "words", "message"),
    [
        (nan_energy, ["--fidelity", "pbe"], "not-finite: NaN or infinity in energy"),
        (wrong_shape, ["--fidelity", "pbe"], "'dipole' has shape (2,)"),
        (no_level, [], "which level of theory is this? Name it: --fidelity"),
        (no_level, ["--fidelity", "pbe", "--index", "9:x"], "index '9:x' is not understood"),
        (no_level, ["--fidelity", "pbe", "--key", "enrgy=E"], "there is no quantity 'enrgy'"),
    ],
)
def test_an_import_that_cannot_be_right_changes_nothing(run, filled, tmp_path, frames, words, message):
    write(tmp_path / "in.xyz", [*labelled_frames(2), *frames(tmp_path)][-1:])
    before = {p.name: p.read_bytes() for p in filled.directory.iterdir()}
    code, _, err = run("data", "import", filled.path, tmp_path / "in.xyz", *words)
    assert (code, message in err) == (2, True), err
    assert {p.name: p.read_bytes() for p in filled.directory.iterdir()} == before
