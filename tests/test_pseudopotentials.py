"""Pseudopotentials are found by name and believed by their header; boxes and k grids."""

import math

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from program_helpers import write_upf

from alchemy.errors import InputError
from alchemy.labelers.boxes import in_a_box, k_grid
from alchemy.labelers.pseudopotentials import Library, canonical, read_header

PATTERN = "{element}[._-]*.upf"


@pytest.fixture
def shelf(tmp_path):
    folder = tmp_path / "pseudo"
    folder.mkdir()
    write_upf(folder / "Cu.pbe-kjpaw.UPF", "Cu")
    write_upf(folder / "Cu.pz-d.UPF", "Cu", "SLA  PZ   NOGX NOGC")
    write_upf(folder / "Cu.rel-pbe.UPF", "Cu", so=True)
    write_upf(folder / "Cu.coulomb-ae.UPF", "Cu", bare=True)
    write_upf(folder / "C.pbe-a.UPF", "C", version=1)
    write_upf(folder / "c_pbe_v1.2.uspp.F.UPF", "C", "PBE")
    write_upf(folder / "Pt.rel-pbe.UPF", "Pt", so=True)
    (folder / "O_US.van").write_text("an old format")
    (folder / "O.upf").write_text("not that format either")
    return folder


def library(folder, functional="PBE", **chosen):
    return Library(folder, chosen, PATTERN, functional)


def test_both_versions_of_the_format_tell_element_and_functional(shelf):
    for name, element in (("Cu.pbe-kjpaw.UPF", "Cu"), ("C.pbe-a.UPF", "C")):
        header = read_header(shelf / name)
        assert (header.element, header.functional, header.spin_orbit) == (element, "PBE", False)
    assert read_header(shelf / "Cu.rel-pbe.UPF").spin_orbit
    with pytest.raises(InputError, match=r"O_US\.van is not a UPF file"):
        read_header(shelf / "O_US.van")


@pytest.mark.parametrize(
    ("spelled", "name"),
    [
        (" SLA  PW   PBX  PBC ", "PBE"), ("pbe", "PBE"), ("SLA  PW   PBE  PBE     PBE", "PBE"),
        ("PBESOL", "PBESOL"), (" SLA  PW   PSX  PSC", "PBESOL"), ("LDA        ", "LDA"), ("PZ", "LDA"),
        ("SCAN", "SCAN"),
    ],
)  # fmt: skip
def test_functionals_have_one_name(spelled, name):
    assert canonical(spelled) == name


def test_an_element_with_one_fitting_file_is_found_whatever_else_lies_there(shelf):
    assert library(shelf).file("Cu").name == "Cu.pbe-kjpaw.UPF"
    assert library(shelf, "LDA").file("Cu").name == "Cu.pz-d.UPF"
    assert {e: path.name for e, path in library(shelf).known().items()} == {"Cu": "Cu.pbe-kjpaw.UPF"}


def test_a_choice_of_files_is_left_to_the_user(shelf):
    with pytest.raises(InputError, match=r"of C: .*pseudo has 2 of PBE \(C\.pbe-a.*c_pbe_v1.*choose one"):
        library(shelf).file("C")
    chosen = library(shelf, C="c_pbe_v1.2.uspp.F.UPF")
    assert chosen.file("C").name == "c_pbe_v1.2.uspp.F.UPF"
    # what is chosen for some is chosen for all, so that the fingerprint covers these files and no others
    assert list(chosen.known()) == ["C"]
    with pytest.raises(InputError, match=r"of Cu: `pseudopotentials` names none; .* has Cu\.pbe-kjpaw"):
        chosen.file("Cu")


def test_a_missing_element_is_told_with_what_there_is_instead(shelf):
    message = r"of Pt: .*none for PBE under a name like Pt.*only Pt\.rel-pbe\.UPF \(fully relativistic\)"
    with pytest.raises(InputError, match=message):
        library(shelf).file("Pt")
    with pytest.raises(InputError, match=r"of Pd: .*pseudopotentials: \{Pd: <file>\}"):
        library(shelf).file("Pd")
    with pytest.raises(InputError, match="there is no directory"):
        library(shelf / "nowhere").file("Cu")


def test_a_file_of_another_element_or_functional_is_refused(shelf):
    with pytest.raises(InputError, match=r"Ag: .*Cu\.pbe-kjpaw\.UPF is of Cu"):
        library(shelf, Ag="Cu.pbe-kjpaw.UPF").file("Ag")
    with pytest.raises(InputError, match=r"Cu: .*Cu\.pz-d\.UPF is for LDA, not for PBE"):
        library(shelf, Cu="Cu.pz-d.UPF").file("Cu")
    with pytest.raises(InputError, match="there is no element 'CU'"):
        library(shelf, CU="Cu.pz-d.UPF")
    with pytest.raises(InputError, match=r"gone\.UPF cannot be read"):
        library(shelf, Cu="gone.UPF").file("Cu")
    with pytest.raises(InputError, match=r"pseudo_pattern '\{symbol\}\.upf'"):
        Library(shelf, {}, "{symbol}.upf", "PBE")


# --- boxes and grids ------------------------------------------------------------------------------


@pytest.mark.parametrize("vacuum", [5.0, 6.0, 6.7])
def test_a_box_does_not_follow_small_moves_and_leaves_the_atoms_alone(vacuum):
    water = molecule("H2O")
    box = in_a_box(water, vacuum)
    assert np.array_equal(box.positions, water.positions)
    assert box.pbc.all()
    room = np.diag(box.cell) - np.ptp(water.positions, axis=0)
    assert ((room >= vacuum + 1) & (room <= vacuum + 5)).all()
    assert (np.diag(box.cell) % 2.0 == 0).all()
    for step in (-0.02, 0.02):
        moved = water.copy()
        moved.positions[1] += step
        assert np.array_equal(in_a_box(moved, vacuum).cell, box.cell)
    framed = water.copy()
    framed.set_cell([30, 30, 30])  # a molecule's cell means nothing
    assert np.array_equal(in_a_box(framed, vacuum).cell, box.cell)


def test_periodic_directions_keep_their_vectors():
    copper = bulk("Cu")
    assert np.array_equal(in_a_box(copper, 9.0).cell, copper.cell)
    slab = fcc111("Cu", (1, 1, 3), vacuum=5.0)
    assert np.array_equal(in_a_box(slab, 9.0).cell, slab.cell)  # its vacuum is its own
    bare = fcc111("Cu", (1, 1, 3))
    bare.cell[2] = 0.0
    boxed = in_a_box(bare, 9.0)
    assert np.array_equal(boxed.cell[:2], bare.cell[:2])
    assert boxed.cell[2] == pytest.approx([0, 0, 16.0])  # 4.2 Å of copper fill 6, 9 Å 10


def test_k_grids_follow_the_reciprocal_lengths():
    cube = Atoms("Al", cell=[4.0, 4.0, 8.0], pbc=True)
    spacing = 2 * math.pi / 4.0 / 3  # 1/Å: three divisions of the short vectors' reciprocals, exactly
    assert k_grid(cube, spacing) == (3, 3, 2)
    assert k_grid(cube, spacing * 0.999) == (4, 4, 2)
    cube.pbc = (True, True, False)
    assert k_grid(cube, spacing) == (3, 3, 1)
    cube.pbc = False
    assert k_grid(cube, spacing) == (1, 1, 1)
    # a primitive fcc cell: |b| = 2π√3/a
    assert k_grid(bulk("Cu", a=3.6), 2 * math.pi * math.sqrt(3) / 3.6 / 4) == (4, 4, 4)


def test_a_supercell_has_the_grid_of_the_same_density():
    single = bulk("Al", cubic=True)
    spacing = 0.2
    double = single.repeat((2, 1, 1))
    first, second = k_grid(single, spacing), k_grid(double, spacing)
    assert second[1:] == first[1:]
    assert second[0] == math.ceil(first[0] / 2)
