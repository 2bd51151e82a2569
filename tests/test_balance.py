"""Weights of quantities in the loss: none is heard less for the unit it comes in."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from ase import Atoms
from model_helpers import build

from tace.balance import balanced_weights
from tace.config import HeadConfig, InputConfig
from tace.data import Labelled, Sample, make_samples
from tace.settings import TrainSettings

HEADS = (HeadConfig("dipole", symmetry="i"), HeadConfig("shielding", scope="atom", symmetry="ij"))
SETTINGS = TrainSettings(forces_weight=10.0)


def water(rng: np.random.Generator) -> Atoms:
    positions = np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    return Atoms("OHH", positions=positions + 0.05 * rng.normal(size=(3, 3)))


def samples(rng: np.random.Generator, size: float, *, forces: bool = True) -> list[Sample]:
    """Sixty waters whose dipoles per atom and shieldings spread by `size`, far away from zero."""
    offset = np.array([30.0, 7.0, 7.0])[:, None, None] * np.ones((3, 3, 3))
    frames = [
        Labelled(
            water(rng),
            "pbe",
            forces_eV_per_A=2.0 * rng.normal(size=(3, 3)) if forces else None,
            labels={
                "dipole": 100.0 + 3.0 * size * rng.normal(size=3),
                "shielding": offset + size * rng.normal(size=(3, 3, 3)),
            },
        )
        for _ in range(60)
    ]
    model = build(heads=HEADS)
    return make_samples(frames, model.config, ("dipole", "shielding"))


@pytest.mark.parametrize("size", [1e-3, 1.0, 50.0])
def test_every_number_counts_as_a_component_of_a_force_whatever_its_unit(rng, size):
    found = balanced_weights(samples(rng, size), SETTINGS)
    # 3 numbers of a dipole beside 9 of forces; 27 of shieldings, which may not drown the forces;
    # 180 and 540 numbers tell a variance to 11 %, forces to 6 %
    shares = {"dipole": 1.0 / 3.0, "shielding": 1.0}
    assert set(found) == set(shares)
    for name, weight in found.items():
        assert weight * size**2 == pytest.approx(10.0 * 2.0**2 * shares[name], rel=0.4)


def test_without_forces_every_quantity_weighs_one_spread(rng):
    for weight in balanced_weights(samples(rng, 0.1, forces=False), SETTINGS).values():
        assert weight * 0.1**2 == pytest.approx(1.0, rel=0.4)


def test_weights_that_are_given_are_not_replaced(rng):
    given = dataclasses.replace(SETTINGS, label_weights={"dipole": 3.0})
    assert set(balanced_weights(samples(rng, 1.0), given)) == {"shielding"}


def test_labels_without_spread_count_by_their_size(rng):
    one = Labelled(water(rng), "pbe", labels={"dipole": np.array([0.6, 0.0, 0.0])})
    model = build(heads=HEADS[:1])
    found = balanced_weights(make_samples([one, one], model.config, ("dipole",)), SETTINGS)
    assert found["dipole"] == pytest.approx(1.0 / (0.2**2 / 3.0), rel=0.05)  # two digits are kept


def test_polarisations_spread_as_their_nearest_images_do(rng):
    cell = np.diag([3.0, 4.0, 5.0])
    frames = [
        Labelled(
            Atoms("OHH", water(rng).positions, cell=cell, pbc=True),
            "pbe",
            labels={"polarization": 0.03 * rng.normal(size=3) + rng.integers(-2, 3, 3) @ cell},
        )
        for _ in range(60)
    ]
    model = build(inputs=(InputConfig("electric_field"),))
    found = balanced_weights(make_samples(frames, model.config, ("polarization",)), SETTINGS)
    assert found["polarization"] * 0.01**2 == pytest.approx(1.0, rel=0.4)  # per atom


def test_hessians_count_by_their_size(rng):
    frames = [Labelled(water(rng), "pbe", labels={"hessian": np.full((9, 9), 5.0)})]
    model = build()
    assert balanced_weights(make_samples(frames, model.config, ("hessian",)), SETTINGS) == {"hessian": 0.04}
