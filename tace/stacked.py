"""Several members as one model: their weights side by side, on as many copies of a batch.

A map of channels is then one batched product, and everything without weights sees M times as many atoms. Of
small structures an evaluation costs what its calls cost and not what they compute, so that all members take
little longer than one; and one backward pass gives the forces of each.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from .batch import Batch
from .embeddings import Discrete, FieldEmbedding, MagneticBasis
from .gates import NormGate
from .geometry import Geometry
from .layers import ElementLinear, Linear, concatenate
from .lower import LowerInteraction
from .model import Tace
from .product import PathMix
from .radial_tables import RadialTable, has_tables, networks
from .readout import ENERGY_READOUTS

_ROW_BY_ROW = ("embedding", "fidelity_table")  # tables, of which a copy reads rows of its own
_KNOW_MEMBERS = (
    Tace, Linear, ElementLinear, PathMix, NormGate, LowerInteraction, FieldEmbedding, MagneticBasis, Discrete,
)  # fmt: skip


class MemberTables(nn.Module):
    """Radial tables of several members, whose grids may differ: each has an equal part of the distances."""

    def __init__(self, tables: Sequence[RadialTable]) -> None:
        super().__init__()
        self.tables = nn.ModuleList(tables)

    def forward(self, distances: Tensor) -> Tensor:
        parts = distances.chunk(len(self.tables))
        return concatenate([table(x) for table, x in zip(self.tables, parts, strict=True)], 0)


def can_stack(members: Sequence[Tace]) -> bool:
    """Whether the members differ in numbers alone, and every module with weights knows members."""
    configs = {replace(m.config, avg_neighbors=1.0) for m in members}
    tables = {has_tables(m) for m in members}
    return len(configs) == 1 and len(tables) == 1 and all(map(_knows, _owners(members[0])))


def _owners(model: Tace) -> list[nn.Module]:
    """Modules with weights, but for heads, which `stack` leaves out; of lists of weights, whose they are."""
    found = []
    for module in _without_heads(model):
        children = [c for c in module.children() if isinstance(c, nn.ParameterList)]
        if children or next(module.parameters(recurse=False), None) is not None:
            found.append(module)
    return found


def _without_heads(model: Tace) -> Iterator[nn.Module]:
    heads = set(model.heads.modules())
    return (m for m in model.modules() if m not in heads and not isinstance(m, nn.ParameterList))


def _knows(module: nn.Module) -> bool:
    return isinstance(module, _KNOW_MEMBERS)


def shares_trunk(members: Sequence[Tace]) -> bool:
    """Whether `can_stack` members have the same weights but for their readouts."""
    first = members[0]
    return can_stack(members) and all(
        m.config == first.config and torch.equal(p, m.get_parameter(name))
        for m in members[1:]
        for name, p in first.named_parameters()
        if not name.startswith(ENERGY_READOUTS)
    )


def read_all(
    stacked: Tace, by_layer: Sequence[Mapping[int, Tensor]], several: Batch, geometry: Geometry
) -> Tensor:
    """Energies [M, S] of members that share their trunk, from what it says of one copy.

    Args:
        stacked: `stack` of the members.
        by_layer: `Tace.describe` of one copy of the batch.
        several: `copies` of the batch.
        geometry: of one copy.
    """
    number = several.n_copies

    def again(x: Tensor) -> Tensor:
        return x.repeat(number, *[1] * (x.ndim - 1))

    scalars = [{0: again(features[0])} for features in by_layer]
    places = geometry._replace(
        density=again(geometry.density),
        positions=again(geometry.positions),
        cells=again(geometry.cells),
        repulsion=None if geometry.repulsion is None else again(geometry.repulsion),
    )
    return stacked.read(scalars, several, places).energies.view(number, -1)


def stack(members: Sequence[Tace]) -> Tace:
    """One model that evaluates `copies(batch, M)`: structure s of copy m by member m.

    It has no heads: of members in one pass, energies and what follows from them are asked for.

    Args:
        members: `can_stack`; their weights are copied and frozen.
    """
    model = copy.deepcopy(members[0])
    model.heads, model.config = nn.ModuleDict(), replace(model.config, heads=())
    with torch.no_grad():
        for name, _ in list(model.named_parameters()):
            owner, _, key = name.rpartition(".")
            join = torch.cat if name in _ROW_BY_ROW else torch.stack
            values = join([m.get_parameter(name) * _scale(name, m, members[0]) for m in members])
            setattr(model.get_submodule(owner), key, nn.Parameter(values, requires_grad=False))
        if has_tables(model):
            by_name = [dict(networks(m)) for m in members]
            for name, network in networks(model):
                network.table = MemberTables([cast(RadialTable, found[name].table) for found in by_name])
        for name, _ in members[0].reference.named_buffers():
            values = torch.cat([m.reference.get_buffer(name) for m in members])
            setattr(model.reference, name, values)
    return model.eval()


def _scale(name: str, member: Tace, like: Tace) -> float:
    """Factor of a weight behind a sum over neighbours, where members expect different numbers of them."""
    owner, found, _ = name.partition(".down.")
    if not found:
        return 1.0
    mine, first = (cast(Any, m.get_submodule(owner)).inverse_neighbors for m in (member, like))
    return float(mine / first)
