"""A model in a form that `make_fx` can record: kernels as operators, nothing that depends on a composition.

`recordable` copies a model and puts the modules below in the place of those that run kernels or loop over
elements. They compute the same numbers and have the derivatives that forces and the loss of a training need.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .batch import Batch
from .config import LesConfig
from .edge_kernel import MAX_RANK_IN
from .edge_sum import EdgeSum
from .layers import ElementLinear
from .model import Tace
from .opaque import operators
from .product import PathMix, ProductBasis
from .radial_tables import RadialTable
from .spline import Forms, spline


class Composition(NamedTuple):
    """In the place of `Batch.species_counts`: atoms of each element [Z], and the species of each atom [A]."""

    counts: Tensor
    species: Tensor


# ------------------------------------------------------------------ operators with derivatives
class _EdgeSum(torch.autograd.Function):
    """Y, W, s_0.. → sums of every rank."""

    @staticmethod
    def forward(ctx: Any, index: list[Any], *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*inputs)
        ctx.index = index
        return tuple(operators().edge_sum(inputs[0], inputs[1], list(inputs[2:]), *index))

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> tuple[Any, ...]:
        needed = list(ctx.needs_input_grad[1:])
        return (None, *_EdgeGrad.apply(ctx.index, needed, *ctx.saved_tensors, *g))


class _EdgeGrad(torch.autograd.Function):
    """Y, W, s_0.., g_0.. → slopes of Σ g·sums for the first three kinds, None where not needed."""

    @staticmethod
    def forward(ctx: Any, index: list[Any], needed: list[bool], *inputs: Tensor) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)
        ctx.index, n = index, len(needed)
        ctx.n = n
        out = operators().edge_sum_grad(list(inputs[:n]), list(inputs[n:]), needed, *index)
        return tuple(x if need else None for x, need in zip(out, needed, strict=True))

    @staticmethod
    def backward(ctx: Any, *u: Tensor | None) -> tuple[Any, ...]:
        saved, n = ctx.saved_tensors, ctx.n
        if all(x is None for x in u):
            return (None,) * (2 + len(saved))
        absent = saved[0].new_empty(0)
        some = any(x is not None for x in u[2:])  # the kernel knows features of all ranks, or of none
        rest = [torch.zeros_like(s) if some else absent for s in saved[2:n]]
        given = [x if x is not None else r for x, r in zip(u, [absent, absent, *rest], strict=True)]
        needed = list(ctx.needs_input_grad[2:])
        needed[n:] = [any(needed[n:])] * (len(saved) - n)
        out = operators().edge_sum_grad2(list(saved), given, needed, *ctx.index)
        return (None, None, *_where(out, needed))


class _Product(torch.autograd.Function):
    """A_0.. → every output."""

    @staticmethod
    def forward(ctx: Any, basis: list[Any], *a: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*a)
        ctx.basis = basis
        return tuple(operators().product(list(a), *basis))

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> tuple[Any, ...]:
        return (None, *_ProductGrad.apply(ctx.basis, len(ctx.saved_tensors), *ctx.saved_tensors, *g))


class _ProductGrad(torch.autograd.Function):
    """A_0.., g_0.. → slopes of Σ g·products."""

    @staticmethod
    def forward(ctx: Any, basis: list[Any], n: int, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*inputs)
        ctx.basis, ctx.n = basis, n
        return tuple(operators().product_grad(list(inputs[:n]), list(inputs[n:]), *basis))

    @staticmethod
    def backward(ctx: Any, *u: Tensor) -> tuple[Any, ...]:
        saved, n, need = ctx.saved_tensors, ctx.n, ctx.needs_input_grad[2:]
        needed = [any(need[:n])] * n + [any(need[n:])] * (len(saved) - n)
        out = operators().product_grad2(list(saved[:n]), list(saved[n:]), list(u), needed, *ctx.basis)
        return (None, None, *_where(out, needed))


def _where(found: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor | None]:
    return [x if need else None for x, need in zip(found, needed, strict=True)]


class _ElementProduct(torch.autograd.Function):
    """x, W → x·W[z], or x·W[z]ᵀ."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, counts: Tensor, transposed: bool) -> Tensor:
        ctx.save_for_backward(x, weight, counts)
        ctx.transposed = transposed
        found: Tensor = operators().element_mm(x, weight, counts, transposed)
        return found

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> tuple[Any, ...]:
        x, weight, counts = ctx.saved_tensors
        for_x = for_w = None
        if ctx.needs_input_grad[0]:
            for_x = _ElementProduct.apply(g[0], weight, counts, not ctx.transposed)
        if ctx.needs_input_grad[1]:
            left, right = (g[0], x) if ctx.transposed else (x, g[0])
            for_w = _ElementSlope.apply(left, right, counts)
        return for_x, for_w, None, None


class _ElementSlope(torch.autograd.Function):
    """x, g → Σ over atoms of an element x·gᵀ, [Z, n_in, n_out]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, counts: Tensor) -> Tensor:
        ctx.save_for_backward(x, g, counts)
        found: Tensor = operators().element_mm_grad(x, g, counts)
        return found

    @staticmethod
    def backward(ctx: Any, *u: Tensor) -> tuple[Any, ...]:
        x, g, counts = ctx.saved_tensors
        for_x = _ElementProduct.apply(g, u[0], counts, True)
        return for_x, _ElementProduct.apply(x, u[0], counts, False), None


class _Les(torch.autograd.Function):
    """Charges, positions and cells → energies [S]; their slopes come with them."""

    @staticmethod
    def forward(ctx: Any, place: list[Any], *inputs: Tensor) -> Tensor:
        energies, *slopes = operators().les(*inputs, *place)
        ctx.save_for_backward(*inputs, *slopes)
        ctx.place = place
        found: Tensor = energies
        return found

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> tuple[Any, ...]:
        return (None, *_LesSlopes.apply(ctx.place, ctx.saved_tensors[3:], g[0], *ctx.saved_tensors[:3]))


class _LesSlopes(torch.autograd.Function):
    """g [S], charges, positions and cells → the slopes of Σ g·energies for the last three.

    A structure has an energy of its own, so that they are g times the slopes which `_Les` has found.
    """

    @staticmethod
    def forward(
        ctx: Any, place: list[Any], slopes: Sequence[Tensor], g: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(g, *inputs, *slopes)
        ctx.set_materialize_grads(False)
        ctx.place = place
        return tuple(_by_structure(g, place[1], slopes))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *u: Tensor | None) -> tuple[Any, ...]:
        g, saved, place = ctx.saved_tensors[0], ctx.saved_tensors[1:], ctx.place
        inputs, slopes = saved[:3], saved[3:]
        if all(x is None for x in u):
            return (None,) * 6
        for_g = None
        if ctx.needs_input_grad[2]:
            for_g = torch.zeros_like(g)
            for x, slope in zip(u[:2], slopes[:2], strict=True):
                if x is not None:
                    for_g = for_g.index_add(0, place[1], (x * slope).sum(1))
            if u[2] is not None:
                for_g = for_g + (u[2] * slopes[2]).sum((1, 2))
        needed = list(ctx.needs_input_grad[3:])
        found = operators().les_grad(list(inputs), _by_structure(g, place[1], u), needed, *place)
        return (None, None, for_g, *_where(found, needed))


def _by_structure(g: Tensor, structure: Tensor, tensors: Sequence[Tensor | None]) -> list[Tensor]:
    """Of charges, positions and cells: what belongs to a structure times its number in g [S]."""
    by_atom = g.index_select(0, structure).unsqueeze(1)
    factors = by_atom, by_atom, g.view(-1, 1, 1)
    return [g.new_empty(0) if x is None else f * x for f, x in zip(factors, tensors, strict=True)]


def recorded_les(
    charges: Tensor, positions: Tensor, cells: Tensor, batch: Batch, config: LesConfig
) -> Tensor:
    """`les_energies` as one operator of the graph."""
    place = [batch.pbc, batch.structure, batch.original, batch.n_atoms, json.dumps(asdict(config))]
    found: Tensor = _Les.apply(place, charges, positions, cells)
    return found


# ------------------------------------------------------------------ modules
class _Sums(nn.Module):
    packed: Tensor

    def __init__(self, other: EdgeSum) -> None:
        super().__init__()
        self.numbers = [int(n) for n in other.plan.numbers]
        self.register_buffer("packed", other.packed, persistent=False)

    def forward(
        self, sent: Sequence[Tensor], weights: Tensor, batch: Batch, *, angular: Tensor
    ) -> list[Tensor]:
        index = [
            self.packed, batch.slot_sender, batch.slot_reverse, batch.slot_pair, batch.pair_slots,
            self.numbers,
        ]  # fmt: skip
        return list(_EdgeSum.apply(index, angular, weights, *sent))


class _Products(nn.Module):
    table: Tensor
    coefficients: Tensor

    def __init__(self, other: ProductBasis) -> None:
        super().__init__()
        self.outputs = [int(n) for size in other.shapes.outputs for n in size]
        self.register_buffer("table", other.table, persistent=False)
        self.register_buffer("coefficients", other.coefficients, persistent=False)

    def forward(self, a: Sequence[Tensor]) -> list[Tensor]:
        return list(_Product.apply([self.table, self.coefficients, self.outputs], *a))


class _ElementMap(nn.Module):
    def __init__(self, other: ElementLinear) -> None:
        super().__init__()
        self.weight = other.weight

    def forward(self, x: Tensor, composition: Composition) -> Tensor:
        found: Tensor = _ElementProduct.apply(x, self.weight, composition.counts, False)
        return found


class _PathMap(nn.Module):
    def __init__(self, other: PathMix) -> None:
        super().__init__()
        self.weight = other.weight

    def forward(self, x: Tensor, composition: Composition) -> Tensor:
        weights = self.weight.index_select(0, composition.species).unsqueeze(1)
        return (x.view(*x.shape[:2], *self.weight.shape[1:]) * weights).sum(2)


class _Table(nn.Module):
    values: Tensor
    grid: Tensor

    def __init__(self, other: RadialTable) -> None:
        super().__init__()
        self.register_buffer("values", other.values, persistent=False)
        self.register_buffer("grid", other.grid, persistent=False)

    def forward(self, distances: Tensor) -> Tensor:
        forms = Forms(operators().spline, operators().spline_dot)
        return spline(distances.squeeze(1), self.values, self.grid, forms=forms)


def recordable(model: Tace) -> Tace:
    """A copy whose weights are those of the model, tensors and all, in a form that can be recorded."""
    made = copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
    for parent in list(made.modules()):
        for name, child in list(parent.named_children()):
            other = _other(child)
            if other is not None:
                setattr(parent, name, other)
        if isinstance(getattr(parent, "inverse_neighbors", None), float):
            number = torch.tensor(parent.inverse_neighbors, dtype=model.dtype)
            del parent.inverse_neighbors  # a weight of the graph, not a constant: data decide it
            parent.register_buffer("inverse_neighbors", number, persistent=False)
    return made


def _other(child: nn.Module) -> nn.Module | None:
    if isinstance(child, EdgeSum) and child.plan.n_in <= MAX_RANK_IN + 1:
        return _Sums(child)
    if isinstance(child, ProductBasis) and len(child.levels) > 1:
        return _Products(child)
    if isinstance(child, ElementLinear):
        return _ElementMap(child)
    if isinstance(child, PathMix):
        return _PathMap(child)
    return _Table(child) if isinstance(child, RadialTable) else None
