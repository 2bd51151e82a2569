"""How the error of an atom's force grows with the committee's spread: not in proportion.

g(s) = s (c(s)/s₀)^(γ−1),   c(s) = s within δ … s_hi, its nearer end elsewhere

Errors are proportional to g, with a factor per element (`calibration`). Between the ends g is the power law
s₀ (s/s₀)^γ; γ is below one because members share flaws that do not shrink with their spread, and because
the spread of a few members is itself uncertain, so that a small one is more often small by chance. A law with
γ = 1 would expect too little where the committee agrees and too much where it does not: frames chosen for
their spread would then not stand for others, nor the committee of one round for that of the next, whose
spread is smaller. With the law that fits they do, up to what the spread does not know.

Above s_hi, which 95 % of the spreads do not reach, g is proportional to s: nothing was seen there, and a
broken trajectory must stay as alarming as its spread. Below δ (`RESOLUTION_eV_per_A`) likewise.

γ is the slope of log|ΔF| on log s within elements, by least squares; each frame counts the same. Four frames
with γ = 1 whose spreads scatter by half are added, so that few data change little.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESOLUTION_eV_per_A = 1e-4
"""δ: SCF forces carry noise of this size, so a smaller spread (an atom on a symmetry element has
none) says nothing and may not be divided by."""

LEAST_EXPONENT = 0.2  # a spread that says nothing at all is still to be told from ten times as much
PRIOR_FRAMES, _PRIOR_SCATTER = 4, 0.5
_SEEN = 0.95  # share of the spreads up to which the power law holds


@dataclass(frozen=True)
class SpreadLaw:
    """g; in proportion unless fitted."""

    exponent: float = 1.0  # γ
    typical_eV_per_A: float = 1.0  # s₀, where g(s) = s
    linear_above_eV_per_A: float = 1.0  # s_hi

    def __call__(self, spread: np.ndarray) -> np.ndarray:
        """g [A], eV/Å."""
        within = np.clip(spread, RESOLUTION_eV_per_A, max(self.linear_above_eV_per_A, RESOLUTION_eV_per_A))
        return np.asarray(spread * (within / self.typical_eV_per_A) ** (self.exponent - 1.0))


def fit_law(
    numbers: np.ndarray, spread: np.ndarray, error: np.ndarray, *, mass: np.ndarray, frames: float
) -> SpreadLaw:
    """The law of atoms [A]; `mass` is what each counts, of one frame together about one."""
    seen = (spread > RESOLUTION_eV_per_A) & (mass > 0)
    if not seen.any():
        return SpreadLaw()
    x, y = np.log(spread[seen]), np.log(np.maximum(error[seen], RESOLUTION_eV_per_A))
    m, element = mass[seen] / mass[seen].sum(), numbers[seen]
    weight = np.bincount(element, m).clip(1e-300)
    dx, dy = (v - (np.bincount(element, m * v) / weight)[element] for v in (x, y))
    prior = PRIOR_FRAMES / frames * _PRIOR_SCATTER**2
    slope = float(((m * dx * dy).sum() + prior) / ((m * dx**2).sum() + prior))
    order = np.argsort(x)
    highest = x[order][min(len(x) - 1, int(np.searchsorted(np.cumsum(m[order]), _SEEN)))]
    return SpreadLaw(
        exponent=float(np.clip(slope, LEAST_EXPONENT, 1.0)),
        typical_eV_per_A=float(np.exp((m * x).sum())),
        linear_above_eV_per_A=float(np.exp(highest)),
    )
