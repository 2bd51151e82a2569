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
from alchemy.labelers.base import LabelResult

Finding = tuple[str, str]


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
        return list(self._overlaps(atoms))

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
            *_zero_forces(atoms, result.forces_eV_per_A),
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


def _zero_forces(atoms: Atoms, forces: np.ndarray) -> Iterator[Finding]:
    """Exact zeros are what a reader or a constraint writes, hardly ever what physics gives."""
    zero = (forces == 0.0).all(axis=1)
    if zero.all():
        if len(atoms) > 1 and not _every_site_is_central(atoms):
            yield "all-zero-forces", "every force is exactly zero, but not by symmetry"
        return
    fixed = np.zeros(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            fixed[constraint.index] = True
    if fixed.any() and zero[fixed].all():
        message = f"all {int(fixed.sum())} fixed atoms have a force of exactly zero"
        yield "constrained-forces", f"{message}: the constraint was applied; labels need raw forces"


def _every_site_is_central(atoms: Atoms) -> bool:
    """Whether each atom's neighbours balance (an ideal crystal), or no atom has any."""
    first, vectors, distance = neighbor_list("iDd", atoms, 6.0)  # beyond any bond
    pull = np.zeros((len(atoms), 3))
    np.add.at(pull, first, vectors / distance[:, None] ** 3)  # cubed: near neighbours decide
    # 1e-6 is far above round-off of some hundred terms and far below one moved atom
    return bool(np.abs(pull).max(initial=0.0) < 1e-6)
