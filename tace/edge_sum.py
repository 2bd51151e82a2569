"""The sum over neighbours of eq. 9 and 10, for every path from features below to A.

out[i, m3, p, c] = Σ_k Σ_{m1,m2} G_p[m1,m2,m3] · E_{l2}[e, m2] · R[pair(e), p, c] · s_{l1}[sender(e), m1, c]
over the edges e = (i, k) that atom i receives. There are three forms of it: a compiled kernel on CPUs and one
of Triton on GPUs, where there are such, and batched matrix products of PyTorch.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from ase import Atoms
from torch import Tensor, nn

from . import edge_triton, native
from .batch import Batch, collate, make_graph
from .edge_kernel import MAX_RANK_IN, Edges, Plan, native_edge_sum
from .ict import scaled_coupling
from .kernel_calls import can_run
from .layers import concatenate, pair_to_slot, sender_to_slot
from .paths import InteractionPath, interaction_paths

# of forms from one another: round-off, times a thousand
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4}


class EdgeSum(nn.Module):
    """Sender features and radial weights → sums over neighbours of every rank."""

    packed: Tensor  # couplings as the kernel reads them

    def __init__(self, paths: Sequence[InteractionPath], couplings: Sequence[np.ndarray], l_max: int) -> None:
        """
        Args:
            paths: ordered by l3, then l1.
            couplings: G [m1, m2, m3] of every path, normalised.
            l_max: highest rank of the edge attributes.
        """
        super().__init__()
        self.plan = Plan(paths, l_max)
        self._on_gpu: dict[tuple[torch.device, torch.dtype, int], Sequence[edge_triton.Group] | None] = {}
        self.register_buffer("packed", torch.from_numpy(self.plan.pack(couplings)), persistent=False)
        for n, (p, g) in enumerate(zip(paths, couplings, strict=True)):
            # [2l2+1, (2l1+1)(2l3+1)]: turns an edge attribute into the matrix that acts on the sender
            matrix = g.transpose(1, 0, 2).reshape(2 * p.l2 + 1, -1).copy()
            self.register_buffer(f"coupling{n}", torch.from_numpy(matrix), persistent=False)

    def forward(
        self, sent: Sequence[Tensor], weights: Tensor, batch: Batch, *, angular: Tensor
    ) -> list[Tensor]:
        """
        Args:
            sent: features of the senders by rank, [A, 2l+1, C].
            weights: radial weights of pairs, [P+1, paths·C].
            angular: edge attributes of all ranks, [A·K, (l_max+1)²]; zero in slots without an edge.

        Returns:
            By rank l, [A, 2l+1, C·(paths into l)].
        """
        if edge_triton.can_run(self.packed.dtype, (weights, angular, *sent)):
            form = self.on_gpu(batch, weights, channels=sent[0].shape[2])
            if form is not None:
                return form.sums(sent, weights, angular)
        library = compiled() if self._native(weights, angular, *sent) else None
        if library is None:
            return self.plain(sent, weights, batch, angular=angular)
        return native_edge_sum(
            Edges(library, self.plan, self.packed, batch), angular, weights, sent=sent
        )

    def on_gpu(self, batch: Batch, weights: Tensor, *, channels: int) -> edge_triton.Form | None:
        """The form of Triton, at the first call compiled and compared with `plain`; None if there is none."""
        kernels = edge_triton.kernels()
        if kernels is None:
            return None
        key = weights.device, weights.dtype, channels
        if key not in self._on_gpu:
            couplings = [getattr(self, f"coupling{n}") for n in range(len(self.plan.paths))]
            groups = edge_triton.groups_of(self.plan, couplings)

            def check() -> float:
                small = five_atoms().to(weights.device)
                form = edge_triton.Form(kernels, self.plan, groups, small)
                return difference(self, form.sums, small, channels=channels)

            usable = edge_triton.usable(weights.device, check, TOLERANCE[weights.dtype])
            self._on_gpu[key] = groups if usable else None
        groups_found = self._on_gpu[key]
        if groups_found is None:
            return None
        return edge_triton.Form(kernels, self.plan, groups_found, batch)

    def _native(self, *tensors: Tensor) -> bool:
        """Whether the kernel can do it: it is faster also for scalars and for the smallest molecules."""
        return self.plan.n_in <= MAX_RANK_IN + 1 and can_run(self.packed.dtype, tensors)

    def plain(
        self, sent: Sequence[Tensor], weights: Tensor, batch: Batch, *, angular: Tensor
    ) -> list[Tensor]:
        """The form that says what is meant, in PyTorch alone: on any device, for any transformation."""
        atoms, k, c, paths = batch.species.shape[0], batch.slots, sent[0].shape[2], self.plan.paths
        attributes = angular.split([2 * l + 1 for l in range(round(self.plan.width**0.5))], 1)  # noqa: E741
        by_slot = pair_to_slot(weights, batch.slot_pair, batch.pair_slots)
        by_path = by_slot.view(atoms, k, len(paths), 1, c).unbind(2)
        gathered = [
            sender_to_slot(x.reshape(atoms, -1), batch.slot_sender, batch.slot_reverse).view(
                atoms, k, x.shape[1], c
            )
            for x in sent
        ]
        collected: list[list[Tensor]] = [[] for _ in self.plan.into]
        for n, p in enumerate(paths):
            operator = attributes[p.l2] @ getattr(self, f"coupling{n}")
            operator = operator.view(atoms, k * (2 * p.l1 + 1), 2 * p.l3 + 1)
            message = (by_path[n] * gathered[p.l1]).view(atoms, k * (2 * p.l1 + 1), c)
            collected[p.l3].append(torch.bmm(operator.transpose(1, 2), message))
        return [concatenate(parts, 2) for parts in collected]


@functools.cache
def compiled() -> ctypes.CDLL | None:
    """The kernel, found to do what `EdgeSum.plain` does; None where PyTorch has to do it.

    The first call compiles it, which takes some ten seconds, unless that has been done on this machine.
    """
    return native.library(agrees)


def five_atoms() -> Batch:
    """Some edges, on which forms are compared."""
    place = np.array([[0, 0, 0], [1, 0, 0], [0, 1.1, 0], [0.3, 0.2, 1.2], [2.1, 0.1, 0.4]])
    return collate([make_graph(Atoms("C5", positions=place), (6,), cutoff=1.5)], 1)


def agrees(library: ctypes.CDLL) -> None:
    """Compare values, first and second derivatives with those of `EdgeSum.plain` on five atoms.

    Raises:
        native.NativeError: they differ by more than round-off.
    """
    paths, batch = interaction_paths(2, 3), five_atoms()
    module = EdgeSum(paths, [scaled_coupling(*p) for p in paths], 3)
    for dtype, tolerance in TOLERANCE.items():
        edges = Edges(library, module.to(dtype).plan, module.packed, batch)

        with torch.inference_mode(False), torch.enable_grad():
            error = difference(module, _of_kernel(edges), batch, channels=37)  # whole vectors, and a rest
        if not error < tolerance:
            raise native.NativeError(f"the compiled kernel is wrong by {error:.1e} in {dtype}")


def _of_kernel(edges: Edges) -> Callable[..., list[Tensor]]:
    return lambda sent, weights, angular: native_edge_sum(edges, angular, weights, sent=sent)


def difference(
    module: EdgeSum, form: Callable[..., list[Tensor]], batch: Batch, *, channels: int
) -> float:
    """Largest deviation of a form of (sent, weights, angular), relative to the largest of the same kind."""
    generator, like = torch.Generator().manual_seed(0), module.packed

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(like)

    atoms, c, plan = len(batch.species), channels, module.plan
    real = (batch.slot_pair < len(batch.pair_i)).to(like.dtype).unsqueeze(1)
    angular = (random(atoms * batch.slots, plan.width) * real).requires_grad_()
    weights = random(len(batch.pair_i) + 1, len(plan.paths) * c).requires_grad_()
    sent = [random(atoms, 2 * l + 1, c).requires_grad_() for l in range(plan.n_in)]  # noqa: E741
    seeds = [random(atoms, 2 * l + 1, n * c).requires_grad_() for l, n in enumerate(plan.into)]  # noqa: E741
    found, inputs = [], [angular, weights, *sent]
    for sums in (form(sent, weights, angular), module.plain(sent, weights, batch, angular=angular)):
        # of a scalar: with seeds given, PyTorch imports sympy first, which takes a third of a second
        scalar = torch.stack([(s * x).sum() for s, x in zip(seeds, sums, strict=True)]).sum()
        first = torch.autograd.grad(scalar, inputs, create_graph=True)
        # of padding neither form says anything, and nothing comes of it
        first = (first[0] * real, first[1][:-1], *first[2:])
        value = torch.stack([x.square().sum() for x in first]).sum()
        second = torch.autograd.grad(value, [*inputs, *seeds])
        found.append([*sums, *first, second[0] * real, second[1][:-1], *second[2:]])
    errors = [(a - b).abs().max() / b.abs().max() for a, b in zip(*found, strict=True)]
    return float(torch.stack(errors).detach().max())  # NaN if there is one
