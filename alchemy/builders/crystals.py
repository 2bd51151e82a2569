"""Crystals by formula and prototype, in conventional cells.

Where no lattice constant is given: that of the element in ASE's table if it has this structure, otherwise the
one at which nearest neighbours are as far apart as the sum of their covalent radii. That is a guess, good to
some 5 %; scan `volumes` around it, or give `a`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ase import Atoms
from ase.data import atomic_numbers, covalent_radii, reference_states
from ase.formula import Formula
from ase.spacegroup import crystal as spacegroup_crystal

from tace.wording import hint

from ..errors import StructureError

IDEAL_C = math.sqrt(8 / 3)  # c/a of closely packed spheres


@dataclass(frozen=True)
class Prototype:
    """`ratio`: atoms of each element of the formula, in its order. `bond`: nearest neighbours / a."""

    ratio: tuple[int, ...]
    bond: float
    spacegroup: int
    sites: tuple[tuple[float, float, float], ...]  # of each element
    pair: tuple[int, int] = (0, 0)  # which two elements of the formula the bond joins
    hexagonal: bool = False


_O, _Q, _H = (0.0, 0.0, 0.0), (0.25, 0.25, 0.25), (0.5, 0.5, 0.5)
# not pymatgen's prototypes: its rocksalt (2026.5) has both elements on one site
PROTOTYPES = {
    "sc": Prototype((1,), 1.0, 221, (_O,)),
    "fcc": Prototype((1,), math.sqrt(0.5), 225, (_O,)),
    "bcc": Prototype((1,), math.sqrt(0.75), 229, (_O,)),
    "hcp": Prototype((1,), 1.0, 194, ((1 / 3, 2 / 3, 0.25),), hexagonal=True),
    "diamond": Prototype((1,), math.sqrt(3) / 4, 227, (_O,)),
    "rocksalt": Prototype((1, 1), 0.5, 225, (_O, _H), (0, 1)),
    "cscl": Prototype((1, 1), math.sqrt(0.75), 221, (_O, _H), (0, 1)),
    "zincblende": Prototype((1, 1), math.sqrt(3) / 4, 216, (_O, _Q), (0, 1)),
    "wurtzite": Prototype(
        (1, 1), math.sqrt(3 / 8), 186, ((1 / 3, 2 / 3, 0.0), (1 / 3, 2 / 3, 0.375)), (0, 1), hexagonal=True
    ),
    "fluorite": Prototype((1, 2), math.sqrt(3) / 4, 225, (_O, _Q), (0, 1)),
    "antifluorite": Prototype((2, 1), math.sqrt(3) / 4, 225, (_Q, _O), (0, 1)),
    "perovskite": Prototype((1, 1, 3), 0.5, 221, (_O, _H, (0.5, 0.5, 0.0)), (1, 2)),
}


def crystal(
    formula: str, prototype: str | None, *, a_A: float | None = None, c_A: float | None = None
) -> Atoms:
    """A conventional cell, periodic along all axes.

    Args:
        formula: elements in the order of the prototype's sites: NaCl, CaF2, SrTiO3.
        prototype: a key of `PROTOTYPES`; None for an element: its structure in ASE's table.
        c_A: of hexagonal prototypes; None: of the ideal c/a.

    Raises:
        StructureError: unknown prototype, a formula that does not fit it, or nothing known of the element.
    """
    symbols, counts = _parsed(formula)
    name = prototype or _usual(symbols)
    if name not in PROTOTYPES:
        raise StructureError(f"prototype: found '{name}', unknown here; {hint(name, tuple(PROTOTYPES))}")
    chosen = PROTOTYPES[name]
    divisor = math.gcd(*counts)
    if tuple(n // divisor for n in counts) != chosen.ratio:
        want = "".join(f"{x}{n if n > 1 else ''}" for x, n in zip("ABX", chosen.ratio, strict=False))
        fitting = [k for k, p in PROTOTYPES.items() if p.ratio == tuple(n // divisor for n in counts)]
        others = f"; {formula} fits {', '.join(fitting)}" if fitting else ""
        raise StructureError(f"prototype: {name} needs a formula {want}, found '{formula}'{others}")
    if c_A is not None and not chosen.hexagonal:
        raise StructureError(f"c: {name} is cubic and has no c; leave it out")
    a = a_A or _guessed(symbols, name)
    return _built(symbols, chosen, a, c_A or IDEAL_C * a)


def _parsed(formula: str) -> tuple[list[str], list[int]]:
    try:
        found = Formula(formula).count()
    except ValueError:
        found = {}
    unknown = [s for s in found if s not in atomic_numbers or atomic_numbers[s] == 0]
    if unknown or not found:
        what = f"'{unknown[0]}' is no element" if unknown else "it is no chemical formula"
        raise StructureError(f"formula: found '{formula}', {what}; write such as Pd, NaCl or SrTiO3")
    return list(found), list(found.values())


def _usual(symbols: Sequence[str]) -> str:
    known = reference_states[atomic_numbers[symbols[0]]] if len(symbols) == 1 else None
    if known and known.get("symmetry") in PROTOTYPES:
        return str(known["symmetry"])
    raise StructureError(
        f"prototype: missing; the structure of {''.join(symbols)} is not known here; choose of "
        f"{', '.join(PROTOTYPES)}"
    )


def _guessed(symbols: Sequence[str], name: str) -> float:
    known = reference_states[atomic_numbers[symbols[0]]] if len(symbols) == 1 else None
    if known and known.get("symmetry") == name and "a" in known:
        return float(known["a"])
    chosen = PROTOTYPES[name]
    one, other = (covalent_radii[atomic_numbers[symbols[n]]] for n in chosen.pair)
    return float((one + other) / chosen.bond)


def _built(symbols: Sequence[str], chosen: Prototype, a: float, c: float) -> Atoms:
    cell = [a, a, c, 90, 90, 120] if chosen.hexagonal else [a, a, a, 90, 90, 90]
    found = spacegroup_crystal(
        list(symbols), basis=list(chosen.sites), spacegroup=chosen.spacegroup, cellpar=cell
    )
    return Atoms(found.numbers, positions=found.positions, cell=found.cell.array, pbc=True)
