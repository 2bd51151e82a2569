"""Frames of files as the pool of a selector, scored by a committee in a folder: no campaign is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from alchemy_policies.base import Pool
from alchemy_policies.calibration import Calibration, worst_decile
from alchemy_policies.environments import count_frames, frame_environments
from ase import Atoms

from alchemy.errors import InputError
from alchemy.identity import structure_uid
from alchemy.records import read_json
from alchemy.selection import raw_deviation
from tace.committee import Committee
from tace.gradient_features import gradient_features
from tace.prediction import CommitteePrediction


def score_frames(
    frames: Sequence[Atoms],
    known: Sequence[Atoms],
    folder: Path,
    *,
    fidelity: str | None = None,
    gradients: bool = False,
) -> tuple[Pool, list[int]]:
    """The distinct frames as a pool, and which of its rows each frame is.

    Args:
        known: frames that are trained on.
        folder: of the member-*.pt files, and calibration.json where there is one.
        gradients: features are gradients of the readout.

    Raises:
        InputError: fewer than two models.
        UnknownElementError, UnknownFidelityError: see `Committee`.
    """
    paths = sorted(folder.glob("member-*.pt")) or sorted(folder.glob("*.pt"))
    if len(paths) < 2:
        raise InputError(f"{folder}: {len(paths)} model files (*.pt); a committee needs two or more")
    committee, calibration = Committee.load(paths), _calibration(folder, len(paths))
    uids = [structure_uid(atoms) for atoms in frames]
    first = {uid: n for n, uid in reversed(list(enumerate(uids)))}
    unique = sorted(first.values())
    own = [frames[n] for n in unique]
    found = committee(own, fidelity=fidelity, features=True)
    trained = committee(list(known), fidelity=fidelity, member_forces=False, features=True)

    def features(some: Sequence[Atoms], prediction: CommitteePrediction) -> np.ndarray:
        if gradients:
            return gradient_features(committee.members[0], some, fidelity=fidelity)
        assert prediction.features is not None
        if not some:
            return np.zeros((0, prediction.features.shape[1]))
        return np.stack([f.mean(0) for f in prediction.per_structure(prediction.features)])

    spreads, forces = found.per_structure(found.force_spread), found.per_structure(found.mean_forces)
    errors = [
        worst_decile(calibration.expected_error(a.numbers, s)) for a, s in zip(own, spreads, strict=True)
    ]
    pool = Pool(
        uids=tuple(uids[n] for n in unique),
        expected_error_eV_per_A=np.array(errors),
        features=features(own, found),
        sources=("file",) * len(own),
        max_force_eV_per_A=np.array([np.linalg.norm(f, axis=1).max() for f in forces]),
        train_features=features(known, trained),
        deviation_eV_per_A=np.array([raw_deviation(s.max(), len(paths)) for s in spreads]),
        steps=np.array(unique),
        environments=frame_environments(own),
        train_environments=count_frames(frame_environments(known)),
    )
    place = {uids[n]: row for row, n in enumerate(unique)}
    return pool, [place[uid] for uid in uids]


def _calibration(folder: Path, members: int) -> Calibration:
    path = folder / "calibration.json"
    return Calibration.from_json(read_json(path)) if path.exists() else Calibration.uncalibrated(members)
