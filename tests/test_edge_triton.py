"""The edge sum of Triton says what the PyTorch form says, and PyTorch does it wherever Triton cannot.

Its kernels run in Triton's interpreter here, which takes the place of a GPU and is slow; nothing here has
seen a GPU. Tolerances are those of `edge_sum.py` divided by ten: round-off of sums of some ten terms,
relative to the largest number of a kind.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ase.build import molecule

from tace import edge_triton
from tace.batch import Batch, collate, make_graph
from tace.edge_sum import EdgeSum
from tace.ict import scaled_coupling
from tace.paths import interaction_paths

HERE = Path(__file__).parent
QUICK = ("second_derivatives:float64", "second_derivatives:float32", "own_images", "stacked_members")
SLOW = ("all_ranks:float64", "all_ranks:float32", "third_derivatives", "whole_model")
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed: pip install triton"
)


def interpreted(*cases: str) -> dict[str, float]:
    """Largest relative deviations from the PyTorch form, found in a process of its own."""
    paths = [str(HERE), str(HERE.parent), *sys.path]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)}
    for name in ("TACE_TRITON", "TACE_NATIVE"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, str(HERE / "triton_forms.py"), *cases],
        env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["case"]: line["deviation"] for line in lines}


@pytest.fixture(scope="module")
def quick() -> dict[str, float]:
    return interpreted(*QUICK)


@needs_triton
@pytest.mark.parametrize("case", QUICK)
def test_values_and_derivatives_are_those_of_the_plain_form(quick, case):
    assert quick[case] < (1e-5 if "float32" in case else 1e-12)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW)
def test_so_are_those_of_all_ranks_of_higher_order_and_of_a_whole_model(case):
    assert interpreted(case)[case] < (1e-5 if "float32" in case else 1e-12)


@needs_triton
@pytest.mark.slow
def test_the_kernels_compile_for_gpus_that_are_not_here(tmp_path):
    """To machine code of an A100 and an H100: what an interpreter takes, a compiler may not."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, str(HERE / "triton_compiled.py"), "80", "90"],
        env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    made = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(made) == 12, "three kernels, two types, two machines"
    assert all(line["bytes"] > 1000 for line in made)


# ------------------------------------------------------------------ when it is used
@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Tensors of the CPU are taken for those of a GPU, and nothing has been tried yet."""
    monkeypatch.setattr(edge_triton, "can_run", lambda dtype, tensors: True)
    monkeypatch.setattr(edge_triton, "_off", set())
    monkeypatch.delenv("TACE_TRITON", raising=False)
    monkeypatch.delenv("TACE_NATIVE", raising=False)
    edge_triton.kernels.cache_clear()
    yield
    edge_triton.kernels.cache_clear()


def layer_and_arguments() -> tuple[EdgeSum, Batch, tuple]:
    paths = interaction_paths(0, 1)
    module = EdgeSum(paths, [scaled_coupling(*p) for p in paths], 1).double()
    batch = collate([make_graph(molecule("H2O"), (1, 8), cutoff=3.0)], 2)
    generator = torch.Generator().manual_seed(0)
    shapes = (3, 1, 4), (len(batch.pair_i) + 1, 4 * len(paths)), (len(batch.slot_pair), 4)
    sent, weights, angular = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return module, batch, (sent, weights, angular)


def is_plain_and_said_once(caplog, reason: str) -> None:
    """Two layers, twice: sums of the PyTorch form, and one line in the log."""
    with caplog.at_level(logging.INFO, logger="tace"):
        for module, batch, (sent, weights, angular) in (layer_and_arguments(), layer_and_arguments()):
            for _ in range(2):
                sums = module([sent], weights, batch, angular=angular)
                wanted = module.plain([sent], weights, batch, angular=angular)
                # the compiled kernel may have done it, in another order of sums
                for a, b in zip(sums, wanted, strict=True):
                    assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)
    lines = [r.getMessage() for r in caplog.records if r.name == "tace"]
    assert len(lines) == 1, lines
    assert reason in lines[0]


@pytest.mark.parametrize("name", ["TACE_TRITON", "TACE_NATIVE"])
def test_it_can_be_switched_off(as_on_a_gpu, monkeypatch, caplog, name):
    monkeypatch.setenv(name, "0")
    if name == "TACE_NATIVE":  # whose kernels have a line of their own
        monkeypatch.setattr("tace.edge_sum.compiled", lambda: None)
    is_plain_and_said_once(caplog, f"{name}=0")


def test_without_triton_pytorch_does_it_and_the_log_says_why(as_on_a_gpu, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "tace.triton_kernels", raising=False)
    is_plain_and_said_once(caplog, "no Triton")


def test_a_kernel_that_does_not_compile_is_not_used(as_on_a_gpu, monkeypatch, caplog):
    class Broken:
        def __getitem__(self, grid):
            raise RuntimeError("PTX was compiled with an unsupported toolchain\nand more")

    broken = SimpleNamespace(receive=Broken(), send=Broken(), exchange=Broken())
    monkeypatch.setattr(edge_triton, "kernels", lambda: broken)
    monkeypatch.setattr(edge_triton.kernels, "cache_clear", lambda: None, raising=False)
    is_plain_and_said_once(caplog, "PTX was compiled with an unsupported toolchain")


def test_a_kernel_that_computes_something_else_is_not_used(as_on_a_gpu, monkeypatch, caplog):
    class Idle:
        def __getitem__(self, grid):
            return lambda *arguments, **options: None

    idle = SimpleNamespace(receive=Idle(), send=Idle(), exchange=Idle())
    monkeypatch.setattr(edge_triton, "kernels", lambda: idle)
    monkeypatch.setattr(edge_triton.kernels, "cache_clear", lambda: None, raising=False)
    is_plain_and_said_once(caplog, "it is wrong by")


def test_tensors_of_the_cpu_do_not_ask_for_it(monkeypatch):
    monkeypatch.setattr(edge_triton, "kernels", lambda: pytest.fail("asked for"))
    module, batch, (sent, weights, angular) = layer_and_arguments()
    module([sent], weights, batch, angular=angular)
    on_gpu = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    assert edge_triton.can_run(torch.float32, [on_gpu])
    assert not edge_triton.can_run(torch.float32, [on_gpu, weights.float()])
    assert not edge_triton.can_run(torch.float64, [on_gpu])
