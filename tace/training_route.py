"""How the loss of a step and its gradient are found: by PyTorch, or by a compiled graph where that pays.

`auto` takes a graph that has been built before, and builds one where the steps pay for it, by estimates and
not by times of this run. A checkpoint holds the decision, so that a run that is continued gives the same
weights bit by bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from torch import Tensor

from .batch import Batch
from .data import Sample, Targets, collate_samples
from .graphs import GraphError, opened
from .layers import Linear
from .loss import loss
from .model import Tace
from .radial_tables import networks
from .settings import TrainSettings
from .training_graphs import TrainingGraph, build_step, find_step, refusal
from .validation import Plan

log = logging.getLogger("tace")

# what a graph saves in a step, and what building it takes, by tests/bench/compiled.py: both cautious
SAVED_MS_PER_LAYER, SAVED_MS_PER_CHANNEL = 2.0, 0.08  # the latter in every layer
SAVED_WITH_CHARGES = 0.6  # of that: their sums are found once more for the second derivative
BUILD_S, BUILD_S_PER_PATH = 45.0, 2.0

Gradients = tuple[Tensor, dict[str, Tensor]]


class Route:
    """PyTorch until `choose` has found a graph."""

    def __init__(self, model: Tace, plan: Plan, settings: TrainSettings) -> None:
        self.model, self.plan, self.settings = model, plan, settings
        self.graph: TrainingGraph | None = None
        self.chosen: bool | None = None  # whether it is a graph; None: not decided
        self.parameters = [(n, p) for n, p in model.named_parameters() if p.requires_grad]

    def step(self, batch: Batch, targets: Targets, *, progress: float) -> Tensor:
        """The loss, with the gradient in `grad` of every parameter."""
        for _, p in self.parameters:
            p.grad = None
        if self.graph is not None and self.graph.takes(batch):
            try:
                value, grads = self.graph(batch, targets, self.settings, progress=progress)
            except RuntimeError as error:
                log.warning("the compiled step fails, PyTorch does it from here on: %s", str(error)[:300])
                self.graph = None
            else:
                for name, p in self.parameters:
                    p.grad = grads[name]
                return value
        result = self.plan.evaluate(self.model, batch, targets, create_graph=True)
        objective = loss(result, targets, self.settings, progress=progress)
        # positions and strains need no gradient of the loss
        objective.backward(inputs=[p for _, p in self.parameters])
        return objective.detach()

    def gradients(self, batch: Batch, targets: Targets) -> Gradients:
        """Loss and gradients by PyTorch, of the first step."""
        graph, self.graph = self.graph, None
        value = self.step(batch, targets, progress=0.0)
        self.graph = graph
        found = {name: p.grad for name, p in self.parameters if p.grad is not None}
        for _, p in self.parameters:
            p.grad = None
        return value, found

    def choose(self, samples: Sequence[Sample], steps: int) -> None:
        """Decide, unless a checkpoint has, and build the graph or find it built; the log says what and why.

        Args:
            steps: that are left.
        """
        mode = self.settings.compile
        reason = refusal(self.model, self.plan)
        if not reason and mode == "auto" and self.chosen is None and not self._is_built():
            reason = too_few(self.model, steps)
        if self.chosen is None:
            self.chosen = mode != "off" and not reason
            if reason and mode != "off":
                level = logging.WARNING if mode == "on" else logging.INFO
                log.log(level, "training.compile %s: PyTorch does the steps, for %s", mode, reason)
        if self.chosen:
            self._open(samples)

    def _is_built(self) -> bool:
        try:
            return find_step(self.model, self.plan, self.settings)[1] is not None
        except GraphError:
            return False

    def _open(self, samples: Sequence[Sample]) -> None:
        two = [samples[0], samples[min(1, len(samples) - 1)]]
        first = collate_samples(two, len(self.model.config.elements))
        call: Callable[[], Gradients] = lambda: self.gradients(*first)  # noqa: E731
        try:
            path, figures = build_step(
                self.model, self.plan, self.settings, batch=first, eager=call
            )
            if figures.pays:
                self.graph = TrainingGraph(opened(path, figures), self.model)
                log.info(
                    "steps are compiled: when this was built, %.3g ms against %.3g ms of PyTorch",
                    figures.graph_ms, figures.eager_ms,
                )  # fmt: skip
                return
            why = f"a compiled step takes {figures.graph_ms:.3g} ms, one of PyTorch {figures.eager_ms:.3g}"
        except (GraphError, OSError, RuntimeError) as error:
            why = str(error)
        log.warning("no compiled step, PyTorch does it: %s", why)


def too_few(model: Tace, steps: int) -> str:
    """Why so many steps are not worth a graph; '' if they are."""
    paths = 0
    for _, network in networks(model):
        last = network.layers[-1]
        assert isinstance(last, Linear)
        paths += last.weight.shape[1] // model.config.channels
    build = BUILD_S + BUILD_S_PER_PATH * paths
    per_layer = SAVED_MS_PER_LAYER + SAVED_MS_PER_CHANNEL * model.config.channels
    share = 1.0 if model.config.les is None else SAVED_WITH_CHARGES
    saved = 1e-3 * share * per_layer * model.config.n_layers * steps
    if saved > build:
        return ""
    return f"a graph would save some {saved:.0f} s in {steps} steps and take {build:.0f} s to build"
