"""Differences of predictions to labels, of one model or a committee, for any quantity: RMSE and MAE."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from .data import Labelled
from .model import Tace
from .prediction import CommitteePrediction
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
    places: np.ndarray  # [n] which row of that frame it is: of a quantity of atoms, the atom

    @property
    def rmse(self) -> float:
        """Over components."""
        return _rms(self.predictions - self.labels)

    @property
    def mae(self) -> float:
        return float(np.mean(np.abs(self.predictions - self.labels)))


@dataclass(frozen=True)
class Errors:
    """Energies, forces and stresses as campaigns record them: NaN without such a label. eV, Å."""

    frames: int
    force_rmse_eV_per_A: float
    force_mae_eV_per_A: float
    energy_rmse_eV_per_atom: float
    energy_mae_eV_per_atom: float
    stress_rmse_eV_per_A3: float
    force_rmse_by_element_eV_per_A: dict[str, float]

    def to_json(self) -> dict[str, object]:
        """NaN becomes None."""
        return {
            name: {k: _finite(v) for k, v in value.items()} if isinstance(value, dict) else _finite(value)
            for name, value in asdict(self).items()
        }


def _rms(difference: np.ndarray) -> float:
    return float(np.sqrt(np.mean(difference**2)))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


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
        own = [(n, frames[n], found[n]) for n in range(len(frames)) if levels[n] == level]
        for name in names:
            pairs = _pairs(name, scope_of(name, models[0].config), own, e0=_e0(models[0], level))
            if pairs is not None:
                table.setdefault(level, {})[name] = pairs
    return table


def errors(frames: Sequence[Labelled], prediction: CommitteePrediction) -> Errors:
    """Compare the committee mean with the labels of `frames`, which were predicted in this order."""
    columns: dict[str, Iterable[np.ndarray]] = {
        "energy": prediction.mean_energies,
        "forces": prediction.per_structure(prediction.mean_forces) if frames else [],
    }
    if prediction.stresses is not None:
        columns["stress"] = prediction.stresses.mean(0)
    found = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    own = [(n, frame, values) for n, (frame, values) in enumerate(zip(frames, found, strict=True))]
    energy, forces, stress = (_pairs(name, LABELS[name].scope, own) for name in OWN)
    return Errors(
        frames=len(frames),
        force_rmse_eV_per_A=forces.rmse if forces else math.nan,
        force_mae_eV_per_A=forces.mae if forces else math.nan,
        energy_rmse_eV_per_atom=energy.rmse if energy else math.nan,
        energy_mae_eV_per_atom=energy.mae if energy else math.nan,
        stress_rmse_eV_per_A3=stress.rmse if stress else math.nan,
        force_rmse_by_element_eV_per_A=_by_element(frames, forces) if forces else {},
    )


def _by_element(frames: Sequence[Labelled], forces: Pairs) -> dict[str, float]:
    """RMSE of the forces on the atoms of each element."""
    rows = zip(forces.frames, forces.places, strict=True)
    numbers = np.array([frames[n].atoms.numbers[atom] for n, atom in rows])
    difference = forces.predictions - forces.labels
    return {chemical_symbols[z]: _rms(difference[numbers == z]) for z in sorted(set(numbers.tolist()))}


def _e0(model: Tace, level: str) -> dict[int, float]:
    row = model.e0_eV[model.config.fidelities.index(level)]
    return dict(zip(model.config.elements, row.tolist(), strict=True))


def _pairs(
    name: str,
    scope: str,
    own: Sequence[tuple[int, Labelled, Values]],
    *,
    e0: Mapping[int, float] | None = None,
) -> Pairs | None:
    """Of the frames that have both; None if none has. Energies are per atom.

    Args:
        e0: energies of isolated atoms, taken off both sides so that compositions compare.
    """
    labels, predictions, index, places = [], [], [], []
    for n, frame, values in own:
        label, value = label_of(frame, name), values.get(name)
        if label is None or value is None:
            continue
        per, free = 1, 0.0
        if name == "energy":
            per = len(frame.atoms)
            free = sum(e0[int(z)] for z in frame.atoms.numbers) if e0 else 0.0
        # Hessians are of structures of any size: a row for each component
        shape = (-1, 1) if name == "hessian" else (len(frame.atoms) if scope == "atom" else 1, -1)
        label, value = ((x.reshape(shape) - free) / per for x in (label, value))
        if name == "polarization":
            value = label + _nearest(value - label, frame.atoms)
        known = np.isfinite(label).all(1)
        labels.append(label[known])
        predictions.append(value[known])
        index.append(np.full(int(known.sum()), n))
        places.append(np.flatnonzero(known))
    if not sum(map(len, labels)):
        return None
    unit = "eV/atom" if name == "energy" else unit_of(name)
    columns = [np.concatenate(parts) for parts in (labels, predictions, index, places)]
    return Pairs(name, unit, *columns)


def _nearest(difference: np.ndarray, atoms: Atoms) -> np.ndarray:
    """A polarisation is defined up to e times a lattice vector: the shortest of all differences."""
    fractional = np.linalg.solve(atoms.cell.array.T, difference.T).T
    return np.asarray(difference - np.round(fractional) @ atoms.cell.array)


def error_rows(table: Mapping[str, Mapping[str, Pairs]], **more: str) -> list[dict[str, object]]:
    """One row for each fidelity and quantity: labels, RMSE and MAE over components."""
    rows: list[dict[str, object]] = []
    for level, own in table.items():
        for name, pairs in own.items():
            row = {"fidelity": level, "quantity": name, "unit": pairs.unit, "labels": len(pairs.labels)}
            rows.append({**more, **row, "rmse": _finite(pairs.rmse), "mae": _finite(pairs.mae)})
    return rows
