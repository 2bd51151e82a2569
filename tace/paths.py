"""Which couplings the model evaluates: interaction paths, and the product basis with its minimal path set.

All factors of the product basis are the same A, so most of the couplings that can be written down are
linearly dependent. A greedy choice in float64 keeps an independent subset: the same function class with
2.5 times fewer weights (l_max 3, correlation 3).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from .ict import allowed, coupling

SAMPLES = 300  # random A per candidate; the largest space met (l=3, ν=3) has 15·7 dimensions
INDEPENDENT = 1e-7  # norm of what is left of a unit vector after projection


class InteractionPath(NamedTuple):
    """Sender feature of rank l1 times edge attribute of rank l2 into rank l3."""

    l1: int
    l2: int
    l3: int


class ProductPath(NamedTuple):
    """Row `parent` of the previous order (rank l1) times A of rank l2 into rank l3."""

    parent: int
    l1: int
    l2: int
    l3: int


Levels = tuple[tuple[ProductPath, ...], ...]


def interaction_paths(l_in: int, l_max: int) -> tuple[InteractionPath, ...]:
    """All natural-parity triads with l1 ≤ l_in and l2, l3 ≤ l_max, ordered by (l3, l1, l2)."""
    triads = [
        InteractionPath(l1, l2, l3)
        for l1 in range(l_in + 1)
        for l2 in range(l_max + 1)
        for l3 in range(l_max + 1)
        if allowed(l1, l2, l3)
    ]
    return tuple(sorted(triads, key=lambda p: (p.l3, p.l1, p.l2)))


@functools.cache
def product_paths(l_max: int, correlation: int, outputs: tuple[int, ...], kind: str) -> Levels:
    """Paths of each order ν = 1..correlation.

    Args:
        outputs: ranks that are read; paths that neither are read nor feed one are dropped.
        kind: 'minimal' (independent subset, same span) or 'official' (every path).
    """
    if kind not in ("minimal", "official"):
        raise ValueError(f"unknown path set '{kind}': use 'minimal' or 'official'")
    levels = [tuple(ProductPath(-1, -1, -1, l) for l in range(l_max + 1))]  # noqa: E741
    rng = np.random.default_rng(0)
    a = [rng.standard_normal((SAMPLES, 2 * l + 1)) for l in range(l_max + 1)]  # noqa: E741
    values = list(a)
    for order in range(2, correlation + 1):
        wanted = set(outputs) if order == correlation else set(range(l_max + 1))
        candidates = [
            ProductPath(parent, path.l3, l2, l3)
            for parent, path in enumerate(levels[-1])
            for l2 in range(l_max + 1)
            for l3 in sorted(wanted)
            if allowed(path.l3, l2, l3)
        ]
        candidates.sort(key=lambda p: (p.l3, _cost(p), p.l1, p.l2, p.parent))
        chosen, kept = [], []
        spans: dict[int, np.ndarray] = {}
        for path in candidates:
            value = np.einsum(
                "sa,sb,abm->sm", values[path.parent], a[path.l2], coupling(path.l1, path.l2, path.l3)
            )
            if kind == "official" or _extends(spans, path.l3, value):
                chosen.append(path)
                kept.append(value)
        levels.append(tuple(chosen))
        values = kept
    return _prune(levels, frozenset(outputs))


def _cost(path: ProductPath) -> int:
    return int(np.count_nonzero(coupling(path.l1, path.l2, path.l3)))


def _extends(spans: dict[int, np.ndarray], rank: int, value: np.ndarray) -> bool:
    """Add the value to the span of its rank by modified Gram–Schmidt, done twice; False if inside it."""
    vector = value.reshape(-1) / np.linalg.norm(value)
    basis = spans.get(rank, np.zeros((vector.size, 0)))
    for _ in range(2):
        vector = vector - basis @ (basis.T @ vector)
    length = np.linalg.norm(vector)
    if length <= INDEPENDENT:
        return False
    spans[rank] = np.concatenate([basis, (vector / length)[:, None]], axis=1)
    return True


def _prune(levels: list[tuple[ProductPath, ...]], outputs: frozenset[int]) -> Levels:
    """Drop what is neither read nor a parent, from the last order down, and renumber the parents."""
    out = [levels[-1]]
    for level in reversed(levels[1:-1]):
        used = sorted(
            {path.parent for path in out[0]} | {n for n, path in enumerate(level) if path.l3 in outputs}
        )
        place = {old: new for new, old in enumerate(used)}
        out[0] = tuple(path._replace(parent=place[path.parent]) for path in out[0])
        out.insert(0, tuple(level[n] for n in used))
    if len(levels) > 1:
        out.insert(0, levels[0])
    return tuple(out)


def count_by_rank(level: tuple[ProductPath, ...], l_max: int) -> list[int]:
    """Number of paths of each rank 0..l_max."""
    return [sum(path.l3 == l for path in level) for l in range(l_max + 1)]  # noqa: E741
