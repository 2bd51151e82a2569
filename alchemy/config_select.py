"""The blocks of the campaign file that decide: what is labelled, what is held out, when it is done.

Each description is one line, because `alchemy check --explain` prints it beside its key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from alchemy.config_budget import Budget
from alchemy.config_fields import (
    Block,
    Count,
    Fraction,
    NotNegative,
    PerFidelity,
    Positive,
    installed,
    plugin_name,
    wrong,
)
from alchemy.quantities import Energy, Force, WallTime
from tace.documents import Loc, Problem
from tace.wording import describe

_SHARED = ("random", "dedup", "max_force_eV_per_A", "quota", "coverage")
READS: dict[str, tuple[str, ...]] = {
    "calibrated": ("threshold_eV_per_A", *_SHARED, "energy_spread"),
    "max_dist": ("threshold_eV_per_A", *_SHARED, "energy_spread", "error_power"),
    "lcmd": ("threshold_eV_per_A", *_SHARED, "energy_spread", "error_power"),
    "farthest_point": _SHARED,
    "dpgen": ("threshold_eV_per_A", "high_eV_per_A", "max_force_eV_per_A"),
    "first_come": ("threshold_eV_per_A", "max_force_eV_per_A"),
    "random": (),
}
"""Which fields our own selectors look at; another package's gets those that its class has, and `options`."""
OPTIONS_OF_BLOCK = tuple(dict.fromkeys(name for names in READS.values() for name in names))
_OF_EVERY_METHOD = ("method", "per_round", "fidelity_choice", "cost_per_round_s", "options")


def _open_schema(schema: dict[str, Any]) -> None:
    schema["properties"].pop("options")
    schema["additionalProperties"] = True


class Select(Block):
    """Which candidates are worth a label."""

    model_config = ConfigDict(json_schema_extra=_open_schema)

    method: Annotated[str, plugin_name("selectors", "selector")] = Field(
        default="calibrated", description="Selector; 'alchemy policies' lists the installed ones"
    )
    per_round: PerFidelity = Field(
        description="New labels per round and fidelity; one number counts for the target"
    )
    fidelity_choice: Annotated[str, plugin_name("fidelity_choices", "choice of fidelity")] = Field(
        default="fixed", description="fixed: per_round; value_per_cost: what teaches most per CPU second"
    )
    cost_per_round_s: WallTime | None = Field(
        default=None,
        alias="cost_per_round",
        description="CPU time that a round's labels may cost; null: what per_round costs",
    )
    random: Fraction = Field(
        default=0.1, description="Share drawn blindly: it keeps the error estimate honest"
    )
    threshold_eV_per_A: Force = Field(
        default=0.05, alias="threshold", description="Frames with less expected error are skipped"
    )
    high_eV_per_A: Force = Field(
        default=0.2, alias="high", description="Upper end of dpgen's window of model deviations"
    )
    dedup: NotNegative = Field(
        default=0.25,
        description="Frames nearer than this share of a typical distance are the same",
    )
    max_force_eV_per_A: Force = Field(
        default=50.0, alias="max_force", description="Frames with a larger force are not labelled"
    )
    quota: dict[str, Fraction] = Field(
        default={"failed": 0.1},
        description="Largest share of a round by source (md) or reason (failed), such as {md: 0.5}",
    )
    coverage: Fraction = Field(
        default=0.0, description="Share for atoms in surroundings that training hardly has"
    )
    energy_spread: Positive | None = Field(
        default=10.0,
        description="Sure forces, but energies that spread this many times as on training; null: no veto",
    )
    error_power: NotNegative = Field(
        default=0.0, description="max_dist, lcmd: distances count times expected error to this power"
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Every other key; another package's selector checks them"
    )

    @model_validator(mode="before")
    @classmethod
    def _collect_options(cls, data: object) -> object:
        if not isinstance(data, Mapping) or data.get("method", "calibrated") in READS:
            return data
        known = {field.alias or name for name, field in cls.model_fields.items()} - {"options"}
        own = {key: data[key] for key in data if key in known}
        return {**own, "options": {key: data[key] for key in data if key not in known}}


def without_effect(select: Select) -> Iterator[Problem]:
    """Keys that were set and that the method does not look at."""
    if select.method not in READS:
        return
    for name, field in Select.model_fields.items():
        read = name in (*READS[select.method], *_OF_EVERY_METHOD)
        if read or name not in select.model_fields_set or getattr(select, name) == field.default:
            continue
        users = ", ".join(method for method, names in READS.items() if name in names)
        loc: Loc = ("select", field.alias or name)
        yield Problem(loc, f"has no effect: method {select.method} does not look at it, only {users}")


class Holdout(Block):
    """A part of the start structures that is never trained on, without a copy on the other side."""

    fraction: Annotated[float, Field(strict=True, gt=0, lt=1)] = Field(
        default=0.1, description="Share of the structures that have a label of the target"
    )
    by: Literal["trajectory", "composition", "reaction", "frame"] = Field(
        default="trajectory", description="What stays together: trajectory, composition, reaction, frame"
    )
    near: NotNegative = Field(
        default=0.02, description="Structures whose fingerprints are nearer than this stay together too"
    )


def _open_stop_schema(schema: dict[str, Any]) -> None:
    schema["properties"].pop("plugins")
    schema["additionalProperties"] = {"type": "object"}


class Stop(Block):
    """The campaign ends when all goals are met that are set, or as soon as one limit is.

    Goals: force_rmse, element_rmse, coverage, barrier_mae, candidate_fraction. Limits: rounds, labels,
    wall, cost, stalled, and rules of other packages by their names; a budget ends it between labels, the
    others between rounds.
    """

    model_config = ConfigDict(json_schema_extra=_open_stop_schema)

    force_rmse_eV_per_A: Force | None = Field(
        default=None, alias="force_rmse", description="Error on fresh random labels of the target"
    )
    rounds: Count = Field(default=10, description="Rounds of explore, select, label and train")
    labels: PerFidelity | None = Field(
        default=None, description="Labels in all, per fidelity; one number counts for the target"
    )
    wall_s: WallTime | None = Field(
        default=None, alias="wall", description="Time since the first start; checked between rounds"
    )
    patience: Count = Field(
        default=1, description="Rounds in a row for which goals must have been met"
    )
    element_rmse_eV_per_A: Force | None = Field(
        default=None, alias="element_rmse", description="The same for the element with the largest error"
    )
    coverage: Annotated[float, Field(strict=True, gt=0, lt=0.9)] | None = Field(
        default=None, description="How far from 90 % the coverage of the 90 % bounds may be, such as 0.05"
    )
    barrier_mae_eV: Annotated[Energy, Field(gt=0)] | None = Field(
        default=None, alias="barrier_mae", description="Mean error of the barriers of probe reactions"
    )
    candidate_fraction: Annotated[float, Field(strict=True, gt=0, le=1)] | None = Field(
        default=None, description="Share of candidates above select.threshold that is few enough"
    )
    cost_s: WallTime | None = Field(
        default=None, alias="cost", description="CPU time of all labels; checked between rounds"
    )
    stalled: Count | None = Field(
        default=None, description="Rounds without gain after which it ends: stalled or model-limited"
    )
    gain: Positive = Field(
        default=0.05, description="Relative fall of the error that counts as a gain for stalled"
    )
    budget: Budget | None = Field(
        default=None, description="What it may spend: 2 min, or {cpu: 200 h, gpu: 20 h, disk: 2 TB}"
    )
    plugins: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Stop rules of other packages, which check their options"
    )

    @model_validator(mode="before")
    @classmethod
    def _collect_plugins(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        ours = {field.alias or name for name, field in cls.model_fields.items()} | {"model_limited"}
        others = {key: data[key] for key in data if key not in ours and key in installed("stops")}
        for name, options in others.items():
            if options is not None and not isinstance(options, Mapping):
                raise wrong(f"{name}: found {describe(options)}; write its options as {{option: value}}")
        if not others:
            return data
        own = {key: data[key] for key in data if key not in others}
        return {**own, "plugins": {name: dict(options or {}) for name, options in others.items()}}
