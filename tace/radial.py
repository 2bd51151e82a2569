"""Radial basis and cutoff envelope (TACE, arXiv:2509.14961, eqs. 6 and 7; spec §2).

R_{q,n}(r) = N_{q,n} j_q(z_{q,n} r/r_c): spherical Bessel functions of order q that vanish at the cutoff,
orthonormal with weight r² on [0, r_c]. The order 0 is the sine of `bessel`.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from itertools import pairwise

import torch
from torch import Tensor


def envelope(r: Tensor, cutoff: float, p: int) -> Tensor:
    """Polynomial that falls from 1 at r = 0 to 0 at the cutoff; value and two derivatives vanish there.

    f(u) = 1 − (p+1)(p+2)/2 u^p + p(p+2) u^{p+1} − p(p+1)/2 u^{p+2}, u = r/cutoff.
    """
    u = (r / cutoff).clamp(max=1.0)
    tail = -(p + 1) * (p + 2) / 2 + u * (p * (p + 2) - u * (p * (p + 1) / 2))
    return 1.0 + u**p * tail


def bessel(r: Tensor, cutoff: float, n: int) -> Tensor:
    """[..., 1] → [..., n]: √(2/r_c)·sin(kπr/r_c)/r for k = 1..n, in the dtype of r.

    The zeroth-order spherical Bessel functions, orthonormal with weight r² on [0, r_c].
    """
    k = torch.arange(1, n + 1, dtype=r.dtype, device=r.device) * (math.pi / cutoff)
    return math.sqrt(2.0 / cutoff) * torch.sin(r * k) / r


@lru_cache
def typical_size(cutoff: float, n: int, p: int, *, orders: tuple[int, ...] = (0,)) -> float:
    """Root mean square of R(r)·f(r) over neighbours of uniform density; weights start from it."""
    u = (torch.arange(400, dtype=torch.float64) + 0.5) / 400.0
    r = u.unsqueeze(1) * cutoff
    values = radial_basis(r, cutoff, n, orders=orders) * envelope(r, cutoff, p)
    return float((3.0 * u.square() * values.square().mean(1)).mean().sqrt())


def radial_basis(r: Tensor, cutoff: float, n: int, orders: tuple[int, ...]) -> Tensor:
    """[..., 1] → [..., n·len(orders)]: the first n functions of every order, order after order."""
    parts = [spherical_bessel_basis(r, cutoff, n, order) for order in orders]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def spherical_bessel_basis(r: Tensor, cutoff: float, n: int, order: int) -> Tensor:
    """[..., 1] → [..., n]: √(2/r_c³)/|j_{q+1}(z_k)|·j_q(z_k r/r_c), z_k the k-th zero of j_q, q = order."""
    if order == 0:
        return bessel(r, cutoff, n)
    zeros, slopes = _zeros_and_slopes(order, n)
    k = torch.tensor(zeros, dtype=r.dtype, device=r.device) / cutoff
    scale = math.sqrt(2.0 / cutoff**3) / torch.tensor(slopes, dtype=r.dtype, device=r.device)
    return scale * spherical_j(r * k, order)


def spherical_j(x: Tensor, order: int) -> Tensor:
    """j_q(x) of order q ≥ 1 for x ≥ 0, of any shape, with derivatives of any order.

    The recursion j_{q+1} = (2q+1)/x·j_q − j_{q−1} is stable from x = q on and loses everything near zero;
    there the power series is summed instead. Each branch sees only arguments that it can stand: a NaN in the
    branch that is not taken would still reach the gradient.
    """
    near = x < order
    return torch.where(
        near,
        _series(torch.where(near, x, 0.0), order),
        _recursion(torch.where(near, float(order), x), order),
    )


def _series(x: Tensor, order: int) -> Tensor:
    """x^q/(2q+1)!!·Σ_k (−x²/2)^k / (k!·(2q+3)(2q+5)...(2q+2k+1)) for x ≤ q, by Horner's rule."""
    half, total = -0.5 * x.square(), torch.ones_like(x)
    for k in range(_terms(order), 0, -1):
        total = 1.0 + half / (k * (2 * order + 2 * k + 1)) * total
    return x**order / math.prod(range(1, 2 * order + 2, 2)) * total


def _recursion(x: Tensor, order: int) -> Tensor:
    below, here = torch.sin(x) / x, torch.sin(x) / x.square() - torch.cos(x) / x
    for q in range(1, order):
        below, here = here, (2 * q + 1) / x * here - below
    return here


@lru_cache
def _terms(order: int) -> int:
    """Terms of the series until they fall below 1e-20 at x = q."""
    k, term = 0, 1.0
    while term > 1e-20:
        k += 1
        term *= 0.5 * order**2 / (k * (2 * order + 2 * k + 1))
    return k


@lru_cache
def _zeros_and_slopes(order: int, n: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The first n positive zeros z of j_q and |j_{q+1}(z)|."""
    from scipy.special import spherical_jn

    zeros = zeros_of_j(order, n)
    return zeros, tuple(abs(float(spherical_jn(order + 1, z))) for z in zeros)


def zeros_of_j(order: int, n: int) -> tuple[float, ...]:
    """The first n positive zeros of j_q: between two neighbouring zeros of j_{q−1} lies one of j_q."""
    if order == 0:
        return tuple(math.pi * k for k in range(1, n + 1))
    # here, because few models have higher orders and scipy.optimize costs a sixth of the time of the import
    from scipy.optimize import brentq
    from scipy.special import spherical_jn

    brackets = pairwise(zeros_of_j(order - 1, n + 1))
    return tuple(brentq(partial(spherical_jn, order), a, b, xtol=1e-13, rtol=1e-15) for a, b in brackets)
