"""Training of one model: loss, optimiser, schedule, averaging of weights, exact resume.

Deterministic for a seed on a given machine and thread count: the order of samples follows from the
seed, so that a checkpoint needs no random state. float32 models sum energies and errors in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .batch import Batch
from .data import Sample, Targets, collate_samples
from .derivatives import evaluate
from .errors import TrainingError
from .io import read_archive, write_archive
from .layers import gains
from .memory import keep_freed_memory
from .model import Tace
from .offsets import fit_offsets
from .radial_tables import drop_tables
from .settings import TrainSettings
from .training_route import Route
from .validation import Plan, validation_errors, watched

CHECKPOINT_FORMAT = "tace-checkpoint"


@dataclass
class FitResult:
    """What training did."""

    steps: int = 0
    stopped_early: bool = False
    best_step: int = 0
    last_force_rmse_eV_per_A: float = math.nan  # of the averaged weights, on the validation set
    best_force_rmse_eV_per_A: float = math.nan
    history: list[dict[str, float]] = field(default_factory=list)


GOLDEN = 0.6180339887498949  # its multiples fill the unit interval most evenly


def draw_order(fidelities: np.ndarray, draws: int, *, balance: float, seed: int) -> np.ndarray:
    """Which sample every draw of a training takes.

    Fidelity f gets a share of the draws ∝ count^(1 − balance), spread evenly over time; its own
    samples are gone through in one random order after another.

    Args:
        fidelities: [N], the fidelity of each sample.

    Returns:
        [draws] indices into the samples.
    """
    present, counts = np.unique(fidelities, return_counts=True)
    shares = counts.astype(float) ** (1.0 - balance)
    edges = np.cumsum(shares / shares.sum())
    which = np.searchsorted(edges[:-1], (0.5 + GOLDEN * np.arange(draws)) % 1.0, side="right")
    order = np.empty(draws, dtype=np.int64)
    for f, level in enumerate(present):
        own = np.flatnonzero(fidelities == level)
        places = np.flatnonzero(which == f)
        rounds = -(-len(places) // len(own))
        rng = np.random.default_rng([seed, int(level)])
        stream = [rng.permutation(own) for _ in range(rounds)]
        order[places] = np.concatenate([*stream, own[:0]])[: len(places)]
    return order


class Trainer:
    """Owns model, optimiser, averaged weights and the place in the run."""

    def __init__(
        self, model: Tace, train: Sequence[Sample], valid: Sequence[Sample], settings: TrainSettings
    ) -> None:
        if not train:
            raise TrainingError("the training set is empty")
        keep_freed_memory()
        drop_tables(model)  # the networks learn, and what stood for them would not
        self.model, self.train, self.valid, self.settings = model, train, valid, settings
        self.order = draw_order(
            np.array([s.graph.fidelity for s in train]),
            settings.steps * settings.batch_size,
            balance=settings.fidelity_balance,
            seed=settings.seed,
        )
        self.plan = Plan.of(model, train)
        self.route = Route(model, self.plan, settings)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        gain_of = gains(model)
        self.gains = [gain_of[n] for n, p in model.named_parameters() if p.requires_grad]
        groups: dict[float, list[Tensor]] = {}
        for parameter, gain in zip(self.parameters, self.gains, strict=True):
            groups.setdefault(gain, []).append(parameter)
        self.optimizer = torch.optim.Adam(
            [
                {"params": members, "lr": settings.learning_rate * gain, "gain": gain}
                for gain, members in sorted(groups.items())
            ],
            amsgrad=settings.amsgrad,
            fused=True,  # one pass over each parameter
        )
        self.average = [p.detach().clone() for p in self.parameters]
        self.best = [p.detach().clone() for p in self.parameters]
        self.step = 0
        self.rate_factor = 1.0  # of the plateau schedule
        self.since_best = 0
        self.recent: list[float] = []  # losses since the last validation
        self.result = FitResult(best_force_rmse_eV_per_A=math.inf)

    def batch_indices(self, step: int) -> list[int]:
        """Samples of a step; none twice, so that a small set gives small batches."""
        size = self.settings.batch_size
        return list(dict.fromkeys(self.order[step * size : (step + 1) * size].tolist()))

    def learning_rate(self, step: int) -> float:
        """Rate of the unit-gain group."""
        s, fraction = self.settings, step / self.settings.steps
        factor = {
            "constant": 1.0,
            "linear": 1.0 - fraction,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * fraction)),
            "plateau": self.rate_factor,
        }[s.schedule]
        return s.learning_rate * max(factor, 1e-3)

    def one_step(self) -> float:
        """Forward, backward, clip, update, average; returns the loss.

        Raises:
            TrainingError: the loss or a gradient is not finite.
        """
        rate = self.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["gain"]
        indices = self.batch_indices(self.step)
        batch, targets = self._collated(indices)
        objective = self.route.step(batch, targets, progress=self.step / self.settings.steps)
        value, norm = float(objective), self._clip()
        if not (math.isfinite(value) and math.isfinite(norm)):
            names = ", ".join(self.train[n].name for n in indices[:4])
            raise TrainingError(
                f"training diverged at step {self.step} (loss {value}, gradient norm {norm}) on "
                f"{names}, …; a smaller learning_rate or a look at these labels would help"
            )
        self.optimizer.step()
        self.step += 1
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1.0 - decay)
        return value

    def _clip(self) -> float:
        """Clip by the global norm of gradients with respect to unit-variance parameters."""
        pairs = zip(self.parameters, self.gains, strict=True)
        owned = [(p.grad, gain) for p, gain in pairs if p.grad is not None]
        norms = torch._foreach_norm([grad for grad, _ in owned])
        factors = torch.tensor([g for _, g in owned], dtype=norms[0].dtype, device=norms[0].device)
        norm = float((torch.stack(norms) * factors).square().sum().sqrt())
        if math.isfinite(norm) and norm > self.settings.clip_norm:
            torch._foreach_mul_([grad for grad, _ in owned], self.settings.clip_norm / norm)
        return norm

    def _collated(self, indices: list[int]) -> tuple[Batch, Targets]:
        chosen = [self.train[n] for n in indices]
        batch, targets = collate_samples(
            chosen,
            len(self.model.config.elements),
            hessian_rows=self.settings.hessian_rows if self.plan.hessians else 0,
            seed=self.step,
        )
        return batch.to(self.model.device), targets.to(self.model.device)

    def validate(self) -> dict[str, float]:
        """`validation_errors` of the averaged weights."""
        self._swap(self.average)
        try:
            return validation_errors(self.model, self.valid, self.settings)
        finally:
            self._swap(self.average)

    def _swap(self, other: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, other, strict=True):
            parameter.data, value.data = value.data, parameter.data

    def keep_best(self, value: float) -> None:
        """Book-keeping after a validation."""
        self.result.last_force_rmse_eV_per_A = value
        if value < self.result.best_force_rmse_eV_per_A:
            self.result.best_force_rmse_eV_per_A, self.result.best_step = value, self.step
            torch._foreach_copy_(self.best, self.average)
            self.since_best = 0
        else:
            self.since_best += 1
            if self.since_best % 10 == 0:
                self.rate_factor *= 0.8

    def finish(self) -> FitResult:
        """Put averaged weights into the model: the last if the schedule anneals, else the best."""
        annealed = self.settings.schedule in ("cosine", "linear") and not self.result.stopped_early
        chosen = self.best if self.result.best_step and not annealed else self.average
        for parameter, value in zip(self.parameters, chosen, strict=True):
            parameter.data.copy_(value)
        if self.settings.energy_weight > 0:
            self.correct_shift()
        self.result.steps = self.step
        if not self.valid:
            self.result.best_force_rmse_eV_per_A = math.nan
        return self.result

    def correct_shift(self) -> None:
        """Add to the shifts of each fidelity what elements explain of the energies that are left over.

        Forces decide most of the loss, and a constant of each element is not in them.
        """
        elements = len(self.model.config.elements)
        left: dict[int, list[tuple[np.ndarray, float]]] = {}
        for start in range(0, len(self.train), 32):
            part = self.train[start : start + 32]
            batch, targets = collate_samples(part, elements)
            found = evaluate(self.model, batch.to(self.model.device), forces=False)
            wrong = (targets.energies - found.energies.cpu()).tolist()
            for sample, value in zip(part, wrong, strict=True):
                if math.isfinite(value) and len(sample.graph.pairs.i):
                    counts = np.bincount(sample.graph.species, minlength=elements)
                    left.setdefault(sample.graph.fidelity, []).append((counts, value))
        for fidelity, rows in left.items():
            sizes = np.array([counts.sum() for counts, _ in rows], dtype=float)
            shares = np.array([counts for counts, _ in rows]) / sizes[:, None]
            per_atom = np.array([value for _, value in rows]) / sizes
            offsets = fit_offsets(shares, per_atom[:, None], shrink=True)[:, 0]
            self.model.shift_eV[fidelity] += torch.from_numpy(offsets).to(self.model.device)

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs, as tensors and plain values."""
        return {
            **self._identity(),
            "references": self._references(),
            "step": self.step,
            "recent": self.recent,
            "model": [p.detach() for p in self.parameters],
            "average": self.average,
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "rate_factor": self.rate_factor,
            "since_best": self.since_best,
            "compiled": self.route.chosen,
            "result": asdict(self.result),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state` was taken.

        Raises:
            TrainingError: the checkpoint belongs to another model, other settings or other data.
        """
        for key, value in self._identity().items():
            if state.get(key) != value:
                raise TrainingError(f"the checkpoint belongs to another training: {key} differs")
        for mine, stored in (
            (self._references(), state["references"]),
            ([p.data for p in self.parameters], state["model"]),
            (self.average, state["average"]),
            (self.best, state["best"]),
        ):
            torch._foreach_copy_(mine, stored)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.rate_factor = state["step"], state["rate_factor"]
        self.since_best, self.result = state["since_best"], FitResult(**state["result"])
        self.recent = list(state["recent"])
        self.route.chosen = state.get("compiled", False)

    def _identity(self) -> dict[str, Any]:
        return {
            "format": CHECKPOINT_FORMAT,
            # a graph computes the same but for rounding: a run may go on with another `compile`
            "settings": {k: v for k, v in asdict(self.settings).items() if k != "compile"},
            "config": self.model.config.to_json(),
            "dtype": str(self.model.dtype),
            "samples": [[s.name for s in self.train], [s.name for s in self.valid]],
        }

    def _references(self) -> list[Tensor]:
        """Buffers that are part of the model: energies of atoms, scales, shifts, offsets of heads."""
        trained = {name for name, _ in self.model.named_parameters()}
        return [value for name, value in self.model.state_dict().items() if name not in trained]


def fit(
    model: Tace,
    train: Sequence[Sample],
    valid: Sequence[Sample],
    *,
    settings: TrainSettings,
    checkpoint: Path | None = None,
    checkpoint_every: int = 500,
    on_step: Callable[[int, float], bool] | None = None,
    on_validation: Callable[[dict[str, float]], None] | None = None,
) -> FitResult:
    """Train in place.

    Args:
        checkpoint: file written every `checkpoint_every` steps and resumed from if it exists.
        on_step: called with (step, loss); returning False stops, with the checkpoint written.
        on_validation: called with every new entry of the history: `step`, the mean `loss` since the one
            before, the `learning_rate` of that step, and the errors on the validation set, if there is one.

    Raises:
        TrainingError: empty set, diverged, or a checkpoint of another run.
    """
    trainer = Trainer(model, train, valid, settings)
    if checkpoint is not None and checkpoint.exists():
        trainer.restore(read_archive(checkpoint, model.device))
    trainer.route.choose(train, settings.steps - trainer.step)
    while trainer.step < settings.steps:
        rate = trainer.learning_rate(trainer.step)
        objective = trainer.one_step()
        trainer.recent.append(objective)
        last = trainer.step == settings.steps
        if trainer.step % settings.validate_every == 0 or last:
            mean, trainer.recent = float(np.mean(trainer.recent)), []
            entry = {"step": trainer.step, "loss": mean, "learning_rate": rate}
            if valid:
                found = trainer.validate()
                trainer.keep_best(watched(found))
                entry |= found
            trainer.result.history.append(entry)
            if on_validation is not None:
                on_validation(entry)
            if settings.patience and trainer.since_best >= settings.patience:
                trainer.result.stopped_early = True
                break
        if checkpoint is not None and (trainer.step % checkpoint_every == 0 and not last):
            write_archive(checkpoint, trainer.state())
        if on_step is not None and not on_step(trainer.step, objective):
            if checkpoint is not None:
                write_archive(checkpoint, trainer.state())
            break
    return trainer.finish()
