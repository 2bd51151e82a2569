"""Which couplings the model evaluates: interaction paths, and the product basis with its minimal path set.

All factors of the product basis are the same A, so most of the couplings that can be written down are
linearly dependent. A greedy choice in float64 keeps an independent subset: the same function class with
2.5 times fewer weights (l_max 3, correlation 3).

A of rank l is a tensor of rank l in the orthonormal columns of `components`. The first 2l+1 are the
symmetric traceless part, and with highest weights only (`l_in` 0 below) there are no others.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from .ict import allowed, coupling, scaled_coupling, stf_basis
from .tensors import Path, decompositions

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
def parts(rank: int, l_in: int, l_max: int) -> tuple[tuple[Path, np.ndarray], ...]:
    """Irreducible parts of A of a rank, (path, M [3^rank, 2w+1]), the highest weight first (spec §15).

    Only those that contractions of symmetric traceless features of rank ≤ l_in with edge attributes can
    reach: scalars (l_in 0) reach none but the highest, and nothing reaches a pseudo-scalar.
    """
    highest = tuple(range(rank + 1))
    into = [p for p in interaction_paths(l_in, l_max) if p.l3 == rank]
    return (
        (highest, stf_basis(rank)),
        *(
            (path, m)
            for path, m in decompositions(rank)
            if path != highest
            and any(contraction(p, stf_basis(p.l1), stf_basis(p.l2), onto=m).any() for p in into)
        ),
    )


@functools.cache
def components(rank: int, l_in: int, l_max: int) -> np.ndarray:
    """U [3^rank, n]: the columns of all `parts`."""
    return np.concatenate([m for _, m in parts(rank, l_in, l_max)], axis=1)


def contraction(
    path: InteractionPath, left: np.ndarray, right: np.ndarray, *, onto: np.ndarray
) -> np.ndarray:
    """G [m1, m2, m3]: last k slots of X with the first k of Y, in orthonormal columns of tensors.

    With `stf_basis` of the three ranks this is `ict.coupling`.
    """
    l1, l2, l3 = path
    k = (l1 + l2 - l3) // 2
    x, y = left.reshape(3 ** (l1 - k), 3**k, -1), right.reshape(3**k, 3 ** (l2 - k), -1)
    product = np.einsum("akm,kbn->abmn", x, y).reshape(3**l3, x.shape[2], y.shape[2])
    out = np.einsum("smn,sp->mnp", product, onto)
    out[np.abs(out) < 1e-14] = 0.0
    return out


@functools.cache
def product_coupling(path: InteractionPath, l_in: int, l_max: int, *, first: bool) -> np.ndarray:
    """G [m1, m2, 2l3+1] of a product with A, without its normaliser.

    Args:
        first: of A with A; else of a product, which is symmetric traceless, with A.
    """
    left = components(path.l1, l_in, l_max) if first else stf_basis(path.l1)
    return contraction(path, left, components(path.l2, l_in, l_max), onto=stf_basis(path.l3))


def normaliser(path: InteractionPath, norm: str) -> float:
    """That of `ict.scaled_coupling`, also where lower weights take part: they add to the same terms."""
    scaled = scaled_coupling(*path, norm=norm)
    return float(np.linalg.norm(scaled) / np.linalg.norm(coupling(*path)))


@functools.cache
def product_paths(
    l_max: int, correlation: int, outputs: tuple[int, ...], kind: str, *, l_in: int = 0
) -> Levels:
    """Paths of each order ν = 1..correlation.

    Args:
        outputs: ranks that are read; paths that neither are read nor feed one are dropped.
        kind: 'minimal' (independent subset, same span) or 'official' (every path).
        l_in: what the lower weights of A are made of, see `parts`; 0: A has none.
    """
    if kind not in ("minimal", "official"):
        raise ValueError(f"unknown path set '{kind}': use 'minimal' or 'official'")
    levels = [tuple(ProductPath(-1, -1, -1, l) for l in range(l_max + 1))]  # noqa: E741
    rng = np.random.default_rng(0)
    a = [
        rng.standard_normal((SAMPLES, components(l, l_in, l_max).shape[1]))
        for l in range(l_max + 1)  # noqa: E741
    ]
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
        g = {
            p: product_coupling(InteractionPath(*p[1:]), l_in, l_max, first=order == 2)
            for p in candidates
        }
        cost = {p: np.count_nonzero(each) for p, each in g.items()}
        candidates.sort(key=lambda p: (p.l3, cost[p], p.l1, p.l2, p.parent))
        chosen, kept = [], []
        spans: dict[int, np.ndarray] = {}
        for path in candidates:
            value = np.einsum("sa,sb,abm->sm", values[path.parent], a[path.l2], g[path])
            if kind == "official" or _extends(spans, path.l3, value):
                chosen.append(path)
                kept.append(value)
        levels.append(tuple(chosen))
        values = kept
    return _prune(levels, frozenset(outputs))


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
