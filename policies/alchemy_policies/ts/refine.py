"""The loop of labels around one reaction: search, label what decides it, learn, search again.

A climb stops where it leaves the neighbourhood of the labels (`tether`), is labelled there and goes on.
Ends when model and label agree at a checked saddle, |E_model − E_label| < 30 meV and the largest
labelled force on a moving atom < 50 meV/Å, or when the labels are used up. Between a training and the next
search the committee is put right at the labels (`correction`), so that the next saddle is a step of
Newton's and not of a network that was told twelve numbers.

What is labelled: a saddle that holds its checks, or where else the climb came to. Without such a saddle also
its surplus modes and what else the search offers, best known last. A committee that knows nothing of this
level is first shown the ends and some images of the path as it is drawn (`drawn`), or the guess. When the
saddle agrees, the ends of its ways down are relaxed with labels of their own (`ends`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from ase import Atoms

from ..base import PolicyError
from ..calculators import CalculatorSessions
from ..calibration import Calibration
from ..walkers import bare_copy
from .correction import Corrected
from .ends import End, Learnt, label_ends
from .explorer import TransitionStates
from .labels import Label, Labeler, Shop, compared, label_at
from .path import first_path
from .reactions import Reaction, checked, distance_between
from .repulsion import SOFTNESS, repulsions
from .saddles import SADDLE
from .search import SearchResult, search
from .surface import Surface, fixed_atoms
from .tether import NEAR_A, SAME_SADDLE_A, Tether, next_radius

AGREE_eV, AGREE_eV_per_A = 0.030, 0.050
END_MOVED_A = 0.3  # as far as an end may be from the named one (`saddles.SAME_A`)
# a barrier hangs on its ends as much as on its top
_TWINS_A = {"saddle": SAME_SADDLE_A, "unconfirmed-saddle": SAME_SADDLE_A, "end": END_MOVED_A}
_CLIMBED = ("saddle", "climb", "unconfirmed-saddle")
_ORDER = (*_CLIMBED, "surplus-mode", "crossed", "path", "end", "along-mode", "last-good")


Trainer = Callable[[Sequence[tuple[Atoms, Label]]], Learnt]


@dataclass(frozen=True)
class Attempt:
    """One turn of the loop."""

    outcome: str  # of the search
    labels: int  # bought so far, this turn included
    barrier_eV: float | None
    energy_difference_eV: float | None  # model − label at the saddle, None without that label
    largest_labelled_force_eV_per_A: float | None


@dataclass(frozen=True)
class Refinement:
    """How the loop ended: 'agreed', 'label-cap', 'nothing-to-label' or 'labels-failed'."""

    outcome: str
    result: SearchResult  # of the last search; at the cap of the last two that found one
    attempts: tuple[Attempt, ...]
    labelled: tuple[tuple[Atoms, Label], ...]
    ends: tuple[End, End] = (End(), End())  # of the ways down, in the order of `result.saddle.ends_A`
    end_labels: int = 0  # bought for them, beyond `labels`
    top: Label | None = None  # of the saddle that agreed

    @property
    def labels(self) -> int:
        """Bought up to the agreement, or whatever else the loop ended with."""
        return self.attempts[-1].labels if self.attempts else 0

    @property
    def labelled_barriers_eV(self) -> tuple[float, float]:
        """Label of the saddle − labels of its ends; NaN of an end that is not 'at-rest', whose `state` says
        why. A soft end at rest may still be some 20 meV too high, and its barrier as much too low."""
        if self.top is None:
            return math.nan, math.nan
        return self.ends[0].below_eV(self.top), self.ends[1].below_eV(self.top)


def refine_saddle(
    reaction: Reaction,
    explorer: TransitionStates,
    *,
    label: Labeler,
    learn: Trainer | None,
    rng: np.random.Generator,
    first: Learnt | None,
    max_labels: int = 12,
    end_labels: int = 12,
    per_turn: int = 3,
    drawn: int = 0,
    correct: bool = True,
) -> Refinement:
    """Search with the current committee, label, train, until model and label agree; then label the ends.

    Args:
        explorer: how to search; its reactions are not used.
        label: labels structures, in order.
        learn: given all labels so far, the new committee and its calibration; None keeps the first one, to
            which the correction then is all that is learnt.
        first: the committee to begin with; None: atoms that repel each other (`repulsion`), which needs the
            correction, and at least one drawn image.
        max_labels: up to the agreement; those that fail count too.
        end_labels: after it, for both ends together; what `max_labels` leaves over is not added. Three for
            an end are the rule, up to eight where it falls apart. With 0 only those barriers are known whose
            ends have been labelled before.
        per_turn: labels of one turn of the search.
        drawn: images of the drawn path that are labelled, with both ends, before the first search: for a
            committee that does not know this level, whose first saddle would be anywhere. Without two ends
            it is the guess, from which then is climbed.
        correct: whether the committee is put right at the labels before each search.

    Raises:
        PolicyError: the ends cannot be joined, see `reactions.checked`; no path can be drawn; numbers of
            labels that are none; nothing that could learn.
    """
    _refuse_what_cannot_learn(max_labels, per_turn, learns=learn is not None, correct=correct)
    if not isinstance(end_labels, int) or end_labels < 0:
        raise PolicyError(f"end_labels must be a whole number, 0 or more, got {end_labels}")
    if first is None and not (correct and drawn):
        raise PolicyError("without a first committee refine_saddle needs correct=True and drawn >= 1")
    knows = first is not None or learn is not None
    first = first or (CalculatorSessions(repulsions()), Calibration.uncalibrated(len(SOFTNESS)))
    ready, shop = checked(reaction), Shop(label)
    if drawn:
        shop.buy(_drawn_path(ready, explorer, drawn, rng.spawn(1)[0])[:max_labels])
    loop = _Loop(ready, explorer, shop, learn, first, correct, rng, _tether_of_a_guess(ready, shop))
    done = loop.run(max_labels, per_turn)
    return loop.with_ends(done, end_labels, knows=knows) if done.outcome == "agreed" else done


@dataclass
class _Loop:
    """What the turns share, and where the next one starts."""

    reaction: Reaction
    explorer: TransitionStates
    shop: Shop
    learn: Trainer | None
    first: Learnt
    correct: bool
    rng: np.random.Generator
    tether: Tether | None

    def learnt(self) -> Learnt:
        known = self.shop.bought
        return self.learn(known) if self.learn is not None and known else self.first

    def searched(self) -> tuple[Surface, SearchResult]:
        """A search on the committee, put right at what the shop has sold."""
        explorer, start = self.explorer, self.reaction.reactant
        factory, calibration = self.learnt()
        if self.correct:
            factory = Corrected(factory, start, self.shop.bought)
        surface = Surface(start, factory, calibration, batch_atoms=explorer.batch_atoms)
        return surface, search(
            surface, self.reaction, options=explorer.search, limits=explorer.limits,
            rng=self.rng.spawn(1)[0], tether=self.tether,
        )  # fmt: skip

    def run(self, max_labels: int, per_turn: int) -> Refinement:
        shop, attempts = self.shop, list[Attempt]()
        while True:
            surface, result = self.searched()
            room = min(per_turn, max_labels - len(shop.tried))
            reasons, chosen = _chosen(surface, result, shop, room)
            fresh = sum(said is not None for said in shop.buy(chosen))
            if chosen and reasons[0] in _guides(self.reaction, self.tether):
                self.tether = _tethered(self.tether, surface, chosen[0], shop)
            attempts.append(_attempt(surface, result, shop.bought, labels=len(shop.tried)))
            outcome = _ending(attempts[-1], chosen, fresh, left=max_labels - len(shop.tried))
            if outcome == "label-cap":  # what the last labels said is not left out
                again = self.searched()
                surface, result = again if again[1].found else (surface, result)
            if outcome is not None:
                return Refinement(outcome, result, tuple(attempts), tuple(shop.bought))

    def with_ends(self, done: Refinement, most: int, *, knows: bool) -> Refinement:
        """A saddle that agreed, with the ends of its ways down."""
        saddle, start, shop = done.result.saddle, self.reaction.reactant, self.shop
        assert saddle is not None  # agreed
        top = label_at(bare_copy(start, saddle.positions_A, start.cell.array), shop.bought, SAME_SADDLE_A)
        ends = label_ends(
            (self.reaction, done.result.reaction), saddle, shop, explorer=self.explorer, learnt=self.learnt,
            knows=knows, correct=self.correct, most=most,
        )  # fmt: skip
        spent = len(shop.tried) - done.labels
        return replace(done, labelled=tuple(shop.bought), ends=ends, end_labels=spent, top=top)


def _tether_of_a_guess(reaction: Reaction, shop: Shop) -> Tether | None:
    """From a labelled guess the search climbs, instead of looking for a saddle that the committee has."""
    guessed = reaction.product is None and (reaction.is_guess or reaction.guess is not None)
    if not guessed or not shop.bought:
        return None
    place = shop.bought[0][0]
    return Tether(place.positions, (place,), held=bool(fixed_atoms(reaction.reactant).any()))


def _guides(reaction: Reaction, tether: Tether | None) -> tuple[str, ...]:
    """What a first climb may start from: between two named ends a saddle that fails its checks is as a rule
    that of another reaction."""
    return ("saddle",) if tether is None and reaction.product is not None else _CLIMBED


def _tethered(tether: Tether | None, surface: Surface, climbed: Atoms, shop: Shop) -> Tether | None:
    """The next climb starts at what the last one led to, and goes as far as that was foreseen."""
    said = label_at(climbed, shop.bought, SAME_SADDLE_A)
    if said is None:
        return tether
    known, place, free = tuple(a for a, _ in shop.bought), climbed.positions, ~surface.fixed
    if tether is None:
        return Tether(place, known, held=not free.all())
    before = label_at(surface.frame(tether.start_A), shop.bought, SAME_SADDLE_A)
    assert before is not None  # it was made of a label
    within = next_radius(
        tether.within_A,
        expected=surface(place[None]).forces_eV_per_A[0, free],
        said=said.forces_eV_per_A[free],
        before=before.forces_eV_per_A[free],
    )
    return replace(tether, start_A=place, labelled=known, within_A=within)


def _refuse_what_cannot_learn(max_labels: int, per_turn: int, *, learns: bool, correct: bool) -> None:
    if max_labels < 1 or per_turn < 1:
        raise PolicyError(f"max_labels and per_turn must be at least 1, got {max_labels} and {per_turn}")
    if not (learns or correct):
        raise PolicyError("refine_saddle has neither a trainer nor the correction: nothing would be learnt")


def _drawn_path(
    reaction: Reaction, explorer: TransitionStates, images: int, rng: np.random.Generator
) -> list[Atoms]:
    """The middle first, then the ends, then what lies between; a guess alone is all there is to draw."""
    start = reaction.reactant
    if reaction.product is None:
        return [start if reaction.guess is None else reaction.guess]
    path = first_path(reaction, images, rng, pair_factor=explorer.guards.pair_factor)
    middle = np.argsort(abs(np.arange(len(path)) - (len(path) - 1) / 2), kind="stable")
    order = [middle[0], 0, len(path) - 1, *(n for n in middle[1:] if 0 < n < len(path) - 1)]
    return [bare_copy(start, path[n], start.cell.array) for n in order]


def _chosen(
    surface: Surface, result: SearchResult, shop: Shop, room: int
) -> tuple[list[str], list[Atoms]]:
    """Reasons and structures: a saddle that holds its checks; what else a climb came to, and what decides its
    order; without one what was crossed and where the committee errs most, and the ends."""
    ranked = sorted(
        result.offers,
        key=lambda o: (_ORDER.index(o.reason), -np.nan_to_num(o.expected_error_eV_per_A), o.step),
    )
    climbed = any(offer.reason in _CLIMBED for offer in ranked)
    reasons: list[str] = []
    chosen: list[Atoms] = []
    for offer in ranked:
        if (result.found and offer.reason != "saddle") or (climbed and offer.reason == "end"):
            continue
        atoms = surface.frame(offer.positions_A)
        near = _TWINS_A.get(offer.reason, NEAR_A)
        if len(chosen) < room and all(distance_between(atoms, a) > near for a in (*shop.tried, *chosen)):
            reasons.append(offer.reason)
            chosen.append(atoms)
    return reasons, chosen


def _attempt(
    surface: Surface, result: SearchResult, bought: Sequence[tuple[Atoms, Label]], *, labels: int
) -> Attempt:
    saddle = result.saddle
    barrier = None if saddle is None or not result.found else float(saddle.barriers_eV[0])
    if saddle is None or not result.found:
        return Attempt(result.outcome, labels, barrier, None, None)
    here = surface.frame(saddle.positions_A)
    said = label_at(here, bought, SAME_SADDLE_A)
    if said is None:
        return Attempt(result.outcome, labels, barrier, None, None)
    difference, force = compared(saddle.energy_eV, said, surface.fixed)
    return Attempt(result.outcome, labels, barrier, difference, force)


def agrees(difference_eV: float | None, force_eV_per_A: float | None) -> bool:
    """Whether a model's saddle is one of the label's too, at the energy that the model says."""
    if difference_eV is None or force_eV_per_A is None:
        return False
    return abs(difference_eV) < AGREE_eV and force_eV_per_A < AGREE_eV_per_A


def _ending(
    attempt: Attempt, chosen: Sequence[Atoms], fresh: int, *, left: int
) -> str | None:
    agreed = attempt.outcome == SADDLE and agrees(
        attempt.energy_difference_eV, attempt.largest_labelled_force_eV_per_A
    )
    if agreed:
        return "agreed"
    if left <= 0:
        return "label-cap"
    if not chosen:
        return "nothing-to-label"
    return None if fresh else "labels-failed"
