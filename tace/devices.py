"""Where torch computes, and on how many cores."""

from __future__ import annotations

import torch

from .errors import TaceError


def use(device: str, threads: int) -> str:
    """Let torch use so many cores; the device that is meant, as torch writes it.

    Args:
        device: 'auto' (a GPU where there is one), 'cpu', 'cuda' or 'cuda:N'.

    Raises:
        TaceError: torch cannot compute on that device.
    """
    torch.set_num_threads(threads)
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).partition("\n")[0]
        raise TaceError(f"device {device} cannot be used: {first}") from None
    return device
