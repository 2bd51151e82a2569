"""Tasks of the explorers that go downhill: random structures and basin hopping."""

from __future__ import annotations

from typing import Any

from ..config_blocks import StopMd
from ..config_samples import ExploreHopping
from ..config_structures import ExploreReico

PER_TASK = 200  # random structures of one task, so that workers share them
BORN_FACTOR = 0.5  # of covalent radii; random structures are born closer than walks may get
BORN_FORCE_eV_per_A = 200.0  # see `alchemy_policies.reico`


def downhill_conditions(block: ExploreReico | ExploreHopping, stop: StopMd) -> list[dict[str, Any]]:
    """Options of the explorer, one entry per task."""
    options = {
        **block.options(),
        "relax_steps": block.relax_steps,
        "abort_above_eV_per_A": block.abort_above_eV_per_A,
        "batch_atoms": block.batch_atoms,
    }
    guards = {"pair_factor": min(BORN_FACTOR, stop.guards.min_distance_factor)}
    if isinstance(block, ExploreHopping):
        return [{**options, "guards": {**guards, "max_force_eV_per_A": stop.guards.max_force_eV_per_A}}]
    # forces on what is born may exceed what walks are allowed
    options["guards"] = {
        **guards, "max_force_eV_per_A": max(BORN_FORCE_eV_per_A, stop.guards.max_force_eV_per_A)
    }  # fmt: skip
    options |= {"frames": block.frames, "birth": block.birth}
    starts = range(0, block.count, PER_TASK)
    return [{**options, "count": min(PER_TASK, block.count - start)} for start in starts]
