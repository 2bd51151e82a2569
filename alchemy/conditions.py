"""The conditions under which a label was made: total charge, spin, field, moments (`tace.quantities.INPUTS`).

They are part of a label's identity: the same structure in two electric fields has two labels. What the
structure says itself (`info['charge']`, `info['multiplicity']`) is not repeated.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from ase import Atoms

from alchemy.errors import StructureError
from alchemy.identity import charge_and_multiplicity, snap
from tace.quantities import INPUTS

_OF_STRUCTURE = {"total_charge": "charge", "spin_multiplicity": "multiplicity"}


def conditions_of(atoms: Atoms) -> dict[str, np.ndarray]:
    """Conditions that stand on the atoms under the names and in the units of `INPUTS`.

    Raises:
        StructureError: a condition of the wrong shape, not finite, or at odds with the structure's own.
    """
    found: dict[str, np.ndarray] = {}
    for name, quantity in INPUTS.items():
        place = atoms.arrays if quantity.scope == "atom" else atoms.info
        value = place.get(name)
        if value is None:
            continue
        shape = (len(atoms), *quantity.shape) if quantity.scope == "atom" else quantity.shape
        where = f"{atoms.get_chemical_formula()}: {name}"
        try:
            array = snap(np.asarray(value, np.float64))
        except (TypeError, ValueError):
            raise StructureError(f"{where} is {value!r}, not a number in {quantity.unit or '1'}") from None
        if array.shape != shape:
            raise StructureError(f"{where} has shape {array.shape}, should be {shape}")
        if not np.isfinite(array).all():
            raise StructureError(f"{where} is not finite")
        found[name] = array
    return _without_own(found, atoms)


def _without_own(found: dict[str, np.ndarray], atoms: Atoms) -> dict[str, np.ndarray]:
    own = dict(zip(_OF_STRUCTURE, charge_and_multiplicity(atoms), strict=True))
    for name, value in own.items():
        if name not in found:
            continue
        if value and float(found[name]) != value:
            raise StructureError(
                f"{atoms.get_chemical_formula()}: {name} is {float(found[name]):g} but the structure's "
                f"{_OF_STRUCTURE[name]} is {value}; give one of them"
            )
        if float(found[name]) == value:
            del found[name]
    return found


def with_conditions(atoms: Atoms, conditions: Mapping[str, np.ndarray]) -> Atoms:
    """The same atoms with conditions where `tace` looks for them; the structure's own charge included."""
    charge, multiplicity = charge_and_multiplicity(atoms)
    own = {"total_charge": charge, "spin_multiplicity": multiplicity}
    atoms.info.update({name: float(value) for name, value in own.items() if value})
    for name, value in conditions.items():
        if INPUTS[name].scope == "atom":
            atoms.arrays[name] = np.array(value)
        else:
            atoms.info[name] = float(value) if np.ndim(value) == 0 else np.array(value)
    return atoms
