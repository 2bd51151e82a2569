"""Radial bases of any order against arbitrary precision, and the laws that make them a basis."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.special import spherical_jn

from tace.radial import bessel, envelope, radial_basis, spherical_bessel_basis, spherical_j, zeros_of_j

ORDERS = range(1, 11)
# below, at and above the place where the series hands over to the recursion
POINTS = [0.0, 1e-30, 1e-8, 1e-3, 0.1, 0.9, 1.0, 1.1, 2.0, 4.99, 5.01, 9.9999, 10.0, 10.0001, 33.0, 80.0]


def exact_j(order: int, x: float, derivative: int = 0) -> float:
    """j_q or a derivative of it, with 60 digits."""
    with mpmath.workdps(60):

        def j(t):
            return mpmath.sqrt(mpmath.pi / (2 * t)) * mpmath.besselj(order + mpmath.mpf(1) / 2, t)

        return float(mpmath.diff(j, mpmath.mpf(x), derivative) if derivative else j(mpmath.mpf(x)))


@pytest.mark.parametrize("order", ORDERS)
def test_spherical_bessel_functions_are_right_to_the_last_digits(order):
    said = spherical_j(torch.tensor(POINTS, dtype=torch.float64), order)
    exact = [exact_j(order, x) if x else 0.0 for x in POINTS]
    # relative where the value is small, absolute near its zeros: the sine of 80 is rounded at 1e-14
    assert_allclose(said, exact, rtol=3e-14, atol=2e-16)


@pytest.mark.parametrize("order", ORDERS)
def test_three_derivatives_of_spherical_bessel_functions_are_right(order):
    x = torch.tensor([x for x in POINTS if x > 1e-6], dtype=torch.float64, requires_grad=True)
    value = spherical_j(x, order)
    for n in (1, 2, 3):
        (value,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        exact = [exact_j(order, float(at), n) for at in x.detach()]
        # each derivative of the recursion divides by x ≥ q once more: a digit or two of 16 at most
        assert_allclose(value.detach(), exact, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("order", ORDERS)
def test_derivatives_at_zero_distance_are_finite_and_those_of_the_leading_power(order):
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    value = spherical_j(x, order)
    for n in range(1, 4):
        (value,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        # x^q/(2q+1)!!: the q-th derivative is q!/(2q+1)!!; x³ carries j_1 further, with −1/5 of it
        expected = {(1, 1): 1 / 3, (2, 2): 2 / 15, (3, 3): 6 / 105, (1, 3): -1 / 5}.get((order, n), 0.0)
        assert float(value.detach()) == pytest.approx(expected, abs=1e-15)


@given(order=st.integers(1, 10), x=st.floats(1e-3, 60.0))
def test_spherical_bessel_functions_solve_their_equation(order, x):
    at = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    value = spherical_j(at, order)
    (slope,) = torch.autograd.grad(value, at, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, at)
    terms = [at**2 * curvature, 2 * at * slope, at**2 * value, -order * (order + 1) * value]
    terms = [float(term.detach()) for term in terms]
    # round-off of four terms that cancel; x² times the absolute error 1e-15 of values far out
    assert abs(sum(terms)) < 1e-12 * (max(abs(term) for term in terms) + x**2)


@pytest.mark.parametrize("order", [0, 1, 2, 5, 10])
def test_zeros_are_zeros_and_none_is_missed(order):
    zeros = zeros_of_j(order, 12)
    assert len(zeros) == 12
    assert max(abs(exact_j(order, z)) for z in zeros) < 1e-14  # slope at most 1/z, z rounded at 1e-14
    x = np.linspace(1e-3, zeros[-1] + 0.5, 20001)  # zeros are π apart or more: half a unit adds none
    signs = np.sign(spherical_jn(order, x))
    assert int((np.diff(signs[signs != 0]) != 0).sum()) == 12


@pytest.mark.parametrize("order", [0, 1, 2, 3, 6, 10])
def test_functions_of_one_order_are_orthonormal_with_weight_r_squared(order):
    x, w = np.polynomial.legendre.leggauss(200)
    r, w = 2.5 * (x + 1), 2.5 * w
    value = spherical_bessel_basis(torch.from_numpy(r)[:, None], 5.0, 8, order).numpy()
    overlap = np.einsum("r,rm,rn->mn", w * r**2, value, value)
    assert_allclose(overlap, np.eye(8), atol=1e-12)  # round-off of 200 terms; the quadrature is exact


@pytest.mark.parametrize("order", ORDERS)
def test_functions_of_every_order_vanish_at_the_cutoff(order):
    at = torch.tensor([[5.0]], dtype=torch.float64)
    # the zeros are rounded at 1e-14 relative, slopes are some 10/r_c^{5/2}
    assert spherical_bessel_basis(at, 5.0, 8, order).abs().max() < 1e-12


def test_order_zero_is_the_sine_basis_bit_by_bit():
    r = torch.linspace(0.3, 6.0, 100, dtype=torch.float32)[:, None]
    assert torch.equal(spherical_bessel_basis(r, 5.0, 8, 0), bessel(r, 5.0, 8))
    assert torch.equal(radial_basis(r, 5.0, 8, (0,)), bessel(r, 5.0, 8))


def test_orders_are_concatenated_in_their_order():
    r = torch.linspace(0.3, 5.0, 10, dtype=torch.float64)[:, None]
    both = radial_basis(r, 5.0, 4, (2, 0))
    assert both.shape == (10, 8)
    assert torch.equal(both[:, :4], spherical_bessel_basis(r, 5.0, 4, 2))
    assert torch.equal(both[:, 4:], bessel(r, 5.0, 4))


def test_single_precision_is_as_good_as_its_rounding():
    r = torch.linspace(0.05, 5.0, 2000, dtype=torch.float64)[:, None]
    for order in ORDERS:
        exact = spherical_bessel_basis(r, 5.0, 8, order)
        said = spherical_bessel_basis(r.float(), 5.0, 8, order).double()
        # arguments up to 40 are rounded at 2e-6; the recursion and the series add nothing of that size
        assert (said - exact).abs().max() < 1e-5 * exact.abs().max(), order


def test_enveloped_functions_of_every_order_survive_a_double_backward():
    r = torch.tensor(
        [[1e-9], [0.7], [3.1], [4.999999], [5.0], [10.0]], dtype=torch.float64, requires_grad=True
    )
    value = radial_basis(r, 5.0, 3, (1, 4, 10)) * envelope(r, 5.0, 5)
    (slope,) = torch.autograd.grad(value.square().sum(), r, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), r)
    assert torch.isfinite(slope).all()
    assert torch.isfinite(curvature).all()
    assert torch.equal(value[4:], torch.zeros_like(value[4:]))
    assert torch.equal(slope[5:], torch.zeros_like(slope[5:]))
    assert torch.autograd.gradgradcheck(
        lambda x: radial_basis(x, 5.0, 3, (1, 4, 10)) * envelope(x, 5.0, 5),
        (torch.tensor([[0.2], [0.7], [3.1], [4.2]], dtype=torch.float64, requires_grad=True),),
    )
