"""Forces and stress of any model that maps a batch and a geometry to energies (spec §13).

The strain acts on positions and lattice alike; F = −∂E/∂x, σ = (1/V) ∂E/∂ε with ε symmetrised (ASE sign).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .batch import Batch
from .model import Geometry, OutputTerms, Tace


class Evaluation(NamedTuple):
    """Atoms in the order of the input structures; None where not asked for."""

    energies: Tensor  # [S] float64
    forces: Tensor | None  # [A,3] float64
    stresses: Tensor | None  # [S,3,3] float64; NaN for a structure that is not periodic in 3D
    features: Tensor  # [A, D]
    node_energies: Tensor  # [A] float64


class Leaves(NamedTuple):
    """What energies are differentiated with respect to."""

    positions: Tensor
    strain: Tensor | None


def make_leaves(batch: Batch, *, stress: bool) -> Leaves:
    """Fresh leaves for one evaluation."""
    strain = None
    if stress:
        strain = torch.zeros_like(batch.cells).requires_grad_(True)
    return Leaves(batch.positions.detach().clone().requires_grad_(True), strain)


def strained_geometry(model: Tace, batch: Batch, leaves: Leaves) -> Geometry:
    """Geometry of the batch under the leaves' strain: x ← x(1+ε), h ← h(1+ε)."""
    positions, shift = leaves.positions, batch.pair_shift
    if leaves.strain is not None:
        symmetric = 0.5 * (leaves.strain + leaves.strain.transpose(1, 2))
        by_atom = symmetric.index_select(0, batch.structure)
        by_pair = symmetric.index_select(0, batch.pair_structure)
        positions = positions + torch.bmm(positions.unsqueeze(1), by_atom).squeeze(1)
        shift = shift + torch.bmm(shift.unsqueeze(1), by_pair).squeeze(1)
    return model.geometry(batch, positions, shift)


def differentiate(
    energies: Tensor, batch: Batch, leaves: Leaves, *, create_graph: bool = False, keep: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Forces [A,3] in input order, and stresses [S,3,3] if the leaves hold a strain.

    Args:
        create_graph: forces can be differentiated again (training).
        keep: the graph is needed once more (next member of a committee).
    """
    inputs = [leaves.positions] if leaves.strain is None else [leaves.positions, leaves.strain]
    grads = torch.autograd.grad(
        energies.sum(),
        inputs,
        create_graph=create_graph,
        retain_graph=create_graph or keep,
        materialize_grads=True,  # a batch of isolated atoms depends on no position
    )
    forces = -grads[0].index_select(0, batch.original)
    if leaves.strain is None:
        return forces, None
    volume = torch.where(batch.periodic, torch.linalg.det(batch.cells).abs(), 1.0)
    stresses = grads[1] / volume[:, None, None]
    # NaN is put in last: a division by NaN would turn the zero gradient of a masked loss into NaN
    return forces, stresses.where(batch.periodic[:, None, None], torch.nan)


def evaluate(
    model: Tace,
    batch: Batch,
    *,
    forces: bool = True,
    stress: bool = False,
    create_graph: bool = False,
) -> Evaluation:
    """Energies and what is asked for; without `create_graph` nothing of the graph is kept."""
    leaves = make_leaves(batch, stress=stress)
    with torch.set_grad_enabled(forces or stress or create_graph):
        terms: OutputTerms = model(batch, strained_geometry(model, batch, leaves))
        f, s = None, None
        if forces or stress:
            f, s = differentiate(terms.energies, batch, leaves, create_graph=create_graph)
    energies = terms.energies if create_graph else terms.energies.detach()
    return Evaluation(
        energies,
        f if forces else None,
        s,
        terms.features.index_select(0, batch.original).detach(),
        terms.node_energies.index_select(0, batch.original).detach(),
    )


def voigt(stress: Tensor) -> Tensor:
    """[..., 3, 3] → [..., 6] in the order xx yy zz yz xz xy."""
    rows, columns = [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]
    return stress[..., rows, columns]
