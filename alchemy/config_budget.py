"""The `budget` key of the stop block: what a campaign may spend at most, in time and in bytes.

Each description is one line, because `alchemy check --explain` prints it beside its key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

from pydantic import ConfigDict, Field, model_validator

from alchemy.config_fields import Block, wrong
from alchemy.quantities import WALL_TIME, Kind, QuantityError, WallTime
from tace.wording import describe

SIZES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*(B|kB|MB|GB|TB)\s*")


@dataclass(frozen=True)
class Size(Kind):
    """Bytes written with a decimal unit, such as "2 TB"."""

    @property
    def example(self) -> str:
        return "2 TB"

    def parse(self, value: object) -> float:
        """Whole bytes. Raises QuantityError."""
        found = _SIZE.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            raise QuantityError(f'found {describe(value)}; write {self.noun} such as "500 GB" or "2 TB"')
        size = int(Decimal(found[1]) * SIZES[found[2]])
        if size < 1:
            raise QuantityError(f'found "{value}"; must be positive, such as "{self.example}"')
        return float(size)

    def text(self, value: float) -> str:
        """The size as a user would write it; `parse` returns the same number."""
        unit = next(u for u in reversed(SIZES) if int(value) % SIZES[u] == 0)
        return f"{int(value) // SIZES[unit]} {unit}"


SIZE = Size("a size", "B", tuple(reversed(SIZES)))


def _short(schema: dict[str, Any]) -> None:
    """`budget: 2 min` is allowed beside the mapping."""
    mapping = {key: schema.pop(key) for key in ("properties", "additionalProperties", "type")}
    time = {"type": "string", "examples": ["2 min"]}
    schema["anyOf"] = [mapping, time]


class Budget(Block):
    """What the campaign may spend; it ends before what would not fit, and goes on when given more."""

    model_config = ConfigDict(json_schema_extra=_short)

    cpu_s: WallTime | None = Field(
        default=None, alias="cpu", description="CPU time of labels, training and exploring, on all cores"
    )
    gpu_s: WallTime | None = Field(default=None, alias="gpu", description="Time of GPUs in use")
    wall_s: WallTime | None = Field(
        default=None, alias="wall", description="Time for which 'alchemy run' runs, pauses left out"
    )
    disk_bytes: Annotated[float, SIZE] | None = Field(
        default=None, alias="disk", description="Size of the campaign's folder, such as 2 TB"
    )

    @model_validator(mode="before")
    @classmethod
    def _a_time_is_wall_time(cls, data: object) -> object:
        if isinstance(data, str):
            try:
                WALL_TIME.parse(data)
            except QuantityError as error:
                raise wrong(f"{error}; or a mapping of cpu, gpu, wall and disk") from None
            return {"wall": data}
        if not isinstance(data, Mapping):
            raise wrong(f'found {describe(data)}; write "2 min", or {{cpu: 200 h, wall: 12 h, disk: 2 TB}}')
        return data


LIMITS = ("cpu_s", "gpu_s", "wall_s", "disk_bytes")


def limits_of(budget: Budget | None) -> dict[str, float]:
    """The limits that are set, by attribute."""
    if budget is None:
        return {}
    return {name: value for name in LIMITS if (value := getattr(budget, name)) is not None}


def shown(name: str, value: float) -> str:
    """An amount of a limit for people: "3.25 h" of time, "1.2 GB" of disk."""
    if name == "disk_bytes":
        unit = next(u for u in reversed(SIZES) if value >= SIZES[u] or u == "B")
        return f"{value / SIZES[unit]:.3g} {unit}"
    for unit, seconds in (("h", 3600.0), ("min", 60.0)):
        if value >= seconds:
            return f"{value / seconds:.3g} {unit}"
    return f"{value:.3g} s"
