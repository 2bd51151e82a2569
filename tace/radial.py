"""Radial basis and cutoff envelope (TACE, arXiv:2509.14961, eqs. 6 and 7)."""

from __future__ import annotations

import math

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
