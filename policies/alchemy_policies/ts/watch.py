"""What is looked at while a search goes on: guards, runaways, and the committee's calibrated error.

As in molecular dynamics, a search stops where the committee loses its way (`label-stop` after
`debounce` checks in a row above `label_above`, `abort` at once above `abort_above`) and what it
stopped at is offered for labelling. Guards have the codes of `guards`; `runaway` is ours: an atom
has travelled farther than any reaction needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from ..guards import Guards, Reference, guard_forces, guard_frame
from .surface import Look, Surface
from .tether import BEYOND, Tether

CONVERGED, NOT_CONVERGED = "converged", "not-converged"
LABEL_STOP, ABORT, RUNAWAY, FOLDED = "label-stop", "abort", "runaway", "folded"


@dataclass(frozen=True)
class Limits:
    """When a search stops."""

    label_above_eV_per_A: float
    abort_above_eV_per_A: float
    check_every: int
    debounce: int
    grace: int  # checks before a label-stop: a first guess is uncertain everywhere
    travel_A: float
    guards: Guards


@dataclass(frozen=True)
class Offer:
    """A structure worth a label, and why."""

    positions_A: np.ndarray
    reason: str
    step: int
    expected_error_eV_per_A: float


@dataclass
class Watch:
    """Owns what a search has seen so far."""

    surface: Surface
    limits: Limits
    offers: list[Offer] = field(default_factory=list)
    worst_eV_per_A: float = math.nan
    steps: int = 0
    tether: Tether | None = None
    _above: int = 0
    _checks: int = 0
    _crossed: Offer | None = None
    _trusted: Offer | None = None
    _start: np.ndarray | None = None

    def begin(self, positions_A: np.ndarray) -> None:
        """A new part of the search starts from these copies [S,A,3]."""
        self._start = positions_A.copy()
        self._above = self._checks = 0
        self._crossed = self._trusted = None

    def due(self) -> bool:
        """Whether the next evaluation needs the members' forces."""
        return self.steps % self.limits.check_every == 0

    def judge(self, positions_A: np.ndarray, look: Look) -> str | None:
        """A reason to stop, or None; counts the step. The offers of a stop are made here."""
        code = self._guarded(positions_A, look)
        if code is None and look.errors_eV_per_A is not None:
            code = self._uncertain(positions_A, look)
        if code is None and self.tether is not None:
            code = BEYOND if self.tether.leaves(self.surface.frame(positions_A[0])) else None
        if code is not None:
            self._offer_stop(code)
        self.steps += 1
        return code

    def _guarded(self, positions_A: np.ndarray, look: Look) -> str | None:
        if not np.isfinite(positions_A).all():
            return "not-finite"
        guards = self.limits.guards
        for forces, energy in zip(look.forces_eV_per_A, look.energies_eV, strict=True):
            code = guard_forces(guards, forces, float(energy))
            if code is not None:
                return code
        assert self._start is not None
        gone = np.linalg.norm(positions_A - self._start, axis=-1).max()
        if gone > self.limits.travel_A:
            return RUNAWAY
        if look.errors_eV_per_A is None:
            return None
        reference = Reference.of(self.surface.atoms, guards)
        codes = (
            guard_frame(guards, reference, x, forces_eV_per_A=f)
            for x, f in zip(positions_A, look.forces_eV_per_A, strict=True)
        )
        return next((code for code in codes if code is not None), None)

    def _uncertain(self, positions_A: np.ndarray, look: Look) -> str | None:
        assert look.errors_eV_per_A is not None
        errors = look.errors_eV_per_A
        members = look.member_forces_eV_per_A
        if members is None or len(members) < 2:
            return None  # one calculator has no spread: nothing to watch
        if np.isnan(errors).any():
            return "not-finite"
        worst = int(np.argmax(errors))
        frame = Offer(positions_A[worst].copy(), "crossed", self.steps, float(errors[worst]))
        self.worst_eV_per_A = float(np.fmax(self.worst_eV_per_A, errors[worst]))
        self._checks += 1
        if errors[worst] <= self.limits.label_above_eV_per_A:
            self._above, self._crossed = 0, None
            self._trusted = Offer(frame.positions_A, "last-good", self.steps, frame.expected_error_eV_per_A)
            return None
        self._crossed = self._crossed or frame
        if errors[worst] > self.limits.abort_above_eV_per_A and self._checks > self.limits.grace:
            return ABORT
        if self._checks > self.limits.grace:
            self._above += 1
        return LABEL_STOP if self._above >= self.limits.debounce else None

    def _offer_stop(self, code: str) -> None:
        """The frame that crossed and the last good one; nothing absurd is offered."""
        if self._crossed is not None:
            self.offers.append(self._crossed)
        if self._trusted is not None:
            self.offers.append(self._trusted)
