"""Product basis: symmetric powers of A up to the correlation order (TACE eqs. 11 and 12).

Layout is component-major, [rows, A, C]: the couplings of one order are then one matrix product between a
constant [rows, products] and the elementwise products of the previous order with A.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .ict import scaled_coupling
from .layers import concatenate
from .paths import Levels, ProductPath


class _Block(NamedTuple):
    """Products of one parent path with A of rank l2; `diagonal` when only the scalar is wanted."""

    parent: int
    l2: int
    diagonal: bool


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
    level: Sequence[ProductPath], l_max: int, norm: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Constant [rows, products] and the two factors of each product A_i·A_j, i ≤ j, that is needed."""
    width = (l_max + 1) ** 2
    rows = _row_numbers(level)
    dense = np.zeros((sum(2 * p.l3 + 1 for p in level), width, width))
    for path, own in zip(level, rows, strict=True):
        g = scaled_coupling(path.l1, path.l2, path.l3, norm=norm)
        a, b = path.l1**2, path.l2**2
        for m, row in enumerate(own):
            dense[row, a : a + 2 * path.l1 + 1, b : b + 2 * path.l2 + 1] += g[:, :, m]
    folded = np.triu(dense + dense.transpose(0, 2, 1), 1) + np.einsum("rii,ij->rij", dense, np.eye(width))
    first, second = np.nonzero(np.abs(folded).max(0) > 1e-12)
    return folded[:, first, second], first, second


def _higher_order(
    level: Sequence[ProductPath], below: Sequence[ProductPath], norm: str
) -> tuple[np.ndarray, list[_Block]]:
    """Constant [rows, products] over the products of the blocks, in their order."""
    needed: dict[tuple[int, int], set[int]] = {}
    for path in level:
        needed.setdefault((path.parent, path.l2), set()).add(path.l3)
    blocks, columns, offset = [], {}, 0
    for (parent, l2), ranks in sorted(needed.items()):
        l1 = below[parent].l3
        diagonal = ranks == {0}
        blocks.append(_Block(parent, l2, diagonal))
        columns[parent, l2] = offset
        offset += 2 * l1 + 1 if diagonal else (2 * l1 + 1) * (2 * l2 + 1)
    rows = _row_numbers(level)
    matrix = np.zeros((sum(2 * p.l3 + 1 for p in level), offset))
    for path, own in zip(level, rows, strict=True):
        g = scaled_coupling(path.l1, path.l2, path.l3, norm=norm)
        start = columns[path.parent, path.l2]
        if needed[path.parent, path.l2] == {0}:
            matrix[own[0], start : start + 2 * path.l1 + 1] += np.diagonal(g[:, :, 0])
        else:
            for m, row in enumerate(own):
                matrix[row, start : start + g[:, :, m].size] += g[:, :, m].reshape(-1)
    return matrix, blocks


class ProductBasis(nn.Module):
    """A by rank, each [A, 2l+1, C] → features of every order by output rank, [A, 2l+1, n_l·C]."""

    first: Tensor  # [products] factors of the second order
    second: Tensor

    def __init__(self, levels: Levels, l_max: int, outputs: Sequence[int], norm: str) -> None:
        super().__init__()
        self.levels, self.l_max, self.outputs = levels, l_max, tuple(outputs)
        self.blocks: list[list[_Block]] = []
        if len(levels) > 1:
            matrix, first, second = _second_order(levels[1], l_max, norm)
            self.register_buffer("matrix2", torch.from_numpy(matrix), persistent=False)
            self.register_buffer("first", torch.from_numpy(first), persistent=False)
            self.register_buffer("second", torch.from_numpy(second), persistent=False)
        for order in range(3, len(levels) + 1):
            matrix, blocks = _higher_order(levels[order - 1], levels[order - 2], norm)
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
        stacked = concatenate([x.transpose(0, 1) for x in a], 0)  # [(l_max+1)², A, C]
        by_rank = stacked.split([2 * l + 1 for l in range(self.l_max + 1)], 0)  # noqa: E741
        collected: dict[int, list[Tensor]] = {l: [a[l].unsqueeze(2)] for l in self.outputs}  # noqa: E741
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
        if block.diagonal:
            return left * right
        return (left.unsqueeze(1) * right.unsqueeze(0)).flatten(0, 1)
