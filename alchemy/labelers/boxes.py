"""Cells and k grids for plane-wave codes, which know periodic structures only."""

from __future__ import annotations

import math

import numpy as np
from ase import Atoms
from ase.geometry import complete_cell

STEP_A = 2.0  # of box lengths: neighbours on a path share a box, so its size is no slope in the energy


def in_a_box(atoms: Atoms, vacuum_A: float) -> Atoms:
    """A copy, periodic in all directions, with the atoms where they are.

    A molecule gets a box along x, y, z of its extent and at least `vacuum_A`, whatever its cell was;
    a slab or a wire keeps its cell vectors, but for those of length zero, which become vacuum.
    Lengths are multiples of 2 Å, 1 to 5 Å more than asked: a box that followed the atoms would add the
    slope of the box to that of the energy.
    """
    boxed = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
    boxed.info.update(atoms.info)
    if atoms.pbc.all():
        return boxed
    cell = np.array(atoms.cell)
    if not atoms.pbc.any():
        cell[:] = 0.0
    missing = np.linalg.norm(cell, axis=1) == 0
    directions = complete_cell(cell)
    for axis in np.flatnonzero(missing):
        along = directions[axis] / np.linalg.norm(directions[axis])
        if not atoms.pbc.any():
            along = np.eye(3)[axis]
        extent = float(np.ptp(atoms.positions @ along)) if len(atoms) else 0.0
        # half a step more: flat molecules vibrate about an extent of 0, which must not be a threshold
        steps = math.ceil(extent / STEP_A + 0.5) + math.ceil(vacuum_A / STEP_A - 1e-9)
        cell[axis] = along * STEP_A * steps
    boxed.set_cell(cell)
    return boxed


def k_grid(atoms: Atoms, kspacing_per_A: float) -> tuple[int, int, int]:
    """Divisions of the reciprocal cell, 1 along directions that are not periodic.

    n_i = ⌈|b_i| / spacing⌉ with |b_i| in 1/Å, the factor 2π included (as VASP's KSPACING).
    """
    if not atoms.pbc.any():
        return 1, 1, 1
    lengths = 2 * math.pi * np.linalg.norm(np.linalg.inv(complete_cell(atoms.cell)), axis=0)
    counts = [max(1, math.ceil(b / kspacing_per_A - 1e-9)) for b in lengths]
    first, second, third = (n if p else 1 for n, p in zip(counts, atoms.pbc, strict=True))
    return first, second, third
