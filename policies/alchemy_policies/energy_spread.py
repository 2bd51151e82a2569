"""The second veto: frames on whose energy the committee disagrees although it agrees on their forces.

A slow mode changes the energy by little force, over a long way, and charge may move to where no force
shows it yet: the members' energies then part first (engine.md §5.3). There is no calibrated unit for it:
labels of energies are few, one per frame. Thus a spread counts by what is usual where the committee was
trained,

    limit = max(1 meV/atom, factor × median over training frames of s_E/N)

with s_E the unbiased standard deviation over members, and N atoms. Per atom, because what members disagree on
in a slow mode or in a composition is extensive; errors that are independent between atoms shrink as 1/√N
in these units, so that in cells much larger than the training's the veto is late rather than early.
The floor keeps committees that agree on near copies of one minimum from calling thermal motion unusual:
1 meV/atom is what energies are usually wanted to.
"""

from __future__ import annotations

import math

import numpy as np

from tace.prediction import CommitteePrediction

FLOOR_eV_per_atom = 1e-3


def energy_spread_per_atom(prediction: CommitteePrediction) -> np.ndarray:
    """s_E/N [S], eV/atom; NaN for one member or an energy that is not finite."""
    with np.errstate(invalid="ignore"):  # ∞ − ∞ of a broken member
        return np.asarray(prediction.energy_spread / prediction.n_atoms)


def energy_spread_limit(training_eV_per_atom: np.ndarray | None, factor: float | None) -> float:
    """Above this a spread is far out, eV/atom; inf where nobody asks or nothing is known."""
    if factor is None or training_eV_per_atom is None:
        return math.inf
    known = training_eV_per_atom[np.isfinite(training_eV_per_atom)]
    return max(FLOOR_eV_per_atom, factor * float(np.median(known))) if len(known) else math.inf
