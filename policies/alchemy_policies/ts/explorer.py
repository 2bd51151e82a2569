"""Transition states as an explorer: every reaction is a walker of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms

from ..base import Candidate, Exploration, PolicyError, SessionFactory, WalkerReport
from ..calibration import Calibration
from ..guards import Guards
from .reactions import Reaction, checked
from .saddles import SADDLE, Saddle
from .search import SearchOptions, SearchResult, search
from .surface import Surface
from .watch import Limits

DISCONNECTED = "disconnected"


@dataclass(frozen=True, kw_only=True)
class TransitionStates:
    """Explorer. Looks for the saddles of reactions between its start structures.

    Each reaction is named by the places of its structures among the starts. Without `reactions`,
    neighbours that hold the same atoms in the same order are taken as reactant and product, and from
    every other start one saddle is looked for in a random direction.
    """

    # each: name, reactant, product, guess, is_guess, fixed (atoms that do not move)
    reactions: tuple[Mapping[str, Any], ...] | None = None
    label_above_eV_per_A: float = 0.5  # expected error (worst decile) that ends a search
    abort_above_eV_per_A: float = 5.0
    check_every: int = 5
    debounce: int = 3
    grace_checks: int = 4  # the first guess of a path is uncertain everywhere
    travel_A: float = 8.0  # no atom goes farther: a runaway optimiser
    batch_atoms: int = 1024  # atoms in one session call
    guards: Guards = field(default_factory=Guards)
    search: SearchOptions = field(default_factory=SearchOptions)

    def __post_init__(self) -> None:
        guards: Any = self.guards  # a campaign file gives mappings
        if isinstance(guards, Mapping):
            object.__setattr__(self, "guards", Guards(**guards))
        options: Any = self.search
        if isinstance(options, Mapping):
            object.__setattr__(self, "search", SearchOptions(**options))
        if self.reactions is not None:
            object.__setattr__(self, "reactions", tuple(dict(r) for r in self.reactions))
        if not 0 < self.label_above_eV_per_A < self.abort_above_eV_per_A:
            raise PolicyError(
                f"need 0 < label_above < abort_above, got {self.label_above_eV_per_A} and "
                f"{self.abort_above_eV_per_A} eV/Å: between them a structure is worth a label"
            )
        for name, least in (("check_every", 1), ("debounce", 1), ("grace_checks", 0), ("batch_atoms", 1)):
            if getattr(self, name) < least:
                raise PolicyError(f"{name} is {getattr(self, name)}, must be at least {least}")
        if not self.travel_A > 0:
            raise PolicyError(f"travel_A is {self.travel_A}, must be positive")

    def __call__(
        self,
        starts: Sequence[Atoms],
        session_factory: SessionFactory,
        calibration: Calibration,
        rng: np.random.Generator,
    ) -> Exploration:
        if not starts:
            raise PolicyError("transition-state search needs start structures; give ends of reactions")
        wanted = list(self.reactions) if self.reactions is not None else paired(starts)
        candidates: list[Candidate] = []
        walkers: list[WalkerReport] = []
        reports: list[dict[str, Any]] = []
        known: list[tuple[tuple[int, ...], Saddle]] = []
        calls = 0
        for index, (entry, stream) in enumerate(zip(wanted, rng.spawn(len(wanted)), strict=True)):
            reaction = _reaction(entry, starts)
            place = int(entry["reactant"])
            try:
                ready = checked(reaction)
            except PolicyError as problem:  # the others go on; the reason is kept
                walkers.append(_report(index, place, None))
                reports.append({"name": reaction.name, "outcome": DISCONNECTED, "message": str(problem)})
                continue
            result = self._search(ready, session_factory, calibration, rng=stream, known=known)
            calls += result.force_calls
            if result.saddle is not None and result.found:
                known.append((tuple(ready.reactant.numbers), result.saddle))
            walkers.append(_report(index, place, result))
            candidates += _candidates(index, ready.reactant, result)
            reports.append(summary(result))
        return Exploration(tuple(candidates), tuple(walkers), calls, {"reactions": reports})

    def _search(
        self,
        reaction: Reaction,
        session_factory: SessionFactory,
        calibration: Calibration,
        *,
        rng: np.random.Generator,
        known: Sequence[tuple[tuple[int, ...], Saddle]],
    ) -> SearchResult:
        surface = Surface(reaction.reactant, session_factory, calibration, batch_atoms=self.batch_atoms)
        atoms = tuple(reaction.reactant.numbers)
        return search(
            surface,
            reaction,
            options=self.search,
            limits=self.limits,
            rng=rng,
            known=[saddle for numbers, saddle in known if numbers == atoms],
        )

    @property
    def limits(self) -> Limits:
        """What ends a search."""
        return Limits(
            label_above_eV_per_A=self.label_above_eV_per_A,
            abort_above_eV_per_A=self.abort_above_eV_per_A,
            check_every=self.check_every,
            debounce=self.debounce,
            grace=self.grace_checks,
            travel_A=self.travel_A,
            guards=self.guards,
        )


def paired(starts: Sequence[Atoms]) -> list[dict[str, Any]]:
    """Neighbours with the same atoms as reactions, and the rest as starts of their own."""
    entries: list[dict[str, Any]] = []
    n = 0
    while n < len(starts):
        here = starts[n]
        partner = starts[n + 1] if n + 1 < len(starts) else None
        if partner is not None and list(partner.numbers) == list(here.numbers):
            entries.append({"name": f"{n}-{n + 1}", "reactant": n, "product": n + 1})
            n += 2
        else:
            entries.append({"name": str(n), "reactant": n})
            n += 1
    return entries


def _reaction(entry: Mapping[str, Any], starts: Sequence[Atoms]) -> Reaction:
    known = {"name", "reactant", "product", "guess", "is_guess", "fixed"}
    strange = sorted(set(entry) - known)
    if strange or "reactant" not in entry:
        raise PolicyError(f"a reaction has 'reactant' and may have {', '.join(sorted(known))}; found {entry}")

    def at(key: str) -> Atoms | None:
        place = entry.get(key)
        if place is None:
            return None
        if not (isinstance(place, int) and 0 <= place < len(starts)):
            raise PolicyError(f"reaction {entry.get('name')}: {key} is {place!r}, not a place among the "
                              f"{len(starts)} start structures")  # fmt: skip
        return _held(starts[place], entry.get("fixed", ()), str(entry.get("name", place)))

    reactant = at("reactant")
    assert reactant is not None
    return Reaction(
        str(entry.get("name", entry["reactant"])),
        reactant,
        at("product"),
        at("guess"),
        bool(entry.get("is_guess", False)),
    )


def _held(atoms: Atoms, fixed: Sequence[int], name: str) -> Atoms:
    """The structure with these atoms fixed, besides those that are."""
    if not len(fixed):
        return atoms
    if not all(isinstance(n, int) and 0 <= n < len(atoms) for n in fixed):
        raise PolicyError(f"reaction {name}: fixed is {list(fixed)}; count atoms from 0 to {len(atoms) - 1}")
    held = atoms.copy()
    held.set_constraint([*atoms.constraints, FixAtoms(list(fixed))])
    return held


def _report(index: int, place: int, result: SearchResult | None) -> WalkerReport:
    return WalkerReport(
        walker=index,
        start_index=place,
        temperature_K=0.0,
        steps=0 if result is None else result.steps,
        outcome=DISCONNECTED if result is None else result.outcome,
        time_fs=0.0,
        max_expected_error_eV_per_A=math.nan if result is None else result.worst_error_eV_per_A,
    )


def _candidates(index: int, start: Atoms, result: SearchResult) -> list[Candidate]:
    from ..walkers import bare_copy

    return [
        Candidate(
            atoms=bare_copy(start, offer.positions_A, start.cell.array),
            source="ts",
            reason=offer.reason,
            walker=index,
            step=offer.step,
            time_fs=0.0,
            temperature_K=0.0,
            expected_error_eV_per_A=offer.expected_error_eV_per_A,
        )
        for offer in result.offers
    ]


def summary(result: SearchResult) -> dict[str, Any]:
    """What a report says of a search: plain values, null where nothing is known."""
    saddle = result.saddle
    entry: dict[str, Any] = {
        "name": result.reaction.name,
        "outcome": result.outcome,
        "steps": result.steps,
        "force_calls": result.force_calls,
        "band_barrier_eV": None if result.band is None else _known(result.band.barrier_eV),
    }
    if saddle is None:
        return entry
    curvatures, overlaps = saddle.curvatures_eV_per_A2, saddle.overlaps
    return {
        **entry,
        "found": result.outcome == SADDLE,
        "energy_eV": _known(saddle.energy_eV),
        "barrier_eV": _known(saddle.barriers_eV[0]),
        "reverse_barrier_eV": _known(saddle.barriers_eV[1]),
        "imaginary_modes": saddle.imaginary,
        "lowest_frequencies_per_cm": [round(float(f), 1) for f in saddle.frequencies_per_cm[:3]],
        "members": len(curvatures),
        "member_curvatures_eV_per_A2": [round(float(c), 3) for c in curvatures],
        "least_overlap": round(float(overlaps.min()), 3),
        "turning": round(saddle.turning, 3),
        "expected_error_eV_per_A": _known(saddle.expected_error_eV_per_A),
    }


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
