"""The compiled edge sum (kernels/edge_sum.cpp) as a differentiable function of any order.

T(Y, W, s, g) = Σ G_p[m1,m2,m3] Y[e,m2] W[pair,p,c] s[j,l1,m1,c] g[i,l3,m3,p,c] is linear in each argument.
The first derivatives are one function of the kernel, the derivatives of these another; those of higher order
are sums of the same with arguments exchanged, put together from what is below.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .batch import Batch
from .kernel_calls import addresses, call, filled
from .paths import InteractionPath

MAX_RANK_IN = 3  # of features: the kernel holds the components of one in registers
_PAD = 16  # columns of a coupling matrix come in multiples of this, see the kernel


class Plan:
    """What the kernel has to know of the paths, which are ordered by l3."""

    def __init__(self, paths: Sequence[InteractionPath], l_max: int) -> None:
        self.paths = tuple(paths)
        self.n_in = 1 + max(p.l1 for p in paths)
        self.n_out = 1 + max(p.l3 for p in paths)
        self.width = (l_max + 1) ** 2  # of the attributes of a slot
        self.into = [sum(p.l3 == l for p in paths) for l in range(self.n_out)]  # noqa: E741
        self.numbers = (self.width, self.n_in, self.n_out, len(paths), *(n for p in paths for n in p))

    def pack(self, couplings: Sequence[np.ndarray]) -> np.ndarray:
        """Couplings G [m1, m2, m3] of all paths in one array: by l2, [2l2+1, columns] each."""
        blocks = []
        for l2 in range(round(self.width**0.5)):
            mine = [g for p, g in zip(self.paths, couplings, strict=True) if p.l2 == l2]
            flat = [g.transpose(1, 0, 2).reshape(2 * l2 + 1, -1) for g in mine]
            flat.append(np.zeros((2 * l2 + 1, -sum(g.shape[1] for g in flat) % _PAD)))
            blocks.append(np.concatenate(flat, 1).reshape(-1))
        return np.concatenate(blocks)


class Edges(NamedTuple):
    """Where the kernel finds the edges of a batch, and all that does not change from call to call."""

    library: ctypes.CDLL
    plan: Plan
    coupling: Tensor  # Plan.pack, of the dtype of the features
    batch: Batch

    def run(self, name: str, shape: tuple[int, int], tensors: Sequence[Tensor | None]) -> None:
        """Call a function of the kernel.

        Args:
            shape: pairs and channels.
            tensors: what it reads and writes, contiguous and of one dtype, in its order.
        """
        batch, plan = self.batch, self.plan
        pairs, channels = shape
        values = (
            len(batch.species), batch.slots, pairs, channels, torch.get_num_threads(), *plan.numbers,
            self.coupling.data_ptr(), batch.slot_sender.data_ptr(), batch.slot_reverse.data_ptr(),
            batch.slot_pair.data_ptr(), batch.pair_slots.data_ptr(),
            *addresses(tensors),
        )  # fmt: skip
        call(self.library, name, self.coupling.dtype, values)

    def zero_dummies(self, weights: Tensor | None) -> None:
        """Of a gradient for weights: no edge leads to the dummy pairs of inner copies, see `batch.copies`."""
        number = self.batch.n_copies
        if weights is not None and number > 1:
            weights.view(number, -1, weights.shape[1])[:-1, -1] = 0.0

    def sums(self, like: Tensor, channels: int) -> list[Tensor]:
        """Room for the sums of every rank, [A, 2l+1, paths·C]."""
        atoms = len(self.batch.species)
        return [
            like.new_empty(atoms, 2 * l + 1, n * channels)
            for l, n in enumerate(self.plan.into)  # noqa: E741
        ]


def _whole(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if t is None else t.contiguous() for t in tensors]


def _room(needed: Sequence[bool], like: Sequence[Tensor]) -> list[Tensor | None]:
    return [torch.empty_like(t) if need else None for need, t in zip(needed, like, strict=True)]


class _Sum(torch.autograd.Function):
    """Y, W, s_0.. → ∂T/∂g_0.."""

    @staticmethod
    def forward(ctx: Any, edges: Edges, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = [t.contiguous() for t in inputs]
        ctx.save_for_backward(*given)
        ctx.set_materialize_grads(False)
        ctx.edges = edges
        channels = given[2].shape[2]
        out = edges.sums(given[0], channels)
        edges.run("edge_sum", (len(given[1]) - 1, channels), [*given, *out])
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, *g: Tensor | None) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        if all(each is None for each in g):
            return (None,) * (1 + len(saved))
        if any(each is None for each in g):
            g = tuple(filled(g, ctx.edges.sums(saved[0], saved[2].shape[2])))
        return (None, *_Grad.apply(ctx.edges, ctx.needs_input_grad[1:], *saved, *g))


class _Grad(torch.autograd.Function):
    """Y, W, s_0.., g_0.. → ∂T/∂Y, ∂T/∂W, ∂T/∂s_0.., None where not needed."""

    @staticmethod
    def forward(ctx: Any, edges: Edges, needed: Sequence[bool], *inputs: Tensor) -> tuple[Tensor | None, ...]:
        given = [t.contiguous() for t in inputs]
        ctx.save_for_backward(*given)
        ctx.set_materialize_grads(False)
        ctx.edges = edges
        out = _room(needed, given[: len(needed)])
        edges.run("edge_sum_grad", (len(given[1]) - 1, given[2].shape[2]), [*given, *out])
        edges.zero_dummies(out[1])
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, *u: Tensor | None) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        if all(each is None for each in u):
            return (None,) * (2 + len(saved))
        if any(each is not None for each in u[2:]):  # the kernel knows features of all ranks, or of none
            u = (*u[:2], *filled(u[2:], saved[2 : len(u)]))
        return (None, None, *_Second.apply(ctx.edges, ctx.needs_input_grad[2:], *saved, *u))


class _Second(torch.autograd.Function):
    """Y, W, s_0.., g_0.., uY, uW, us_0.. → gradients for the first four of their form with u, see `_form`."""

    @staticmethod
    def forward(
        ctx: Any, edges: Edges, needed: Sequence[bool], *inputs: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        given = _whole(inputs)
        ctx.save_for_backward(*given)
        ctx.set_materialize_grads(False)
        ctx.edges, n = edges, len(needed)
        known = [t for t in given[:n] if t is not None]
        need_g = any(needed[-edges.plan.n_out :])
        needed = [*needed[: -edges.plan.n_out], *[need_g] * edges.plan.n_out]
        out = _room(needed, known)
        edges.run("edge_sum_grad2", (len(known[1]) - 1, known[2].shape[2]), [*given, *out])
        edges.zero_dummies(out[1])
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, *v: Tensor | None) -> tuple[Any, ...]:
        """By differentiating the form once more, in which every term is a sum that has derivatives."""
        saved, further = ctx.saved_tensors, torch.is_grad_enabled()
        with torch.enable_grad():
            # aliases, because one tensor may be two of the inputs
            inputs = [
                None if t is None
                else t.view_as(t) if further and t.requires_grad
                else t.detach().requires_grad_()
                for t in saved
            ]  # fmt: skip
            value = _third(ctx.edges, inputs, v)
        wanted = [t for t in inputs if t is not None]
        if value is None:
            return (None,) * (2 + len(saved))
        grads = iter(torch.autograd.grad(value, wanted, create_graph=further, allow_unused=True))
        return (None, None, *[None if t is None else next(grads) for t in inputs])


def _third(edges: Edges, inputs: Sequence[Tensor | None], v: Sequence[Tensor | None]) -> Tensor | None:
    """The derivative of T(uY,W,s,g) + T(Y,uW,s,g) + T(Y,W,us,g) in a direction v of (Y, W, s, g)."""
    n, m = 2 + edges.plan.n_in, edges.plan.n_out
    base, g, u = inputs[:n], inputs[n : n + m], inputs[n + m :]
    first, last = _parts(base), [_parts(u), _parts(v[:n])]
    terms: list[tuple[list[Any], Sequence[Tensor | None]]] = []
    for a in range(3):
        terms.append(([*first[:a], last[0][a], *first[a + 1 :]], v[n:]))  # v in the place of g
        for b in range(3):
            if a != b:
                mixed = list(first)
                mixed[a], mixed[b] = last[0][a], last[1][b]
                terms.append((mixed, g))
    value: Tensor | None = None
    for (y, w, s), over in terms:
        if y is None or w is None or s is None or all(x is None for x in over):
            continue
        for total, x in zip(_Sum.apply(edges, y, w, *s), over, strict=True):
            if x is not None:
                part = (total * x).sum()
                value = part if value is None else value + part
    return value


def _parts(tensors: Sequence[Tensor | None]) -> list[Any]:
    """Y, W and the features of all ranks; None for what is zero."""
    y, w, *s = tensors
    if all(x is None for x in s):
        return [y, w, None]
    return [y, w, s]


def native_edge_sum(
    edges: Edges, angular: Tensor, weights: Tensor, *, sent: Sequence[Tensor]
) -> list[Tensor]:
    """[A, 2l+1, paths·C] of every rank l.

    Args:
        angular: [A·K, (l_max+1)²].
        weights: [P+1, paths·C].
        sent: rank l [A, 2l+1, C].
    """
    return list(_Sum.apply(edges, angular, weights, *sent))
