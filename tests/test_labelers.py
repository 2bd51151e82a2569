"""Labelers: forces are slopes of energies, records read back, mistakes in options and templates are told.

Structures are tiny; one PySCF label here takes some tenths of a second.
"""

import json
from importlib.resources import files

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from label_helpers import SMALL, label, make, needs, water

from alchemy.errors import (
    EnvironmentProblemError,
    InputError,
    PluginError,
    StoreDamagedError,
    StructureError,
)
from alchemy.labelers.base import fingerprint, make_labeler, render
from alchemy.labelers.isolated import isolated_atom
from alchemy.records import LabelRecord


def slope_error(atoms, labeler, root, *, step_A):
    """|finite difference of the energy along a random direction − force along it|, in eV/Å."""
    direction = np.random.default_rng(3).normal(size=(len(atoms), 3))
    direction /= np.linalg.norm(direction)
    records = []
    for sign in (0, 1, -1):
        moved = atoms.copy()
        moved.positions += sign * step_A * direction
        records.append(label(moved, labeler, root))
    assert [(r.status, r.message) for r in records] == [("ok", "")] * 3
    here, up, down = records
    slope = (down.energy_eV - up.energy_eV) / (2 * step_A)
    return abs(slope - float((here.forces_eV_per_A * direction).sum()))


# --- laws of nature -------------------------------------------------------------------------------


def test_emt_forces_are_the_slope_of_the_energy(tmp_path):
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    # EMT's cutoff function makes the curvature steep: O(h²) is 1e-7 at this step
    assert slope_error(atoms, make("emt"), tmp_path, step_A=1e-4) < 1e-5


@needs("tblite")
def test_tblite_forces_are_the_slope_of_the_free_energy(tmp_path):
    # accuracy 0.01 converges energies to 1e-9 eV, which step 1e-3 turns into 1e-6 eV/Å; O(h²) 1e-5
    labeler = make("tblite", accuracy=0.01)
    assert slope_error(water(), labeler, tmp_path, step_A=1e-3) < 1e-4
    hot = make("tblite", accuracy=0.01, electronic_temperature_K=20000.0)
    stretched = Atoms("N2", [[0, 0, 0], [0, 0, 1.8]])  # entropy matters here: 1 eV
    assert slope_error(stretched, hot, tmp_path, step_A=1e-3) < 1e-4
    assert label(stretched, hot, tmp_path).energy_kind == "free"


@needs("pyscf")
@pytest.mark.parametrize("charge", [0, 1])
def test_pyscf_forces_are_the_slope_of_the_energy(charge, tmp_path):
    atoms = water()
    atoms.info["charge"] = charge  # +1 is a doublet: unrestricted
    # grid level 1 on purpose: without the grid's response the error would be above 1e-3;
    # with it the rest is the SCF (1e-4) and O(h²) at 0.002 Å (1e-5)
    labeler = make("pyscf", conv_tol_hartree=1e-10, conv_tol_gradient=1e-6, **SMALL)
    assert slope_error(atoms, labeler, tmp_path, step_A=2e-3) < 3e-4


@needs("tblite")
def test_tblite_stress_is_the_slope_of_the_energy_under_strain(tmp_path):
    cell = [[4.0, 0.3, 0.0], [0.0, 4.0, 0.5], [0.2, 0.0, 4.0]]
    crystal = Atoms("H2", [[0, 0, 0], [0.1, 0.2, 0.75]], cell=cell, pbc=True)
    labeler, step = make("tblite", accuracy=0.01), 1e-3
    here = label(crystal, labeler, tmp_path)
    for voigt, (i, j) in {0: (0, 0), 2: (2, 2), 3: (1, 2), 5: (0, 1)}.items():
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[i, j] += sign * step / 2
            strain[j, i] += sign * step / 2
            moved = crystal.copy()
            moved.set_cell(crystal.cell @ strain, scale_atoms=True)
            energies.append(label(moved, labeler, tmp_path).energy_eV)
        slope = (energies[0] - energies[1]) / (2 * step * crystal.get_volume())
        # O(step²) is 1e-6 of stiffness, some eV/Å³; the components are 1e-3 to 2e-2 eV/Å³
        assert here.stress_eV_per_A3[voigt] == pytest.approx(slope, abs=1e-5)


@needs("pyscf")
def test_pyscf_agrees_with_nwchem_on_water(tmp_path):
    # NWChem 7.0.2, PBE/6-31G, this geometry: -2075.995983 eV. Different integration grids agree to
    # 1e-5 eV; constants differ by 1e-8 relative (CODATA), that is 2e-5 eV
    labeler = make("pyscf", method="PBE", basis="6-31G", density_fit=False, grid_level=3)
    assert label(water(), labeler, tmp_path).energy_eV == pytest.approx(-2075.995983, abs=2e-4)


@needs("pyscf")
def test_the_oxygen_atom_is_a_triplet(tmp_path):
    labeler = make("pyscf", **SMALL)
    triplet, singlet = isolated_atom("O"), isolated_atom("O")
    singlet.info["multiplicity"] = 1
    records = [label(atoms, labeler, tmp_path) for atoms in (triplet, singlet)]
    # experiment: 1.97 eV to the ¹D term; single determinants put the closed shell higher
    assert records[0].energy_eV < records[1].energy_eV - 1.0
    assert records[0].key != records[1].key


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("emt", {}),
        pytest.param("tblite", {}, marks=needs("tblite")),
        pytest.param("pyscf", SMALL, marks=needs("pyscf")),
    ],
)
def test_isolated_atoms_can_be_labelled(name, options, tmp_path):
    for symbol in "HCNO":
        record = label(isolated_atom(symbol), make(name, **options), tmp_path)
        assert record.status == "ok", record.message
        assert np.abs(record.forces_eV_per_A).max() < 1e-6  # nothing to pull at it


def test_isolated_atoms_follow_hund():
    spins = {symbol: isolated_atom(symbol).info["multiplicity"] for symbol in ("H", "C", "N", "Pd")}
    assert spins == {"H": 2, "C": 3, "N": 4, "Pd": 1}
    with pytest.raises(StructureError, match="Qq"):
        isolated_atom("Qq")


# --- raw, quiet, recorded -------------------------------------------------------------------------


def test_constraints_do_not_reach_the_label(tmp_path):
    slab = bulk("Cu", cubic=True)
    slab.rattle(0.1, seed=1)
    free = slab.copy()
    slab.set_constraint(FixAtoms([0, 1]))
    record = label(slab, make("emt"), tmp_path)
    free.calc = EMT()
    assert np.array_equal(record.forces_eV_per_A, free.get_forces())
    assert np.array_equal(record.stress_eV_per_A3, free.get_stress())


@needs("pyscf")
def test_pyscf_prints_nothing_and_leaves_only_our_files(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = label(water(), make("pyscf", **SMALL), tmp_path / "labels")
    assert capfd.readouterr() == ("", "")
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {"input.yaml", "structure.json", "output.json", "record.json"}
    # 0.4 e·Å is 1.9 D, water's dipole; it points from O (above) to the hydrogens (below)
    assert record.dipole_eA[2] == pytest.approx(-0.35, abs=0.1)


def test_a_record_read_back_is_the_record_written(tmp_path):
    atoms = water()
    atoms.info["multiplicity"] = 1
    record = label(atoms, make("emt"), tmp_path)
    again = LabelRecord.read(tmp_path / record.key)
    assert again.to_document() == record.to_document()
    assert np.array_equal(again.atoms.positions, atoms.positions)
    assert again.atoms.info == {"multiplicity": 1}
    assert (again.physics, again.key) == (make("emt").physics(), record.key)


def test_a_damaged_record_is_named(tmp_path):
    record = label(water(), make("emt"), tmp_path)
    path = tmp_path / record.key / "record.json"
    whole = path.read_text()
    without_forces = {**json.loads(whole), "forces_eV_per_A": [[0.0, 0.0, 0.0]]}
    for text in (whole[:100], "{}", json.dumps(without_forces), whole.replace('"ok"', '"fine"')):
        path.write_text(text)
        with pytest.raises(StoreDamagedError, match=str(path)):
            label(water(), make("emt"), tmp_path)


# --- templates, options, fingerprints -------------------------------------------------------------


def edited(tmp_path, name, old, new):
    text = files("alchemy_templates").joinpath(f"labelers/{name}.yaml.j2").read_text()
    assert old in text
    path = tmp_path / "mine.j2"
    path.write_text(text.replace(old, new))
    return make_labeler(name, {"template": "mine.j2"}, base_dir=tmp_path)


@needs("pyscf")
def test_the_fingerprint_follows_the_physics_and_nothing_else(tmp_path):
    plain = fingerprint(make("pyscf"))
    assert plain == fingerprint(make("pyscf", threads=4, max_cycle=7, retries=0))
    assert plain != fingerprint(make("pyscf", basis="STO-3G"))
    assert plain == fingerprint(edited(tmp_path, "pyscf", "# Input of", "# My input of"))
    assert plain != fingerprint(
        edited(tmp_path, "pyscf", "grid_response: true", "grid_response: false")
    )
    mine = edited(tmp_path, "pyscf", "attributes: {}", "attributes: {nonsense: 1}")
    with pytest.raises(InputError, match="no setting 'nonsense'"):
        label(water(), mine, tmp_path)


@needs("tblite")
def test_physics_in_a_template_must_not_depend_on_the_structure(tmp_path):
    labeler = edited(tmp_path, "tblite", "{{ accuracy | tojson }}", "{{ 1 + multiplicity }}")
    with pytest.raises(InputError, match="depends on the structure"):
        label(isolated_atom("O"), labeler, tmp_path)


@needs("tblite")
def test_mistakes_in_templates_name_file_and_key(tmp_path):
    with pytest.raises(InputError, match=r"mine\.j2.*'colour' is undefined.*method"):
        edited(tmp_path, "tblite", "{{ method | tojson }}", "{{ colour }}")
    with pytest.raises(
        InputError, match=r"physics: unknown key 'acuracy'; did you mean 'accuracy'"
    ):
        edited(tmp_path, "tblite", "accuracy:", "acuracy:")
    with pytest.raises(InputError, match=r"path\.threads is 'many', which is not int"):
        make("tblite", threads="many")
    with pytest.raises(InputError, match="cannot be read"):
        make("tblite", template="nowhere.j2")


def test_templates_cannot_run_code(tmp_path):
    path = tmp_path / "evil.j2"
    path.write_text("{{ ''.__class__.__mro__ }}")
    with pytest.raises(InputError, match="unsafe"):
        render(path, {})


def test_unknown_names_and_options_are_answered_with_the_nearest():
    with pytest.raises(PluginError, match="did you mean 'pyscf'"):
        make("pyscff")
    with pytest.raises(InputError, match=r"no option 'acuracy'; did you mean 'accuracy'\?.*method"):
        make("tblite", acuracy=1.0)
    with pytest.raises(InputError, match=r"labeler 'ase'.*calculator"):
        make("ase")


@needs("pyscf")
def test_misspelt_methods_stop_the_campaign_instead_of_failing_every_label(tmp_path):
    with pytest.raises(InputError, match="no functional 'PBEE'"):
        label(water(), make("pyscf", method="PBEE"), tmp_path)
    with pytest.raises(InputError, match="no basis set 'def2-SVQ'"):
        label(water(), make("pyscf", basis="def2-SVQ"), tmp_path)
    with pytest.raises(EnvironmentProblemError, match="no_such_code"):
        label(water(), make("ase", calculator="no_such_code.Calculator"), tmp_path)
