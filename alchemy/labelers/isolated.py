"""One atom in vacuum: the reference energies E0 that a model's energies are counted from."""

from __future__ import annotations

from ase import Atoms
from ase.data import atomic_numbers, ground_state_magnetic_moments

from alchemy.errors import StructureError


def isolated_atom(symbol: str) -> Atoms:
    """A neutral atom in its ground state by Hund's rules, not periodic."""
    number = atomic_numbers.get(symbol, 0)
    if number == 0:
        raise StructureError(f"there is no element '{symbol}'")
    if number >= len(ground_state_magnetic_moments):
        raise StructureError(f"the ground state of an isolated {symbol} atom is not tabulated")
    atoms = Atoms(symbol, positions=[[0.0, 0.0, 0.0]])
    atoms.info["multiplicity"] = round(ground_state_magnetic_moments[number]) + 1
    return atoms
