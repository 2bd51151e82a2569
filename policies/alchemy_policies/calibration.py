"""From committee spread to force error: two numbers per element, fitted on unseen labels.

ê_i = a_Z g(s_i)          expected error, mean |ΔF_i| (vector norm, eV/Å); user thresholds act on it
u_i = q_Z g(max(s_i, δ))  90 % bound of |ΔF_i|

g is a power law with one exponent for all elements, see `spread_law`.

a_Z = Σ w|ΔF| / Σ w g, the ratio of sums: Σ ê = Σ |ΔF| holds exactly, and atoms whose spread is
almost zero cannot blow it up as they would the mean of |ΔF|/g.

q_Z is a quantile of |ΔF|/g(max(s, δ)). Atoms of one frame err together, so the exchangeable unit is the
frame, not the atom: each frame weighs the same, its atoms share the weight (pooled distributions of groups,
Dunn, Wasserman & Ramdas, arXiv:1809.07441). Its level is the least at which frames that were left out are
held to 90 %: with Q_f(L) the L-quantile of all frames but f,

    L = least L with Σ_f w_f · share of f's atoms below Q_f(L) ≥ 0.9 Σ_f w_f,    q = Q(L)

With one atom per frame that is the usual ⌈(n+1)·0.9⌉-th value. The guaranteed bound of groups puts a whole
frame's worth of mass at infinity instead (HCP; Lee, Barber & Willett, arXiv:2306.06342), as if frames were
one atom each: of 10 to 20 frames of some dozen atoms it holds 95 to 98 % where 90 were asked for. Ours has no
guarantee, and no such bias. Weights (Tibshirani et al., arXiv:1904.06019) make frames stand for others; those
of a campaign are in `fresh_weights`.

Fading rounds leave a dozen effective frames (Kish), too few for a quantile of each element, of some of which
a frame has one atom. Below `min_frames` of them an element keeps its mean and shares the shape: q_Z = a_Z Q,
Q the quantile of |ΔF|/(a_Z g(max(s, δ))) over all elements.

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
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from scipy import stats

from tace.prediction import small_sample_factor

from .base import PolicyError
from .spread_law import RESOLUTION_eV_per_A, SpreadLaw, fit_law

LEVEL = 0.9
SELECTED_COUNT_AS, FADING = 4.0, 0.6  # see `fresh_weights`
_ROUND_OFF = 1e-9  # sums of 1/n miss 0.9 by less


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
    law: SpreadLaw = field(default_factory=SpreadLaw)

    @classmethod
    def uncalibrated(cls, members: int = 4) -> Calibration:
        """What to believe before any label: the spread itself, and the bound of normal members."""
        nothing = ElementCalibration(1.0, normal_bound(members), 0, 0, pooled=True)
        note = "not calibrated: no fresh labels yet; the spread is taken for the expected error"
        return cls({}, nothing, note)

    def expected_error(self, numbers: np.ndarray, spread: np.ndarray) -> np.ndarray:
        """ê_i [A], eV/Å."""
        return np.asarray(self._column("expected")[numbers] * self.law(spread))

    def bound(self, numbers: np.ndarray, spread: np.ndarray) -> np.ndarray:
        """u_i [A], eV/Å: nine atoms in ten err by less."""
        return np.asarray(self._column("bound_90")[numbers] * self.law(_resolved(spread)))

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
            "spread_law": asdict(self.law),
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
            law = SpreadLaw(**document.get("spread_law", {}))  # files of earlier versions: in proportion
            return cls(elements, ElementCalibration(**document["all"]), document["note"], law)
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
        min_frames: an element in fewer gets the numbers of all; in fewer effective ones, their quantile.
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

    size, of_frame = _weight_of_frames(frame_index, weights)
    _, frame = np.unique(frame_index, return_inverse=True)
    law = fit_law(numbers, spread, error, mass=weights / size[frame], frames=_effective(of_frame))
    atoms = _Atoms(numbers, error, law(spread), error / law(_resolved(spread)), frame, weights)

    everyone = np.ones(len(numbers), dtype=bool)
    bound, notes = _conformal_quantile(atoms.ratio, frame, weights), []
    if math.isinf(bound):
        bound = max(normal_bound(members), float(atoms.ratio.max()))
        notes.append(f"{len(size)} frames are too few for a 90 % bound: the worst seen or theory stands")
    pooled = ElementCalibration(atoms.mean(everyone), bound, len(numbers), len(size), pooled=True)
    elements = _of_elements(atoms, pooled, min_frames)
    if scarce := [chemical_symbols[z] for z, entry in elements.items() if entry.pooled]:
        names = ", ".join(scarce)
        notes.insert(0, f"fewer than {min_frames} frames of {names}: pooled over elements")
    return Calibration(elements, pooled, "; ".join(notes), law)


@dataclass(frozen=True)
class _Atoms:
    """What is known of atoms [A] of labelled frames."""

    numbers: np.ndarray
    error: np.ndarray
    g: np.ndarray
    ratio: np.ndarray  # |ΔF|/g(max(s, δ))
    frame: np.ndarray
    weights: np.ndarray

    def mean(self, of: np.ndarray) -> float:
        """a of some atoms."""
        return float((self.weights * self.error)[of].sum() / (self.weights * self.g)[of].sum())


def _of_elements(
    atoms: _Atoms, pooled: ElementCalibration, min_frames: int
) -> dict[int, ElementCalibration]:
    """The two numbers of every element, those of all where an element is too rare."""
    found: dict[int, ElementCalibration] = {}
    effective: dict[int, float] = {}
    relative = atoms.ratio.copy()  # to the mean of the element
    for z in np.unique(atoms.numbers).tolist():
        of = atoms.numbers == z
        _, of_frame = _weight_of_frames(atoms.frame[of], atoms.weights[of])
        entry = replace(pooled, atoms=int(of.sum()), frames=len(of_frame))
        if entry.frames >= min_frames and (atoms.weights * atoms.g * atoms.error)[of].sum() > 0:
            entry = replace(entry, expected=atoms.mean(of), pooled=False)
        if entry.expected > 0:
            relative[of] /= entry.expected
        found[z], effective[z] = entry, _effective(of_frame)
    common = _conformal_quantile(relative, atoms.frame, atoms.weights)
    for z, entry in found.items():
        if entry.pooled:
            continue
        of, q = atoms.numbers == z, entry.expected * common
        if effective[z] >= min_frames:
            q = _conformal_quantile(atoms.ratio[of], atoms.frame[of], atoms.weights[of])
        known = replace(entry, bound_90=q)
        found[z] = known if math.isfinite(q) else replace(pooled, atoms=entry.atoms, frames=entry.frames)
    return found


def _weight_of_frames(frame_index: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Atoms of each frame and their mean weight."""
    _, frame, size = np.unique(frame_index, return_inverse=True, return_counts=True)
    return size, np.bincount(frame, weights) / size


def _effective(of_frame: np.ndarray) -> float:
    """How many frames of equal weight say as much (Kish)."""
    return float(of_frame.sum() ** 2 / (of_frame**2).sum())


def fresh_weights(random: np.ndarray, age: np.ndarray) -> np.ndarray:
    """What each fresh frame [F] of a campaign counts; for `fit_calibration`.

    A frame of the random slice stands for the pool and counts 1. Frames that were selected, for their
    expected error and their novelty, are one kind of frame however many there are: together they count as
    four, so that they decide while the slice is small and hardly matter later. A round counts 0.6 of the one
    after it, because the committee changes.

    Args:
        random: whether the frame is of the random slice.
        age: rounds since it was labelled.
    """
    selected = int(np.count_nonzero(~random))
    each = min(1.0, SELECTED_COUNT_AS / selected) if selected else 1.0
    return np.asarray(np.where(random, 1.0, each) * FADING**age)


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
    """Q(L) of the module's derivation; inf where no level holds frames that were left out."""
    _, frame, size = np.unique(frame_index, return_inverse=True, return_counts=True)
    order = np.argsort(ratio, kind="stable")
    mass = weights / size[frame]
    sample = _Sample(ratio[order], frame[order], (mass * len(size) / mass.sum())[order], len(size))
    low, high = LEVEL, 1.0
    if len(size) < 2 or sample.held_of_left_out(high) < LEVEL - _ROUND_OFF:
        return math.inf
    if sample.held_of_left_out(low) < LEVEL - _ROUND_OFF:
        while high - low > 1e-3:  # a tenth of what a hundred frames can tell
            middle = 0.5 * (low + high)
            enough = sample.held_of_left_out(middle) >= LEVEL - _ROUND_OFF
            low, high = (low, middle) if enough else (middle, high)
        low = high
    return sample.quantile(low)


class _Sample:
    """Ratios of atoms, ascending, with the frame (0 … F−1) and the mass of each."""

    def __init__(self, ratio: np.ndarray, frame: np.ndarray, mass: np.ndarray, frames: int) -> None:
        self.ratio, self.frames = ratio, frames
        self.total = np.cumsum(mass)
        self.of_frame = np.bincount(frame, mass, frames)
        grouped = np.argsort(frame, kind="stable")
        self._key = frame[grouped] * len(ratio) + grouped  # ascending: by frame, then by place
        self._own = np.concatenate([[0.0], np.cumsum(mass[grouped])])
        self._first = np.searchsorted(self._key, np.arange(frames) * len(ratio))

    def quantile(self, level: float) -> float:
        """Smallest ratio that carries `level` of the mass."""
        place = int(np.searchsorted(self.total, level * self.total[-1] - _ROUND_OFF))
        return float(self.ratio[min(place, len(self.ratio) - 1)])

    def held_of_left_out(self, level: float) -> float:
        """Share of the mass of each frame below the quantile of the others, over all frames."""
        need = level * (self.total[-1] - self.of_frame) - _ROUND_OFF
        low, high = np.zeros(self.frames, dtype=int), np.full(self.frames, len(self.ratio) - 1)
        while (low < high).any():
            middle = (low + high) // 2
            enough = self.total[middle] - self._up_to(middle) >= need
            low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
        return float(self._up_to(low).sum() / self.total[-1])

    def _up_to(self, place: np.ndarray) -> np.ndarray:
        """Mass [F] that each frame has among the atoms up to its own place [F]."""
        after = np.searchsorted(self._key, np.arange(self.frames) * len(self.ratio) + place, side="right")
        return np.asarray(self._own[after] - self._own[self._first])
