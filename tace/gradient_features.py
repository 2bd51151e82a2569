"""Gradients of the energy with respect to the readout's weights, as features of structures.

Two structures with parallel gradients move together when the readout is trained, so that the label of one
teaches the other: distances in these features say what a further label would add (Zaverkin et al., Digital
Discovery 1, 605 (2022); Holzmüller et al., arXiv:2203.09410, §3.1 and 4.1).

    linear maps        ∂ε_i/∂w = x_i, the invariants of every layer: exact
    output of the net  ∂ε_i/∂w = silu(W x_i): exact
    hidden weights W   ∂ε_i/∂W = δ_i ⊗ x_i with δ_i = w ⊙ silu'(W x_i): C·H numbers, of which
                       (U δ_i) ⊙ (V x_i)/√m is kept, with Gaussian U and V of m rows; its inner products
                       are those of the full gradients on average (arXiv:2203.09410, eq. 14)

Shapes     S structures, D = L·C + H + m             Units  eV: times scale[f, z] of each atom
Promises   invariant under the order of the atoms, rotation and translation; a mean over atoms, so that two
           copies of a cell are where one is. Numbers of projection are drawn from a fixed seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from torch import Tensor, nn

from .batch import Batch, collate, make_graph
from .committee import chunks
from .data import fidelity_index
from .layers import Linear
from .model import Tace
from .readout import ScalarReadout

PROJECTED = 64
_SEED = 20_220_309


def batch_gradients(model: Tace, batch: Batch, *, projected: int = PROJECTED) -> Tensor:
    """[S, D] float64 of the structures of a batch."""
    positions = batch.positions
    geometry = model.geometry(batch, positions, batch.pair_shift, cells=batch.cells)
    with torch.no_grad():
        invariants = model(batch, geometry).features  # [A, L·C]
        of_atoms = _of_atoms(model, invariants, batch, projected)
    out = torch.zeros(batch.n_structures, of_atoms.shape[1], dtype=torch.float64, device=of_atoms.device)
    out = out.index_add(0, batch.structure, of_atoms)
    return out / batch.n_atoms.to(out.dtype)[:, None]


def _of_atoms(model: Tace, invariants: Tensor, batch: Batch, projected: int) -> Tensor:
    readout = model.energy_readout
    last = invariants[:, -model.config.channels :]
    inner, weights = _inner(readout, last, batch)
    squashed = nn.functional.silu(inner)
    gate = torch.sigmoid(inner)
    slope = weights * gate * (1 + inner * (1 - gate))  # δ
    generator = torch.Generator().manual_seed(_SEED)
    left = torch.randn(projected, slope.shape[1], generator=generator, dtype=torch.float64)
    right = torch.randn(projected, last.shape[1], generator=generator, dtype=torch.float64)
    device = invariants.device
    mixed = (slope.double() @ left.to(device).T) * (last.double() @ right.to(device).T)
    features = torch.cat([invariants.double(), squashed.double(), mixed / projected**0.5], 1)
    index = batch.fidelity.index_select(0, batch.structure) * len(model.config.elements) + batch.species
    return features * model.scale_eV.reshape(-1).index_select(0, index).double()[:, None]


def _inner(readout: ScalarReadout, last: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """W x [A, H] and the output weights w [A, H] of the network, of each atom's own level."""
    inner = readout.hidden(last)
    outputs = [module for module in readout.hidden_out if isinstance(module, Linear)]
    weights = torch.stack([out.weight.reshape(-1) for out in outputs])  # [F, H]
    if readout.levels == 1:
        return inner, weights.expand(len(inner), -1)
    level = batch.fidelity.index_select(0, batch.structure)
    by_level = inner.view(len(inner), readout.levels, -1)
    own = by_level.gather(1, level.view(-1, 1, 1).expand(-1, 1, by_level.shape[2])).squeeze(1)
    return own, weights.index_select(0, level)


def gradient_features(
    model: Tace, frames: Sequence[Atoms], *, fidelity: str | None = None, projected: int = PROJECTED
) -> np.ndarray:
    """[S, D] of structures at a level, the last of the model by default.

    Raises:
        UnknownElementError, UnknownFidelityError, DataError: see `make_graph`.
    """
    config = model.config
    level = fidelity_index(fidelity or config.fidelities[-1], config.fidelities)
    graphs = [
        make_graph(atoms, config.elements, cutoff=config.cutoff_A, fidelity=level, inputs=config.inputs)
        for atoms in frames
    ]
    parts = [
        batch_gradients(model, collate(chunk, len(config.elements)).to(model.device), projected=projected)
        for chunk in chunks(graphs)
    ]
    width = config.n_layers * config.channels + config.readout_hidden + projected
    return torch.cat(parts).cpu().numpy() if parts else np.zeros((0, width))
