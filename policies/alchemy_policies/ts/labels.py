"""What a labeler said of which structure, and the counter over which it is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from ase import Atoms

from .reactions import distance_between


@dataclass(frozen=True)
class Label:
    """What a labeler said; None for a structure that it could not label."""

    energy_eV: float
    forces_eV_per_A: np.ndarray  # [A,3]


Labeler = Callable[[Sequence[Atoms]], Sequence[Label | None]]


@dataclass
class Shop:
    """What has been labelled, and what was tried."""

    label: Labeler
    bought: list[tuple[Atoms, Label]] = field(default_factory=list)
    tried: list[Atoms] = field(default_factory=list)

    def buy(self, chosen: Sequence[Atoms]) -> list[Label | None]:
        """The labels of these, in their order."""
        said = list(self.label(chosen)) if chosen else []
        self.bought += [(a, entry) for a, entry in zip(chosen, said, strict=True) if entry is not None]
        self.tried += chosen
        return said


def label_at(atoms: Atoms, bought: Sequence[tuple[Atoms, Label]], within_A: float) -> Label | None:
    """The last label of this structure."""
    near = [said for other, said in bought if distance_between(other, atoms) <= within_A]
    return near[-1] if near else None


def compared(energy_eV: float, said: Label, fixed: np.ndarray) -> tuple[float, float]:
    """Model − label in energy, and the largest labelled force on a moving atom."""
    forces = np.linalg.norm(np.asarray(said.forces_eV_per_A), axis=1)
    return energy_eV - said.energy_eV, float(forces[~fixed].max())
