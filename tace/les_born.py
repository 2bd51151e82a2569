"""Born effective charges from latent charges (spec §11.5)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .batch import Batch
from .config import LesConfig


def latent_born_charges(
    charges: Tensor, positions: Tensor, batch: Batch, config: LesConfig, *, create_graph: bool = False
) -> Tensor:
    """Z*[a,b] = ∂P_a/∂x_b of each atom [A,3,3], e, float64, sorted like the batch.

    P = √ε_∞ Σ (q_i − mean q) x_i with the charges of all channels added; along periodic axes by the phases
    e^(2πi s): exact for fixed charges, but what a charge at distance d gains by a displacement counts as
    sin(2πd/L) L/2π instead of d, so that cells must be wide against the range over which charges respond.
    That also breaks Σ_i Z* = 0 by O(1/L²); the mean over the structure is taken off, which restores it. Open
    axes (of molecules, slabs and wires) use P itself.

    Args:
        charges: [A,n_q], a function of `positions` where they depend on the geometry.
        positions: [A,3] float64, the leaf.
        create_graph: the result can be differentiated, for training on Born charges.
    """
    with torch.enable_grad():
        return _born(charges, positions, batch, config, create_graph)


def _born(charges: Tensor, positions: Tensor, batch: Batch, config: LesConfig, create_graph: bool) -> Tensor:
    if not positions.requires_grad:
        positions = positions.detach().clone().requires_grad_(True)
    owner = batch.structure
    lattice = _lattice(batch)
    inverse = torch.linalg.inv(lattice).index_select(0, owner)
    fractional = torch.bmm(positions.unsqueeze(1), inverse).squeeze(1)
    q = charges.double().sum(1)
    sums = torch.zeros(batch.n_structures, dtype=q.dtype, device=q.device).index_add(0, owner, q)
    q = q - (sums / batch.n_atoms).index_select(0, owner)
    open_axis = ~batch.pbc.index_select(0, owner)
    angle = 2.0 * math.pi * torch.where(open_axis, 0.0, fractional)
    sine, cosine = torch.sin(angle), torch.cos(angle)
    lengths = lattice.index_select(0, owner)

    def slope(values: Tensor) -> Tensor:
        """Σ over atoms of q·values, differentiated by every position: [A,3]."""
        (found,) = torch.autograd.grad(
            (q * values).sum(),
            positions,
            create_graph=create_graph,
            retain_graph=True,
            materialize_grads=True,
        )
        return found

    total = torch.zeros(len(owner), 3, 3, dtype=q.dtype, device=q.device)
    for k in range(3):
        # Im C_k of periodic axes and P_k of open ones in one backward pass: structures do not meet
        direct = slope(torch.where(open_axis[:, k], fractional[:, k], sine[:, k] / (2.0 * math.pi)))
        part = torch.where(open_axis[:, k], 1.0, cosine[:, k]).unsqueeze(1) * direct
        if bool(batch.pbc[:, k].any()):
            part = part - sine[:, k].unsqueeze(1) * slope(cosine[:, k] / (2.0 * math.pi))
        total = total + lengths[:, k, :].unsqueeze(2) * part.unsqueeze(1)
    mean = torch.zeros_like(lattice).index_add(0, owner, total) / batch.n_atoms[:, None, None]
    total = math.sqrt(config.epsilon_inf) * (total - mean.index_select(0, owner))
    return total if create_graph else total.detach()


def _lattice(batch: Batch) -> Tensor:
    """Cells with orthonormal vectors, normal to the periodic ones, along open axes: [S,3,3]."""
    cells = batch.cells.detach()
    # projector onto the open directions; its pivoted columns complete the lattice
    periodic = torch.where(batch.pbc.unsqueeze(2), cells, 0.0)
    inverse = torch.linalg.pinv(periodic)
    projector = torch.eye(3, dtype=cells.dtype, device=cells.device) - inverse @ periodic
    vectors = torch.linalg.eigh(projector).eigenvectors  # ascending: the open directions come last
    order = (~batch.pbc).to(torch.int64).cumsum(1)
    rows = vectors.transpose(1, 2).gather(1, (3 - order).clamp(max=2).unsqueeze(2).expand(-1, -1, 3))
    return torch.where(batch.pbc.unsqueeze(2), cells, rows)
