"""Hyperparameters of a model, and the presets.

A preset fixes what the function class is; elements, fidelities, cutoff and the mean number of neighbours
come from the data.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from .errors import TaceError


@dataclass(frozen=True)
class TaceConfig:
    """Everything that is needed to rebuild a model; plain numbers and strings only."""

    elements: tuple[int, ...]  # atomic numbers, ascending
    fidelities: tuple[str, ...] = ("default",)
    cutoff_A: float = 5.0
    n_layers: int = 2
    channels: int = 64
    l_max: int = 3  # rank of edge attributes and of A
    L_max: int = 2  # rank of the features passed between layers
    correlation: int = 3
    paths: str = "minimal"  # or 'official'
    coupling_norm: str = "cartesian"  # or 'unit'
    n_radial: int = 8
    envelope_p: int = 5
    radial_hidden: tuple[int, ...] = (64, 64, 64)
    readout_hidden: int = 16
    avg_neighbors: float = 1.0  # mean number of directed edges per atom in the training set

    def __post_init__(self) -> None:
        checks = {
            "elements": len(self.elements) > 0 and list(self.elements) == sorted(set(self.elements)),
            "fidelities": len(self.fidelities) > 0
            and len(set(self.fidelities)) == len(self.fidelities),
            "cutoff_A": self.cutoff_A > 0,
            "n_layers": self.n_layers >= 1,
            "channels": self.channels >= 1,
            "l_max": 0 <= self.l_max <= 6,
            "L_max": 0 <= self.L_max <= self.l_max,
            "correlation": 1 <= self.correlation <= 4,
            "paths": self.paths in ("minimal", "official"),
            "coupling_norm": self.coupling_norm in ("cartesian", "unit"),
            "n_radial": self.n_radial >= 1,
            "envelope_p": self.envelope_p >= 3,
            "readout_hidden": self.readout_hidden >= 1,
            "avg_neighbors": self.avg_neighbors > 0,
        }
        for name, good in checks.items():
            if not good:
                raise TaceError(f"model setting {name} = {getattr(self, name)!r} is not possible")

    def to_json(self) -> dict[str, Any]:
        """Lists instead of tuples, so that it survives JSON and torch.load(weights_only=True)."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> TaceConfig:
        """Inverse of `to_json`; an unknown key is refused by name."""
        known = {f.name for f in fields(cls)}
        for key in document:
            if key not in known:
                raise TaceError(f"unknown model setting '{key}'{_hint(key, known)}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in document.items()}
        return cls(**values)


PRESETS: dict[str, dict[str, Any]] = {
    "nano": {"channels": 16, "l_max": 2, "L_max": 1, "correlation": 3, "radial_hidden": (32, 32)},
    "small": {"channels": 32, "l_max": 3, "L_max": 1, "correlation": 3, "radial_hidden": (64, 64)},
    "medium": {"channels": 64, "l_max": 3, "L_max": 1, "correlation": 3, "radial_hidden": (64, 64, 64)},
    "large": {"channels": 128, "l_max": 3, "L_max": 2, "correlation": 3, "radial_hidden": (64, 64, 64)},
}


def preset(name: str, **settings: Any) -> TaceConfig:
    """A preset with the data's settings (elements, fidelities, cutoff_A, avg_neighbors) or overrides.

    Raises:
        TaceError: unknown preset or setting, with a suggestion.
    """
    if name not in PRESETS:
        raise TaceError(f"unknown preset '{name}'{_hint(name, PRESETS)}")
    return TaceConfig.from_json({**PRESETS[name], **settings})


def _hint(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(sorted(known))}"
