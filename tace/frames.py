"""Structures of a file of any kind that ASE reads, and of an ASE database."""

from __future__ import annotations

import gzip
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read
from ase.io.formats import string2index

from .errors import DataError

DATABASES = (".db", ".json", ".aselmdb")


def numbered(path: Path, index: str) -> list[tuple[Atoms, str]]:
    """Structures, each with a name for messages.

    Raises:
        DataError: no such file, nothing in it, or a structure that cannot be used.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        chosen = string2index(index)
    except ValueError:
        chosen = ""
    if isinstance(chosen, str):
        raise DataError(f"{path}: index '{index}' is not understood; write ':', '-1' or '0:100:2'")
    try:
        every = _read_all(path)
    except ImportError as error:
        package = "; pip install ase-db-backends" if path.suffix == ".aselmdb" else ""
        raise DataError(f"{path}: a package to read it is missing ({error}){package}") from error
    except Exception as error:  # ASE's readers raise anything
        raise DataError(f"{path}: cannot be read as structures ({error})") from error
    every = list(every) if isinstance(every, list) else [every]
    try:
        numbers = range(len(every))[chosen] if isinstance(chosen, slice) else [range(len(every))[chosen]]
    except IndexError:
        raise DataError(f"{path}: there is no frame {index} among {len(every)}") from None
    frames = [(every[n], f"{path}, frame {n}") for n in numbers]
    for atoms, name in frames:
        if len(atoms) == 0 or not np.isfinite(atoms.positions).all():
            raise DataError(f"{name}: no atoms, or positions that are not finite")
    if not frames:
        raise DataError(f"{path}: holds no structure" + (f" at index {index}" if every else ""))
    return frames


def _read_all(path: Path) -> Any:
    if path.suffix in DATABASES:
        return _read_database(path)
    if path.suffixes[-2:] in ([".xyz", ".gz"], [".extxyz", ".gz"]):  # ASE seeks in it, for ever
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return read(StringIO(file.read()), index=":", format="extxyz")
    return read(path, index=":")


def _read_database(path: Path) -> list[Atoms]:
    """Every row in order of its id; key-value pairs and further data go to `info`."""
    from ase.db import connect

    frames = []
    for row in connect(str(path), append=True).select(sort="id"):
        atoms = row.toatoms()
        atoms.info.update(row.key_value_pairs)
        atoms.info.update(row.data or {})
        frames.append(atoms)
    return frames
