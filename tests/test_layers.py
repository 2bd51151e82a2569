"""Maps of features by element: with weights that are trained and with those that are not."""

from __future__ import annotations

import pytest
import torch

from tace.layers import ElementLinear


@pytest.mark.parametrize("counts", [(2, 0, 3), (0, 5, 0), (1, 1, 3)])
def test_frozen_weights_give_the_same_features_and_derivatives(counts):
    generator = torch.Generator().manual_seed(0)
    linear = ElementLinear(3, 4, 2, generator)
    x = torch.randn(sum(counts), 3, 4, generator=generator, dtype=torch.float64)
    by_hand = torch.cat([p @ w for p, w in zip(x.split(counts, 0), linear.weight, strict=True)])
    for frozen in (False, True):
        linear.requires_grad_(not frozen)
        x.requires_grad_()
        found = linear(x, counts)
        assert torch.allclose(found, by_hand, rtol=1e-14, atol=1e-14)  # sums of four
        assert torch.autograd.gradcheck(lambda t: linear(t, counts), x)
        assert torch.autograd.gradgradcheck(lambda t: linear(t, counts), x)
