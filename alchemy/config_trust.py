"""The blocks of the campaign file that say when a label is believed: `trust`, and `gate` of a fidelity.

Each description is one line, because `alchemy check --explain` prints it beside its key.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from alchemy.config_fields import Block, Count, Flag, Positive
from alchemy.quantities import Energy, Force, Length


class GateLimits(Block):
    """Limits beyond which a label of this level fails; null: the labeler's own, or not checked."""

    net_force_eV_per_A_per_atom: Force | None = Field(
        default=None, alias="net_force", description="Sum of forces per atom; null: the labeler's own limit"
    )
    max_force_eV_per_A: Force | None = Field(
        default=100.0, alias="max_force", description="Largest force of an atom; null: any"
    )
    max_binding_eV_per_atom: Annotated[Energy, Field(gt=0)] | None = Field(
        default=25.0, alias="max_binding", description="Energy from isolated atoms, per atom; null: any"
    )
    min_distance_ratio: Positive = Field(
        default=0.5, alias="min_distance", description="Shortest distance, in sums of covalent radii"
    )

    def limits(self) -> dict[str, Any]:
        """The keywords of `alchemy.gate.Gate`."""
        return self.model_dump(by_alias=False)


class Trust(Block):
    """Checks of labels by further labels of the same level, and by what is known around them."""

    force_every: Count | None = Field(
        default=50, description="Force of one label in so many against its energy, by 2 more; null: none"
    )
    force_step_A: Length = Field(
        default=0.01, alias="force_step", description="Length of the displacement that this takes"
    )
    force_tolerance_eV_per_A: Force | None = Field(
        default=None,
        alias="force_tolerance",
        description="By how much the two may differ; null: 20 meV/A, or the labeler's net force if more",
    )
    repeat_every: Count | None = Field(
        default=100, description="One label in so many is computed again: the noise of labels; null: none"
    )
    suspect: Positive | None = Field(
        default=8.0, description="A label this many expected errors off is computed again; null: none is"
    )
    neighbours: Flag = Field(
        default=True, description="Energies of near frames against their forces, which costs no label"
    )
