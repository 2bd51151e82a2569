"""Sizes that weights start from.

As published, sums over neighbours are divided by their mean number and radial functions enter as they are:
A starts at 1e-3, what is cubic in it at 1e-7, and the second layer at 1e-5. Such a model trains its linear
part first and the rest hardly at all. With `start: unit` radial functions are brought to unit size, and A
starts below one half so that its products do not outgrow it.

Measured, force RMSE in meV/Å on frames that were not trained on, published sizes → unit: 3BPA (450 frames,
medium with L_max 0, 400 steps) 144 → 97, urea at three levels (400, 60 and 15 frames, nano, 1500 steps) 152
→ 121. Urea at one level with 15 frames 165 → 243: what is learnt from a few dozen structures alone is
smoother from a small start, which `start: small` is (A at 0.01). So are the first rounds of a campaign: with
twelve frames of each of two levels the urea campaign reached 149 from a small start and 170 from a unit one.
"""

from __future__ import annotations

import math

import torch

from .config import TaceConfig
from .ict import angular_norm
from .layers import RadialNetwork
from .radial import typical_size

A_SIZE = 0.3
MIX_GAIN = 0.3  # of the products of all orders into one feature
READOUT_START = 0.01  # first forces stay below those that are learnt, for molecules and dense crystals


def radial_network(config: TaceConfig, n_out: int, generator: torch.Generator) -> RadialNetwork:
    """Of a layer: enveloped radial functions → n_out weights, of order one for a unit start."""
    typical = 1.0
    if config.start == "unit":
        typical = typical_size(
            config.cutoff_A, config.n_radial, config.envelope_p, orders=config.radial_orders
        )
    sizes = (config.n_radial * len(config.radial_orders), config.radial_hidden, n_out)
    return RadialNetwork(sizes, generator, typical=typical)


def sum_gain(config: TaceConfig, rank: int) -> float:
    """Of the map after the sum over n̄ neighbours, which is divided by n̄: independent messages add as √n̄."""
    components = math.sqrt((2 * rank + 1) / angular_norm(rank))
    return A_SIZE * math.sqrt(config.avg_neighbors) * components
