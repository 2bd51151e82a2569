"""The edge sum on a GPU by Triton (triton_kernels.py): a function with derivatives of any order.

It takes the place of `EdgeSum.plain` for tensors on a GPU where Triton is installed, once it has been found
to give the same numbers there, for every shape of a layer. TACE_TRITON=0 (or TACE_NATIVE=0, which is for all
kernels) leaves the work to PyTorch, and so does whatever goes wrong, with one line in the log.

It has run in Triton's interpreter and been compiled for sm_80 and sm_90, and never been on a GPU.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import native
from .batch import Batch
from .edge_kernel import Plan
from .kernel_calls import DTYPES, recording
from .layers import concatenate

log = logging.getLogger("tace")

_TILE = 4096  # numbers of the largest tile of a program: 32 registers of each of its threads
_LEAST, _MOST = 16, 128  # channels of one

_off: set[str] = set()  # devices on which Triton has failed


class Group(NamedTuple):
    """Paths of a launch: those of one l1 with tiles of one size."""

    l1: int
    sizes: tuple[int, int, int]  # of tiles: powers of two for 2l+1 of l1, l2, l3
    table: Tensor  # [n, 6], see triton_kernels.py
    coupling: Tensor  # [n, M2, M1, M3]


class Form(NamedTuple):
    """The sum over the edges of one batch."""

    kernels: ModuleType
    plan: Plan
    groups: Sequence[Group]
    batch: Batch

    def slopes(self, wanted: Sequence[bool], y: Any, w: Any, s: Any, g: Any) -> list[Tensor | None]:
        """∂T/∂Y, ∂T/∂W, ∂T/∂s and ∂T/∂g as far as they are wanted; of the argument itself nothing is read.

        Args:
            y: [A·K, (l_max+1)²].
            w: [P+1, paths·C].
            s: [A, Σ 2l+1, C].
            g: [A, Σ (2l+1)·paths into l·C].
        """
        to_y, to_w, to_s, to_g = wanted
        like, atoms = (y if y is not None else w), len(self.batch.species)
        channels = (s if s is not None else to_channels(g, self.plan)).shape[-1]
        found: list[Tensor | None] = [None] * 4
        if to_y:
            found[0] = like.new_zeros(atoms * self.batch.slots, self.plan.width)
        if to_w:
            found[1] = like.new_zeros(self.batch.pair_slots.shape[1], len(self.plan.paths) * channels)
        if to_s:
            found[2] = like.new_zeros(atoms, self.plan.n_in**2, channels)
        if to_g:
            found[3] = like.new_empty(atoms, rows_out(self.plan) * channels)
        with _on(like.device):
            for group in self.groups:
                self._launch(group, [y, w, s, g], found, channels)
        return found

    def _launch(
        self, group: Group, given: Sequence[Any], to: Sequence[Tensor | None], channels: int
    ) -> None:
        batch, (m1, m2, m3), kernels = self.batch, group.sizes, self.kernels
        block = min(max(_LEAST, _TILE // (m1 * m3)), _MOST, _power(channels))
        atoms, blocks, paths = len(batch.species), -(-channels // block), len(group.table)
        rows = (
            batch.slots, channels, self.plan.width, len(self.plan.paths) * channels,
            self.plan.n_in**2, rows_out(self.plan),
        )  # fmt: skip
        tiles = {
            "L1": group.l1, "M1": m1, "M2": m2, "M3": m3, "BLOCK": block,
            "enable_fp_fusion": True,  # said, because versions of Triton differ in what they take it for
        }  # fmt: skip
        constants = group.coupling, group.table
        y, w, s, g = given
        if to[3] is not None:
            kernels.receive[atoms, paths, blocks](
                y, w, s, to[3], *constants, batch.slot_sender, batch.slot_pair, batch.slot_sign, *rows,
                **tiles,
            )  # fmt: skip
        if to[2] is not None:
            kernels.send[atoms, blocks](
                y, w, g, to[2], *constants, batch.slot_reverse, batch.slot_pair, batch.slot_sign, *rows,
                paths, **tiles,
            )  # fmt: skip
        if to[0] is not None or to[1] is not None:
            pairs = batch.pair_slots.shape[1]
            empty = s  # in the place of what is neither read nor written
            tiles["BLOCK"] = max(_LEAST, block // 2)  # two tiles at once
            kernels.exchange[(pairs,)](
                *(empty if t is None else t for t in (y, w, s, g, to[0], to[1])), *constants,
                batch.slot_sender, batch.slot_pair, batch.pair_slots, pairs, *rows, paths, **tiles,
                WIDTH=_power(self.plan.width), NEED_Y=to[0] is not None, NEED_W=to[1] is not None,
            )  # fmt: skip

    def sums(self, sent: Sequence[Tensor], weights: Tensor, angular: Tensor) -> list[Tensor]:
        """As `EdgeSum.forward`."""
        together = concatenate(list(sent), 1).contiguous()
        atoms, _, channels = together.shape
        wanted = (False, False, False, True)
        found = _Slopes.apply(
            self, wanted, angular.contiguous(), weights.contiguous(), together, None
        )[3]
        sizes = [(2 * l + 1) * n * channels for l, n in enumerate(self.plan.into)]  # noqa: E741
        parts = found.split(sizes, 1)
        return [x.reshape(atoms, 2 * l + 1, -1) for l, x in enumerate(parts)]  # noqa: E741


class _Slopes(torch.autograd.Function):
    """`Form.slopes`. Its derivatives are `Form.slopes` again, with an argument exchanged for a direction."""

    @staticmethod
    def forward(ctx: Any, form: Form, wanted: Sequence[bool], *given: Tensor | None) -> Any:
        ctx.save_for_backward(*given)
        ctx.set_materialize_grads(False)
        ctx.form = form
        return tuple(form.slopes(wanted, *given))

    @staticmethod
    def backward(ctx: Any, *directions: Tensor | None) -> tuple[Any, ...]:
        needed, total = ctx.needs_input_grad[2:], [None] * 4
        for a, direction in enumerate(directions):
            wanted = [bool(need) and b != a for b, need in enumerate(needed)]
            if direction is None or not any(wanted):
                continue
            given = list(ctx.saved_tensors)
            given[a] = direction.contiguous()
            for b, part in enumerate(_Slopes.apply(ctx.form, wanted, *given)):
                if part is not None:
                    total[b] = part if total[b] is None else total[b] + part
        return (None, None, *total)


# ------------------------------------------------------------------ what kernels read of a layer
def rows_out(plan: Plan) -> int:
    """Rows of C channels in all sums of an atom."""
    return sum((2 * l + 1) * n for l, n in enumerate(plan.into))  # noqa: E741


def to_channels(g: Tensor, plan: Plan) -> Tensor:
    """[A, rows, C]."""
    return g.view(len(g), rows_out(plan), -1)


def _power(n: int) -> int:
    """The next power of two."""
    return 1 << (n - 1).bit_length()


def groups_of(plan: Plan, couplings: Sequence[Tensor]) -> list[Group]:
    """The launches of a layer.

    Args:
        couplings: G of every path as [2l2+1, (2l1+1)(2l3+1)].
    """
    first = [sum((2 * l + 1) * n for l, n in enumerate(plan.into[:l3])) for l3 in range(plan.n_out)]  # noqa: E741
    seen = [0] * plan.n_out
    found: dict[tuple[int, int], list[tuple[list[int], Tensor]]] = {}
    m2 = _power(2 * max(p.l2 for p in plan.paths) + 1)
    for n, (p, flat) in enumerate(zip(plan.paths, couplings, strict=True)):
        at = first[p.l3] + seen[p.l3]
        seen[p.l3] += 1
        row = [n, p.l2**2, 2 * p.l2 + 1, at, plan.into[p.l3], 2 * p.l3 + 1]
        m1, m3 = _power(2 * p.l1 + 1), _power(2 * p.l3 + 1)
        padded = flat.new_zeros(m2, m1, m3)
        g = flat.view(2 * p.l2 + 1, 2 * p.l1 + 1, 2 * p.l3 + 1)
        padded[: g.shape[0], : g.shape[1], : g.shape[2]] = g
        found.setdefault((p.l1, m3), []).append((row, padded))
    return [
        Group(
            l1, (_power(2 * l1 + 1), m2, m3),
            torch.tensor([row for row, _ in rows], device=couplings[0].device),
            torch.stack([g for _, g in rows]),
        )
        for (l1, m3), rows in found.items()
    ]  # fmt: skip


# ------------------------------------------------------------------ whether it is used
def can_run(dtype: torch.dtype, tensors: Sequence[Tensor]) -> bool:
    """Whether these are on a GPU, of one type that the kernels know, and not being recorded."""
    return (
        dtype in DTYPES
        and all(x.device.type == "cuda" and x.dtype == dtype for x in tensors)
        and not recording()
    )


@functools.cache
def kernels() -> ModuleType | None:
    """None, and a line in the log, where Triton is not installed or not wanted."""
    if not native.wanted() or os.environ.get("TACE_TRITON", "1").strip() == "0":
        name = "TACE_TRITON" if native.wanted() else "TACE_NATIVE"
        log.info("%s=0: edge sum on GPUs by PyTorch", name)
        return None
    try:
        from . import triton_kernels
    except Exception as error:  # whatever a broken installation raises: PyTorch does it
        log.warning("no Triton, PyTorch does the edge sum on GPUs, more slowly: %s", error)
        return None
    return triton_kernels


def usable(device: torch.device, check: Callable[[], float], tolerance: float) -> bool:
    """Whether the kernels compile on a device and do what they should; if not, the log says so, once.

    Args:
        check: the largest deviation from the PyTorch form.
    """
    if str(device) in _off:
        return False
    try:
        with torch.inference_mode(False), torch.enable_grad():
            error = check()
        reason = "" if error < tolerance else f"it is wrong by {error:.1e}"
    except Exception as error:  # Triton, its compiler and the driver raise what they like
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"
    if reason:
        _off.add(str(device))
        log.warning("no edge sum by Triton on %s, PyTorch does it more slowly: %s", device, reason)
    return not reason


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
