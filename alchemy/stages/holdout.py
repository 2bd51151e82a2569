"""The leak-proof part of the start structures that a campaign's `holdout` block keeps for testing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from alchemy_policies.base import PolicyError
from alchemy_policies.splits import fingerprints, group_by_composition, leak_proof_split
from ase import Atoms

from ..datasets import TEST, TRAIN
from ..errors import StructureError
from .context import Context


def hold_out(
    context: Context,
    structures: Mapping[str, Atoms],
    splits: Mapping[str, str],
    *,
    groups: Mapping[str, Mapping[str, str]],
    wanted: Sequence[tuple[str, str]],
) -> dict[str, str]:
    """Start structures that move to the test set, by uid: the held-out groups, and copies of test structures.

    Raises:
        StructureError: the structures are one group, so that every division would leak.
    """
    block = context.campaign.holdout
    assert block is not None
    uids = [uid for uid in structures if splits[uid] == TRAIN]
    given = [uid for uid in structures if splits[uid] == TEST]
    rows = fingerprints([structures[uid] for uid in (*uids, *given)])
    own, other = rows[: len(uids)], rows[len(uids) :]
    moved = set()
    if given:
        gaps = np.array([np.linalg.norm(other - row, axis=1).min() for row in own])
        moved = {uid for uid, gap in zip(uids, gaps, strict=True) if gap <= block.near}
    targets = {uid for uid, fidelity in wanted if fidelity == context.target}
    try:
        held = leak_proof_split(
            _labels(block.by, uids, structures, groups),
            fraction=block.fraction,
            rng=np.random.default_rng(context.seed(0, "holdout")),
            features=own,
            radius=block.near,
            weights=np.array([uid in targets for uid in uids], dtype=float),
        )
    except PolicyError as error:
        raise StructureError(f"holdout: by {block.by}, {error}") from error
    moved |= {uid for uid, out in zip(uids, held, strict=True) if out}
    return dict.fromkeys(sorted(moved), TEST)


def _labels(
    by: str, uids: Sequence[str], structures: Mapping[str, Atoms], groups: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """What stays together; a frame without the asked-for mark goes by its composition, or stands alone."""
    if by == "frame":
        return list(uids)
    formula = group_by_composition([structures[uid] for uid in uids])
    if by == "composition":
        return formula
    if by == "trajectory":
        return [groups.get(uid, {}).get("trajectory", uid) for uid in uids]
    # both ends and the path of a reaction have one composition, so that this cannot part them
    return [groups.get(uid, {}).get("reaction", name) for uid, name in zip(uids, formula, strict=True)]
