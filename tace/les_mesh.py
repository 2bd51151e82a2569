"""The reciprocal sum of large crystals on a mesh: smooth particle-mesh Ewald (spec §11.4).

Essmann et al., J. Chem. Phys. 103, 8577 (1995), with the very kernel and cutoff of the direct sum, so that
the two agree to the error of the interpolation. Plain torch: a mesh library would bring its own uncut kernel,
and with it another energy. The forces of a mesh leave a net force of that same error.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from . import les_sums
from .config import LesConfig
from .les_sums import Sources, grid_sizes, kernel

ORDER = 8  # of the B-splines: the energy has six continuous derivatives
DENSITY = 4.0  # mesh points per shortest wave 2π/k_c; the error falls as (1/(DENSITY − 1))^ORDER


def mesh_sum(sources: Sources, config: LesConfig) -> Tensor:
    """(1/2V) Σ_k kernel(k) |S(k)|² of one structure (G = 1), self term included: [1]."""
    charges, positions, cell = sources.charges[0], sources.positions[0], sources.cells[0]
    limits = grid_sizes(cell.detach().norm(dim=1), config)
    shape = [_fast_size(math.ceil(DENSITY * n) + 1) for n in limits]
    inverse = torch.linalg.inv(cell)
    fractional = positions @ inverse
    n1, n2, n3 = limits
    signed = [torch.arange(-n, n + 1, device=cell.device) for n in (n1, n2)]
    waves = [*signed, torch.arange(n3 + 1, device=cell.device)]
    k = [
        2.0 * math.pi * n.to(cell.dtype).unsqueeze(1) * inverse[:, a] for a, n in enumerate(waves)
    ]
    k2 = (k[0][:, None, None] + k[1][None, :, None] + k[2][None, None, :]).square().sum(3)
    origin = torch.zeros_like(k2, dtype=torch.bool)
    origin[n1, n2, 0] = True
    moduli = [_moduli(size, str(cell.device))[n % size] for size, n in zip(shape, waves, strict=True)]
    weights = kernel(k2, config, origin) * moduli[0][:, None, None] * moduli[1][:, None] * moduli[2]
    weights = weights * torch.where(waves[2] > 0, 2.0, 1.0)
    power = torch.zeros_like(k2)
    for channel in charges.unbind(1):
        spectrum = torch.fft.rfftn(_spread(channel, fractional, shape))
        spectrum = spectrum[:, :, : n3 + 1].index_select(0, waves[0] % shape[0])
        spectrum = spectrum.index_select(1, waves[1] % shape[1])
        power = power + spectrum.real.square() + spectrum.imag.square()
    return (0.5 * (weights * power).sum() / torch.linalg.det(cell).abs()).unsqueeze(0)


def _spread(charges: Tensor, fractional: Tensor, shape: list[int]) -> Tensor:
    """Charges [N] on the mesh, by B-splines; in chunks of atoms to bound memory."""
    step = max(1, les_sums.CHUNK // ORDER**3)
    mesh = charges.new_zeros(math.prod(shape))
    for q, s in zip(charges.split(step), fractional.split(step), strict=True):
        if len(charges) <= step:
            mesh = _deposit(mesh, q, s, shape)
        else:
            mesh = mesh + checkpoint(_deposit, torch.zeros_like(mesh), q, s, shape, use_reentrant=False)
    return mesh.view(shape)


def _deposit(mesh: Tensor, charges: Tensor, fractional: Tensor, shape: list[int]) -> Tensor:
    size = torch.tensor(shape, dtype=fractional.dtype, device=fractional.device)
    scaled = fractional * size
    lowest = scaled.detach().floor()
    x, y, z = _splines(scaled - lowest).unbind(1)
    nodes = lowest.long().unsqueeze(2) - torch.arange(ORDER, device=mesh.device)
    a, b, c = (nodes % size.long().unsqueeze(1)).unbind(1)
    index = (a[:, :, None, None] * shape[1] + b[:, None, :, None]) * shape[2] + c[:, None, None, :]
    plane = (charges.unsqueeze(1) * x).unsqueeze(2) * y.unsqueeze(1)
    return mesh.index_add(0, index.flatten(), (plane.unsqueeze(3) * z[:, None, None, :]).flatten())


def _splines(w: Tensor) -> Tensor:
    """M_p(w + j) of the cardinal B-spline, j = 0 … p−1, for w in [0,1): [..., p] (Essmann eq. 4.1)."""
    values = [w, 1.0 - w]  # order 2: M(w) and M(w+1)
    for p in range(3, ORDER + 1):
        ends = [torch.zeros_like(w), *values, torch.zeros_like(w)]
        values = [((w + j) * ends[j + 1] + (p - w - j) * ends[j]) / (p - 1) for j in range(p)]
    return torch.stack(values, -1)


@lru_cache(maxsize=16)
def _moduli(size: int, device: str) -> Tensor:
    """|b(m)|² of the interpolation, m = 0 … size−1 (Essmann eq. 4.4)."""
    with torch.inference_mode(False):
        knots = _splines(torch.zeros((), dtype=torch.float64))[1:]  # M_p(1) … M_p(p−1)
        angle = torch.outer(torch.arange(size), torch.arange(ORDER - 1)) * (2.0 * math.pi / size)
        real, imag = torch.cos(angle).double() @ knots, torch.sin(angle).double() @ knots
        return (1.0 / (real**2 + imag**2)).to(device)


def _fast_size(least: int) -> int:
    """The next integer without prime factors above 5."""
    size = least
    while True:
        rest = size
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return size
        size += 1
