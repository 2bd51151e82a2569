"""Sizes that weights start from.

As published, sums over neighbours are divided by their mean number and radial functions enter as they are:
A starts at 1e-3, what is cubic in it at 1e-7, and the second layer at 1e-5. Such a model trains its linear
part first and the rest hardly at all. Here radial networks give numbers of order one, and A starts well below
one, so that its products do not outgrow it; `start: small` makes it four times smaller, and what is learnt
from a few dozen structures smoother.

Measured, force RMSE in meV/Å on unseen frames, as published → small → unit: 3BPA (450 frames,
medium with L_max 0, 400 steps) 128 → 105 → 84; urea at three levels (400, 60 and 15 frames, nano, 1500 steps)
144 → 125 → 119; urea at one level with 15 frames 167 → 164 → 201 (another seed: small 174, unit 229). With
the factor that makes radial functions of order one in the first layer of their networks instead of the last
unit reaches 95, 114 and 310: networks whose layers bend more make rougher functions of a distance.
"""

from __future__ import annotations

import math

import torch

from .config import TaceConfig
from .ict import angular_norm
from .layers import RadialNetwork, radial_output_size
from .radial import typical_size

A_SIZE = {"unit": 0.3, "small": 0.075}
MIX_GAIN = 0.3  # of the products of all orders into one feature
READOUT_START = 0.01  # first forces stay below those that are learnt, for molecules and dense crystals


def radial_network(config: TaceConfig, n_out: int, generator: torch.Generator) -> RadialNetwork:
    """Of a layer: enveloped radial functions → n_out weights of order one."""
    size = typical_size(config.cutoff_A, config.n_radial, config.envelope_p, orders=config.radial_orders)
    sizes = (config.n_radial * len(config.radial_orders), config.radial_hidden, n_out)
    gain = 1.0 / radial_output_size(size, len(config.radial_hidden))
    return RadialNetwork(sizes, generator, gain=gain)


def sum_gain(config: TaceConfig, rank: int) -> float:
    """Of the map after the sum over n̄ neighbours, which is divided by n̄: independent messages add as √n̄."""
    components = math.sqrt((2 * rank + 1) / angular_norm(rank))
    return A_SIZE[config.start] * math.sqrt(config.avg_neighbors) * components
