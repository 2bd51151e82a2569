"""From committee spread to force error: two numbers per element, fitted on unseen labels.

ê_i = a_Z s_i          expected error, mean |ΔF_i| (vector norm, eV/Å); user thresholds act on it
u_i = q_Z max(s_i, δ)  90 % bound of |ΔF_i|

a_Z = Σ w|ΔF| / Σ w s, the ratio of sums: Σ ê = Σ |ΔF| holds exactly, and atoms whose spread is
almost zero cannot blow it up as they would the mean of |ΔF|/s.

q_Z is the split-conformal 90 % quantile of |ΔF|/max(s, δ). Atoms of one frame err together, so the
exchangeable unit is the frame, not the atom: each of F frames weighs 1/(F+1), shared by its
atoms, and the missing 1/(F+1) sits at infinity (Lee, Barber & Willett, arXiv:2306.06342, HCP;
with one atom per frame it is the usual ⌈(n+1)·0.9⌉-th value). With weights it is the weighted
version of Tibshirani et al., arXiv:1904.06019, where we give the unseen frame the mean weight
because its own is not known.

Without data: let the truth be one more draw from the members' distribution, F_k, F_true ~ N(μ,
σ²) per component. Then ΔF = F_true − F̄ has variance σ²(1+1/K) and the pooled variance S² of the
members has 3(K−1) degrees of freedom, so |ΔF|²/(3(1+1/K)S²) ~ F(3, 3(K−1)). With s = √3 S /
c4(3(K−1)+1): q = c4 √((1+1/K) F⁻¹(0.9; 3, 3(K−1))), 1.82 for K = 4. The mean, E|ΔF|/√3σ = 0.921
√(1+1/K) = 1.03 for K = 4, is close enough to the honest "nothing known" of 1. Real members share
their flaws: expect too little.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from scipy import stats

from tace.prediction import small_sample_factor

from .base import PolicyError

LEVEL = 0.9

RESOLUTION_eV_per_A = 1e-4
"""δ: SCF forces carry noise of this size, so a smaller spread (an atom on a symmetry element has
none) says nothing and may not be divided by."""


@dataclass(frozen=True)
class ElementCalibration:
    expected: float  # a_Z
    bound_90: float  # q_Z
    atoms: int
    frames: int
    pooled: bool  # the two numbers come from all elements together


@dataclass(frozen=True)
class Calibration:
    """`elements` by atomic number; an element that is not in it gets the numbers of `pooled`."""

    elements: Mapping[int, ElementCalibration]
    pooled: ElementCalibration
    note: str

    @classmethod
    def uncalibrated(cls, members: int = 4) -> Calibration:
        """What to believe before any label: the spread itself, and the bound of normal members."""
        nothing = ElementCalibration(1.0, normal_bound(members), 0, 0, pooled=True)
        note = "not calibrated: no fresh labels yet; the spread is taken for the expected error"
        return cls({}, nothing, note)

    def expected_error(self, numbers: np.ndarray, spread: np.ndarray) -> np.ndarray:
        """ê_i [A], eV/Å."""
        return np.asarray(self._column("expected")[numbers] * spread)

    def bound(self, numbers: np.ndarray, spread: np.ndarray) -> np.ndarray:
        """u_i [A], eV/Å: nine atoms in ten err by less."""
        return np.asarray(self._column("bound_90")[numbers] * _resolved(spread))

    def coverage(self, numbers: np.ndarray, spread: np.ndarray, error: np.ndarray) -> float:
        """Fraction of atoms whose error is within the bound; NaN without atoms."""
        if len(error) == 0:
            return math.nan
        return float(np.mean(error <= self.bound(numbers, spread)))

    def _column(self, name: str) -> np.ndarray:
        column = np.full(len(chemical_symbols), getattr(self.pooled, name), dtype=float)
        for number, element in self.elements.items():
            column[number] = getattr(element, name)
        return column

    def to_json(self) -> dict[str, Any]:
        """A JSON document; elements by symbol."""
        return {
            "elements": {chemical_symbols[z]: asdict(e) for z, e in self.elements.items()},
            "all": asdict(self.pooled),
            "note": self.note,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Calibration:
        """The inverse of `to_json`; other keys of the document (a report's pairs) are ignored."""
        try:
            elements = {
                atomic_numbers[symbol]: ElementCalibration(**entry)
                for symbol, entry in document["elements"].items()
            }
            return cls(elements, ElementCalibration(**document["all"]), document["note"])
        except (KeyError, TypeError) as problem:
            raise PolicyError(f"not a calibration: {problem}") from problem


def normal_bound(members: int) -> float:
    """q of independent normal members; see the module's derivation."""
    if members < 2:
        raise PolicyError(f"a committee of {members} has no spread to calibrate; use at least two")
    freedom = 3 * (members - 1)
    quantile = float(stats.f.ppf(LEVEL, 3, freedom))
    return small_sample_factor(freedom + 1) * math.sqrt((1 + 1 / members) * quantile)


def fit_calibration(
    numbers: np.ndarray,
    spread: np.ndarray,
    error: np.ndarray,
    frame_index: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    min_frames: int = 50,
    members: int = 4,
) -> Calibration:
    """Fit on atoms of labelled frames; all arrays [A], `error` the norm of ΔF.

    Args:
        frame_index: which frame an atom belongs to; any integers.
        weights: makes selected frames stand for the pool they were chosen from; equal by default.
        members: size of the committee, for the bound where the data are too few for one.
    """
    if len(error) == 0:
        return Calibration.uncalibrated(members)
    weights = np.ones(len(error)) if weights is None else weights
    if len(frame_index) != len(numbers):
        raise PolicyError(f"frame_index has {len(frame_index)} entries for {len(numbers)} atoms")
    _require_known(len(numbers), spread=spread, error=error, weights=weights)
    if not (weights * spread).sum() > 0:
        plain = Calibration.uncalibrated(members)
        return Calibration({}, plain.pooled, "not calibrated: the members agree exactly")

    def fit(mask: np.ndarray) -> tuple[float, float]:
        w, s, e = weights[mask], spread[mask], error[mask]
        q = _conformal_quantile(e / _resolved(s), frame_index[mask], w)
        return float((w * e).sum() / (w * s).sum()), q

    everyone = np.ones(len(numbers), dtype=bool)
    expected, bound = fit(everyone)
    notes = []
    frames = len(np.unique(frame_index))
    if math.isinf(bound):
        bound = max(normal_bound(members), float((error / _resolved(spread)).max()))
        notes.append(
            f"{frames} frames are too few for a 90 % bound: the worst seen or theory stands"
        )
    pooled = ElementCalibration(expected, bound, len(numbers), frames, pooled=True)

    elements, scarce = {}, []
    for z in np.unique(numbers).tolist():
        mask = numbers == z
        own = len(np.unique(frame_index[mask]))
        entry = ElementCalibration(expected, bound, int(mask.sum()), own, pooled=True)
        if own >= min_frames and (weights * spread)[mask].sum() > 0:
            a, q = fit(mask)
            if math.isfinite(q):
                entry = ElementCalibration(a, q, int(mask.sum()), own, pooled=False)
        if entry.pooled:
            scarce.append(chemical_symbols[z])
        elements[z] = entry
    if scarce:
        names = ", ".join(scarce)
        notes.insert(0, f"fewer than {min_frames} frames of {names}: pooled over elements")
    return Calibration(elements, pooled, "; ".join(notes))


def worst_decile(per_atom_error: np.ndarray) -> float:
    """The largest value that a tenth of the atoms, at least one, reach or exceed.

    The maximum over atoms grows with the cell at constant uncertainty (engine.md §5.2); this does
    not. Up to ten atoms it is the maximum. NaN if any atom's error is NaN.
    """
    atoms = len(per_atom_error)
    if atoms == 0 or np.isnan(per_atom_error).any():
        return math.nan
    rank = math.ceil(atoms / 10)
    return float(np.partition(per_atom_error, atoms - rank)[atoms - rank])


def _require_known(atoms: int, **arrays: np.ndarray) -> None:
    for name, array in arrays.items():
        if len(array) != atoms or not np.isfinite(array).all() or (array < 0).any():
            raise PolicyError(f"{name} must be {atoms} finite numbers, none negative")


def _resolved(spread: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(spread, RESOLUTION_eV_per_A))


def _conformal_quantile(ratio: np.ndarray, frame_index: np.ndarray, weights: np.ndarray) -> float:
    """Smallest ratio that carries LEVEL of the mass, a frame's worth of which is at infinity."""
    _, frame, size = np.unique(frame_index, return_inverse=True, return_counts=True)
    mass = weights / size[frame]
    total = mass.sum() * (1 + 1 / len(size))
    order = np.argsort(ratio)
    reached = np.cumsum(mass[order]) / total
    # a sum of 1/n may miss 0.9 by round-off
    position = int(np.searchsorted(reached, LEVEL - 1e-12))
    return math.inf if position == len(ratio) else float(ratio[order[position]])
