"""Values of the paths of a product, and how much of some lies outside the span of others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tace.paths import ProductPath


def columns(values: Sequence[np.ndarray], paths: Sequence[ProductPath], rank: int) -> np.ndarray:
    """The values [samples, 2l+1] of the paths to one rank, each as a column."""
    return np.stack([v.reshape(-1) for v, p in zip(values, paths, strict=True) if p.l3 == rank], 1)


def misfit(want: np.ndarray, have: np.ndarray) -> float:
    """What the best linear combinations of `have` leave of `want`, as a part of it."""
    solution = np.linalg.lstsq(have, want, rcond=None)[0]
    return float(np.linalg.norm(have @ solution - want) / np.linalg.norm(want))
