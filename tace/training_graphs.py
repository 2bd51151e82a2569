"""A step of training as one compiled graph: energies, forces, stresses, their loss, and its gradient.

The gradient of a loss of forces needs second derivatives; all of it is recorded at once, forward and backward
twice, so that nothing is kept between two halves and one call returns loss and gradients. The sums of latent
charges over pairs and lattices are operators of it (opaque.py), which run PyTorch. Labels besides energies,
forces and stresses are left to PyTorch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .batch import Batch
from .data import Targets
from .derivatives import make_leaves, strained_geometry, stresses_of, voigt
from .edge_sum import compiled as compiled_sums
from .graphs import (
    Figures,
    GraphError,
    compile_graph,
    figures_of,
    graph_path,
    locked,
    opened,
    switched_off,
    write_beside,
)
from .loss import VOIGT_SHARES, Difference, penalty
from .model import Tace
from .product import compiled as compiled_products
from .recorded import recordable
from .recording import Function, batch_of, batch_tensors, fits, substituted, varying, weights
from .settings import TrainSettings
from .validation import Plan

log = logging.getLogger("tace")

TERMS = ("energy", "forces", "stress")
TARGETS = {
    "energies": "S", "forces": "A", "stresses": "S", "weights": "S", "atom_weights": "A", "n_atoms": "S",
    "volumes": "S",
}  # fmt: skip
# of loss and gradients, each of its largest number, from those of PyTorch: rounding, of sums over many terms
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}


class TrainingGraph:
    """Loss and gradients of a step by a compiled graph."""

    def __init__(self, call: Function, model: Tace) -> None:
        self._call, self._recorded = call, recordable(model)
        self._trained = trained(self._recorded)

    def takes(self, batch: Batch) -> bool:
        """Whether the graph can be given this batch."""
        return fits(batch)

    def __call__(
        self, batch: Batch, targets: Targets, settings: TrainSettings, *, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its gradient by the names of parameters."""
        values = [x.detach() for x in weights(self._recorded).values()]
        found = self._call(values, step_tensors(batch, targets, settings, progress=progress))
        return found[0], dict(zip(self._trained, found[1:], strict=True))


def trained(model: Tace) -> list[str]:
    """Names of the parameters that have gradients."""
    return [name for name, p in model.named_parameters() if p.requires_grad]


def refusal(model: Tace, plan: Plan) -> str:
    """Why a step of this training is not for a graph; '' if it is."""
    if switched_off():
        return "TACE_GRAPHS=0"
    if model.device.type != "cpu":
        return f"the model is on {model.device.type}, and graphs are for CPUs"
    if plan.responses or plan.hessians:
        rest = [*plan.responses, *(["hessian"] if plan.hessians else [])]
        return f"labels of {', '.join(rest)} are compared"
    return ""


def step_tensors(
    batch: Batch, targets: Targets, settings: TrainSettings, *, progress: float
) -> list[Tensor]:
    """What a graph is called with: a batch, its labels, and the weights of the three terms."""
    term_weights = [settings.weight(name, progress=progress) for name in TERMS]
    labels = [getattr(targets, name) for name in TARGETS]
    return [*batch_tensors(batch), *labels, torch.tensor(term_weights, dtype=torch.float64)]


def step_dimensions(batch: Batch) -> list[dict[int, str]]:
    """Which dimensions of `step_tensors` vary, see `graphs.varying`."""
    return [*varying(batch), *({0: name} for name in TARGETS.values()), {}]


def training(recorded: Tace, inputs: Sequence[str], plan: Plan, kinds: dict[str, str]) -> Function:
    """(weights, `step_tensors`) → loss, and its gradient for every parameter in `trained`."""
    names, wanted = list(weights(recorded)), set(trained(recorded))

    def run(values: Sequence[Tensor], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        split = len(tensors) - len(TARGETS) - 1
        batch = batch_of(tensors[:split], inputs)
        labels = dict(zip(TARGETS, tensors[split:-1], strict=True))
        given = dict(zip(names, values, strict=True))
        learning = {n: x.detach().requires_grad_() for n, x in given.items() if n in wanted}
        with torch.enable_grad(), substituted(recorded, {**given, **learning}):
            leaves = make_leaves(batch, stress=plan.stress)
            geometry, _ = strained_geometry(recorded, batch, leaves)
            energies = recorded(batch, geometry).energies
            forces = stresses = None
            if plan.forces or plan.stress:
                places = [leaves.positions, *([] if leaves.strain is None else [leaves.strain])]
                slopes = torch.autograd.grad(energies.sum(), places, create_graph=True)
                forces = -slopes[0].index_select(0, batch.original) if plan.forces else None
                stresses = stresses_of(slopes[1], batch) if plan.stress else None
            total = masked_loss((energies, forces, stresses), labels, tensors[-1], kinds=kinds)
            grads = torch.autograd.grad(total, list(learning.values()), materialize_grads=True)
        return total.detach(), *grads

    return run


def masked_loss(
    found: tuple[Tensor, Tensor | None, Tensor | None],
    labels: dict[str, Tensor],
    term_weights: Tensor,
    *,
    kinds: dict[str, str],
) -> Tensor:
    """`loss.loss` of energies, forces and stresses with masks in the place of rows that are picked."""
    energies, forces, stresses = found
    total = (energies * 0.0).sum()
    n_atoms = labels["n_atoms"]
    for place, (name, values) in enumerate(zip(TERMS, (energies, forces, stresses), strict=True)):
        if values is None:
            continue
        multiplicity, scale = None, None
        if name == "energy":
            target, scale = labels["energies"].unsqueeze(1), (1.0 / n_atoms).unsqueeze(1)
            values, own = values.unsqueeze(1), labels["weights"]
        elif name == "forces":
            target, own = labels["forces"], labels["atom_weights"]
        else:
            target, own = labels["stresses"], labels["weights"]
            values = voigt(values)
            multiplicity = torch.tensor(VOIGT_SHARES, dtype=values.dtype)
            scale = (labels["volumes"] / n_atoms).unsqueeze(1)
        has = torch.isfinite(target[:, 0])
        # the value is taken out before it is used: a NaN that is multiplied by zero stays one
        there = has.unsqueeze(1)
        wrong = torch.where(there, values, 0.0) - torch.where(there, target, 0.0)
        wrong = wrong if scale is None else wrong * scale
        rows = penalty(Difference(name, wrong, own, multiplicity), kinds.get(name, "mse"))
        weight = torch.where(has, own, 0.0)
        mean = (weight * rows).sum() / weight.sum().clamp(min=1e-300)
        total = total + term_weights[place] * mean
    return total


# ------------------------------------------------------------------ building
def kind_of(model: Tace, plan: Plan, settings: TrainSettings) -> str:
    """What tells graphs of one configuration apart."""
    kinds = {name: settings.loss_kinds.get(name, "mse") for name in TERMS}
    parts = ("step", plan.forces, plan.stress, sorted(kinds.items()), trained(model))
    return json.dumps(parts)


def find_step(model: Tace, plan: Plan, settings: TrainSettings) -> tuple[Path, Figures | None]:
    """Where the graph of a step is, and what was found when it was built; None if that has not been done.

    Raises:
        GraphError: there is no compiler.
    """
    path = graph_path(model, kind_of(model, plan, settings))
    return path, figures_of(path)


def build_step(
    model: Tace,
    plan: Plan,
    settings: TrainSettings,
    *,
    batch: tuple[Batch, Targets],
    eager: Callable[[], tuple[Tensor, dict[str, Tensor]]],
) -> tuple[Path, Figures]:
    """Build the graph of a step, compare it with PyTorch and time both, unless that has been done.

    Args:
        batch: what it is recorded on and compared on.
        eager: loss and gradients of that batch by PyTorch.

    Returns:
        Where the graph is, and what was found.

    Raises:
        GraphError: no compiler, a model that cannot be recorded, or a graph that gives other numbers.
    """
    path, _ = find_step(model, plan, settings)
    with locked(path):
        return path, figures_of(path) or _build(path, model, batch, of=(plan, settings), eager=eager)


def _build(
    path: Path,
    model: Tace,
    batch: tuple[Batch, Targets],
    *,
    of: tuple[Plan, TrainSettings],
    eager: Callable[[], tuple[Tensor, dict[str, Tensor]]],
) -> Figures:
    plan, settings = of
    if compiled_sums() is None or compiled_products() is None:
        raise GraphError("there are no compiled kernels for it to call")
    start = time.perf_counter()
    recorded = recordable(model)
    kinds = {name: settings.loss_kinds.get(name, "mse") for name in TERMS}
    package = compile_graph(
        training(recorded, sorted(batch[0].inputs), plan, kinds),
        [x.detach() for x in weights(recorded).values()],
        step_tensors(*batch, settings, progress=0.0),
        step_dimensions(batch[0]),
    )
    seconds = time.perf_counter() - start
    write_beside(path, package)
    digest = hashlib.sha256(package).hexdigest()
    graph = TrainingGraph(opened(path, Figures(digest, seconds, 0.0, 0.0, 0.0, 0.0)), model)
    off = difference(graph(*batch, settings, progress=0.0), eager())
    if not off <= TOLERANCE[model.dtype]:
        path.unlink()
        raise GraphError(f"the graph's gradients are off by {off:.1e}")
    eager_ms, graph_ms = _cpu_ms(eager), _cpu_ms(lambda: graph(*batch, settings, progress=0.0))
    figures = Figures(digest, seconds, eager_ms, graph_ms, 0.0, 0.0)
    write_beside(path.with_suffix(".json"), json.dumps(figures._asdict()).encode())
    return figures


def difference(
    found: tuple[Tensor, dict[str, Tensor]], wanted: tuple[Tensor, dict[str, Tensor]]
) -> float:
    """Largest deviation of loss and gradients, each of its largest number; NaN if there is one."""
    worst = float((found[0] - wanted[0]).abs() / wanted[0].abs().clamp(min=1e-300))
    size = max(float(g.abs().max()) for g in wanted[1].values())
    for name, grad in wanted[1].items():
        scale = max(float(grad.abs().max()), 1e-3 * size)  # one that is nearly zero is only rounding
        worst = max(worst, float((found[1][name] - grad).abs().max()) / max(scale, 1e-300))
    return worst if math.isfinite(worst) else math.nan


def _cpu_ms(call: Callable[[], object], repeats: int = 7) -> float:
    found = []
    for n in range(repeats + 2):
        start = time.process_time()
        call()
        if n >= 2:
            found.append(1e3 * (time.process_time() - start))
    return sorted(found)[len(found) // 2]
