"""Langevin and Newtonian motion of many walkers at once, as functions on arrays.

Units: Å, fs, amu, eV. ASE's own time unit is Å√(amu/eV), of which `ase.units.fs` make one fs, hence
acceleration  F/m · fs²    [Å/fs²]        kinetic energy  ½ m v² / fs²   [eV]
thermal speed √(kT/m) · fs [Å/fs]

Langevin is BAOAB: Leimkuhler & Matthews, Appl. Math. Res. Express 2013, 34 and J. Chem. Phys.
138, 174102: half kick, half drift, friction and noise, half drift, force, half kick. In a
harmonic well it samples positions without any time-step error, which is why it won over ASE's
scheme. Without friction it is velocity Verlet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ase import units

ACCELERATION = units.fs**2


@dataclass(frozen=True)
class Motion:
    """Per-atom columns [A,1] of a batch. A fixed atom has inverse mass 0: it is never kicked."""

    timestep_fs: float
    inverse_mass: np.ndarray  # 1/amu
    decay: float  # e^{-γ dt}; 1 without friction
    noise: np.ndarray  # Å/fs, standard deviation of the random velocity of one step

    @classmethod
    def of(
        cls,
        inverse_mass: np.ndarray,
        temperature_K: np.ndarray,
        *,
        timestep_fs: float,
        friction_per_fs: float,
    ) -> Motion:
        decay = math.exp(-friction_per_fs * timestep_fs)
        speed = thermal_speed(inverse_mass, temperature_K)
        noise = math.sqrt(1 - decay**2) * speed
        return cls(timestep_fs, inverse_mass[:, None], decay, noise[:, None])


def thermal_speed(inverse_mass: np.ndarray, temperature_K: np.ndarray | float) -> np.ndarray:
    """√(kT/m) per component, Å/fs."""
    return np.asarray(np.sqrt(units.kB * temperature_K * inverse_mass) * units.fs)


def maxwell_boltzmann(
    inverse_mass: np.ndarray, temperature_K: float, rng: np.random.Generator
) -> np.ndarray:
    """Velocities [A,3], Å/fs, with zero total momentum.

    Taking the mean velocity off a normal draw samples exactly the ensemble of zero momentum, so
    nothing is rescaled. With fixed atoms momentum is not conserved, and a lone atom would stand
    still: there the draw is kept.
    """
    draw = rng.standard_normal((len(inverse_mass), 3))
    velocities = thermal_speed(inverse_mass, temperature_K)[:, None] * draw
    if conserves_momentum(inverse_mass):
        mass = 1 / inverse_mass
        velocities -= (mass[:, None] * velocities).sum(0) / mass.sum()
    return velocities


def conserves_momentum(inverse_mass: np.ndarray) -> bool:
    return bool((inverse_mass > 0).all()) and len(inverse_mass) > 1


def kinetic_temperature(
    velocities: np.ndarray, inverse_mass: np.ndarray, degrees_of_freedom: int
) -> float:
    """K; 0 where nothing can move."""
    if degrees_of_freedom < 1:
        return 0.0
    free = inverse_mass > 0
    twice_kinetic = ((velocities[free] ** 2).sum(1) / inverse_mass[free]).sum() / ACCELERATION
    return float(twice_kinetic / (degrees_of_freedom * units.kB))


def to_new_positions(
    motion: Motion,
    state: tuple[np.ndarray, np.ndarray, np.ndarray],
    normal: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """B A O A: (positions, velocities, forces) to new positions, velocities before the last B."""
    positions, velocities, forces = state
    half = 0.5 * motion.timestep_fs
    velocities = velocities + half * ACCELERATION * motion.inverse_mass * forces
    if normal is None:
        return positions + motion.timestep_fs * velocities, velocities
    positions = positions + half * velocities
    velocities = motion.decay * velocities + motion.noise * normal
    return positions + half * velocities, velocities


def last_kick(motion: Motion, velocities: np.ndarray, forces: np.ndarray) -> np.ndarray:
    """B, with the forces at the new positions."""
    half = 0.5 * motion.timestep_fs
    return np.asarray(velocities + half * ACCELERATION * motion.inverse_mass * forces)
