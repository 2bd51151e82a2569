"""Product basis: symmetric powers of A up to the correlation order (TACE eqs. 11 and 12).

There are two forms: a compiled kernel, where there is one, and PyTorch's. The layout of the latter is
component-major, [rows, A, C]: the couplings of one order are then one matrix product between a constant
[rows, products] and the elementwise products of the previous order with A.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from . import native
from .ict import scaled_coupling
from .kernel_calls import can_run
from .layers import concatenate, draw
from .paths import (
    InteractionPath,
    Levels,
    ProductPath,
    components,
    normaliser,
    product_coupling,
    product_paths,
)
from .product_kernel import Basis, Kernel, Place, Shapes, Terms, native_product, tables


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


def _terms(matrix: np.ndarray, left: np.ndarray, right: np.ndarray, *, first: int) -> Terms:
    """The entries of a constant [rows, products] that are not zero; `first`: number of its first row."""
    row, column = np.nonzero(np.abs(matrix) > 1e-14 * np.abs(matrix).max(initial=1e-300))
    return Terms(row + first, left[column], right[column], matrix[row, column])


def _factors(
    below: Sequence[ProductPath], blocks: Sequence[_Block], *, start: np.ndarray, first: int
) -> tuple[np.ndarray, np.ndarray]:
    """Number of the row and of the component of A in every product, in the order of the blocks.

    Args:
        below: paths of the order below, of which `first` is the number of the first row.
        start: number of the first component of every rank.
    """
    rows, left, right = _row_numbers(below), [], []
    for block in blocks:
        own = np.array(rows[block.parent]) + first
        a = start[block.l2] + np.arange(block.width)
        left.append(own if block.diagonal else np.repeat(own, len(a)))
        right.append(a if block.diagonal else np.tile(a, len(own)))
    return np.concatenate(left), np.concatenate(right)


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
    table: Tensor  # as the kernel reads them
    coefficients: Tensor

    def __init__(
        self, levels: Levels, l_max: int, outputs: Sequence[int], norm: str, *, l_in: int = 0
    ) -> None:
        super().__init__()
        self.levels, self.l_max, self.outputs = levels, l_max, tuple(outputs)
        couplings = _Couplings(l_max, l_in, norm)
        self.widths = couplings.widths()
        self.blocks: list[list[_Block]] = []
        if len(levels) == 1:
            return
        start = np.cumsum([0, *self.widths])
        first_row = [0, int(start[-1])]  # of every order
        matrix, left, right = _second_order(levels[1], couplings)
        self.register_buffer("matrix2", torch.from_numpy(matrix), persistent=False)
        self.register_buffer("first", torch.from_numpy(left), persistent=False)
        self.register_buffer("second", torch.from_numpy(right), persistent=False)
        terms = [_terms(matrix, left, right, first=first_row[1])]
        for order in range(3, len(levels) + 1):
            below = levels[order - 2]
            matrix, blocks = _higher_order(levels[order - 1], couplings)
            self.register_buffer(f"matrix{order}", torch.from_numpy(matrix), persistent=False)
            self.blocks.append(blocks)
            left, right = _factors(below, blocks, start=start, first=first_row[-1])
            first_row.append(first_row[-1] + sum(2 * p.l3 + 1 for p in below))
            terms.append(_terms(matrix, left, right, first=first_row[-1]))
        self.shapes = self._shapes(first_row)
        nodes = first_row[-1] + len(matrix)
        joined = Terms(*(np.concatenate(each) for each in zip(*terms, strict=True)))
        table, coefficients = tables(joined, self.shapes, nodes)
        self.register_buffer("table", table, persistent=False)
        self.register_buffer("coefficients", coefficients, persistent=False)

    def _shapes(self, first_row: Sequence[int]) -> Shapes:
        """Where outputs go: by order, within it by path."""
        start, places = np.cumsum([0, *self.widths]), {}
        paths = dict.fromkeys(self.outputs, 1)
        for n, l in enumerate(self.outputs):  # noqa: E741
            places.update({int(start[l]) + m: Place(n, m, 0) for m in range(2 * l + 1)})
        for level, first in zip(self.levels[1:], first_row[1:], strict=True):
            for path, own in zip(level, _row_numbers(level), strict=True):
                if path.l3 in paths:
                    at = self.outputs.index(path.l3), paths[path.l3]
                    places.update({first + row: Place(at[0], m, at[1]) for m, row in enumerate(own)})
                    paths[path.l3] += 1
        sizes = tuple((2 * l + 1, paths[l]) for l in self.outputs)  # noqa: E741
        return Shapes(tuple(self.widths), sizes, places)

    def features_per_rank(self) -> dict[int, int]:
        """n_l of each output rank."""
        return {
            l: sum(path.l3 == l for level in self.levels for path in level)
            for l in self.outputs  # noqa: E741
        }

    def forward(self, a: Sequence[Tensor]) -> list[Tensor]:
        library = compiled() if self._native(a) else None
        if library is None:
            return self.plain(a)
        return native_product(self.basis(library), a)

    def basis(self, library: ctypes.CDLL) -> Basis:
        """As the kernel sees it."""
        return Basis(Kernel(library, self.table, self.coefficients), self.shapes, self.plain)

    def _native(self, a: Sequence[Tensor]) -> bool:
        """Whether the kernel can do it; of order one there is nothing to do."""
        return len(self.levels) > 1 and can_run(self.coefficients.dtype, a)

    def plain(self, a: Sequence[Tensor]) -> list[Tensor]:
        """The form that says what is meant, in PyTorch alone: on any device, for any transformation."""
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
            values = matrix @ terms.reshape(matrix.shape[1], atoms * channels)
            below = self._split(values.view(len(matrix), atoms, channels), level, collected)
        return [concatenate(collected[l], 2).flatten(2) for l in self.outputs]  # noqa: E741

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


@functools.cache
def compiled() -> ctypes.CDLL | None:
    """The kernel, found to do what `ProductBasis.plain` does; None where PyTorch has to do it."""
    return native.library(agrees, "product basis")


def agrees(library: ctypes.CDLL) -> None:
    """Compare values, first and second derivatives with those of `ProductBasis.plain` on three atoms.

    Raises:
        native.NativeError: they differ by more than round-off.
    """
    levels = product_paths(2, 3, (0, 1), "official")
    module = ProductBasis(levels, 2, (0, 1), "unit")
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-4)):  # round-off, times a thousand
        with torch.inference_mode(False), torch.enable_grad():
            error = _difference(module.to(dtype), library, dtype)
        if not error < tolerance:
            raise native.NativeError(f"the compiled product basis is wrong by {error:.1e} in {dtype}")


def _difference(module: ProductBasis, library: ctypes.CDLL, dtype: torch.dtype) -> float:
    """Largest deviation of the kernel, relative to the largest number of the same kind."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
        return numbers.to(dtype).requires_grad_()

    c = 125  # channels: blocks of every width, and a rest
    a = [random(3, n, c) for n in module.widths]
    seeds = [random(3, m, n * c) for m, n in module.shapes.outputs]
    found = []
    for products in (native_product(module.basis(library), a), module.plain(a)):
        # of a scalar: with seeds given, PyTorch imports sympy first, which takes a third of a second
        scalar = torch.stack([(s * x).sum() for s, x in zip(seeds, products, strict=True)]).sum()
        first = torch.autograd.grad(scalar, a, create_graph=True)
        value = torch.stack([x.square().sum() for x in first]).sum()
        found.append([*products, *first, *torch.autograd.grad(value, [*a, *seeds])])
    errors = [(x - y).abs().max() / y.abs().max() for x, y in zip(*found, strict=True)]
    return float(torch.stack(errors).detach().max())  # NaN if there is one


class PathMix(nn.Module):
    """x [A, 2l+1, n·C] → Σ_paths w[z, path, c]·x, atoms sorted by element: uncoupled channels (spec §6.2).

    Of M stacked members the weights are [M, Z, paths, C], and x is [M·A, ...].
    """

    def __init__(
        self, n_elements: int, n_paths: int, channels: int, generator: torch.Generator, *, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.gain = gain / math.sqrt(n_paths)
        self.weight = draw((n_elements, n_paths, channels), self.gain, generator)

    def forward(self, x: Tensor, counts: tuple[int, ...]) -> Tensor:
        by_path = x.view(*x.shape[:2], *self.weight.shape[-2:])
        present = [z for z, count in enumerate(counts) if count]
        weights = self.weight.unbind(-3)
        if self.weight.ndim == 4:  # of stacked members, whose atoms come one copy after another
            by_member = by_path.view(len(self.weight), -1, *by_path.shape[1:])
            blocks = by_member.split([counts[z] for z in present], 1)
            parts = [(b * weights[z][:, None, None]).sum(3) for b, z in zip(blocks, present, strict=True)]
            return concatenate(parts, 1).flatten(0, 1)
        blocks = by_path.split([counts[z] for z in present], 0)
        return concatenate([(b * weights[z]).sum(2) for b, z in zip(blocks, present, strict=True)], 0)
