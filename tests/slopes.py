"""The slope of a loss along a random direction of the parameters, in two ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

H = 1e-5


def slope_and_difference(
    loss: Callable[[], torch.Tensor], parameters: Iterable[torch.nn.Parameter]
) -> tuple[float, float]:
    """From the gradient, and (loss(+h) − loss(−h))/2h, which is off by O(h²) and 1e-16/h of round-off."""
    parameters = list(parameters)
    generator = torch.Generator().manual_seed(3)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    grads = torch.autograd.grad(loss(), parameters)
    slope = sum(float((g * d).sum()) for g, d in zip(grads, directions, strict=True))
    sides = []
    for sign in (1, -2):  # +h, then −h
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p += sign * H * d
        sides.append(float(loss().detach()))
    return slope, (sides[0] - sides[1]) / (2 * H)
