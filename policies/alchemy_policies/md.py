
"""Molecular dynamics on the committee's mean force, stopped where the committee loses its way.

All walkers of all temperatures move as one batch: one session call per step. Member forces, which
cost a backward pass each, are asked for at checks only. Walkers that stop leave the batch at
once, so they can neither poison nor slow the others. Each walker owns a random generator: its
path does not depend on who walks beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms

from tace.prediction import CommitteePrediction

from .base import Exploration, PolicyError, Session, SessionFactory
from .calibration import Calibration, worst_decile
from .guards import Guards
from .integrators import (
    Motion,
    kinetic_temperature,
    last_kick,
    maxwell_boltzmann,
    to_new_positions,
)
from .walkers import FINISHED, Frame, Limits, Walker, bare_copy, make_walker


@dataclass(frozen=True, kw_only=True)
class MolecularDynamics:
    """Explorer. Starts are dealt to the walkers in a random order, each once before any twice."""

    label_above_eV_per_A: float  # expected error (worst decile) that is worth a label
    abort_above_eV_per_A: float  # expected error beyond which the trajectory means nothing
    temperatures_K: tuple[float, ...] = (300.0, 600.0)
    time_fs: float = 1000.0
    timestep_fs: float = 0.5  # a C-H stretch takes 11 fs
    friction_per_fs: float = 0.01
    walkers: int = 1  # per temperature
    check_every: int = 10
    ensemble: str = "nvt"  # or "nve"
    samples: int = 4  # frames offered per walker whatever their error: the pool must not be biased
    debounce: int = 2
    grace_fs: float = 25.0  # no label-stop before: it would only offer the start again
    guards: Guards = field(default_factory=Guards)

    def __post_init__(self) -> None:
        guards: Any = self.guards  # a campaign file gives a mapping, and a list of temperatures
        if isinstance(guards, Mapping):
            object.__setattr__(self, "guards", Guards(**guards))
        object.__setattr__(self, "temperatures_K", tuple(float(t) for t in self.temperatures_K))
        if self.ensemble not in ("nvt", "nve"):
            raise PolicyError(f"ensemble is 'nvt' or 'nve', not {self.ensemble!r}")
        if not 0 < self.label_above_eV_per_A < self.abort_above_eV_per_A:
            raise PolicyError(
                f"need 0 < label_above < abort_above, got {self.label_above_eV_per_A} and "
                f"{self.abort_above_eV_per_A} eV/Å: between them a frame is worth a label"
            )
        at_least = {
            "time_fs": self.timestep_fs,
            "walkers": 1,
            "check_every": 1,
            "debounce": 1,
            "samples": 0,
            "friction_per_fs": 0,
            "grace_fs": 0,
        }
        for name, least in at_least.items():
            if not getattr(self, name) >= least:
                raise PolicyError(f"{name} is {getattr(self, name)}, must be at least {least}")
        if not self.timestep_fs > 0:
            raise PolicyError(f"timestep_fs is {self.timestep_fs}, must be positive")
        if not self.temperatures_K or not all(t > 0 for t in self.temperatures_K):
            raise PolicyError(
                f"temperatures_K is {self.temperatures_K}: give one or more above zero"
            )

    def __call__(
        self,
        starts: Sequence[Atoms],
        session_factory: SessionFactory,
        calibration: Calibration,
        rng: np.random.Generator,
    ) -> Exploration:
        if not starts:
            raise PolicyError("molecular dynamics needs at least one start structure")
        walkers = self._deal(starts, rng)
        batch = _Batch.at_start(walkers, self, session_factory)
        limits = self._limits()
        calls = 0
        for step in range(self.steps + 1):
            if step:
                batch.drift()
            checking = step % self.check_every == 0 or step == self.steps
            calls += len(batch.walkers)
            prediction = batch.evaluate(member_forces=checking)
            if step:
                batch.kick()
            if checking:
                batch.check(prediction, calibration, step=step, limits=limits)
            else:
                batch.check_forces(prediction, step=step, guards=self.guards)
            if any(walker.outcome for walker in batch.walkers):
                batch = batch.survivors(self, session_factory)
            if not batch.walkers:
                break
        for walker in batch.walkers:
            walker.stop(FINISHED)
        offers = [walker.offers[step] for walker in walkers for step in sorted(walker.offers)]
        return Exploration(tuple(offers), tuple(walker.report() for walker in walkers), calls)

    @property
    def steps(self) -> int:
        return round(self.time_fs / self.timestep_fs)

    def _limits(self) -> Limits:
        checks = self.steps // self.check_every
        spaced = np.linspace(0, checks, self.samples + 2)[1:-1].round().astype(int)
        inner = {int(check) * self.check_every for check in spaced} - {0, self.steps}
        return Limits(
            label_above_eV_per_A=self.label_above_eV_per_A,
            abort_above_eV_per_A=self.abort_above_eV_per_A,
            debounce=self.debounce,
            first_label_step=round(self.grace_fs / self.timestep_fs),
            sample_steps=frozenset(inner),
            guards=self.guards,
        )

    def _deal(self, starts: Sequence[Atoms], rng: np.random.Generator) -> list[Walker]:
        order = rng.permutation(len(starts))
        temperatures = [t for t in self.temperatures_K for _ in range(self.walkers)]
        streams = rng.spawn(len(temperatures))
        walkers = []
        for index, (temperature, stream) in enumerate(zip(temperatures, streams, strict=True)):
            start = int(order[index % len(order)])
            walkers.append(
                make_walker(
                    index,
                    (start, starts[start]),
                    temperature,
                    timestep_fs=self.timestep_fs,
                    thermostat=self.ensemble == "nvt",
                    guards=self.guards,
                    rng=stream,
                )
            )
        return walkers


@dataclass
class _Batch:
    """The walkers that still run, their atoms one after another. Owns the session."""

    walkers: list[Walker]
    session: Session | None  # None once nobody is left
    motion: Motion
    thermostat: bool
    positions: np.ndarray
    velocities: np.ndarray
    forces: np.ndarray

    @classmethod
    def at_start(
        cls, walkers: list[Walker], md: MolecularDynamics, session_factory: SessionFactory
    ) -> _Batch:
        positions = [walker.start.positions.copy() for walker in walkers]
        velocities = [maxwell_boltzmann(w.inverse_mass, w.temperature_K, w.rng) for w in walkers]
        state = (np.concatenate(positions), np.concatenate(velocities))
        return cls._of(walkers, md, session_factory, state=(*state, np.zeros_like(state[0])))

    @classmethod
    def _of(
        cls,
        walkers: list[Walker],
        md: MolecularDynamics,
        session_factory: SessionFactory,
        *,
        state: tuple[np.ndarray, np.ndarray, np.ndarray],
    ) -> _Batch:
        sizes = [len(w.start) for w in walkers]
        motion = Motion.of(
            np.concatenate([w.inverse_mass for w in walkers]) if walkers else np.empty(0),
            np.repeat([w.temperature_K for w in walkers], sizes) if walkers else np.empty(0),
            timestep_fs=md.timestep_fs,
            friction_per_fs=md.friction_per_fs if md.ensemble == "nvt" else 0.0,
        )
        cuts = np.cumsum(sizes)[:-1]
        frames = (
            [bare_copy(w.start, x) for w, x in zip(walkers, np.split(state[0], cuts), strict=True)]
            if walkers
            else []
        )
        session = session_factory(frames) if walkers else None
        return cls(walkers, session, motion, md.ensemble == "nvt", *state)

    def survivors(self, md: MolecularDynamics, session_factory: SessionFactory) -> _Batch:
        """Rebuilt without those that stopped; a session costs little beside its steps."""
        running = [walker for walker in self.walkers if not walker.outcome]
        keep = np.repeat(
            [not w.outcome for w in self.walkers], [len(w.start) for w in self.walkers]
        )
        state = (self.positions[keep], self.velocities[keep], self.forces[keep])
        return _Batch._of(running, md, session_factory, state=state)

    def drift(self) -> None:
        normal = None
        if self.thermostat:
            normal = np.concatenate(
                [w.rng.standard_normal((len(w.start), 3)) for w in self.walkers]
            )
        state = (self.positions, self.velocities, self.forces)
        self.positions, self.velocities = to_new_positions(self.motion, state, normal)

    def evaluate(self, *, member_forces: bool) -> CommitteePrediction:
        assert self.session is not None
        prediction = self.session(self.positions, member_forces)
        if member_forces and prediction.forces is not None and len(prediction.forces) < 2:
            raise PolicyError(
                "one member has no spread and cannot know when to stop; train two or more"
            )
        self.forces = np.asarray(prediction.mean_forces, dtype=float)
        return prediction

    def kick(self) -> None:
        self.velocities = last_kick(self.motion, self.velocities, self.forces)

    def check(
        self,
        prediction: CommitteePrediction,
        calibration: Calibration,
        *,
        step: int,
        limits: Limits,
    ) -> None:
        numbers = np.concatenate([walker.reference.numbers for walker in self.walkers])
        with np.errstate(invalid="ignore"):  # ∞ − ∞ of a broken member; the walker's check sees it
            errors = calibration.expected_error(numbers, prediction.force_spread)
        energies = prediction.mean_energies
        for n, (walker, rows) in enumerate(zip(self.walkers, self._rows(), strict=True)):
            # a fixed atom's error moves nothing; where all are fixed, nothing else is left to judge
            moving = walker.inverse_mass > 0
            judged = errors[rows][moving] if moving.any() else errors[rows]
            frame = Frame(step, self.positions[rows].copy(), worst_decile(judged))
            warmth = kinetic_temperature(
                self.velocities[rows], walker.inverse_mass, walker.degrees_of_freedom
            )
            walker.check(
                frame,
                limits,
                temperature_K=warmth,
                forces=self.forces[rows],
                energy_eV=float(energies[n]),
            )

    def check_forces(self, prediction: CommitteePrediction, *, step: int, guards: Guards) -> None:
        energies = prediction.mean_energies
        for n, (walker, rows) in enumerate(zip(self.walkers, self._rows(), strict=True)):
            walker.check_forces(
                step, guards, forces=self.forces[rows], energy_eV=float(energies[n])
            )

    def _rows(self) -> list[slice]:
        ends = np.cumsum([len(walker.start) for walker in self.walkers])
        return [slice(end - len(w.start), end) for w, end in zip(self.walkers, ends, strict=True)]
