"""Conditions of a structure (total charge, electric field, magnetic moments, …) read from an `ase.Atoms`.

They stand in `atoms.info` (of a structure) or `atoms.arrays` (of atoms) under the names and in the units
of `quantities.INPUTS`. Moments and charges are also found where ASE keeps initial ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms

from .config import InputConfig
from .errors import DataError
from .quantities import INPUTS

_ASE_NAMES = {
    "charges": "initial_charges",
    "magnetic_moments": "initial_magmoms",
    "collinear_moments": "initial_magmoms",
}
NEUTRAL = ("total_charge", "electric_field")  # absent means zero; the other conditions must be given


def read_inputs(atoms: Atoms, inputs: Sequence[InputConfig]) -> dict[str, np.ndarray]:
    """Every condition the model reads, float64: [] or [3] of a structure, [A] or [A,3] of atoms.

    Raises:
        DataError: a condition is missing, of the wrong shape, not finite, or of an unknown class.
    """
    return {config.name: _read(atoms, config) for config in inputs}


def _read(atoms: Atoms, config: InputConfig) -> np.ndarray:
    quantity = INPUTS[config.name]
    of_atoms = quantity.scope == "atom"
    shape = (len(atoms), *quantity.shape) if of_atoms else quantity.shape
    place = atoms.arrays if of_atoms else atoms.info
    name = atoms.get_chemical_formula()
    value = place.get(config.name, place.get(_ASE_NAMES.get(config.name, "")))
    if value is None and config.name in NEUTRAL:
        return np.zeros(shape)
    where = f"atoms.{'arrays' if of_atoms else 'info'}['{config.name}']"
    if value is None:
        raise DataError(
            f"{name}: the model reads {quantity.meaning}; set {where}"
            + (f" in {quantity.unit}" if quantity.unit else "")
        )
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{name}: {where} = {value!r} is not a number") from None
    if array.shape != shape:
        raise DataError(f"{name}: {where} has shape {array.shape}, expected {shape}")
    if not np.isfinite(array).all():
        raise DataError(f"{name}: {where} is not finite")
    if config.values and float(array) not in config.values:
        known = ", ".join(map(str, config.values))
        raise DataError(f"{name}: {where} = {array:g} was not trained on; known: {known}")
    return array
