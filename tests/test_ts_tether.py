"""A search on a corrected committee stays near its labels, and is labelled where it would leave them."""

from __future__ import annotations

import numpy as np
import pytest
from alchemy_policies import TransitionStates
from alchemy_policies.calculators import CalculatorSessions
from alchemy_policies.calibration import Calibration
from alchemy_policies.ts import Label, Reaction, checked, refine, refine_saddle, search
from alchemy_policies.ts.dimer import climb_dimer
from alchemy_policies.ts.reactions import distance_between
from alchemy_policies.ts.search import SearchResult
from alchemy_policies.ts.tether import BEYOND, LEAST_A, MOST_A, Tether, next_radius
from alchemy_policies.ts.watch import Offer
from ase import Atoms
from ts_helpers import LOW, MIDDLE, RIGHT, MullerBrown, Triangle, at, labelled, surface_of, watch

STEP_A = 0.1  # of the dimer


def forces(*rows: float) -> np.ndarray:
    return np.array([[x, 0.0, 0.0] for x in rows])


def test_what_was_foreseen_widens_the_neighbourhood_and_a_surprise_narrows_it():
    before, said = forces(1.0, 0.0), forces(3.0, 0.0)  # a change of 2 eV/Å
    radius = {
        off: next_radius(0.2, expected=said + forces(off, 0.0), said=said, before=before)
        for off in (0.0, 1.0, 2.0)  # none, half and all of the change came as a surprise
    }
    assert radius[2.0] < radius[1.0] == 0.2 < radius[0.0]
    within = 0.2
    for _ in range(20):
        within = next_radius(within, expected=said, said=said, before=before)
    assert within == MOST_A
    for _ in range(20):
        within = next_radius(within, expected=before, said=said, before=before)
    assert within == LEAST_A


def test_a_climb_stops_one_step_outside_of_the_neighbourhood_and_offers_the_place():
    start, known = at((0.0, 0.45)), at((0.05, 0.42))  # beside a minimum, 0.26 Å from the saddle
    ready = checked(Reaction("up", start, is_guess=True))
    surface = surface_of(ready.reactant, MullerBrown())
    found = search(
        surface, ready, options=TransitionStates(search={"method": "dimer"}).search,
        limits=watch(surface).limits, rng=np.random.default_rng(0),
        tether=Tether(start.positions, (start, known), 0.1, held=True),
    )  # fmt: skip
    assert found.outcome == BEYOND
    (offer,) = found.offers
    assert offer.reason == "climb"
    gone = min(np.linalg.norm(offer.positions_A[1] - a.positions[1]) for a in (start, known))
    assert 0.1 < gone <= 0.1 + STEP_A


def test_a_neighbourhood_that_holds_the_whole_climb_changes_nothing_of_it():
    surface, start = surface_of(at(LOW), MullerBrown()), at((0.15, 0.35))
    climbs = []
    for tether in (None, Tether(start.positions, (start,), 1.0, held=True)):
        seen = watch(surface)
        seen.tether = tether
        climb = climb_dimer(surface, start.positions, seen, fmax_eV_per_A=0.02, max_steps=100)
        assert climb.outcome == "converged"
        climbs.append(climb)
    assert (climbs[0].positions_A == climbs[1].positions_A).all()


@pytest.mark.parametrize("turned", [False, True])
def test_a_molecule_that_turned_is_where_it_was_and_one_that_is_held_is_not(turned):
    flat = Atoms("OHH", [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
    moved = flat.copy()
    moved.rotate(30 if turned else 0, "z")
    for held in (False, True):
        assert Tether(flat.positions, (flat,), 0.1, held=held).leaves(moved) == (turned and held)


# in the loop ---------------------------------------------------------------------------------------


CHEAP = Triangle(stiff=0.6, shift=0.4)


def label(frames) -> list[Label]:
    return labelled(frames, Triangle())


def loop(max_labels: int):
    guess = Atoms("HCC", [[0.05, 0.6, 0.0], [-1.05, 0.0, 0.0], [1.1, 0.0, 0.0]])
    return refine_saddle(
        Reaction("shift", guess, is_guess=True), TransitionStates(search={"method": "dimer"}),
        label=label, learn=None, rng=np.random.default_rng(0), drawn=1, max_labels=max_labels,
        first=(CalculatorSessions(CHEAP), Calibration.uncalibrated()),
    )  # fmt: skip


def top_of(done) -> Atoms:
    atoms = done.result.reaction.reactant.copy()
    atoms.positions = done.result.saddle.positions_A
    return atoms


def test_from_a_labelled_guess_no_climb_goes_far_from_what_is_known_and_the_loop_agrees():
    done = loop(max_labels=5)
    assert done.outcome == "agreed"
    frames = [atoms for atoms, _ in done.labelled]
    assert len(frames) > 3  # the other level of theory was of no use at first
    for n in range(1, len(frames)):
        assert min(distance_between(frames[n], a) for a in frames[:n]) <= MOST_A + STEP_A
    (said,) = label([top_of(done)])
    # agreed is below 0.05 eV/Å, over the softest stiffness of 10 eV/Å² a tenth of a millielectronvolt
    assert said.energy_eV == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("reason", "guess", "climbs"),
    [("unconfirmed-saddle", False, False), ("unconfirmed-saddle", True, True), ("saddle", False, True)],
)
def test_between_two_named_ends_only_a_saddle_that_held_its_checks_is_climbed_from(
    monkeypatch, reason, guess, climbs
):
    tethers: list[Tether | None] = []
    places = iter([(0.2, 0.3), (0.3, 0.3), (0.4, 0.3)])

    def scripted(surface, reaction, *, options, limits, rng, tether):
        tethers.append(tether)
        offer = Offer(at(next(places)).positions, reason, 0, 0.1)
        return SearchResult(reaction, "other-ends", None, None, (offer,), 0.1, 1, 1)

    monkeypatch.setattr(refine, "search", scripted)
    ends = {"is_guess": True} if guess else {"product": at(RIGHT)}
    refine_saddle(
        Reaction("scripted", at(MIDDLE), **ends), TransitionStates(),
        label=lambda frames: [Label(0.0, np.zeros((2, 3))) for _ in frames], learn=None, max_labels=2,
        rng=np.random.default_rng(0), first=(CalculatorSessions(MullerBrown()), Calibration.uncalibrated()),
    )  # fmt: skip
    assert tethers[0] is None
    assert (tethers[1] is not None) == climbs
