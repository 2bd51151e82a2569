"""What counts as a saddle: modes, members, both ways down, turns of groups, twins."""

from __future__ import annotations

import numpy as np
import pytest
from alchemy_policies import PolicyError
from alchemy_policies.calculators import CalculatorSessions
from alchemy_policies.ts import (
    Reaction,
    bond_changes,
    bonds,
    isomorphic,
    reactions_from_frames,
    verified,
    with_sella,
)
from alchemy_policies.ts.dimer import climb_dimer
from alchemy_policies.ts.modes import hessians, rigid_motions, vibrations
from alchemy_policies.ts.reactions import distance_between
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from ts_helpers import (
    HCN,
    HIGH,
    HIGH_BARRIER,
    HNC,
    HOP,
    LEFT,
    LOW,
    MIDDLE,
    RIGHT,
    MullerBrown,
    adatom,
    at,
    explore,
    outcomes,
    surface_of,
    turned_methyl,
    watch,
)  # fmt: skip


def xtb():
    return pytest.importorskip("tblite.ase").TBLite(method="GFN2-xTB", verbosity=0)


def judged(point, reaction=HOP, *calculators, **settings):
    surface = surface_of(at(point), *(calculators or [MullerBrown()]))
    return verified(surface, reaction, at(point).positions, **settings)


def test_a_saddle_joins_the_two_minima_that_it_lies_between():
    saddle = judged(HIGH)
    assert (saddle.verdict, saddle.imaginary) == ("saddle", 1)
    ends = [end[1, :2] for end in saddle.ends_A]
    # relaxed to 0.05 eV/Å where the softest spring is 3 eV/Å²: 17 mÅ
    assert ends[0] == pytest.approx(LEFT, abs=0.02)
    assert ends[1] == pytest.approx(MIDDLE, abs=0.02)
    # force² / (2 curvature): 0.4 meV at an end
    assert saddle.barriers_eV[0] == pytest.approx(HIGH_BARRIER, abs=2e-3)
    assert saddle.path_eV.argmax() == np.flatnonzero((saddle.path_A == saddle.positions_A).all((1, 2)))[0]


@pytest.mark.parametrize(
    ("point", "calculator", "verdict"),
    [
        (LEFT, MullerBrown(), "no-imaginary-mode"),
        (HIGH, MullerBrown(spring=-3.0), "several-imaginary-modes"),
        (LOW, MullerBrown(), "other-ends"),
    ],
)
def test_other_stationary_points_are_no_saddles_of_the_reaction(point, calculator, verdict):
    assert judged(point, HOP, calculator).verdict == verdict


def test_a_saddle_counts_only_where_every_member_sees_it():
    members = [MullerBrown(scale=s) for s in (0.9, 1.1)]
    agreeing = judged(HIGH, HOP, *members)
    assert agreeing.verdict == "saddle"
    assert agreeing.overlaps == pytest.approx([1.0, 1.0], abs=1e-6)
    # the mean still bends down once, but one member bends down across the path instead
    split = judged(HIGH, HOP, MullerBrown(scale=2.0), MullerBrown(scale=0.05, spring=-0.5))
    assert split.imaginary == 1
    assert split.verdict == "members-disagree"
    upside = judged(HIGH, HOP, MullerBrown(scale=3.0), MullerBrown(scale=-1.0))
    assert upside.curvatures_eV_per_A2.max() > 0
    assert upside.verdict == "members-disagree"


def test_a_saddle_without_named_ends_joins_two_different_minima():
    alone = Reaction("from a guess", at(LOW), is_guess=True)
    saddle = judged(LOW, alone)
    assert saddle.verdict == "saddle"
    found = sorted(end[1, 0] for end in saddle.ends_A)
    assert found == pytest.approx([MIDDLE[0], RIGHT[0]], abs=0.02)


def test_a_descent_that_is_cut_short_is_no_proof():
    assert judged(HIGH, HOP, irc_steps=400).verdict == "saddle"
    surface = surface_of(at(HIGH), MullerBrown())
    from alchemy_policies.ts.irc import descend
    from alchemy_policies.ts.saddles import _by_ends

    saddle = judged(HIGH)
    short = descend(
        surface, saddle.positions_A, saddle.mode, fmax_eV_per_A=1e-6, max_steps=2, max_relax_steps=1
    )
    assert _by_ends(surface, HOP, saddle, short).verdict == "irc-failed"


def test_a_methyl_that_turns_is_rejected_as_such():
    start = turned_methyl(60.0)
    turning = ({"name": "rotor", "reactant": 0, "is_guess": True},)
    found = explore([start], xtb(), reactions=turning, search={"method": "dimer"})
    (report,) = found.facts["reactions"]
    assert report["outcome"] == "rotation-only"
    assert report["turning"] > 0.95  # D3h: the mode is the rotation and nothing else
    assert report["imaginary_modes"] == 1
    assert not found.candidates  # a rotor is not worth a label
    # asked for by its ends, the same barrier is a reaction
    asked = explore([turned_methyl(0.0), turned_methyl(120.0)], xtb(), search={"method": "dimer"})
    assert outcomes(asked) == ["saddle"]
    # of ethane: experiment and theory give 0.11 to 0.13 eV
    assert asked.facts["reactions"][0]["barrier_eV"] == pytest.approx(0.12, abs=0.02)


def test_hcn_turns_into_hnc_by_every_method():
    barriers = []
    for method in ("neb+dimer", "dimer"):
        found = explore([HCN, HNC], xtb(), search={"method": method, "images": 4})
        (report,) = found.facts["reactions"]
        assert report["outcome"] == "saddle", method
        assert report["lowest_frequencies_per_cm"][0] < -1000  # a hydrogen moves
        barriers.append(report["barrier_eV"])
    assert barriers[0] == pytest.approx(barriers[1], abs=1e-3)  # both within 0.02 eV/Å of the saddle
    permuted = ({"name": "other", "reactant": 0, "product": 1},)
    refused = explore([HCN, HNC[[1, 0, 2]]], xtb(), reactions=permuted)
    assert outcomes(refused) == ["disconnected"]


def test_a_saddle_that_is_found_again_is_a_duplicate():
    starts = [at(LEFT), at(MIDDLE), at(MIDDLE), at(LEFT)]
    found = explore(starts, MullerBrown())
    assert outcomes(found) == ["saddle", "duplicate"]
    assert {c.walker for c in found.candidates if c.reason == "saddle"} == {0}


def test_an_adatom_hops_on_a_slab_the_same_by_band_and_dimer():
    reports = []
    for method in ("neb", "neb+dimer"):
        found = explore([adatom(), adatom(1.0)], EMT(), search={"method": method, "images": 5})
        assert outcomes(found) == ["saddle"]
        reports.append(found.facts["reactions"][0])
        for candidate in found.candidates:
            assert (candidate.atoms.positions[:4] == adatom().positions[:4]).all()  # the fixed layer
            assert (candidate.atoms.cell == adatom().cell).all()
    # both stop at 0.02 eV/Å, on a saddle of 0.4 eV/Å²: half a meV
    assert reports[0]["barrier_eV"] == pytest.approx(reports[1]["barrier_eV"], abs=1e-3)
    forth, back = reports[0]["barrier_eV"], reports[0]["reverse_barrier_eV"]
    assert forth == pytest.approx(back, abs=1e-3)  # the two hollow sites are alike


def test_the_dimer_leaves_a_molecule_unturned_and_finds_the_softest_mode():
    surface = surface_of(turned_methyl(50.0), xtb())
    start = turned_methyl(50.0).positions
    end = climb_dimer(surface, start, watch(surface), fmax_eV_per_A=0.02, max_steps=80)
    assert end.outcome == "converged"
    rigid = rigid_motions(surface, end.positions_A)
    weighted = (end.mode * np.sqrt(surface.masses)[:, None]).ravel()
    assert abs(rigid @ weighted).max() < 1e-8  # projected out, to round-off
    modes = vibrations(surface, end.positions_A, hessians(surface, end.positions_A).mean)
    overlap = abs((modes.displacements[0] * end.mode).sum())
    assert overlap > 0.98  # rotated to within 5°, which is a cosine of 0.996, twice


def test_frequencies_are_those_of_ase():
    from ase.optimize import BFGS
    from ase.vibrations import Vibrations

    water = molecule("H2O")
    water.calc = xtb()
    BFGS(water, logfile=None).run(fmax=1e-3)
    surface = surface_of(water, xtb())
    ours = vibrations(surface, water.positions, hessians(surface, water.positions).mean)
    assert len(ours.frequencies_per_cm) == 3  # rigid motions are left out
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        theirs = Vibrations(water, name=f"{folder}/vib")
        theirs.run()
        expected = np.sort(theirs.get_frequencies().real)[-3:]
    # they differ by what mixing with rigid motions does to ASE's
    assert ours.frequencies_per_cm == pytest.approx(expected, abs=0.5)


def test_a_linear_molecule_has_one_vibration_more():
    surface = surface_of(HCN, xtb())
    assert len(rigid_motions(surface, HCN.positions)) == 5
    assert len(rigid_motions(surface, HCN.positions + np.eye(3) * 0.1)) == 6


def test_sella_is_asked_for_only_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(with_sella, "find_spec", lambda name: None)
    with pytest.raises(PolicyError, match=r"pip install 'tace-alchemy\[sella\]'"):
        explore([at(LEFT), at(MIDDLE)], MullerBrown(), search={"method": "sella"})


@pytest.mark.slow
def test_sella_finds_the_saddle_that_the_dimer_finds():
    pytest.importorskip("sella")
    found = [
        explore([adatom(), adatom(1.0)], EMT(), search={"method": m, "images": 5}).facts["reactions"][0]
        for m in ("neb+sella", "neb+dimer")
    ]
    assert [f["outcome"] for f in found] == ["saddle", "saddle"]
    assert found[0]["barrier_eV"] == pytest.approx(found[1]["barrier_eV"], abs=1e-3)


def test_the_same_molecule_is_known_in_any_order_of_atoms(rng):
    ethanol = molecule("CH3CH2OH")
    order = rng.permutation(len(ethanol))
    moved = ethanol[order]
    moved.rotate(77, (1, 2, 3))
    assert isomorphic(ethanol, moved)
    assert not isomorphic(ethanol, molecule("CH3OCH3"))
    assert not isomorphic(HCN, HNC)
    # every carbon of cubane looks alike: colours alone decide nothing
    cube = np.array(np.meshgrid([0, 1], [0, 1], [0, 1])).T.reshape(-1, 3) * 1.55
    cubane = Atoms("C8", cube)
    assert len(bonds(cubane)) == 12
    assert isomorphic(cubane, cubane[rng.permutation(8)])
    twisted = cubane.copy()
    twisted.positions[:, 0] *= 1.4  # two squares
    assert not isomorphic(cubane, twisted)


def test_distances_between_structures_do_not_see_how_they_are_turned(rng):
    ethanol = molecule("CH3CH2OH")
    turned = ethanol.copy()
    turned.rotate(40, (1, 0, 2))
    turned.translate((3, 1, 2))
    assert distance_between(ethanol, turned) < 1e-9
    mirrored = ethanol.copy()
    mirrored.positions[:, 2] *= -1
    mirrored.positions[3] += 0.5
    assert distance_between(ethanol, mirrored) > 0.1
    wrapped = adatom(1.0, wrapped=True)
    wrapped.positions[:] += wrapped.cell[0]
    assert distance_between(adatom(1.0), wrapped) < 1e-9


def swap(steps=4, wobble=0.0):
    """Frames in which H leaves C for N, through a stretched bond that once swings back."""
    frames = [HCN.copy() for _ in range(4)]
    frames[2].positions[0, 0] -= wobble
    for share in np.linspace(0, np.pi, steps):
        atoms = HCN.copy()
        centre = atoms.positions[1:].mean(0)
        atoms.positions[0] = centre + np.array([-1.645 * np.cos(share), 1.9 * np.sin(share), 0.0])
        frames.append(atoms)
    return [*frames, *(HNC.copy() for _ in range(4))]


def test_a_lasting_change_of_bonds_in_md_becomes_a_reaction():
    frames = swap()
    (change,) = bond_changes(frames, hold=3)
    assert change.formed == {(0, 2)}
    assert change.broken == {(0, 1)}
    assert change.before < change.after
    (reaction,) = reactions_from_frames(frames)
    # not beside the change, where the old bond is stretched to 1.6 radii and a relaxation may go either way
    assert (frames[change.before] == HCN, frames[change.after] == HNC) == (True, True)
    assert reaction.reactant == frames[change.before]
    assert reaction.product == frames[change.after]
    assert isomorphic(frames[0], HCN)
    there_and_back = frames + frames[::-1]
    assert len(bond_changes(there_and_back)) == 2
    assert len(reactions_from_frames(there_and_back)) == 1  # the same one, backwards
    # 1.35 × the radii: a vibration, no reaction
    assert bond_changes(swap(wobble=0.4)[:4]) == []
    assert bond_changes([]) == []


def test_calculators_form_a_committee():
    members = [MullerBrown(slope=s) for s in (-0.3, 0.3)]
    session = CalculatorSessions(members)([at(LEFT)])
    said = session(at(LEFT).positions, True)
    assert said.forces.shape == (2, 2, 3)
    assert said.mean_forces == pytest.approx(said.forces.mean(0))
    assert np.ptp(said.forces[:, 1, 0]) == pytest.approx(0.6)
    with pytest.raises(PolicyError, match="at least one"):
        CalculatorSessions([])
