"""Motion of many walkers at once, as functions on arrays: Newton's, Langevin's, Bussi's.

Units: Å, fs, amu, eV. ASE's own time unit is Å√(amu/eV), of which `ase.units.fs` make one fs, hence
acceleration  F/m · fs²    [Å/fs²]        kinetic energy  ½ m v² / fs²   [eV]
thermal speed √(kT/m) · fs [Å/fs]
Axes: W walkers, A atoms of all walkers one after another. Sums over a walker's atoms go by
`np.bincount`, which adds in order: no walker's sum depends on who is beside it, to the last bit.

One step is B A O A B: half kick, half drift, heat bath, half drift, force, half kick (Leimkuhler &
Matthews, Appl. Math. Res. Express 2013, 34). Without a bath it is velocity Verlet. The bath stands
in the middle because there positions are sampled best, whichever bath it is (Zhang, Liu, Liu, Yan &
Liu, J. Chem. Phys. 147, 034109 (2017)). A barostat surrounds the bath: B A V O V A B, see `barostat`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from ase import units

from .barostat import Barostat, Shift

ACCELERATION = units.fs**2


@dataclass(frozen=True)
class Crowd:
    """What stays the same of walkers side by side."""

    inverse_mass: np.ndarray  # [A], 1/amu; 0 for a fixed atom, which is never kicked
    owner: np.ndarray  # [A], walker of each atom
    temperature_K: np.ndarray  # [W], of the bath
    freedom: np.ndarray  # [W], degrees of freedom that share the kinetic energy
    held: np.ndarray  # [W] bool: the total momentum is zero and none of `freedom`

    @classmethod
    def of(
        cls,
        inverse_masses: Sequence[np.ndarray],
        temperatures_K: Sequence[float],
        *,
        conserving: bool,
    ) -> Crowd:
        """`conserving`: no bath pushes single atoms, so that the total momentum stays."""
        freedom = [degrees_of_freedom(m, conserving=conserving) for m in inverse_masses]
        return cls(
            inverse_mass=np.concatenate([*inverse_masses, np.empty(0)]),
            owner=np.repeat(np.arange(len(inverse_masses)), [len(m) for m in inverse_masses]),
            temperature_K=np.array(temperatures_K, dtype=float),
            freedom=np.array(freedom, dtype=int),
            held=np.array([conserving and conserves_momentum(m) for m in inverse_masses], bool),
        )

    @cached_property
    def mass(self) -> np.ndarray:
        """[A], amu; 0 for a fixed atom: it carries neither energy nor momentum."""
        moves = self.inverse_mass > 0
        return np.where(moves, 1 / np.where(moves, self.inverse_mass, 1.0), 0.0)

    @cached_property
    def thermal_speed(self) -> np.ndarray:
        """[A], Å/fs."""
        return thermal_speed(self.inverse_mass, self.temperature_K[self.owner])

    @property
    def kT(self) -> np.ndarray:
        """[W], eV."""
        return units.kB * self.temperature_K

    def sums(self, per_atom: np.ndarray) -> np.ndarray:
        """[A] → [W]."""
        return np.bincount(self.owner, weights=per_atom, minlength=len(self.freedom))

    def kinetic_energies(self, velocities: np.ndarray) -> np.ndarray:
        """[W], eV."""
        return self.sums(0.5 * self.mass * (velocities**2).sum(1)) / ACCELERATION

    def at_rest(self, velocities: np.ndarray) -> np.ndarray:
        """Velocities less the centre of mass's, of walkers whose momentum is held."""
        if not self.held.any():
            return velocities
        total = np.where(self.held, self.sums(self.mass), 1.0)
        drift = np.stack([self.sums(self.mass * velocities[:, k]) / total for k in range(3)], 1)
        return velocities - np.where(self.held[:, None], drift, 0.0)[self.owner]


@dataclass
class State:
    """What moves. A session fills in `forces` and, where a barostat is, `pressure`."""

    positions: np.ndarray  # [A,3], Å
    velocities: np.ndarray  # [A,3], Å/fs
    cells: np.ndarray  # [W,3,3], rows, Å
    forces: np.ndarray  # [A,3], eV/Å
    pressure: np.ndarray  # [W], eV/Å³, −dU/dV at fixed fractional coordinates: no kinetic part
    received: np.ndarray  # [W], eV that bath and barostat gave so far
    shifts: list[Shift] = field(default_factory=list)  # volume moves since the last force

    def beside(self, other: State) -> State:
        """Both, between two steps."""
        pairs = zip(self._arrays(), other._arrays(), strict=True)
        x, v, h, f, p, q = (np.concatenate(pair) for pair in pairs)
        return State(x, v, h, f, p, q)

    def of(self, atoms: np.ndarray, walkers: np.ndarray) -> State:
        """Some walkers, by masks [A] and [W]."""
        masks = (atoms, atoms, walkers, atoms, walkers, walkers)
        x, v, h, f, p, q = (a[mask] for a, mask in zip(self._arrays(), masks, strict=True))
        return State(x, v, h, f, p, q, [shift.of(walkers) for shift in self.shifts])

    def _arrays(self) -> tuple[np.ndarray, ...]:
        return (
            self.positions, self.velocities, self.cells, self.forces, self.pressure, self.received,
        )  # fmt: skip


class Thermostat(Protocol):
    @property
    def conserving(self) -> bool:
        """Whether the total momentum stays."""
        ...

    def __call__(
        self,
        crowd: Crowd,
        velocities: np.ndarray,
        time_fs: float,
        rngs: Sequence[np.random.Generator],
    ) -> np.ndarray: ...


@dataclass(frozen=True)
class Langevin:
    """Friction and noise on every atom, exact over any time; J. Chem. Phys. 138, 174102 (2013)."""

    friction_per_fs: float
    conserving: bool = False

    def __call__(
        self,
        crowd: Crowd,
        velocities: np.ndarray,
        time_fs: float,
        rngs: Sequence[np.random.Generator],
    ) -> np.ndarray:
        decay = math.exp(-self.friction_per_fs * time_fs)
        sizes = np.bincount(crowd.owner, minlength=len(rngs))
        normal = [rng.standard_normal((n, 3)) for rng, n in zip(rngs, sizes, strict=True)]
        noise = math.sqrt(1 - decay**2) * crowd.thermal_speed
        return np.asarray(decay * velocities + noise[:, None] * np.concatenate(normal))


@dataclass(frozen=True)
class Bussi:
    """Stochastic velocity rescaling: Bussi, Donadio & Parrinello, J. Chem. Phys. 126, 014101 (2007).

    All velocities of a walker are scaled by one factor, such that its kinetic energy follows its
    own Langevin equation; the trajectory is disturbed least and the total momentum stays zero.
    """

    tau_fs: float
    conserving: bool = True

    def __call__(
        self,
        crowd: Crowd,
        velocities: np.ndarray,
        time_fs: float,
        rngs: Sequence[np.random.Generator],
    ) -> np.ndarray:
        velocities = crowd.at_rest(velocities)  # round-off of a network's forces would add up
        normal = np.array([rng.standard_normal() for rng in rngs])
        rest = np.array(
            [
                rng.chisquare(n - 1) if n > 1 else 0.0
                for rng, n in zip(rngs, crowd.freedom, strict=True)
            ]
        )
        factor = bussi_factor(
            crowd.kinetic_energies(velocities),
            crowd,
            decay=math.exp(-time_fs / self.tau_fs),
            draws=(normal, rest),
        )
        return velocities * factor[crowd.owner, None]


def bussi_factor(
    kinetic: np.ndarray, crowd: Crowd, *, decay: float, draws: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """[W], what velocities are multiplied with: the exact solution over a time t, decay = e^{−t/τ}.

    α² = c + (K̄/N_f K)(1−c)(R₁² + Σ_{i≥2} R_i²) + 2 R₁ √(c (1−c) K̄/N_f K)   (eq. A7), with the sign
    of R₁ + √(c N_f K/((1−c) K̄)) (Bussi & Parrinello, Comput. Phys. Commun. 179, 26 (2008)), without
    which a single degree of freedom never turns round. K̄/N_f is kT/2.

    Args:
        kinetic: [W], eV.
        draws: R₁ [W] standard normal, and Σ_{i≥2} R_i² [W], χ² of N_f − 1 degrees of freedom.
    """
    normal, rest = draws
    moves = (crowd.freedom > 0) & (kinetic > 0)
    spread = np.sqrt((1 - decay) * 0.5 * crowd.kT / np.where(moves, kinetic, 1.0))
    along = math.sqrt(decay) + spread * normal
    # along² + spread²·rest is α² with its two first terms completed to a square
    factor = np.copysign(np.sqrt(along**2 + spread**2 * rest), along)
    return np.where(moves, factor, 1.0)


@dataclass(frozen=True)
class Integrator:
    timestep_fs: float
    thermostat: Thermostat | None = None
    barostat: Barostat | None = None

    @property
    def conserving(self) -> bool:
        return self.thermostat is None or self.thermostat.conserving

    def to_new_positions(
        self, crowd: Crowd, state: State, rngs: Sequence[np.random.Generator]
    ) -> None:
        """B A V O V A: everything before the force; one generator per walker."""
        half = 0.5 * self.timestep_fs
        state.velocities = self._kicked(crowd, state)
        state.positions = state.positions + half * state.velocities
        self._resize(crowd, state, rngs)
        if self.thermostat is not None:
            before = crowd.kinetic_energies(state.velocities)
            state.velocities = self.thermostat(crowd, state.velocities, self.timestep_fs, rngs)
            state.received = state.received + crowd.kinetic_energies(state.velocities) - before
        self._resize(crowd, state, rngs)
        state.positions = state.positions + half * state.velocities

    def _resize(self, crowd: Crowd, state: State, rngs: Sequence[np.random.Generator]) -> None:
        """V over half a step: cell and positions by a factor, velocities by its inverse."""
        if self.barostat is None:
            return
        shift, factor = self.barostat.propose(
            np.abs(np.linalg.det(state.cells)),
            crowd.kinetic_energies(state.velocities),
            state.pressure,
            time_fs=0.5 * self.timestep_fs,
            bath=(crowd.kT, crowd.held),
            normal=np.array([rng.standard_normal() for rng in rngs]),
        )
        state.shifts.append(shift)
        state.cells = state.cells * factor[:, None, None]
        state.positions = state.positions * factor[crowd.owner, None]
        state.velocities = state.velocities / factor[crowd.owner, None]

    def last_kick(self, crowd: Crowd, state: State) -> None:
        """B with the forces at the new positions; the volume moves are settled."""
        state.velocities = self._kicked(crowd, state)
        for shift in state.shifts:
            assert self.barostat is not None
            back = self.barostat.work(shift, state.pressure, (crowd.kT, crowd.held))
            state.received = state.received + back
        state.shifts = []

    def _kicked(self, crowd: Crowd, state: State) -> np.ndarray:
        push = 0.5 * self.timestep_fs * ACCELERATION * crowd.inverse_mass
        return np.asarray(state.velocities + push[:, None] * state.forces)

    def conserved(self, crowd: Crowd, state: State, energies_eV: np.ndarray) -> np.ndarray:
        """[W], eV: constant but for the error of the time step; `energies_eV` [W] are potential."""
        total = energies_eV + crowd.kinetic_energies(state.velocities) - state.received
        if self.barostat is not None:
            volumes = np.abs(np.linalg.det(state.cells))
            total = total + self.barostat.potential(volumes, (crowd.kT, crowd.held))
        return np.asarray(total)


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


def degrees_of_freedom(inverse_mass: np.ndarray, *, conserving: bool) -> int:
    """Three per free atom, less three where the total momentum is zero and stays so."""
    freedom = 3 * int((inverse_mass > 0).sum())
    return freedom - 3 if conserving and conserves_momentum(inverse_mass) else freedom


def kinetic_temperature(kinetic_eV: float, degrees_of_freedom: int) -> float:
    """K; 0 where nothing can move."""
    if degrees_of_freedom < 1:
        return 0.0
    return float(2 * kinetic_eV / (degrees_of_freedom * units.kB))
