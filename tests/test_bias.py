"""The bias towards disagreement: slopes, bounds, and dynamics under it."""

import numpy as np
import pytest
from alchemy_policies.base import PolicyError
from alchemy_policies.bias import EnergyBias
from alchemy_policies.testing import ToyCommittee
from ase.build import bulk, molecule
from md_scripts import NPT, WATER, crystals, explore, options

from tace.prediction import CommitteePrediction

BIAS = EnergyBias(height_eV=0.5, width_eV=0.02)


def moved(atoms, seed=1, by=0.1):
    return atoms.positions + by * np.random.default_rng(seed).normal(size=atoms.positions.shape)


def test_its_force_is_the_slope_of_its_energy():
    frames = [molecule("H2O"), molecule("CH4")]  # side by side: no structure's bias may leak into another's
    session = ToyCommittee.around(frames)(frames)
    x = np.concatenate([moved(atoms) for atoms in frames])
    push = BIAS(session(x, True))
    h = 1e-5
    for row in (0, 2, 4):
        for axis in range(3):
            step = np.zeros_like(x)
            step[row, axis] = h
            up, down = (BIAS(session(x + s * step, True)).energies_eV.sum() for s in (1, -1))
            # h² times the third derivative, of order E/w², is 1e-7
            assert push.forces_eV_per_A[row, axis] == pytest.approx(-(up - down) / (2 * h), abs=1e-6)


def test_its_stress_is_the_slope_of_its_energy_by_the_strain():
    crystal = bulk("Cu", cubic=True)
    session = ToyCommittee.around([crystal])([crystal])
    x, cell, h = moved(crystal), crystal.cell.array * 1.05, 1e-5
    volume = abs(np.linalg.det(cell))
    push = BIAS(session(x, True, cells_A=cell[None], stress=True))
    slopes = []
    for voigt, (i, j) in enumerate(((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))):
        def energy(amount, i=i, j=j):
            strain = np.eye(3)
            strain[i, j] += amount / 2
            strain[j, i] += amount / 2
            said = session(x @ strain, True, cells_A=(cell @ strain)[None], stress=True)
            return BIAS(said).energies_eV[0]

        slopes.append((energy(h) - energy(-h)) / (2 * h * volume))
        assert voigt < 6
    # as for the force; the toy's volume spring is linear in the strain's determinant
    np.testing.assert_allclose(push.stresses_eV_per_A3[0], slopes, atol=1e-6)


def test_it_never_exceeds_its_height_and_is_nothing_where_all_agree():
    def said(off):
        energies = np.array([[-1.0, -1.0], [1.0, 1.0]]) * off
        return CommitteePrediction(np.array([1, 1]), energies, np.zeros((2, 3)), np.ones((2, 2, 3)))

    for off in (0.0, 0.01, 1.0, 1e3):
        push = BIAS(said(off))
        assert (push.energies_eV <= 0).all() and (push.energies_eV >= -BIAS.height_eV).all()
    assert (BIAS(said(0.0)).forces_eV_per_A == 0).all()
    assert BIAS(said(1e3)).energies_eV[0] == -BIAS.height_eV  # and no force is left of it there
    assert (BIAS(said(1e3)).forces_eV_per_A == 0).all()
    at_width = BIAS(said(BIAS.width_eV)).energies_eV[0]  # of one atom
    assert at_width == pytest.approx(-(1 - np.exp(-1)) * BIAS.height_eV)


def test_nve_dynamics_under_a_bias_keeps_its_energy_with_that_of_the_bias():
    bias = {"bias_height_eV": 0.5, "bias_width_eV": 0.02}
    explorer = options(ensemble="nve", time_fs=200.0, timestep_fs=0.25, **bias)
    found = explore(explorer, [WATER], ToyCommittee.around([WATER]))
    (walker,) = found.walkers
    assert walker.outcome == "finished"
    # velocity Verlet wavers by (ω dt)²/4 of some 0.1 eV; without the bias's own energy it is 0.1 eV off
    assert abs(walker.drift_eV_per_atom) < 1e-4


def test_walkers_go_farther_where_the_committee_disagrees_more():
    """The toy's members disagree with the distance from the start."""
    explorers = [options(time_fs=400.0, samples=0, bias_height_eV=height) for height in (0.0, 1.0)]
    plain, pushed = (explore(explorer, [WATER], ToyCommittee.around([WATER])) for explorer in explorers)
    assert pushed.walkers[0].max_expected_error_eV_per_A > 1.2 * plain.walkers[0].max_expected_error_eV_per_A


def test_a_bias_works_at_a_pressure():
    starts = crystals()
    found = explore(options(**NPT, bias_height_eV=0.5, time_fs=20.0), starts, ToyCommittee.around(starts))
    assert {w.outcome for w in found.walkers} == {"finished"}


@pytest.mark.parametrize(("height", "width", "says"), [(-1.0, 0.1, "height"), (1.0, 0.0, "width")])
def test_a_bias_that_makes_no_sense_is_refused(height, width, says):
    with pytest.raises(PolicyError, match=says):
        options(bias_height_eV=height, bias_width_eV=width)


def test_one_member_cannot_be_biased():
    alone = CommitteePrediction(np.array([1]), np.zeros((1, 1)), np.zeros((1, 3)), np.zeros((1, 1, 3)))
    with pytest.raises(PolicyError, match="two or more members"):
        BIAS(alone)
