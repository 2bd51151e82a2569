"""Energies without a model: a sum of invariants of A, up to third order; float64.

A is made of the neighbours' elements and directions, plus the embedding under test. A deviation below 1e-12
of energies of order one to a hundred is round-off of some 1e3 terms; a term that is there changes them by
more than 1e-3.
"""

from __future__ import annotations

import numpy as np
import torch
from ase import Atoms

from tace.batch import Batch, collate, make_graph
from tace.config import InputConfig, TaceConfig
from tace.geometry import EdgeBasis, Geometry, pair_vectors
from tace.ict import coupling
from tace.layers import pair_to_slot, sender_to_slot

CUTOFF = 3.4
TINY = TaceConfig(
    elements=(1, 6, 8),
    cutoff_A=CUTOFF,
    channels=3,
    l_max=3,
    L_max=0,
    n_radial=4,
    radial_hidden=(6,),
    avg_neighbors=2.0,
)


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch_of(*frames: Atoms, inputs: tuple[InputConfig, ...] = ()) -> Batch:
    graphs = [make_graph(a, TINY.elements, cutoff=CUTOFF, inputs=inputs) for a in frames]
    return collate(graphs, len(TINY.elements))


def geometry_of(config: TaceConfig, batch: Batch, positions: torch.Tensor, dtype=torch.float64) -> Geometry:
    vectors = pair_vectors(batch, positions, batch.pair_shift)
    return EdgeBasis(config).to(dtype)(batch, positions, batch.cells, vectors, dtype=dtype)


def table(config: TaceConfig) -> torch.Tensor:
    return torch.randn(3, config.channels, generator=generator(1), dtype=torch.float64)


def surroundings(config: TaceConfig, batch: Batch, geometry: Geometry) -> list[torch.Tensor]:
    """A of a model without conditions: radial functions times directions times the neighbours' elements."""
    mix = torch.randn(config.n_radial, config.channels, generator=generator(2), dtype=torch.float64)
    radial = pair_to_slot(geometry.radial @ mix, batch.slot_pair, batch.pair_slots)
    sent = sender_to_slot(table(config)[batch.species], batch.slot_sender, batch.slot_reverse)
    shape = (len(batch.species), batch.slots, -1)
    message = (radial * sent).view(shape)
    return [torch.einsum("akm,akc->amc", e.view(shape), message) for e in geometry.angular]


def sum_of_invariants(a: list[torch.Tensor], batch: Batch) -> torch.Tensor:
    """[S]: every rank and pair of ranks is in it."""
    weight = torch.randn(a[0].shape[2], generator=generator(3), dtype=torch.float64)
    atoms = (a[0] + sum(x.square().sum(1, keepdim=True) for x in a)).squeeze(1)
    for l1, l2, l3 in ((1, 1, 2), (1, 2, 3), (1, 1, 0)):
        if l3 < len(a) and l1 < len(a):
            g = torch.from_numpy(coupling(l1, l2, l3).copy())
            atoms = atoms + torch.einsum("xyz,axc,ayc,azc->ac", g, a[l1], a[l2], a[l3])
    return torch.zeros(batch.n_structures, dtype=torch.float64).index_add(0, batch.structure, atoms @ weight)


def in_order(values: np.ndarray | torch.Tensor, batch: Batch) -> torch.Tensor:
    """Values in the order of the input to the order of the batch."""
    result = torch.empty_like(torch.as_tensor(values))
    return result.index_copy(0, batch.original, torch.as_tensor(values))
