"""Differences of predictions to labels, of one model or a committee, for any quantity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from .data import Labelled
from .model import Tace
from .properties import OWN, Values, predict, scope_of, unit_of
from .quantities import LABELS
from .responses import available


@dataclass(frozen=True)
class Pairs:
    """Labels and predictions of one quantity at one fidelity."""

    name: str
    unit: str
    labels: np.ndarray  # [n, components]
    predictions: np.ndarray  # [n, components]
    frames: np.ndarray  # [n] which of the compared frames a row belongs to

    @property
    def rmse(self) -> float:
        """Over components."""
        return float(np.sqrt(np.mean((self.predictions - self.labels) ** 2)))

    @property
    def mae(self) -> float:
        return float(np.mean(np.abs(self.predictions - self.labels)))


def shared(models: Sequence[Tace], frames: Sequence[Labelled]) -> tuple[str, ...]:
    """Quantities that are labelled in some frame and that the model predicts."""
    able = available(models[0].config)
    heads = {head.name for head in models[0].config.heads}
    seen = {name for f in frames for name in f.labels}
    named = [n for n in able if n in seen and (n in heads or n in LABELS) and n not in OWN]
    own = [n for n in OWN if any(label_of(f, n) is not None for f in frames)]
    return (*own, *named)


def label_of(frame: Labelled, name: str) -> np.ndarray | None:
    """A label as an array; None if missing."""
    own = {"energy": frame.energy_eV, "forces": frame.forces_eV_per_A, "stress": frame.stress_eV_per_A3}
    value = own[name] if name in own else frame.labels.get(name)
    return None if value is None else np.asarray(value, dtype=np.float64)


def compare(
    models: Sequence[Tace], frames: Sequence[Labelled], *, fidelity: str | None = None
) -> dict[str, dict[str, Pairs]]:
    """Pairs by fidelity and quantity; of the mean of several models.

    Args:
        fidelity: predict all frames at this level; None: each at its own.

    Raises:
        TaceError: an element or fidelity that the models do not know.
    """
    names = shared(models, frames)
    levels = [fidelity or f.fidelity for f in frames]
    found = predict(models, [f.atoms for f in frames], levels, names=names)
    table: dict[str, dict[str, Pairs]] = {}
    for level in dict.fromkeys(levels):
        for name in names:
            own = [
                (n, frames[n], found[n])
                for n in range(len(frames))
                if levels[n] == level and name in found[n] and label_of(frames[n], name) is not None
            ]
            pairs = _pairs(name, scope_of(name, models[0].config), own, e0=_e0(models[0], level))
            if pairs is not None:
                table.setdefault(level, {})[name] = pairs
    return table


def _e0(model: Tace, level: str) -> dict[int, float]:
    row = model.e0_eV[model.config.fidelities.index(level)]
    return dict(zip(model.config.elements, row.tolist(), strict=True))


def _pairs(
    name: str, scope: str, own: Sequence[tuple[int, Labelled, Values]], *, e0: Mapping[int, float]
) -> Pairs | None:
    """Energies are per atom and less those of isolated atoms, so that compositions compare."""
    labels, predictions, index = [], [], []
    for n, frame, values in own:
        label, value = label_of(frame, name), values[name]
        assert label is not None
        per, free = 1, 0.0
        if name == "energy":
            per, free = len(frame.atoms), sum(e0[int(z)] for z in frame.atoms.numbers)
        rows = len(frame.atoms) if scope == "atom" and name != "hessian" else 1
        label, value = ((x.reshape(rows, -1) - free) / per for x in (label, value))
        if name == "polarization":
            value = label + _nearest(value - label, frame.atoms)
        known = np.isfinite(label).all(1)
        labels.append(label[known])
        predictions.append(value[known])
        index.append(np.full(int(known.sum()), n))
    if name == "hessian":  # of structures of any size
        labels, predictions = ([x.reshape(-1, 1) for x in part] for part in (labels, predictions))
        index = [np.full(len(x), n[0]) for x, n in zip(labels, index, strict=True)]
    if not sum(map(len, labels)):
        return None
    unit = "eV/atom" if name == "energy" else unit_of(name)
    return Pairs(name, unit, np.concatenate(labels), np.concatenate(predictions), np.concatenate(index))


def _nearest(difference: np.ndarray, atoms: Atoms) -> np.ndarray:
    """A polarisation is defined up to e times a lattice vector: the shortest of all differences."""
    fractional = np.linalg.solve(atoms.cell.array.T, difference.T).T
    return np.asarray(difference - np.round(fractional) @ atoms.cell.array)


def error_rows(table: Mapping[str, Mapping[str, Pairs]], **more: str) -> list[dict[str, object]]:
    """One row for each fidelity and quantity: labels, RMSE and MAE over components."""
    rows: list[dict[str, object]] = []
    for level, own in table.items():
        for name, pairs in own.items():
            values = {"rmse": pairs.rmse, "mae": pairs.mae}
            numbers = {k: v if math.isfinite(v) else None for k, v in values.items()}
            row = {"fidelity": level, "quantity": name, "unit": pairs.unit, "labels": len(pairs.labels)}
            rows.append({**more, **row, **numbers})
    return rows
