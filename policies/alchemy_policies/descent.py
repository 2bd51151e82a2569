"""Short optimisations of many structures at once, for explorers that follow the forces downhill.

FIRE (Bitzek et al., Phys. Rev. Lett. 97, 170201, 2006, with ASE's parameters) of all structures side by side:
one session call per step, in fixed cells. Differs: the step of the atom that moves most is limited, not the
norm over all atoms: large structures move as far as small ones. Who else is in the batch changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from ase import Atoms

from tace.prediction import CommitteePrediction

from .base import PolicyError, Session, SessionFactory
from .calibration import Calibration, worst_decile
from .guards import Guards, Reference, guard_frame
from .walkers import fixed_atoms

FINISHED, CONVERGED, ABORT = "finished", "converged", "abort"
_START_DT, _MOST_DT, _GROW, _SHRINK, _PATIENCE = 0.1, 1.0, 1.1, 0.5, 5
_ALPHA, _ALPHA_FALL = 0.1, 0.99


class Relaxing(Protocol):
    """The options of an explorer that optimises."""

    @property
    def relax_steps(self) -> int: ...
    @property
    def fmax_eV_per_A(self) -> float: ...
    @property
    def abort_above_eV_per_A(self) -> float: ...
    @property
    def guards(self) -> Guards: ...


@dataclass(frozen=True)
class Terms:
    """How far down, and what ends it before."""

    steps: int
    fmax_eV_per_A: float
    max_step_A: float = 0.2
    guards: Guards = field(default_factory=Guards)
    abort_above_eV_per_A: float = math.inf  # expected error beyond which the forces mean nothing
    calibration: Calibration | None = None  # None: errors are not judged (a labeler's forces are the truth)

    @classmethod
    def of(cls, policy: Relaxing, calibration: Calibration | None) -> Terms:
        """As an explorer's options say. True forces have no limit: they are not an artefact of the model."""
        free = replace(policy.guards, max_force_eV_per_A=math.inf)
        return cls(
            steps=policy.relax_steps,
            fmax_eV_per_A=policy.fmax_eV_per_A,
            guards=policy.guards if calibration else free,
            abort_above_eV_per_A=policy.abort_above_eV_per_A,
            calibration=calibration,
        )


@dataclass(frozen=True)
class Moment:
    """A structure at one step of its way down."""

    step: int
    positions_A: np.ndarray
    energy_eV: float
    forces_eV_per_A: np.ndarray
    expected_error_eV_per_A: float  # NaN where it is not judged


@dataclass(frozen=True)
class Way:
    """What became of a structure: moments that were asked for, in order, and the last sound one."""

    moments: tuple[Moment, ...]
    last: Moment | None  # None: not even the first was sound
    outcome: str  # 'finished' | 'converged' | 'abort' | a guard's code
    steps: int


@dataclass
class _Runner:
    """One structure of the batch; owns its FIRE state."""

    atoms: Atoms
    reference: Reference
    moves: np.ndarray  # [A] bool
    positions: np.ndarray
    velocity: np.ndarray
    dt: float = _START_DT
    alpha: float = _ALPHA
    downhill: int = 0
    moments: list[Moment] = field(default_factory=list)
    last: Moment | None = None
    outcome: str = ""
    steps: int = 0

    @classmethod
    def of(cls, atoms: Atoms, guards: Guards) -> _Runner:
        positions = atoms.positions.copy()
        still = np.zeros_like(positions)
        return cls(atoms, Reference.of(atoms, guards), ~fixed_atoms(atoms), positions, still)

    def step(self, forces: np.ndarray, longest: float) -> None:
        pull = np.where(self.moves[:, None], forces, 0.0)
        power = float((pull * self.velocity).sum())
        if power > 0:
            speed, strength = np.linalg.norm(self.velocity), np.linalg.norm(pull)
            self.velocity = (1 - self.alpha) * self.velocity + self.alpha * pull * (speed / strength)
            if self.downhill > _PATIENCE:
                self.dt = min(self.dt * _GROW, _MOST_DT)
                self.alpha *= _ALPHA_FALL
            self.downhill += 1
        else:
            self.velocity = np.zeros_like(pull)
            self.alpha, self.downhill = _ALPHA, 0
            self.dt *= _SHRINK if self.steps else 1.0
        self.velocity = self.velocity + self.dt * pull
        move = self.dt * self.velocity
        farthest = float(np.sqrt((move**2).sum(1)).max(initial=0.0))
        self.positions = self.positions + move * min(1.0, longest / farthest if farthest > 0 else 1.0)
        self.steps += 1


def descend(
    frames: Sequence[Atoms], factory: SessionFactory, terms: Terms, *, keep: Collection[int]
) -> tuple[list[Way], int]:
    """Ways down of all frames, and the number of structures evaluated.

    Args:
        keep: steps whose moments are kept, if the structure gets there.

    Raises:
        PolicyError: a constraint other than FixAtoms, or a committee of one member that has to judge.
    """
    runners = [_Runner.of(atoms, terms.guards) for atoms in frames]
    running, calls, session = runners, 0, None
    for step in range(terms.steps + 1):
        if session is None:
            session = _session(running, factory)
        # member forces cost a backward pass each
        due = terms.calibration is not None and (step in keep or step == terms.steps or step % 2 == 0)
        prediction = session(np.concatenate([r.positions for r in running]), due)
        calls += len(running)
        errors = _errors(running, prediction, terms, due=due)
        _judge(running, prediction, terms, errors=errors, kept=step in keep)
        before, running = running, [r for r in running if not r.outcome]
        if not running:
            break
        if len(running) < len(before):
            session = None
    return [Way(tuple(r.moments), r.last, r.outcome, r.steps) for r in runners], calls


def _session(running: Sequence[_Runner], factory: SessionFactory) -> Session:
    frames = []
    for runner in running:
        atoms = runner.atoms.copy()
        atoms.set_constraint()
        atoms.positions = runner.positions
        frames.append(atoms)
    return factory(frames)


def _errors(
    running: Sequence[_Runner], prediction: CommitteePrediction, terms: Terms, *, due: bool
) -> list[float | None]:
    """Expected error of each, the worst decile of moving atoms; None where it was not asked for."""
    if not due or terms.calibration is None:
        return [None] * len(running)
    if prediction.forces is not None and len(prediction.forces) < 2:
        raise PolicyError("one member has no spread and cannot know when to stop; train two or more")
    numbers = np.concatenate([r.atoms.numbers for r in running])
    with np.errstate(invalid="ignore"):  # ∞ − ∞ of a broken member; NaN is judged
        errors = terms.calibration.expected_error(numbers, prediction.force_spread)
    pieces = np.split(errors, np.cumsum([len(r.atoms) for r in running])[:-1])
    return [
        worst_decile(piece[r.moves] if r.moves.any() else piece)
        for r, piece in zip(running, pieces, strict=True)
    ]


def _judge(
    running: Sequence[_Runner],
    prediction: CommitteePrediction,
    terms: Terms,
    *,
    errors: Sequence[float | None],
    kept: bool,
) -> None:
    """Note the moment, set the outcome of those that end here, move the others one step."""
    ends = np.cumsum([len(r.atoms) for r in running])
    energies = prediction.mean_energies
    for n, (runner, error) in enumerate(zip(running, errors, strict=True)):
        forces = np.asarray(
            prediction.mean_forces[ends[n] - len(runner.atoms) : ends[n]], dtype=float
        )
        code = guard_frame(
            terms.guards,
            runner.reference,
            runner.positions,
            forces_eV_per_A=forces,
            energy_eV=float(energies[n]),
        )
        if error is not None and math.isnan(error):
            code = code or "not-finite"
        moment = Moment(
            runner.steps, runner.positions, float(energies[n]), forces, math.nan if error is None else error
        )
        # where it starts is somebody's structure, not an artefact of these forces: worth a look
        if code is None or (code == "force" and runner.steps == 0):
            runner.last = moment
            if kept:
                runner.moments.append(moment)
        largest = float(np.sqrt((forces[runner.moves] ** 2).sum(1)).max(initial=0.0))
        if code is not None:
            runner.outcome = code
        elif error is not None and error > terms.abort_above_eV_per_A:
            runner.outcome = ABORT
        elif largest < terms.fmax_eV_per_A:
            runner.outcome = CONVERGED
        elif runner.steps >= terms.steps:
            runner.outcome = FINISHED
        else:
            runner.step(forces, terms.max_step_A)


def batches(frames: Sequence[Atoms], most: int) -> list[list[int]]:
    """Indices of frames that are evaluated together: at most so many atoms, or one frame."""
    found: list[list[int]] = []
    filled = most
    for n, atoms in enumerate(frames):
        if filled + len(atoms) > most:
            found.append([])
            filled = 0
        found[-1].append(n)
        filled += len(atoms)
    return found


def with_last(way: Way) -> tuple[Moment, ...]:
    """The moments and, where it is not among them, the last sound one."""
    last = way.last
    if last is None or any(moment.step == last.step for moment in way.moments):
        return way.moments
    known = [m.expected_error_eV_per_A for m in way.moments]
    if math.isnan(last.expected_error_eV_per_A) and known:
        last = replace(last, expected_error_eV_per_A=known[-1])
    return (*way.moments, last)
