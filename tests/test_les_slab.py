"""Latent charges of slabs against the two-dimensional Ewald sum and sums over images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from les_reference import K_E, energy, ewald_2d, images, pair_sum, place, slopes
from numpy.testing import assert_allclose
from scipy.special import erf

from tace import les_sums
from tace.config import LesConfig
from tace.les import les_energies

PLANES = {
    "square": np.array([[6.0, 0, 0], [0, 6.0, 0]]),
    "oblique": np.array([[5.0, 0.3, -0.4], [2.0, 6.5, 0.5]]),  # neither along axes nor in their plane
    "narrow": np.array([[2.2, 0, 0], [0.4, 9.0, 0]]),
    "skewed": np.array([[12.5, 6.0, 0], [18.5, 12.0, 0]]),  # reduces to (6.5, 0), (0.5, −6)
}
CHARGES = {
    "neutral": np.array([0.9, -0.4, 0.3, -1.1, 0.3]),
    "charged": np.array([0.9, -0.4, 0.6, 0.4, 0.3]),
}


def slab(plane: np.ndarray, *, thickness: float = 4.0, third: object = None, axis: int = 2) -> Atoms:
    """Five atoms, with a dipole along the normal for both choices of charges."""
    inside = np.array([[0.1, 0.2], [0.5, 0.9], [0.8, 0.3], [0.3, 0.6], [0.95, 0.55]]) @ plane
    normal = np.cross(*plane) / np.linalg.norm(np.cross(*plane))
    heights = np.array([0.0, 0.3, 0.55, 1.0, 0.8]) * thickness
    third = np.zeros(3) if third is None else np.asarray(third)
    cell = np.roll(np.vstack([plane, third]), axis - 2, axis=0)
    positions = inside + heights[:, None] * normal
    return Atoms("OHOHH", positions=positions, cell=cell, pbc=np.roll([True, True, False], axis - 2))


@pytest.mark.parametrize("sigma", [1.0, 1.6])
@pytest.mark.parametrize("total", CHARGES)
@pytest.mark.parametrize("plane", PLANES)
def test_a_slab_has_the_energy_of_the_two_dimensional_ewald_sum(plane, total, sigma):
    atoms, q = slab(PLANES[plane]), CHARGES[total]
    expected = ewald_2d(atoms.positions, q, PLANES[plane], sigma=sigma)
    # the vacuum leaves 1e-7 of the interaction of images, some 10 eV
    assert_allclose(energy(atoms, q, LesConfig(sigma_A=sigma, dl_A=0.9 * sigma)), expected, atol=3e-6)
    assert_allclose(energy(atoms, q, LesConfig(sigma_A=sigma, dl_A=1.2 * sigma)), expected, atol=1e-4)


def test_a_slab_without_dipole_is_the_sum_over_its_images():
    plane = PLANES["oblique"]
    normal = np.cross(*plane) / np.linalg.norm(np.cross(*plane))
    corner = np.array([0.3, 0.4]) @ plane
    positions = np.array([corner - 1.1 * normal, corner, corner + 1.1 * normal])
    q = np.array([0.5, -1.0, 0.5])
    atoms = Atoms("HOH", positions=positions, cell=[*plane, [0, 0, 0]], pbc=[True, True, False])
    brute = pair_sum(positions, q, images(plane, 300.0), lambda r: K_E * erf(r / math.sqrt(2)) / r)
    # quadrupoles meet as R⁻⁵ in a plane: what is beyond 300 Å is below 1e-8
    assert_allclose(energy(atoms, q, LesConfig(dl_A=0.8)), brute, atol=2e-6)


def test_two_dipole_layers_do_not_feel_each_other():
    """Neutral layers of uniform dipole have no field outside beyond e^(−Gd), unlike in a 3D sum."""
    plane = PLANES["square"]
    single = slab(plane, thickness=2.0)
    q = CHARGES["neutral"]
    values = []
    for distance in (16.0, 24.0):
        above = single.copy()
        above.positions[:, 2] += distance
        values.append(energy(single + above, np.tile(q, 2), LesConfig(dl_A=0.9)))
    # e^(−2π·14/6) = 4e-7 of some eV
    assert_allclose(values, 2 * energy(single, q, LesConfig(dl_A=0.9)), atol=1e-5)


@pytest.mark.parametrize("total", CHARGES)
def test_the_height_of_a_slab_does_not_matter(total):
    atoms, q = slab(PLANES["oblique"]), CHARGES[total]
    expected = energy(atoms, q)
    for shift in (0.37, -11.0, 4000.0):
        moved = atoms.copy()
        moved.positions += shift * np.cross(*PLANES["oblique"]) / 30.0
        assert_allclose(energy(moved, q), expected, atol=1e-9)  # heights of 4000 Å round at 1e-12 Å


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("third", [[0, 0, 0], [0, 0, 9.0], [0, 0, 300.0], [3.0, -2.0, 8.0], [0, 0, -7.0]])
@pytest.mark.parametrize("total", CHARGES)
def test_what_stands_in_the_open_vector_does_not_matter(total, third, axis):
    q = CHARGES[total]
    given = slab(PLANES["square"], third=third, axis=axis)
    assert_allclose(energy(given, q), energy(slab(PLANES["square"]), q), rtol=1e-11)


def test_a_growing_slab_has_no_steps_beyond_the_tolerance():
    """The vacuum grows in steps with the thickness; against the exact sum no step is seen."""
    plane, q = PLANES["square"], CHARGES["charged"]
    for thickness in np.linspace(3.0, 12.0, 13):
        atoms = slab(plane, thickness=thickness)
        expected = ewald_2d(atoms.positions, q, plane, sigma=1.0)
        assert_allclose(energy(atoms, q, LesConfig(dl_A=0.9)), expected, atol=1e-5)


@pytest.mark.parametrize("total", CHARGES)
def test_forces_on_a_slab_are_differences_of_the_exact_sum(total):
    plane, q = PLANES["oblique"], CHARGES[total]
    batch, x, h = place(slab(plane))
    order = torch.argsort(batch.original)
    value = les_energies(torch.from_numpy(q)[order, None], x, h, batch, LesConfig(dl_A=0.9))
    (slope,) = torch.autograd.grad(value.sum(), x)
    atoms = slab(plane)
    assert_allclose(slope[batch.original], slopes(atoms, q, LesConfig(dl_A=0.9)), atol=1e-6)
    one = np.zeros((5, 3))
    one[3] = 1e-4, 2e-4, -2e-4
    ends = [ewald_2d(atoms.positions + s * one, q, plane, sigma=1.0) for s in (1, -1)]
    assert_allclose((slope[batch.original].numpy() * one).sum(), (ends[0] - ends[1]) / 2, atol=1e-9)


def test_the_period_of_a_slab_is_long_enough_and_piecewise_constant():
    plane = torch.from_numpy(np.stack([PLANES["square"], PLANES["skewed"]]))
    heights = torch.tensor([4.0, 4.0], dtype=torch.float64)
    one, two = les_sums._period(plane, heights, LesConfig()).tolist()
    assert one >= 4.0 + 6.0 * math.log(1e7) / (2 * math.pi)
    # the skewed cell reduces to 6.0 × 6.5 Å, whose shortest wave is 7 % longer
    assert_allclose(two, one, rtol=les_sums.VACUUM_STEP**1.01 - 1)
    assert les_sums._period(plane, heights + 1e-3, LesConfig())[0] in (one, one * les_sums.VACUUM_STEP)


def test_a_dispersion_slab_is_the_sum_over_its_images_up_to_its_vacuum():
    plane, q = PLANES["oblique"], np.abs(CHARGES["neutral"])
    atoms = slab(plane)

    def damped(r: np.ndarray) -> np.ndarray:
        u = r * r / 2
        return -(1 - np.exp(-u) * (1 + u + u * u / 2)) / r**6

    brute = pair_sum(atoms.positions, q, images(plane, 150.0), damped)
    area = np.linalg.norm(np.cross(*plane))
    # images at d ≥ 40 Å: two layers of ½ (Σc)² π/(2 d⁴) per area, the next ones 16 times less
    residual = 1.1 * q.sum() ** 2 * math.pi / (2 * les_sums.DISPERSION_GAP**4) / area
    value = energy(atoms, q, LesConfig(form="dispersion", dl_A=0.8))
    assert abs(value - brute) < residual
    assert residual < 1e-4 * abs(brute)
