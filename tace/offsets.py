"""Offsets of elements from labels of whole structures, also where there are too few of these to tell."""

from __future__ import annotations

import numpy as np

PENALTIES = (0.0, *np.logspace(-6.0, 2.0, 17))  # relative to the mean square of a column


def fit_offsets(counts: np.ndarray, values: np.ndarray, *, shrink: bool = False) -> np.ndarray:
    """d [Z, n] with counts·d ≈ values, by least squares where the rows determine every element that occurs.

    Elsewhere one number for all elements, plus deviations as large as the rows bear out: the penalty on
    deviations is that of the smallest generalised cross-validation error (Golub, Heath and Wahba 1979).

    Args:
        counts: [R, Z], atoms of each element, or shares.
        values: [R, n].
        shrink: penalise deviations everywhere, for values that elements explain only in part.
    """
    if not shrink and np.linalg.matrix_rank(counts) == np.count_nonzero(counts.any(0)):
        return np.asarray(np.linalg.lstsq(counts, values, rcond=None)[0])
    total = counts.sum(1, keepdims=True)
    common = np.linalg.lstsq(total, values, rcond=None)[0]  # [1, n]
    u, s, vt = np.linalg.svd(counts, full_matrices=False)
    kept = s > 1e-10 * max(float(s.max(initial=0.0)), 1e-300)
    u, s, vt = u[:, kept], s[kept], vt[kept]
    rest = values - total @ common
    inside = u.T @ rest
    outside = float(((rest - u @ inside) ** 2).sum())
    best, found = np.inf, np.zeros((counts.shape[1], values.shape[1]))
    size = float((counts**2).sum(0).mean())
    for penalty in PENALTIES:
        shrunk = s**2 / (s**2 + penalty * size)
        freedom = len(counts) - float(shrunk.sum())
        if freedom < 0.5:  # as many offsets as rows: says nothing of other rows
            continue
        left = outside + float((((1.0 - shrunk)[:, None] * inside) ** 2).sum())
        error = left / freedom**2
        if error < best:
            best, found = error, vt.T @ ((shrunk / s)[:, None] * inside)
    return np.asarray(common + found)
