"""Integrators: the ensembles they sample, and energies they keep."""

import math

import ase.md.bussi
import numpy as np
import pytest
from alchemy_policies.integrators import (
    ACCELERATION,
    Bussi,
    Crowd,
    Integrator,
    Langevin,
    bussi_factor,
    kinetic_temperature,
    maxwell_boltzmann,
)
from ase import units
from ase.build import bulk
from md_helpers import Run, effective_samples, free, lennard_jones, wells
from scipy import stats

ARGON = bulk("Ar", "fcc", 5.3, cubic=True) * (2, 2, 2)
LJ = lennard_jones(0.0104, 3.4, 5.2)


def argon(integrator, *, seed, walkers=16, temperature=30.0):
    return Run(
        integrator,
        LJ,
        ARGON.positions,
        mass=40.0,
        temperatures=[temperature] * walkers,
        rng=np.random.default_rng(seed),
        cells=ARGON.cell.array,
    )


def oscillators(integrator, stiffness, *, count, mass, temperature, seed, steps, burn):
    """Means of m v² and k x² per component, in units of k_B K."""
    run = Run(
        integrator,
        wells(stiffness),
        np.zeros((count, 3)),
        mass=mass,
        temperatures=[temperature],
        rng=np.random.default_rng(seed),
    )
    seen = []
    for step in range(steps):
        run.step()
        if step >= burn:
            v, x = run.state.velocities, run.state.positions
            seen.append(((v**2).mean() * mass / ACCELERATION, (x**2).mean() * stiffness))
    return np.mean(seen, axis=0) / units.kB


def test_langevin_oscillators_have_the_temperature_of_the_bath():
    kinetic, potential = oscillators(
        Integrator(0.5, Langevin(0.02)),
        5.0, count=2000, mass=12.0, temperature=500.0, seed=0, steps=1500, burn=500,
    )  # fmt: skip
    # 6000 oscillators over ≥ 5 relaxation times (50 fs): √(2/(6000·5)) = 0.8 %; four of these.
    # The time-step error of BAOAB is 0 for x and (ω dt)²/4 = 0.03 % for v.
    assert kinetic == pytest.approx(500.0, rel=0.033)
    assert potential == pytest.approx(500.0, rel=0.033)


def test_a_large_time_step_biases_no_position_in_a_harmonic_well():
    assert math.sqrt(40.0 * ACCELERATION) * 1.6 > 0.9  # a third of the way to instability
    _, potential = oscillators(
        Integrator(1.6, Langevin(0.05)),
        40.0, count=3000, mass=1.0, temperature=300.0, seed=1, steps=400, burn=100,
    )  # fmt: skip
    # 9000 oscillators × ≥ 10 relaxation times: 0.5 %; velocity Verlet is off by (ωdt)²/4 = 20 %
    assert potential == pytest.approx(300.0, rel=0.02)


@pytest.mark.parametrize("bath", [None, Bussi(500.0), Langevin(0.005)])
def test_the_error_of_the_conserved_energy_falls_with_the_square_of_the_step(bath):
    def error(timestep, steps):
        _, _, conserved, _ = argon(Integrator(timestep, bath), seed=5).watch(steps)
        wander = (conserved - conserved[0])[steps // 2 :]
        return np.sqrt((wander**2).mean())

    coarse, fine = error(20.0, 100), error(10.0, 200)
    assert coarse < 0.01 * 1.5 * 32 * units.kB * 30  # 1 % of the kinetic energy
    # nearer to second order than to first or third, on a logarithmic scale: within √2 of 4. The root
    # mean squares of 16 walkers with other noise scatter by up to 1/√32 = 18 %.
    assert 4 / math.sqrt(2) < coarse / fine < 4 * math.sqrt(2)


def test_a_start_is_thermal_and_stands_still_as_a_whole():
    inverse_mass = 1 / np.tile([1.0, 16.0, 64.0], 2000)
    v = maxwell_boltzmann(inverse_mass, 400.0, np.random.default_rng(3))
    np.testing.assert_allclose((v / inverse_mass[:, None]).sum(0), 0, atol=1e-9)  # round-off
    crowd = Crowd.of([inverse_mass], [400.0], conserving=True)
    (kinetic,) = crowd.kinetic_energies(v)
    # √(2/18000) = 1.05 %; four of these
    assert kinetic_temperature(kinetic, 3 * 6000 - 3) == pytest.approx(400, rel=0.042)


# ---- Bussi's bath


def test_bussi_kinetic_energies_have_the_law_of_their_own_temperature_and_forget_in_tau():
    """Without forces the bath alone acts, and its propagator is exact over any time."""
    temperatures, tau, timestep = (100.0, 300.0, 900.0), 20.0, 10.0
    run = Run(
        Integrator(timestep, Bussi(tau)),
        free,
        np.random.default_rng(0).random((5, 3)),
        mass=30.0,
        temperatures=[t for t in temperatures for _ in range(40)],
        rng=np.random.default_rng(1),
    )
    kinetic, _, conserved, _ = run.watch(1200, burn=20)
    freedom = 3 * 5 - 3
    for n, temperature in enumerate(temperatures):
        mine = kinetic[:, 40 * n : 40 * (n + 1)] / (units.kB * temperature)
        count = effective_samples(mine)
        assert count > 8000
        # the mean N_f/2 with variance N_f/2; the variance of a Γ variance is (2 + 6/(N_f/2))/n
        assert abs(mine.mean() - freedom / 2) < 4 * math.sqrt(freedom / 2 / count)
        assert mine.var() == pytest.approx(
            freedom / 2, rel=4 * math.sqrt((2 + 12 / freedom) / count)
        )
        apart = mine[::10].ravel()  # five τ: correlated by e^-5
        assert stats.kstest(apart, stats.gamma(freedom / 2).cdf).pvalue > 1e-3  # by chance 1 in 1000
        away = mine - mine.mean()
        correlation = (away[1:] * away[:-1]).mean() / mine.var()
        # 47,000 pairs of which each knows of the next: 1/√(47,000/3) = 0.8 %; four of these
        assert correlation == pytest.approx(math.exp(-timestep / tau), abs=0.032)
    # only the bath changes the energy: round-off of 1200 additions of about an eV
    assert np.ptp(conserved, axis=0).max() < 1e-11


def test_the_factor_is_the_one_of_ase():
    """A second opinion on eq. A7, with the same random numbers."""
    atoms = ARGON.copy()
    atoms.set_masses(np.full(32, 40.0))
    atoms.set_momenta(np.random.default_rng(9).standard_normal((32, 3)))

    class Draws:
        def standard_normal(self):
            return 0.8

        def standard_gamma(self, shape):
            return 1.1 * shape

    theirs = ase.md.bussi.Bussi(atoms, 2 * units.fs, 50.0, 100 * units.fs, rng=Draws())
    crowd = Crowd.of([np.full(32, 1 / 40)], [50.0], conserving=False)
    assert crowd.freedom[0] == theirs.ndof  # ASE counts the centre of mass
    kinetic = atoms.get_kinetic_energy()
    draws = np.array([0.8]), np.array([1.1 * (theirs.ndof - 1)])
    mine = bussi_factor(np.array([kinetic]), crowd, decay=math.exp(-0.02), draws=draws)
    assert mine[0] == pytest.approx(theirs.calculate_alpha(kinetic), rel=1e-13)  # round-off


def test_bussi_with_one_degree_of_freedom_is_langevin_and_turns_round():
    count, temperature, decay = 20_000, 300.0, 0.6
    crowd = Crowd(
        inverse_mass=np.ones(count),
        owner=np.arange(count),
        temperature_K=np.full(count, temperature),
        freedom=np.ones(count, dtype=int),
        held=np.zeros(count, dtype=bool),
    )
    kT = units.kB * temperature
    start = 0.7 * math.sqrt(kT)  # of √m v, in √eV
    normal = np.random.default_rng(4).standard_normal(count)
    factor = bussi_factor(
        np.full(count, 0.5 * start**2), crowd, decay=decay, draws=(normal, np.zeros(count))
    )
    law = stats.norm(start * math.sqrt(decay), math.sqrt((1 - decay) * kT))  # Ornstein–Uhlenbeck
    assert stats.kstest(start * factor, law.cdf).pvalue > 1e-3  # by chance one in a thousand
    assert (factor < 0).mean() > 0.1


def test_bussi_keeps_the_momentum_at_zero_and_fixed_atoms_in_place():
    run = argon(Integrator(5.0, Bussi(100.0)), seed=6, walkers=2)
    run.watch(200)
    momentum = run.state.velocities.reshape(2, -1, 3).sum(1) * 40.0
    assert np.abs(momentum).max() < 1e-13 * 40 * 32  # a few units in the last place per atom
    inverse_mass = np.array([0.0, 1 / 12, 1 / 12])
    crowd = Crowd.of([inverse_mass, inverse_mass[1:]], [300.0, 300.0], conserving=True)
    assert crowd.freedom.tolist() == [6, 3] and crowd.held.tolist() == [False, True]
    speed = np.array([[0.0, 0, 0], [1, 2, 3], [4, 5, 6], [1, 0, 0], [3, 0, 0]])
    rngs = [np.random.default_rng(n) for n in range(2)]
    after = Bussi(50.0)(crowd, speed, 1.0, rngs)
    assert (after[0] == 0).all()
    np.testing.assert_allclose(after[1] / after[2], speed[1] / speed[2])  # one factor for all
    assert after[3, 0] == -after[4, 0] != 0  # the drift of 2 is taken off


def test_a_walker_that_cannot_move_stays_put_in_every_bath():
    still = np.zeros(2)
    for bath in (Bussi(50.0), Langevin(0.01)):
        crowd = Crowd.of([still], [300.0], conserving=bath.conserving)
        after = bath(crowd, np.zeros((2, 3)), 1.0, [np.random.default_rng(0)])
        assert (after == 0).all() and crowd.freedom.tolist() == [0]


@pytest.mark.parametrize("bath", [Bussi(200.0), Langevin(0.01)])
def test_a_crystal_has_the_temperature_of_its_bath(bath):
    run = argon(Integrator(10.0, bath), seed=8, walkers=12)
    kinetic, *_ = run.watch(900, burn=300)
    freedom = run.crowd.freedom[0]
    count = effective_samples(kinetic)
    mean = 2 * kinetic.mean() / (freedom * units.kB)
    # a temperature of N_f degrees of freedom scatters by √(2/N_f); the bias of the velocities,
    # (ω dt)²/12 averaged over a Debye spectrum that ends at 8 THz, is below 0.5 %
    assert mean == pytest.approx(30.0, rel=4 * math.sqrt(2 / freedom / count) + 0.005)
