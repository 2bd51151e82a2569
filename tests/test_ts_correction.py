"""A committee put right at its labels, and what that saves the loop around a saddle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from alchemy_policies import PolicyError, TransitionStates
from alchemy_policies.calculators import CalculatorSessions
from alchemy_policies.calibration import Calibration
from alchemy_policies.ts import Corrected, Label, Reaction, checked, refine_saddle, search
from alchemy_policies.ts.correction import Coordinates
from alchemy_policies.ts.repulsion import Repulsion
from alchemy_policies.ts.tether import Tether
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.fd import calculate_numerical_forces
from ase.calculators.morse import MorsePotential
from ts_helpers import HOP as IN_PLANE
from ts_helpers import LOW, MullerBrown, adatom, at, explore, surface_of

ALUMINIUM = {"epsilon": 0.2703, "r0": 3.253, "rho0": 1.1646 * 3.253, "rcut1": 1.6, "rcut2": 2.0}


def morse(**changed: float) -> MorsePotential:
    """Girifalco & Weizer, Phys. Rev. 114, 687 (1959), whose bridge is a saddle of second order."""
    return MorsePotential(**{**ALUMINIUM, **changed})


def labelled(frames: list[Atoms]) -> list[tuple[Atoms, Label]]:
    found = []
    for atoms in frames:
        work = atoms.copy()
        work.calc = EMT()
        found.append((atoms, Label(work.get_potential_energy(), work.get_forces(apply_constraint=False))))
    return found


def rattled(atoms: Atoms, count: int, seed: int = 0) -> list[Atoms]:
    rng, frames = np.random.default_rng(seed), []
    for _ in range(count):
        frame = atoms.copy()
        frame.set_constraint()
        frame.positions += rng.normal(0.0, 0.08, frame.positions.shape)
        frame.set_constraint(atoms.constraints)
        frames.append(frame)
    return frames


@dataclass(frozen=True)
class Asked:
    energies: np.ndarray
    forces: np.ndarray


def asked(factory, atoms: Atoms) -> Asked:
    said = factory([atoms])(atoms.positions, True)
    assert said.mean_forces == pytest.approx(said.forces.mean(0), abs=1e-12)  # rounding of a sum
    return Asked(said.energies[:, 0], said.forces)


METHANOL, HOLLOW = molecule("CH3OH"), adatom()
MEMBERS: list[Calculator] = [morse(), morse(epsilon=0.3)]


@pytest.mark.parametrize("atoms", [METHANOL, HOLLOW], ids=["molecule", "slab"])
@pytest.mark.parametrize("count", [1, 4])
def test_every_member_says_at_a_label_what_the_label_says(atoms, count):
    labels = labelled(rattled(atoms, count))
    plain = CalculatorSessions(MEMBERS)
    factory = Corrected(plain, atoms, labels)
    free = np.setdiff1d(np.arange(len(atoms)), [i for c in atoms.constraints for i in c.index])
    lacking, left = [], []
    for frame, label in labels:
        for one, kept in ((plain, lacking), (factory, left)):
            said = asked(one, frame)
            kept.append((said.energies - label.energy_eV, (said.forces - label.forces_eV_per_A)[:, free]))
    energies, forces = zip(*left, strict=True)
    width = np.ptp([e for e, _ in lacking], axis=0).max() + np.abs([f for _, f in lacking]).max() * 1.0  # 1 Å
    # the noise of the process is 3e-4 (energies) and 1e-3 (forces) of its width, and three of them are rare
    assert np.abs(energies).max() < 1e-3 * width
    assert np.abs(forces).max() < 3e-3 * width


@pytest.mark.parametrize("atoms", [METHANOL, HOLLOW], ids=["molecule", "slab"])
def test_corrected_forces_are_the_slope_of_the_corrected_energy(atoms):
    factory = Corrected(CalculatorSessions([EMT()]), atoms, labelled(rattled(atoms, 3)))
    flawed = Corrected(CalculatorSessions([morse()]), atoms, labelled(rattled(atoms, 3)))
    here = rattled(atoms, 1, seed=5)[0]
    push = np.random.default_rng(1).normal(size=here.positions.shape)
    push[[i for c in atoms.constraints for i in c.index]] = 0.0
    for one in (factory, flawed):
        step, ends = 1e-4, []
        for sign in (1, -1):
            moved = here.copy()
            moved.set_constraint()
            moved.positions += sign * step * push
            ends.append(asked(one, moved).energies[0])
        slope = (ends[0] - ends[1]) / (2 * step)
        # h² times a third derivative of 1e4 eV/Å³, and rounding of 10 eV over h
        assert slope == pytest.approx(-(asked(one, here).forces[0] * push).sum(), abs=1e-3)


def test_a_committee_that_is_right_is_left_as_it_is():
    factory = Corrected(CalculatorSessions([EMT()]), METHANOL, labelled(rattled(METHANOL, 3)))
    away = rattled(METHANOL, 1, seed=9)[0]
    (truth,) = labelled([away])
    # nothing is lacking but rounding, and the process is linear in what is lacking
    assert asked(factory, away).energies[0] == pytest.approx(truth[1].energy_eV, abs=1e-9)


def test_the_correction_does_not_see_a_molecule_turn_nor_a_slab_wrapped():
    turned = METHANOL.copy()
    turned.rotate(40, (1, 2, 3))
    turned.translate([1.0, -2.0, 3.0])
    coordinates = Coordinates.of(METHANOL)
    assert coordinates(turned.positions)[0] == pytest.approx(coordinates(METHANOL.positions)[0], abs=1e-12)
    coordinates = Coordinates.of(HOLLOW)
    wrapped = HOLLOW.positions + HOLLOW.cell.array[0] * (np.arange(len(HOLLOW)) == len(HOLLOW) - 1)[:, None]
    # sums of the same images in another order
    assert coordinates(wrapped)[0] == pytest.approx(coordinates(HOLLOW.positions)[0], abs=1e-12)


def test_a_structure_that_a_member_cannot_compute_teaches_nothing():
    good, broken = rattled(METHANOL, 2)
    labels = labelled([good, broken])
    labels[1] = (broken, Label(float("nan"), np.full((6, 3), np.nan)))
    with_it = Corrected(CalculatorSessions([morse()]), METHANOL, labels)
    without = Corrected(CalculatorSessions([morse()]), METHANOL, labels[:1])
    assert asked(with_it, METHANOL).energies == asked(without, METHANOL).energies


# in the loop ---------------------------------------------------------------------------------------

HOP = Reaction("hop", adatom(), adatom(1.0))


def loop(**settings):
    return refine_saddle(
        HOP, TransitionStates(label_above_eV_per_A=2.0, abort_above_eV_per_A=20.0, search={"images": 5}),
        label=lambda frames: [label for _, label in labelled(list(frames))], learn=None,
        rng=np.random.default_rng(0), **settings,
    )  # fmt: skip


def test_a_hop_is_found_from_labels_alone():
    done = loop(first=None, drawn=1)
    assert done.outcome == "agreed"
    assert done.labels <= 12
    saddle = adatom()
    saddle.set_constraint()
    saddle.positions = done.result.saddle.positions_A
    saddle.calc = EMT()
    # the direct search has it at 3.52456 eV; 50 meV/Å of labelled force on 1 eV/Å² is a millielectronvolt
    assert saddle.get_potential_energy() == pytest.approx(3.52456, abs=5e-3)
    assert done.attempts[0].labels > 3  # both ends and the middle were labelled beforehand
    # the direct search has 0.23407; at rest is 0.2 eV/Å, over 1 eV/Å² 20 meV
    assert done.labelled_barriers_eV == pytest.approx((0.23407, 0.23407), abs=0.02)
    assert done.end_labels <= 4  # the drawn ends are near
    fixed = adatom().constraints[0].index
    for end in done.ends:
        assert end.atoms.positions[fixed] == pytest.approx(adatom().positions[fixed], abs=0)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"first": None, "drawn": 0}, "without a first committee"),
        ({"first": None, "drawn": 1, "correct": False}, "nothing would be learnt"),
    ],
)
def test_a_loop_that_could_learn_nothing_is_refused(settings, what):
    with pytest.raises(PolicyError, match=what):
        loop(**settings)


@pytest.mark.parametrize("atoms", [METHANOL, HOLLOW], ids=["molecule", "slab"])
def test_a_repulsion_only_repels_and_its_forces_are_its_slope(atoms):
    here = atoms.copy()
    here.set_constraint()
    here.positions[-1] += [0.1, 0.07, -0.05]
    here.calc = Repulsion()
    # the differences' own error, h² = 1e-8 Å² times a third derivative of 1e4 eV/Å³ at most
    assert here.get_forces() == pytest.approx(calculate_numerical_forces(here, eps=1e-4), abs=1e-4)
    far = here.copy()
    far.calc = Repulsion()
    far.set_cell(1.1 * here.cell.array, scale_atoms=True)
    far.positions = 1.1 * here.positions
    assert 0.0 < far.get_potential_energy() < here.get_potential_energy()


def test_a_drawn_guess_is_labelled_before_the_first_search():
    asked_for: list[int] = []

    def label(frames):
        asked_for.append(len(frames))
        return [found for _, found in labelled(list(frames))]

    near = adatom(0.5)
    first = CalculatorSessions(morse()), Calibration.uncalibrated()
    done = refine_saddle(
        Reaction("near", near, is_guess=True), TransitionStates(search={"method": "dimer", "climb_steps": 5}),
        label=label, learn=None, first=first, drawn=4, max_labels=1, rng=np.random.default_rng(0),
    )  # fmt: skip
    assert asked_for[0] == 1  # a guess is all there is to draw
    assert done.labelled[0][0].positions == pytest.approx(near.positions, abs=0)


def test_a_saddle_of_higher_order_offers_the_mode_that_it_has_too_many():
    found = explore([adatom(), adatom(1.0)], morse(), search={"images": 3})
    (report,) = found.facts["reactions"]
    assert report["outcome"] == "several-imaginary-modes"
    by_reason = [c.reason for c in found.candidates]
    assert by_reason.count("surplus-mode") == report["imaginary_modes"] - 1


def test_a_search_that_knows_where_the_saddle_was_draws_no_path_and_another_place_costs_no_more_than_one():
    ready, explorer = checked(IN_PLANE), TransitionStates()

    def searched(tether):
        return search(
            surface_of(ready.reactant, MullerBrown()), ready, options=explorer.search,
            limits=explorer.limits, rng=np.random.default_rng(0), tether=tether,
        )  # fmt: skip

    plain = searched(None)
    near = plain.saddle.positions_A + np.array([[0, 0, 0], [0.05, -0.05, 0.02]])
    again = searched(Tether(near, (at(near[1, :2]),), 1.0, held=True))
    assert again.outcome == plain.outcome == "saddle"
    assert again.band is None
    assert again.force_calls < plain.force_calls
    # both stop below 0.02 eV/Å where the stiffness is 5 eV/Å² and more
    assert again.saddle.positions_A == pytest.approx(plain.saddle.positions_A, abs=8e-3)
    # beside the other saddle of this surface, which joins other ends: the path is searched after all
    beside = at((0.25, 0.28))
    low = at(LOW)
    other = searched(Tether(beside.positions, (beside, low), 1.0, held=True))
    assert other.outcome == "saddle"
    assert other.saddle.positions_A == pytest.approx(plain.saddle.positions_A, abs=8e-3)
