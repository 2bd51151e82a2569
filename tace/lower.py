"""Interaction with the lower weights of A (TACE §2.4, spec §15): each irreducible part has radial weights.

A rank-2 message, for one, has an antisymmetric part (an axial vector) and a trace besides the symmetric
traceless part; the interaction of highest weights drops them. Here they enter A, and the products that
contract whole tensors read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .batch import Batch
from .config import TaceConfig
from .geometry import Geometry
from .ict import stf_basis
from .initial import radial_network, sum_gain
from .layers import Linear, by_member, concatenate, pair_to_slot, sender_to_slot
from .paths import contraction, interaction_paths, normaliser, parts


class _Term(NamedTuple):
    """What a path adds to an irreducible part."""

    part: int  # place of the part, counted over all ranks
    path: int
    name: str  # of the buffer that holds the coupling


class LowerInteraction(nn.Module):
    """One-particle basis and atomic basis A of whole tensors, [A, n, C] in `paths.components` of each rank.

    m_ji^r = Lin_r(concat_paths s_{p,c} X_j ·_k E(r̂_ji)) without a projection, with s learnable, and
    A_i^r = 1/n̄ Σ_j Σ_q R_{q,c}(r_ji) D_q m_ji^r over the irreducible parts q. Lin acts on channels only and
    is moved to the sender, where it costs one product per atom instead of one per edge.
    """

    def __init__(self, config: TaceConfig, l_in: int, generator: torch.Generator) -> None:
        super().__init__()
        c, self.l_max = config.channels, config.l_max
        self.paths = interaction_paths(l_in, config.l_max)
        self.inverse_neighbors = 1.0 / config.avg_neighbors
        self.parts = [
            (rank, path, basis)
            for rank in range(config.l_max + 1)
            for path, basis in parts(rank, l_in, config.l_max)
        ]
        self.radial = radial_network(config, c * len(self.parts), generator)
        self.up = nn.ModuleList(Linear(c, c, generator) for _ in range(l_in + 1))
        self.scale = nn.Parameter(torch.ones(len(self.paths), c, dtype=torch.float64))
        self.down = nn.ModuleList(
            Linear(c * sum(p.l3 == l for p in self.paths), c, generator, sum_gain(config, l))
            for l in range(config.l_max + 1)  # noqa: E741
        )
        self.terms: list[_Term] = []
        for q, (rank, _, basis) in enumerate(self.parts):
            for n, p in enumerate(self.paths):
                if p.l3 != rank:
                    continue
                g = contraction(p, stf_basis(p.l1), stf_basis(p.l2), onto=basis)
                if g.any():
                    # [2l2+1, (2l1+1)(2w+1)]: turns an edge attribute into the matrix that acts on the sender
                    matrix = g.transpose(1, 0, 2).reshape(2 * p.l2 + 1, -1)
                    matrix = matrix * normaliser(p, config.coupling_norm)
                    name = f"coupling{len(self.terms)}"
                    self.register_buffer(name, torch.from_numpy(matrix), persistent=False)
                    self.terms.append(_Term(q, n, name))

    def forward(self, h: Sequence[Tensor], batch: Batch, geometry: Geometry) -> list[Tensor]:
        atoms, k, c = h[0].shape[0], batch.slots, h[0].shape[2]
        weights = self.radial(geometry.radial)
        weights = pair_to_slot(weights, batch.slot_pair, batch.pair_slots)
        by_part = weights.view(atoms, k, len(self.parts), 1, c).unbind(2)
        sent, angular = self._sent(h, batch), geometry.angular
        collected: list[list[Tensor]] = [[] for _ in self.parts]
        for term in self.terms:
            p, m1 = self.paths[term.path], 2 * self.paths[term.path].l1 + 1
            operator = (angular[p.l2] @ getattr(self, term.name)).view(atoms, k * m1, -1)
            message = (by_part[term.part] * sent[term.path]).view(atoms, k * m1, c)
            collected[term.part].append(torch.bmm(operator.transpose(1, 2), message))
        values: list[list[Tensor]] = [[] for _ in range(self.l_max + 1)]
        for (rank, _, _), found in zip(self.parts, collected, strict=True):
            values[rank].append(torch.stack(found).sum(0) if len(found) > 1 else found[0])
        return [concatenate(each, 1) * self.inverse_neighbors for each in values]

    def _sent(self, h: Sequence[Tensor], batch: Batch) -> list[Tensor]:
        """Of every path, the sender's features after its channel map: [A, K, 2l1+1, C]."""
        atoms, k, c = h[0].shape[0], batch.slots, h[0].shape[2]
        # [paths, C, C], and before it the axis of stacked members: both go by l3
        maps = torch.cat(list(self.down.parameters()), -2).unflatten(-2, (-1, c))
        of_path = (self.scale.unsqueeze(-1) * maps).unbind(-3)
        sent: list[Tensor] = [h[0]] * len(self.paths)
        for l1, (up, x) in enumerate(zip(self.up, h, strict=True)):
            mine = [n for n, p in enumerate(self.paths) if p.l1 == l1]
            map_ = torch.cat([of_path[n] for n in mine], -1)
            mapped = up(x) @ map_ if map_.ndim == 2 else by_member(up(x), map_)
            gathered = sender_to_slot(mapped.reshape(atoms, -1), batch.slot_sender, batch.slot_reverse)
            by_path = gathered.view(atoms, k, 2 * l1 + 1, len(mine), c).unbind(3)
            for n, value in zip(mine, by_path, strict=True):
                sent[n] = value
        return sent
