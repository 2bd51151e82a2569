"""The compiled product basis computes what its PyTorch form says, and so do its derivatives of any order.

Tolerances are relative to the largest number of a kind: sums of some hundred products of order one, so that
float64 (1.1e-16) has to agree to 1e-13 and float32 (6e-8) to 5e-5 in second derivatives, sums of sums.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence

import layer_variants
import numpy as np
import pytest
import torch
from kernel_helpers import fixtures
from torch import Tensor

import tace
from tace import edge_sum, native, product
from tace.batch import Batch
from tace.derivatives import evaluate
from tace.hessian import hessian
from tace.paths import product_paths
from tace.product import ProductBasis
from tace.product_kernel import native_product

TOLERANCE = {torch.float64: 1e-13, torch.float32: 5e-5}
# l_max, correlation, outputs, path set, l_in (lower weights), channels (blocks of every width, and rests)
CASES = [
    (0, 2, (0,), "minimal", 0, 5),
    (1, 4, (0, 1), "minimal", 0, 16),
    (2, 2, (0, 2), "minimal", 0, 125),
    (2, 3, (0, 1), "official", 0, 16),
    (2, 3, (1,), "minimal", 1, 33),
    (2, 4, (0, 1, 2), "official", 0, 7),
    (3, 2, (0, 1), "minimal", 2, 64),
    (3, 3, (0,), "minimal", 0, 64),
    (3, 3, (0, 1, 2), "minimal", 0, 64),
    (3, 3, (0, 1, 2, 3), "minimal", 0, 1),
    (3, 3, (0, 1), "official", 1, 20),
]
IDS = [" ".join(map(str, case)) for case in CASES]


library, anew = fixtures(product)


def module_of(
    l_max: int,
    correlation: int,
    outputs: tuple[int, ...],
    kind: str = "minimal",
    l_in: int = 0,
    *,
    dtype: torch.dtype = torch.float64,
) -> ProductBasis:
    levels = product_paths(l_max, correlation, outputs, kind, l_in=l_in)
    return ProductBasis(levels, l_max, outputs, "unit", l_in=l_in).to(dtype)


def random(like: Sequence[tuple[int, ...]], seed: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in like]


def input_of(module: ProductBasis, atoms: int, channels: int) -> list[Tensor]:
    return random([(atoms, n, channels) for n in module.widths], 0, module.coefficients.dtype)


def both(module: ProductBasis, library) -> list[Callable[[Sequence[Tensor]], list[Tensor]]]:
    return [lambda a: native_product(module.basis(library), a), module.plain]


def derivatives(form, a: Sequence[Tensor], *, order: int) -> list[list[Tensor]]:
    """Values, and derivatives along random directions one after another."""
    x = [t.clone().requires_grad_() for t in a]
    values = form(x)
    seeds = [t.requires_grad_() for t in random([v.shape for v in values], 1, a[0].dtype)]
    found, along = [list(values)], seeds
    for n in range(order):
        into = x if n == 0 else [*x, *seeds]
        grads = torch.autograd.grad(values, into, along, create_graph=True, materialize_grads=True)
        values, along = list(grads), random([g.shape for g in grads], n + 2, a[0].dtype)
        found.append(values)
    return [[t.detach() for t in each] for each in found]


def agree(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    largest = max((b.abs().max().item() for b in expected if b.numel()), default=0.0)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert torch.isfinite(a).all()
        if b.numel():
            assert (a - b).abs().max().item() <= tolerance * largest


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_values_and_three_derivatives_are_those_of_the_plain_form(library, case, dtype):
    *settings, channels = case
    module = module_of(*settings, dtype=dtype)
    a = input_of(module, 3, channels)
    compiled, plain = (derivatives(form, a, order=3) for form in both(module, library))
    for found, expected in zip(compiled, plain, strict=True):
        agree(found, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("atoms", [0, 1])
def test_any_number_of_atoms_will_do(library, atoms):
    module = module_of(2, 3, (0, 1))
    a = input_of(module, atoms, 5)
    compiled, plain = (derivatives(form, a, order=2) for form in both(module, library))
    for found, expected in zip(compiled, plain, strict=True):
        agree(found, expected, TOLERANCE[torch.float64])


def test_no_features_give_no_products_and_no_slopes(library):
    """An atom without neighbours is exactly zero."""
    module = module_of(3, 3, (0, 1, 2))
    a = [torch.zeros_like(t).requires_grad_() for t in input_of(module, 2, 20)]
    products = native_product(module.basis(library), a)
    assert all(torch.equal(p, torch.zeros_like(p)) for p in products)
    seeds = [torch.zeros_like(p) for p in products]
    assert all(not g.any() for g in torch.autograd.grad(products, a, seeds))


@pytest.mark.parametrize("settings", [(2, 3, (0, 1)), (1, 4, (0, 1))])
def test_derivatives_are_those_of_finite_differences(library, settings):
    module = module_of(*settings)
    a = [t.requires_grad_() for t in input_of(module, 1, 1)]

    def form(*x: Tensor) -> tuple[Tensor, ...]:
        return tuple(native_product(module.basis(library), x))

    assert torch.autograd.gradcheck(form, a)
    assert torch.autograd.gradgradcheck(form, a)


def test_only_what_is_needed_is_differentiated(library):
    """Slopes with respect to A of one rank, and second derivatives where the seed or A has none."""
    module = module_of(2, 3, (0, 1))
    a = input_of(module, 3, 20)
    for needs_a, needs_seed in ((True, False), (False, True)):
        found = []
        for form in both(module, library):
            x = [t.clone().requires_grad_(n == 1) for n, t in enumerate(a)]
            products = form(x)
            seed = random([products[0].shape], 1, torch.float64)[0].requires_grad_(needs_seed)
            first = torch.autograd.grad(products[0], x[1], seed, create_graph=True)[0]
            into = [x[1]] if needs_a else [seed]
            found.append([first, *torch.autograd.grad(first.square().sum(), into)])
        agree(*found, TOLERANCE[torch.float64])


def test_threads_change_no_bit(library):
    module = module_of(3, 3, (0, 1), dtype=torch.float32)
    a, before, found = input_of(module, 11, 77), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(derivatives(both(module, library)[0], a, order=2))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(one, two, strict=True))


def test_atoms_and_channels_share_nothing(library):
    """Bit by bit the same, however a channel falls into blocks."""
    module = module_of(3, 3, (0, 1))
    a, form = input_of(module, 4, 61), both(module, library)[0]
    whole = derivatives(form, a, order=1)[0]
    part = form([t[1:3, :, 40:] for t in a])
    for one, two, (m, n) in zip(whole, part, module.shapes.outputs, strict=True):
        assert torch.equal(one.view(4, m, n, 61)[1:3, ..., 40:], two.view(2, m, n, 21))


def test_arguments_need_not_be_contiguous(library):
    module = module_of(2, 3, (0, 1))
    a, form = input_of(module, 6, 9), both(module, library)[0]
    strided = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in a]
    for one, two in zip(form(a), form(strided), strict=True):
        assert torch.equal(one, two)


def test_a_copy_of_a_module_and_one_of_another_type_work(library):
    module = module_of(2, 3, (0, 1))
    a = input_of(module, 2, 9)
    other = copy.deepcopy(module).float()
    for one, two in zip(module(a), other([t.float() for t in a]), strict=True):
        assert two.dtype == torch.float32
        assert torch.allclose(one.float(), two, rtol=1e-4, atol=1e-4)  # of float32, products of three
    mixed = [a[0].float(), *a[1:]]
    assert not module._native(mixed)


def test_correlation_one_has_no_products(library):
    module = module_of(2, 1, (0, 1))
    a = random([(2, n, 4) for n in module.widths], 0, torch.float64)
    assert not module._native(a)
    for x, y in zip(module(a), a[:2], strict=True):
        assert torch.equal(x, y)


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


@pytest.mark.parametrize("name", ["default", "rank 3", "fourth order", *layer_variants.VARIANTS])
def test_a_model_is_the_same_with_and_without_it(library, monkeypatch, name, structure):
    own: dict[str, dict[str, object]] = {
        "default": {}, "rank 3": {"l_max": 3, "L_max": 2}, "fourth order": {"correlation": 4},
    }  # fmt: skip
    model = layer_variants.model_of(**{**own, **layer_variants.VARIANTS}[name])
    batch = layer_variants.batch_of(model, structure("crystal"), structure("carbon"))
    compiled = parameter_slopes(model, batch)
    monkeypatch.setattr(ProductBasis, "_native", lambda self, a: False)
    # sums of sums through layers and powers: a few thousand roundings
    for found, expected in zip(compiled, parameter_slopes(model, batch), strict=True):
        agree([found], [expected], 1e-10)


def test_hessians_and_training_on_them_are_the_same(library, monkeypatch, structure):
    """The latter needs third derivatives."""
    model = layer_variants.model_of()
    batch = layer_variants.batch_of(model, structure("water"))

    def slopes() -> list[Tensor]:
        model.zero_grad()
        rows = torch.tensor([[0], [4]])
        result = evaluate(model, batch, create_graph=True, hessian_rows=rows)
        result.outputs["hessian_rows"].square().sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    compiled, rows = slopes(), hessian(model, structure("water"))
    monkeypatch.setattr(ProductBasis, "_native", lambda self, a: False)
    for found, expected in zip(compiled, slopes(), strict=True):
        agree([found], [expected], 1e-10)  # cancellation of terms a hundred times the sum
    assert np.allclose(rows, hessian(model, structure("water")), rtol=0.0, atol=1e-11 * np.abs(rows).max())


def test_what_records_operations_sees_those_of_pytorch(library):
    from torch.fx.experimental.proxy_tensor import make_fx

    module = module_of(2, 3, (0, 1))
    a = input_of(module, 2, 4)
    traced = make_fx(lambda *x: module(x))(*a)
    assert any("mm" in str(node.target) for node in traced.graph.nodes)
    doubled = [2.0 * t for t in a]
    for x, y in zip(traced(*doubled), module(doubled), strict=True):
        assert torch.allclose(x, y, rtol=1e-12, atol=1e-12)  # round-off of another order of sums


# building -----------------------------------------------------------------------------------------


def test_without_a_compiler_pytorch_does_it_and_the_log_says_why(tmp_path, monkeypatch, caplog, anew):
    monkeypatch.setenv("TACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("TACE_NATIVE", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    module = module_of(2, 3, (0, 1))
    a = input_of(module, 2, 4)
    with caplog.at_level(logging.INFO, logger="tace"):
        products = [module(a) for _ in range(2)]
    lines = [r.getMessage() for r in caplog.records if r.name == "tace"]
    assert len(lines) == 1, "said once"
    assert "no compiled product basis" in lines[0]
    assert "no C++ compiler" in lines[0]
    for x, y in zip(products[0], module.plain(a), strict=True):
        assert torch.equal(x, y)


def test_tace_native_0_leaves_it_to_pytorch(monkeypatch, anew):
    monkeypatch.setenv("TACE_NATIVE", "0")
    assert product.compiled() is None


def test_a_kernel_that_computes_something_else_is_not_used_and_others_are(
    library, tmp_path, monkeypatch, caplog, anew
):
    right = native._sources()
    wrong = {
        name: text.replace("b[t] = own, db[t] = down;", "b[t] = own, db[t] = own;")
        for name, text in right.items()
    }
    assert wrong != right
    monkeypatch.setenv("TACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "_sources", lambda: wrong)
    monkeypatch.setattr(native, "BASE", ("-std=c++17", "-O0", "-fPIC", "-shared", "-w"))
    monkeypatch.setattr(native, "CHOICES", ((),))
    with caplog.at_level(logging.INFO, logger="tace"):
        assert product.compiled() is None
    assert "product basis is wrong by" in caplog.text
    assert native.library(edge_sum.agrees) is not None
