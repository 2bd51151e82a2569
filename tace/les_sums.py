"""Sums over Gaussian charges: pairs of a molecule, reciprocal lattice of a crystal, slab (spec §11.2–11.4).

Two forms share everything but their kernels. With u = r²/2σ² the energy of two unit charges is

    coulomb      k_e erf(√u)/r                          FT  4π k_e exp(−σ²k²/2)/k²
    dispersion   −(1 − e^(−u)(1 + u + u²/2))/r⁶         FT  −(π^1.5 β³/3) [(1 − 2b²) e^(−b²) + 2√π b³ erfc(b)]

with β = 1/(√2 σ), b = σk/√2 (Essmann et al., J. Chem. Phys. 103, 8577 (1995), eq. 5.2; derived again from
g'(a) = a⁵ e^(−a²) and checked against lattice sums). Both are smooth at r = 0 and decay as exp(−σ²k²/2).
Charges are in e, or in eV^½ Å³ for dispersion; lengths in Å, energies in eV, all in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .batch import send
from .config import LesConfig
from .units import COULOMB

CHUNK = 1 << 23  # numbers of the largest intermediate (64 MB); above it sums are cut and recomputed backward
SERIES_BELOW = 1e-2  # in u: above, erf(√u)/√u loses nothing; below, seven terms are exact to 1e-19
VACUUM_STEP = 1.08  # slab periods are powers of it: piecewise constant, never more than 8 % too long
SLAB_TOLERANCE = 1e-7  # of the interaction between periodic images of a slab
DISPERSION_GAP = 40.0  # Å; r⁻⁶ layers of density ρ per area see π ρ/(2 d⁴) of each other, 6e-7 ρ


class Sources(NamedTuple):
    """Charges of G structures, padded to N atoms by zero charges at the place of the first atom."""

    charges: Tensor  # [G,N,C]
    positions: Tensor  # [G,N,3]
    cells: Tensor  # [G,3,3]


class _Grid(NamedTuple):
    """Half space of a reciprocal lattice: n1, n2, n3 ≥ 0 and the four signs of (n2, n3)."""

    products: Tensor  # [6, 4·K] coefficients of g11 g22 g33 g12 g13 g23 in |k|²
    multiplicity: Tensor  # [4·K] times that a vector counts in the sum over the full space
    origin: Tensor  # [4·K] bool: k = 0


def pair_energy(u: Tensor, config: LesConfig) -> Tensor:
    """Energy of two unit charges at r² = 2σ² u [eV], with all derivatives also at u = 0."""
    small = u < SERIES_BELOW
    safe = torch.where(small, 1.0, u)
    tiny = torch.where(small, u, 0.0)
    if config.form == "coulomb":
        root = safe.sqrt()
        far = torch.erf(root) / root
        terms = [2 / math.sqrt(math.pi) / (math.factorial(n) * (2 * n + 1)) for n in range(8)]
        scale = COULOMB / (math.sqrt(2.0) * config.sigma_A)
    else:
        far = torch.special.gammainc(torch.full_like(safe, 3.0), safe) / safe**3
        terms = [1 / (math.factorial(n) * 2 * (n + 3)) for n in range(8)]
        scale = -1.0 / (2.0 * config.sigma_A**2) ** 3
    near = torch.zeros_like(u)
    for n in reversed(range(8)):
        near = (-1) ** n * terms[n] + tiny * near
    return scale * torch.where(small, near, far)


def self_energy(config: LesConfig) -> float:
    """Energy of a unit charge with itself, ½ of the pair energy at r = 0 (Coulomb: k_e/(√(2π) σ))."""
    return 0.5 * float(pair_energy(torch.zeros((), dtype=torch.float64), config))


def kernel(k2: Tensor, config: LesConfig, origin: Tensor) -> Tensor:
    """Fourier transform of the pair energy at |k|² [eV Å³], cut at k_c; at k = 0 zero for Coulomb."""
    safe = torch.where(origin, 1.0, k2)
    b2 = 0.5 * config.sigma_A**2 * safe
    if config.form == "coulomb":
        values = (4.0 * math.pi * COULOMB) * torch.exp(-b2) / safe
        at_zero = 0.0
    else:
        b = b2.sqrt()
        at_zero = -(math.pi**1.5) / (3.0 * (math.sqrt(2.0) * config.sigma_A) ** 3)
        tail = 2.0 * math.sqrt(math.pi) * b2 * b * torch.erfc(b)
        values = at_zero * ((1.0 - 2.0 * b2) * torch.exp(-b2) + tail)
    t = k2 / (2.0 * math.pi / config.dl_A) ** 2
    if config.smooth:
        y = ((t - 0.6) / 0.4).clamp(0.0, 1.0)
        values = values * (1.0 - y**3 * (10.0 - 15.0 * y + 6.0 * y**2))
    # vectors that symmetry makes equally long must not be parted by rounding
    values = torch.where(t.detach() <= 1.0 + 1e-9, values, 0.0)
    return torch.where(origin, at_zero, values)


def grid_sizes(lengths: Tensor, config: LesConfig) -> list[int]:
    """Largest |n| along each axis of lengths [..., 3], exact for |k| ≤ k_c because n_a = k·h_a/2π."""
    n = torch.floor(lengths / config.dl_A + 1e-9).clamp(min=1.0)
    return [int(x) for x in n.reshape(-1, 3).amax(0).tolist()]


@lru_cache(maxsize=8)
def _grid(n1: int, n2: int, n3: int, device: torch.device) -> _Grid:
    with torch.inference_mode(False):  # a cached inference tensor could never be differentiated through
        n = [torch.arange(m + 1, dtype=torch.float64, device=device) for m in (n1, n2, n3)]
        a, b, c = torch.meshgrid(*n, indexing="ij")
        parts = []
        for s2, s3 in SIGNS:
            mixed = [2 * s2 * a * b, 2 * s3 * a * c, 2 * s2 * s3 * b * c]
            parts.append(torch.stack([a * a, b * b, c * c, *mixed]).reshape(6, -1))
        weight = torch.where(a > 0, 2.0, 1.0) * torch.where(b > 0, 1.0, 0.5) * torch.where(c > 0, 1.0, 0.5)
        origin = (a + b + c == 0).flatten().repeat(4)
        return _Grid(torch.cat(parts, 1), weight.flatten().repeat(4), origin)


SIGNS = ((1, 1), (1, -1), (-1, 1), (-1, -1))


@lru_cache(maxsize=4)
def _fold(device: torch.device) -> Tensor:
    """[8,8]: Re and Im of exp(i(θ1 ± θ2 ± θ3)) for the four signs from the products of cos and sin."""
    with torch.inference_mode(False):
        fold = torch.zeros(2, 4, 2, 2, 2, dtype=torch.float64)
        for which, (s2, s3) in enumerate(SIGNS):
            for t1, t2, t3 in torch.cartesian_prod(*[torch.arange(2)] * 3).tolist():
                power = t1 + t2 + t3  # i to this power: the sign turns from 2 on
                fold[power % 2, which, t1, t2, t3] = (-1) ** (power // 2) * s2**t2 * s3**t3
        return fold.reshape(8, 8).to(device)


def _half_factor(charges: Tensor, fractional: Tensor, sizes: tuple[int, int, int]) -> Tensor:
    """Σ_i q_i trig(n1) trig(n2) trig(n3) for the 8 choices of cos and sin: [G, C·2·M1, 4·M2·M3].

    Separable phases: trigonometry costs N·ΣM and the rest is one matrix product.
    """
    n = torch.arange(max(sizes) + 1, dtype=fractional.dtype, device=fractional.device)
    angle = (2.0 * math.pi) * fractional.unsqueeze(-1) * n
    trig = torch.stack([torch.cos(angle), torch.sin(angle)], 3)  # [G,N,3,2,M]
    one, two, three = (trig[:, :, a, :, : m + 1] for a, m in enumerate(sizes))
    left = charges[:, :, :, None, None] * one.unsqueeze(2)
    right = two[:, :, :, None, :, None] * three[:, :, None, :, None, :]
    return left.flatten(2).transpose(1, 2) @ right.flatten(2)


def _structure_factor(charges: Tensor, fractional: Tensor, sizes: list[int]) -> Tensor:
    """Re and Im of S(k) on the grid: [G, C, 2, 4, K]; summed over chunks of atoms to bound memory."""
    n1, n2, n3 = sizes
    per_atom = 4 * (n2 + 1) * (n3 + 1) * charges.shape[0]
    step = max(1, CHUNK // per_atom)
    if charges.shape[1] <= step:
        half = _half_factor(charges, fractional, (n1, n2, n3))
    else:
        parts = zip(charges.split(step, 1), fractional.split(step, 1), strict=True)
        half = torch.stack(
            [checkpoint(_half_factor, q, s, (n1, n2, n3), use_reentrant=False) for q, s in parts]
        ).sum(0)
    groups, channels = charges.shape[0], charges.shape[2]
    terms = half.view(groups, channels, 2, n1 + 1, 4, (n2 + 1) * (n3 + 1)).transpose(3, 4)
    folded = _fold(charges.device) @ terms.reshape(groups, channels, 8, -1)
    return folded.view(groups, channels, 2, 4, -1)


def lattice_sum(sources: Sources, config: LesConfig) -> Tensor:
    """(1/2V) Σ_k kernel(k) |S(k)|² of 3D periodic structures, self term included: [G].

    Axes are sorted by length, so that structures share a grid well and the long axis is the cheap one.
    """
    lengths = sources.cells.detach().norm(dim=2)
    order = lengths.argsort(dim=1, descending=True, stable=True)
    cells = sources.cells.gather(1, order.unsqueeze(2).expand(-1, -1, 3))
    inverse = torch.linalg.inv(cells)
    fractional = sources.positions @ inverse
    sizes = grid_sizes(lengths.gather(1, order), config)
    grid = _grid(*sizes, cells.device)
    g = inverse.transpose(1, 2) @ inverse
    metric = torch.stack([g[:, 0, 0], g[:, 1, 1], g[:, 2, 2], g[:, 0, 1], g[:, 0, 2], g[:, 1, 2]], 1)
    weights = kernel((4.0 * math.pi**2) * metric @ grid.products, config, grid.origin) * grid.multiplicity
    power = _structure_factor(sources.charges, fractional, sizes).square().sum((1, 2))
    return 0.5 * (weights * power.flatten(1)).sum(1) / torch.linalg.det(cells).abs()


def plane_normals(cells: Tensor, pbc: Tensor) -> tuple[Tensor, Tensor]:
    """The two periodic vectors [G,2,3] of slabs and the unit normal [G,3] of their plane."""
    axis = (~pbc).to(torch.int64).argmax(1)
    rows = (axis.unsqueeze(1) + torch.arange(1, 3, device=cells.device)) % 3
    plane = cells.gather(1, rows.unsqueeze(2).expand(-1, -1, 3))
    normal = torch.linalg.cross(plane[:, 0], plane[:, 1])
    return plane, normal / normal.norm(dim=1, keepdim=True)


def _shortest(plane: Tensor) -> Tensor:
    """Length of the shortest lattice vector of 2D lattices [G,2,3], by Lagrange's reduction."""
    a, b = plane[:, 0], plane[:, 1]
    for _ in range(64):  # each round shortens by a factor; the lattices of crystals need one or two
        swap = (a.norm(dim=1) > b.norm(dim=1)).unsqueeze(1)
        a, b = torch.where(swap, b, a), torch.where(swap, a, b)
        shift = torch.round((a * b).sum(1) / (a * a).sum(1))
        if not bool(shift.any()):
            break
        b = b - shift.unsqueeze(1) * a
    return torch.minimum(a.norm(dim=1), b.norm(dim=1))


def _period(plane: Tensor, height: Tensor, config: LesConfig) -> Tensor:
    """Length of the cell along the normal [G], so that images feel less than SLAB_TOLERANCE."""
    if config.form == "coulomb":
        area = torch.linalg.cross(plane[:, 0], plane[:, 1]).norm(dim=1)
        wave = 2.0 * math.pi * _shortest(plane) / area  # the reciprocal lattice is the lattice turned by 90°
        gap = (-math.log(SLAB_TOLERANCE) / wave).clamp(min=6.0 * config.sigma_A)  # erfc(6/√2) = 2e-9
    else:
        gap = torch.full_like(height, DISPERSION_GAP + 6.0 * config.sigma_A)
    step = math.log(VACUUM_STEP)
    return torch.exp(step * torch.ceil(torch.log(height + gap) / step))


def slab_sum(
    sources: Sources,
    pbc: Tensor,
    config: LesConfig,
    *,
    reciprocal: Callable[[Sources, LesConfig], Tensor] = lattice_sum,
) -> Tensor:
    """The same for slabs, periodic in a plane: a 3D sum with our own vacuum and its correction: [G].

    The user's third vector is not read. For Gaussian charges the correction of Yeh and Berkowitz
    (J. Chem. Phys. 111, 3155 (1999)) and Ballenegger et al. (J. Chem. Phys. 131, 094107 (2009)) for charged
    slabs gets a further term −Q²σ²/2, without which the energy of a charged slab depends on the vacuum.
    Dispersion needs no correction; images at `DISPERSION_GAP` leave about 1e-6 of the density of charges².
    """
    plane, normal = plane_normals(sources.cells, pbc)
    z = (sources.positions * normal.unsqueeze(1)).sum(2)
    low, high = z.detach().amin(1), z.detach().amax(1)
    period = _period(plane.detach(), high - low, config)
    third = normal * period.unsqueeze(1)
    cells = torch.cat([plane, third.unsqueeze(1)], 1)
    energies = reciprocal(sources._replace(cells=cells), config)
    if config.form != "coulomb":
        return energies
    z = (z - 0.5 * (low + high).unsqueeze(1)).unsqueeze(2)  # the energy is the same, rounding is not
    total, moment = sources.charges.sum(1), (sources.charges * z).sum(1)
    second = (sources.charges * z * z).sum(1)
    rest = (period**2 / 12.0 + 0.5 * config.sigma_A**2).unsqueeze(1)
    correction = (moment**2 - total * second - total**2 * rest).sum(1)
    return energies + (2.0 * math.pi * COULOMB) * correction / torch.linalg.det(cells).abs()


def molecule_sum(
    charges: Tensor, positions: Tensor, sizes: Sequence[int], config: LesConfig
) -> Tensor:
    """Σ_{i<j} of molecules of so many atoms [G], one after another in charges [n,C]: [G]."""
    device, atoms, pairs = positions.device, sum(sizes), sum(n * (n - 1) // 2 for n in sizes)
    counts = send(torch.tensor(sizes), device)
    owner = torch.repeat_interleave(torch.arange(len(sizes), device=device), counts, output_size=atoms)
    first = (counts.cumsum(0) - counts).index_select(0, owner)
    rank = torch.arange(atoms, device=device) - first  # an atom meets those before it in its molecule
    # with their sums known, nobody waits for the numbers of repetitions
    i = torch.repeat_interleave(torch.arange(atoms, device=device), rank, output_size=pairs)
    j = torch.arange(len(i), device=device) - (rank.cumsum(0) - rank - first).index_select(0, i)
    energies = torch.zeros(len(counts), dtype=positions.dtype, device=device)
    owner = owner.index_select(0, i)
    if len(i) * 3 <= CHUNK:
        return energies.index_add(0, owner, _pairs(charges, positions, i, j, config))
    step = CHUNK // 3
    for a, b, s in zip(i.split(step), j.split(step), owner.split(step), strict=True):
        part = checkpoint(_pairs, charges, positions, a, b, config, use_reentrant=False)
        energies = energies.index_add(0, s, part)
    return energies


def _pairs(charges: Tensor, positions: Tensor, i: Tensor, j: Tensor, config: LesConfig) -> Tensor:
    delta = positions.index_select(0, i) - positions.index_select(0, j)
    product = (charges.index_select(0, i) * charges.index_select(0, j)).sum(1)
    return product * pair_energy(delta.square().sum(1) / (2.0 * config.sigma_A**2), config)
