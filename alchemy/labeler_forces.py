"""A labeler in the place of a committee: the forces of explorers before there is a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from tace.prediction import CommitteePrediction

from .labelers.base import LabelFailureError


class LabelerForces:
    """A session factory of `alchemy_policies`; counts what failed.

    One member, so there is no spread: explorers that judge errors refuse it, and need to be told not to.
    A calculation that fails gives NaN, at which the walker ends; of random structures many do.
    """

    def __init__(self, calculator: Calculator) -> None:
        self.calculator = calculator
        self.failed = 0

    def __call__(self, frames: Sequence[Atoms]) -> LabelerSession:
        return LabelerSession(self, [atoms.copy() for atoms in frames])


class LabelerSession:
    """Energies and forces of the same structures, moved."""

    def __init__(self, owner: LabelerForces, frames: list[Atoms]) -> None:
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
            raise NotImplementedError("explorers that change the cell need a committee")
        sizes = np.array([len(atoms) for atoms in self.frames])
        energies, forces = [], []
        for atoms, positions in zip(self.frames, np.split(positions_A, np.cumsum(sizes)[:-1]), strict=True):
            atoms.positions = positions
            energy, force = self._one(atoms)
            energies.append(energy)
            forces.append(force)
        together = np.concatenate(forces)
        return CommitteePrediction(
            sizes, np.array([energies]), together, together[None] if member_forces else None
        )

    def _one(self, atoms: Atoms) -> tuple[float, np.ndarray]:
        calculator = self.owner.calculator
        try:
            energy = calculator.get_property("energy", atoms)
            return float(energy), np.asarray(calculator.get_property("forces", atoms), dtype=float)
        except LabelFailureError:
            self.owner.failed += 1
            return float("nan"), np.full((len(atoms), 3), np.nan)
