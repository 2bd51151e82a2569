"""Errors that the first committee made, as those after it would make them.

The first committee of a campaign is cold in every member and trained on the fewest labels. At a given spread
it errs by more than those after it: by 4 to 93 %, half the time by more than 31 %, in 21 replayed campaigns.
The later ones scatter by 8 % and fall by 3 % per round (docs/data-efficiency.md), and to follow that scatter
would be worse than to leave it. The first labels are the only ones for a round and half of them for the next,
so they are not thrown away but lend the shape of their distribution to the later level:

y_f = log Σ_i |ΔF_i| / Σ_i g(s_i)                       level of a frame, less the mean of its kind
|ΔF| → |ΔF| exp(k (ȳ_later − ȳ_first))                  for the frames of the first committee
1/k = 1 + 4/n_later + 4/n_first

g is the law of `spread_law`; kinds are random and selected frames, whose mixture may change. Selected frames
count in full here: within a kind all rounds were chosen alike, and there are ten times as many. Four frames
of no difference are added to either side as in `spread_law`, so that a few labels change little.
"""

from __future__ import annotations

import numpy as np

from .base import PolicyError
from .spread_law import PRIOR_FRAMES, RESOLUTION_eV_per_A, fit_law


def at_later_level(
    numbers: np.ndarray,
    spread: np.ndarray,
    error: np.ndarray,
    frame: np.ndarray,
    *,
    random: np.ndarray,
    first: np.ndarray,
) -> np.ndarray:
    """|ΔF| [A], eV/Å, with those of the first committee at the level of the later; for `fit_calibration`.

    Args:
        frame: which frame an atom belongs to, 0 … F−1.
        random: whether a frame [F] is of the random slice.
        first: whether a frame [F] was foretold by the first committee.
    """
    frames = len(first)
    size = np.bincount(frame, minlength=frames)
    if len(size) != frames or len(random) != frames or not size.all():
        raise PolicyError(
            f"{frames} frames first or later, {len(random)} kinds, atoms of {np.count_nonzero(size)}"
        )
    seen = spread > RESOLUTION_eV_per_A  # a spread that says nothing has no level
    known = np.bincount(frame, seen, frames) > 0
    before, after = known & first, known & ~first
    if not (before.any() and after.any()):
        return error
    law = fit_law(numbers, spread, error, mass=1 / size[frame], frames=frames)
    erred = np.bincount(frame, np.where(seen, np.maximum(error, RESOLUTION_eV_per_A), 0.0))
    level = np.zeros(frames)
    level[known] = np.log(erred[known] / np.bincount(frame, np.where(seen, law(spread), 0.0))[known])
    for kind in (known & random, known & ~random):
        if kind.any():
            level[kind] -= level[kind].mean()
    k = 1 / (1 + PRIOR_FRAMES / before.sum() + PRIOR_FRAMES / after.sum())
    shift = k * (level[after].mean() - level[before].mean())
    return np.asarray(np.where(first[frame], np.exp(shift), 1.0) * error)
