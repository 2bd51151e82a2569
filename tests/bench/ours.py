"""Our model as the benchmarks see it: built to a size, one graph, one batch, one call."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from tace.batch import Batch, Graph, collate, make_graph
from tace.config import TaceConfig
from tace.data import Labelled
from tace.derivatives import evaluate
from tace.layers import gains
from tace.memory import keep_freed_memory
from tace.model import Tace
from tace.reference import mean_neighbors

CUTOFF_A = 5.0


class Labels(NamedTuple):
    """Energies [S] eV, forces [A,3] eV/Å and atoms of each frame [S], all float64."""

    energies: Tensor
    forces: Tensor
    n_atoms: Tensor


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
    keep_freed_memory()
    config = TaceConfig(
        elements=tuple(sorted(elements)),
        cutoff_A=cutoff,
        L_max=L_max,
        avg_neighbors=avg_neighbors,
        **(sizes or {}),
    )
    model = Tace(config, seed=seed, dtype=dtype)
    levels = config.fidelities
    scale = math.sqrt(3.0) * rms_forces
    model.set_reference(
        {n: dict(e0) for n in levels}, dict.fromkeys(levels, scale), dict.fromkeys(levels, shift)
    )
    return model


def graph(model: Tace, atoms: Atoms) -> Graph:
    """Species and neighbours of one structure."""
    config = model.config
    return make_graph(atoms, config.elements, cutoff=config.cutoff_A, inputs=config.inputs)


def batch(model: Tace, graphs: Sequence[Graph]) -> Batch:
    """The batch of several graphs."""
    return collate(graphs, len(model.config.elements))


def call(model: Tace, inputs: Batch, *, training: bool) -> tuple[Tensor, Tensor]:
    """Energies [S] and forces [A,3]; differentiable once more when training."""
    out = evaluate(model, inputs, create_graph=training)
    assert out.forces is not None
    return out.energies, out.forces


def compiled_call(model: Tace, inputs: Batch) -> Callable[[], object]:
    """A call of the model with radial tables in a compiled graph, which is built unless the cache has it."""
    from tace.compiling import made_up
    from tace.graphs import build, graph_path, opened
    from tace.radial_tables import with_tables
    from tace.recorded import recordable
    from tace.recording import batch_tensors, weights

    small = [batch(model, [graph(model, a)]) for a in made_up(model.config.elements)]
    tables, _ = with_tables(model, small)
    both = batch(model, [graph(model, a) for a in made_up(model.config.elements)])
    run = opened(graph_path(tables, "forces"), build(tables, [both, *small]))
    values = list(weights(recordable(tables)).values())
    return lambda: run(values, batch_tensors(inputs))


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
            [{"params": group, "lr": lr * gain} for gain, group in groups.items()],
            amsgrad=True,
            fused=True,
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
    """The training step that is timed: the published 3BPA recipe, on 3BPA."""

    ENERGY_WEIGHT, FORCES_WEIGHT = 1.0, 10.0
    LEARNING_RATE, CLIP, DECAY = 1e-2, 10.0, 0.99

    def __init__(
        self, train: Sequence[Atoms], L_max: int, e0: Mapping[int, float], *, seed: int = 0
    ) -> None:
        elements = sorted({int(z) for a in train for z in a.numbers})
        forces = np.concatenate([a.get_forces() for a in train])
        rest = [a.get_potential_energy() - sum(e0[int(z)] for z in a.numbers) for a in train]
        config = TaceConfig(tuple(elements), cutoff_A=CUTOFF_A)
        self.model = build(
            elements,
            cutoff=CUTOFF_A,
            L_max=L_max,
            avg_neighbors=mean_neighbors([Labelled(a) for a in train[:50]], config),
            e0=e0,
            rms_forces=float(np.sqrt((forces**2).mean())),
            shift=float(np.mean([e / len(a) for e, a in zip(rest, train, strict=True)])),
            seed=seed,
        )
        self.optimizer = ClippedAdam(self.model, lr=self.LEARNING_RATE, clip=self.CLIP)
        self.parameters = list(self.model.parameters())
        self.average = [p.detach().clone() for p in self.parameters]
        self.steps = 0

    def at_rate(self, factor: float) -> None:
        """Learning rates, relative to those of the start."""
        for group in self.optimizer.param_groups:
            group.setdefault("first_lr", group["lr"])
            group["lr"] = factor * group["first_lr"]

    def prepared(self, frames: Sequence[Atoms], graphs: Sequence[Graph]) -> tuple[Batch, Labels]:
        """Batch and labels of some frames, of which the graphs were made before."""
        labels = Labels(
            torch.tensor([a.get_potential_energy() for a in frames], dtype=torch.float64),
            torch.from_numpy(np.concatenate([a.get_forces() for a in frames])),
            torch.tensor([float(len(a)) for a in frames], dtype=torch.float64),
        )
        return batch(self.model, graphs), labels

    def step(self, inputs: Batch, labels: Labels) -> None:
        """Forward, backward, clip, update, average."""
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(inputs, labels).backward()
        self.optimizer.step()
        self.follow()

    def loss(self, inputs: Batch, labels: Labels) -> Tensor:
        """Of energies per atom and of forces, differentiable."""
        energies, forces = call(self.model, inputs, training=True)
        per_atom = (energies - labels.energies) / labels.n_atoms
        loss = self.ENERGY_WEIGHT * per_atom.square().mean()
        return loss + self.FORCES_WEIGHT * (forces - labels.forces).square().mean()

    def follow(self) -> None:
        """The average of the weights after a step."""
        self.steps += 1
        decay = min(self.DECAY, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1.0 - decay)

    def force_rmse(self, inputs: Batch, labels: Labels) -> float:
        """Of the averaged weights, meV/Å."""
        self._swap()
        _, forces = call(self.model, inputs, training=False)
        self._swap()
        return 1e3 * float((forces - labels.forces).square().mean().sqrt())

    def _swap(self) -> None:
        for parameter, value in zip(self.parameters, self.average, strict=True):
            parameter.data, value.data = value.data, parameter.data
