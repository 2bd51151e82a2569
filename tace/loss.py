"""What training minimises: weighted errors of every quantity, each normalised by the labels present."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .data import Targets
from .derivatives import Evaluation, voigt
from .settings import TrainSettings

HUBER = 0.01  # width of the quadratic part, in the unit of the quantity
PER_ATOM = ("dipole", "polarization", "polarizability")  # extensive: compared per atom
VOIGT_SHARES = tuple(n / 9.0 for n in (1.0, 1.0, 1.0, 2.0, 2.0, 2.0))  # by how often they occur
_VOIGT_MULTIPLICITY = torch.tensor(VOIGT_SHARES, dtype=torch.float64)


@dataclass(frozen=True)
class Difference:
    """Prediction less label of one quantity where there is a label; `components` of unit weights."""

    name: str
    values: Tensor  # [n, components]
    weights: Tensor  # [n]
    multiplicity: Tensor | None = None  # [components], adds up to one; None: all alike


def differences(result: Evaluation, targets: Targets) -> Iterator[Difference]:
    """Every quantity with at least one label in the batch, in the form that the loss compares."""
    has = _rows(targets, "energies", targets.energies)
    if has is not None:
        per_atom = ((result.energies - targets.energies) / targets.n_atoms)[has]
        yield Difference("energy", per_atom.unsqueeze(1), targets.weights[has])
    has = _rows(targets, "forces", targets.forces[:, 0])
    if result.forces is not None and has is not None:
        yield Difference("forces", (result.forces - targets.forces)[has], targets.atom_weights[has])
    has = _rows(targets, "stresses", targets.stresses[:, 0])
    if result.stresses is not None and has is not None:
        volume_per_atom = (targets.volumes[has] / targets.n_atoms[has]).unsqueeze(1)
        virial = (voigt(result.stresses[has]) - targets.stresses[has]) * volume_per_atom
        kinds = _VOIGT_MULTIPLICITY.to(virial.device, non_blocking=True)
        yield Difference("stress", virial, targets.weights[has], kinds)
    yield from _of_labels(result, targets)


def _rows(targets: Targets, name: str, labels: Tensor) -> Tensor | slice | None:
    """Which rows have a label; None if none has. Where the targets know, no tensor is asked."""
    known = targets.labelled.get(name)
    if known is not None:
        return slice(None) if known else None
    has = torch.isfinite(labels)
    return has if bool(has.any()) else None


def _of_labels(result: Evaluation, targets: Targets) -> Iterator[Difference]:
    cells, n_atoms = targets.cells, targets.n_atoms
    for name, label in targets.labels.items():
        flat = label.reshape(len(label), -1)
        has = torch.isfinite(flat[:, 0])
        if not bool(has.any()):
            continue
        wrong = (result.outputs[name].reshape(flat.shape) - flat)[has]
        if name == "polarization":
            wrong = nearest_image(wrong, cells[has])
        if name in PER_ATOM:
            wrong = wrong / n_atoms[has].unsqueeze(1)
        yield Difference(name, wrong, targets.weights[has])
    for name, label in targets.atom_labels.items():
        flat = label.reshape(len(label), -1)
        has = torch.isfinite(flat[:, 0])
        if bool(has.any()):
            wrong = (result.outputs[name].reshape(flat.shape) - flat)[has]
            yield Difference(name, wrong, targets.atom_weights[has])
    if len(targets.rows):
        has = torch.isfinite(targets.hessian_rows[..., 0])
        if bool(has.any()):
            wrong = (result.outputs["hessian_rows"] - targets.hessian_rows)[has]
            yield Difference("hessian", wrong, targets.atom_weights.expand(has.shape)[has])


def nearest_image(difference: Tensor, cells: Tensor) -> Tensor:
    """The polarisation [S,3] is defined up to lattice vectors (times e): the shortest of all differences."""
    fractional = torch.linalg.solve(cells.transpose(1, 2), difference.unsqueeze(2)).squeeze(2)
    shift = fractional.detach().round()
    return difference - torch.bmm(shift.unsqueeze(1), cells).squeeze(1)


def loss(
    result: Evaluation, targets: Targets, settings: TrainSettings, *, progress: float = 0.0
) -> Tensor:
    """Weighted errors of all quantities, in float64; `progress` is the share of the steps that is done."""
    total = (result.energies * 0.0).sum()
    for term in differences(result, targets):
        kind = settings.loss_kinds.get(term.name, "mse")
        rows = penalty(term, kind)
        mean = (term.weights * rows).sum() / term.weights.sum()
        total = total + settings.weight(term.name, progress=progress) * mean
    return total


def penalty(term: Difference, kind: str) -> Tensor:
    """[n], mean over components; 'l2' is the length of the vector of components."""
    x = term.values
    if kind == "l2":
        return torch.sqrt(x.square().sum(1) + 1e-24)  # the root of zero has no slope
    if kind == "mse":
        each = x.square()
    elif kind == "mae":
        each = x.abs()
    else:
        each = torch.where(x.abs() < HUBER, 0.5 * x.square(), HUBER * (x.abs() - 0.5 * HUBER))
    return each.mean(1) if term.multiplicity is None else each @ term.multiplicity
