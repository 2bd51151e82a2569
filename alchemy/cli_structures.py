"""Structure files as commands read them: every frame, with its labels."""

from __future__ import annotations

from pathlib import Path

from ase import Atoms

from alchemy.errors import StructureError
from tace import readers
from tace.errors import DataError


def read_frames(path: Path) -> list[Atoms]:
    """All frames of a file; StructureError names what cannot be used."""
    try:
        return readers.read_frames(path)
    except DataError as error:
        raise StructureError(str(error)) from error
