"""Kinds of atoms: element, number of bonded neighbours, their elements; what coverage is counted in.

'C4CH' is a carbon with four neighbours, carbons and hydrogens. A mean error hides the rare atom (a
hydrogen on silver, a carbon between two metals); a count per kind shows it, and `coverage` of the
selectors buys frames that hold it. Two atoms are neighbours within 1.25 × the sum of their covalent radii
(Cordero et al., Dalton Trans. 2832 (2008), as in ASE): thermal motion seldom stretches a bond further.
Above four neighbours the count is rounded to 6, 9 or 12, because in metals it fluctuates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii
from ase.neighborlist import neighbor_list

STRETCH = 1.25
_ROUNDED = (6, 9, 12)


def atom_environments(atoms: Atoms) -> list[str]:
    """The kind of every atom, in order."""
    if len(atoms) == 0:
        return []
    i, j = neighbor_list("ij", atoms, STRETCH * covalent_radii[atoms.numbers])
    count = np.bincount(i, minlength=len(atoms))
    around: list[set[str]] = [set() for _ in range(len(atoms))]
    for a, b in zip(i.tolist(), j.tolist(), strict=True):
        around[a].add(chemical_symbols[atoms.numbers[b]])
    return [
        f"{chemical_symbols[z]}{_rounded(int(n))}{''.join(sorted(near))}"
        for z, n, near in zip(atoms.numbers, count, around, strict=True)
    ]


def _rounded(neighbours: int) -> int:
    if neighbours <= 4:
        return neighbours
    return min(_ROUNDED, key=lambda n: abs(n - neighbours))


def frame_environments(frames: Sequence[Atoms]) -> tuple[frozenset[str], ...]:
    """The kinds in each frame, as `Pool.environments` takes them."""
    return tuple(frozenset(atom_environments(atoms)) for atoms in frames)


def count_frames(environments: Iterable[frozenset[str]]) -> Mapping[str, int]:
    """How many frames hold each kind, as `Pool.train_environments` takes it."""
    return dict(Counter(name for frame in environments for name in frame))
