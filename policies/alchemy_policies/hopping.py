"""Basin hopping on the committee's mean energy (Wales & Doye, J. Phys. Chem. A 101, 5111, 1997).

A hop displaces every free atom at random, optimises what comes of it, and is accepted by Metropolis' rule
on the energies of the minima. Walkers hop side by side: all their optimisations are one batch. Each has its
own random generator, so its path depends neither on who hops beside it nor on how many do. Every minimum is
offered, accepted or not, and the last sound frame of an optimisation that the committee could not follow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms, units

from .base import Candidate, Exploration, PolicyError, SessionFactory, WalkerReport
from .calibration import Calibration
from .descent import ABORT, CONVERGED, FINISHED, Moment, Terms, Way, batches, descend
from .guards import Guards, Reference, is_too_close
from .walkers import bare_copy, fixed_atoms

MINIMUM, NEAR, UNSURE = "minimum", "along", "crossed"  # NEAR: out of steps before it was one
TRIES = 20  # displacements drawn until one puts no atom into another
KEPT_MOST = 40  # candidates of a walker; of a long search, evenly spaced hops


@dataclass(frozen=True, kw_only=True)
class BasinHopping:
    """Minima of the potential, found by random hops and short optimisations."""

    hops: int = 20
    step_A: float = 0.5  # each coordinate is displaced by up to this, uniformly
    swap: float = 0.0  # share of hops that exchange two atoms of different elements instead
    temperature_K: float = 3000.0  # of Metropolis' rule
    relax_steps: int = 60
    fmax_eV_per_A: float = 0.05
    walkers: int = 1
    abort_above_eV_per_A: float = 1.0  # expected error beyond which an optimisation means nothing
    guards: Guards = field(default_factory=lambda: Guards(pair_factor=0.5))
    batch_atoms: int = 1024

    def __post_init__(self) -> None:
        guards: Any = self.guards
        if isinstance(guards, Mapping):
            object.__setattr__(self, "guards", Guards(**guards))
        for name, least in (("hops", 1), ("walkers", 1), ("relax_steps", 1), ("batch_atoms", 1)):
            if not getattr(self, name) >= least:
                raise PolicyError(f"{name} is {getattr(self, name)}, must be at least {least}")
        for name in ("step_A", "temperature_K", "fmax_eV_per_A", "abort_above_eV_per_A"):
            if not getattr(self, name) > 0:
                raise PolicyError(f"{name} is {getattr(self, name)}, must be positive")
        if not 0 <= self.swap <= 1:
            raise PolicyError(f"swap is {self.swap}, a share of hops between 0 and 1")

    def __call__(
        self,
        starts: Sequence[Atoms],
        session_factory: SessionFactory,
        calibration: Calibration | None,
        rng: np.random.Generator,
    ) -> Exploration:
        """As every explorer; calibration None: the forces are true, nothing is judged."""
        if not starts:
            raise PolicyError("basin hopping needs at least one start structure")
        terms = Terms.of(self, calibration)
        hoppers = self._deal(starts, rng)
        calls = 0
        for hop in range(self.hops + 1):
            going = [hopper for hopper in hoppers if not hopper.outcome]
            trials = [hopper.atoms if hop == 0 else hopper.displaced(self) for hopper in going]
            for group in batches(trials, self.batch_atoms):
                ways, more = descend([trials[n] for n in group], session_factory, terms, keep=())
                calls += more
                for n, way in zip(group, ways, strict=True):
                    going[n].arrive(hop, trials[n], way, self.temperature_K)
        offers = [offer for hopper in hoppers for offer in _thinned(hopper.offers)]
        return Exploration(tuple(offers), tuple(h.report() for h in hoppers), calls)

    def _deal(self, starts: Sequence[Atoms], rng: np.random.Generator) -> list[_Hopper]:
        order = rng.permutation(len(starts))
        hoppers = []
        for index, stream in enumerate(rng.spawn(self.walkers)):
            start = int(order[index % len(order)])
            hoppers.append(_Hopper(index, start, starts[start].copy(), stream))
        return hoppers


@dataclass
class _Hopper:
    """One walker; owns its random generator and where it stands."""

    index: int
    start_index: int
    atoms: Atoms  # where it stands, with its constraints
    rng: np.random.Generator
    energy_eV: float = math.inf
    outcome: str = ""
    hops: int = 0
    accepted: int = 0
    worst_eV_per_A: float = math.nan
    offers: list[Candidate] = field(default_factory=list)

    def displaced(self, policy: BasinHopping) -> Atoms:
        """A trial: the free atoms moved at random, or two of them exchanged; nothing on top of each other."""
        free = np.flatnonzero(~fixed_atoms(self.atoms))
        reference = Reference.of(self.atoms, policy.guards)
        trial = self.atoms.copy()
        kinds = self.atoms.numbers[free]
        swaps = policy.swap > 0 and len(set(kinds.tolist())) > 1 and self.rng.uniform() < policy.swap
        if swaps:
            one = self.rng.choice(free)
            other = self.rng.choice(free[kinds != self.atoms.numbers[one]])
            trial.positions[[one, other]] = self.atoms.positions[[other, one]]
            return trial
        step = policy.step_A
        for _ in range(TRIES):
            moved = self.atoms.positions.copy()
            moved[free] += self.rng.uniform(-step, step, (len(free), 3))
            if not is_too_close(reference, moved, policy.guards.pair_factor):
                break
            step *= 0.8
        trial.set_positions(moved, apply_constraint=False)
        return trial

    def arrive(self, hop: int, trial: Atoms, way: Way, temperature_K: float) -> None:
        """Judge the end of an optimisation."""
        self.hops = hop
        last = way.last
        if last is None:
            if hop == 0:
                self.outcome = way.outcome
            return
        error = last.expected_error_eV_per_A
        self.worst_eV_per_A = float(np.fmax(self.worst_eV_per_A, error))
        sound = way.outcome in (CONVERGED, FINISHED)
        reason = {CONVERGED: MINIMUM, FINISHED: NEAR}.get(way.outcome, UNSURE)
        self.offers.append(self._offer(hop, last, reason))
        if not sound:
            if hop == 0 and way.outcome == ABORT:
                self.outcome = ABORT  # the start is unknown land: hops from it would be too
            return
        uphill = last.energy_eV - self.energy_eV
        if uphill <= 0 or self.rng.uniform() < math.exp(-uphill / (units.kB * temperature_K)):
            self.atoms = trial
            self.atoms.set_positions(last.positions_A, apply_constraint=False)
            self.energy_eV = last.energy_eV
            self.accepted += hop > 0

    def _offer(self, hop: int, moment: Moment, reason: str) -> Candidate:
        return Candidate(
            atoms=bare_copy(self.atoms, moment.positions_A, self.atoms.cell.array),
            source="basin_hopping",
            reason=reason,
            walker=self.index,
            step=hop,
            time_fs=0.0,
            temperature_K=0.0,
            expected_error_eV_per_A=moment.expected_error_eV_per_A,
        )

    def report(self) -> WalkerReport:
        return WalkerReport(
            walker=self.index,
            start_index=self.start_index,
            temperature_K=0.0,
            steps=self.hops,
            outcome=self.outcome or FINISHED,
            time_fs=0.0,
            max_expected_error_eV_per_A=self.worst_eV_per_A,
        )


def _thinned(offers: list[Candidate]) -> list[Candidate]:
    if len(offers) <= KEPT_MOST:
        return offers
    return [offers[n] for n in np.linspace(0, len(offers) - 1, KEPT_MOST).round().astype(int)]
