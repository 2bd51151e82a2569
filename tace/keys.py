"""Where a file keeps its labels and conditions, and how they become arrays of fixed shape and unit.

ASE puts `energy`, `forces` and `stress` of a file into a calculator and everything else into `info` and
`arrays`; forces are taken from there raw, because asking the atoms for them applies constraints, which
would teach the model that fixed atoms feel no force.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from ase import Atoms

from .errors import DataError
from .quantities import INPUTS, LABELS, Quantity
from .units import conversion
from .wording import hint

VIRIAL = Quantity("virial", "structure", (6,), "eV", "virial, −∂E/∂ε")
ALIASES = {  # further names that are in use; `REF_` before any of them is tried first
    "born_charges": ("becs", "bec"),
    "magnetic_forces": ("mag_forces",),
    "atomic_energies": ("energies",),
    "total_charge": ("charge",),
    "spin_multiplicity": ("multiplicity",),
}
VASP_ORDER = [0, 1, 2, 4, 5, 3]  # xx yy zz xy yz zx → xx yy zz yz xz xy


@dataclass(frozen=True)
class Key:
    """How one quantity stands in a file.

    Attributes:
        key: its name there; None tries `REF_<name>`, then `<name>`.
        unit: None is the unit of `tace.quantities`; "…/atom" for energies that were divided by the number
            of atoms; "a.u." for atomic units.
        sign: of a stress; "vasp" is positive under compression.
        order: of six numbers of a symmetric tensor; "vasp" is xx yy zz xy yz zx.
        transpose: the two indices of a 3×3 tensor are the other way round.
        mask: an array of the atoms that is 0 where an atom has no label.
    """

    key: str | None = None
    unit: str | None = None
    sign: Literal["ase", "vasp"] = "ase"
    order: Literal["ase", "vasp"] = "ase"
    transpose: bool = False
    mask: str | None = None

    def __post_init__(self) -> None:
        for name in ("sign", "order"):
            if getattr(self, name) not in ("ase", "vasp"):
                raise DataError(f"{name} of a stress is 'ase' or 'vasp', not {getattr(self, name)!r}")


def quantity_of_head(name: str, scope: str, rank: int, unit: str = "") -> Quantity:
    """The label of a head that the user named: a Cartesian tensor of a rank, of a structure or of atoms."""
    if scope not in ("structure", "atom") or rank < 0:
        raise DataError(f"label '{name}': scope is 'structure' or 'atom' and rank 0 or more")
    return Quantity(name, "atom" if scope == "atom" else "structure", (3,) * rank, unit, name)


def stored(atoms: Atoms, key: str) -> Any:
    """What the calculator's results, `info` or `arrays` hold under a key; None if nothing."""
    results = atoms.calc.results if atoms.calc is not None else {}
    for place in (results, atoms.info, atoms.arrays):
        if place.get(key) is not None:
            return place[key]
    return None


def stored_keys(frames: Iterable[Atoms]) -> set[str]:
    found: set[str] = set()
    for atoms in frames:
        found |= set(atoms.info) | set(atoms.calc.results if atoms.calc else ())
        found |= set(atoms.arrays) - {"numbers", "positions"}
    return found


@dataclass(frozen=True)
class Found:
    """A quantity of a source, the key it stands under, and how it is written."""

    quantity: Quantity
    how: Key
    key: str

    def __call__(self, atoms: Atoms, frame: str) -> np.ndarray | None:
        """The value in the unit and shape of the quantity, float64; None where this frame has none.

        Raises:
            DataError: not numbers, or of the wrong shape.
        """
        value = stored(atoms, self.key)
        if value is None:
            return None
        array = _numbers(value, frame, self.key)
        if self.quantity.name == "hessian":
            array = _hessian(array, len(atoms), f"{frame}: '{self.key}'")
        else:
            array = self._shaped(array, len(atoms), frame)
        if self.quantity.name in ("stress", "virial") and self.how.sign == "vasp":
            array = -array
        array = array * self._factor(len(atoms))
        if self.quantity.scope == "atom" and self.quantity.name not in ("forces", "hessian"):
            return self._masked(array, atoms, frame)
        return array

    def _factor(self, n_atoms: int) -> float:
        unit = self.how.unit
        if unit is None:
            return 1.0
        head, slash, tail = unit.rpartition("/")
        if slash and tail.strip() == "atom":
            return conversion(head, self.quantity.unit) * n_atoms
        return conversion(unit, self.quantity.unit)

    def _shaped(self, array: np.ndarray, n_atoms: int, frame: str) -> np.ndarray:
        quantity, lead = self.quantity, (n_atoms,) if self.quantity.scope == "atom" else ()
        size = math.prod(quantity.shape)
        rows = math.prod(lead)
        each, rest = divmod(array.size, max(rows, 1))
        fits = not rest and (not lead or array.shape[:1] == lead or array.ndim == 1)
        if quantity.shape == (6,) and fits and each == 9:
            full = array.reshape(3, 3)
            full = 0.5 * (full + full.T)
            return full[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        if quantity.shape in ((6,), (3, 3)) and fits and each == 6:
            six = array.reshape((*lead, 6))
            six = six[..., VASP_ORDER] if self.how.order == "vasp" else six
            return six if quantity.shape == (6,) else six[..., [[0, 5, 4], [5, 1, 3], [4, 3, 2]]]
        if not fits or each != size:
            wanted = (*lead, *quantity.shape)
            raise DataError(f"{frame}: '{self.key}' has shape {array.shape}; {quantity.name} needs {wanted}")
        full = array.reshape((*lead, *quantity.shape))
        return full.swapaxes(-1, -2) if self.how.transpose and len(quantity.shape) == 2 else full

    def _masked(self, array: np.ndarray, atoms: Atoms, frame: str) -> np.ndarray | None:
        """NaN in the whole row of an atom without label; None if no atom has one."""
        absent = np.isnan(array).reshape(len(atoms), -1).any(1)
        if self.how.mask is not None:
            mask = atoms.arrays.get(self.how.mask)
            if mask is None or mask.shape != absent.shape:
                listed = hint(self.how.mask, atoms.arrays, label="arrays")
                raise DataError(f"{frame}: no mask '{self.how.mask}' with one number per atom; {listed}")
            absent |= ~mask.astype(bool)
        if absent.all():
            return None
        array = array.copy()
        array[absent] = np.nan
        return array


def _numbers(value: Any, frame: str, key: str) -> np.ndarray:
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{frame}: '{key}' is not a number: {str(value)[:60]!r}") from None


def _hessian(array: np.ndarray, n_atoms: int, where: str) -> np.ndarray:
    n = 3 * n_atoms
    if array.size != n * n:
        raise DataError(f"{where} has shape {array.shape}; the Hessian needs {(n, n)}")
    return array.reshape(n, n)


def find_key(
    frames: Sequence[Atoms], quantity: Quantity, how: Key, *, asked: bool, where: str
) -> Found | None:
    """The key that holds a quantity in these frames; None without one, if nobody asked for it.

    Raises:
        DataError: a key that was asked for is in no frame.
        UnitError: its unit does not fit the quantity.
    """
    names = (quantity.name, *ALIASES.get(quantity.name, ()))
    tried = (how.key,) if how.key else (*(f"REF_{name}" for name in names), *names)
    for key in tried:
        if any(_holds(atoms, key, quantity) for atoms in frames):
            found = Found(quantity, how, key)
            found._factor(1)  # a unit that does not fit is told before any frame is
            return found
    if asked:
        listed = hint(tried[0], stored_keys(frames), label="found")
        raise DataError(f"{where}: no frame has {quantity.name} under '{', '.join(tried)}'; {listed}")
    return None


def _holds(atoms: Atoms, key: str, quantity: Quantity) -> bool:
    if quantity.name in INPUTS and INPUTS[quantity.name] is quantity:  # conditions are not results
        place = atoms.arrays if quantity.scope == "atom" else atoms.info
        return place.get(key) is not None
    return stored(atoms, key) is not None


def find_all(
    frames: Sequence[Atoms],
    asked: Mapping[str, str | Key],
    known: Mapping[str, Quantity],
    *,
    where: str,
) -> dict[str, Found]:
    """Keys of all quantities that are asked for or stand under a usual name.

    Raises:
        DataError: a name that is no quantity, or a key that no frame has.
    """
    for name in asked:
        if name not in known:
            raise DataError(f"{where}: there is no quantity '{name}'; {hint(name, known, label='known')}")
    found = {}
    for name, quantity in known.items():
        how = asked.get(name, Key())
        how = Key(how) if isinstance(how, str) else how
        there = find_key(frames, quantity, how, asked=name in asked, where=where)
        if there is not None:
            found[name] = there
    return found


def known_labels(extra: Mapping[str, Quantity] | None = None) -> dict[str, Quantity]:
    """Every label that can be read: the table, the virial in place of a stress, and heads by name."""
    return {**LABELS, "virial": VIRIAL, **(extra or {})}


def stress_of(values: Mapping[str, np.ndarray], atoms: Atoms) -> np.ndarray | None:
    """Stress, from the virial (σ = −W/V) where only that is given; None without a periodic volume."""
    volume = atoms.cell.volume if atoms.pbc.all() else 0.0
    if volume <= 0.0:
        return None
    if "stress" in values:
        return values["stress"]
    return -values["virial"] / volume if "virial" in values else None


def with_inputs(atoms: Atoms, found: Mapping[str, Found], frame: str) -> Atoms:
    """A copy without calculator that holds the conditions under their own names, in their units."""
    bare = atoms.copy()
    bare.calc = None
    for name, reader in found.items():
        value = reader(atoms, frame)
        if value is None:
            continue
        if reader.quantity.scope == "atom":
            bare.arrays[name] = value
        else:
            bare.info[name] = float(value) if value.ndim == 0 else value
    return bare


def described(found: Mapping[str, Found]) -> str:
    """`energy from 'REF_energy', stress from 'virial' in kbar`."""
    units = {name: f" in {f.how.unit}" if f.how.unit else "" for name, f in found.items()}
    return ", ".join(f"{name} from '{f.key}'{units[name]}" for name, f in found.items())

