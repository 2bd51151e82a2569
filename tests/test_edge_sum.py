"""The compiled edge sum computes what its PyTorch form says, to every derivative, wherever it can be built.

Tolerances are relative to the largest number of a kind: sums of at most some 500 terms of order one, so that
float64 (1.1e-16) has to agree to 1e-13 and float32 (6e-8) to 5e-5 in second derivatives, sums of sums.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import layer_variants
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from kernel_helpers import fixtures
from torch import Tensor

import tace
from tace import edge_sum, native
from tace.batch import Batch, collate, make_graph
from tace.derivatives import evaluate
from tace.edge_kernel import Edges, native_edge_sum
from tace.edge_sum import EdgeSum
from tace.hessian import hessian
from tace.ict import scaled_coupling
from tace.paths import interaction_paths

TOLERANCE = {torch.float64: 1e-13, torch.float32: 5e-5}
# highest rank of the features and of the edge attributes, channels (whole vectors, a rest, or both)
RANKS = [(0, 0, 3), (0, 2, 16), (0, 3, 64), (1, 2, 16), (1, 3, 33), (2, 2, 5), (2, 3, 64), (3, 3, 19)]


library, anew = fixtures(edge_sum)


def frames(kind: str) -> list[Atoms]:
    crystal = bulk("Pd", cubic=True) * (2, 1, 1)
    crystal.rattle(0.05, seed=1)
    apart = Atoms("H2", positions=[[0, 0, 0], [0, 0, 9]])
    return {
        "molecules with padding": [molecule("CH3CH2OH"), molecule("H2O")],
        "isolated atoms": [apart],
        "isolated beside bound": [apart, molecule("H2O")],
        "own images": [bulk("Pd", a=3.2)],
        "crystal": [crystal],
        "one atom": [Atoms("O", positions=[[0, 0, 0]])],
    }[kind]


KINDS = [
    "molecules with padding", "isolated atoms", "isolated beside bound", "own images", "crystal", "one atom",
]  # fmt: skip


def batch_of(kind: str) -> Batch:
    structures = frames(kind)
    elements = sorted({int(z) for a in structures for z in a.numbers})
    return collate([make_graph(a, elements, cutoff=4.0) for a in structures], len(elements))


def module_of(l_in: int, l_max: int, dtype: torch.dtype = torch.float64) -> EdgeSum:
    paths = interaction_paths(l_in, l_max)
    return EdgeSum(paths, [scaled_coupling(*p) for p in paths], l_max).to(dtype)


def arguments(module: EdgeSum, batch: Batch, channels: int, *, seed: int = 0) -> list[Tensor]:
    """Y, zero in padding; W, zero for the dummy pair, of which a network makes nothing; s of each rank."""
    dtype, generator = module.packed.dtype, torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    atoms, pairs = len(batch.species), len(batch.pair_i)
    real = (batch.slot_pair < pairs).to(dtype).unsqueeze(1)
    weights = random(pairs + 1, len(module.plan.paths) * channels)
    weights[-1] = 0.0
    return [
        random(atoms * batch.slots, module.plan.width) * real, weights,
        *[random(atoms, 2 * l + 1, channels) for l in range(module.plan.n_in)],  # noqa: E741
    ]  # fmt: skip


def both(module: EdgeSum, batch: Batch, library) -> list:
    """The two forms as functions of Y, W, s_0, s_1, ..."""
    edges = Edges(library, module.plan, module.packed, batch)
    return [
        lambda y, w, *s: native_edge_sum(edges, y, w, sent=s),
        lambda y, w, *s: module.plain(s, w, batch, angular=y),
    ]


def derivatives(form, inputs: Sequence[Tensor], shown: Sequence[Tensor], *, order: int) -> list[list[Tensor]]:
    """Values, and derivatives along random directions one after another; those of padding are left out."""
    x = [t.clone().requires_grad_() for t in inputs]
    sums = form(*x)
    seeds = [t.requires_grad_() for t in directions(sums, 1)]
    found = [list(sums)]
    values, along = list(sums), seeds
    for n in range(order):
        into = x if n == 0 else [*x, *seeds]
        grads = torch.autograd.grad(values, into, along, create_graph=True, materialize_grads=True)
        values = [g * mask for g, mask in zip(grads, shown, strict=False)] + list(grads[len(shown) :])
        found.append(values)
        along = directions(values, n + 2)
    return [[t.detach() for t in each] for each in found]


def directions(like: Sequence[Tensor], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in like]


def shown(batch: Batch, inputs: Sequence[Tensor]) -> list[Tensor]:
    """One where a derivative means something: not in padding slots nor at the dummy pair."""
    real = (batch.slot_pair < len(batch.pair_i)).to(inputs[0].dtype).unsqueeze(1)
    weights = torch.ones_like(inputs[1])
    weights[-1] = 0.0
    return [real.expand_as(inputs[0]), weights]


def agree(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert torch.isfinite(a).all()
        if b.numel():
            assert (a - b).abs().max().item() <= tolerance * b.abs().max().item()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("l_in", "l_max", "channels"), RANKS)
def test_values_and_three_derivatives_are_those_of_the_plain_form(library, l_in, l_max, channels, dtype):
    batch, module = batch_of("molecules with padding"), module_of(l_in, l_max, dtype)
    inputs = arguments(module, batch, channels)
    compiled, plain = (
        derivatives(form, inputs, shown(batch, inputs), order=3) for form in both(module, batch, library)
    )
    for a, b in zip(compiled, plain, strict=True):
        agree(a, b, TOLERANCE[dtype])


@pytest.mark.parametrize("kind", KINDS)
def test_any_structure_will_do(library, kind):
    batch, module = batch_of(kind), module_of(2, 3)
    inputs = arguments(module, batch, 9)
    compiled, plain = (
        derivatives(form, inputs, shown(batch, inputs), order=2) for form in both(module, batch, library)
    )
    for a, b in zip(compiled, plain, strict=True):
        agree(a, b, TOLERANCE[torch.float64])


def test_derivatives_are_those_of_finite_differences(library):
    batch, module = batch_of("own images"), module_of(1, 2)
    y, w, *s = arguments(module, batch, 1)
    inputs = [t.requires_grad_() for t in (y, w, *s)]
    compiled = both(module, batch, library)[0]

    def form(*x: Tensor) -> tuple[Tensor, ...]:
        return tuple(compiled(*x))

    assert torch.autograd.gradcheck(form, inputs)
    assert torch.autograd.gradgradcheck(form, inputs)


def test_only_what_is_needed_is_differentiated(library):
    """A second derivative along one argument alone, where the others have none."""
    batch, module = batch_of("crystal"), module_of(1, 2)
    inputs = arguments(module, batch, 4)
    for chosen in range(len(inputs)):
        found = []
        for form in both(module, batch, library):
            x = [t.clone().requires_grad_(n == chosen) for n, t in enumerate(inputs)]
            sums = form(*x)
            seed = directions(sums, 1)[0].requires_grad_()
            first = torch.autograd.grad(sums[0], x[chosen], seed, create_graph=True, allow_unused=True)[0]
            if first is None:  # nothing of rank 0 depends on it
                continue
            mask = dict(enumerate(shown(batch, inputs))).get(chosen, torch.ones_like(first))
            found.append([first * mask, torch.autograd.grad((first * mask).square().sum(), seed)[0]])
        if found:
            agree(*found, TOLERANCE[torch.float64])


def test_threads_change_no_bit(library):
    batch, module = batch_of("molecules with padding"), module_of(2, 3, torch.float32)
    inputs = arguments(module, batch, 21)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            form = both(module, batch, library)[0]
            found.append(derivatives(form, inputs, shown(batch, inputs), order=2))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_arguments_need_not_be_contiguous(library):
    batch, module = batch_of("crystal"), module_of(1, 2)
    inputs = arguments(module, batch, 6)
    strided = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in inputs]
    compiled = both(module, batch, library)[0]
    for a, b in zip(compiled(*inputs), compiled(*strided), strict=True):
        assert torch.equal(a, b)


def parameter_slopes(model: tace.Tace, batch: Batch) -> list[Tensor]:
    """Energies, forces, stresses, and slopes of a loss of all three."""
    model.zero_grad()
    result = evaluate(model, batch, stress=True, create_graph=True)
    assert result.forces is not None
    assert result.stresses is not None
    loss = result.energies.square().sum() + result.forces.square().sum() + result.stresses.square().sum()
    loss.backward()
    slopes = [p.grad for p in model.parameters() if p.grad is not None]
    return [result.energies.detach(), result.forces.detach(), result.stresses.detach(), *slopes]


@pytest.mark.parametrize(
    "changes", [{}, {"l_max": 3, "L_max": 2}, {"correlation": 1, "residual": True, "n_layers": 3}]
)
def test_a_model_is_the_same_with_and_without_it(library, monkeypatch, changes, structure):
    model = layer_variants.model_of(**changes)
    batch = layer_variants.batch_of(model, structure("crystal"))
    compiled = parameter_slopes(model, batch)
    rows = hessian(model, structure("water"))
    monkeypatch.setattr(EdgeSum, "_native", lambda self, *tensors: False)
    # sums of sums through layers and powers: a few thousand roundings
    agree(compiled, parameter_slopes(model, batch), 1e-11)
    assert np.allclose(rows, hessian(model, structure("water")), rtol=0.0, atol=1e-11 * np.abs(rows).max())


def test_training_on_second_derivatives_needs_third_ones_and_has_them(library, monkeypatch, structure):
    model = layer_variants.model_of()
    batch = layer_variants.batch_of(model, structure("water"))

    def slopes() -> list[Tensor]:
        model.zero_grad()
        rows = torch.tensor([[0], [4]])
        result = evaluate(model, batch, create_graph=True, hessian_rows=rows)
        result.outputs["hessian_rows"].square().sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    compiled = slopes()
    monkeypatch.setattr(EdgeSum, "_native", lambda self, *tensors: False)
    agree(compiled, slopes(), 1e-10)  # cancellation of terms a hundred times the sum


def test_what_records_operations_sees_those_of_pytorch(library):
    from torch.fx.experimental.proxy_tensor import make_fx

    batch, module = batch_of("crystal"), module_of(1, 2)
    y, w, *s = arguments(module, batch, 4)
    traced = make_fx(lambda y, w, *s: module(s, w, batch, angular=y))(y, w, *s)
    assert any("bmm" in str(node.target) for node in traced.graph.nodes)
    doubled = traced(2.0 * y, w, *s)
    for a, b in zip(doubled, module(s, w, batch, angular=y), strict=True):
        assert torch.allclose(a, 2.0 * b, rtol=1e-12, atol=1e-12)  # round-off of another order of sums


# building -----------------------------------------------------------------------------------------


def test_without_a_compiler_pytorch_does_it_and_the_log_says_why(tmp_path, monkeypatch, caplog, anew):
    monkeypatch.setenv("TACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("TACE_NATIVE", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    batch, module = batch_of("crystal"), module_of(1, 2)
    y, w, *s = arguments(module, batch, 4)
    with caplog.at_level(logging.INFO, logger="tace"):
        sums = [module(s, w, batch, angular=y) for _ in range(2)]
    lines = [r.getMessage() for r in caplog.records if r.name == "tace"]
    assert len(lines) == 1, "said once"
    assert "no C++ compiler" in lines[0]
    for a, b in zip(sums[0], module.plain(s, w, batch, angular=y), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("TACE_NATIVE", "0", "TACE_NATIVE=0"),
        ("CXX", "no-such-compiler -x", "no compiler 'no-such-compiler'"),
        ("CXX", "false", "false fails"),
        ("TACE_CACHE", "/proc/no/such/folder", "/proc/no"),
    ],
)
def test_whatever_prevents_a_build_is_a_line_in_the_log(
    tmp_path, monkeypatch, caplog, anew, variable, value, reason
):
    monkeypatch.delenv("TACE_NATIVE", raising=False)
    monkeypatch.setenv("TACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(variable, value)
    if variable == "TACE_CACHE":
        monkeypatch.setenv("CXX", sys.executable)  # exists, and is never reached
    with caplog.at_level(logging.INFO, logger="tace"):
        assert edge_sum.compiled() is None
    assert any(reason in r.getMessage() for r in caplog.records), caplog.text


def test_a_kernel_that_computes_something_else_is_not_used(library, tmp_path, monkeypatch, caplog, anew):
    sources = native._sources()
    wrong = {
        name: text.replace("sum += load<true>(group.matrix", "sum -= load<true>(group.matrix")
        for name, text in sources.items()
    }
    assert wrong != sources
    monkeypatch.setenv("TACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "_sources", lambda: wrong)
    monkeypatch.setattr(native, "BASE", ("-std=c++17", "-O0", "-fPIC", "-shared", "-w"))
    monkeypatch.setattr(native, "CHOICES", ((),))
    with caplog.at_level(logging.INFO, logger="tace"):
        assert edge_sum.compiled() is None
    assert "is wrong by" in caplog.text


def test_a_damaged_file_of_the_cache_is_built_anew(library, tmp_path, monkeypatch, anew):
    monkeypatch.setenv("TACE_CACHE", str(tmp_path))
    monkeypatch.setattr(native, "CHOICES", ((),))
    monkeypatch.setattr(native, "BASE", ("-std=c++17", "-O0", "-fPIC", "-shared", "-w"))
    path = native.build()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert edge_sum.compiled() is not None
    assert path.stat().st_size == len(whole)
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "nothing is left behind"


def test_without_a_compiler_the_cache_will_do(library, tmp_path, monkeypatch, anew):
    monkeypatch.setenv("TACE_CACHE", str(tmp_path))
    monkeypatch.setattr(native, "CHOICES", ((),))
    monkeypatch.setattr(native, "BASE", ("-std=c++17", "-O0", "-fPIC", "-shared", "-w"))
    path = native.build()
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert native.build() == path
    assert edge_sum.compiled() is not None


def test_two_processes_may_build_at_once(library, tmp_path):
    code = (
        "from tace import native, edge_sum; native.CHOICES = ((),)\n"
        "native.BASE = ('-std=c++17', '-O0', '-fPIC', '-shared', '-w')\n"
        "assert edge_sum.compiled() is not None"
    )
    root = str(Path(tace.__file__).parents[1])
    environment = {**os.environ, "TACE_CACHE": str(tmp_path), "PYTHONPATH": root}
    both = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    assert [p.wait(timeout=250) for p in both] == [0, 0]
    assert len(list(tmp_path.iterdir())) == 1
