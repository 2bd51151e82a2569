"""How far from what is labelled a search believes a corrected committee.

A Gaussian process has little to say a length ℓ away from all labels, and a climb that is let go there ends at
saddles of a committee that was not taught the place: half an angstrom and electronvolts off, where a label
says nothing about the saddle that was looked for. So a climb stops where it leaves the neighbourhood of the
labels, and is labelled there, as Koistinen et al., JCP 147, 152720 (2017), stop a path. How large that is
follows from how well the last label was foreseen, as in trust-region methods (Nocedal & Wright, Numerical
Optimization, 2006, Alg. 4.1); of forces, because a saddle has no energy to go down.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.geometry import find_mic

from .reactions import distance_between

BEYOND = "beyond-labels"
NEAR_A = 0.02  # a structure this close to a labelled one teaches nothing
SAME_SADDLE_A = 5e-4  # a stiff bond, 40 eV/Å², makes 20 meV/Å of it: nearer, the label is that of the saddle
FIRST_A, LEAST_A, MOST_A = 0.15, 0.075, 0.5  # measured: 0.3 at first fails where 0.15 and 0.2 agree
FORESEEN, NOT_FORESEEN = 0.25, 0.75  # of the change of the forces, the share that came as a surprise
SHRINKS, GROWS = 0.5, 1.5


@dataclass(frozen=True)
class Tether:
    """A climb from `start_A` [A,3] stops where an atom is farther than `within_A` from its place in every
    labelled structure."""

    start_A: np.ndarray
    labelled: tuple[Atoms, ...]
    within_A: float = FIRST_A
    held: bool = False  # some atoms are fixed: the rest is not turned onto its like

    def leaves(self, atoms: Atoms) -> bool:
        return not self.knows(atoms, self.within_A)

    def knows(self, atoms: Atoms, within_A: float) -> bool:
        return any(self._between(atoms, labelled) <= within_A for labelled in self.labelled)

    def _between(self, one: Atoms, other: Atoms) -> float:
        if not self.held:
            return distance_between(one, other)
        step, _ = find_mic(one.positions - other.positions, one.cell, one.pbc)
        return float(np.linalg.norm(step, axis=1).max())


def next_radius(within_A: float, *, expected: np.ndarray, said: np.ndarray, before: np.ndarray) -> float:
    """The radius after a label, from forces [A,3].

    Args:
        expected: of the committee at the structure that was labelled.
        said: of the label.
        before: of the label where the climb had started.
    """
    changed = float(np.linalg.norm(said - before, axis=1).max())
    surprise = float(np.linalg.norm(said - expected, axis=1).max()) / max(changed, 1e-12)
    if surprise > NOT_FORESEEN:
        within_A *= SHRINKS
    elif surprise < FORESEEN:
        within_A *= GROWS
    return float(np.clip(within_A, LEAST_A, MOST_A))
