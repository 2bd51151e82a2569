"""A structure in characters, for terminals: symbols of the elements where the atoms are, dots along bonds.

Seen along the direction in which it is thinnest, its longest extent from left to right; slabs from the side,
with their normal upwards. What is nearer hides what is behind.
"""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.data.colors import jmol_colors
from rich.text import Text

ASPECT = 2.0  # a character is about twice as high as it is wide
BOND = "·"
BONDED = 1.25  # of the sum of covalent radii
MOST_ATOMS = 400  # beyond, symbols cover each other and say nothing


def picture(atoms: Atoms, *, width: int = 64, height: int = 24) -> Text | None:
    """The picture, at most so many characters; None of what has no atoms or too many."""
    if not 0 < len(atoms) <= MOST_ATOMS:
        return None
    x, y, depth = _view(atoms)
    # a column is one unit wide, a row ASPECT units high
    spans = (np.ptp(x) / max(width - 3, 1), np.ptp(y) / (ASPECT * max(height - 1, 1)))
    unit = max(*spans, 0.12)  # Å per column; small molecules are not blown up
    columns = np.rint((x - x.min()) / unit).astype(int)
    rows = np.rint((y.max() - y) / (ASPECT * unit)).astype(int)
    canvas = [[(" ", "")] * (columns.max() + 3) for _ in range(rows.max() + 1)]
    for i, j in _bonds(atoms):
        steps = 2 * max(abs(columns[i] - columns[j]), abs(rows[i] - rows[j])) + 1
        for share in np.linspace(0, 1, steps):
            row = round(rows[i] + share * (rows[j] - rows[i]))
            column = round(columns[i] + share * (columns[j] - columns[i]))
            canvas[row][column] = (BOND, "dim")
    for n in np.argsort(depth):  # the nearest last
        colour = "#" + "".join(f"{int(255 * part):02x}" for part in jmol_colors[atoms.numbers[n]])
        for k, letter in enumerate(atoms.symbols[n]):
            canvas[rows[n]][columns[n] + k] = (letter, f"bold {colour}")
    text = Text()
    for line in canvas:
        for letter, style in line:
            text.append(letter, style)
        text.append("\n")
    return text


def _view(atoms: Atoms) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates to the right, upwards, and towards the eye, Å."""
    free = atoms.positions - atoms.positions.mean(0)
    if atoms.pbc.sum() == 2:  # a slab
        normal = np.cross(*np.asarray(atoms.cell.complete())[atoms.pbc])
        up = normal / np.linalg.norm(normal)
        up = up if up.sum() > 0 else -up
        flat = free - np.outer(free @ up, up)
        right = _axes(flat)[0]
    elif atoms.pbc.all():
        right, up = np.eye(3)[0], np.eye(3)[2]
    else:
        right, up = _axes(free)[:2]
    towards = np.cross(right, up)
    return free @ right, free @ up, free @ towards


def _axes(centred: np.ndarray) -> np.ndarray:
    """Principal axes, the longest first; signs follow from the largest component."""
    axes = np.linalg.svd(np.vstack([centred, np.zeros((3, 3))]), full_matrices=False)[2]
    signs = np.sign(axes[np.arange(3), np.abs(axes).argmax(1)])
    return np.asarray(axes * signs[:, None])


def _bonds(atoms: Atoms) -> list[tuple[int, int]]:
    """Pairs within the picture, images left out."""
    from ase.neighborlist import natural_cutoffs

    radii = BONDED * np.asarray(natural_cutoffs(atoms))
    gaps = np.linalg.norm(atoms.positions[:, None] - atoms.positions, axis=2)
    first, second = np.nonzero(np.triu(gaps < radii[:, None] + radii, 1))
    return list(zip(first.tolist(), second.tolist(), strict=True))
