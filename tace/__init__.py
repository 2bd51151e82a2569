"""TACE: tensor atomic cluster expansion in irreducible Cartesian tensors; see README.md beside this file.

Names are resolved on first use, so that importing the package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "Committee": "committee",
    "CommitteePrediction": "prediction",
    "Labelled": "data",
    "Tace": "model",
    "TaceCalculator": "calculator",
    "TaceConfig": "config",
    "TaceError": "errors",
    "TrainSettings": "settings",
    "fit": "train",
    "load_model": "io",
    "make_samples": "data",
    "preset": "config",
    "save_model": "io",
    "statistics": "reference",
    "train_from_config": "runfile",
}

__all__ = [
    "Committee",
    "CommitteePrediction",
    "Labelled",
    "Tace",
    "TaceCalculator",
    "TaceConfig",
    "TaceError",
    "TrainSettings",
    "fit",
    "load_model",
    "make_samples",
    "preset",
    "save_model",
    "statistics",
    "train_from_config",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tace' has no attribute '{name}'")
    return getattr(import_module(f"tace.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
