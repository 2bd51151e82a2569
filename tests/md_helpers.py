"""Potentials with known answers, and the loop that tests of integrators share."""

from __future__ import annotations

import numpy as np
from alchemy_policies.integrators import Crowd, Integrator, State, maxwell_boltzmann


def free(positions, cells, owner):
    """No forces: an ideal gas. (energies [W], forces [A,3], pressure [W])"""
    return np.zeros(len(cells)), np.zeros_like(positions), np.zeros(len(cells))


def wells(stiffness):
    """Each atom in a harmonic well about 0, in eV/Å²; it does not know of the cell."""

    def potential(positions, cells, owner):
        energies = np.bincount(owner, 0.5 * stiffness * (positions**2).sum(1), len(cells))
        return energies, -stiffness * positions, np.zeros(len(cells))

    return potential


def lennard_jones(epsilon, sigma, cutoff):
    """Pairs of the nearest images within walkers of equal size; shifted in energy and force."""

    def value(r):
        s6 = (sigma / r) ** 6
        return 4 * epsilon * (s6**2 - s6), 4 * epsilon * (-12 * s6**2 + 6 * s6) / r

    at_cut, slope_at_cut = value(cutoff)

    def potential(positions, cells, owner):
        walkers = len(cells)
        x = positions.reshape(walkers, -1, 3)
        i, j = np.triu_indices(x.shape[1], 1)
        d = x[:, i] - x[:, j]
        edges = cells[:, [0, 1, 2], [0, 1, 2]][:, None]
        d -= edges * np.round(d / edges)
        r = np.sqrt((d**2).sum(2))
        assert (2 * cutoff <= edges).all(), "an atom would see two images"
        near = r < cutoff
        e, slope = value(np.where(near, r, cutoff))
        e = np.where(near, e - at_cut - slope_at_cut * (r - cutoff), 0.0)
        slope = np.where(near, slope - slope_at_cut, 0.0)
        pull = -(slope / r)[..., None] * d
        forces = np.zeros_like(x)
        for n in range(walkers):
            for k in range(3):
                forces[n, :, k] = np.bincount(i, pull[n, :, k], x.shape[1])
                forces[n, :, k] -= np.bincount(j, pull[n, :, k], x.shape[1])
        pressure = -(slope * r).sum(1) / (3 * np.prod(edges[:, 0], 1))
        return e.sum(1), forces.reshape(-1, 3), pressure

    return potential


class Run:
    """Walkers of one mass that move in a potential; `step` by step."""

    def __init__(self, integrator: Integrator, potential, atoms, *, mass, temperatures, rng, cells=None):
        self.integrator, self.potential = integrator, potential
        walkers = len(temperatures)
        inverse = [np.full(len(atoms), 1 / mass)] * walkers
        self.crowd = Crowd.of(inverse, temperatures, conserving=integrator.conserving)
        self.rngs = rng.spawn(walkers)
        start = zip(inverse, temperatures, self.rngs, strict=True)
        self.state = State(
            positions=np.tile(np.asarray(atoms, float), (walkers, 1)),
            velocities=np.concatenate([maxwell_boltzmann(m, t, r) for m, t, r in start]),
            cells=np.tile(np.eye(3) if cells is None else cells, (walkers, 1, 1)),
            forces=np.zeros((walkers * len(atoms), 3)),
            pressure=np.zeros(walkers),
            received=np.zeros(walkers),
        )
        self._evaluate()

    def _evaluate(self):
        s = self.state
        self.energies, s.forces, s.pressure = self.potential(s.positions, s.cells, self.crowd.owner)

    def step(self):
        self.integrator.to_new_positions(self.crowd, self.state, self.rngs)
        self._evaluate()
        self.integrator.last_kick(self.crowd, self.state)

    def watch(self, steps, *, every=1, burn=0):
        """Kinetic energies, volumes, conserved energies and total pressures [T, W]."""
        seen = []
        for n in range(steps):
            self.step()
            if n >= burn and n % every == 0:
                kinetic = self.crowd.kinetic_energies(self.state.velocities)
                volume = np.abs(np.linalg.det(self.state.cells))
                conserved = self.integrator.conserved(self.crowd, self.state, self.energies)
                pressure = self.state.pressure + 2 * kinetic / (3 * volume)
                seen.append((kinetic, volume, conserved, pressure))
        return [np.array(x) for x in zip(*seen, strict=True)]


def effective_samples(series):
    """How many independent values the series [T, W] holds in all, from its autocorrelation.

    Sokal's window: the sum ends at the first lag beyond five correlation times.
    """
    x = series - series.mean()
    length = len(x)
    spectrum = np.abs(np.fft.rfft(x, 2 * length, axis=0)) ** 2
    rho = np.fft.irfft(spectrum, axis=0)[:length].mean(1)
    rho /= rho[0]
    tau = 2 * np.cumsum(rho) - 1
    window = int(np.argmax(np.arange(length) >= 5 * tau))
    return series.size / max(1.0, tau[window])
