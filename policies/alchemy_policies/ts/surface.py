"""The potential of one structure, asked for many copies of it side by side, and what it costs.

Shapes: S copies, A atoms, K members. Units: Å, eV, eV/Å. Forces on fixed atoms are zero here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.constraints import FixAtoms

from tace.prediction import CommitteePrediction

from ..base import PolicyError, Session, SessionFactory
from ..calibration import Calibration, worst_decile
from ..walkers import bare_copy


@dataclass(frozen=True)
class Look:
    """One evaluation of S copies."""

    energies_eV: np.ndarray  # [S]
    forces_eV_per_A: np.ndarray  # [S,A,3]
    member_forces_eV_per_A: np.ndarray | None = None  # [K,S,A,3]
    errors_eV_per_A: np.ndarray | None = None  # [S], calibrated; NaN for a committee of one


class Surface:
    """The committee's mean potential of one structure. Owns the sessions and counts what they do."""

    def __init__(
        self,
        atoms: Atoms,
        session_factory: SessionFactory,
        calibration: Calibration,
        *,
        batch_atoms: int = 1024,
    ) -> None:
        self.atoms = atoms
        self.fixed = fixed_atoms(atoms)
        self.calls = 0  # structures evaluated
        self.members: int | None = None  # how many there are, once they were asked
        self._factory, self._calibration = session_factory, calibration
        self._copies = max(1, batch_atoms // max(1, len(atoms)))
        self._sessions: dict[int, Session] = {}

    @property
    def masses(self) -> np.ndarray:
        """[A], amu."""
        return np.asarray(self.atoms.get_masses())

    def frame(self, positions_A: np.ndarray) -> Atoms:
        """The structure at other positions, without calculator or constraints."""
        return bare_copy(self.atoms, positions_A, self.atoms.cell.array)

    def __call__(self, positions_A: np.ndarray, *, members: bool = False) -> Look:
        """Energies and forces at positions [S,A,3], all copies that fit in one batch together.

        Args:
            members: forces of each member too, and with them the calibrated error.
        """
        copies = np.asarray(positions_A, dtype=float).reshape(-1, len(self.atoms), 3)
        parts = [
            self._evaluate(copies[start : start + self._copies], members=members)
            for start in range(0, len(copies), self._copies)
        ]
        return parts[0] if len(parts) == 1 else _joined(parts)

    def exact_hessians(self, positions_A: np.ndarray) -> np.ndarray | None:
        """Second derivatives of every member over the F moving atoms, [K, 3F, 3F], where it has them."""
        if 1 not in self._sessions:
            self._sessions[1] = self._factory([self.frame(positions_A)])
        asked = getattr(self._sessions[1], "hessians", None)
        if asked is None:
            return None
        free = np.flatnonzero(~self.fixed)
        self.calls += 3 * len(free)  # a row of it is a structure of its own
        return np.asarray(asked(positions_A, free), dtype=float)

    def _evaluate(self, copies: np.ndarray, *, members: bool) -> Look:
        count, size = len(copies), len(self.atoms)
        if count not in self._sessions:
            self._sessions[count] = self._factory([self.frame(x) for x in copies])
        said: CommitteePrediction = self._sessions[count](copies.reshape(-1, 3), members)
        self.calls += count
        forces = np.asarray(said.mean_forces, dtype=float).reshape(count, size, 3).copy()
        forces[:, self.fixed] = 0.0
        energies = np.asarray(said.mean_energies, dtype=float)
        if not members or said.forces is None:
            return Look(energies, forces)
        each = np.asarray(said.forces, dtype=float).reshape(-1, count, size, 3).copy()
        self.members = len(each)
        each[:, :, self.fixed] = 0.0
        return Look(energies, forces, each, self._errors(said, count))

    def _errors(self, said: CommitteePrediction, count: int) -> np.ndarray:
        """Expected error of the worst decile of the atoms that may move, of each copy."""
        if said.forces is None or len(said.forces) < 2:
            return np.full(count, np.nan)
        numbers = np.tile(self.atoms.numbers, count)
        with np.errstate(invalid="ignore"):  # ∞ − ∞ of a broken member gives NaN, which is seen
            expected = self._calibration.expected_error(numbers, said.force_spread)
        moving = expected.reshape(count, -1)[:, ~self.fixed]
        return np.array([worst_decile(row) for row in moving])


def _joined(parts: Sequence[Look]) -> Look:
    members = [p.member_forces_eV_per_A for p in parts]
    errors = [p.errors_eV_per_A for p in parts]
    return Look(
        np.concatenate([p.energies_eV for p in parts]),
        np.concatenate([p.forces_eV_per_A for p in parts]),
        None if members[0] is None else np.concatenate([m for m in members if m is not None], axis=1),
        None if errors[0] is None else np.concatenate([e for e in errors if e is not None]),
    )


def fixed_atoms(atoms: Atoms) -> np.ndarray:
    """Mask [A]; other constraints than FixAtoms are refused, because ignoring them would be silent."""
    fixed = np.zeros(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        if not isinstance(constraint, FixAtoms):
            raise PolicyError(
                "transition-state search honours FixAtoms only; remove "
                f"{type(constraint).__name__} from {atoms.get_chemical_formula()}"
            )
        fixed[constraint.index] = True
    return fixed


class SurfaceCalculator(Calculator):
    """A surface as an ASE calculator, for ASE's and Sella's optimisers; one copy at a time."""

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces"]

    def __init__(self, surface: Surface) -> None:
        super().__init__()
        self.surface = surface

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        super().calculate(atoms, list(properties), list(system_changes))
        assert self.atoms is not None
        look = self.surface(self.atoms.positions[None])
        energy = float(look.energies_eV[0])
        results: dict[str, Any] = {"energy": energy, "free_energy": energy}
        self.results = {**results, "forces": look.forces_eV_per_A[0].copy()}
