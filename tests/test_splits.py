"""Leak-proof test sets and the fingerprints that find near-duplicates."""

from __future__ import annotations

import numpy as np
import pytest
from alchemy_policies.base import PolicyError
from alchemy_policies.integrators import maxwell_boltzmann
from alchemy_policies.splits import (
    NEAR_DUPLICATE,
    fingerprints,
    group_by_composition,
    joined_groups,
    leak_proof_split,
)
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.md.verlet import VelocityVerlet
from ase.units import fs
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=80, deadline=None)
@given(
    groups=st.lists(st.integers(0, 6), min_size=2, max_size=40),
    fraction=st.floats(0.05, 0.9),
    seed=st.integers(0, 99),
)
def test_no_group_and_no_near_duplicate_is_on_both_sides(groups, fraction, seed):
    rng = np.random.default_rng(seed)
    features = rng.integers(0, 12, (len(groups), 1)).astype(float)
    try:
        test = leak_proof_split(groups, fraction=fraction, rng=rng, features=features, radius=0.5)
    except PolicyError:
        assert len(set(joined_groups(groups, features=features, radius=0.5).tolist())) == 1
        return
    assert 0 < test.sum() < len(groups)
    labels = np.array(groups)
    assert not set(labels[test]) & set(labels[~test])
    gaps = np.abs(features[test] - features[~test].T)
    assert (gaps > 0.5).all()


def test_about_the_share_asked_for_is_held_out_when_groups_are_small():
    groups = np.arange(400) // 2
    for seed in range(5):
        test = leak_proof_split(groups.tolist(), fraction=0.1, rng=np.random.default_rng(seed))
        assert test.sum() == 40  # groups of two hit it exactly
    again = leak_proof_split(groups.tolist(), fraction=0.1, rng=np.random.default_rng(4))
    assert (again == test).all()


def test_large_groups_are_not_cut():
    groups = ["a"] * 50 + ["b"] * 30 + ["c"] * 20
    test = leak_proof_split(groups, fraction=0.05, rng=np.random.default_rng(0))
    assert test.sum() == 20  # the smallest that there is


def test_what_cannot_be_divided_says_why():
    with pytest.raises(PolicyError, match="one label"):
        leak_proof_split(["a"] * 5, fraction=0.2, rng=np.random.default_rng(0))
    with pytest.raises(PolicyError, match="near-duplicates join its 2 labels"):
        leak_proof_split(
            ["a", "b"], fraction=0.2, rng=np.random.default_rng(0), features=np.zeros((2, 1)), radius=1
        )
    with pytest.raises(PolicyError, match="between 0 and 1"):
        leak_proof_split(["a", "b"], fraction=1.0, rng=np.random.default_rng(0))


def test_fingerprints_do_not_see_rotation_order_or_the_size_of_the_cell_and_see_what_moved():
    water = molecule("H2O")
    turned = water.copy()
    turned.rotate(77, (1, 2, 3), center="COP")
    turned = turned[[2, 0, 1]]
    stretched = water.copy()
    stretched.set_distance(0, 1, 1.2, fix=0)
    crystal = bulk("Cu", cubic=True)
    rows = fingerprints([water, turned, stretched, crystal, crystal.repeat((2, 1, 1))])
    assert np.linalg.norm(rows[0] - rows[1]) < 1e-12
    assert np.linalg.norm(rows[3] - rows[4]) < 1e-12
    assert np.linalg.norm(rows[0] - rows[2]) > 5 * NEAR_DUPLICATE


def test_frames_of_one_trajectory_are_nearer_than_the_radius_and_thermal_ones_are_not():
    """What the constant stands on: copper at 600 K, 2 fs apart and independent."""
    frames = []
    for seed in range(3):
        atoms = bulk("Cu", cubic=True).repeat(2)
        atoms.calc = EMT()
        rng = np.random.default_rng(seed)
        atoms.set_velocities(maxwell_boltzmann(1 / atoms.get_masses(), 1200, rng) / fs)
        dynamics = VelocityVerlet(atoms, 2 * fs)
        dynamics.run(100)
        frames.append(atoms.copy())
        dynamics.run(1)
        frames.append(atoms.copy())
    rows = fingerprints(frames)
    twins = np.linalg.norm(rows[::2] - rows[1::2], axis=1)
    strangers = [np.linalg.norm(rows[a] - rows[b]) for a in (0, 2, 4) for b in (0, 2, 4) if a < b]
    assert twins.max() < NEAR_DUPLICATE < min(strangers)


def test_supercells_are_of_one_composition():
    cell = bulk("NaCl", "rocksalt", a=5.6)
    assert len(set(group_by_composition([cell, cell.repeat(2), molecule("H2O")]))) == 2
