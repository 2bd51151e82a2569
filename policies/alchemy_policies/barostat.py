"""Isotropic stochastic cell rescaling: Bernetti & Bussi, J. Chem. Phys. 153, 114107 (2020).

The volume follows an overdamped Langevin equation. In λ = √V its noise is the same everywhere:

    dλ = −(β λ / 2τ)(P₀ − P − kT/2V) dt + √(kT β / 2τ) dW        P = −∂U/∂V + 2K/3V

with fractional coordinates and (momenta × V^⅓) held: positions and cell are scaled by (V'/V)^⅓,
velocities by its inverse. It samples exp(−(U + K + P₀V)/kT) for any compressibility β; a right one
makes τ the relaxation time of the volume. Only β/τ acts.

The integrator is reversible: one step makes two Euler moves of half a step around the heat bath, with the
potential pressure of the last force; run backwards the same moves are made with the pressure of the
next force, so that the ratio of both probabilities is known without one more force. kT times its
logarithm is the energy that the barostat took, and the conserved quantity includes it.

With a bath that keeps the total momentum zero, K lacks the centre of mass. Its mean, 3/2 kT, is put in:
without it N atoms of an ideal gas would sample V^{N−1} e^{−P₀V/kT}, not V^N.

Units: Å, fs, eV, eV/Å³. Axis: W walkers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import units

Bath = tuple[np.ndarray, np.ndarray]  # kT [W] in eV, momentum held at zero [W] bool


@dataclass(frozen=True)
class Shift:
    """A volume move that was made: what is needed to ask for the probability of the way back."""

    time_fs: float
    before: np.ndarray  # [W], λ, Å^1.5
    after: np.ndarray  # [W]
    drift: np.ndarray  # [W], Å^1.5/fs, at the start of the move
    kinetic: np.ndarray  # [W], eV, at its end

    def of(self, walkers: np.ndarray) -> Shift:
        """The same of some walkers, by a mask [W]."""
        mine = (self.before, self.after, self.drift, self.kinetic)
        return Shift(self.time_fs, *(values[walkers] for values in mine))


@dataclass(frozen=True)
class Barostat:
    pressure_eV_per_A3: float
    tau_fs: float
    compressibility_per_GPa: float

    @property
    def mobility(self) -> float:
        """β/τ, Å³/(eV fs)."""
        return self.compressibility_per_GPa / units.GPa / self.tau_fs

    def propose(
        self,
        volume: np.ndarray,
        kinetic: np.ndarray,
        pressure: np.ndarray,
        *,
        time_fs: float,
        bath: Bath,
        normal: np.ndarray,
    ) -> tuple[Shift, np.ndarray]:
        """A move over `time_fs`, and the factor [W] of all lengths.

        Args:
            volume: [W], Å³. kinetic: [W], eV. pressure: [W], eV/Å³, −∂U/∂V.
            normal: [W], standard normal.
        """
        root = np.sqrt(volume)
        drift = self._drift(root, kinetic, pressure, bath)
        spread = np.sqrt(0.5 * self.mobility * bath[0] * time_fs)
        # the law of λ is even but for its sign: below zero it is reflected
        after = np.abs(root + drift * time_fs + spread * normal)
        factor = np.cbrt((after / root) ** 2)
        return Shift(time_fs, root, after, drift, kinetic / factor**2), factor

    def work(self, shift: Shift, pressure: np.ndarray, bath: Bath) -> np.ndarray:
        """[W], eV that the walker received: −kT ln(probability forth / probability back).

        Both are normal with variance 2 D t, D = kT β/4τ.

        Args:
            pressure: [W], eV/Å³, of the force after the step, from which one would walk back.
        """
        back = self._drift(shift.after, shift.kinetic, pressure, bath)
        forth = shift.drift
        moved = 0.5 * (shift.after - shift.before) * (forth + back)
        squares = 0.25 * (back**2 - forth**2) * shift.time_fs
        return np.asarray(-(moved + squares) / (0.25 * self.mobility))

    def potential(self, volume: np.ndarray, bath: Bath) -> np.ndarray:
        """[W], eV: what the density of λ has in its exponent beside U + K."""
        kT, held = bath
        return np.asarray(self.pressure_eV_per_A3 * volume - kT * (0.5 + held) * np.log(volume))

    def _drift(
        self, root: np.ndarray, kinetic: np.ndarray, pressure: np.ndarray, bath: Bath
    ) -> np.ndarray:
        """[W], mean velocity of λ; potential, kinetic and metric parts of the pressure."""
        kT, held = bath
        inside = pressure + (2 * kinetic / 3 + kT * (0.5 + held)) / root**2
        return np.asarray(-0.5 * self.mobility * root * (self.pressure_eV_per_A3 - inside))
