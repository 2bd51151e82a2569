"""Our model as the benchmarks see it: built to a size, one graph, one batch, one call."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ase import Atoms
from torch import Tensor

from tace.batch import Batch, Graph, collate, make_graph
from tace.config import TaceConfig
from tace.derivatives import evaluate
from tace.layers import gains
from tace.model import Tace


def build(
    elements: Sequence[int],
    *,
    cutoff: float,
    L_max: int,
    avg_neighbors: float,
    e0: Mapping[int, float],
    rms_forces: float = 1.0,
    shift: float = 0.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    sizes: Mapping[str, Any] | None = None,
) -> Tace:
    """A model of the size the benchmarks compare.

    Args:
        rms_forces: of force components, eV/Å; the model's scale is of the vector norm, √3 larger.
        sizes: other settings of `TaceConfig`.
    """
    config = TaceConfig(
        elements=tuple(sorted(elements)),
        cutoff_A=cutoff,
        L_max=L_max,
        avg_neighbors=avg_neighbors,
        **(sizes or {}),
    )
    model = Tace(config, seed=seed, dtype=dtype)
    model.set_reference(
        {"default": dict(e0)}, {"default": math.sqrt(3.0) * rms_forces}, {"default": shift}
    )
    return model


def graph(model: Tace, atoms: Atoms) -> Graph:
    """Species and neighbours of one structure."""
    return make_graph(atoms, model.config.elements, cutoff=model.config.cutoff_A)


def batch(model: Tace, graphs: Sequence[Graph]) -> Batch:
    """The batch of several graphs."""
    return collate(graphs, len(model.config.elements))


def call(model: Tace, inputs: Batch, *, training: bool) -> tuple[Tensor, Tensor]:
    """Energies [S] and forces [A,3]; differentiable once more when training."""
    out = evaluate(model, inputs, create_graph=training)
    assert out.forces is not None
    return out.energies, out.forces


class ClippedAdam(torch.optim.Adam):
    """Adam AMSGrad that clips before it steps, both in units of each parameter's gain.

    The same arithmetic as `tace.train.Trainer`, which the peers' loops cannot call.
    """

    def __init__(self, model: Tace, *, lr: float, clip: float) -> None:
        self.clip = clip
        gain_of = gains(model)
        named = [(p, gain_of[n]) for n, p in model.named_parameters() if p.requires_grad]
        groups: dict[float, list[Tensor]] = {}
        for parameter, gain in named:
            groups.setdefault(gain, []).append(parameter)
        self.gains = torch.tensor([gain for _, gain in named])
        self.members = [parameter for parameter, _ in named]
        super().__init__(
            [{"params": group, "lr": lr * gain} for gain, group in groups.items()], amsgrad=True
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        grads = [p.grad for p in self.members]
        norms = torch.stack(torch._foreach_norm(grads))
        norm = float((norms * self.gains.to(norms)).norm())
        if norm > self.clip:
            torch._foreach_mul_(grads, self.clip / norm)
        return super().step(closure)


class Training:
    """The training step that is timed: the published 3BPA recipe on 3BPA."""

    ENERGY_WEIGHT, FORCES_WEIGHT = 1.0, 10.0
    LEARNING_RATE, CLIP, DECAY = 1e-2, 10.0, 0.99
