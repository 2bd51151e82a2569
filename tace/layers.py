"""Building blocks: gathers with scatter-free derivatives, and linear maps with a learning-rate gain.

Weights are stored at their working scale, drawn from gain·U(−√3, √3). The published model multiplies
unit-variance parameters by a fixed gain at run time; with Adam the two are the same if the step is
multiplied by the gain, which `gains` lets the trainer do. Inference then pays nothing for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class _PairToSlot(torch.autograd.Function):
    """[P+1, R] → [A·K, R]: each edge takes the row of its pair."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slot_pair: Tensor, pair_slots: Tensor) -> Tensor:
        ctx.save_for_backward(slot_pair, pair_slots)
        return x.index_select(0, slot_pair)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        slot_pair, pair_slots = ctx.saved_tensors
        return _SlotToPair.apply(grads[0], slot_pair, pair_slots), None, None


class _SlotToPair(torch.autograd.Function):
    """[A·K, R] → [P+1, R]: the sum over the two edges of each pair; transpose of `_PairToSlot`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slot_pair: Tensor, pair_slots: Tensor) -> Tensor:
        ctx.save_for_backward(slot_pair, pair_slots)
        return x.index_select(0, pair_slots[0]) + x.index_select(0, pair_slots[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        slot_pair, pair_slots = ctx.saved_tensors
        return _PairToSlot.apply(grads[0], slot_pair, pair_slots), None, None


class _SenderToSlot(torch.autograd.Function):
    """[A, R] → [A·K, R]: each edge takes the row of its sender."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sender: Tensor, reverse: Tensor) -> Tensor:
        ctx.save_for_backward(sender, reverse)
        ctx.atoms = x.shape[0]
        return x.index_select(0, sender)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        sender, reverse = ctx.saved_tensors
        return _SlotToSender.apply(grads[0], sender, reverse, ctx.atoms), None, None


class _SlotToSender(torch.autograd.Function):
    """[A·K, R] → [A, R]: sum over the edges that an atom sends, found as the reverse of those it receives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sender: Tensor, reverse: Tensor, atoms: int) -> Tensor:
        ctx.save_for_backward(sender, reverse)
        return x.index_select(0, reverse).view(atoms, -1, x.shape[1]).sum(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        sender, reverse = ctx.saved_tensors
        return _SenderToSlot.apply(grads[0], sender, reverse), None, None, None


class _Concatenate(torch.autograd.Function):
    """torch.cat whose derivative is a split, so that the second derivative does not zero-fill slices."""

    @staticmethod
    def forward(ctx: Any, dim: int, *parts: Tensor) -> Tensor:
        ctx.dim, ctx.sizes = dim, [part.shape[dim] for part in parts]
        return torch.cat(parts, dim)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return (None, *grads[0].split(ctx.sizes, ctx.dim))


class _FrozenElementProduct(torch.autograd.Function):
    """x [A, ..., n], W [Z, n, m] without gradient → x·W[z], atoms sorted by element.

    Of M stacked members x is [M·A, ..., n] and W [M, Z, n, m]. Rows of the result are written in place:
    nothing is split or put together, in no derivative.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, counts: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.counts = counts
        n, m = weight.shape[-2:]
        out = x.new_empty(*x.shape[:-1], m)
        members = weight.shape[:-3]
        rows, into = x.reshape(*members, -1, n), out.view(*members, -1, m)
        each, start = math.prod(x.shape[1:-1]), 0
        for z, count in enumerate(counts):
            if count:
                stop = start + count * each
                part = rows[..., start:stop, :]
                torch.matmul(part, weight[..., z, :, :], out=into[..., start:stop, :])
                start = stop
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _FrozenElementProduct.apply(grads[0], weight.transpose(-1, -2), ctx.counts), None, None


def pair_to_slot(x: Tensor, slot_pair: Tensor, pair_slots: Tensor) -> Tensor:
    """[P+1, R] → [A·K, R] by the pair of each slot."""
    return _PairToSlot.apply(x, slot_pair, pair_slots)


def sender_to_slot(x: Tensor, sender: Tensor, reverse: Tensor) -> Tensor:
    """[A, R] → [A·K, R] by the sender of each slot."""
    return _SenderToSlot.apply(x, sender, reverse)


def concatenate(parts: Sequence[Tensor], dim: int) -> Tensor:
    """torch.cat with a cheap second derivative."""
    return parts[0] if len(parts) == 1 else _Concatenate.apply(dim, *parts)


def draw(shape: Sequence[int], gain: float, generator: torch.Generator) -> nn.Parameter:
    """gain·U(−√3, √3), drawn in float64 so that the values do not depend on the model's dtype."""
    unit = torch.rand(tuple(shape), generator=generator, dtype=torch.float64)
    return nn.Parameter(gain * math.sqrt(3.0) * (2.0 * unit - 1.0))


class Linear(nn.Module):
    """x [..., n_in] → x·W, no bias: an environment without neighbours stays exactly zero.

    Of M stacked members (`stacked.py`) W is [M, n_in, n_out] and the first axis of x holds M equal parts.
    `start` makes the first weights smaller than what the gain, by which they are trained, says.
    """

    def __init__(
        self, n_in: int, n_out: int, generator: torch.Generator, gain: float = 1.0, *, start: float = 1.0
    ) -> None:
        super().__init__()
        self.gain = gain / math.sqrt(n_in)
        self.weight = draw((n_in, n_out), start * self.gain, generator)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.ndim == 2:
            return x @ self.weight
        return by_member(x, self.weight)


def by_member(x: Tensor, weight: Tensor) -> Tensor:
    """x [M·R, ..., n], W [M, n, m] → [M·R, ..., m], each part with its own weights."""
    members, n, m = weight.shape
    return torch.bmm(x.reshape(members, -1, n), weight).view(*x.shape[:-1], m)


def rows_of(table: Tensor, index: Tensor, *, stacked: bool) -> Tensor:
    """Rows of a table [n, ...]; of stacked members, [M, n, ...], each of M parts of the index its own."""
    if not stacked:
        return table.index_select(0, index)
    members, n = table.shape[:2]
    first = torch.arange(members, device=index.device).unsqueeze(1) * n
    return table.flatten(0, 1).index_select(0, (index.view(members, -1) + first).flatten())


def over_atoms(values: Tensor, x: Tensor) -> Tensor:
    """Numbers [C], to be multiplied with x [A, n, C]; of stacked members, [M, C], each for its own atoms."""
    if values.ndim == 1:
        return values
    return values.repeat_interleave(len(x) // len(values), 0).unsqueeze(1)


class ElementLinear(nn.Module):
    """x [A, ..., n_in] → x·W[z] for atoms sorted by element: one product per element, no one-hot."""

    def __init__(
        self, n_elements: int, n_in: int, n_out: int, generator: torch.Generator, *, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.gain = gain / math.sqrt(n_in)
        self.weight = draw((n_elements, n_in, n_out), self.gain, generator)

    def forward(self, x: Tensor, counts: tuple[int, ...]) -> Tensor:
        present = [z for z, count in enumerate(counts) if count]
        if self.weight.ndim == 4:  # of stacked members, which are not trained
            if len(present) == 1:
                return by_member(x, self.weight[:, present[0]])
            return _FrozenElementProduct.apply(x, self.weight, counts)
        weights = self.weight.unbind(0)
        if len(present) == 1:
            return x @ weights[present[0]]
        if not self.weight.requires_grad:
            return _FrozenElementProduct.apply(x, self.weight, counts)
        parts = x.split([counts[z] for z in present], 0)
        return concatenate([p @ weights[z] for p, z in zip(parts, present, strict=True)], 0)


SILU_GAIN = 1.6768  # 1/√E[SiLU(x)²] of a standard normal x


def radial_output_size(size: float, n_hidden: int) -> float:
    """Root mean square of what a new `RadialNetwork` makes of a basis of this size, before its gain."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)  # of a normal distribution
    for _ in range(n_hidden):
        x = size * nodes
        square = (x / (1.0 + np.exp(-x))) ** 2
        size = SILU_GAIN * math.sqrt(float(weights @ square) / float(weights.sum()))
    return size


class RadialNetwork(nn.Module):
    """Radial basis → path weights; SiLU between layers. No biases, so that weights vanish with the basis."""

    def __init__(
        self, sizes: tuple[int, Sequence[int], int], generator: torch.Generator, *, gain: float = 1.0
    ) -> None:
        """
        Args:
            sizes: of the basis, the hidden layers and the output.
            gain: of the last layer, besides its own.
        """
        super().__init__()
        self.table: nn.Module | None = None  # stands for the network where there is one, see `radial_tables`
        n_basis, hidden, n_out = sizes
        widths = [n_basis, *hidden, n_out]
        gains = [1.0] + [SILU_GAIN] * len(hidden)
        gains[-1] *= gain
        self.layers = nn.ModuleList(
            Linear(a, b, generator, gain)
            for a, b, gain in zip(widths[:-1], widths[1:], gains, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.table is not None:
            return self.table(x)
        for layer in self.layers[:-1]:
            x = nn.functional.silu(layer(x))
        return self.layers[-1](x)


class References(nn.Module):
    """Constants that stay float64 when a model goes to float32, and still follow it to a device."""

    scale: Tensor
    shift: Tensor
    basis: Tensor

    def __init__(self, saved: Mapping[str, Tensor], fixed: Mapping[str, Tensor]) -> None:
        super().__init__()
        for values, persistent in ((saved, True), (fixed, False)):
            for name, value in values.items():
                self.register_buffer(name, value.double().clone(), persistent=persistent)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> References:
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, value in before.items():
            moved = self.get_buffer(name)
            if moved.dtype != value.dtype:
                setattr(self, name, value.to(moved.device))
        return self

    def set(self, name: str, value: np.ndarray) -> None:
        buffer = self.get_buffer(name)
        if value.shape != tuple(buffer.shape):
            raise ValueError(f"{name} has shape {value.shape}, expected {tuple(buffer.shape)}")
        buffer.copy_(torch.from_numpy(np.asarray(value, dtype=np.float64)))


def gains(model: nn.Module) -> dict[str, float]:
    """Gain of every parameter by name; 1 where a module does not declare one."""
    return {
        f"{name}.{key}" if name else key: float(getattr(module, "gain", 1.0))
        for name, module in model.named_modules()
        for key, _ in module.named_parameters(recurse=False)
    }
