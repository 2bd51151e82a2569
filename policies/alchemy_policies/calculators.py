"""ASE calculators in the place of a committee: searches and explorers on any level of theory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, Calculator, SCFError

from tace.prediction import CommitteePrediction

from .base import PolicyError


class CalculatorSessions:
    """A session factory; each calculator is a member of the committee.

    One alone has no spread: what watches the error refuses it, unless it is told not to. A code that
    gives up on a structure (CalculationFailed, SCFError) says NaN, at which that search or walk ends;
    `failed` counts how often.

    Raises:
        PolicyError: no calculator; a session that is asked for other cells or the stress.
    """

    def __init__(self, calculators: Sequence[Calculator] | Calculator) -> None:
        self.members = [calculators] if isinstance(calculators, Calculator) else list(calculators)
        if not self.members:
            raise PolicyError("sessions of calculators need at least one calculator")
        self.failed = 0

    def __call__(self, frames: Sequence[Atoms]) -> CalculatorSession:
        return CalculatorSession(self, [atoms.copy() for atoms in frames])


class CalculatorSession:
    """Energies (eV) and forces (eV/Å, raw) of the same structures, moved."""

    def __init__(self, owner: CalculatorSessions, frames: list[Atoms]) -> None:
        self.owner, self.frames = owner, frames

    def __call__(
        self,
        positions_A: np.ndarray,
        member_forces: bool,
        *,
        cells_A: np.ndarray | None = None,
        stress: bool = False,
    ) -> CommitteePrediction:
        if cells_A is not None or stress:
            raise PolicyError("sessions of ASE calculators keep their cells and give no stress")
        sizes = np.array([len(atoms) for atoms in self.frames])
        parts = np.split(positions_A, np.cumsum(sizes)[:-1])
        energies = np.zeros((len(self.owner.members), len(self.frames)))
        forces = []
        for k, calculator in enumerate(self.owner.members):
            rows = []
            for n, (atoms, x) in enumerate(zip(self.frames, parts, strict=True)):
                energies[k, n], pull = self._computed(atoms, x, calculator)
                rows.append(pull)
            forces.append(np.concatenate(rows))
        stacked = np.array(forces)
        return CommitteePrediction(
            n_atoms=sizes,
            energies=energies,
            mean_forces=stacked.mean(0),
            forces=stacked if member_forces else None,
        )

    def _computed(
        self, atoms: Atoms, positions_A: np.ndarray, calculator: Calculator
    ) -> tuple[float, np.ndarray]:
        atoms.positions = positions_A
        atoms.calc = calculator
        try:
            forces = atoms.get_forces(apply_constraint=False)
        except (CalculationFailed, SCFError):
            self.owner.failed += 1
            return np.nan, np.full((len(atoms), 3), np.nan)
        results = calculator.results
        return float(results.get("free_energy", results["energy"])), np.asarray(forces)
