"""The ends of a saddle's ways down, relaxed with labels: a barrier hangs on them as much as on its top.

The committee on which a saddle agreed was put right there, and an angstrom away, where the ways down end,
that correction is worth less than nothing: labels pull with 1 to 8 eV/Å. The committee without it has minima
of its own, tenths of an eV off at most, as a rule. So the way down decides which minimum is meant, and the
committee without correction where to ask first; from there on it is corrected by the labels of this valley
alone, and relaxed on that as far as the labels reach (`tether`), as relaxations on Gaussian processes of
energies and forces go: Garijo del Río, Mortensen & Jacobsen, PRB 100, 104103 (2019).

States of an end:

`at-rest`        no labelled force above `AT_REST_eV_per_A`, and less than `STILL_TO_FALL_eV` is foreseen
`pulls`          labelled, but not at rest: too few labels, or they failed
`another-state`  at rest with other bonds than it began with, or where the ends no longer are two, or not the
                 two that were named
`not-labelled`   no label: none was left, it failed, or there was no saddle that agreed
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from ase import Atoms

from ..base import SessionFactory
from ..calibration import Calibration
from .bonds import same_bonds
from .correction import Corrected
from .explorer import TransitionStates
from .irc import relax
from .labels import Label, Shop, compared
from .reactions import Reaction, distance_between
from .saddles import SADDLE, SAME_A, Saddle, judge_ends
from .surface import Surface
from .tether import BEYOND, SAME_SADDLE_A, Tether, next_radius
from .watch import CONVERGED, NOT_CONVERGED, Watch

AT_REST, PULLS, ANOTHER_STATE, NOT_LABELLED = "at-rest", "pulls", "another-state", "not-labelled"
AT_REST_eV_per_A = 0.2  # F²/2k of a soft bend, 1 eV/Å²: 20 meV, as much as agreement leaves open
STILL_TO_FALL_eV = 0.020  # the same of what is softer: two molecules that leave each other
FMAX_eV_per_A = 0.05  # of the relaxations between labels
FIRST_END_A = 0.25  # of an end's neighbourhood; 0.15 and 0.35 take as many labels, within one in twenty

Learnt = tuple[SessionFactory, Calibration]


@dataclass(frozen=True)
class End:
    """What became of one end."""

    state: str = NOT_LABELLED
    atoms: Atoms | None = None  # the lowest of its structures that was labelled
    label: Label | None = None

    def below_eV(self, top: Label) -> float:
        """The barrier from here; NaN where this is no end to count from."""
        if self.state != AT_REST or self.label is None:
            return math.nan
        return top.energy_eV - self.label.energy_eV


@dataclass
class _Valley:
    """One end on its way to rest."""

    way_down: Atoms  # where the corrected committee has it
    start: Atoms  # the structure that is asked for first
    known: list[tuple[Atoms, Label]]
    within_A: float = FIRST_END_A
    rests: bool = False
    proposal: Atoms | None = None
    expected_eV_per_A: np.ndarray | None = None  # forces at the proposal
    refused: list[Atoms] = field(default_factory=list)  # without a label, since the last that had one
    begun: bool = False

    @property
    def lowest(self) -> tuple[Atoms, Label] | None:
        return min(self.known, key=lambda entry: entry[1].energy_eV, default=None)


def label_ends(
    reactions: Sequence[Reaction],
    saddle: Saddle,
    shop: Shop,
    *,
    explorer: TransitionStates,
    learnt: Callable[[], Learnt],
    knows: bool,
    correct: bool,
    most: int,
) -> tuple[End, End]:
    """Both ends of a saddle, relaxed in turns until their labels are at rest.

    Args:
        reactions: as named, and with its ends as the committee relaxed them.
        learnt: the committee without the correction, from all that was labelled so far; asked again for
            every turn where nothing else learns from the last one.
        knows: whether that has minima of its own; atoms that only repel each other have none.
        correct: whether it is put right at the labels of a valley.
        most: labels for both, tried ones included.
    """
    assert saddle.ends_A is not None
    atoms, before, committee = reactions[0].reactant, len(shop.tried), learnt()
    plain = Surface(atoms, *committee)
    valleys = [_valley(plain, x, saddle, shop=shop, explorer=explorer, knows=knows) for x in saddle.ends_A]
    while True:
        for valley in valleys:
            factory = Corrected(committee[0], atoms, valley.known if correct else [])
            _propose(valley, Surface(atoms, factory, committee[1]), explorer)
        wanted = _affordable(valleys, shop, most - (len(shop.tried) - before))
        if not wanted:
            return _judged(valleys, reactions)
        said = shop.buy([valley.proposal for valley in wanted if valley.proposal is not None])
        for valley, entry in zip(wanted, said, strict=True):
            _learn(valley, entry, plain.fixed)
        if not correct:  # a correction takes a label as it is, without another training
            committee = learnt()


def _valley(
    plain: Surface, end_A: np.ndarray, saddle: Saddle, *, shop: Shop, explorer: TransitionStates, knows: bool
) -> _Valley:
    """Where to ask first, and what is labelled of this end already: a named one as a rule."""
    way_down, top = plain.frame(end_A), plain.frame(saddle.positions_A)
    start = _relaxed(plain, way_down, None, explorer) if knows else None
    if start is None or not same_bonds(start, way_down):
        start = way_down
    near = [
        (atoms, said)
        for atoms, said in shop.bought
        if (far := min(distance_between(atoms, a) for a in (start, way_down))) <= SAME_A
        and far < distance_between(atoms, top)
    ]
    return _Valley(way_down, start, near)


def _relaxed(
    surface: Surface, start: Atoms, tether: Tether | None, explorer: TransitionStates
) -> Atoms | None:
    """Down to rest, or to where the tether ends; None where a guard stops it."""
    # members may part as they like: the tether says how far they are believed
    lenient = replace(explorer.limits, label_above_eV_per_A=math.inf, abort_above_eV_per_A=math.inf)
    watch = Watch(surface, lenient, tether=tether)
    found = relax(
        surface, start.positions[None], fmax_eV_per_A=FMAX_eV_per_A, max_steps=explorer.search.irc_steps,
        watch=watch,
    )  # fmt: skip
    fine = found.outcome in (CONVERGED, NOT_CONVERGED, BEYOND) and np.isfinite(found.energies_eV).all()
    return surface.frame(found.positions_A[0]) if fine else None


def _propose(valley: _Valley, surface: Surface, explorer: TransitionStates) -> None:
    """Whether the end rests, and if not which structure is to be labelled next."""
    valley.proposal, valley.expected_eV_per_A, valley.rests = None, None, False
    if valley.lowest is None:
        places = (valley.start, valley.way_down)
        valley.proposal = next((a for a in places if not any(a is b for b in valley.refused)), None)
        return
    place, said = valley.lowest
    frames = tuple(atoms for atoms, _ in valley.known)
    tether = Tether(place.positions, frames, valley.within_A, held=bool(surface.fixed.any()))
    below = _relaxed(surface, place, tether, explorer)
    if below is None:
        return
    look = surface(np.array([place.positions, below.positions]))
    still = compared(0.0, said, surface.fixed)[1] <= AT_REST_eV_per_A
    valley.rests = still and look.energies_eV[0] - look.energies_eV[1] < STILL_TO_FALL_eV
    if valley.rests:
        return
    if not valley.begun and all(distance_between(a, valley.start) > SAME_SADDLE_A for a in frames):
        valley.proposal = valley.start
    elif not valley.refused:
        valley.proposal, valley.expected_eV_per_A = below, look.forces_eV_per_A[1]
    elif len(valley.refused) == 1:  # half as far
        valley.proposal = surface.frame((place.positions + valley.refused[0].positions) / 2)


def _affordable(valleys: Sequence[_Valley], shop: Shop, room: int) -> list[_Valley]:
    """Those whose proposals can be paid for and have not been tried."""
    chosen: list[_Valley] = []
    for valley in valleys:
        place = valley.proposal
        if place is None or len(chosen) >= room:
            continue
        tried = (*shop.tried, *(v.proposal for v in chosen if v.proposal is not None))
        if all(distance_between(place, a) > SAME_SADDLE_A for a in tried):
            chosen.append(valley)
    return chosen


def _learn(valley: _Valley, said: Label | None, fixed: np.ndarray) -> None:
    assert valley.proposal is not None
    valley.begun = True
    if said is None:
        valley.refused.append(valley.proposal)
        return
    if valley.expected_eV_per_A is not None and valley.lowest is not None:
        valley.within_A = next_radius(
            valley.within_A,
            expected=valley.expected_eV_per_A[~fixed],
            said=said.forces_eV_per_A[~fixed],
            before=valley.lowest[1].forces_eV_per_A[~fixed],
        )
    valley.known.append((valley.proposal, said))
    valley.refused = []


def _judged(valleys: Sequence[_Valley], reactions: Sequence[Reaction]) -> tuple[End, End]:
    lowest = [valley.lowest for valley in valleys]
    # of an end that does not rest only the way down is known
    places = [low[0] if low and v.rests else v.way_down for v, low in zip(valleys, lowest, strict=True)]
    meant = any(judge_ends(reaction, places) == (SADDLE, (0, 1)) for reaction in reactions)
    ends = []
    for valley, low in zip(valleys, lowest, strict=True):
        if low is None:
            ends.append(End())
            continue
        state = AT_REST if meant and same_bonds(valley.start, low[0]) else ANOTHER_STATE
        ends.append(End(state if valley.rests else PULLS, *low))
    return ends[0], ends[1]
