"""Irreducible Cartesian tensors in a compact orthonormal basis.

A symmetric traceless (STF) tensor of rank l has 2l+1 independent components. `stf_basis(l)` holds an
orthonormal set B_l of such tensors, so that t = B_lᵀ vec(T) stores T without loss and a contraction of
two STF tensors followed by the STF projection becomes a small constant array, `coupling(l1, l2, l3)`.
The order of components is that of real solid harmonics with y as the polar axis: rank 1 is (x, y, z).

Everything here is float64 numpy, built once and cached; the model casts it.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np

Polynomial = dict[tuple[int, int, int], float]  # exponents of (x, y, z) -> coefficient
_X: Polynomial = {(1, 0, 0): 1.0}
_Y: Polynomial = {(0, 1, 0): 1.0}
_Z: Polynomial = {(0, 0, 1): 1.0}
_R2: Polynomial = {(2, 0, 0): 1.0, (0, 2, 0): 1.0, (0, 0, 2): 1.0}


def _times(p: Polynomial, q: Polynomial, factor: float = 1.0) -> Polynomial:
    out: Polynomial = {}
    for (a, u), (b, v) in itertools.product(p.items(), q.items()):
        key = (a[0] + b[0], a[1] + b[1], a[2] + b[2])
        out[key] = out.get(key, 0.0) + factor * u * v
    return out


def _plus(p: Polynomial, q: Polynomial, factor: float = 1.0) -> Polynomial:
    out = dict(p)
    for key, value in q.items():
        out[key] = out.get(key, 0.0) + factor * value
    return out


def _azimuthal(m: int) -> tuple[Polynomial, Polynomial]:
    """Real and imaginary part of (z + i x)^m: the plane normal to the polar axis y."""
    real: Polynomial = {(0, 0, 0): 1.0}
    imaginary: Polynomial = {}
    for _ in range(m):
        real, imaginary = (
            _plus(_times(_Z, real), _times(_X, imaginary), -1.0),
            _plus(_times(_Z, imaginary), _times(_X, real)),
        )
    return real, imaginary


def _polar(l: int, m: int) -> Polynomial:  # noqa: E741
    """The part of the solid harmonic that depends on y and r², by the Legendre three-term recursion."""
    before: Polynomial = {}
    now: Polynomial = {(0, 0, 0): 1.0}
    for n in range(m + 1, l + 1):
        after = _times(_Y, now, (2 * n - 1) / (n - m))
        if before:
            after = _plus(after, _times(_R2, before), -(n + m - 1) / (n - m))
        before, now = now, after
    return now


@functools.cache
def stf_basis(l: int) -> np.ndarray:  # noqa: E741
    """B_l [3^l, 2l+1]: columns are orthonormal symmetric traceless tensors, flattened.

    By polarisation: the coefficient of x^a y^b z^c, divided by the number of index orders l!/(a!b!c!),
    goes to every slot whose indices are a times x, b times y and c times z.
    """
    basis = np.zeros((3**l, 2 * l + 1))
    slots = list(itertools.product(range(3), repeat=l))
    for column, m in enumerate(range(-l, l + 1)):
        real, imaginary = _azimuthal(abs(m))
        harmonic = _times(_polar(l, abs(m)), imaginary if m < 0 else real)
        for row, indices in enumerate(slots):
            powers = (indices.count(0), indices.count(1), indices.count(2))
            orders = math.factorial(l) / math.prod(map(math.factorial, powers))
            basis[row, column] = harmonic.get(powers, 0.0) / orders
    basis /= np.linalg.norm(basis, axis=0)
    basis.setflags(write=False)
    return basis


def angular_norm(l: int) -> float:  # noqa: E741
    """c_l = (2l−1)!!/l!: the squared norm of the edge attribute E_l = c_l·STF(r̂^{⊗l})."""
    return math.prod(range(1, 2 * l, 2)) / math.factorial(l)


def allowed(l1: int, l2: int, l3: int) -> bool:
    """Triangle rule and natural parity: l1 + l2 + l3 even."""
    return abs(l1 - l2) <= l3 <= l1 + l2 and (l1 + l2 + l3) % 2 == 0


@functools.cache
def coupling(l1: int, l2: int, l3: int) -> np.ndarray:
    """G [2l1+1, 2l2+1, 2l3+1]: contract k = (l1+l2−l3)/2 index pairs, project, without the 3^{−k/2}.

    z_{m3} = Σ G_{m1 m2 m3} x_{m1} y_{m2} is the compact form of STF(X ·_k Y).
    """
    if not allowed(l1, l2, l3):
        raise ValueError(f"no natural-parity coupling {l1} x {l2} -> {l3}")
    k = (l1 + l2 - l3) // 2
    left = stf_basis(l1).reshape(3 ** (l1 - k), 3**k, 2 * l1 + 1)
    right = stf_basis(l2).reshape(3**k, 3 ** (l2 - k), 2 * l2 + 1)
    product = np.einsum("akm,kbn->abmn", left, right).reshape(3**l3, 2 * l1 + 1, 2 * l2 + 1)
    out = np.einsum("smn,sp->mnp", product, stf_basis(l3))
    out[np.abs(out) < 1e-14] = 0.0
    out.setflags(write=False)
    return out


def scaled_coupling(l1: int, l2: int, l3: int, *, norm: str = "cartesian") -> np.ndarray:
    """G times its normaliser.

    `cartesian` multiplies by 3^{−k/2}, k contracted pairs, as the published model does; `unit` makes
    unit-variance inputs give unit-variance outputs, √((2l3+1)/‖G‖²).
    """
    g = coupling(l1, l2, l3)
    if norm == "cartesian":
        return g * 3.0 ** (-((l1 + l2 - l3) // 2) / 2.0)
    if norm == "unit":
        return g * math.sqrt((2 * l3 + 1) / float((g**2).sum()))
    raise ValueError(f"unknown normalisation '{norm}': use 'cartesian' or 'unit'")
