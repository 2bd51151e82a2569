"""Scalar readouts: linear in every layer, with a small network besides in the last (eq. 13)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .batch import Batch
from .initial import READOUT_START
from .layers import Linear

ENERGY_READOUTS = ("energy_readout.", "charge_readout.")  # how their names begin in a model


class ScalarReadout(nn.Module):
    """Features of every layer, each [A, C] → [A, n_out].

    With `levels` > 1 every fidelity has weights of its own (multi-head), and the gradient of one level's
    readout is exactly zero for structures of another.
    """

    def __init__(
        self,
        sizes: tuple[int, int, int],
        generator: torch.Generator,
        *,
        n_out: int = 1,
        levels: int = 1,
        gain: float = 1.0,
        start: float = READOUT_START,
    ) -> None:
        """
        Args:
            sizes: channels, layers, width of the hidden layer.
        """
        super().__init__()
        channels, n_layers, hidden = sizes
        self.n_out, self.levels = n_out, levels
        self.linear = nn.ModuleList(
            Linear(channels, n_out * levels, generator, gain, start=start) for _ in range(n_layers)
        )
        self.hidden = Linear(channels, hidden * levels, generator)
        self.hidden_out = nn.ModuleList(
            Linear(hidden, n_out, generator, gain, start=start) for _ in range(levels)
        )

    def forward(self, scalars: Sequence[Tensor], batch: Batch) -> Tensor:
        total = self.linear[0](scalars[0])
        for x, linear in zip(scalars[1:], self.linear[1:], strict=True):
            total = total + linear(x)
        hidden = nn.functional.silu(self.hidden(scalars[-1]))
        if self.levels == 1:
            return total + self.hidden_out[0](hidden)
        parts = [
            out(part)
            for out, part in zip(self.hidden_out, hidden.chunk(self.levels, 1), strict=True)
        ]
        by_level = (total + torch.cat(parts, 1)).view(-1, self.levels, self.n_out)
        level = batch.fidelity.index_select(0, batch.structure).view(-1, 1, 1)
        return by_level.gather(1, level.expand(-1, 1, self.n_out)).squeeze(1)
