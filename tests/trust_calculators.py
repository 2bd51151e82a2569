"""EMT that is wrong in the way that the environment variable TRUST_FAULT says; right without one."""

from __future__ import annotations

import os

import numpy as np
from ase.calculators.emt import EMT

from alchemy.identity import structure_uid


def marked(atoms) -> bool:
    """One structure in three, the same ones in every process."""
    return int(structure_uid(atoms)[:8], 16) % 3 == 0


class FaultyEMT(EMT):
    """Faults: sign, kcal (energies and forces of all), one-sign (one structure in three), noise."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=()) -> None:
        super().calculate(atoms, properties, system_changes)
        fault = os.environ.get("TRUST_FAULT", "")
        if len(atoms) == 1:
            return
        if fault == "sign" or (fault == "one-sign" and marked(atoms)):
            self.results["forces"] = -self.results["forces"]
        if fault == "hartree":
            self.results["energy"] = self.results["free_energy"] = self.results["energy"] / 27.2114
        if fault == "noise":
            forces = np.random.default_rng(int.from_bytes(os.urandom(4), "big")).normal(size=(len(atoms), 3))
            self.results["forces"] = self.results["forces"] + 0.05 * (forces - forces.mean(axis=0))
