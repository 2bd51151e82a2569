"""Structures drawn in characters."""

import pytest
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111, molecule

from alchemy.picture import BOND, MOST_ATOMS, picture


def lines(atoms, **size):
    return picture(atoms, **size).plain.splitlines()


def test_a_linear_molecule_is_a_line_of_its_symbols_with_bonds_between():
    (line,) = lines(molecule("HCN"))
    assert line.strip().replace(BOND, "") in ("HCN", "NCH")
    assert BOND in line


def test_every_atom_of_a_flat_molecule_is_seen():
    drawn = "".join(lines(molecule("C6H6")))
    assert drawn.count("C") == 6 and drawn.count("H") == 6


def test_an_adsorbate_is_drawn_above_its_slab():
    slab = fcc111("Cu", (2, 2, 3), vacuum=6.0)
    add_adsorbate(slab, "O", 1.5, "ontop")
    drawn = lines(slab)
    assert min(n for n, line in enumerate(drawn) if "O" in line) < min(
        n for n, line in enumerate(drawn) if "Cu" in line
    )


@pytest.mark.parametrize("size", [(20, 8), (64, 24)])
def test_a_picture_keeps_within_its_size(size):
    width, height = size
    for atoms in (molecule("C60"), bulk("Cu", cubic=True) * (3, 3, 3), Atoms("H")):
        drawn = lines(atoms, width=width, height=height)
        assert len(drawn) <= height and max(map(len, drawn)) <= width


def test_what_cannot_be_seen_is_not_drawn():
    assert picture(Atoms()) is None
    assert picture(bulk("Cu") * (8, 8, MOST_ATOMS // 64 + 1)) is None
