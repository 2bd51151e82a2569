"""Model files: one torch archive of tensors and plain values, read with weights_only=True."""

from __future__ import annotations

import lzma
import os
import pickle
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .config import TaceConfig
from .errors import ModelFileError, TaceError
from .model import Tace
from .radial_tables import attach_document, tables_document

FORMAT, VERSION = "tace-model", 4
WITHOUT_TABLES = 3  # what a model without radial tables is written as, which an older tace reads too
_UNREADABLE = (
    RuntimeError, OSError, EOFError, ValueError, LookupError, NotImplementedError,
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, pickle.UnpicklingError,
)  # fmt: skip


def write_archive(path: Path, document: Mapping[str, Any]) -> None:
    """Write tensors and plain values atomically: temporary file, fsync, rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(dict(document), file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_archive(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read what `write_archive` wrote.

    Raises:
        ModelFileError: missing, damaged, or holding anything but tensors and plain values.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch reads a flipped bit as another number
            damaged = archive.testzip()
        if damaged is not None:
            raise ModelFileError(f"{path}: damaged ({damaged} does not match its checksum)")
        document = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise ModelFileError(f"{path}: no such file") from None
    except _UNREADABLE as error:
        first = str(error).strip().partition("\n")[0]  # torch goes on with advice that is not for users
        raise ModelFileError(f"{path}: not a readable model file ({first})") from error
    if not isinstance(document, dict):
        raise ModelFileError(f"{path}: not a tace archive")
    return document


def model_document(model: Tace, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What is stored of one model; `extra` holds plain values (training facts, calibration)."""
    tables = tables_document(model)
    return {
        "format": FORMAT,
        "version": WITHOUT_TABLES if tables is None else VERSION,
        "config": model.config.to_json(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "state": {name: value.detach().cpu() for name, value in model.state_dict().items()},
        "extra": dict(extra or {}),
        **({} if tables is None else {"radial_tables": tables}),
    }


def model_from_document(
    document: Mapping[str, Any],
    *,
    where: str = "model",
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> Tace:
    """Rebuild a model; `dtype` None keeps the stored one.

    Raises:
        ModelFileError: not a model, of a newer format, or with parts missing.
    """
    if document.get("format") != FORMAT:
        raise ModelFileError(f"{where}: not a tace model (format {document.get('format')!r})")
    version = document.get("version")
    if not isinstance(version, int):
        raise ModelFileError(f"{where}: no version of the model format in it")
    if version > VERSION:
        raise ModelFileError(
            f"{where}: model format {version} is newer than this tace reads ({VERSION})"
        )
    try:
        model = Tace(
            TaceConfig.from_json(document["config"]), dtype=getattr(torch, str(document["dtype"]))
        )
        state = document["state"] if version > 1 else _renamed(document["state"])
        if version < 3:  # had no polarisability of atoms
            known = model.state_dict()
            state = {**{n: known[n] for n in ("reference.polarizability",) if n in known}, **state}
        model.load_state_dict(state)
        if "radial_tables" in document:
            attach_document(model, document["radial_tables"])
    except (TaceError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ModelFileError(f"{where}: not a complete tace model ({error})") from error
    return model.to(device=device, dtype=dtype)


def _renamed(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of format 1, which had one readout, and references beside the weights."""
    places = {
        "readouts.": "energy_readout.linear.",
        "hidden.": "energy_readout.hidden.",
        "hidden_out.": "energy_readout.hidden_out.0.",
        "e0_eV": "reference.e0_eV",
        "scale_eV": "reference.scale_eV",
        "shift_eV": "reference.shift_eV",
    }
    found = {}
    for name, value in state.items():
        for old, new in places.items():
            if name.startswith(old):
                name = new + name.removeprefix(old)
        found[name] = value
    return found


def save_model(path: Path, model: Tace, extra: Mapping[str, Any] | None = None) -> None:
    """Write one model to one file."""
    write_archive(path, model_document(model, extra))


def load_model(
    path: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> Tace:
    """Read one model, ready for evaluation.

    Raises:
        ModelFileError: missing, damaged or of a newer format.
    """
    model = model_from_document(read_archive(path), where=str(path), device=device, dtype=dtype)
    return model.eval().requires_grad_(False)
