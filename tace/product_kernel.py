"""The compiled product basis (kernels/product.cpp) as a differentiable function of any order.

T(A, g) = Σ g·B(A) is a polynomial of A. Values, slopes, and the derivatives of slopes along a direction are
one function of the kernel each; what goes beyond is left to PyTorch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .kernel_calls import addresses, call, filled

Plain = Callable[[Sequence[Tensor]], list[Tensor]]


class Place(NamedTuple):
    """Where a number of each atom and channel is: number of the array, component, and path there."""

    array: int
    component: int
    path: int


class Terms(NamedTuple):
    """Row `row` is the sum of its coefficients times number `left` times component `right` of A.

    Components of A and rows are counted together, A first, and a row reads only what comes before it.
    """

    row: np.ndarray
    left: np.ndarray
    right: np.ndarray
    coefficient: np.ndarray


class Shapes(NamedTuple):
    """Components of A by rank; of each output [components, paths]; where what is read goes, by its number."""

    widths: tuple[int, ...]
    outputs: tuple[tuple[int, int], ...]
    places: dict[int, Place]

    def sums(self, like: Tensor) -> list[Tensor]:
        """Room for the outputs, [A, components, paths·C], where `like` is A of some rank."""
        atoms, channels = like.shape[0], like.shape[2]
        return [like.new_empty(atoms, m, n * channels) for m, n in self.outputs]


def tables(terms: Terms, shapes: Shapes, nodes: int) -> tuple[Tensor, Tensor]:
    """What the kernel reads, in its order: whole numbers [.] int32, and coefficients [.] float64.

    Args:
        nodes: number of components of A and rows.
    """
    row, left, right, coefficient = terms
    feeds = np.zeros(nodes, dtype=np.int64)
    feeds[left] = 1
    feeds[right] = 1
    inputs = sum(shapes.widths)
    inner = 1 + max(np.flatnonzero(feeds).max(), inputs - 1)
    # the slope of a number needs every term that reads it, those of rows that feed no other first
    target, other = np.concatenate([left, right]), np.concatenate([right, left])
    source, factor = np.tile(row, 2), np.tile(coefficient, 2)
    forward, back = np.lexsort((left, right, row)), np.lexsort((source, other, feeds[source], target))
    start = np.searchsorted(row[forward], np.arange(nodes + 1))
    back_start = np.searchsorted(target[back], np.arange(nodes + 1))
    leaves = np.bincount(target[feeds[source] == 0], minlength=nodes)
    at_in = [(l, m, 0) for l, n in enumerate(shapes.widths) for m in range(n)]  # noqa: E741
    at_out = [shapes.places.get(t, (-1, 0, 0)) for t in range(nodes)]
    whole: list[Any] = [
        [len(shapes.widths), len(shapes.outputs), inputs, nodes, inner],
        shapes.widths, [m for m, _ in shapes.outputs], [n for _, n in shapes.outputs],
        at_in, at_out, feeds, back_start[:-1] + leaves,
        start, np.stack([left, right], 1)[forward],
        back_start, np.stack([source, other], 1)[back],
    ]  # fmt: skip
    numbers = np.concatenate([np.asarray(x, dtype=np.int32).reshape(-1) for x in whole])
    coefficients = np.concatenate([coefficient[forward], factor[back]])
    return torch.from_numpy(numbers), torch.from_numpy(coefficients)


class Kernel(NamedTuple):
    """A product basis as the kernel sees it."""

    library: ctypes.CDLL
    table: Tensor
    coefficients: Tensor  # of the dtype of A

    def run(self, name: str, like: Tensor, tensors: Sequence[Tensor | None]) -> None:
        """Call a function of the kernel.

        Args:
            like: A of some rank, [A, n, C].
            tensors: what it reads and writes, contiguous and of one dtype, in its order.
        """
        values = (
            self.table.data_ptr(), self.coefficients.data_ptr(),
            like.shape[0], like.shape[2], torch.get_num_threads(),
            *addresses(tensors),
        )  # fmt: skip
        call(self.library, name, self.coefficients.dtype, values)


class Basis(NamedTuple):
    """A product basis, compiled and in PyTorch."""

    kernel: Kernel
    shapes: Shapes
    plain: Plain


class _Values(torch.autograd.Function):
    """A_0.. → B_0.. = ∂T/∂g_0.."""

    @staticmethod
    def forward(ctx: Any, basis: Basis, *a: Tensor) -> tuple[Tensor, ...]:
        given = [t.contiguous() for t in a]
        ctx.save_for_backward(*given)
        ctx.set_materialize_grads(False)
        ctx.basis = basis
        out = basis.shapes.sums(given[0])
        basis.kernel.run("product", given[0], [*given, *out])
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, *g: Tensor | None) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        if all(each is None for each in g):
            return (None,) * (1 + len(saved))
        if any(each is None for each in g):
            g = tuple(filled(g, ctx.basis.shapes.sums(saved[0])))
        return (None, *_Slopes.apply(ctx.basis, *saved, *g))


class _Slopes(torch.autograd.Function):
    """A_0.., g_0.. → ∂T/∂A_0.."""

    @staticmethod
    def forward(ctx: Any, basis: Basis, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = [t.contiguous() for t in inputs]
        ctx.save_for_backward(*given)
        ctx.set_materialize_grads(False)
        ctx.basis = basis
        out = [torch.empty_like(t) for t in given[: len(basis.shapes.widths)]]
        basis.kernel.run("product_grad", given[0], [*given, *out])
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, *u: Tensor | None) -> tuple[Any, ...]:
        saved, n = ctx.saved_tensors, len(ctx.basis.shapes.widths)
        if all(each is None for each in u):
            return (None,) * (1 + len(saved))
        needed = any(ctx.needs_input_grad[1 : 1 + n]), any(ctx.needs_input_grad[1 + n :])
        return (None, *_Second.apply(ctx.basis, needed, *saved, *filled(u, saved[:n])))


class _Second(torch.autograd.Function):
    """A_0.., g_0.., u_0.. → derivatives of Σ u·∂T/∂A for A_0.. and g_0.., None where not needed."""

    @staticmethod
    def forward(
        ctx: Any, basis: Basis, needed: tuple[bool, bool], *inputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        given, n, m = [t.contiguous() for t in inputs], len(basis.shapes.widths), len(basis.shapes.outputs)
        ctx.save_for_backward(*given)
        ctx.set_materialize_grads(False)
        ctx.basis = basis
        out = [torch.empty_like(t) if needed[k >= n] else None for k, t in enumerate(given[: n + m])]
        basis.kernel.run("product_grad2", given[0], [*given, *out])
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, *v: Tensor | None) -> tuple[Any, ...]:
        """By differentiating the plain form three times."""
        saved, shapes, further = ctx.saved_tensors, ctx.basis.shapes, torch.is_grad_enabled()
        if all(each is None for each in v):
            return (None,) * (2 + len(saved))
        n, m = len(shapes.widths), len(shapes.outputs)
        with torch.enable_grad():
            # aliases, because one tensor may be two of the inputs
            inputs = [
                t.view_as(t) if further and t.requires_grad else t.detach().requires_grad_() for t in saved
            ]
            a, g, u = inputs[:n], inputs[n : n + m], inputs[n + m :]
            first = _derivatives(ctx.basis.plain(a), a, g)
            second = _derivatives(first, inputs[: n + m], u)
        along = [torch.zeros_like(t) if x is None else x for t, x in zip(second, v, strict=True)]
        return (None, None, *_derivatives(second, inputs, along, further=further))


def _derivatives(
    values: Sequence[Tensor], inputs: Sequence[Tensor], along: Sequence[Tensor], *, further: bool = True
) -> tuple[Tensor, ...]:
    """Of Σ along·values; zeros where nothing depends on an input."""
    pairs = [(x, y) for x, y in zip(values, along, strict=True) if x.requires_grad]
    if not pairs:
        return tuple(torch.zeros_like(t) for t in inputs)
    some, over = zip(*pairs, strict=True)
    return torch.autograd.grad(some, inputs, over, create_graph=further, materialize_grads=True)


def native_product(basis: Basis, a: Sequence[Tensor]) -> list[Tensor]:
    """A by rank [A, n, C] → every output [A, components, paths·C]."""
    return list(_Values.apply(basis, *a))
