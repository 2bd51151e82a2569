"""After a saddle agreed its ends are relaxed with labels; a barrier stands on ends at rest or is unknown."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from alchemy_policies import PolicyError, TransitionStates
from alchemy_policies.calculators import CalculatorSessions
from alchemy_policies.calibration import Calibration
from alchemy_policies.ts import Label, Reaction, refine_saddle
from alchemy_policies.ts.bonds import same_bonds
from alchemy_policies.ts.ends import label_ends
from alchemy_policies.ts.labels import Shop
from alchemy_policies.ts.reactions import distance_between
from alchemy_policies.ts.tether import SAME_SADDLE_A
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ts_helpers import (
    HIGH_BARRIER,
    HOP,
    LEFT,
    MIDDLE,
    RIGHT,
    MullerBrown,
    Triangle,
    at,
    explore,
    labelled,
)

CHEAP = Triangle(stiff=0.7, shift=0.2)
GUESS = Atoms("HCC", [[0.05, 0.6, 0.0], [-1.05, 0.0, 0.0], [1.1, 0.0, 0.0]])


def loop(label=lambda frames: labelled(frames, Triangle()), **settings):
    """Around one guess; both wells of the label are 1 eV below its saddle, those of the committee 0.7 eV."""
    return refine_saddle(
        Reaction("shift", GUESS, is_guess=True), TransitionStates(search={"method": "dimer"}),
        label=label, learn=None, rng=np.random.default_rng(0), drawn=1,
        first=(CalculatorSessions(CHEAP), Calibration.uncalibrated()), **settings,
    )  # fmt: skip


def hop(**settings):
    """Between two named ends beside a fixed atom; the committee's plane is tilted until labels come in."""

    def student(known):
        tilt = 0.4 / (1 + len(known)) ** 1.5
        return CalculatorSessions(MullerBrown(slope=tilt)), Calibration.uncalibrated()

    def label(frames):
        said = labelled(frames, MullerBrown())
        for entry in said:
            entry.forces_eV_per_A[0] = [1.0, 0.0, 0.0]  # on the fixed atom: it does not count
        return said

    return refine_saddle(
        HOP, TransitionStates(), label=label, learn=student,
        first=student([]), rng=np.random.default_rng(0), **settings,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole():
    return loop()


def states(done) -> list[str]:
    return [end.state for end in done.ends]


def test_the_labelled_barriers_are_those_of_a_direct_search(whole):
    done = whole
    assert (done.outcome, states(done)) == ("agreed", ["at-rest", "at-rest"])
    # at rest is 0.2 eV/Å, which over 10 eV/Å² and more is 2 meV
    assert done.labelled_barriers_eV == pytest.approx((1.0, 1.0), abs=2e-3)
    assert len(done.labelled) == done.labels + done.end_labels
    said = labelled([end.atoms for end in done.ends], Triangle())
    for end, entry, barrier in zip(done.ends, said, done.labelled_barriers_eV, strict=True):
        assert end.label.energy_eV == entry.energy_eV
        assert barrier == done.top.energy_eV - entry.energy_eV


def test_each_barrier_belongs_to_the_end_that_was_named_and_fixed_atoms_stay_as_they_are():
    done = hop()
    assert (done.outcome, states(done)) == ("agreed", ["at-rest", "at-rest"])
    report = explore([at(LEFT), at(MIDDLE)], MullerBrown()).facts["reactions"][0]
    # 0.2 eV/Å over 5 eV/Å² and more: 4 meV; of the direct search's ends, at 0.05 eV/Å, a quarter of one
    wanted = report["barrier_eV"], report["reverse_barrier_eV"]
    assert done.labelled_barriers_eV == pytest.approx(wanted, abs=5e-3)
    assert wanted[0] == pytest.approx(HIGH_BARRIER, abs=2e-3)
    assert wanted[0] > wanted[1] + 0.5
    for end, point in zip(done.ends, (LEFT, MIDDLE), strict=True):
        assert end.atoms.positions[0] == pytest.approx(at(point).positions[0], abs=0)
        assert end.atoms.positions[1, :2] == pytest.approx(point, abs=0.04)  # 0.2 eV/Å over 5 eV/Å²


@pytest.mark.parametrize("most", [0, 3, 30])
def test_no_more_labels_than_allowed_no_structure_twice_and_the_saddle_is_the_same(most, whole):
    asked: list[Atoms] = []

    def label(frames):
        asked.extend(atoms.copy() for atoms in frames)
        return labelled(frames, Triangle())

    done = loop(label, end_labels=most)
    assert len(asked) == done.labels + done.end_labels
    assert done.end_labels == min(most, whole.end_labels)
    assert whole.end_labels < 12
    apart = [distance_between(a, b) for n, a in enumerate(asked) for b in asked[:n]]
    assert min(apart) > SAME_SADDLE_A
    assert (done.outcome, done.labels, done.attempts) == (whole.outcome, whole.labels, whole.attempts)
    assert (done.result.saddle.positions_A == whole.result.saddle.positions_A).all()


def test_a_barrier_without_enough_labels_is_unknown_and_says_why():
    none, few = loop(end_labels=0), loop(end_labels=2)
    assert states(none) == ["not-labelled"] * 2
    assert states(few) == ["pulls"] * 2  # asked once each, where the committee has its minima
    one = loop(end_labels=1)
    assert states(one) == ["pulls", "not-labelled"]
    capped = loop(max_labels=2)
    assert capped.outcome != "agreed"
    assert states(capped) == ["not-labelled"] * 2
    assert np.isnan([done.labelled_barriers_eV for done in (none, few, one, capped)]).all()


@pytest.mark.parametrize("most", [-1, 2.5, float("nan"), "3"])
def test_a_number_of_labels_that_is_none_is_refused(most):
    with pytest.raises(PolicyError, match="end_labels must be a whole number"):
        loop(end_labels=most)


def test_ends_that_are_labelled_already_cost_nothing():
    """Both named ends are the labeler's own minima and were drawn, with the middle between them."""
    done = hop(drawn=1, end_labels=0)
    assert (done.outcome, done.end_labels) == ("agreed", 0)
    assert done.labelled_barriers_eV[0] == pytest.approx(HIGH_BARRIER, abs=1e-3)  # of the saddle's 0.05 eV/Å
    assert states(done) == ["at-rest"] * 2


@pytest.mark.parametrize("failing", [0, 3])
def test_a_label_that_fails_at_an_end_is_survived(failing, whole):
    bought: list[Label | None] = []

    def label(frames):
        said = labelled(frames, Triangle())
        for entry in said:
            bought.append(None if len(bought) == whole.labels + failing else entry)
        return bought[len(bought) - len(said) :]

    done = loop(label)
    assert bought.count(None) == 1
    assert (done.outcome, states(done)) == ("agreed", ["at-rest", "at-rest"])
    assert done.labelled_barriers_eV == pytest.approx((1.0, 1.0), abs=2e-3)
    assert len(done.labelled) == done.labels + done.end_labels - 1  # what failed was paid for


def test_where_no_label_of_the_ends_can_be_had_the_saddle_still_agrees(whole):
    asked: list[Atoms] = []

    def label(frames):
        asked.extend(frames)
        if len(asked) > whole.labels:
            return [None] * len(frames)
        return labelled(frames, Triangle())

    done = loop(label)
    assert (done.outcome, states(done)) == ("agreed", ["not-labelled"] * 2)
    assert done.end_labels == 4  # the committee's minimum, then the end of the way down


# another state -------------------------------------------------------------------------------------


def ended(reaction, ends, learnt, label, *, correct, knows=True, known=()):
    """The ends of a saddle that is made up; `learnt` makes a committee of the number of labels."""
    middle = (ends[0].positions + ends[1].positions) / 2
    shop = Shop(lambda frames: labelled(frames, label), list(zip(known, labelled(known, label), strict=True)))
    asked: list[int] = []

    def committee():
        asked.append(len(shop.bought))
        return CalculatorSessions(learnt(len(shop.bought))), Calibration.uncalibrated()

    found = label_ends(
        [reaction], SimpleNamespace(positions_A=middle, ends_A=tuple(a.positions for a in ends)), shop,
        explorer=TransitionStates(), learnt=committee, knows=knows, correct=correct, most=20,
    )  # fmt: skip
    return found, asked, shop.tried


@pytest.mark.parametrize(
    ("there", "state"), [(MIDDLE, "at-rest"), (RIGHT, "another-state"), (LEFT, "another-state")]
)
def test_ends_at_rest_that_are_not_the_two_that_were_named_are_another_state(there, state):
    beside = np.add(there, 0.05)
    found, *_ = ended(HOP, [at(LEFT), at(beside)], lambda _: MullerBrown(), MullerBrown(), correct=False)
    assert [end.state for end in found] == [state] * 2
    assert np.isnan(found[1].below_eV(Label(0.0, np.zeros((2, 3))))) == (state != "at-rest")


def test_a_committee_that_is_not_corrected_learns_from_each_turn():
    def trained(labels):
        return MullerBrown(slope=0.6 * 0.3**labels)

    found, asked, _ = ended(HOP, [at(LEFT), at(MIDDLE)], trained, MullerBrown(), correct=False)
    assert [end.state for end in found] == ["at-rest"] * 2
    assert asked == sorted(set(asked))
    assert asked[-1] > 2  # 0.6 eV/Å at first: one label each was not enough


class Wells(Calculator):
    """Two atoms with minima at two distances, 2 `height` (far − near)² stiff."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self, near: float, far: float, height: float = 1.0) -> None:
        super().__init__()
        self.near, self.far, self.height = near, far, height

    def calculate(self, atoms=None, properties=("energy",), system_changes=tuple(all_changes)) -> None:
        super().calculate(atoms, properties, system_changes)
        apart = self.atoms.positions[1] - self.atoms.positions[0]
        r = np.linalg.norm(apart)
        a, b = r - self.near, r - self.far
        pull = 2.0 * self.height * a * b * (a + b) * apart / r
        self.results = {"energy": float(self.height * (a * b) ** 2), "forces": np.array([pull, -pull])}


def pair(distance: float) -> Atoms:
    return Atoms("HeH", [[0.0, 0.0, 0.0], [distance, 0.0, 0.0]])


def test_an_end_that_loses_a_bond_on_its_way_to_rest_is_another_state():
    reaction = Reaction("apart", pair(1.6), is_guess=True)
    ends, trained = [pair(0.65), pair(3.0)], lambda _: Wells(0.65, 3.0)
    (near, far), asked, _ = ended(reaction, ends, trained, Wells(1.3, 3.0), correct=True)
    assert near.atoms.get_distance(0, 1) == pytest.approx(1.3, abs=0.05)
    assert (near.state, far.state) == ("another-state", "at-rest")
    assert asked == [0]  # what is corrected is not trained again for every turn


def test_a_minimum_with_other_bonds_than_the_way_down_led_to_is_not_begun_with():
    reaction, trained = Reaction("apart", pair(1.8), is_guess=True), lambda _: Wells(0.65, 3.0)
    found, *_ = ended(reaction, [pair(1.3), pair(3.0)], trained, Wells(1.3, 3.0), correct=True)
    assert [end.state for end in found] == ["at-rest"] * 2
    assert found[0].atoms.get_distance(0, 1) == pytest.approx(1.3, abs=0.05)


def test_a_committee_that_learns_nothing_is_asked_once_and_no_structure_labelled_again():
    trained = lambda _: MullerBrown(slope=0.6)  # noqa: E731
    found, asked, tried = ended(HOP, [at(LEFT), at(MIDDLE)], trained, MullerBrown(), correct=False)
    assert [end.state for end in found] == ["pulls"] * 2
    assert (asked, len(tried)) == ([0, 2], 2)


@pytest.mark.parametrize(("knows", "first"), [(True, 0.8), (False, 0.65)])
def test_a_committee_without_minima_of_its_own_is_not_relaxed_on_before_it_has_labels(knows, first):
    reaction, ends = Reaction("apart", pair(1.6), is_guess=True), [pair(0.65), pair(3.0)]
    label, trained = Wells(0.65, 3.0), lambda _: Wells(0.8, 3.0)
    found, _, tried = ended(reaction, ends, trained, label, correct=True, knows=knows)
    assert tried[0].get_distance(0, 1) == pytest.approx(first, abs=0.01)
    assert [end.state for end in found] == ["at-rest"] * 2


def test_a_bond_counts_as_broken_only_well_beyond_where_it_forms():
    bound, stretched, apart = pair(0.65), pair(0.8), pair(1.0)  # 1.1, 1.36 and 1.7 of the sum of radii
    assert same_bonds(bound, stretched)
    assert same_bonds(stretched, apart)
    assert not same_bonds(bound, apart)
    assert not same_bonds(apart, bound)


def test_a_soft_end_is_not_at_rest_while_it_has_far_to_fall():
    """0.15 eV/Å, 0.5 Å away: below the force that counts as rest, and 51 meV too high."""
    soft, reaction = Wells(0.65, 3.0, 0.06), Reaction("apart", pair(1.6), is_guess=True)
    ends = [pair(0.65), pair(2.5)]
    (_, far), *_ = ended(reaction, ends, lambda _: Wells(0.65, 2.5, 0.03), soft, correct=True)
    (first,) = labelled([pair(2.5)], soft)
    assert np.linalg.norm(first.forces_eV_per_A, axis=1).max() < 0.2
    assert first.energy_eV > 0.05
    assert far.state == "at-rest"
    assert far.label.energy_eV < 0.02  # the minimum is at 0 eV


def test_the_labelled_saddle_is_no_end_however_near_the_ends_are():
    near = Wells(2.65, 3.35, 10.0)  # 0.15 eV, and 0.18 Å from the saddle to where an atom comes to rest
    top, ends = pair(3.0), [pair(2.65), pair(3.35)]
    reaction = Reaction("shallow", top, is_guess=True)
    found, *_ = ended(reaction, ends, lambda _: near, near, correct=True, known=[top])
    (said,) = labelled([top], near)
    assert [end.below_eV(said) for end in found] == pytest.approx([0.15006, 0.15006], abs=1e-4)
