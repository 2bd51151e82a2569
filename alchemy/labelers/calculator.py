"""A labeler as ASE calculator, for dynamics, relaxations and searches on a level of theory itself."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from ase import Atoms
from ase.calculators.calculator import CalculationFailed, Calculator, all_changes

from .base import Labeler, LabelFailureError


class LabelerCalculator(Calculator):
    """Computes in `scratch`, which is emptied before each structure.

    Raises:
        CalculationFailed: what the labeler says of a structure that it cannot label, in ASE's word for it.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces", "stress"]

    def __init__(self, labeler: Labeler, scratch: Path) -> None:
        super().__init__()
        self.labeler, self.scratch = labeler, scratch

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        super().calculate(atoms, list(properties), list(system_changes))
        assert self.atoms is not None
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(parents=True)
        try:
            self.labeler.write_input(self.atoms, self.scratch)
            self.labeler.run(self.scratch)
            result = self.labeler.read(self.atoms, self.scratch)
        except LabelFailureError as failure:
            raise CalculationFailed(str(failure)) from failure
        self.results = {
            "energy": result.energy_eV,
            "free_energy": result.energy_eV,
            "forces": result.forces_eV_per_A,
        }
        if result.stress_eV_per_A3 is not None:
            self.results["stress"] = result.stress_eV_per_A3
