"""Inputs that the labelers of programs write: golden files, elements by name, what is refused."""

from __future__ import annotations

import dataclasses
import shutil

import code_cases
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixAtoms
from ase.io import read
from code_cases import GOLDEN, POTCARS, SPECIES, aims, cases, cp2k, mixed_crystal, oxygen, rendered, vasp

from alchemy.errors import EnvironmentProblemError, InputError
from alchemy.labelers.base import (
    LabelFailureError,
    fingerprint,
    make_labeler,
    require_elements,
    template_text,
)
from alchemy.labelers.nwchem import NwchemLabeler
from alchemy.labelers.orca import OrcaLabeler
from alchemy.labelers.xtb import XtbLabeler

MOLECULAR = {"nwchem": NwchemLabeler, "orca": OrcaLabeler, "xtb": XtbLabeler}


def inputs(labeler, atoms):
    return labeler.inputs(atoms, labeler.options())


@pytest.mark.parametrize("case", sorted(cases()))
def test_the_rendered_inputs_are_the_golden_files(case):
    expected = {path.name: path.read_text() for path in (GOLDEN / case).iterdir()}
    assert rendered(*cases()[case]) == expected


def test_every_golden_folder_has_its_case():
    assert {path.name for path in GOLDEN.iterdir()} == set(cases())


# first words of the lines that a rung may take away from the input as asked
OF_THE_PATH = {
    "aims": {"sc_iter_limit", "charge_mix_param", "n_max_pulay", "mixer"},
    "cp2k": {"MAX_SCF", "ALPHA", "MINIMIZER", "PRECONDITIONER", "&OT", "&OUTER_SCF", "&END"},
    "nwchem": {"iterations", "damp", "lshift"},
    "orca": {"MaxIter", "!"},
    "vasp": {"ALGO", "NELM", "AMIX", "BMIX"},
    "xtb": {"maxiterations=250", "broydamp=0.4"},
}


@pytest.mark.parametrize("case", sorted(cases()))
def test_every_rung_is_another_path_in_the_input_and_nothing_else(case):
    labeler, atoms = cases()[case]
    texts = [
        labeler.inputs(atoms, {**labeler.options(), **changes})[labeler.input_name]
        for changes in ({}, *labeler.rungs().values())
    ]
    assert len(set(texts)) == len(texts)
    for text in texts[1:]:
        gone = set(map(str.strip, texts[0].splitlines())) - set(map(str.strip, text.splitlines()))
        assert {line.split()[0] for line in gone} <= OF_THE_PATH[labeler.name]


# --- VASP: by name, never by order ----------------------------------------------------------------


def test_the_poscar_is_grouped_and_the_potcar_follows_it():
    files = inputs(vasp(), mixed_crystal())
    lines = files["POSCAR"].splitlines()
    assert lines[5].split() == ["C", "O", "Pd"] and lines[6].split() == ["1", "1", "2"]
    titles = [line.split()[3] for line in files["POTCAR"].splitlines() if "TITEL" in line]
    assert titles == ["C", "O", "Pd_pv"]


def test_the_poscar_is_the_structure_to_the_last_digit(tmp_path):
    (tmp_path / "POSCAR").write_text(inputs(vasp(), mixed_crystal())["POSCAR"])
    found, asked = read(tmp_path / "POSCAR", format="vasp"), mixed_crystal()
    order = [1, 3, 0, 2]
    assert list(found.symbols) == [asked.symbols[i] for i in order]
    # 16 digits of fractions of 5 Å
    assert np.abs(found.positions - asked.positions[order]).max() < 1e-14
    assert np.abs(np.asarray(found.cell) - np.asarray(asked.cell)).max() < 1e-14


def test_constraints_never_become_selective_dynamics():
    atoms = mixed_crystal()
    atoms.set_constraint(FixAtoms([0]))
    assert "elective" not in inputs(vasp(), atoms)["POSCAR"]
    assert "constrain" not in inputs(aims(), atoms)["geometry.in"]


def test_a_potcar_of_another_element_is_refused():
    with pytest.raises(InputError, match=r"shall be the POTCAR of Pd, but its TITEL is: PAW_PBE O"):
        inputs(vasp(potcars={"Pd": "O", "C": "C", "O": "O"}), mixed_crystal())


def test_an_element_without_its_file_is_named_with_the_option():
    with pytest.raises(InputError, match="'potcars' says nothing for Cu"):
        inputs(vasp(), bulk("Cu"))
    with pytest.raises(InputError, match="'species' says nothing for Cu"):
        inputs(aims(), bulk("Cu"))
    with pytest.raises(InputError, match="'basis' says nothing for Cu"):
        inputs(cp2k(basis={"Pd": "DZVP"}), bulk("Cu"))
    with pytest.raises(InputError, match="'basis' names no set for H"):
        inputs(NwchemLabeler(basis={"O": "6-31g"}), molecule("H2O"))
    with pytest.raises(EnvironmentProblemError, match=r"no file Pd_sv/POTCAR .searched: .*`potcar_dir`"):
        vasp(potcars={"Pd": "Pd_sv"}).physics()
    with pytest.raises(EnvironmentProblemError, match=r"no file BASIS_UZH .*`data_dir`"):
        cp2k(basis_file="BASIS_UZH").physics()
    with pytest.raises(InputError, match="has no line 'species Pd'"):
        aims(species={"Pd": "light/08_O_default"}).physics()


def test_elements_of_a_campaign_are_looked_up_before_the_first_label(tmp_path):
    require_elements(vasp(), ["Pd", "C"])
    require_elements(aims(), ["Pd", "C"])
    (tmp_path / "BASIS_MOLOPT").write_text("# Cu DZVP\n Pd DZVP-MOLOPT-SR-GTH DZVP-MOLOPT-SR-GTH-q18\n 1\n")
    (tmp_path / "GTH_POTENTIALS").write_text("Pd GTH-PBE-q18 GTH-PBE\n")
    require_elements(cp2k(data_dir=str(tmp_path)), ["Pd"])
    with pytest.raises(InputError, match="BASIS_MOLOPT has no DZVP-MOLOPT-SR-GTH for C; see `basis`"):
        require_elements(cp2k(data_dir=str(tmp_path)), ["Pd", "C"])
    with pytest.raises(InputError, match=r"BASIS_MOLOPT has no TZVP for Pd"):
        require_elements(cp2k(data_dir=str(tmp_path), basis="TZVP"), ["Pd"])
    for labeler in (vasp(), aims(), NwchemLabeler(basis={"O": "6-31g"})):
        with pytest.raises(InputError, match="for Cu"):
            require_elements(labeler, ["O", "Cu"])


# --- the fingerprint ------------------------------------------------------------------------------


def test_the_fingerprint_sees_what_is_in_a_data_file_and_not_where_it_lies(tmp_path):
    for make, source, option, file in (
        (vasp, POTCARS, "potcar_dir", "Pd_pv/POTCAR"),
        (aims, SPECIES, "species_dir", "light/46_Pd_default"),
        (cp2k, code_cases.BASIS, "data_dir", "GTH_POTENTIALS"),
    ):
        place = tmp_path / option
        shutil.copytree(source, place)
        assert fingerprint(make(**{option: str(place)})) == fingerprint(make())
        (place / file).write_text((place / file).read_text() + "another line\n")
        assert fingerprint(make(**{option: str(place)})) != fingerprint(make())


@pytest.mark.parametrize("code", ["aims", "cp2k", "nwchem", "orca", "vasp", "xtb"])
def test_physics_changes_the_fingerprint_and_the_path_does_not(code):
    labeler = next(labeler for labeler, _ in cases().values() if labeler.name == code)
    for option, value in labeler.options().items():
        other = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: 2 * v + 0.1}.get(type(value))
        if other is None or option in ("potcar_dir", "species_dir", "data_dir"):
            continue
        changed = dataclasses.replace(labeler, **{option: other(value)})
        same = fingerprint(changed) == fingerprint(labeler)
        assert same == (option in labeler.path_options), option


def test_a_rung_that_names_physics_is_refused_by_every_code():
    for labeler, _ in cases().values():
        physics = next(
            name for name, value in labeler.options().items()
            if name not in labeler.path_options and isinstance(value, (int, float, str))
        )  # fmt: skip
        with pytest.raises(InputError, match=f"'{physics}' is physics"):
            dataclasses.replace(labeler, ladder={"wrong": {physics: labeler.options()[physics]}})


def test_an_edited_template_is_another_physics_and_its_comments_are_not(tmp_path):
    for labeler, _ in list(cases().values()):
        mine = tmp_path / f"{labeler.name}.j2"
        mark = labeler.comment_marks[0]
        mine.write_text(f"{mark} my own words\n\n" + template_text(labeler.own_template))
        assert fingerprint(dataclasses.replace(labeler, template=str(mine))) == fingerprint(labeler)
        mine.write_text(template_text(labeler.own_template) + "\none more keyword\n")
        assert fingerprint(dataclasses.replace(labeler, template=str(mine))) != fingerprint(labeler)


def test_a_flag_of_the_command_cannot_change_the_method_behind_the_fingerprint():
    with pytest.raises(InputError, match="'--gfn' may change the level of theory"):
        XtbLabeler(command="xtb coord.tmol --input {input} --grad --gfn 1")
    XtbLabeler(command="xtb coord.tmol --input {input} --grad --norestart -P 4")


# --- structures that a code does not treat --------------------------------------------------------


@pytest.mark.parametrize("name", sorted(MOLECULAR))
def test_molecular_codes_refuse_periodic_structures(name):
    with pytest.raises(LabelFailureError, match="periodic-not-supported"):
        inputs(MOLECULAR[name](), mixed_crystal())


@pytest.mark.parametrize("make", [vasp, aims])
def test_unpaired_electrons_need_spin(make):
    with pytest.raises(LabelFailureError, match=r"bad-multiplicity.*`spin` is false"):
        inputs(make(), oxygen())


@pytest.mark.parametrize("labeler", [vasp(spin=True), aims(spin=True), cp2k(), NwchemLabeler(), XtbLabeler()])
def test_an_impossible_multiplicity_is_refused(labeler):
    atoms = Atoms("OH", [(0, 0, 0), (0, 0, 0.97)], info={"multiplicity": 3})
    with pytest.raises(LabelFailureError, match="bad-multiplicity: multiplicity 3 does not fit 9 electrons"):
        inputs(labeler, atoms)


@pytest.mark.parametrize("make", [vasp, aims, cp2k])
def test_charged_cells_must_be_meant(make):
    atoms = mixed_crystal()
    atoms.info["charge"] = 2
    with pytest.raises(LabelFailureError, match=r"charge-not-supported.*charge \+2.*charged_cells"):
        inputs(make(), atoms)
    inputs(make(charged_cells=True), atoms)


def test_xtb_knows_elements_up_to_radon():
    with pytest.raises(LabelFailureError, match="element-not-supported: xtb has no parameters for U"):
        inputs(XtbLabeler(), Atoms("UO", [(0, 0, 0), (0, 0, 1.8)]))
    with pytest.raises(InputError, match="GFN2-xTB"):
        XtbLabeler(method="GFN2xTB")


def test_relative_folders_start_at_the_campaign_file(tmp_path):
    shutil.copytree(POTCARS, tmp_path / "potcars")
    options = {"encut_eV": 400.0, "potcars": {"Pd": "Pd_pv"}, "potcar_dir": "potcars"}
    assert make_labeler("vasp", options, base_dir=tmp_path).physics()["data_files"].keys() == {"Pd"}
    with pytest.raises(InputError, match="has no option 'potcar'"):
        make_labeler("vasp", {"potcar": "x"}, base_dir=tmp_path)
    with pytest.raises(InputError, match="encut_eV"):
        make_labeler("vasp", {"potcars": {}}, base_dir=tmp_path)
