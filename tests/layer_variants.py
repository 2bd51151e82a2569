"""Layers with every option, and what their tests need: models, batches, features that can be turned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from tace.batch import Batch, collate, make_graph
from tace.config import TaceConfig
from tace.geometry import Geometry
from tace.ict import stf_basis
from tace.model import Tace

SMALL = {
    "elements": (1, 6, 8),
    "cutoff_A": 3.4,
    "channels": 3,
    "l_max": 2,
    "L_max": 1,
    "radial_hidden": (8, 8),
    "readout_hidden": 4,
    "avg_neighbors": 3.0,  # large features, so that products of second and third order matter
}
MESSAGE_PASSING = {"correlation": 1, "residual": True}  # TMP of the paper: no products, more layers
VARIANTS: dict[str, dict[str, object]] = {
    "norm gate": {"gate": "norm"},
    "scalar gate": {"gate": "scalar", "l_max": 3, "L_max": 2},
    "uncoupled": {"mixing": "uncoupled", "paths": "official"},
    "residual": {"residual": True, "n_layers": 3, "L_max": 2},
    "TMP": {**MESSAGE_PASSING, "n_layers": 3},
    "TMP, norm gate": {**MESSAGE_PASSING, "n_layers": 5, "gate": "norm"},
    "TMP, scalar gate": {**MESSAGE_PASSING, "n_layers": 4, "gate": "scalar", "l_max": 3, "L_max": 3},
    "all": {"weights": "all"},
    "all, rank 3": {"weights": "all", "l_max": 3, "L_max": 2},
    "all, three layers": {"weights": "all", "n_layers": 3},
    "all, official": {"weights": "all", "l_max": 3, "paths": "official", "coupling_norm": "unit"},
    "all, norm gate": {"weights": "all", "correlation": 2, "gate": "norm", "n_layers": 3, "residual": True},
    "all, uncoupled": {"weights": "all", "gate": "scalar", "mixing": "uncoupled"},
}


def model_of(**changes: object) -> Tace:
    """A random float64 model with isolated-atom energies that are not zero."""
    model = Tace(TaceConfig(**{**SMALL, **changes}), seed=11, dtype=torch.float64)
    with torch.no_grad():  # readouts start small
        for parameter in model.energy_readout.parameters():
            parameter *= 10.0
    model.set_reference({"default": {1: -10.7, 6: -48.8, 8: -110.2}}, {"default": 0.8}, {"default": -0.3})
    return model


def disturb(model: Tace) -> Tace:
    """Move what starts as zeros or ones (slopes and offsets of gates, path scales) away from there."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if (parameter == parameter.flatten()[0]).all():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.data += 0.3 * noise
    return model


def batch_of(model: Tace, *frames: Atoms) -> Batch:
    elements = model.config.elements
    return collate([make_graph(a, elements, cutoff=model.config.cutoff_A) for a in frames], len(elements))


def geometry_of(model: Tace, batch: Batch, positions: Tensor | None = None) -> Geometry:
    where = batch.positions if positions is None else positions
    return model.geometry(batch, where, batch.pair_shift, cells=batch.cells)


def turn(l: int, matrix: np.ndarray) -> Tensor:  # noqa: E741
    """[2l+1, 2l+1]: what an orthogonal matrix does to a compact tensor of rank l, t → t @ turn(l, R).T."""
    power = np.ones((1, 1))
    for _ in range(l):
        power = np.kron(power, matrix)
    return torch.from_numpy(stf_basis(l).T @ power @ stf_basis(l))


def turned(features: Sequence[Tensor], matrix: np.ndarray) -> list[Tensor]:
    """Features [A, 2l+1, C] of rank (shape[1] − 1)/2 in the turned frame."""
    return [torch.einsum("mn,anc->amc", turn((x.shape[1] - 1) // 2, matrix), x) for x in features]


def features(ranks: Sequence[int], atoms: int, rng: np.random.Generator, channels: int = 3) -> list[Tensor]:
    return [torch.from_numpy(rng.standard_normal((atoms, 2 * l + 1, channels))) for l in ranks]  # noqa: E741


def through(model: Tace, batch: Batch, geometry: Geometry) -> list[list[Tensor]]:
    """Features of every layer."""
    h, found = [model.embedding.index_select(0, batch.species).unsqueeze(1)], []
    for layer in model.layers:
        h = layer(h, batch, geometry)
        found.append(h)
    return found


def rotations(rotation: Callable[[bool], np.ndarray]) -> list[np.ndarray]:
    """A rotation and an improper one."""
    both = [rotation(False), rotation(True)]
    assert [round(float(np.linalg.det(m))) for m in both] == [1, -1]
    return both


def rms(x: Tensor) -> float:
    return math.sqrt(float(x.detach().square().mean()))
