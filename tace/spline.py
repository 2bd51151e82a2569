"""C² splines of many functions over one variable, differentiable: a look-up in place of a radial network.

Quintic Hermite: value, first and second derivative of every function at every knot, so that derivatives at
the knots are exact, intervals know nothing of each other, and the error falls as step⁶ (of slopes as step⁵).
From the last knot on the splines are zero, as value, slope and curvature there have to be. There are two
forms: a compiled kernel, where there is one, and PyTorch's.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import native
from .kernel_calls import addresses, call, can_run

# coefficient of t^power in each of the six polynomials: of value, slope, curvature at t = 0, then at t = 1
HERMITE = (
    (1.0, 0.0, 0.0, -10.0, 15.0, -6.0),
    (0.0, 1.0, 0.0, -6.0, 8.0, -3.0),
    (0.0, 0.0, 0.5, -1.5, 1.5, -0.5),
    (0.0, 0.0, 0.0, 10.0, -15.0, 6.0),
    (0.0, 0.0, 0.0, -4.0, 7.0, -3.0),
    (0.0, 0.0, 0.0, 0.5, -1.0, 0.5),
)


class Forms(NamedTuple):
    """Who computes (x, table, grid, order) → [P, width], and (x, g, table, grid, order) → Σ g·of it [P]."""

    values: Callable[[Tensor, Tensor, Tensor, int], Tensor]
    dots: Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]


def spline(x: Tensor, table: Tensor, grid: Tensor, *, forms: Forms | None = None) -> Tensor:
    """[P] arguments → [P, width], the value of every function, with derivatives up to the second continuous.

    Args:
        table: [knots, 3, width] value, step·slope, step²·curvature at equally spaced knots.
        grid: [2] float64 on the CPU, the first knot and the step.
    """
    found: Tensor = _Values.apply(x, table, grid, 0, forms or Forms(values, dots))
    return found


class _Values(torch.autograd.Function):
    """x [P] → the derivative of some order of every function [P, width]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, grid: Tensor, order: int, forms: Forms) -> Tensor:
        ctx.save_for_backward(x, table, grid)
        ctx.order, ctx.forms = order, forms
        return forms.values(x, table, grid, order)

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> tuple[Any, ...]:
        x, table, grid = ctx.saved_tensors
        return _Dots.apply(x, g[0], table, grid, (ctx.order + 1, ctx.forms)), None, None, None, None


class _Dots(torch.autograd.Function):
    """x [P], g [P, width] → Σ g·(derivative of some order) [P]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, g: Tensor, table: Tensor, grid: Tensor, how: tuple[int, Forms]
    ) -> Tensor:
        ctx.save_for_backward(x, g, table, grid)
        ctx.how = how
        return how[1].dots(x, g, table, grid, how[0])

    @staticmethod
    def backward(ctx: Any, *u: Tensor) -> tuple[Any, ...]:
        (x, g, table, grid), (order, forms) = ctx.saved_tensors, ctx.how
        for_x = u[0] * _Dots.apply(x, g, table, grid, (order + 1, forms))
        for_g = u[0].unsqueeze(1) * _Values.apply(x, table, grid, order, forms)
        return for_x, for_g, None, None, None


def values(x: Tensor, table: Tensor, grid: Tensor, order: int) -> Tensor:
    """The derivative of this order of every function, [P, width]; not differentiable by itself."""
    library = compiled() if can_run(table.dtype, [x, table]) else None
    if library is None:
        return _plain(x, table, grid, order=order)
    out = table.new_empty(len(x), table.shape[2])
    _run(library, "spline", (x, table, grid), order=order, g=None, out=out)
    return out


def dots(x: Tensor, g: Tensor, table: Tensor, grid: Tensor, order: int) -> Tensor:
    """Σ over functions of g·(derivative of this order), [P]; not differentiable by itself."""
    library = compiled() if can_run(table.dtype, [x, g, table]) else None
    if library is None:
        return (g * _plain(x, table, grid, order=order)).sum(1)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _run(library, "spline_dot", (x, table, grid), order=order, g=g.contiguous(), out=out)
    return out


def _run(
    library: ctypes.CDLL,
    name: str,
    of: tuple[Tensor, Tensor, Tensor],
    *,
    order: int,
    g: Tensor | None,
    out: Tensor,
) -> None:
    x, table, grid = of
    x = x.contiguous()
    shape = (len(x), table.shape[2], len(table) - 1, order, torch.get_num_threads())
    call(library, name, table.dtype, (*shape, *addresses([grid, x, table, g, out])))


def _plain(x: Tensor, table: Tensor, grid: Tensor, order: int) -> Tensor:
    """The form that says what is meant, in PyTorch alone."""
    start, step = grid.tolist()
    place = (x.double() - start) / step
    first = place.floor().clamp(0, len(table) - 2)
    first = torch.where(first.isnan(), 0.0, first)  # of an argument that is NaN, so is t, and the result
    t, rows = (place - first).unsqueeze(1), first.long()
    weights = [torch.zeros_like(t) for _ in HERMITE]
    for b, coefficients in enumerate(HERMITE):
        for power in range(5, order - 1, -1):
            factor = coefficients[power]
            for d in range(order):
                factor *= power - d
            weights[b] = weights[b] * t + factor
    weight = torch.cat(weights, 1) * step**-order
    weight = torch.where((place >= len(table) - 1).unsqueeze(1), 0.0, weight).to(table.dtype)
    near = torch.cat([table[rows], table[rows + 1]], 1)  # [P, 6, width]
    return torch.bmm(weight.unsqueeze(1), near).squeeze(1)


@functools.cache
def compiled() -> ctypes.CDLL | None:
    """The kernel, found to do what PyTorch does; None where PyTorch has to do it."""
    return native.library(agrees, "spline")


def agrees(library: ctypes.CDLL) -> None:
    """Compare values and derivatives with those of PyTorch on forty arguments, some beyond the ends.

    Raises:
        native.NativeError: they differ by more than round-off.
    """
    generator = torch.Generator().manual_seed(0)
    grid = torch.tensor([0.3, 0.25], dtype=torch.float64)
    numbers = torch.randn(8, 3, 37, generator=generator, dtype=torch.float64)  # 37: whole vectors, and a rest
    x = 2.4 * torch.rand(40, generator=generator, dtype=torch.float64)
    seeds = torch.randn(40, 37, generator=generator, dtype=torch.float64)
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-4)):  # round-off, times a thousand
        table, at, g = numbers.to(dtype), x.to(dtype), seeds.to(dtype)
        for order in range(4):
            plain = _plain(at, table, grid, order=order)
            found, sums = torch.empty_like(plain), torch.empty_like(at)
            _run(library, "spline", (at, table, grid), order=order, g=None, out=found)
            _run(library, "spline_dot", (at, table, grid), order=order, g=g, out=sums)
            for mine, theirs in ((found, plain), (sums, (g * plain).sum(1))):
                error = float((mine - theirs).abs().max() / theirs.abs().max())
                if not error < tolerance:
                    raise native.NativeError(f"the compiled spline is wrong by {error:.1e} in {dtype}")
