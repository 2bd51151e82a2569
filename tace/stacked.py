"""Several members as one model: their weights side by side, on as many copies of a batch.

A map of channels is then one batched product, and everything without weights sees M times as many atoms. Of
small structures an evaluation costs what its calls cost and not what they compute, so that all members take
little longer than one; and one backward pass gives the forces of each.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from .batch import Batch
from .geometry import Geometry
from .interaction import Interaction
from .layers import ElementLinear, Linear
from .model import Tace
from .radial_tables import has_tables
from .readout import ENERGY_READOUTS

_ROW_BY_ROW = ("embedding", "fidelity_table")  # tables, of which a copy reads rows of its own
_KNOW_MEMBERS = (Tace, Linear, ElementLinear)


def can_stack(members: Sequence[Tace]) -> bool:
    """Whether the members differ in numbers alone, and every module with weights knows members.

    Heads are left to the single models, and so are radial tables, which compiled graphs read.
    """
    configs = {replace(m.config, avg_neighbors=1.0) for m in members}
    owners = [m for m in members[0].modules() if next(m.parameters(recurse=False), None) is not None]
    alike = len(configs) == 1 and all(isinstance(m, _KNOW_MEMBERS) for m in owners)
    return alike and not len(members[0].heads) and not has_tables(members[0])


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

    Args:
        members: `can_stack`; their weights are copied and frozen.
    """
    model = copy.deepcopy(members[0])
    with torch.no_grad():
        for name, _ in members[0].named_parameters():
            owner, _, key = name.rpartition(".")
            join = torch.cat if name in _ROW_BY_ROW else torch.stack
            values = join([m.get_parameter(name) * _scale(name, m, model) for m in members])
            setattr(model.get_submodule(owner), key, nn.Parameter(values, requires_grad=False))
        for name, _ in members[0].reference.named_buffers():
            values = torch.cat([m.reference.get_buffer(name) for m in members])
            setattr(model.reference, name, values)
    return model.eval()


def _scale(name: str, member: Tace, like: Tace) -> float:
    """Factor of a weight behind a sum over neighbours, where members expect different numbers of them."""
    owner, found, _ = name.partition(".down.")
    if not found:
        return 1.0
    interaction, first = member.get_submodule(owner), like.get_submodule(owner)
    assert isinstance(interaction, Interaction)
    assert isinstance(first, Interaction)
    return interaction.inverse_neighbors / first.inverse_neighbors
