"""The names, shapes and units of what a model reads and predicts: one table for files, batches and heads.

Inputs are conditions of a calculation; they live on the `ase.Atoms` (`info` for a structure, `arrays`
for atoms) under the names given here. Labels are what is trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Scope = Literal["structure", "atom"]


@dataclass(frozen=True)
class Quantity:
    """`shape` is that of one structure or one atom; () is a number."""

    name: str
    scope: Scope
    shape: tuple[int, ...]
    unit: str
    meaning: str


def _table(*rows: tuple[str, Scope, tuple[int, ...], str, str]) -> dict[str, Quantity]:
    return {row[0]: Quantity(*row) for row in rows}


INPUTS = _table(
    ("total_charge", "structure", (), "e", "total charge"),
    ("spin_multiplicity", "structure", (), "", "2S + 1"),
    ("electronic_temperature", "structure", (), "eV", "k_B T of the electrons"),
    ("charges", "atom", (), "e", "given partial charges"),
    ("electric_field", "structure", (3,), "V/A", "homogeneous electric field"),
    ("magnetic_moments", "atom", (3,), "mu_B", "non-collinear magnetic moments"),
    ("collinear_moments", "atom", (), "mu_B", "collinear magnetic moments"),
)

LABELS = _table(
    ("energy", "structure", (), "eV", "energy"),
    ("forces", "atom", (3,), "eV/A", "forces, −∂E/∂x"),
    ("stress", "structure", (6,), "eV/A^3", "stress, (1/V) ∂E/∂ε, order xx yy zz yz xz xy"),
    ("charges", "atom", (), "e", "partial charges"),
    ("dipole", "structure", (3,), "e*A", "dipole moment"),
    ("polarization", "structure", (3,), "e*A", "dipole of the cell, defined up to e times a lattice vector"),
    ("polarizability", "structure", (3, 3), "e*A^2/V", "polarisability, ∂P/∂field"),
    ("born_charges", "atom", (3, 3), "e", "Born effective charges ∂P_a/∂x_b, [a, b]"),
    ("magnetic_forces", "atom", (3,), "eV/mu_B", "−∂E/∂m"),
    ("collinear_forces", "atom", (), "eV/mu_B", "−∂E/∂m of collinear moments"),
    ("hessian", "atom", (), "eV/A^2", "second derivatives of the energy, [3A, 3A]"),
    ("atomic_energies", "atom", (), "eV", "energy of each atom"),
    ("atomic_virials", "atom", (3, 3), "eV", "share of each atom in the virial −∂E/∂ε"),
)
