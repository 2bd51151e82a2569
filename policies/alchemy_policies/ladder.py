"""A maturity ladder: hotter, denser and longer dynamics open only when what is easier was survived.

A *rung* is a temperature and a pressure, with lengths of walks that it climbs one after another. The first
temperature at the first pressure is open. A rung passes a length when a share of the walkers of one round
reach its end; then its next length is tried, and the next temperature (at the same pressure) and the
next pressure (at the same temperature) open where the rungs on their other side have passed theirs too.
Everything is derived from what earlier rounds recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .base import PolicyError, WalkerReport


@dataclass(frozen=True)
class Climb:
    """Walks of one rung in one round."""

    temperature_K: float
    pressure_eV_per_A3: float
    time_fs: float
    walkers: int = 0
    survived: int = 0  # reached the end

    def to_json(self) -> dict[str, Any]:
        """For the round's record."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Climb:
        """What `to_json` wrote."""
        return cls(**document)

    def after(self, reports: Sequence[WalkerReport] | Sequence[Mapping[str, Any]]) -> Climb:
        """With what became of its walkers."""
        ends = [r["outcome"] if isinstance(r, Mapping) else r.outcome for r in reports]
        return Climb(
            self.temperature_K, self.pressure_eV_per_A3, self.time_fs, len(ends), ends.count("finished")
        )


@dataclass(frozen=True)
class Ladder:
    """Rungs in the order of `temperatures_K` and `pressures_eV_per_A3`, lengths in that of `times_fs`."""

    temperatures_K: tuple[float, ...]
    times_fs: tuple[float, ...]
    pressures_eV_per_A3: tuple[float, ...] = (0.0,)
    survive: float = 0.75  # share of walkers that must reach the end

    def __post_init__(self) -> None:
        for name in ("temperatures_K", "times_fs", "pressures_eV_per_A3"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise PolicyError(f"{name} of a ladder are one or more different values, got {values}")
        if list(self.times_fs) != sorted(self.times_fs):
            raise PolicyError(f"a ladder climbs from short to long walks, got {self.times_fs} fs")
        if not 0 < self.survive <= 1:
            raise PolicyError(f"survive is {self.survive}, a share of the walkers above 0 and up to 1")

    def open(self, past: Sequence[Climb]) -> tuple[Climb, ...]:
        """What to walk now: every open rung at the first length that it has not passed, else its last."""
        found = []
        for i, temperature in enumerate(self.temperatures_K):
            for j, pressure in enumerate(self.pressures_eV_per_A3):
                before = [(i - 1, j)] * (i > 0) + [(i, j - 1)] * (j > 0)
                if all(self._passed(past, *rung) > 0 for rung in before):
                    level = min(self._passed(past, i, j), len(self.times_fs) - 1)
                    found.append(Climb(temperature, pressure, self.times_fs[level]))
        return tuple(found)

    def left(self, past: Sequence[Climb]) -> tuple[str, ...]:
        """Rungs that have not passed their longest walks, in words; empty: the ladder is climbed."""
        words = []
        for i, temperature in enumerate(self.temperatures_K):
            for j, pressure in enumerate(self.pressures_eV_per_A3):
                level = self._passed(past, i, j)
                if level < len(self.times_fs):
                    where = f"{temperature:g} K" + (f", {pressure:.3g} eV/Å³" if pressure else "")
                    words.append(f"{where} at {self.times_fs[level]:g} fs")
        return tuple(words)

    def _passed(self, past: Sequence[Climb], i: int, j: int) -> int:
        """Number of lengths that a rung has survived."""
        own = [
            climb
            for climb in past
            if (climb.temperature_K, climb.pressure_eV_per_A3)
            == (self.temperatures_K[i], self.pressures_eV_per_A3[j])
        ]
        level = 0
        for time_fs in self.times_fs:
            tries = [c for c in own if c.time_fs == time_fs and c.walkers]
            if not any(c.survived >= self.survive * c.walkers for c in tries):
                break
            level += 1
        return level
