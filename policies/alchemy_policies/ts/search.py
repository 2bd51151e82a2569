"""One reaction: from its ends, or from a guess, to a saddle that has been checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..base import PolicyError
from .dimer import Climb, climb_dimer
from .irc import relax
from .modes import NotFiniteError
from .neb import Band, relax_band
from .path import first_path
from .reactions import Reaction, distance_between
from .saddles import SADDLE, Saddle, verified
from .surface import Surface
from .tether import BEYOND, NEAR_A, Tether
from .watch import ABORT, CONVERGED, LABEL_STOP, NOT_CONVERGED, Limits, Offer, Watch
from .with_sella import climb_sella

METHODS = ("neb", "neb+dimer", "neb+sella", "dimer", "sella")
ONE_MINIMUM, NO_PATH = "ends-collapse", "no-path"
COLLAPSED_A = 0.1
TRIES = 4
NOT_FINITE = "not-finite"
KICK_A = 0.3  # away from a minimum, where only one structure is known
# verdicts that leave nothing to learn from a label
_KNOWN = ("rotation-only", "duplicate")


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How a saddle is looked for. Forces in eV/Å, lengths in Å."""

    method: str = "neb+dimer"
    images: int = 7  # between the ends
    neb_fmax_eV_per_A: float = 0.15  # where the dimer or Sella takes over
    fmax_eV_per_A: float = 0.02  # of the saddle, and of the band with method 'neb'
    neb_steps: int = 250
    climb_steps: int = 250
    irc_steps: int = 400
    relax_ends: bool = True
    along_mode_A: float = 0.1  # structures on both sides of the saddle, norm of the displacement

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise PolicyError(f"method is '{self.method}', must be one of {', '.join(METHODS)}")
        if self.images < 1:
            raise PolicyError(f"images is {self.images}, must be at least 1: one is to climb")
        for name in ("neb_fmax_eV_per_A", "fmax_eV_per_A", "along_mode_A"):
            if not getattr(self, name) > 0:
                raise PolicyError(f"{name} is {getattr(self, name)}, must be positive")
        for name in ("neb_steps", "climb_steps", "irc_steps"):
            if getattr(self, name) < 1:
                raise PolicyError(f"{name} is {getattr(self, name)}, must be at least 1")


@dataclass(frozen=True)
class SearchResult:
    """What became of a reaction; `outcome` is a verdict of `saddles`, or why there was none."""

    reaction: Reaction  # with its ends relaxed
    outcome: str
    saddle: Saddle | None
    band: Band | None
    offers: tuple[Offer, ...]
    worst_error_eV_per_A: float
    steps: int
    force_calls: int

    @property
    def found(self) -> bool:
        return self.outcome == SADDLE


def search(
    surface: Surface,
    reaction: Reaction,
    *,
    options: SearchOptions,
    limits: Limits,
    rng: np.random.Generator,
    known: Sequence[Saddle] = (),
    tether: Tether | None = None,
) -> SearchResult:
    """Look for the saddle of a reaction that `reactions.checked` has passed.

    Args:
        tether: where another surface has it; climbed from first, and what it leads to is judged like any
            other saddle. The path is searched if that is no saddle although it has been labelled.
    """
    hunt = _Hunt(surface, reaction, options, Watch(surface, limits), rng, tether)
    try:
        outcome = hunt.run(known)
    except NotFiniteError:
        outcome = NOT_FINITE
    return SearchResult(
        reaction=hunt.reaction,
        outcome=outcome,
        saddle=hunt.saddle,
        band=hunt.band,
        offers=tuple(hunt.watch.offers),
        worst_error_eV_per_A=hunt.watch.worst_eV_per_A,
        steps=hunt.watch.steps,
        force_calls=surface.calls,
    )


@dataclass
class _Hunt:
    """The state of one search: what has been found so far."""

    surface: Surface
    reaction: Reaction
    options: SearchOptions
    watch: Watch
    rng: np.random.Generator
    tether: Tether | None = None
    band: Band | None = None
    saddle: Saddle | None = None

    def run(self, known: Sequence[Saddle]) -> str:
        options = self.options
        two_ends = self.reaction.product is not None
        if two_ends and options.relax_ends:
            code = self._relax_ends()
            if code is not None:
                return code
        if self.tether is not None:
            near = self._climbed_near(self.tether, known)
            if near is not None:
                return near
        self.saddle = None
        start, mode = self._single_start()
        if two_ends:
            code = self._make_band()
            if code is not None:
                return code
            assert self.band is not None
            path, top = self.band.positions_A, self.band.top
            start, mode = path[top], _unit(path[top + 1] - path[top - 1])
            if options.method == "neb":
                return self._judged(start, known)
        return self._climbed(start, mode, known)

    def _climbed_near(self, tether: Tether, known: Sequence[Saddle]) -> str | None:
        """What came of it, or None where the path is to be searched after all."""
        self.watch.tether = tether
        outcome = self._climbed(tether.start_A, None, known)
        self.watch.tether = None
        if outcome in (SADDLE, BEYOND, NOT_CONVERGED):
            return outcome
        place = None if self.saddle is None else self.surface.frame(self.saddle.positions_A)
        return None if place is None or tether.knows(place, NEAR_A) else outcome

    def _climbed(self, start: np.ndarray, mode: np.ndarray | None, known: Sequence[Saddle]) -> str:
        climb = self._climb(start, mode)
        if climb.outcome != CONVERGED:
            self._offer_climb(climb)
            return climb.outcome
        return self._judged(climb.positions_A, known)

    def _judged(self, positions_A: np.ndarray, known: Sequence[Saddle]) -> str:
        self.saddle = verified(
            self.surface, self.reaction, positions_A, known=known, irc_steps=self.options.irc_steps
        )
        self._offer_saddle(self.saddle)
        return self.saddle.verdict

    def _single_start(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The guess itself, or a step away from the minimum in a random direction."""
        reaction = self.reaction
        if reaction.guess is not None:
            return reaction.guess.positions, None
        start = reaction.reactant.positions
        if reaction.is_guess:
            return start, None
        away = self.rng.normal(size=start.shape) * ~self.surface.fixed[:, None]
        away = _unit(away)
        return start + KICK_A * away, away

    def _relax_ends(self) -> str | None:
        reaction = self.reaction
        assert reaction.product is not None
        starts = np.array([reaction.reactant.positions, reaction.product.positions])
        ends = relax(
            self.surface,
            starts,
            fmax_eV_per_A=self.options.fmax_eV_per_A,
            max_steps=self.options.neb_steps,
            watch=self.watch,
        )
        if ends.outcome not in (CONVERGED, NOT_CONVERGED):
            return ends.outcome
        near, far = reaction.reactant.copy(), reaction.product.copy()
        for atoms, x in zip((near, far), ends.positions_A, strict=True):
            constraints = atoms.constraints
            atoms.set_constraint()
            atoms.positions = x
            atoms.set_constraint(constraints)
            self._offer(x, "end")
        if distance_between(near, far) < COLLAPSED_A:
            return ONE_MINIMUM
        self.reaction = Reaction(reaction.name, near, far, reaction.guess)
        return None

    def _make_band(self) -> str | None:
        """The band, or why there is none that is worth climbing from.

        A path that had to be kicked around a collision is kicked elsewhere when nothing comes of it.
        """
        options, limits = self.options, self.watch.limits
        last: np.ndarray | None = None
        code: str | None = None
        for _ in range(TRIES):
            try:
                path = first_path(
                    self.reaction, options.images, self.rng, pair_factor=limits.guards.pair_factor
                )
            except PolicyError:
                return code or NO_PATH
            if last is not None and (path == last).all():
                break  # the straight line: no other is tried
            last = path
            self.band, code = self._relaxed_band(path)
            if code in (None, LABEL_STOP, ABORT):
                break
        assert self.band is not None
        if np.isfinite(self.band.energies_eV).all() and np.isfinite(self.band.positions_A).all():
            self._offer_band(self.band)
        return code

    def _relaxed_band(self, path: np.ndarray) -> tuple[Band, str | None]:
        options = self.options
        if not options.method.startswith("neb"):  # its highest image is all that is wanted
            energies = self.surface(path).energies_eV
            fine = bool(np.isfinite(energies).all())
            return Band(path, energies, NOT_CONVERGED, math.nan, 0), None if fine else NOT_FINITE
        alone = options.method == "neb"
        band = relax_band(
            self.surface,
            path,
            self.watch,
            fmax_eV_per_A=options.fmax_eV_per_A if alone else options.neb_fmax_eV_per_A,
            max_steps=options.neb_steps,
        )
        good = (CONVERGED,) if alone else (CONVERGED, NOT_CONVERGED)
        return band, None if band.outcome in good else band.outcome

    def _climb(self, start: np.ndarray, mode: np.ndarray | None) -> Climb:
        options = self.options
        if options.method.endswith("sella"):
            return climb_sella(
                self.surface,
                start,
                self.watch,
                fmax_eV_per_A=options.fmax_eV_per_A,
                max_steps=options.climb_steps,
            )
        return climb_dimer(
            self.surface,
            start,
            self.watch,
            fmax_eV_per_A=options.fmax_eV_per_A,
            max_steps=options.climb_steps,
            mode=mode,
        )

    def _offer_band(self, band: Band) -> None:
        """The highest image, and the one that the committee knows least."""
        if band.steps == 0:  # a drawn path is no candidate
            return
        self._offer(band.positions_A[band.top], "path")
        if self.surface.members == 1:
            return
        errors = self.surface(band.positions_A[1:-1], members=True).errors_eV_per_A
        if errors is not None and np.isfinite(errors).all():
            worst = 1 + int(np.argmax(errors))
            if worst != band.top:
                self._offer(band.positions_A[worst], "path", float(errors[worst - 1]))

    def _offer_climb(self, climb: Climb) -> None:
        if climb.outcome in (NOT_CONVERGED, BEYOND):
            self._offer(climb.positions_A, "path" if self.watch.tether is None else "climb")

    def _offer_saddle(self, saddle: Saddle) -> None:
        if saddle.verdict in _KNOWN:
            return
        reason = "saddle" if saddle.verdict == SADDLE else "unconfirmed-saddle"
        self._offer(saddle.positions_A, reason, saddle.expected_error_eV_per_A)
        if saddle.verdict == SADDLE and self.reaction.product is None and saddle.ends_A is not None:
            for x in saddle.ends_A:  # nobody named them: the barrier hangs on them all the same
                self._offer(x, "end")
        for surplus in saddle.surplus_modes:  # what the label has to say is how the surface bends there
            self._offer(saddle.positions_A + self.options.along_mode_A * surplus, "surplus-mode")
        for sign in (1.0, -1.0):
            self._offer(saddle.positions_A + sign * self.options.along_mode_A * saddle.mode, "along-mode")

    def _offer(self, positions_A: np.ndarray, reason: str, error: float = math.nan) -> None:
        if not np.isfinite(positions_A).all():
            return
        if math.isnan(error) and self.surface.members != 1:
            errors = self.surface(positions_A[None], members=True).errors_eV_per_A
            error = math.nan if errors is None else float(errors[0])
        self.watch.offers.append(Offer(positions_A.copy(), reason, self.watch.steps, error))


def _unit(direction: np.ndarray) -> np.ndarray:
    return np.asarray(direction / max(float(np.linalg.norm(direction)), 1e-300))
