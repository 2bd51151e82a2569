"""alchemy: active learning of machine-learned interatomic potentials.

`load_campaign`, `run_campaign` and `Store` are resolved on first use, so that `alchemy -h` stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {"Store": "store", "load_campaign": "config", "run_campaign": "campaign"}

__all__ = ["Store", "__version__", "load_campaign", "run_campaign"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'alchemy' has no attribute '{name}'")
    return getattr(import_module(f"alchemy.{_HOME[name]}"), name)
