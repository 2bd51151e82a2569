"""FIRE, for several systems side by side (Bitzek et al., PRL 97, 170201 (2006), as in ASE).

The systems share nothing but the batch in which their forces are computed: each has its own velocity,
time step and mixing, so that one does not hold another up.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

_N_MIN, _F_INC, _F_DEC, _A_START, _F_A = 5, 1.1, 0.5, 0.1, 0.99  # table I of the paper


@dataclass
class Fire:
    """State of G systems of N coordinates."""

    systems: int
    step_A: float = 0.2  # longest move of one coordinate triple per step
    start_dt: float = 0.1
    most_dt: float = 1.0
    _velocity: np.ndarray | None = None
    _dt: np.ndarray = field(init=False)
    _a: np.ndarray = field(init=False)
    _good: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self._dt = np.full(self.systems, self.start_dt)
        self._a = np.full(self.systems, _A_START)
        self._good = np.zeros(self.systems, dtype=int)

    def moves(self, forces_eV_per_A: np.ndarray) -> np.ndarray:
        """How far to go, [G, …, 3], from forces of the same shape."""
        shape = forces_eV_per_A.shape
        force = forces_eV_per_A.reshape(self.systems, -1)
        if self._velocity is None:
            velocity = np.zeros_like(force)
        else:
            velocity = self._velocity
            downhill = (force * velocity).sum(1) > 0
            speed = np.linalg.norm(velocity, axis=1)
            pull = np.maximum(np.linalg.norm(force, axis=1), 1e-300)
            a = self._a[:, None]
            mixed = (1 - a) * velocity + a * force * (speed / pull)[:, None]
            velocity = np.where(downhill[:, None], mixed, 0.0)
            faster = downhill & (self._good > _N_MIN)
            self._dt = np.where(faster, np.minimum(self._dt * _F_INC, self.most_dt), self._dt)
            self._a = np.where(faster, self._a * _F_A, self._a)
            self._good = np.where(downhill, self._good + 1, 0)
            self._dt = np.where(downhill, self._dt, self._dt * _F_DEC)
            self._a = np.where(downhill, self._a, _A_START)
        velocity = velocity + self._dt[:, None] * force
        self._velocity = velocity
        step = (self._dt[:, None] * velocity).reshape(self.systems, -1, 3)
        longest = np.linalg.norm(step, axis=2).max(1)
        step = step * np.minimum(1.0, self.step_A / np.maximum(longest, 1e-300))[:, None, None]
        return np.asarray(step.reshape(shape))


def largest_force(forces_eV_per_A: np.ndarray) -> float:
    """Longest force vector of any atom of any copy."""
    return float(np.sqrt((forces_eV_per_A**2).sum(-1)).max(initial=0.0))
