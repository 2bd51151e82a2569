"""Both ways down from a saddle, side by side, and the minima that they lead to.

Damped velocity Verlet (Hratchian & Schlegel, J. Phys. Chem. A 106, 165 (2002)): classical motion from
the saddle along ±mode, the speed reset to a small constant after every step, so that it follows the
mass-weighted steepest descent; the time step adapts to the error between two successive positions,
Eq. 8 there. When a branch no longer falls it is relaxed with FIRE: which minimum a saddle belongs to is
what counts here, not the path's last hundredth of an Ångström.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import units

from .fire import Fire, largest_force
from .surface import Surface
from .watch import CONVERGED, NOT_CONVERGED, Watch

SPEED = 0.04 * units.Bohr / units.fs  # the paper's v0; norm over all coordinates
ERROR_A = 0.003 * units.Bohr  # the paper's Δ0
DT = (0.0025 * units.fs, 3.0 * units.fs)
KICK_A = 0.05  # norm of the first displacement
RISES = 3  # steps without a new lowest energy


@dataclass(frozen=True)
class Descent:
    """Two branches, along +mode and −mode."""

    paths_A: tuple[np.ndarray, np.ndarray]  # [n,A,3] each, from the saddle down to the minimum
    energies_eV: tuple[np.ndarray, np.ndarray]
    outcome: str


def descend(
    surface: Surface,
    saddle_A: np.ndarray,
    mode: np.ndarray,
    *,
    fmax_eV_per_A: float,
    max_steps: int,
    max_relax_steps: int = 500,
) -> Descent:
    """Follow both branches; `outcome` says whether both ended in a minimum."""
    walk = _walk(surface, saddle_A, mode, max_steps=max_steps)
    lowest = np.array([path[-1] for path, _ in walk])
    ends = relax(surface, lowest, fmax_eV_per_A=fmax_eV_per_A, max_steps=max_relax_steps)
    paths, heights = [], []
    for (path, energy), x, e in zip(walk, ends.positions_A, ends.energies_eV, strict=True):
        paths.append(np.array([*path, x]))
        heights.append(np.array([*energy, e]))
    return Descent((paths[0], paths[1]), (heights[0], heights[1]), ends.outcome)


def _walk(
    surface: Surface, saddle_A: np.ndarray, mode: np.ndarray, *, max_steps: int
) -> list[tuple[list[np.ndarray], list[float]]]:
    """Positions and energies of both branches while they fall."""
    sign = np.array([1.0, -1.0])[:, None, None]
    mass = surface.masses[:, None]
    x = saddle_A + KICK_A * sign * mode
    v = SPEED * sign * mode
    dt = np.full(2, 0.1 * units.fs)
    look = surface(x)
    a = look.forces_eV_per_A / mass
    energy = look.energies_eV.copy()
    trail = [([saddle_A, x[n].copy()], [float("nan"), float(energy[n])]) for n in range(2)]
    best, stale = energy.copy(), np.zeros(2, dtype=int)
    before: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None = None
    for _ in range(max_steps):
        step = dt[:, None, None]
        fresh = x + v * step + 0.5 * a * step**2
        look = surface(fresh)
        pull = look.forces_eV_per_A / mass
        speed = v + 0.5 * (a + pull) * step
        norm = np.linalg.norm(speed, axis=(1, 2))[:, None, None]
        speed = SPEED * speed / np.maximum(norm, 1e-300)
        moved = dt.copy()
        if before is not None:
            x0, v0, a0, dt0 = before
            span = (dt0 + dt)[:, None, None]
            guess = x0 + v0 * span + 0.5 * a0 * span**2
            error = np.maximum(np.abs(guess - fresh).max((1, 2)), np.linalg.norm(guess - fresh, axis=(1, 2)))
            dt = np.clip(dt * np.cbrt(ERROR_A / np.maximum(error, 1e-12)), *DT)
        before = x, v, a, moved
        x, v, a, energy = fresh, speed, pull, look.energies_eV
        # a branch that has arrived would climb out of its minimum at constant speed: it is left behind
        down = (energy < best - 1e-6) & (stale < RISES)
        best = np.where(down, energy, best)
        stale = np.where(down, 0, stale + 1)
        for n in range(2):
            if down[n] and np.isfinite(x[n]).all():
                trail[n][0].append(x[n].copy())
                trail[n][1].append(float(energy[n]))
        if (stale >= RISES).all() or not np.isfinite(energy).all():
            break
    return trail


@dataclass(frozen=True)
class Relaxed:
    """Copies that were relaxed side by side."""

    positions_A: np.ndarray  # [S,A,3]
    energies_eV: np.ndarray  # [S]
    converged: np.ndarray  # [S]
    outcome: str


def relax(
    surface: Surface,
    starts_A: np.ndarray,
    *,
    fmax_eV_per_A: float,
    max_steps: int,
    watch: Watch | None = None,
) -> Relaxed:
    """Relax copies [S,A,3] with FIRE; a watch may stop them."""
    x = starts_A.copy()
    optimiser = Fire(len(x))
    done = np.zeros(len(x), dtype=bool)
    energies, code = np.full(len(x), np.nan), None
    if watch is not None:
        watch.begin(x)
    for _ in range(max_steps + 1):
        look = surface(x, members=watch is not None and watch.due())
        energies = look.energies_eV
        code = None if watch is None else watch.judge(x, look)
        done = np.array([largest_force(f) < fmax_eV_per_A for f in look.forces_eV_per_A])
        if code is not None or done.all() or not np.isfinite(look.forces_eV_per_A).all():
            break
        x = x + np.where(done[:, None, None], 0.0, optimiser.moves(look.forces_eV_per_A))
    outcome = code or (CONVERGED if done.all() else NOT_CONVERGED)
    return Relaxed(x, energies, done, outcome)
