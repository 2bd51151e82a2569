"""ASE calculator: the committee mean, with the spread of energy and of the force on each atom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from .committee import Committee
from .errors import ModelFileError


class TaceCalculator(Calculator):
    """Energy (eV), forces (eV/Å), stress (eV/Å³, ASE sign) of one model or of a committee.

    `results` also holds `force_spread` [A] (eV/Å) and `energy_spread` (eV); NaN for one model.
    """

    implemented_properties: ClassVar[list[str]] = [
        "energy", "free_energy", "forces", "stress", "force_spread", "energy_spread",
    ]  # fmt: skip

    def __init__(
        self,
        models: Committee | str | Path | Sequence[str | Path],
        *,
        fidelity: str | None = None,
        device: str = "cpu",
        **kwargs: Any,
    ) -> None:
        """
        Args:
            models: a committee, a model file, several, or a directory of `member-*.pt` files.
            fidelity: level to predict; None is the last one of the model.
        """
        super().__init__(**kwargs)
        self.committee = models if isinstance(models, Committee) else _load(models, device)
        self.fidelity = fidelity or self.committee.fidelities[-1]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill `results`; stress only for structures periodic in three dimensions."""
        super().calculate(atoms, list(properties), list(system_changes))
        assert self.atoms is not None
        periodic = bool(self.atoms.pbc.all())
        wanted = periodic and "stress" in properties
        out = self.committee(
            [self.atoms],
            fidelity=self.fidelity,
            member_forces=len(self.committee.members) > 1,
            stress=wanted,
        )
        energy = float(out.mean_energies[0])
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "forces": out.mean_forces,
            "energy_spread": float(out.energy_spread[0]),
            "force_spread": out.force_spread
            if out.forces is not None
            else np.full(len(self.atoms), np.nan),
        }
        if wanted and out.stresses is not None:
            self.results["stress"] = out.stresses.mean(0)[0]


def _load(models: str | Path | Sequence[str | Path], device: str) -> Committee:
    if isinstance(models, (str, Path)):
        path = Path(models)
        files = sorted(path.glob("member-*.pt")) if path.is_dir() else [path]
        if not files:
            raise ModelFileError(f"{path}: no member-*.pt in this directory")
        return Committee.load(files, device=device)
    return Committee.load([Path(p) for p in models], device=device)
