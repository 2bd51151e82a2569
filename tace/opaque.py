"""The kernels as operators of torch, which a graph can hold: for `make_fx` and AOTInductor.

A trace cannot look into a kernel, which sees addresses. Here each is an operator with the shapes of what it
returns, so that a graph names it and calls it when it runs, on any numbers of atoms, pairs and slots and on
any composition. `recorded.py` makes them differentiable. A tensor without elements stands for one that is not
there.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import edge_sum as edge_sums
from . import product as products
from . import spline as splines
from .config import LesConfig
from .edge_kernel import Edges, Plan
from .les import les_energies
from .paths import InteractionPath
from .product_kernel import Kernel

_INDEX = "Tensor coupling, Tensor sender, Tensor reverse, Tensor pair, Tensor pair_slots, int[] plan"
_BASIS = "Tensor table, Tensor coefficients, int[] outputs"
_LES = "Tensor charges, Tensor positions, Tensor cells"
_OF = "Tensor pbc, Tensor structure, Tensor original, Tensor n_atoms"


class _Place(NamedTuple):
    """What `Edges` and `les_energies` read of a batch."""

    species: Tensor
    slots: int
    slot_sender: Tensor
    slot_reverse: Tensor
    slot_pair: Tensor
    pair_slots: Tensor


class _Structures(NamedTuple):
    pbc: Tensor
    structure: Tensor
    original: Tensor
    n_atoms: Tensor
    n_structures: int
    layout: tuple[tuple[int, int], ...] = ()


# ------------------------------------------------------------------ sums over neighbours
@functools.cache
def _plan(numbers: tuple[int, ...]) -> Plan:
    paths = [InteractionPath(*numbers[n : n + 3]) for n in range(4, len(numbers), 3)]
    return Plan(paths, round(numbers[0] ** 0.5) - 1)


def _edges(sent: Tensor, index: Sequence[Any]) -> Edges:
    coupling, sender, reverse, pair, pair_slots, numbers = index
    library = edge_sums.compiled()
    assert library is not None  # a graph with this operator is not made or opened without
    atoms = sent.shape[0]  # `Edges` only asks how many there are
    place = _Place(sent, len(sender) // max(1, atoms), sender, reverse, pair, pair_slots)
    return Edges(library, _plan(tuple(numbers)), coupling, place)  # type: ignore[arg-type]


def _sums(sent: Sequence[Tensor], numbers: Sequence[int]) -> list[Tensor]:
    atoms, _, channels = sent[0].shape
    into = _plan(tuple(numbers)).into
    return [sent[0].new_empty(atoms, 2 * l + 1, n * channels) for l, n in enumerate(into)]  # noqa: E741


def _rooms(like: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor]:
    return [
        torch.empty_like(t, memory_format=torch.contiguous_format) if need else t.new_empty(0)
        for t, need in zip(like, needed, strict=True)
    ]


def _there(tensors: Sequence[Tensor]) -> list[Tensor | None]:
    return [t.contiguous() if t.numel() else None for t in tensors]


def _edge_sum(angular: Tensor, weights: Tensor, sent: list[Tensor], *index: Any) -> list[Tensor]:
    given = [t.contiguous() for t in (angular, weights, *sent)]
    out = _sums(sent, index[-1])
    _edges(sent[0], index).run("edge_sum", (len(weights) - 1, sent[0].shape[2]), [*given, *out])
    return out


def _edge_sum_shapes(angular: Tensor, weights: Tensor, sent: list[Tensor], *index: Any) -> list[Tensor]:
    return _sums(sent, index[-1])


def _edge_sum_grad(inputs: list[Tensor], g: list[Tensor], needed: list[bool], *index: Any) -> list[Tensor]:
    given = [t.contiguous() for t in inputs]
    out, sent = _rooms(given, needed), given[2]
    tensors = [*given, *(t.contiguous() for t in g), *_there(out)]
    _edges(sent, index).run("edge_sum_grad", (len(given[1]) - 1, sent.shape[2]), tensors)
    return out


def _edge_sum_grad_shapes(
    inputs: list[Tensor], g: list[Tensor], needed: list[bool], *index: Any
) -> list[Tensor]:
    return _rooms(inputs, needed)


def _edge_sum_grad2(
    inputs: list[Tensor], u: list[Tensor], needed: list[bool], *index: Any
) -> list[Tensor]:
    """`inputs` are angular, weights, features and g; u of the first three."""
    given = [t.contiguous() for t in inputs]
    out, sent = _rooms(given, needed), given[2]
    tensors = [*given, *_there(u), *_there(out)]
    _edges(sent, index).run("edge_sum_grad2", (len(given[1]) - 1, sent.shape[2]), tensors)
    return out


def _edge_sum_grad2_shapes(
    inputs: list[Tensor], u: list[Tensor], needed: list[bool], *index: Any
) -> list[Tensor]:
    return _rooms(inputs, needed)


# ------------------------------------------------------------------ products
def _kernel(basis: Sequence[Any]) -> Kernel:
    table, coefficients, _ = basis
    library = products.compiled()
    assert library is not None
    return Kernel(library, table, coefficients)


def _product_shapes(a: list[Tensor], *basis: Any) -> list[Tensor]:
    atoms, _, channels = a[0].shape
    sizes = zip(basis[-1][::2], basis[-1][1::2], strict=True)
    return [a[0].new_empty(atoms, m, n * channels) for m, n in sizes]


def _product(a: list[Tensor], *basis: Any) -> list[Tensor]:
    given, out = [t.contiguous() for t in a], _product_shapes(a, *basis)
    _kernel(basis).run("product", given[0], [*given, *out])
    return out


def _product_grad(a: list[Tensor], g: list[Tensor], *basis: Any) -> list[Tensor]:
    given = [t.contiguous() for t in (*a, *g)]
    out = [torch.empty_like(t) for t in given[: len(a)]]
    _kernel(basis).run("product_grad", given[0], [*given, *out])
    return out


def _product_grad_shapes(a: list[Tensor], g: list[Tensor], *basis: Any) -> list[Tensor]:
    return _rooms(a, [True] * len(a))


def _product_grad2(
    a: list[Tensor], g: list[Tensor], u: list[Tensor], needed: list[bool], *basis: Any
) -> list[Tensor]:
    given = [t.contiguous() for t in (*a, *g, *u)]
    out = _rooms(given[: len(needed)], needed)
    _kernel(basis).run("product_grad2", given[0], [*given, *_there(out)])
    return out


def _product_grad2_shapes(
    a: list[Tensor], g: list[Tensor], u: list[Tensor], needed: list[bool], *basis: Any
) -> list[Tensor]:
    return _rooms([*a, *g], needed)


# ------------------------------------------------------------------ radial tables
def _spline(x: Tensor, table: Tensor, grid: Tensor, order: int) -> Tensor:
    return splines.values(x, table, grid, order)


def _spline_shapes(x: Tensor, table: Tensor, grid: Tensor, order: int) -> Tensor:
    return table.new_empty(x.shape[0], table.shape[2])


def _spline_dot(x: Tensor, g: Tensor, table: Tensor, grid: Tensor, order: int) -> Tensor:
    return splines.dots(x, g, table, grid, order)


def _spline_dot_shapes(x: Tensor, g: Tensor, table: Tensor, grid: Tensor, order: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


# ------------------------------------------------------------------ linear maps of elements
def _element_mm(x: Tensor, weight: Tensor, counts: Tensor, transposed: bool) -> Tensor:
    """x [A, ..., n_in]·W[z] for atoms sorted by element, `counts` [Z] of each; no loop in the graph."""
    matrices = weight.transpose(1, 2) if transposed else weight
    out, x = x.new_empty(*x.shape[:-1], matrices.shape[2]), x.contiguous()
    start = 0
    for matrix, count in zip(matrices.unbind(0), counts.tolist(), strict=True):
        if count:
            part, to = x[start : start + count], out[start : start + count]
            torch.mm(part.view(-1, part.shape[-1]), matrix, out=to.view(-1, to.shape[-1]))
            start += count
    return out


def _element_mm_shapes(x: Tensor, weight: Tensor, counts: Tensor, transposed: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[1 if transposed else 2])


def _element_mm_grad(x: Tensor, g: Tensor, counts: Tensor) -> Tensor:
    """∂ Σ g·(x·W[z]) / ∂W [Z, n_in, n_out]."""
    x, g = x.contiguous(), g.contiguous()
    out = x.new_zeros(len(counts), x.shape[-1], g.shape[-1])
    start = 0
    for to, count in zip(out.unbind(0), counts.tolist(), strict=True):
        if count:
            left = x[start : start + count].view(-1, x.shape[-1])
            torch.mm(left.t(), g[start : start + count].view(-1, g.shape[-1]), out=to)
            start += count
    return out


def _element_mm_grad_shapes(x: Tensor, g: Tensor, counts: Tensor) -> Tensor:
    return x.new_empty(counts.shape[0], x.shape[-1], g.shape[-1])


# ------------------------------------------------------------------ latent charges
def _les(charges: Tensor, positions: Tensor, cells: Tensor, *rest: Any) -> list[Tensor]:
    """Energies [S] and their slopes for charges, positions and cells."""
    with torch.enable_grad():
        leaves, energies = _les_of([charges, positions, cells], rest)
        slopes = torch.autograd.grad(energies.sum(), leaves, materialize_grads=True)
    return [energies.detach(), *(s.contiguous() for s in slopes)]


def _les_of(inputs: Sequence[Tensor], rest: Sequence[Any]) -> tuple[list[Tensor], Tensor]:
    """Charges, positions and cells as leaves, and the energies of them."""
    pbc, structure, original, n_atoms, text = rest
    batch: Any = _Structures(pbc, structure, original, n_atoms, len(pbc))
    leaves = [t.detach().requires_grad_() for t in inputs]
    charges, positions, cells = leaves
    return leaves, les_energies(charges, positions, cells, batch, LesConfig(**json.loads(text)))


def _les_shapes(charges: Tensor, positions: Tensor, cells: Tensor, *rest: Any) -> list[Tensor]:
    like = [charges, positions, cells]
    return [cells.new_empty(cells.shape[0]), *_rooms(like, [True] * 3)]


def _les_grad(inputs: list[Tensor], along: list[Tensor], needed: list[bool], *rest: Any) -> list[Tensor]:
    """Of the slope of Σ energies along directions of charges, positions and cells: its slopes for these."""
    with torch.enable_grad():
        leaves, energies = _les_of(inputs, rest)
        slopes = torch.autograd.grad(energies.sum(), leaves, create_graph=True, materialize_grads=True)
        there = [(s * d).sum() for s, d in zip(slopes, along, strict=True) if d.numel()]
        slope = torch.stack(there).sum()
        wanted = [x for x, need in zip(leaves, needed, strict=True) if need]
        found = iter(torch.autograd.grad(slope, wanted, materialize_grads=True))
    pairs = zip(inputs, needed, strict=True)
    return [next(found).contiguous() if need else x.new_empty(0) for x, need in pairs]


def _les_grad_shapes(
    inputs: list[Tensor], along: list[Tensor], needed: list[bool], *rest: Any
) -> list[Tensor]:
    return _rooms(inputs, needed)


OPERATORS: dict[str, tuple[str, Callable[..., Any], Callable[..., Any]]] = {
    "edge_sum": (
        f"(Tensor angular, Tensor weights, Tensor[] sent, {_INDEX}) -> Tensor[]",
        _edge_sum, _edge_sum_shapes,
    ),
    "edge_sum_grad": (
        f"(Tensor[] inputs, Tensor[] g, bool[] needed, {_INDEX}) -> Tensor[]",
        _edge_sum_grad, _edge_sum_grad_shapes,
    ),
    "edge_sum_grad2": (
        f"(Tensor[] inputs, Tensor[] u, bool[] needed, {_INDEX}) -> Tensor[]",
        _edge_sum_grad2, _edge_sum_grad2_shapes,
    ),
    "product": (f"(Tensor[] a, {_BASIS}) -> Tensor[]", _product, _product_shapes),
    "product_grad": (
        f"(Tensor[] a, Tensor[] g, {_BASIS}) -> Tensor[]", _product_grad, _product_grad_shapes,
    ),
    "product_grad2": (
        f"(Tensor[] a, Tensor[] g, Tensor[] u, bool[] needed, {_BASIS}) -> Tensor[]",
        _product_grad2, _product_grad2_shapes,
    ),
    "spline": ("(Tensor x, Tensor table, Tensor grid, int order) -> Tensor", _spline, _spline_shapes),
    "spline_dot": (
        "(Tensor x, Tensor g, Tensor table, Tensor grid, int order) -> Tensor",
        _spline_dot, _spline_dot_shapes,
    ),
    "element_mm": (
        "(Tensor x, Tensor weight, Tensor counts, bool transposed) -> Tensor",
        _element_mm, _element_mm_shapes,
    ),
    "element_mm_grad": (
        "(Tensor x, Tensor g, Tensor counts) -> Tensor", _element_mm_grad, _element_mm_grad_shapes,
    ),
    "les": (f"({_LES}, {_OF}, str config) -> Tensor[]", _les, _les_shapes),
    "les_grad": (
        f"(Tensor[] inputs, Tensor[] along, bool[] needed, {_OF}, str config) -> Tensor[]",
        _les_grad, _les_grad_shapes,
    ),
}  # fmt: skip


@functools.cache
def operators() -> Any:
    """The namespace of the operators, which are made known to torch at the first call."""
    library = torch.library.Library("tace", "DEF")
    for name, (schema, run, shapes) in OPERATORS.items():
        library.define(name + schema)
        library.impl(name, run, "CPU")
        torch.library.register_fake(f"tace::{name}", shapes, lib=library)
    _keep.append(library)
    return torch.ops.tace


_keep: list[torch.library.Library] = []  # an operator lives as long as the library that it was defined in
