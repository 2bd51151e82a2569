"""Guards: frames in which a simulation went wrong fire, sound ones do not."""

import math

import numpy as np
import pytest
from alchemy_policies.guards import (
    Guards,
    Reference,
    close_pairs,
    count_fragments,
    guard_frame,
    hot_limit,
)
from ase import Atoms, units
from ase.build import molecule
from ase.neighborlist import neighbor_list


def reference(atoms, **limits):
    guards = Guards(**limits)
    return guards, Reference.of(atoms, guards)


def fires(atoms, positions=None, *, forces=None, hot=0, **limits):
    guards, fixed = reference(atoms, **limits)
    forces = np.zeros((len(atoms), 3)) if forces is None else forces
    where = atoms.positions if positions is None else positions
    return guard_frame(guards, fixed, where, forces_eV_per_A=forces, hot_checks=hot)


def test_each_guard_fires_with_its_code_and_a_sound_frame_passes():
    pair = Atoms("N2", [[0, 0, 0], [0, 0, 1.1]])
    assert fires(pair) is None
    assert fires(pair, np.full((2, 3), np.nan)) == "not-finite"
    assert fires(pair, forces=np.array([[0, 0, np.inf], [0, 0, 0]])) == "not-finite"
    assert fires(pair, forces=np.array([[0, 40.0, 40.0], [0, 0, 0]])) == "force"  # the norm counts
    assert fires(pair, forces=np.array([[0, 30.0, 30.0], [0, 0, 0]])) is None
    assert fires(pair, np.array([[0, 0, 0], [0, 0, 0.8]])) == "pair-distance"
    assert fires(pair, np.zeros((2, 3))) == "pair-distance"  # on top of each other
    assert fires(pair, hot=20) == "temperature" and fires(pair, hot=19) is None
    apart = np.array([[0, 0, 0], [0, 0, 6.0]])
    assert fires(pair, apart) is None
    assert fires(pair, apart, fragment_gap_A=5.0) == "dissociated"
    gas = Atoms("N2", apart)
    assert fires(gas, fragment_gap_A=5.0) is None  # apart from the start


def test_atoms_that_meet_through_a_periodic_face_are_too_close():
    cell = [[4.0, 0, 0], [2.0, 3.5, 0], [0.3, 0.4, 6.0]]
    atoms = Atoms("C2", [[0.1, 0.1, 0.1], [0, 0, 3.0]], cell=cell, pbc=True)
    beyond = atoms.positions.copy()
    beyond[1] = beyond[0] + np.array(cell).sum(0) * 3 + [0.3, 0, -0.2]
    assert fires(atoms) is None and fires(atoms, beyond) == "pair-distance"
    atoms.pbc = [True, True, False]
    assert fires(atoms, beyond) is None  # no image along the third axis


@pytest.mark.parametrize("pbc", [(0, 0, 0), (1, 1, 0), (1, 1, 1)])
@pytest.mark.parametrize("cutoff", [1.5, 4.0])
def test_close_pairs_agree_with_ases_neighbour_list(pbc, cutoff):
    rng = np.random.default_rng(sum(pbc))
    cell = np.diag([2.0, 3.0, 7.0]) + rng.uniform(-0.8, 0.8, (3, 3))  # smaller than the cutoff
    atoms = Atoms("C8", rng.uniform(-5, 9, (8, 3)), cell=cell, pbc=pbc)
    theirs = neighbor_list("ijd", atoms, cutoff)
    i, j, d = close_pairs(reference(atoms)[1], atoms.positions, cutoff)
    other = i != j  # an atom's own images never move relative to it
    mine = sorted(zip(i[other], j[other], d[other].round(9), strict=True))
    keep = theirs[0] != theirs[1]
    assert mine == sorted(
        zip(theirs[0][keep], theirs[1][keep], theirs[2][keep].round(9), strict=True)
    )


def test_fragments_are_counted_through_the_periodic_faces():
    atoms = Atoms("Cu2", [[0, 0, 0.2], [0, 0, 9.8]], cell=[3, 3, 10], pbc=True)
    _, fixed = reference(atoms)
    assert count_fragments(fixed, atoms.positions, 2.0) == 1
    _, open_face = reference(Atoms("Cu2", atoms.positions, cell=atoms.cell, pbc=[1, 1, 0]))
    assert count_fragments(open_face, atoms.positions, 2.0) == 2


STIFF = {  # Morse: equilibrium distance Å, depth eV, range 1/Å (Huber & Herzberg's D_e, r_e, ω_e)
    "N2": (1.098, 9.91, 2.70),
    "CO": (1.128, 11.2, 2.30),
    "H2": (0.741, 4.75, 1.94),
    "OH": (0.970, 4.62, 2.29),
}


@pytest.mark.parametrize("formula", STIFF)
@pytest.mark.parametrize("temperature", [600.0, 2000.0])
def test_a_hot_vibration_does_not_trip_the_pair_distance(formula, temperature):
    r0, depth, width = STIFF[formula]
    atoms = Atoms(formula)
    grid = np.linspace(0.5 * r0, 1.5 * r0, 401)
    energy = depth * (1 - np.exp(-width * (grid - r0))) ** 2
    tripped = [
        fires(atoms, np.array([[0, 0, 0], [0, 0, r]]), forces=None) is not None for r in grid
    ]
    barrier = energy[np.array(tripped) & (grid < r0)].min()
    # e^-25 = 1e-11 per look: never in a campaign; 0.7 would let N2 pass at 6 kT
    assert barrier > 25 * units.kB * temperature


@pytest.mark.parametrize("name", ["H2O", "CH4", "C2H2", "CO2", "SO2", "LiF", "SiH4", "C6H6"])
def test_molecules_at_rest_trip_nothing(name):
    assert fires(molecule(name), fragment_gap_A=4.0) is None


def test_a_metal_oxo_bond_is_no_collision():
    uranyl = Atoms("OUO", [[0, 0, -1.77], [0, 0, 0], [0, 0, 1.77]])
    assert fires(uranyl) is None and fires(uranyl, pair_factor=0.7) == "pair-distance"


def test_few_atoms_may_fluctuate_further_before_they_count_as_hot():
    assert hot_limit(300, 3000, ratio=3) == 900
    for freedom in (3, 6, 9):
        draws = np.random.default_rng(freedom).chisquare(freedom, 200_000) / freedom * 300
        limit = hot_limit(300, freedom, ratio=3)
        assert limit > 900 and (draws > limit).sum() <= 4  # one in a million: 0.2 expected
        assert (draws > 900).sum() > 20  # the plain rule would fire
    assert hot_limit(300, 0, ratio=3) == math.inf


def slab_with_atom(height=3.0):
    from ase.build import add_adsorbate, fcc111

    slab = fcc111("Cu", (2, 2, 3), vacuum=8.0, periodic=True)
    add_adsorbate(slab, "O", height, "ontop")
    return slab


def test_what_leaves_a_slab_is_stopped_when_it_is_nearer_to_the_image_of_the_slab():
    slab = slab_with_atom()
    gap = slab.cell[2, 2] - np.ptp(slab.positions[:, 2])
    for lift, expected in ((0.45 * gap, None), (0.55 * gap, "through-vacuum")):
        where = slab.positions.copy()
        where[-1, 2] += lift
        assert fires(slab, where) == expected
        assert fires(slab, where, vacuum_A=None) is None


def test_a_slab_that_drifts_as_a_whole_or_is_cut_by_its_cell_has_crossed_nothing():
    slab = slab_with_atom()
    assert fires(slab, slab.positions + np.array([0, 0, 25.0])) is None
    cut = slab.copy()
    cut.positions[:, 2] += 0.5 * slab.cell[2, 2]
    cut.wrap()
    assert fires(cut) is None
    where = cut.positions.copy()
    where[-1, 2] += 0.6 * (slab.cell[2, 2] - np.ptp(slab.positions[:, 2]))
    assert fires(cut, where) == "through-vacuum"


def test_molecules_in_a_box_and_crystals_have_no_vacuum_to_cross():
    box = molecule("CH4", vacuum=6.0, pbc=True)
    crystal = Atoms("Cu", cell=np.eye(3) * 2.5, pbc=True)
    for atoms in (box, crystal, molecule("CH4")):
        assert reference(atoms)[1].vacua == ()
