"""Sanity of structures before, and of labels after, a calculation. Silent mistakes cost most.

A finding is (reason, message); any finding makes the label a failed record with that reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import product

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from ase.data import chemical_symbols, covalent_radii
from ase.neighborlist import neighbor_list

from alchemy.errors import InputError
from alchemy.identity import charge_and_multiplicity
from alchemy.labelers.base import LabelResult

Finding = tuple[str, str]
LOPSIDED_PER_A2 = 1e-2  # Σ r̂/r² of an atom without symmetry: two unequal neighbours at 2 and 2.1 Å give 0.02
BONDED_A = 4.0  # below the cutoff of any potential: whoever has lopsided neighbours there feels a force
MOMENT_MU_B = 0.5  # spin states differ by 1 at least, smearing and integration grids by a tenth


@dataclass(frozen=True)
class Gate:
    """Limits of what can be a label. None switches a check off, where the type allows it."""

    # |ΣF| / A; None: the labeler's own, because it depends on how the code integrates
    net_force_eV_per_A_per_atom: float | None = None
    # chemistry ends at some 30 eV/Å (a C-H bond squeezed to 0.6 Å); what is above is a wreck
    max_force_eV_per_A: float | None = 100.0
    # |E − ΣE0| / A. The strongest bonds give 10 eV per atom; off by units or by the wrong method is
    # hundreds
    max_binding_eV_per_atom: float | None = 25.0
    # distance / sum of covalent radii. Bonds have 0.9 to 1.1, collisions at 5000 K 0.75; at 0.5
    # (H-H 0.31, C-H 0.54, C-C 0.76 Å) the pair is 10 eV up its wall and basis sets turn dependent
    min_distance_ratio: float = 0.5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not value > 0:
                raise InputError(f"gate: {field.name} is {value}, but must be above 0")

    def check_structure(self, atoms: Atoms) -> list[Finding]:
        """What would make a calculation pointless; run before it."""
        if len(atoms) == 0:
            return [("no-atoms", "the structure has no atoms")]
        if not (np.isfinite(atoms.positions).all() and np.isfinite(np.asarray(atoms.cell)).all()):
            return [("not-finite", "positions or cell contain NaN or infinity")]
        if (atoms.numbers < 1).any() or (atoms.numbers > 118).any():
            return [("unknown-element", f"atomic numbers {sorted(set(atoms.numbers.tolist()))}")]
        if atoms.pbc.any() and not abs(atoms.cell.complete().volume) > 1e-6:
            return [("bad-cell", "the structure is periodic, but its cell vectors are dependent")]
        if (np.linalg.norm(np.asarray(atoms.cell), axis=1)[atoms.pbc] == 0).any():
            return [("bad-cell", "the structure is periodic along a cell vector of length zero")]
        return [*self._overlaps(atoms), *impossible_spin(atoms)]

    def check(
        self, atoms: Atoms, result: LabelResult, e0_eV: Mapping[str, float] | None = None
    ) -> list[Finding]:
        """What is wrong with a label; an empty list means nothing found."""
        findings = list(_shapes(atoms, result)) or list(_finite(result))
        if findings:  # the other checks would only repeat it
            return findings
        return [
            *self._net_force(result.forces_eV_per_A),
            *self._large_force(result.forces_eV_per_A),
            *zero_forces(atoms, result.forces_eV_per_A),
            *_wrong_spin(atoms, result.total_moment_muB),
            *self._energy(atoms, result, e0_eV),
        ]

    def _overlaps(self, atoms: Atoms) -> Iterator[Finding]:
        pairs = product(sorted(set(atoms.symbols)), repeat=2)
        radii = {(a, b): self.min_distance_ratio * (_radius(a) + _radius(b)) for a, b in pairs}
        first, second, distance = neighbor_list("ijd", atoms, radii)
        if len(distance):
            worst = int(np.argmin(distance))
            i, j = int(first[worst]), int(second[worst])
            a, b = atoms.symbols[i], atoms.symbols[j]
            message = (
                f"{a} (atom {i}) and {b} (atom {j}) are {distance[worst]:.3f} Å apart, closer than "
                f"{radii[a, b]:.3f} Å = {self.min_distance_ratio:g} × their covalent radii"
            )
            yield "overlapping-atoms", message

    def _net_force(self, forces: np.ndarray) -> Iterator[Finding]:
        limit = self.net_force_eV_per_A_per_atom
        net = float(np.linalg.norm(forces.sum(axis=0))) / len(forces)
        if limit is not None and net > limit:
            yield "net-force", f"forces sum to {net:.2e} eV/Å per atom, more than {limit:.2e}"

    def _large_force(self, forces: np.ndarray) -> Iterator[Finding]:
        size = np.linalg.norm(forces, axis=1)
        limit, worst = self.max_force_eV_per_A, int(size.argmax())
        if limit is not None and size[worst] > limit:
            yield "force-too-large", f"{size[worst]:.4g} eV/Å on atom {worst}, more than {limit:g}"

    def _energy(
        self, atoms: Atoms, result: LabelResult, e0_eV: Mapping[str, float] | None
    ) -> Iterator[Finding]:
        if self.max_binding_eV_per_atom is None or e0_eV is None:
            return
        if any(symbol not in e0_eV for symbol in set(atoms.symbols)):
            return
        reference = sum(e0_eV[symbol] for symbol in atoms.symbols)
        binding = (result.energy_eV - reference) / len(atoms)
        if abs(binding) > self.max_binding_eV_per_atom:
            limit = self.max_binding_eV_per_atom
            message = f"energy is {binding:+.4g} eV per atom from isolated atoms, beyond {limit:g}"
            yield "energy-implausible", message


def _radius(symbol: str) -> float:
    radius = float(covalent_radii[chemical_symbols.index(symbol)])
    # ASE has 0.2 Å where none is known (beyond Cm); a heavy atom is never that small
    return radius if radius > 0.25 else 1.5


def _shapes(atoms: Atoms, result: LabelResult) -> Iterator[Finding]:
    expected = {
        "forces": (result.forces_eV_per_A, (len(atoms), 3)),
        "stress": (result.stress_eV_per_A3, (6,)),
        "dipole": (result.dipole_eA, (3,)),
    }
    for name, (array, shape) in expected.items():
        if array is not None and np.shape(array) != shape:
            yield "wrong-shape", f"{name} have shape {np.shape(array)}, not {shape}"


def _finite(result: LabelResult) -> Iterator[Finding]:
    parts: dict[str, float | np.ndarray | None] = {
        "energy": result.energy_eV,
        "forces": result.forces_eV_per_A,
        "stress": result.stress_eV_per_A3,
        "dipole": result.dipole_eA,
    }
    bad = [name for name, x in parts.items() if x is not None and not np.isfinite(x).all()]
    if bad:
        yield "not-finite", f"{', '.join(bad)} contain NaN or infinity"


def zero_forces(atoms: Atoms, forces: np.ndarray) -> Iterator[Finding]:
    """Exact zeros are what a reader or a constraint writes, hardly ever what physics gives."""
    zero = (forces == 0.0).all(axis=1)
    if zero.all():
        if len(atoms) > 1 and (_pull(atoms, 6.0) > 1e-6).any():
            yield "all-zero-forces", "every force is exactly zero, but not by symmetry"
        return
    fixed = np.zeros(len(atoms), dtype=bool)
    fixed[np.flatnonzero(atoms.arrays.get("fixed", np.zeros(0)))] = True
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            fixed[constraint.index] = True
    if fixed.any() and zero[fixed].all():
        message = f"all {int(fixed.sum())} fixed atoms have a force of exactly zero"
        yield "constrained-forces", f"{message}: the constraint was applied; labels need raw forces"
    elif zero.any() and (lopsided := zero & (_pull(atoms, BONDED_A) > LOPSIDED_PER_A2)).any():
        which = ", ".join(map(str, np.flatnonzero(lopsided)[:8].tolist()))
        yield "zeroed-forces", (
            f"{int(lopsided.sum())} of {len(atoms)} atoms ({which}) have a force of exactly zero, not by "
            "symmetry: the forces of fixed atoms were not written; labels need raw forces"
        )


def _pull(atoms: Atoms, reach_A: float) -> np.ndarray:
    """Size of Σ r̂/r² over the neighbours of each atom, 1/Å²: zero where a symmetry keeps it in place.

    Round-off of some hundred terms is far below 1e-6, one moved atom far above; an atom without
    neighbours has none.
    """
    first, vectors, distance = neighbor_list("iDd", atoms, reach_A)
    pull = np.zeros((len(atoms), 3))
    np.add.at(pull, first, vectors / distance[:, None] ** 3)  # cubed: near neighbours decide
    return np.asarray(np.linalg.norm(pull, axis=1))


def impossible_spin(atoms: Atoms) -> Iterator[Finding]:
    """Core electrons are paired, so that the parity of all electrons is that of any pseudopotential."""
    charge, multiplicity = charge_and_multiplicity(atoms)
    electrons = int(atoms.numbers.sum()) - charge
    if electrons < 0:
        yield "bad-charge", f"charge {charge:+d} leaves {electrons} electrons"
    elif multiplicity and (multiplicity > electrons + 1 or (electrons - multiplicity + 1) % 2):
        yield "bad-multiplicity", f"multiplicity {multiplicity} does not fit {electrons} electrons"


def _wrong_spin(atoms: Atoms, moment_muB: float | None) -> Iterator[Finding]:
    """The solution is of the spin that was asked for, where both are known."""
    _, multiplicity = charge_and_multiplicity(atoms)
    if multiplicity and moment_muB is not None:
        off = abs(abs(moment_muB) - (multiplicity - 1))
        if off > MOMENT_MU_B:
            yield "wrong-spin", (
                f"the solution has a moment of {moment_muB:.2f} μ_B, multiplicity {multiplicity} has "
                f"{multiplicity - 1}"
            )
