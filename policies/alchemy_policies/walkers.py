
"""One walker of molecular dynamics: what it remembers, when it stops, which frames it offers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms

from .base import Candidate, PolicyError, WalkerReport
from .guards import Guards, Reference, guard_forces, guard_frame, hot_limit, is_hot, is_slab
from .integrators import degrees_of_freedom

FINISHED, LABEL_STOP, ABORT = "finished", "label-stop", "abort"
CROSSED, ENERGY = "crossed", "energy-spread"  # why a frame is worth a label: for its forces, or not for them

# They change the energy; the rest of info is the start's own story.
_KEPT_INFO = ("charge", "multiplicity")
_KEPT_ARRAYS = {"numbers", "positions", "tags", "masses", "initial_magmoms", "initial_charges"}


@dataclass(frozen=True)
class Limits:
    """When a walker stops, in units of a checked frame."""

    label_above_eV_per_A: float
    abort_above_eV_per_A: float
    debounce: int  # checks in a row above `label_above`
    first_label_step: int  # no label-stop earlier
    sample_steps: frozenset[int]
    guards: Guards
    energy_spread_above_eV_per_atom: float = math.inf  # the second veto, see `energy_spread`

    def objection(self, frame: Frame) -> str | None:
        """Why the frame is worth a label; None where the committee is sure of it."""
        if not frame.expected_error_eV_per_A <= self.label_above_eV_per_A:
            return CROSSED
        return ENERGY if frame.energy_spread_eV_per_atom > self.energy_spread_above_eV_per_atom else None


@dataclass(frozen=True)
class Frame:
    """A checked moment of a walker."""

    step: int
    positions_A: np.ndarray
    cell_A: np.ndarray  # [3,3]
    expected_error_eV_per_A: float
    energy_spread_eV_per_atom: float = 0.0


@dataclass
class Walker:
    index: int
    start_index: int
    start: Atoms
    temperature_K: float
    timestep_fs: float
    rng: np.random.Generator
    reference: Reference
    inverse_mass: np.ndarray  # 0 for a fixed atom
    degrees_of_freedom: int
    hot_limit_K: float
    ramp_K_per_step: float = 0.0
    outcome: str = ""  # empty while it runs
    steps: int = 0
    conserved_eV: tuple[float, float] | None = None  # at the start, and at the last check
    hot_checks: int = 0
    checks_above: int = 0
    crossed: Frame | None = None
    crossed_by: str = CROSSED
    trusted: Frame | None = None  # the last frame to which there was no objection
    sound: Frame | None = None  # the last frame that neither a guard nor `abort_above` objected to
    worst_eV_per_A: float = math.nan
    offers: dict[int, Candidate] = field(default_factory=dict)  # by step: a frame is offered once

    def bath_K(self, step: int) -> float:
        """Temperature of the thermostat at a step."""
        return self.temperature_K + self.ramp_K_per_step * step

    def check(
        self,
        frame: Frame,
        limits: Limits,
        *,
        temperature_K: float,
        forces: np.ndarray,
        energy_eV: float,
    ) -> None:
        """Judge a frame; sets `outcome` when the walker has to stop."""
        self.hot_checks = self.hot_checks + 1 if is_hot(temperature_K, self.hot_limit_K) else 0
        code = guard_frame(
            limits.guards,
            self.reference.at(frame.cell_A),
            frame.positions_A,
            forces_eV_per_A=forces,
            energy_eV=energy_eV,
            hot_checks=self.hot_checks,
        )
        error = frame.expected_error_eV_per_A
        if code is None and math.isnan(error):
            code = "not-finite"  # a member broke; their mean need not show it
        if code is not None:
            self.stop(code)
            return
        self.worst_eV_per_A = float(np.fmax(self.worst_eV_per_A, error))
        if error > limits.abort_above_eV_per_A:
            if frame.step == 0:
                # the start is somebody's structure, not an artefact of our model: worth a label
                self._offer(frame, CROSSED)
            self.stop(ABORT)
            return
        self.sound = frame
        if frame.step in limits.sample_steps:
            self._offer(frame, "sampled")
        self._watch_threshold(frame, limits)

    def check_forces(self, guards: Guards, *, forces: np.ndarray, energy_eV: float) -> None:
        """Between two checks; sets `outcome` on an explosion."""
        code = guard_forces(guards, forces, energy_eV)
        if code is not None:
            self.stop(code)

    def note_conserved(self, energy_eV: float, guards: Guards) -> None:
        """The energy that only the error of the time step changes, at a check."""
        if not math.isfinite(energy_eV):
            return
        first = energy_eV if self.conserved_eV is None else self.conserved_eV[0]
        self.conserved_eV = (first, energy_eV)
        if not self.outcome and abs(energy_eV - first) > guards.max_drift_eV_per_atom * len(self.start):
            self.stop("energy-drift")

    def _watch_threshold(self, frame: Frame, limits: Limits) -> None:
        objection = limits.objection(frame)
        if objection is None:
            self.trusted, self.crossed, self.checks_above = frame, None, 0
            return
        if frame.step < limits.first_label_step:
            return
        if self.crossed is None:
            self.crossed, self.crossed_by = frame, objection
        self.checks_above += 1
        if self.checks_above >= limits.debounce:
            self.stop(LABEL_STOP)

    def stop(self, outcome: str) -> None:
        """End the walker; unless it finished, its crossing and its last good frame are offered.

        The last good frame before an accident is a 'failed' one: it has a quota of its own, because many
        accidents of a bad model look alike, and the model learns most from a few of them.
        """
        self.outcome = outcome
        if outcome == FINISHED:
            if self.sound is not None:
                self._offer(self.sound, "survivor")
            return
        if self.crossed is not None:  # also before an accident: uncertain, and still sound
            self._offer(self.crossed, self.crossed_by)
        # a label-stop has no use for a frame above the threshold that is not the crossing one
        good = self.trusted if outcome == LABEL_STOP else self.trusted or self.sound
        if good is not None and good.step not in self.offers:
            self._offer(good, "last-good" if outcome in (LABEL_STOP, ABORT) else "failed")

    def _offer(self, frame: Frame, reason: str) -> None:
        self.offers[frame.step] = Candidate(
            atoms=bare_copy(self.start, frame.positions_A, frame.cell_A),
            source="md",
            reason=reason,
            walker=self.index,
            step=frame.step,
            time_fs=frame.step * self.timestep_fs,
            temperature_K=self.bath_K(frame.step),
            expected_error_eV_per_A=frame.expected_error_eV_per_A,
        )

    def report(self) -> WalkerReport:
        first, last = self.conserved_eV or (math.nan, math.nan)
        return WalkerReport(
            walker=self.index,
            start_index=self.start_index,
            temperature_K=self.temperature_K,
            steps=self.steps,
            outcome=self.outcome,
            time_fs=self.steps * self.timestep_fs,
            max_expected_error_eV_per_A=self.worst_eV_per_A,
            drift_eV_per_atom=(last - first) / len(self.start),
        )


def make_walker(
    index: int,
    start: tuple[int, Atoms],
    temperature_K: float,
    *,
    timestep_fs: float,
    conserving: bool,
    guards: Guards,
    rng: np.random.Generator,
    ramp: tuple[float, int] | None = None,
) -> Walker:
    """A walker at rest; `start` is its place among the starts and the structure.

    Args:
        ramp: temperature (K) that its thermostat reaches, linearly, and after how many steps.
        conserving: its total momentum stays zero, see `degrees_of_freedom`.
    """
    start_index, atoms = start
    masses = atoms.get_masses()
    if len(atoms) == 0 or not (masses > 0).all():
        raise PolicyError(f"start {start_index} needs atoms, each with a positive mass")
    inverse_mass = np.where(fixed_atoms(atoms), 0.0, 1 / masses)
    freedom = degrees_of_freedom(inverse_mass, conserving=conserving)
    end_K, steps = ramp or (temperature_K, 1)
    hottest_K = max(temperature_K, end_K)
    return Walker(
        index=index,
        start_index=start_index,
        start=atoms,
        temperature_K=temperature_K,
        timestep_fs=timestep_fs,
        rng=rng,
        reference=Reference.of(atoms, guards),
        inverse_mass=inverse_mass,
        degrees_of_freedom=freedom,
        hot_limit_K=hot_limit(hottest_K, freedom, ratio=guards.max_temperature_ratio),
        ramp_K_per_step=(end_K - temperature_K) / steps,
    )


def fixed_atoms(atoms: Atoms) -> np.ndarray:
    """Mask [A]; other constraints are refused because ignoring them would be silent."""
    fixed = np.zeros(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        if not isinstance(constraint, FixAtoms):
            kind = type(constraint).__name__
            raise PolicyError(
                f"molecular dynamics honours FixAtoms only; remove {kind} from the start"
            )
        fixed[constraint.index] = True
    return fixed


def refuse_open_cells(start_index: int, atoms: Atoms) -> None:
    """At a pressure a walker needs a volume, and nothing that stays in place while it changes."""
    name = f"start {start_index} ({atoms.get_chemical_formula()})"
    if not (atoms.pbc.all() and atoms.cell.rank == 3):
        axes = "".join(axis for axis, p in zip("xyz", atoms.pbc, strict=True) if p)
        found = f"periodic along {axes} only" if axes else "not periodic"
        raise PolicyError(
            f"{name} is {found}: ensemble npt needs a cell that is periodic along all three axes; "
            "give such structures, or choose ensemble nvt"
        )
    if is_slab(atoms):
        raise PolicyError(
            f"{name} is a slab: ensemble npt would scale its vacuum with it, and pressure has no meaning "
            "there; give bulk structures, or choose ensemble nvt"
        )
    if fixed_atoms(atoms).any():
        raise PolicyError(
            f"{name} has fixed atoms, which ensemble npt would move with the cell; "
            "remove the constraint, or choose ensemble nvt"
        )


def bare_copy(start: Atoms, positions_A: np.ndarray, cell_A: np.ndarray) -> Atoms:
    """The start elsewhere: no calculator, constraint or momenta, whose results would be stale."""
    atoms = start.copy()
    atoms.set_constraint()
    for name in set(atoms.arrays) - _KEPT_ARRAYS:
        del atoms.arrays[name]
    atoms.info = {key: start.info[key] for key in _KEPT_INFO if key in start.info}
    atoms.cell[:] = cell_A
    atoms.positions = positions_A
    return atoms
