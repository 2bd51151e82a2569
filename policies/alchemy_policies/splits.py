"""Test sets that nothing leaks into: whole groups on one side, and near-duplicates with them.

Frames of one trajectory resemble each other, and so do isomers and the images of one reaction path; a random
split over frames puts twins on both sides, and the test error then measures memory. Groups that share a
label, or that hold two frames closer than a radius, are joined (single linkage), and a joined group is on
one side as a whole.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from .base import PolicyError

NEAR_DUPLICATE = 0.02
"""Relative distance of fingerprints. Copper cells of 32 atoms at 300 and 600 K: 2 fs apart at most 0.009,
10 fs 0.04, unrelated frames 0.02 to 0.08; unrelated frames of a molecule of 27 atoms from 0.06 on."""

_GRID = np.arange(0.5, 6.01, 0.1)  # Å
_WIDTH = 0.1  # Å: at 0.25 Å unrelated frames of a crystal were as near as those 10 fs apart


def joined_groups(
    groups: Sequence[Hashable], *, features: np.ndarray | None = None, radius: float = 0.0
) -> np.ndarray:
    """Number of the joined group of every frame [S].

    Args:
        groups: one label per frame; frames with the same label belong together.
        features: [S, D]; frames with at most `radius` between them belong together too.
    """
    known: dict[Hashable, int] = {}
    first = np.array([known.setdefault(group, n) for n, group in enumerate(groups)], dtype=int)
    frames = len(first)
    rows, columns = np.arange(frames), first
    if features is not None and frames:
        if len(features) != frames:
            raise PolicyError(f"{frames} groups but {len(features)} rows of features")
        near = cKDTree(features).query_pairs(radius, output_type="ndarray")
        rows, columns = np.concatenate([rows, near[:, 0]]), np.concatenate([columns, near[:, 1]])
    graph = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(frames, frames))
    return np.asarray(connected_components(graph, directed=False)[1])


def leak_proof_split(
    groups: Sequence[Hashable],
    *,
    fraction: float,
    rng: np.random.Generator,
    features: np.ndarray | None = None,
    radius: float = 0.0,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Which frames are held out [S]: whole joined groups, about `fraction` of the frames.

    Groups come in random order and are taken while that brings the share nearer to what was asked for; at
    least one is held out and at least one kept.

    Args:
        weights: [S], what the fraction counts; one per frame by default. Groups of weight zero stay.

    Raises:
        PolicyError: everything is one group, so that any split would leak.
    """
    if not 0 < fraction < 1:
        raise PolicyError(f"fraction is {fraction}; the share of held-out frames lies between 0 and 1")
    joined = joined_groups(groups, features=features, radius=radius)
    weights = np.ones(len(joined)) if weights is None else np.asarray(weights, dtype=float)
    size = np.bincount(joined, weights=weights)
    eligible = np.flatnonzero(size > 0)
    if len(eligible) < 2:
        labels = len({group for group, weight in zip(groups, weights, strict=True) if weight > 0})
        why = "it has one label" if labels < 2 else f"near-duplicates join its {labels} labels into one"
        raise PolicyError(
            f"these {len(joined)} frames are one group ({why}), which cannot be divided without a leak: "
            "add structures of another kind, or divide by something finer"
        )
    wanted, held = fraction * size.sum(), 0.0
    out: list[int] = []
    for group in rng.permutation(eligible):
        if len(out) < len(eligible) - 1 and abs(held + size[group] - wanted) < abs(held - wanted):
            out.append(int(group))
            held += size[group]
    if not out:  # every group is larger than twice what was asked for: the smallest leaks nothing either
        out = [int(eligible[size[eligible].argmin()])]
    return np.isin(joined, out)


def fingerprints(frames: Sequence[Atoms]) -> np.ndarray:
    """[S, D] invariant descriptors in which `NEAR_DUPLICATE` is a radius; needs no model.

    For every pair of elements the histogram of distances up to 6 Å, smeared by Gaussians of 0.1 Å and
    weighted by 1/r², per atom: a short form of Valle & Oganov, Acta Cryst. A66, 507 (2010). Rows are scaled
    so that the median row has norm one.
    """
    numbers = sorted({int(z) for atoms in frames for z in atoms.numbers})
    slot = {pair: n for n, pair in enumerate((a, b) for a in numbers for b in numbers if a <= b)}
    out = np.zeros((len(frames), len(slot) * len(_GRID) + len(numbers)))
    for n, atoms in enumerate(frames):
        if len(atoms) == 0:
            continue
        i, j, d = neighbor_list("ijd", atoms, float(_GRID[-1]))
        z = np.sort(np.stack([atoms.numbers[i], atoms.numbers[j]], 1), axis=1)
        smeared = np.exp(-0.5 * ((d[:, None] - _GRID) / _WIDTH) ** 2) / np.maximum(d, 0.5)[:, None] ** 2
        histogram = np.zeros((len(slot), len(_GRID)))
        if len(d):
            np.add.at(histogram, [slot[int(a), int(b)] for a, b in z], smeared)
        composition = [(atoms.numbers == number).sum() for number in numbers]
        out[n] = np.concatenate([histogram.ravel(), composition]) / len(atoms)
    norm = np.linalg.norm(out, axis=1)
    typical = float(np.median(norm[norm > 0])) if (norm > 0).any() else 1.0
    return np.asarray(out / typical)


def group_by_composition(frames: Sequence[Atoms]) -> list[str]:
    """The formula of each frame, divided by what its counts share: supercells stay together."""
    return [atoms.symbols.formula.reduce()[0].format("hill") for atoms in frames]


