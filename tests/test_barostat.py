"""Stochastic cell rescaling: volumes and pressures of the isothermal-isobaric ensemble."""

import math

import numpy as np
import pytest
from alchemy_policies.barostat import Barostat
from alchemy_policies.integrators import Bussi, Integrator, Langevin
from ase import units
from ase.build import bulk
from md_helpers import Run, effective_samples, free, lennard_jones
from scipy import stats

ARGON = bulk("Ar", "fcc", 5.4, cubic=True) * (2, 2, 2)
LJ = lennard_jones(0.0104, 3.4, 4.7)


@pytest.mark.parametrize("bath", [Langevin(0.02), Bussi(40.0)])
def test_the_volume_of_an_ideal_gas_has_its_law(bath):
    """p(V) ∝ V^N e^{−PV/kT}, also where the centre of mass does not move."""
    atoms, temperature, volume = 6, 300.0, 1000.0
    kT = units.kB * temperature
    pressure = kT * (atoms + 1) / volume
    run = Run(
        Integrator(1.0, bath, Barostat(pressure, 60.0, units.GPa / pressure)),
        free,
        10 * np.random.default_rng(0).random((atoms, 3)),
        mass=20.0,
        temperatures=[temperature] * 150,
        rng=np.random.default_rng(1),
        cells=10 * np.eye(3),
    )
    kinetic, volumes, _, _ = run.watch(2200, every=5, burn=400)
    law = stats.gamma(atoms + 1, scale=kT / pressure)
    count = effective_samples(volumes)
    assert count > 1500
    # Euler's half-steps inflate the variance by dt/4τ = 0.4 %; statistics: four standard errors
    assert volumes.mean() == pytest.approx(law.mean(), abs=4 * law.std() / math.sqrt(count))
    scatter = math.sqrt((2 + 6 / (atoms + 1)) / count)
    assert volumes.var() == pytest.approx(law.var(), rel=4 * scatter + 0.004)
    apart = volumes[:: math.ceil(volumes.size / count)].ravel()
    assert stats.kstest(apart, law.cdf).pvalue > 1e-3  # by chance one in a thousand
    freedom = run.crowd.freedom[0]
    scatter = math.sqrt(2 / freedom / effective_samples(kinetic))
    assert 2 * kinetic.mean() / (freedom * kT) == pytest.approx(1, abs=4 * scatter)


def test_the_pressure_of_the_helper_is_the_slope_of_its_energy():
    rng = np.random.default_rng(2)
    x = ARGON.positions + 0.2 * rng.standard_normal(ARGON.positions.shape)
    owner, cell = np.zeros(len(x), dtype=int), ARGON.cell.array[None]

    def at(factor):
        return LJ(x * factor, cell * factor, owner)[0][0]

    step = 1e-5
    slope = (at(1 + step) - at(1 - step)) / (2 * step) / (3 * ARGON.cell.volume)
    # central differences: (ε r d/dr)³ ~ 12³·1e-10
    assert LJ(x, cell, owner)[2][0] == pytest.approx(-slope, rel=1e-6)


@pytest.mark.parametrize("bath", [Bussi(300.0), Langevin(0.01)])
@pytest.mark.parametrize("gpa", [0.2, 0.8])
def test_a_crystal_takes_the_pressure_asked_for_and_keeps_its_temperature(bath, gpa):
    temperature = 20.0  # the short cutoff binds so weakly that without pressure it would sublime
    run = Run(
        Integrator(10.0, bath, Barostat(gpa * units.GPa, 300.0, 0.4)),
        LJ,
        ARGON.positions,
        mass=40.0,
        temperatures=[temperature] * 12,
        rng=np.random.default_rng(3),
        cells=ARGON.cell.array,
    )
    kinetic, volumes, conserved, pressures = run.watch(1100, burn=400)
    # a centre of mass that does not move lacks its kT/V
    pressures = pressures + run.crowd.held * units.kB * temperature / volumes
    error = pressures.std() / math.sqrt(effective_samples(pressures))
    assert error < 0.02 * units.GPa  # a test that could tell the two pressures apart
    assert pressures.mean() == pytest.approx(gpa * units.GPa, abs=4 * error)
    freedom = run.crowd.freedom[0]
    scatter = math.sqrt(2 / freedom / effective_samples(kinetic))
    # the time step biases velocities by (ω dt)²/12, below 0.5 %
    mean = 2 * kinetic.mean() / (freedom * units.kB)
    assert mean == pytest.approx(temperature, rel=4 * scatter + 0.005)
    # bath and barostat exchange tens of kT with each walker, and the balance closes
    wander = (conserved - conserved[0]).std()
    assert wander < 0.1 * kinetic.std() and run.state.received.std() > 10 * wander


def test_the_work_of_a_move_is_the_ratio_of_its_probabilities_forth_and_back():
    barostat = Barostat(0.01, 500.0, 0.2)
    kT, held = np.array([0.02, 0.03]), np.array([True, False])
    volume, kinetic = np.array([900.0, 1100.0]), np.array([1.0, 2.0])
    before, after = np.array([0.02, -0.01]), np.array([0.015, 0.02])  # pressures
    shift, factor = barostat.propose(
        volume, kinetic, before, time_fs=2.0, bath=(kT, held), normal=np.array([0.3, -1.2])
    )
    np.testing.assert_allclose(factor, (shift.after / shift.before) ** (2 / 3), rtol=1e-14)

    def log_probability(start, end, kinetic, pressure):
        """Eq. for dλ in the module's docstring, written down once more."""
        ratio = 0.2 / units.GPa / 500.0
        inside = pressure + 2 * kinetic / (3 * start**2) + held * kT / start**2
        mean = start - 2.0 * ratio * start / 2 * (0.01 - inside - kT / (2 * start**2))
        return stats.norm(mean, np.sqrt(kT * ratio / 2 * 2.0)).logpdf(end)

    forth = log_probability(shift.before, shift.after, kinetic, before)
    back = log_probability(shift.after, shift.before, kinetic / factor**2, after)
    np.testing.assert_allclose(
        barostat.work(shift, after, (kT, held)), -kT * (forth - back), rtol=1e-9, atol=1e-12
    )  # the logarithms lose a few digits in their difference


def test_a_move_keeps_fractional_coordinates_and_the_product_of_momentum_and_length():
    run = Run(
        Integrator(0.0, None, Barostat(0.0, 100.0, 0.1)),
        free,
        ARGON.positions,
        mass=40.0,
        temperatures=[50.0],
        rng=np.random.default_rng(4),
        cells=ARGON.cell.array,
    )
    run.integrator = Integrator(4.0, None, Barostat(0.0, 100.0, 1.0))
    state = run.state
    fractional, speed = ARGON.get_scaled_positions(), state.velocities.copy()
    run.integrator._resize(run.crowd, state, run.rngs)
    growth = np.cbrt(np.linalg.det(state.cells[0]) / ARGON.cell.volume)
    assert abs(growth - 1) > 1e-5
    now = np.linalg.solve(state.cells[0].T, state.positions.T).T
    np.testing.assert_allclose(now % 1.0, fractional % 1.0, atol=1e-12)  # round-off
    np.testing.assert_allclose(state.velocities * growth, speed, rtol=1e-12)
