"""ASE calculator: the committee mean of every quantity, with the spread of energies and forces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from .committee import Committee
from .errors import ModelFileError
from .inputs import read_inputs
from .properties import predict
from .responses import available

# ASE's name of a quantity, and ours
ALIASES = {
    "energies": "atomic_energies",
    "charges": "charges",
    "dipole": "dipole",
    "born_effective_charges": "born_charges",
}


class TaceCalculator(Calculator):
    """Energy (eV), forces (eV/Å), stress (eV/Å³, ASE sign) of one model or of a committee.

    `results` also holds `force_spread` [A] (eV/Å) and `energy_spread` (eV); NaN for one model. Whatever
    else the model predicts (`tace.responses.available`) is had by `get_property(name)`, under its own
    name and, where ASE has one (energies, charges, dipole, born_effective_charges), under that. Conditions
    such as a total charge or a field are read from `atoms.info` and `atoms.arrays`.
    """

    implemented_properties: list[str] = [  # noqa: RUF012  (ASE's; an instance adds what its model has)
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
        config = self.committee.members[0].config
        self._own = {name: name for name in available(config) if name not in ("energy", "forces", "stress")}
        self._own |= {ase: ours for ase, ours in ALIASES.items() if ours in self._own}
        self.implemented_properties = [*type(self).implemented_properties, *self._own]

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
        more = [name for name in properties if name in self._own]
        if more:
            names = sorted({self._own[name] for name in more})
            found = predict(self.committee.members, [self.atoms], [self.fidelity], names=names)[0]
            self.results |= {name: found[self._own[name]] for name in more}

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What differs from the last calculation; ASE knows nothing of conditions in `info` and `arrays`."""
        changes: list[str] = super().check_state(atoms, tol=tol)
        if self.atoms is not None and not changes:
            inputs = self.committee.members[0].config.inputs
            if inputs:
                mine, other = (read_inputs(a, inputs) for a in (self.atoms, atoms))
                changes = [name for name in mine if not np.array_equal(mine[name], other[name])]
        return changes


def _load(models: str | Path | Sequence[str | Path], device: str) -> Committee:
    if isinstance(models, (str, Path)):
        path = Path(models)
        files = sorted(path.glob("member-*.pt")) if path.is_dir() else [path]
        if not files:
            raise ModelFileError(f"{path}: no member-*.pt in this directory")
        return Committee.load(files, device=device)
    return Committee.load([Path(p) for p in models], device=device)
