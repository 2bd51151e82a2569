"""Copper with labels under names of their own, written to files."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.io import write

from tace.readers import read_dataset

RNG = np.random.default_rng(0)
ENERGY = -3.25
FORCES = RNG.normal(size=(4, 3))
SIX = RNG.normal(size=6)  # ASE order
FULL = SIX[[0, 5, 4, 5, 1, 3, 4, 3, 2]].reshape(3, 3)


def crystal() -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, rng=np.random.default_rng(1))
    return atoms


def with_info(**info) -> Atoms:
    atoms = crystal()
    atoms.info.update(REF_energy=ENERGY, **info)
    atoms.arrays["REF_forces"] = FORCES.copy()
    return atoms


def saved(tmp_path, *frames, name="data.extxyz"):
    path = tmp_path / name
    write(path, list(frames), format="extxyz")
    return path


def one(source, **options):
    (frame,) = read_dataset([source], **options).frames
    return frame
