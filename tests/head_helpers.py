"""Heads on random equivariant features, without a model."""

# ruff: noqa: E741  (l is the rank of a tensor)
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tace.batch import Batch, collate, make_graph
from tace.config import HeadConfig, InputConfig, TaceConfig
from tace.heads import needed_ranks
from tace.ict import stf_basis

ELEMENTS = (1, 6, 8)
CHANNELS = 4
EXACT = 1e-12  # sums of some 1e3 products of order one, in float64


def config(**settings) -> TaceConfig:
    return TaceConfig(**{"elements": ELEMENTS, "channels": CHANNELS, "l_max": 3, "L_max": 1, **settings})


def ranks_of(model: TaceConfig, *heads: HeadConfig) -> list[list[int]]:
    """What the two layers give: the first up to L_max, the last what the heads need and no more."""
    return [list(range(model.L_max + 1)), sorted(needed_ranks(heads, model.l_max))]


def batch_of(structures: Sequence, *, charges: Sequence[float] | None = None, levels=None) -> Batch:
    inputs = (InputConfig("total_charge"),) if charges is not None else ()
    graphs = []
    for n, atoms in enumerate(structures):
        if charges is not None:
            atoms.info["total_charge"] = charges[n]
        level = levels[n] if levels else 0
        graphs.append(make_graph(atoms, ELEMENTS, cutoff=3.0, fidelity=level, inputs=inputs))
    return collate(graphs, len(ELEMENTS))


def input_features(rng, n_atoms: int, l_max: int = 3) -> list[dict[int, Tensor]]:
    """Features of two layers in the order of the input, ranks 0 to l_max in both."""
    return [
        {l: torch.from_numpy(rng.standard_normal((n_atoms, 2 * l + 1, CHANNELS))) for l in range(l_max + 1)}
        for _ in range(2)
    ]


def arrange(features, batch: Batch) -> list[dict[int, Tensor]]:
    """From the order of the input to that of the batch."""
    place = torch.argsort(batch.original)
    return [{l: x[place] for l, x in layer.items()} for layer in features]


def map_features(features, function) -> list[dict[int, Tensor]]:
    return [{l: function(l, x) for l, x in layer.items()} for layer in features]


def turn(q: np.ndarray, tensor: np.ndarray, rank: int) -> np.ndarray:
    """q on the last `rank` indices."""
    for axis in range(tensor.ndim - rank, tensor.ndim):
        tensor = np.moveaxis(np.tensordot(q, tensor, (1, axis)), 0, axis)
    return tensor


def turned_features(features, q: np.ndarray) -> list[dict[int, Tensor]]:
    """Of natural parity: q may be improper."""

    def act(l: int, x: Tensor) -> Tensor:
        basis = stf_basis(l).T.reshape(2 * l + 1, *[3] * l)
        matrix = stf_basis(l).T @ turn(q, basis, l).reshape(2 * l + 1, -1).T
        return torch.einsum("mn,anc->amc", torch.from_numpy(matrix), x)

    return map_features(features, act)


def values(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()
