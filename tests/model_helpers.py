"""A small random model, and what it says of structures."""

from __future__ import annotations

import dataclasses

import torch
from ase import Atoms

from tace.batch import collate, make_graph
from tace.config import TaceConfig
from tace.derivatives import evaluate
from tace.model import Tace

CUTOFF = 3.4
TINY = TaceConfig(
    elements=(1, 6, 8),
    fidelities=("gfn2", "pbe"),
    cutoff_A=CUTOFF,
    channels=3,
    l_max=2,
    L_max=1,
    radial_hidden=(8, 8),
    readout_hidden=4,
    avg_neighbors=8.0,
)
NAMES = ("water", "ethanol", "crystal", "carbon", "slab", "wire", "atom")


def louder(model: Tace) -> Tace:
    """Readouts start small; here their forces are not tiny, or a mistake would hide in round-off."""
    with torch.no_grad():
        for parameter in model.energy_readout.parameters():
            parameter *= 30.0
    return model


def build(dtype: torch.dtype = torch.float64, **changes: object) -> Tace:
    """A random model with references that are neither zero nor one."""
    model = Tace(dataclasses.replace(TINY, **changes), seed=7, dtype=dtype)
    e0 = {"gfn2": {1: -10.7, 6: -48.8, 8: -110.2}, "pbe": {1: -13.6, 6: -1029.2, 8: -2041.9}}
    louder(model)
    names = model.config.fidelities
    e0 = {name: {z: e0[name][z] for z in model.config.elements} for name in names}
    model.set_reference(
        e0, {n: 0.8 + 0.5 * k for k, n in enumerate(names)}, dict.fromkeys(names, -0.3)
    )
    return model


def batch_of(model: Tace, *frames: Atoms, fidelity: int = 0, skin: float = 0.0):
    cutoff = model.config.cutoff_A + skin
    graphs = [
        make_graph(
            a, model.config.elements, cutoff=cutoff, fidelity=fidelity, inputs=model.config.inputs
        )
        for a in frames
    ]
    return collate(graphs, len(model.config.elements))


def evaluated(
    model: Tace, *frames: Atoms, fidelity: int = 0, skin: float = 0.0, responses: tuple[str, ...] = ()
):
    batch = batch_of(model, *frames, fidelity=fidelity, skin=skin)
    return evaluate(model, batch, stress=True, responses=responses)
