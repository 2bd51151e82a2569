"""One layer: interaction, product basis, mixing of channels, self-connection (TACE eqs. 9 to 12)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .batch import Batch
from .config import TaceConfig
from .edge_sum import EdgeSum
from .gates import NormGate, ScalarGate
from .geometry import Geometry
from .ict import scaled_coupling
from .initial import MIX_GAIN, radial_network, sum_gain
from .layers import ElementLinear, Linear, concatenate
from .lower import LowerInteraction
from .paths import interaction_paths, product_paths
from .product import PathMix, ProductBasis, highest


class Interaction(nn.Module):
    """One-particle basis and atomic basis A (eqs. 9 and 10) of ranks up to l_out."""

    def __init__(
        self, config: TaceConfig, ranks: tuple[int, int], generator: torch.Generator
    ) -> None:
        super().__init__()
        l_in, self.l_out = ranks
        c = config.channels
        self.paths = tuple(p for p in interaction_paths(l_in, config.l_max) if p.l3 <= self.l_out)
        self.inverse_neighbors = 1.0 / config.avg_neighbors
        self.radial = radial_network(config, c * len(self.paths), generator)
        self.up = nn.ModuleList(Linear(c, c, generator) for _ in range(l_in + 1))
        self.down = nn.ModuleList(
            Linear(c * sum(p.l3 == l for p in self.paths), c, generator, sum_gain(config, l))
            for l in range(self.l_out + 1)  # noqa: E741
        )
        couplings = [scaled_coupling(*p, norm=config.coupling_norm) for p in self.paths]
        self.sum = EdgeSum(self.paths, couplings, config.l_max)

    def forward(self, h: Sequence[Tensor], batch: Batch, geometry: Geometry) -> list[Tensor]:
        weights = self.radial(geometry.radial)
        sent = [up(x) for up, x in zip(self.up, h, strict=True)]
        sums = self.sum(sent, weights, batch, angular=geometry.attributes)
        return [down(x) * self.inverse_neighbors for down, x in zip(self.down, sums, strict=True)]


class Layer(nn.Module):
    """Interaction, product basis, element-dependent mixing and self-connection (eqs. 9 to 12).

    Options of the configuration: lower weights in A, a gate on A, mixing without coupling the channels, and
    the features below added to the result. With correlation 1 this is the layer of a plain tensor
    message-passing network (spec §15).
    """

    def __init__(
        self,
        config: TaceConfig,
        ranks: tuple[int, Sequence[int]],
        connect: bool,
        generator: torch.Generator,
    ) -> None:
        """
        Args:
            ranks: the highest of the features below, and those of the result, ascending.
            connect: add the self-connection; not in the first of several layers.
        """
        super().__init__()
        l_in, outputs = ranks
        c, z = config.channels, len(config.elements)
        self.outputs = tuple(outputs)
        # h^(0) holds what an element is; added to the result, an atom would not be zero without neighbours
        self.residual = config.residual and connect and config.n_layers > 1
        lower = config.weights == "all"
        l_out = config.l_max if config.correlation > 1 else max(self.outputs)  # products need every rank
        self.interaction = (
            LowerInteraction(config, l_in, generator)
            if lower
            else Interaction(config, (l_in, l_out), generator)
        )
        gates: dict[str, type[NormGate] | type[ScalarGate]] = {"norm": NormGate, "scalar": ScalarGate}
        gate = gates.get(config.gate)
        self.gate = gate(c, l_out, generator) if gate is not None else None
        l_low = l_in if lower else 0
        levels = product_paths(
            config.l_max, config.correlation, self.outputs, config.paths, l_in=l_low
        )
        self.product = ProductBasis(
            levels, config.l_max, self.outputs, config.coupling_norm, l_in=l_low
        )
        per_rank = self.product.features_per_rank()
        self.mix = nn.ModuleList(
            ElementLinear(z, c * per_rank[l], c, generator, gain=MIX_GAIN)
            if config.mixing == "coupled"
            else PathMix(z, per_rank[l], c, generator, gain=MIX_GAIN)
            for l in self.outputs  # noqa: E741
        )
        self.out = nn.ModuleList(Linear(c, c, generator) for _ in self.outputs)
        self.self_connection = nn.ModuleList(
            ElementLinear(z, c, c, generator) for _ in (self.outputs if connect else ())
        )

    def forward(
        self,
        h: Sequence[Tensor],
        batch: Batch,
        geometry: Geometry,
        added: Sequence[Tensor | None] = (),
    ) -> list[Tensor]:
        """
        Args:
            h: rank l of the features below, [A, 2l+1, C].
            added: what conditions add to A of rank l (spec §12), [A, 2l+1, C] or None.

        Returns:
            [A, 2l+1, C] of every rank l of `outputs`.
        """
        a = self.interaction(h, batch, geometry)
        for l, extra in enumerate(added[: len(a)]):  # noqa: E741
            if extra is not None:
                a[l] = _add(a[l], extra)
        if self.gate is not None:
            a = self.gate(a)
        products = self.product(a)
        result = [
            out(mix(x, batch.species_counts))
            for mix, out, x in zip(self.mix, self.out, products, strict=True)
        ]
        if len(self.self_connection):
            result = [
                x + connect(highest(a[l], l), batch.species_counts)
                for x, connect, l in zip(result, self.self_connection, self.outputs, strict=True)  # noqa: E741
            ]
        if self.residual:
            result = [
                x + h[l] if l < len(h) else x
                for x, l in zip(result, self.outputs, strict=True)  # noqa: E741
            ]
        return result


def _add(a: Tensor, extra: Tensor) -> Tensor:
    """Add to the symmetric traceless part, which comes first."""
    n = extra.shape[1]
    return a + extra if a.shape[1] == n else concatenate([a[:, :n] + extra, a[:, n:]], 1)
