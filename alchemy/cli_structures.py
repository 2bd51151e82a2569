"""Structure files as commands read them: every frame, with its labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read

from alchemy.errors import StructureError


def read_frames(path: Path) -> list[Atoms]:
    """All frames of a file; StructureError names what cannot be used."""
    if not path.is_file():
        raise StructureError(f"{path}: no such file")
    try:
        found = read(path, index=":")
    except Exception as error:  # ASE's readers raise anything
        raise StructureError(f"{path}: cannot be read as structures ({error})") from error
    frames = list(found) if isinstance(found, list) else [found]
    for n, atoms in enumerate(frames):
        if len(atoms) == 0 or not np.isfinite(atoms.positions).all():
            raise StructureError(f"{path}, frame {n}: no atoms, or positions that are not finite")
    if not frames:
        raise StructureError(f"{path}: holds no structure")
    return frames
