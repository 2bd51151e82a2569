"""Walkers that move together: one session call per step, and each is judged when it is due."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tace.prediction import CommitteePrediction

from .base import PolicyError, Session, SessionFactory
from .bias import EnergyBias
from .calibration import Calibration, worst_decile
from .energy_spread import energy_spread_per_atom
from .integrators import Crowd, Integrator, State, kinetic_temperature, maxwell_boltzmann
from .walkers import FINISHED, Frame, Limits, Walker, bare_copy


@dataclass(frozen=True)
class Rules:
    """What all walkers of an exploration have in common."""

    session_factory: SessionFactory
    calibration: Calibration
    integrator: Integrator
    limits: Limits
    steps: int
    check_every: int
    bias: EnergyBias | None = None


@dataclass
class Crew:
    """The walkers that run side by side, their atoms one after another. Owns the session."""

    walkers: list[Walker]
    rules: Rules
    crowd: Crowd
    state: State
    session: Session | None  # None where nobody is
    start_volumes: np.ndarray  # [W], Å³; 0 without three cell vectors
    bias_eV: np.ndarray  # [W], energy of the bias at the last evaluation

    @classmethod
    def at_start(cls, walkers: list[Walker], rules: Rules) -> Crew:
        """Thermal velocities and no forces yet; see `judge_starts`."""
        draws = [maxwell_boltzmann(w.inverse_mass, w.temperature_K, w.rng) for w in walkers]
        nothing = np.empty((0, 3))
        state = State(
            positions=np.concatenate([*(w.start.positions for w in walkers), nothing]),
            velocities=np.concatenate([*draws, nothing]),
            cells=np.array([w.start.cell.array for w in walkers]).reshape(-1, 3, 3),
            forces=np.zeros((sum(len(w.start) for w in walkers), 3)),
            pressure=np.zeros(len(walkers)),
            received=np.zeros(len(walkers)),
        )
        return cls._of(walkers, rules, state)

    @classmethod
    def _of(cls, walkers: list[Walker], rules: Rules, state: State) -> Crew:
        crowd = Crowd.of(
            [w.inverse_mass for w in walkers],
            _baths(walkers, rules),
            conserving=rules.integrator.conserving,
        )
        volumes = np.array([abs(w.start.cell.volume) for w in walkers])
        crew = cls(walkers, rules, crowd, state, None, volumes, np.zeros(len(walkers)))
        if walkers:
            frames = [
                bare_copy(w.start, state.positions[rows], state.cells[n])
                for n, (w, rows) in enumerate(crew._rows())
            ]
            crew.session = rules.session_factory(frames)
        return crew

    def with_newcomers(self, others: Crew) -> Crew:
        """Both side by side."""
        if not (self.walkers and others.walkers):
            return self if self.walkers else others
        both = self.state.beside(others.state)
        return self._of(self.walkers + others.walkers, self.rules, both)

    def survivors(self) -> Crew:
        """Rebuilt without those that stopped; a session costs little beside its steps."""
        runs = np.array([not walker.outcome for walker in self.walkers], dtype=bool)
        if runs.all():
            return self
        state = self.state.of(runs[self.crowd.owner], runs)
        return self._of([w for w in self.walkers if not w.outcome], self.rules, state)

    @property
    def atoms(self) -> int:
        return len(self.crowd.owner)

    def at_a_check(self) -> bool:
        """Newcomers start at a check, so that all walkers ask for member forces together."""
        return all(walker.steps % self.rules.check_every == 0 for walker in self.walkers)

    def judge_starts(self) -> Crew:
        """Forces of the start structures; those that are fit to walk."""
        prediction = self._evaluate(member_forces=True)
        self._check(prediction, [True] * len(self.walkers))
        return self.survivors()

    def step(self) -> tuple[Crew, int]:
        """One step of everybody: who runs on, and how many were evaluated."""
        integrator, rules = self.rules.integrator, self.rules
        if any(walker.ramp_K_per_step for walker in self.walkers):
            self.crowd = replace(self.crowd, temperature_K=np.array(_baths(self.walkers, rules)))
        rngs = [walker.rng for walker in self.walkers]
        integrator.to_new_positions(self.crowd, self.state, rngs)
        for walker in self.walkers:
            walker.steps += 1
        crew = self._within_volume()
        if not crew.walkers:
            return crew, 0
        due = [crew._is_due(walker) for walker in crew.walkers]
        prediction = crew._evaluate(member_forces=any(due))
        integrator.last_kick(crew.crowd, crew.state)
        crew._check_due(prediction, due)
        for walker in crew.walkers:
            if walker.steps == rules.steps and not walker.outcome:
                walker.stop(FINISHED)
        return crew.survivors(), len(crew.walkers)

    def _is_due(self, walker: Walker) -> bool:
        return walker.steps % self.rules.check_every == 0 or walker.steps == self.rules.steps

    def _within_volume(self) -> Crew:
        """Without those whose cell ran away: no force can be asked for in a collapsed cell."""
        if self.rules.integrator.barostat is None:
            return self
        guards = self.rules.limits.guards
        ratios = np.abs(np.linalg.det(self.state.cells)) / self.start_volumes
        for n in np.flatnonzero(~guards.allow_volume(ratios)):
            self.walkers[n].stop("volume" if np.isfinite(ratios[n]) else "not-finite")
        return self.survivors()

    def _evaluate(self, *, member_forces: bool) -> CommitteePrediction:
        assert self.session is not None
        state, bias = self.state, self.rules.bias
        member_forces = member_forces or bias is not None
        stresses = None
        if self.rules.integrator.barostat is None:
            prediction = self.session(state.positions, member_forces)
        else:
            prediction = self.session(
                state.positions, member_forces, cells_A=state.cells, stress=True
            )
            stresses = prediction.mean_stresses
        if member_forces and prediction.forces is not None and len(prediction.forces) < 2:
            raise PolicyError(
                "one member has no spread and cannot know when to stop; train two or more"
            )
        state.forces = np.asarray(prediction.mean_forces, dtype=float)
        if bias is not None:
            push = bias(prediction)
            self.bias_eV = push.energies_eV
            state.forces = state.forces + push.forces_eV_per_A
            stresses = None if stresses is None else stresses + push.stresses_eV_per_A3
        if stresses is not None:
            state.pressure = -stresses[:, :3].mean(1)
        return prediction

    def _check_due(self, prediction: CommitteePrediction, due: Sequence[bool]) -> None:
        """Those that are due are judged; the others only watched for an explosion."""
        guards, energies = self.rules.limits.guards, prediction.mean_energies
        if any(due):
            self._check(prediction, due)
        if all(due) or guards.allow_forces(self.state.forces, energies):
            return
        for n, (walker, rows) in enumerate(self._rows()):
            if not due[n]:
                forces, energy = self.state.forces[rows], float(energies[n])
                walker.check_forces(guards, forces=forces, energy_eV=energy)

    def _check(self, prediction: CommitteePrediction, due: Sequence[bool]) -> None:
        numbers = np.concatenate([walker.reference.numbers for walker in self.walkers])
        with np.errstate(invalid="ignore"):  # ∞ − ∞ of a broken member; the walker's check sees it
            errors = self.rules.calibration.expected_error(numbers, prediction.force_spread)
        energies, state = prediction.mean_energies, self.state
        energy_spreads = energy_spread_per_atom(prediction)
        kinetic = self.crowd.kinetic_energies(state.velocities)
        conserved = self.rules.integrator.conserved(self.crowd, state, energies + self.bias_eV)
        for n, (walker, rows) in enumerate(self._rows()):
            if not due[n]:
                continue
            # a fixed atom's error moves nothing; where all are fixed, nothing else is left to judge
            moving = walker.inverse_mass > 0
            judged = errors[rows][moving] if moving.any() else errors[rows]
            frame = Frame(
                walker.steps,
                state.positions[rows].copy(),
                state.cells[n].copy(),
                worst_decile(judged),
                float(energy_spreads[n]),
            )
            walker.check(
                frame,
                self.rules.limits,
                temperature_K=kinetic_temperature(float(kinetic[n]), walker.degrees_of_freedom),
                forces=state.forces[rows],
                energy_eV=float(energies[n]),
            )
            walker.note_conserved(float(conserved[n]), self.rules.limits.guards)

    def _rows(self) -> list[tuple[Walker, slice]]:
        ends = np.cumsum([len(walker.start) for walker in self.walkers])
        return [
            (w, slice(end - len(w.start), end)) for w, end in zip(self.walkers, ends, strict=True)
        ]


def _baths(walkers: Sequence[Walker], rules: Rules) -> list[float]:
    """K. Of a ramp as at the walker's last check, so that it does not depend on when others end."""
    return [w.bath_K(w.steps // rules.check_every * rules.check_every) for w in walkers]
