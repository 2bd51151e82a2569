"""Integrators: the ensembles they sample, and energies they keep."""

import math

import numpy as np
import pytest
from alchemy_policies.integrators import (
    ACCELERATION,
    Motion,
    kinetic_temperature,
    last_kick,
    maxwell_boltzmann,
    to_new_positions,
)
from ase import units
from ase.build import bulk


def harmonic(motion, stiffness, *, steps, temperature_K, rng, burn=0):
    """Independent oscillators about 0; (sum of v², sum of x²) per step after the burn-in."""
    inverse_mass = motion.inverse_mass[:, 0]
    x = np.zeros((len(inverse_mass), 3))
    v = maxwell_boltzmann(inverse_mass, temperature_K, rng)
    f = -stiffness * x
    seen = []
    for step in range(steps):
        noise = rng.standard_normal(x.shape) if motion.decay < 1 else None
        x, v = to_new_positions(motion, (x, v, f), noise)
        f = -stiffness * x
        v = last_kick(motion, v, f)
        if step >= burn:
            seen.append(((v**2).mean(), (x**2).mean()))
    return np.array(seen)


def test_langevin_oscillators_have_the_temperature_of_the_bath():
    temperature, stiffness, mass = 500.0, 5.0, 12.0
    inverse_mass = np.full(2000, 1 / mass)
    motion = Motion.of(
        inverse_mass, np.full(2000, temperature), timestep_fs=0.5, friction_per_fs=0.02
    )
    rng = np.random.default_rng(0)
    seen = harmonic(motion, stiffness, steps=1500, temperature_K=temperature, rng=rng, burn=500)
    kinetic = seen[:, 0].mean() * mass / ACCELERATION / units.kB
    potential = seen[:, 1].mean() * stiffness / units.kB
    # 6000 oscillators over ≥ 5 relaxation times (50 fs): √(2/(6000·5)) = 0.8 %; four of these.
    # The time-step error of BAOAB is 0 for x and (ω dt)²/4 = 0.03 % for v.
    assert kinetic == pytest.approx(temperature, rel=0.033)
    assert potential == pytest.approx(temperature, rel=0.033)


def test_a_large_time_step_biases_no_position_in_a_harmonic_well():
    temperature, stiffness = 300.0, 40.0
    inverse_mass = np.full(3000, 1.0)
    motion = Motion.of(
        inverse_mass, np.full(3000, temperature), timestep_fs=1.6, friction_per_fs=0.05
    )
    omega_dt = math.sqrt(stiffness * ACCELERATION) * 1.6
    assert omega_dt > 0.9  # a third of the way to instability
    rng = np.random.default_rng(1)
    seen = harmonic(motion, stiffness, steps=400, temperature_K=temperature, rng=rng, burn=100)
    # 9000 oscillators × ≥ 10 relaxation times: 0.5 %; velocity Verlet is off by (ωdt)²/4 = 20 %
    assert seen[:, 1].mean() * stiffness / units.kB == pytest.approx(temperature, rel=0.02)


def test_velocity_verlet_keeps_the_energy_and_its_error_falls_with_the_square_of_the_step():
    from ase.calculators.lj import LennardJones

    atoms = bulk("Ar", "fcc", 5.3, cubic=True)
    atoms.calc = LennardJones(sigma=3.4, epsilon=0.0104, rc=8.0, smooth=True, ro=6.0)
    inverse_mass = 1 / atoms.get_masses()
    start = atoms.positions.copy()

    def drift(timestep, steps):
        rng = np.random.default_rng(2)
        v = maxwell_boltzmann(inverse_mass, 60.0, rng)
        motion = Motion.of(inverse_mass, np.full(4, 60.0), timestep_fs=timestep, friction_per_fs=0)
        atoms.positions = x = start.copy()
        f = atoms.get_forces()
        total = []
        for _ in range(steps):
            x, v = to_new_positions(motion, (x, v, f), None)
            atoms.positions = x
            f = atoms.get_forces()
            v = last_kick(motion, v, f)
            kinetic = 0.5 * ((v**2).sum(1) / inverse_mass).sum() / ACCELERATION
            total.append(atoms.get_potential_energy() + kinetic)
        return np.ptp(total)

    coarse, fine = drift(10.0, 80), drift(5.0, 160)
    assert coarse < 0.01 * 1.5 * 4 * units.kB * 60  # 1 % of the kinetic energy
    assert coarse / fine == pytest.approx(4.0, rel=0.25)  # second order; next order at these steps


def test_a_start_is_thermal_and_stands_still_as_a_whole():
    inverse_mass = 1 / np.tile([1.0, 16.0, 64.0], 2000)
    v = maxwell_boltzmann(inverse_mass, 400.0, np.random.default_rng(3))
    np.testing.assert_allclose((v / inverse_mass[:, None]).sum(0), 0, atol=1e-9)  # round-off
    # √(2/18000) = 1.05 %; four of these
    assert kinetic_temperature(v, inverse_mass, 3 * 6000 - 3) == pytest.approx(400, rel=0.042)
