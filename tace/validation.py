"""Errors of a model on labelled samples, by the derivatives that the labels call for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .batch import Batch
from .data import Sample, Targets, collate_samples
from .derivatives import Evaluation, evaluate
from .loss import differences, loss
from .model import Tace
from .responses import label_shape
from .settings import TrainSettings

ERROR_NAMES = {
    "energy": ("energy", "_eV_per_atom"),
    "forces": ("force", "_eV_per_A"),
    "stress": ("virial", "_eV_per_atom"),
}


@dataclass(frozen=True)
class Plan:
    """Which derivatives the labels of a training set call for."""

    forces: bool
    stress: bool
    responses: tuple[str, ...]
    hessians: bool

    @classmethod
    def of(cls, model: Tace, samples: Sequence[Sample]) -> Plan:
        """Nothing is computed that no label is compared with."""
        names = dict.fromkeys(n for s in samples for n in (*s.labels, *s.atom_labels))
        for name in names:
            label_shape(name, model.config)
        return cls(
            forces=any(np.isfinite(s.forces).any() for s in samples),
            stress=any(np.isfinite(s.stress).all() for s in samples),
            responses=tuple(names),
            hessians=any(s.hessian is not None and np.isfinite(s.hessian).all() for s in samples),
        )

    def evaluate(
        self, model: Tace, batch: Batch, targets: Targets, *, create_graph: bool
    ) -> Evaluation:
        """All that the targets are compared with."""
        return evaluate(
            model,
            batch,
            forces=self.forces,
            stress=self.stress,
            create_graph=create_graph,
            responses=self.responses,
            hessian_rows=targets.rows if len(targets.rows) else None,
        )


def validation_errors(
    model: Tace, samples: Sequence[Sample], settings: TrainSettings
) -> dict[str, float]:
    """RMSE and MAE over components of every quantity that is labelled, and the loss; empty without samples.

    Keys are `force_rmse_eV_per_A` and its like, `<name>_rmse` for further quantities. The loss is the
    mean of those of batches of 32.
    """
    plan = Plan.of(model, samples)
    wrong: dict[str, list[Tensor]] = {}
    losses = []
    for start in range(0, len(samples), 32):
        part = samples[start : start + 32]
        batch, targets = collate_samples(
            part,
            len(model.config.elements),
            hessian_rows=settings.hessian_rows if plan.hessians else 0,
            seed=start,
        )
        batch, targets = batch.to(model.device), targets.to(model.device)
        result = plan.evaluate(model, batch, targets, create_graph=False)
        for term in differences(result, targets):
            wrong.setdefault(term.name, []).append(term.values.flatten())
        losses.append(float(loss(result, targets, settings)))
    found: dict[str, float] = {}
    for name, parts in wrong.items():
        values = torch.cat(parts)
        key, unit = ERROR_NAMES.get(name, (name, ""))
        found[f"{key}_rmse{unit}"] = float(values.square().mean().sqrt())
        found[f"{key}_mae{unit}"] = float(values.abs().mean())
    if losses:
        found["validation_loss"] = float(np.mean(losses))
    return found


def watched(errors: dict[str, float]) -> float:
    """What early stopping and the best weights go by: force RMSE, without forces the root of the loss."""
    if "force_rmse_eV_per_A" in errors:
        return errors["force_rmse_eV_per_A"]
    return math.sqrt(errors["validation_loss"]) if errors else math.nan
