"""What graphs are recorded from: functions of weights and of the tensors of a batch, for all sizes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .batch import Batch
from .derivatives import make_leaves, strained_geometry
from .model import Tace
from .opaque import operators
from .quantities import INPUTS
from .recorded import Composition

# what a graph reads of a batch, and which dimensions vary: S structures, A atoms, P pairs, K slots
FIELDS: dict[str, dict[int, str]] = {
    "positions": {0: "A"}, "cells": {0: "S"}, "periodic": {0: "S"}, "pbc": {0: "S"},
    "structure": {0: "A"}, "species": {0: "A"}, "fidelity": {0: "S"}, "original": {0: "A"},
    "pair_i": {0: "P"}, "pair_j": {0: "P"}, "pair_shift": {0: "P"}, "pair_structure": {0: "P"},
    "slot_sender": {0: "A", 1: "K"}, "slot_reverse": {0: "AK"}, "slot_pair": {0: "AK"},
    "slot_sign": {0: "AK"}, "pair_slots": {1: "P1"}, "n_atoms": {0: "S"},
}  # fmt: skip
Function = Callable[..., tuple[Tensor, ...]]

def weights(recorded: Tace) -> dict[str, Tensor]:
    """Parameters and constants by name, in the order in which a graph takes them."""
    return {
        **dict(recorded.named_parameters(remove_duplicate=False)),
        **dict(recorded.named_buffers(remove_duplicate=False)),  # the grid is the same for all tables
    }


def batch_tensors(batch: Batch) -> list[Tensor]:
    """A batch as a graph takes it: its fields, the atoms of each element, and the conditions."""
    found = [getattr(batch, name) for name in FIELDS]
    found[list(FIELDS).index("slot_sender")] = batch.slot_sender.view(len(batch.species), -1)
    found.append(torch.tensor(batch.species_counts))
    return found + [batch.inputs[name] for name in sorted(batch.inputs)]


def batch_of(tensors: Sequence[Tensor], names: Sequence[str]) -> Batch:
    """The reverse, within a recording.

    Args:
        names: of the conditions, sorted.
    """
    fields: dict[str, Any] = dict(zip(FIELDS, tensors, strict=False))
    counts, inputs = tensors[len(FIELDS)], tensors[len(FIELDS) + 1 :]
    slots = fields["slot_sender"].shape[1]
    fields["slot_sender"] = fields["slot_sender"].reshape(-1)
    composition: Any = Composition(counts, fields["species"])
    rest: dict[str, Any] = {"slots": slots, "species_counts": composition}
    return Batch(**fields, **rest, inputs=dict(zip(names, inputs, strict=True)))


def fits(batch: Batch) -> bool:
    """Whether a graph can take it: a dimension of 0 or 1 would have been a constant of the graph."""
    return len(batch.species) > 1 and len(batch.pair_i) > 1 and batch.slots > 1


def inference(recorded: Tace, inputs: Sequence[str]) -> Function:
    """(weights, tensors of a batch) → energies [S], forces [A,3] and ∂E/∂ε [S,3,3], features [A,D]."""
    names = list(weights(recorded))

    def run(values: Sequence[Tensor], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        batch = batch_of(tensors, inputs)
        given = dict(zip(names, values, strict=True))
        with torch.enable_grad(), substituted(recorded, given):
            leaves = make_leaves(batch, stress=True)
            assert leaves.strain is not None
            geometry, _ = strained_geometry(recorded, batch, leaves)
            terms = recorded(batch, geometry)
            slopes = torch.autograd.grad(terms.energies.sum(), [leaves.positions, leaves.strain])
        forces = -slopes[0].index_select(0, batch.original)
        features = terms.features.index_select(0, batch.original)
        return terms.energies.detach(), forces, slopes[1], features.detach()

    return run


@contextlib.contextmanager
def substituted(model: Tace, values: dict[str, Tensor]) -> Iterator[None]:
    """The model with other tensors for its weights."""
    places: list[tuple[dict[str, Any], str, Any]] = []
    for name, value in values.items():
        path, _, key = name.rpartition(".")
        module = model.get_submodule(path)
        store: Any = module._parameters if key in module._parameters else module._buffers
        places.append((store, key, store[key]))
        store[key] = value
    try:
        yield
    finally:
        for kept, key, old in places:
            kept[key] = old


def record(
    function: Function, values: Sequence[Tensor], tensors: Sequence[Tensor], dims: Sequence[dict[int, str]]
) -> torch.fx.GraphModule:
    """The graph of a function of (weights, tensors of a batch), for batches of all sizes.

    Args:
        tensors: of a batch with several structures, atoms, pairs and slots: 0 and 1 would be constants.
        dims: see `varying`.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    operators()
    mode = FakeTensorMode(shape_env=ShapeEnv())
    named = {(name, size) for t, names in zip(tensors, dims, strict=True)
             for name, size in ((names[d], t.shape[d]) for d in names)}  # fmt: skip
    # dimensions of one size are taken for the same, unless they are told apart, which takes longer
    distinct = len({size for _, size in named}) == len(named)
    kind = DimDynamic.DUCK if distinct else DimDynamic.DYNAMIC

    def shaped(tensor: Tensor, names: dict[int, str]) -> Tensor:
        sizes = [kind if d in names else DimDynamic.STATIC for d in range(tensor.ndim)]
        context: Any = StatelessSymbolicContext(
            dynamic_sizes=sizes, constraint_sizes=[None] * tensor.ndim
        )
        return mode.from_tensor(tensor, symbolic_context=context)

    fixed = [mode.from_tensor(x, static_shapes=True) for x in values]
    free = [shaped(t, names) for t, names in zip(tensors, dims, strict=True)]
    with mode:
        made = make_fx(function)(fixed, free)
    made.graph.eliminate_dead_code()
    made.recompile()
    return made


def varying(batch: Batch) -> list[dict[int, str]]:
    """Which dimensions of `batch_tensors` are not constants of a graph, by the names that `FIELDS` gives."""
    scopes = [INPUTS[name].scope for name in sorted(batch.inputs)]
    return [*FIELDS.values(), {}, *({0: "A" if scope == "atom" else "S"} for scope in scopes)]
