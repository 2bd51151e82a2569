"""Laws of the compact Cartesian tensors, against explicit tensors of rank ≤ 5."""

# ruff: noqa: E741  (l is the rank of a tensor)
from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from cartesian_twin import contract, projector, subtract_traces
from numpy.testing import assert_allclose
from torch import from_numpy

from tace.ict import allowed, angular_norm, coupling, scaled_coupling, stf_basis

EXACT = 1e-12  # sums of at most 3^5 products of numbers below one, in float64
RANKS = range(6)
TRIADS = [t for t in itertools.product(range(4), repeat=3) if allowed(*t)]


def wigner(l: int, q: np.ndarray) -> np.ndarray:
    """[2l+1, 2l+1]: how q acts on compact components, through the Cartesian tensor."""
    tensor = stf_basis(l).reshape(*[3] * l, 2 * l + 1)
    for axis in range(l):
        tensor = np.moveaxis(np.tensordot(q, tensor, (1, axis)), 0, axis)
    return stf_basis(l).T @ tensor.reshape(3**l, 2 * l + 1)


def edge_attribute(l: int, unit: np.ndarray) -> np.ndarray:
    """c_l·B_lᵀ vec(r̂ ⊗ … ⊗ r̂)."""
    power = np.ones(1)
    for _ in range(l):
        power = np.kron(power, unit)
    return angular_norm(l) * stf_basis(l).T @ power


@pytest.mark.parametrize("l", RANKS)
def test_basis_is_orthonormal_symmetric_and_traceless(l):
    b = stf_basis(l)
    assert b.shape == (3**l, 2 * l + 1)
    assert_allclose(b.T @ b, np.eye(2 * l + 1), atol=EXACT)
    tensor = b.reshape(*[3] * l, 2 * l + 1)
    for i, j in itertools.combinations(range(l), 2):
        assert_allclose(np.swapaxes(tensor, i, j), tensor, atol=EXACT)
        assert_allclose(np.trace(tensor, axis1=i, axis2=j), 0.0, atol=EXACT)


@pytest.mark.parametrize("l", RANKS)
def test_basis_spans_what_trace_subtraction_projects_on(l):
    p = projector(l)
    assert_allclose(p, stf_basis(l) @ stf_basis(l).T, atol=EXACT)
    assert_allclose(p @ p, p, atol=EXACT)
    assert_allclose(np.trace(p), 2 * l + 1, atol=EXACT)


def test_trace_subtraction_of_a_matrix_is_the_textbook_one(rng):
    t = rng.standard_normal((3, 3))
    assert_allclose(subtract_traces(t), (t + t.T) / 2 - np.trace(t) / 3 * np.eye(3), atol=EXACT)


def test_components_of_rank_one_are_x_y_z():
    assert_allclose(stf_basis(1), np.eye(3), atol=EXACT)


@pytest.mark.parametrize(
    ("l", "golden"),
    [
        (2, [0.47140452, 0.47140452, 0.20412415, 0.94280904, 0.35355339]),
        (
            3,
            [0.50925926, 0.90721842, 0.39447053, -0.40992488, 0.78894105, 0.68041382, 0.09259259],
        ),
    ],
)
def test_edge_attributes_have_the_golden_components(l, golden):
    value = edge_attribute(l, np.array([1.0, 2.0, 2.0]) / 3.0)
    assert_allclose(value, golden, atol=5e-9)  # printed to eight decimals
    assert_allclose(value @ value, {2: 1.5, 3: 2.5}[l], atol=EXACT)


@pytest.mark.parametrize("l", RANKS)
def test_edge_attributes_have_norm_c_l_and_contract_to_the_direction(l, rng):
    unit = rng.standard_normal(3)
    unit /= np.linalg.norm(unit)
    e = edge_attribute(l, unit)
    assert_allclose(e @ e, angular_norm(l), atol=EXACT)
    assert_allclose(angular_norm(l), [1, 1, 1.5, 2.5, 4.375, 7.875][l], atol=EXACT)
    tensor = (stf_basis(l) @ e).reshape([3] * l)
    for _ in range(l - 1):
        tensor = tensor @ unit
    if l:
        assert_allclose(tensor, unit, atol=EXACT)


@pytest.mark.parametrize("improper", [False, True])
@pytest.mark.parametrize("l", RANKS)
def test_rotations_act_orthogonally_and_commute_with_edge_attributes(l, improper, rotation, rng):
    q = rotation(improper)
    d = wigner(l, q)
    unit = rng.standard_normal(3)
    unit /= np.linalg.norm(unit)
    assert_allclose(d.T @ d, np.eye(2 * l + 1), atol=EXACT)
    assert_allclose(edge_attribute(l, q @ unit), d @ edge_attribute(l, unit), atol=EXACT)
    p = rotation(False)
    assert_allclose(wigner(l, p @ q), wigner(l, p) @ d, atol=EXACT)


@pytest.mark.parametrize("improper", [False, True])
@pytest.mark.parametrize("triad", TRIADS)
def test_coupling_commutes_with_rotations_and_mirrors(triad, improper, rotation, rng):
    q = rotation(improper)
    x, y = (rng.standard_normal(2 * l + 1) for l in triad[:2])
    g = coupling(*triad)
    d1, d2, d3 = (wigner(l, q) for l in triad)
    turned = np.einsum("abm,a,b->m", g, d1 @ x, d2 @ y)
    assert_allclose(turned, d3 @ np.einsum("abm,a,b->m", g, x, y), atol=EXACT)


@pytest.mark.parametrize("norm", ["cartesian", "unit"])
@pytest.mark.parametrize("triad", [*TRIADS, (4, 1, 5), (4, 3, 3)])
def test_coupling_is_contraction_of_full_tensors_and_trace_subtraction(triad, norm, rng):
    x, y = (rng.standard_normal(2 * l + 1) for l in triad[:2])
    full = [
        from_numpy((stf_basis(l) @ v).reshape(1, 1, *[3] * l))
        for l, v in zip(triad[:2], (x, y), strict=True)
    ]
    expected = contract(*full, triad, norm).numpy().reshape(-1)
    compact = np.einsum("abm,a,b->m", scaled_coupling(*triad, norm=norm), x, y)
    assert_allclose(stf_basis(triad[2]) @ compact, expected, atol=EXACT)


@pytest.mark.parametrize("triad", TRIADS)
def test_coupling_is_an_isometry_up_to_the_golden_norm(triad):
    g = coupling(*triad)
    square = {(2, 2, 2): 35 / 12, (2, 3, 3): 14 / 5}
    stretched = 2 * max(triad) == sum(triad)
    norm = 2 * max(triad) + 1 if stretched else square[tuple(sorted(triad))]
    assert_allclose((g**2).sum(), norm, atol=EXACT)
    gram = np.einsum("abm,abn->mn", g, g)
    assert_allclose(gram, norm / (2 * triad[2] + 1) * np.eye(2 * triad[2] + 1), atol=EXACT)


@pytest.mark.parametrize(
    ("triad", "count"), [((1, 1, 2), 11), ((1, 2, 3), 21), ((2, 2, 2), 25), ((2, 3, 3), 41)]
)
def test_coupling_has_the_golden_number_of_non_zeros(triad, count):
    assert np.count_nonzero(coupling(*triad)) == count


def test_order_of_the_factors_does_not_matter():
    for l1, l2, l3 in TRIADS:
        swapped = coupling(l2, l1, l3).transpose(1, 0, 2)
        assert_allclose(coupling(l1, l2, l3), swapped, atol=EXACT)


def test_scale_is_a_power_of_three_or_unit_variance():
    assert_allclose(scaled_coupling(2, 2, 2), coupling(2, 2, 2) / math.sqrt(3.0), atol=EXACT)
    assert_allclose(scaled_coupling(3, 3, 2), coupling(3, 3, 2) / 3.0, atol=EXACT)
    for triad in TRIADS:
        assert_allclose((scaled_coupling(*triad, norm="unit") ** 2).sum(), 2 * triad[2] + 1)


def test_odd_and_non_triangular_triads_are_refused():
    for triad in ((1, 1, 1), (0, 1, 2), (2, 3, 4)):
        with pytest.raises(ValueError, match="natural-parity"):
            coupling(*triad)
    with pytest.raises(ValueError, match="'cartesian' or 'unit'"):
        scaled_coupling(1, 1, 0, norm="component")


def test_cached_arrays_cannot_be_written():
    for array in (stf_basis(2), coupling(1, 1, 2)):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0
