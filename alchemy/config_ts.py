"""The block `explore: - ts:` of the campaign file: transition states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from alchemy.config_fields import Block, Count, FilePath, Whole, wrong
from alchemy.quantities import Energy, Force, Length

SOURCES = ("network", "reactant", "trajectory", "guess")


class ExploreTs(Block):
    """Saddles of reactions, searched with the committee, labelled until both agree."""

    network: FilePath | None = Field(
        default=None, description="YAML file with 'reactions:', each {name, reactant, product, guess}"
    )
    reactant: FilePath | None = Field(default=None, description="Structure file of one end")
    product: FilePath | None = Field(
        default=None, description="Structure file of the other end, same atoms in the same order"
    )
    guess: FilePath | None = Field(
        default=None, description="Structure near the saddle; alone, the search begins at it"
    )
    trajectory: FilePath | None = Field(
        default=None, description="Frames of dynamics; every lasting change of bonds is a reaction"
    )
    method: Literal["neb", "neb+dimer", "neb+sella", "dimer", "sella"] = Field(
        default="neb+dimer", description="How the saddle is reached; sella is an extra to install"
    )
    images: Count = Field(default=7, description="Images between the ends, evaluated as one batch")
    fmax_eV_per_A: Force = Field(default=0.02, alias="fmax", description="Largest force at a saddle")
    along_mode_A: Length = Field(
        default=0.1, alias="along_mode", description="How far beside the saddle structures are offered"
    )
    fixed: tuple[Whole, ...] = Field(
        default=(), description="Atoms that do not move, counted from 0, such as a slab's lowest layer"
    )
    agree_energy_eV: Annotated[Energy, Field(gt=0)] = Field(
        default=0.03, alias="agree_energy", description="Done when model and label differ by less"
    )
    agree_force_eV_per_A: Force = Field(
        default=0.05, alias="agree_force", description="And the labelled forces at the saddle are below"
    )
    max_labels: Count = Field(
        default=12, description="Labels of the target level for a reaction; then it is left as it is"
    )

    model_config = ConfigDict(json_schema_extra=lambda schema: _source_schema(schema))

    @model_validator(mode="before")
    @classmethod
    def _has_one_source(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        found = [key for key in SOURCES if data.get(key) is not None]
        if "reactant" in found and "guess" in found:
            found.remove("guess")
        if len(found) != 1:
            said = " and ".join(found) or "none"
            raise wrong(
                f"found {said} of network, reactant (with product), trajectory and guess; give one, "
                "and another '- ts:' item for more"
            )
        if data.get("product") is not None and data.get("reactant") is None:
            raise wrong("found 'product' without 'reactant'; give both ends")
        return data


def _source_schema(schema: dict[str, Any]) -> None:
    for name in (*SOURCES, "product"):  # null is for Python only
        field = schema["properties"][name]
        schema["properties"][name] = {**field["anyOf"][0], "description": field["description"]}
