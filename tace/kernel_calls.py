"""How the compiled operators are called: addresses in, nothing out."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = {torch.float32: "f32", torch.float64: "f64"}


def call(library: ctypes.CDLL, name: str, dtype: torch.dtype, values: Sequence[int]) -> None:
    """Call a function of the kernels: whole numbers and addresses, in its order."""
    function = getattr(library, f"tace_{name}_{DTYPES[dtype]}")
    function((ctypes.c_int64 * len(values))(*values))


def addresses(tensors: Sequence[Tensor | None]) -> list[int]:
    """Of contiguous tensors; 0 for what is not there."""
    return [0 if t is None else t.data_ptr() for t in tensors]


def filled(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """Contiguous, with zeros for what is not there."""
    return [torch.zeros_like(x) if t is None else t.contiguous() for t, x in zip(tensors, like, strict=True)]


def can_run(dtype: torch.dtype, tensors: Sequence[Tensor]) -> bool:
    """Whether the kernels can work on these, with constants of `dtype`.

    What records operations (torch.compile, make_fx) has to see those of PyTorch.
    """
    return (
        dtype in DTYPES
        and all(x.device.type == "cpu" and x.dtype == dtype for x in tensors)
        and not recording()
    )


def recording() -> bool:
    """Whether operations are recorded (torch.compile, make_fx)."""
    return (
        torch.compiler.is_compiling()
        or torch.utils._python_dispatch._get_current_dispatch_mode() is not None
    )
