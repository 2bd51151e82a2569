"""Where to begin without a model: atoms have sizes, and that is all that is known.

Born–Mayer repulsion A exp(−(r − s r₀)/(b r₀)) of all pairs, r₀ the sum of their covalent radii (Cordero et
al. 2008, as ASE has them). It keeps apart what the process of `correction` has not seen meet; all else that
has from labels. Three of them, soft to hard, are a committee that disagrees where labels do not decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list

HEIGHT_eV, WHERE = 2.0, 0.8  # at 0.8 r₀ no bond is left
SOFTNESS = (0.13, 0.15, 0.17)
LONGEST = 2.0  # of r₀: there it is 2 meV at most


class Repulsion(Calculator):
    """See the module; `softness` is b."""

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces"]

    def __init__(self, softness: float = SOFTNESS[1]) -> None:
        super().__init__()
        self.softness = softness

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        super().calculate(atoms, list(properties), list(system_changes))
        assert self.atoms is not None
        radii = covalent_radii[self.atoms.numbers]
        i, j, d, apart = neighbor_list("ijdD", self.atoms, 2 * LONGEST * float(radii.max()))
        size = radii[i] + radii[j]
        energy = HEIGHT_eV * np.exp(-(d - WHERE * size) / (self.softness * size))
        forces = np.zeros((len(self.atoms), 3))
        np.subtract.at(forces, i, (energy / (self.softness * size * d))[:, None] * apart)
        total = 0.5 * float(energy.sum())  # every pair stands in the list twice
        self.results = {"energy": total, "free_energy": total, "forces": forces}


def repulsions() -> list[Repulsion]:
    """The committee of those who know nothing."""
    return [Repulsion(b) for b in SOFTNESS]
