"""A model for the smoke run of the benchmarks: springs to the centre, with one weight."""

from __future__ import annotations

from typing import Any

import torch
from common import Peer, main


class Springs(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.strength = torch.nn.Parameter(torch.ones(()))

    def forward(self, frames: list[torch.Tensor], training: bool) -> tuple[torch.Tensor, torch.Tensor]:
        places = [x.clone().requires_grad_() for x in frames]
        energies = torch.stack([self.strength * (x - x.mean(0)).square().sum() for x in places])
        slopes = torch.autograd.grad(energies.sum(), places, create_graph=training)
        return energies, -torch.cat(slopes)


class Stub(Peer):
    name, version = "stub", "1"

    def build(self, size: Any, stats: Any, seed: int = 0) -> None:
        self.model = Springs()

    def graph(self, atoms: Any, labels: bool) -> torch.Tensor:
        return torch.tensor(atoms.positions, dtype=self.dtype)

    def collate(self, graphs: list[Any]) -> list[Any]:
        return graphs

    def forward(self, batch: Any, training: bool) -> Any:
        return self.model(batch, training)


if __name__ == "__main__":
    main(Stub)
