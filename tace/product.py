"""Product basis: symmetric powers of A up to the correlation order (TACE eqs. 11 and 12).

Layout is component-major, [rows, A, C]: the couplings of one order are then one matrix product between a
constant [rows, products] and the elementwise products of the previous order with A.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .ict import scaled_coupling
from .layers import concatenate, draw
from .paths import InteractionPath, Levels, ProductPath, components, normaliser, product_coupling


class _Block(NamedTuple):
    """Products of one parent path with A of rank l2; `diagonal` when only the scalar is wanted."""

    parent: int
    l2: int
    width: int  # components of A that take part, from the first
    diagonal: bool


class _Couplings(NamedTuple):
    """The constants of a basis: ranks of A, what its lower weights are made of, and the normaliser."""

    l_max: int
    l_in: int
    norm: str

    def widths(self) -> list[int]:
        """Number of components of A of every rank."""
        return [components(l, self.l_in, self.l_max).shape[1] for l in range(self.l_max + 1)]  # noqa: E741

    def of(self, path: ProductPath, *, first: bool) -> np.ndarray:
        """G [m1, m2, 2l3+1], normalised; `first`: of A with A."""
        if self.l_in == 0:
            return scaled_coupling(path.l1, path.l2, path.l3, norm=self.norm)
        triad = InteractionPath(path.l1, path.l2, path.l3)
        return product_coupling(triad, self.l_in, self.l_max, first=first) * normaliser(triad, self.norm)


def _rank_major(level: Sequence[ProductPath]) -> tuple[list[int], dict[int, int]]:
    """Ranks present, and the number of paths of each: rows are ordered (rank, component, path)."""
    ranks = sorted({path.l3 for path in level})
    return ranks, {l: sum(path.l3 == l for path in level) for l in ranks}  # noqa: E741


def _row_numbers(level: Sequence[ProductPath]) -> list[list[int]]:
    """Row of each component of each path, in the (rank, component, path) order."""
    ranks, count = _rank_major(level)
    start, offset = {}, 0
    for l in ranks:  # noqa: E741
        start[l] = offset
        offset += (2 * l + 1) * count[l]
    seen = dict.fromkeys(ranks, 0)
    rows = []
    for path in level:
        l = path.l3  # noqa: E741
        rows.append([start[l] + m * count[l] + seen[l] for m in range(2 * l + 1)])
        seen[l] += 1
    return rows


def _second_order(
    level: Sequence[ProductPath], couplings: _Couplings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Constant [rows, products] and the two factors of each product A_i·A_j, i ≤ j, that is needed."""
    start = np.cumsum([0, *couplings.widths()])
    width = start[-1]
    rows = _row_numbers(level)
    dense = np.zeros((sum(2 * p.l3 + 1 for p in level), width, width))
    for path, own in zip(level, rows, strict=True):
        g = couplings.of(path, first=True)
        a, b = start[path.l1], start[path.l2]
        for m, row in enumerate(own):
            dense[row, a : a + g.shape[0], b : b + g.shape[1]] += g[:, :, m]
    folded = np.triu(dense + dense.transpose(0, 2, 1), 1) + np.einsum("rii,ij->rij", dense, np.eye(width))
    first, second = np.nonzero(np.abs(folded).max(0) > 1e-12)
    return folded[:, first, second], first, second


def _higher_order(
    level: Sequence[ProductPath], couplings: _Couplings
) -> tuple[np.ndarray, list[_Block]]:
    """Constant [rows, products] over the products of the blocks, in their order."""
    needed: dict[tuple[int, int], list[ProductPath]] = {}
    for path in level:
        needed.setdefault((path.parent, path.l2), []).append(path)
    blocks, columns, offset = [], {}, 0
    for (parent, l2), paths in sorted(needed.items()):
        rows_left = 2 * paths[0].l1 + 1
        diagonal = {p.l3 for p in paths} == {0}
        # without a contraction only the symmetric traceless part of A, which comes first, takes part
        low = any(couplings.of(p, first=False)[:, 2 * l2 + 1 :].any() for p in paths)
        width = couplings.widths()[l2] if low else 2 * l2 + 1
        blocks.append(_Block(parent, l2, width, diagonal))
        columns[parent, l2] = offset
        offset += rows_left if diagonal else rows_left * width
    matrix = np.zeros((sum(2 * p.l3 + 1 for p in level), offset))
    width_of = {(b.parent, b.l2): b.width for b in blocks}
    for path, own in zip(level, _row_numbers(level), strict=True):
        key = path.parent, path.l2
        g = couplings.of(path, first=False)[:, : width_of[key]]
        start = columns[key]
        if {p.l3 for p in needed[key]} == {0}:
            matrix[own[0], start : start + 2 * path.l1 + 1] += np.diagonal(g[:, :, 0])
        else:
            for m, row in enumerate(own):
                matrix[row, start : start + g[:, :, m].size] += g[:, :, m].reshape(-1)
    return matrix, blocks


def highest(a: Tensor, l: int) -> Tensor:  # noqa: E741
    """Symmetric traceless part [A, 2l+1, C] of A of rank l."""
    return a if a.shape[1] == 2 * l + 1 else a[:, : 2 * l + 1]


class ProductBasis(nn.Module):
    """A by rank, each [A, 2l+1, C] → features of every order by output rank, [A, 2l+1, n_l·C].

    With lower weights (`l_in` > 0, spec §15) A is [A, n, C] in `components`: the products contract whole
    tensors and keep the symmetric traceless part of the result, and of order one only that part is read.
    """

    first: Tensor  # [products] factors of the second order
    second: Tensor

    def __init__(
        self, levels: Levels, l_max: int, outputs: Sequence[int], norm: str, *, l_in: int = 0
    ) -> None:
        super().__init__()
        self.levels, self.l_max, self.outputs = levels, l_max, tuple(outputs)
        couplings = _Couplings(l_max, l_in, norm)
        self.widths = couplings.widths()
        self.blocks: list[list[_Block]] = []
        if len(levels) > 1:
            matrix, first, second = _second_order(levels[1], couplings)
            self.register_buffer("matrix2", torch.from_numpy(matrix), persistent=False)
            self.register_buffer("first", torch.from_numpy(first), persistent=False)
            self.register_buffer("second", torch.from_numpy(second), persistent=False)
        for order in range(3, len(levels) + 1):
            matrix, blocks = _higher_order(levels[order - 1], couplings)
            self.register_buffer(f"matrix{order}", torch.from_numpy(matrix), persistent=False)
            self.blocks.append(blocks)

    def features_per_rank(self) -> dict[int, int]:
        """n_l of each output rank."""
        return {
            l: sum(path.l3 == l for level in self.levels for path in level)
            for l in self.outputs  # noqa: E741
        }

    def forward(self, a: Sequence[Tensor]) -> list[Tensor]:
        atoms, channels = a[0].shape[0], a[0].shape[2]
        if len(self.levels) > 1:
            stacked = concatenate([x.transpose(0, 1) for x in a], 0)  # [Σ 2l+1, A, C]
            by_rank = stacked.split(self.widths, 0)
        collected: dict[int, list[Tensor]] = {
            l: [highest(a[l], l).unsqueeze(2)]
            for l in self.outputs  # noqa: E741
        }
        below: Sequence[Tensor] = ()
        for order, level in enumerate(self.levels[1:], start=2):
            if order == 2:
                terms = stacked.index_select(0, self.first) * stacked.index_select(0, self.second)
            else:
                terms = concatenate(
                    [self._products(below, by_rank, block) for block in self.blocks[order - 3]], 0
                )
            matrix = getattr(self, f"matrix{order}")
            values = matrix @ terms.reshape(matrix.shape[1], -1)
            below = self._split(values.view(-1, atoms, channels), level, collected)
        return [
            concatenate(collected[l], 2).reshape(atoms, 2 * l + 1, -1)
            for l in self.outputs  # noqa: E741
        ]

    def _split(
        self, values: Tensor, level: Sequence[ProductPath], collected: dict[int, list[Tensor]]
    ) -> list[Tensor]:
        """Hand the output ranks to `collected` and return [2l+1, A, C] of every path."""
        ranks, count = _rank_major(level)
        blocks = values.split([(2 * l + 1) * count[l] for l in ranks], 0)  # noqa: E741
        paths: dict[int, list[Tensor]] = {}
        for l, block in zip(ranks, blocks, strict=True):  # noqa: E741
            shaped = block.view(2 * l + 1, count[l], *values.shape[1:])
            if l in collected:
                collected[l].append(shaped.permute(2, 0, 1, 3))
            paths[l] = list(shaped.unbind(1)) if level is not self.levels[-1] else []
        return [paths[path.l3].pop(0) for path in level] if level is not self.levels[-1] else []

    @staticmethod
    def _products(below: Sequence[Tensor], by_rank: Sequence[Tensor], block: _Block) -> Tensor:
        left, right = below[block.parent], by_rank[block.l2]
        if block.width < right.shape[0]:
            right = right[: block.width]
        if block.diagonal:
            return left * right
        return (left.unsqueeze(1) * right.unsqueeze(0)).flatten(0, 1)


class PathMix(nn.Module):
    """x [A, 2l+1, n·C] → Σ_paths w[z, path, c]·x, atoms sorted by element: uncoupled channels (spec §6.2)."""

    def __init__(
        self, n_elements: int, n_paths: int, channels: int, generator: torch.Generator, *, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.gain = gain / math.sqrt(n_paths)
        self.weight = draw((n_elements, n_paths, channels), self.gain, generator)

    def forward(self, x: Tensor, counts: tuple[int, ...]) -> Tensor:
        by_path = x.view(*x.shape[:2], *self.weight.shape[1:])
        present = [z for z, count in enumerate(counts) if count]
        blocks = by_path.split([counts[z] for z in present], 0)
        weights = self.weight.unbind(0)
        return concatenate([(b * weights[z]).sum(2) for b, z in zip(blocks, present, strict=True)], 0)
