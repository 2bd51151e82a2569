"""The loop of labels around one reaction: search, label what decides it, learn, search again.

Ends when model and label agree at a checked saddle, |E_model − E_label| < 30 meV and the largest
labelled force on a moving atom < 50 meV/Å, or when the labels are used up. Between a training and the next
search the committee is put right at the labels (`correction`), so that the next saddle is a step of
Newton's and not of a network that was told twelve numbers.

What is labelled: a saddle that holds its checks, and two ends beside it. Without such a saddle, its surplus
modes, the ends and what else the search offers, best known last. A committee that knows nothing of this level
is first shown the ends and some images of the path as it is drawn (`drawn`). What is left of the labels when
the saddle agrees goes to the ends of its ways down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from ase import Atoms

from ..base import PolicyError, SessionFactory
from ..calculators import CalculatorSessions
from ..calibration import Calibration
from ..walkers import bare_copy
from .correction import Corrected
from .explorer import TransitionStates
from .path import first_path
from .reactions import Reaction, checked, distance_between
from .repulsion import SOFTNESS, repulsions
from .saddles import SADDLE
from .search import SearchResult, search
from .surface import Surface

AGREE_eV, AGREE_eV_per_A = 0.030, 0.050
MOST_ENDS = 2  # beside a saddle: where a molecule has fallen apart its end is never in the same place again
NEAR_A = 0.02  # a structure this close to a labelled one teaches nothing
SAME_SADDLE_A = 5e-4  # a stiff bond, 40 eV/Å², makes 20 meV/Å of it: nearer, the label is that of the saddle
END_MOVED_A = 0.3  # as far as an end may be from the named one (`saddles.SAME_A`)
# a barrier hangs on its ends as much as on its top
_TWINS_A = {"saddle": SAME_SADDLE_A, "end": END_MOVED_A}
_ORDER = ("saddle", "unconfirmed-saddle", "surplus-mode", "end", "crossed", "path", "along-mode", "last-good")


@dataclass(frozen=True)
class Label:
    """What a labeler said; None for a structure that it could not label."""

    energy_eV: float
    forces_eV_per_A: np.ndarray  # [A,3]


Labeler = Callable[[Sequence[Atoms]], Sequence[Label | None]]
Trainer = Callable[[Sequence[tuple[Atoms, Label]]], tuple[SessionFactory, Calibration]]


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
    # label of the saddle − labels of the ends of its ways down, where the committee has these: of a right
    # saddle no barrier of the labeler's is lower. NaN where one was not labelled
    labelled_barriers_eV: tuple[float, float] = (math.nan, math.nan)

    @property
    def labels(self) -> int:
        return self.attempts[-1].labels if self.attempts else 0


def refine_saddle(
    reaction: Reaction,
    explorer: TransitionStates,
    *,
    label: Labeler,
    learn: Trainer | None,
    rng: np.random.Generator,
    first: tuple[SessionFactory, Calibration] | None,
    max_labels: int = 12,
    per_turn: int = 3,
    drawn: int = 0,
    correct: bool = True,
) -> Refinement:
    """Search with the current committee, label, train, until model and label agree.

    Args:
        explorer: how to search; its reactions are not used.
        label: labels structures, in order.
        learn: given all labels so far, the new committee and its calibration; None keeps the first one, to
            which the correction then is all that is learnt.
        first: the committee to begin with; None: atoms that repel each other (`repulsion`), which needs the
            correction, and at least one drawn image.
        per_turn: labels of one turn.
        drawn: images of the drawn path that are labelled, with both ends, before the first search: for a
            committee that does not know this level, whose first saddle would be anywhere.
        correct: whether the committee is put right at the labels before each search.

    Raises:
        PolicyError: the ends cannot be joined, see `reactions.checked`; no path can be drawn.
    """
    _refuse_what_cannot_learn(max_labels, per_turn, learns=learn is not None, correct=correct)
    if first is None and not (correct and drawn):
        raise PolicyError("without a first committee refine_saddle needs correct=True and drawn >= 1")
    first = first or (CalculatorSessions(repulsions()), Calibration.uncalibrated(len(SOFTNESS)))
    ready, committee = checked(reaction), first
    shop = _Shop(label)
    bag = shop if correct else None
    if drawn:
        shop.buy(_drawn_path(ready, explorer, drawn, rng.spawn(1)[0])[:max_labels])
        committee = learn(shop.bought) if learn is not None else first
    attempts: list[Attempt] = []
    near: np.ndarray | None = None  # the last saddle that held its checks
    while True:
        surface, result = _searched(ready, explorer, committee, shop=bag, near_A=near, rng=rng)
        if result.found and result.saddle is not None:
            near = result.saddle.positions_A
        room = min(per_turn, max_labels - len(shop.tried))
        chosen = _chosen(surface, result, shop, room)
        fresh = shop.buy(chosen)
        attempts.append(_attempt(surface, result, shop.bought, labels=len(shop.tried)))
        outcome = _ending(attempts[-1], chosen, fresh, left=max_labels - len(shop.tried))
        if outcome == "label-cap":  # what the last labels said is not left out
            committee = learn(shop.bought) if learn is not None else first
            again = _searched(ready, explorer, committee, shop=bag, near_A=near, rng=rng)
            surface, result = again if again[1].found else (surface, result)
        if outcome is not None:
            return _finished(outcome, surface, result, shop, attempts, left=max_labels - len(shop.tried))
        committee = learn(shop.bought) if learn is not None else first


def _refuse_what_cannot_learn(max_labels: int, per_turn: int, *, learns: bool, correct: bool) -> None:
    if max_labels < 1 or per_turn < 1:
        raise PolicyError(f"max_labels and per_turn must be at least 1, got {max_labels} and {per_turn}")
    if not (learns or correct):
        raise PolicyError("refine_saddle has neither a trainer nor the correction: nothing would be learnt")


@dataclass
class _Shop:
    """What has been labelled, and what was tried."""

    label: Labeler
    bought: list[tuple[Atoms, Label]] = field(default_factory=list)
    tried: list[Atoms] = field(default_factory=list)
    ends: int = 0  # of those that were tried

    def buy(self, chosen: Sequence[Atoms]) -> int:
        """How many of these could be labelled."""
        said = list(self.label(chosen)) if chosen else []
        fresh = [(a, entry) for a, entry in zip(chosen, said, strict=True) if entry is not None]
        self.tried += chosen
        self.bought += fresh
        return len(fresh)


def _searched(
    reaction: Reaction,
    explorer: TransitionStates,
    committee: tuple[SessionFactory, Calibration],
    *,
    shop: _Shop | None,
    near_A: np.ndarray | None,
    rng: np.random.Generator,
) -> tuple[Surface, SearchResult]:
    """A search on the committee, put right at what the shop has sold."""
    factory, calibration = committee
    if shop is not None:
        factory = Corrected(factory, reaction.reactant, shop.bought)
    surface = Surface(reaction.reactant, factory, calibration, batch_atoms=explorer.batch_atoms)
    options, limits, stream = explorer.search, explorer.limits, rng.spawn(1)[0]
    return surface, search(surface, reaction, options=options, limits=limits, rng=stream, near_A=near_A)


def _finished(
    outcome: str, surface: Surface, result: SearchResult, shop: _Shop, attempts: list[Attempt], *, left: int
) -> Refinement:
    """Where labels are left of an agreement, they go to the ends, on which the barrier hangs as much."""
    barriers, saddle = (math.nan, math.nan), result.saddle
    if outcome == "agreed" and saddle is not None and saddle.ends_A is not None:
        ends = [surface.frame(x) for x in saddle.ends_A]
        shop.buy([a for a in ends if _label_at(a, shop.bought, NEAR_A) is None][: max(0, left)])
        attempts[-1] = replace(attempts[-1], labels=len(shop.tried))
        top = _label_at(surface.frame(saddle.positions_A), shop.bought, SAME_SADDLE_A)
        feet = [_label_at(a, shop.bought, NEAR_A) for a in ends]
        near, far = (math.nan if top is None or x is None else top.energy_eV - x.energy_eV for x in feet)
        barriers = near, far
    return Refinement(outcome, result, tuple(attempts), tuple(shop.bought), barriers)


def _label_at(atoms: Atoms, bought: Sequence[tuple[Atoms, Label]], within_A: float) -> Label | None:
    """The last label of this structure."""
    near = [said for other, said in bought if distance_between(other, atoms) <= within_A]
    return near[-1] if near else None


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


def _chosen(surface: Surface, result: SearchResult, shop: _Shop, room: int) -> list[Atoms]:
    """A saddle, and the ends that are not known; where these are known or there is none, by what was
    crossed and where the committee errs most."""
    ranked = sorted(
        result.offers,
        key=lambda o: (_ORDER.index(o.reason), -np.nan_to_num(o.expected_error_eV_per_A), o.step),
    )
    chosen: list[Atoms] = []
    for offer in ranked:
        end = offer.reason == "end"
        if result.found and chosen and (not end or shop.ends >= MOST_ENDS):
            break
        atoms = surface.frame(offer.positions_A)
        near = _TWINS_A.get(offer.reason, NEAR_A)
        if len(chosen) < room and all(distance_between(atoms, a) > near for a in (*shop.tried, *chosen)):
            chosen.append(atoms)
            shop.ends += end
    return chosen


def _attempt(
    surface: Surface, result: SearchResult, bought: Sequence[tuple[Atoms, Label]], *, labels: int
) -> Attempt:
    saddle = result.saddle
    barrier = None if saddle is None or not result.found else float(saddle.barriers_eV[0])
    if saddle is None or not result.found:
        return Attempt(result.outcome, labels, barrier, None, None)
    here = surface.frame(saddle.positions_A)
    said = _label_at(here, bought, SAME_SADDLE_A)
    if said is None:
        return Attempt(result.outcome, labels, barrier, None, None)
    difference, force = compared(saddle.energy_eV, said, surface.fixed)
    return Attempt(result.outcome, labels, barrier, difference, force)


def compared(energy_eV: float, said: Label, fixed: np.ndarray) -> tuple[float, float]:
    """Model − label in energy, and the largest labelled force on a moving atom."""
    forces = np.linalg.norm(np.asarray(said.forces_eV_per_A), axis=1)
    return energy_eV - said.energy_eV, float(forces[~fixed].max())


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
