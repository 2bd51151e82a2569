"""Errors of a model on labelled structures, per fidelity; RMSE and MAE over components."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from ase.data import chemical_symbols

from .data import Labelled
from .prediction import CommitteePrediction


@dataclass(frozen=True)
class Errors:
    """NaN where no label of that kind was present. eV, Å."""

    frames: int
    force_rmse_eV_per_A: float
    force_mae_eV_per_A: float
    energy_rmse_eV_per_atom: float
    energy_mae_eV_per_atom: float
    stress_rmse_eV_per_A3: float
    force_rmse_by_element_eV_per_A: dict[str, float]

    def to_json(self) -> dict[str, object]:
        """NaN becomes None."""

        def plain(value: object) -> object:
            if isinstance(value, dict):
                return {k: plain(v) for k, v in value.items()}
            return None if isinstance(value, float) and not math.isfinite(value) else value

        return {k: plain(v) for k, v in asdict(self).items()}


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else math.nan


def _mean_abs(values: np.ndarray) -> float:
    return float(np.mean(np.abs(values))) if values.size else math.nan


def _joined(parts: Iterable[np.ndarray], width: int) -> np.ndarray:
    parts = list(parts)
    return np.concatenate(parts) if parts else np.zeros((0, width))


def errors(frames: Sequence[Labelled], prediction: CommitteePrediction) -> Errors:
    """Compare the committee mean with the labels of `frames`, predicted in this order."""
    forces = prediction.per_structure(prediction.mean_forces) if frames else []
    energies = prediction.mean_energies
    has = [f.forces_eV_per_A is not None for f in frames]
    difference = _joined(
        (p - f.forces_eV_per_A for f, p, h in zip(frames, forces, has, strict=True) if h), 3
    )
    numbers = np.array(
        [z for f, h in zip(frames, has, strict=True) if h for z in f.atoms.numbers], dtype=int
    )
    energy = np.array(
        [
            (e - f.energy_eV) / len(f.atoms)
            for f, e in zip(frames, energies, strict=True)
            if f.energy_eV is not None
        ]
    )
    stress = np.zeros(0)
    if prediction.stresses is not None:
        mean = prediction.stresses.mean(0)
        stress = _joined(
            ((m - f.stress_eV_per_A3)[None] for f, m in zip(frames, mean, strict=True)
             if f.stress_eV_per_A3 is not None),
            6,
        )
    return Errors(
        frames=len(frames),
        force_rmse_eV_per_A=_rms(difference),
        force_mae_eV_per_A=_mean_abs(difference),
        energy_rmse_eV_per_atom=_rms(energy),
        energy_mae_eV_per_atom=_mean_abs(energy),
        stress_rmse_eV_per_A3=_rms(stress),
        force_rmse_by_element_eV_per_A={
            chemical_symbols[z]: _rms(difference[numbers == z]) for z in sorted(set(numbers))
        },
    )
