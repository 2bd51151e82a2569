"""What an item of a campaign will make, made in a second and without a labeler: for `alchemy check`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from alchemy_policies.base import PolicyError
from alchemy_policies.reico import Reico
from ase import Atoms

from ..errors import StructureError
from ..generate import read_structures
from .build import Material, build

if TYPE_CHECKING:
    from alchemy_policies.calculators import CalculatorSessions

    from ..config import Campaign
    from ..config_samples import Sample
    from ..config_structures import ExploreReico

FEW = 4  # random structures or copies, and conformers of each molecule


def preview(campaign: Campaign, sample: Sample) -> tuple[list[Atoms], dict[str, Any]]:
    """Structures of an item, few of those that are random, and their summary; none where a labeler is needed.

    Raises:
        AlchemyError: what `build` would say in the campaign.
    """
    source = sample.source.model_dump(mode="json", by_alias=False)
    if sample.kind == "basin_hopping":
        return [], {}
    if sample.kind == "reico":  # geometry alone; a slab under it is looked at too
        source["relax_with"] = None
    for key in ("count", "conformers"):
        if key in source:
            source[key] = min(source[key], FEW)

    def read(path: str) -> list[Atoms]:
        return read_structures(campaign.resolve(path), ":", campaign.elements)

    def forces(fidelity: str) -> CalculatorSessions:
        raise AssertionError(f"a preview has no labeler: {fidelity}")

    material = Material(source, np.random.default_rng(0), read, forces)
    frames = build(sample.kind, material, campaign.elements)
    return frames, {**summary(frames), "preview": bool({"count", "conformers"} & source.keys())}


def look_for_slabs(campaign: Campaign, block: ExploreReico) -> None:
    """Make two of the random structures that lie on a file's slabs.

    Raises:
        StructureError: nothing in the file is a slab.
    """
    if block.structures is None:
        return
    slabs = read_structures(campaign.resolve(block.structures), ":", campaign.elements)
    try:
        Reico(**{**block.options(), "count": 2}).make(slabs, np.random.default_rng(0))
    except PolicyError as error:
        raise StructureError(f"reico.structures: {block.structures}: {error}") from None


def summary(frames: Sequence[Atoms]) -> dict[str, Any]:
    """One entry of the table of `alchemy check`; JSON."""
    return {
        "frames": len(frames),
        "atoms": [min(map(len, frames)), max(map(len, frames))],
        "elements": sorted({s for a in frames for s in a.get_chemical_symbols()}),
        "periodic": any(bool(a.pbc.any()) for a in frames),
    }
