"""Dimer method: up along the softest mode, down along all others, from forces alone.

Rotation     Heyden, Bell & Keil, JCP 123, 224101 (2005), Eqs. 5-13, with the force at the turned
             image extrapolated as in Kästner & Sherwood, JCP 128, 014106 (2008), Eq. 13.
Translation  F − 2(F·n)n where the curvature is negative, −(F·n)n elsewhere (Henkelman & Jónsson,
             JCP 111, 7010 (1999), Eq. 5), by L-BFGS as Kästner & Sherwood.
Both images are evaluated in one batch. Rigid motions are kept out of the mode.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from .fire import largest_force
from .modes import hessians, rigid_motions, vibrations
from .surface import Surface
from .watch import CONVERGED, NOT_CONVERGED, Watch

ARM_A = 0.01
TURNED_ENOUGH = np.radians(5.0)


@dataclass(frozen=True)
class Climb:
    """Where a search for one saddle ended."""

    positions_A: np.ndarray  # [A,3]
    energy_eV: float
    mode: np.ndarray  # [A,3], unit length
    outcome: str
    largest_force_eV_per_A: float
    steps: int


def climb_dimer(
    surface: Surface,
    start_A: np.ndarray,
    watch: Watch,
    *,
    fmax_eV_per_A: float,
    max_steps: int,
    mode: np.ndarray | None = None,
    step_A: float = 0.1,
    rotations: int = 4,
) -> Climb:
    """Follow the softest mode to a saddle.

    Args:
        mode: where to begin to look for it, [A,3]; None: the softest of a Hessian at the start.
        step_A: longest move of one atom per step.
        rotations: at most, in each step.
    """
    x = start_A.copy()
    n = softest(surface, x) if mode is None else mode
    n = _clean(surface, x, n)
    memory, outcome, step = _Memory(step_A=step_A), NOT_CONVERGED, 0
    force, energy, curved_down = np.zeros_like(x), np.nan, None
    watch.begin(x[None])
    for step in range(max_steps + 1):
        look = surface(np.array([x, x + ARM_A * n]), members=watch.due())
        code = watch.judge(np.array([x, x]), look)
        force, energy = look.forces_eV_per_A[0], float(look.energies_eV[0])
        if code is not None:
            outcome = code
            break
        n, curvature = _turned(surface, x, n, look.forces_eV_per_A, rotations=rotations)
        if largest_force(force) < fmax_eV_per_A and curvature < 0:
            outcome = CONVERGED
            break
        if step == max_steps:
            break
        along = float((force * n).sum()) * n
        pull = force - 2 * along if curvature < 0 else -along
        if curved_down is not (curvature < 0):  # another force field from here on
            memory.forget()
            curved_down = curvature < 0
        x = x + memory.move(x, pull)
        n = _clean(surface, x, n)  # what is a rotation has changed with x
    return Climb(x, energy, n, outcome, largest_force(force), step)


def softest(surface: Surface, positions_A: np.ndarray) -> np.ndarray:
    """Direction of least curvature, [A,3], of a Hessian by finite differences."""
    found = hessians(surface, positions_A, members=False)
    return np.asarray(vibrations(surface, positions_A, found.mean).displacements[0])


def _clean(surface: Surface, x: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """The direction without fixed atoms and rigid motions, of unit length."""
    free = ~surface.fixed
    root = np.sqrt(surface.masses[free])[:, None]
    weighted = (direction[free] * root).ravel()
    rigid = rigid_motions(surface, x)
    weighted = weighted - weighted @ rigid.T @ rigid
    out = np.zeros_like(direction)
    out[free] = weighted.reshape(-1, 3) / root
    return np.asarray(out / max(np.linalg.norm(out), 1e-300))


def _turned(
    surface: Surface, x: np.ndarray, n: np.ndarray, forces: np.ndarray, *, rotations: int
) -> tuple[np.ndarray, float]:
    """The direction after some rotations, and the curvature along it in eV/Å²."""
    centre, arm = forces[0], forces[1]
    curvature = float(((centre - arm) * n).sum()) / ARM_A
    for _ in range(rotations):
        across = (arm - centre) - ((arm - centre) * n).sum() * n
        across = across - (across * n).sum() * n
        size = np.linalg.norm(across)
        if size < 1e-10:
            break
        theta = _clean(surface, x, across / size)
        theta = theta - (theta * n).sum() * n
        theta /= max(np.linalg.norm(theta), 1e-300)
        slope = -2.0 * float(((arm - centre) * theta).sum()) / ARM_A
        trial = -0.5 * np.arctan2(slope, 2.0 * abs(curvature))
        if abs(trial) < TURNED_ENOUGH:
            break
        there = n * np.cos(trial) + theta * np.sin(trial)
        other = surface((x + ARM_A * there)[None]).forces_eV_per_A[0]
        turned = float(((centre - other) * there).sum()) / ARM_A
        a1 = (curvature - turned + 0.5 * slope * np.sin(2 * trial)) / (1 - np.cos(2 * trial))
        b1 = 0.5 * slope
        angle = 0.5 * np.arctan2(b1, a1)
        best = _fourier(angle, curvature, a1, b1)
        if best > _fourier(angle + np.pi / 2, curvature, a1, b1):
            angle += np.pi / 2
            best = _fourier(angle, curvature, a1, b1)
        n = n * np.cos(angle) + theta * np.sin(angle)
        n = n / np.linalg.norm(n)
        arm = surface((x + ARM_A * n)[None]).forces_eV_per_A[0]
        curvature = float(((centre - arm) * n).sum()) / ARM_A
    return n, curvature


def _fourier(angle: float, curvature: float, a1: float, b1: float) -> float:
    """Curvature at an angle from where it was measured."""
    return float(curvature + a1 * (np.cos(2 * angle) - 1) + b1 * np.sin(2 * angle))


@dataclass
class _Memory:
    """L-BFGS on a force field that has no energy: pairs of negative curvature are left out."""

    step_A: float
    keep: int = 12
    stiffness_eV_per_A2: float = 40.0  # of the first step
    pairs: deque[tuple[np.ndarray, np.ndarray]] = field(default_factory=deque)
    last: tuple[np.ndarray, np.ndarray] | None = None

    def forget(self) -> None:
        self.pairs.clear()
        self.last = None

    def move(self, x: np.ndarray, pull: np.ndarray) -> np.ndarray:
        """The next move from positions and force, [A,3]."""
        if self.last is not None:
            s, y = (x - self.last[0]).ravel(), (self.last[1] - pull).ravel()
            if s @ y > 1e-10:
                self.pairs.append((s, y))
                if len(self.pairs) > self.keep:
                    self.pairs.popleft()
        self.last = x.copy(), pull.copy()
        q = pull.ravel().copy()
        shares = []
        for s, y in reversed(self.pairs):
            a = (s @ q) / (s @ y)
            shares.append(a)
            q -= a * y
        q /= self.stiffness_eV_per_A2
        for (s, y), a in zip(self.pairs, reversed(shares), strict=True):
            q += s * (a - (y @ q) / (s @ y))
        step = q.reshape(pull.shape)
        longest = float(np.linalg.norm(step, axis=1).max(initial=0.0))
        return np.asarray(step * min(1.0, self.step_A / max(longest, 1e-300)))
