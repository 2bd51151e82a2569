"""Labelled structures of two levels, and trainers of a small model on them."""

from __future__ import annotations

import dataclasses

import torch
from ase import Atoms
from ase.calculators.morse import MorsePotential

from tace.config import preset
from tace.data import Labelled, make_samples
from tace.model import Tace
from tace.reference import set_statistics, statistics
from tace.settings import TrainSettings
from tace.train import Trainer

CONFIG = preset(
    "nano",
    elements=(1, 6, 8),
    fidelities=("cheap", "dear"),
    cutoff_A=3.4,
    channels=4,
    radial_hidden=(8,),
    readout_hidden=4,
    avg_neighbors=4.0,
)
SHORT = TrainSettings(steps=10, batch_size=2, validate_every=3)
E0 = {"cheap": {1: -1.0, 6: -2.0, 8: -3.0}, "dear": {1: -13.0, 6: -1029.0, 8: -2041.0}}


def frames_of(structure, names, *, fidelity: str = "cheap", seed: int = 0) -> list[Labelled]:
    """Structures with all labels that they can have, from a pair potential and atomic energies."""
    labelled = []
    for n, name in enumerate(names):
        atoms: Atoms = structure(name)
        atoms.rattle(0.03, seed=seed + n)
        atoms.calc = MorsePotential(epsilon=1.0, r0=1.3, rho0=3.0, rcut1=2.4, rcut2=3.3)
        free = sum(E0[fidelity][int(z)] for z in atoms.numbers)
        labelled.append(
            Labelled(
                atoms,
                fidelity,
                atoms.get_potential_energy() + free,
                atoms.get_forces(),
                atoms.get_stress() if atoms.pbc.all() else None,
                name=f"{name}-{fidelity}-{n}",
            )
        )
    return labelled


def build(
    frames: list[Labelled], *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: object
) -> Tace:
    model = Tace(dataclasses.replace(CONFIG, **changes), seed=seed, dtype=dtype)
    facts = statistics(frames, CONFIG, E0)
    set_statistics(model, facts)
    return model


def two_levels(structure) -> list[Labelled]:
    cheap = frames_of(structure, ["water", "carbon", "water"])
    return cheap + frames_of(structure, ["water", "carbon"], fidelity="dear", seed=7)


def trainer_of(frames, settings=SHORT, *, dtype=torch.float32, valid=0, seed=0) -> Trainer:
    samples = make_samples(frames, CONFIG)
    model = build(frames, dtype=dtype, seed=seed)
    return Trainer(model, samples[valid:], samples[:valid], settings)


def weights(model: Tace) -> list[torch.Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
