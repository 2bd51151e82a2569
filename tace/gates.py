"""Non-linear gates on A before the product basis (spec §15): zero stays zero, and all are smooth there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from .layers import Linear, over_atoms


class NormGate(nn.Module):
    """t → Lin_l(σ(w_c‖t‖² + b_c)·t) for l > 0 and Lin_0(SiLU(t)) for scalars; A by rank, [A, n, C].

    ‖t‖² and not ‖t‖: the norm has no derivative at zero, where atoms without neighbours are.
    """

    def __init__(self, channels: int, l_max: int, generator: torch.Generator) -> None:
        super().__init__()
        self.slope = nn.ParameterList(torch.ones(channels, dtype=torch.float64) for _ in range(l_max))
        self.offset = nn.ParameterList(torch.zeros(channels, dtype=torch.float64) for _ in range(l_max))
        self.out = nn.ModuleList(Linear(channels, channels, generator) for _ in range(l_max + 1))

    def forward(self, a: Sequence[Tensor]) -> list[Tensor]:
        gated = [silu(a[0])]
        for x, slope, offset in zip(a[1:], self.slope, self.offset, strict=True):
            gate = over_atoms(slope, x) * x.square().sum(1, keepdim=True) + over_atoms(offset, x)
            gated.append(torch.sigmoid(gate) * x)
        return [out(x) for out, x in zip(self.out, gated, strict=True)]


class ScalarGate(nn.Module):
    """t → SiLU(g_l)·Lin_l(t), with the gates g of all ranks linear in the scalars; A by rank, [A, n, C]."""

    def __init__(self, channels: int, l_max: int, generator: torch.Generator) -> None:
        super().__init__()
        self.gates = Linear(channels, channels * (l_max + 1), generator)
        self.out = nn.ModuleList(Linear(channels, channels, generator) for _ in range(l_max + 1))

    def forward(self, a: Sequence[Tensor]) -> list[Tensor]:
        gates = silu(self.gates(a[0])).chunk(len(self.out), 2)
        return [gate * out(x) for gate, out, x in zip(gates, self.out, a, strict=True)]
