"""Run by test_edge_triton.py in a process of its own, where TRITON_INTERPRET=1 makes kernels run on the CPU.

Prints a JSON line for every case: the largest deviation from the PyTorch form, relative to its kind.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from unittest import mock

import layer_variants
import torch
from ase import Atoms
from ase.build import bulk
from torch import Tensor

from tace import edge_triton
from tace.batch import Batch, collate, copies, make_graph
from tace.derivatives import evaluate
from tace.edge_sum import EdgeSum, difference
from tace.ict import scaled_coupling
from tace.paths import interaction_paths


def layer(l_in: int, l_max: int, dtype: torch.dtype) -> EdgeSum:
    paths = interaction_paths(l_in, l_max)
    return EdgeSum(paths, [scaled_coupling(*p) for p in paths], l_max).to(dtype)


def form_of(module: EdgeSum, batch: Batch) -> edge_triton.Form:
    kernels = edge_triton.kernels()
    assert kernels is not None
    couplings = [getattr(module, f"coupling{n}") for n in range(len(module.plan.paths))]
    return edge_triton.Form(kernels, module.plan, edge_triton.groups_of(module.plan, couplings), batch)


def batch_of(*frames: Atoms, cutoff: float = 1.6) -> Batch:
    elements = sorted({int(z) for a in frames for z in a.numbers})
    return collate([make_graph(a, elements, cutoff=cutoff) for a in frames], len(elements))


def bent() -> Atoms:
    """Three atoms with one, two and no neighbours, and slots to spare."""
    return Atoms("OHHe", positions=[[0, 0, 0], [0.8, 0.5, 0.1], [5, 0, 0]])


def largest(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    pairs = [(a.detach(), b.detach()) for a, b in zip(found, expected, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in pairs)


def second_derivatives(dtype: str) -> float:
    module, batch = layer(1, 1, getattr(torch, dtype)), batch_of(bent())
    return difference(module, form_of(module, batch).sums, batch, channels=5)


def all_ranks(dtype: str) -> float:
    module, batch = layer(2, 3, getattr(torch, dtype)), batch_of(bent())
    return difference(module, form_of(module, batch).sums, batch, channels=33)


def own_images() -> float:
    """Pairs of an atom with its own images: sender and receiver are one."""
    module, batch = layer(0, 1, torch.float64), batch_of(bulk("Pd", a=3.2), cutoff=2.4)
    return difference(module, form_of(module, batch).sums, batch, channels=2)


def stacked_members() -> float:
    """On copies of a batch, each of which has a dummy pair of its own."""
    module, one = layer(0, 1, torch.float64), batch_of(bent())
    batch = copies(one, 2)
    generator = torch.Generator().manual_seed(0)
    y, w, s = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((len(batch.slot_pair), 4), (batch.pair_slots.shape[1], 2 * 3), (6, 1, 3))
    )
    y = (y * batch.slot_sign.abs().unsqueeze(1)).requires_grad_()
    given = y, w.requires_grad_(), s.requires_grad_()

    def found(form: Callable[..., list[Tensor]]) -> list[Tensor]:
        sums = form([given[2]], given[1], given[0])
        slopes = torch.autograd.grad([x.square().sum() for x in sums], given)
        real = torch.ones_like(w).view(2, -1, w.shape[1])
        real[:, -1] = 0.0  # of dummies no form says anything
        return [*sums, slopes[0] * batch.slot_sign.abs().unsqueeze(1), slopes[1] * real.view_as(w), slopes[2]]

    one_by_one = found(lambda sent, weights, angular: module.plain(sent, weights, batch, angular=angular))
    return largest(found(form_of(module, batch).sums), one_by_one)


def third_derivatives() -> float:
    """Of a sum of squares of second derivatives, as training on Hessians needs them."""
    module = layer(0, 1, torch.float64)
    batch = batch_of(Atoms("H3", positions=[[0, 0, 0], [0.7, 0.1, 0], [0.1, 0.8, 0.2]]))
    generator = torch.Generator().manual_seed(1)
    shapes = (len(batch.slot_pair), 4), (4, 2 * 2), (3, 1, 2)
    given = [torch.randn(x, generator=generator, dtype=torch.float64).requires_grad_() for x in shapes]
    y, w, s = given

    def found(form: Callable[..., list[Tensor]]) -> list[Tensor]:
        value = torch.stack([x.square().sum() for x in form([s], w, y)]).sum()
        for _ in range(3):
            slopes = torch.autograd.grad(value, given, create_graph=True)
            slopes = [slopes[0], slopes[1][:-1], slopes[2]]  # of dummies no form says anything
            value = torch.stack([(0.1 * g).sin().sum() for g in slopes]).sum()
        return [*slopes, value]

    one = found(lambda sent, weights, angular: module.plain(sent, weights, batch, angular=angular))
    assert 1e-3 < float(one[-1].detach().abs()) < 1e12  # neither zero nor infinite
    return largest(found(form_of(module, batch).sums), one)


def whole_model() -> float:
    """Energies, forces, stresses and slopes of a loss of all three, chosen as on a GPU."""
    model = layer_variants.model_of(channels=2)
    atoms = Atoms("OH", positions=[[0, 0, 0], [0.9, 0.3, 0]], cell=[3, 3, 3], pbc=True)
    batch = layer_variants.batch_of(model, atoms)

    def found() -> list[Tensor]:
        model.zero_grad()
        result = evaluate(model, batch, stress=True, create_graph=True)
        parts = [result.energies, result.forces, result.stresses]
        torch.stack([x.square().sum() for x in parts if x is not None]).sum().backward()
        return [*(x.detach() for x in parts), *(p.grad for p in model.parameters() if p.grad is not None)]

    plain = found()
    with mock.patch.object(edge_triton, "can_run", return_value=True):
        made = found()
    used = [m for m in model.modules() if isinstance(m, EdgeSum) and any(m._on_gpu.values())]
    assert len(used) == model.config.n_layers
    return largest(made, plain)


if __name__ == "__main__":
    for case in sys.argv[1:]:
        name, _, argument = case.partition(":")
        deviation = globals()[name](*([argument] if argument else []))
        print(json.dumps({"case": case, "deviation": deviation}), flush=True)
