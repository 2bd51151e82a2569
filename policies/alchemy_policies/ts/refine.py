"""The loop of labels around one reaction: search, label what decides it, learn, search again.

Ends when model and label agree at a checked saddle, |E_model − E_label| < 30 meV and the largest
labelled force on a moving atom < 50 meV/Å, or when the labels are used up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from ..base import PolicyError, SessionFactory
from ..calibration import Calibration
from .explorer import TransitionStates
from .reactions import Reaction, checked, distance_between
from .saddles import SADDLE
from .search import SearchResult, search
from .surface import Surface

AGREE_eV, AGREE_eV_per_A = 0.030, 0.050
NEAR_A = 0.02  # a structure this close to a labelled one teaches nothing
SAME_SADDLE_A = 5e-4  # a stiff bond, 40 eV/Å², makes 20 meV/Å of it: nearer, the label is that of the saddle
# a barrier hangs on its ends as much as on its top
_ORDER = ("saddle", "unconfirmed-saddle", "end", "crossed", "path", "along-mode", "last-good")


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
    result: SearchResult  # of the last search
    attempts: tuple[Attempt, ...]
    labelled: tuple[tuple[Atoms, Label], ...]

    @property
    def labels(self) -> int:
        return self.attempts[-1].labels if self.attempts else 0


def refine_saddle(
    reaction: Reaction,
    explorer: TransitionStates,
    *,
    label: Labeler,
    learn: Trainer,
    rng: np.random.Generator,
    first: tuple[SessionFactory, Calibration],
    max_labels: int = 12,
    per_turn: int = 3,
) -> Refinement:
    """Search with the current committee, label, train, until model and label agree.

    Args:
        explorer: how to search; its reactions are not used.
        label: labels structures, in order.
        learn: given all labels so far, the new committee and its calibration.
        first: the committee to begin with.
        per_turn: labels of one turn; the saddle first, then what is known least.

    Raises:
        PolicyError: the ends cannot be joined, see `reactions.checked`.
    """
    if max_labels < 1 or per_turn < 1:
        raise PolicyError(f"max_labels and per_turn must be at least 1, got {max_labels} and {per_turn}")
    ready, (factory, calibration) = checked(reaction), first
    bought: list[tuple[Atoms, Label]] = []
    tried: list[Atoms] = []
    attempts: list[Attempt] = []
    while True:
        surface = Surface(ready.reactant, factory, calibration, batch_atoms=explorer.batch_atoms)
        result = search(
            surface, ready, options=explorer.search, limits=explorer.limits, rng=rng.spawn(1)[0]
        )
        chosen = _chosen(surface, result, tried, min(per_turn, max_labels - len(tried)))
        said = list(label(chosen)) if chosen else []
        tried += chosen
        fresh = [(a, entry) for a, entry in zip(chosen, said, strict=True) if entry is not None]
        bought += fresh
        attempts.append(_attempt(surface, result, bought, labels=len(tried)))
        outcome = _ending(attempts[-1], chosen, fresh, left=max_labels - len(tried))
        if outcome is not None:
            return Refinement(outcome, result, tuple(attempts), tuple(bought))
        factory, calibration = learn(bought)


def _chosen(surface: Surface, result: SearchResult, tried: Sequence[Atoms], room: int) -> list[Atoms]:
    """The saddle before all else; then by what was crossed, and where the committee errs most."""
    ranked = sorted(
        result.offers,
        key=lambda o: (_ORDER.index(o.reason), -np.nan_to_num(o.expected_error_eV_per_A), o.step),
    )
    chosen: list[Atoms] = []
    for offer in ranked:
        atoms = surface.frame(offer.positions_A)
        near = SAME_SADDLE_A if offer.reason == "saddle" else NEAR_A
        if len(chosen) < room and all(distance_between(atoms, a) > near for a in (*tried, *chosen)):
            chosen.append(atoms)
    return chosen


def _attempt(
    surface: Surface, result: SearchResult, bought: Sequence[tuple[Atoms, Label]], *, labels: int
) -> Attempt:
    saddle = result.saddle
    barrier = None if saddle is None or not result.found else float(saddle.barriers_eV[0])
    if saddle is None or not result.found:
        return Attempt(result.outcome, labels, barrier, None, None)
    here = surface.frame(saddle.positions_A)
    near = [entry for atoms, entry in bought if distance_between(atoms, here) <= SAME_SADDLE_A]
    if not near:
        return Attempt(result.outcome, labels, barrier, None, None)
    said = near[-1]
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
    attempt: Attempt, chosen: Sequence[Atoms], fresh: Sequence[object], *, left: int
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
