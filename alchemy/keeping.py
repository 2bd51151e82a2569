"""`alchemy gc`: what of a campaign may go by its `keep` block. Labels never do.

A label's directory goes only when the store has the label; of a round only what is made again from the
store and the models, or what no later round reads.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .config import Campaign
from .costs import disk_bytes
from .lease import Lease
from .records import FILE_NAME, LabelRecord
from .state import Home, RoundState
from .store import Snapshot, Store

LEAST_MODELS = 2  # the next round starts from the weights of the last
TEMPORARY_AGE_S = 3600.0


@dataclass(frozen=True)
class Waste:
    """A file or folder that may go, and why."""

    path: Path
    why: str
    bytes: float


def waste(campaign: Campaign, home: Home, *, now: float | None = None) -> list[Waste]:
    """Everything that may go, nothing of which is a label that the store does not have."""
    now = time.time() if now is None else now
    folder = home.store.with_name(home.store.name + ".d")
    snapshot = Store(home.store).snapshot() if folder.is_dir() else None
    found = [*_rounds(campaign, home), *_aside(campaign, home, now), *_temporary(home, now)]
    if snapshot is not None:
        found += _labels(campaign, home, snapshot, now)
    return [Waste(path, why, _size(path)) for path, why in dict(found).items()]


def clear(campaign: Campaign, home: Home) -> list[Waste]:
    """Remove it; no controller may run meanwhile. What went."""
    with Lease(home.lease):
        found = waste(campaign, home)
        for one in found:
            if one.path.is_dir():
                shutil.rmtree(one.path, ignore_errors=True)
            else:
                one.path.unlink(missing_ok=True)
        return found


def _size(path: Path) -> float:
    return disk_bytes(path) if path.is_dir() else float(path.stat().st_size)


def _rounds(campaign: Campaign, home: Home) -> Iterator[tuple[Path, str]]:
    keep, rounds = campaign.keep, home.rounds()
    trained = [n for n in rounds if RoundState(home, n).outputs("train") is not None]
    newest = len(trained) if keep.models == "all" else max(LEAST_MODELS, keep.models)
    for number in trained[: max(0, len(trained) - newest)]:
        for path in sorted(home.models(number).glob("*.pt")):
            yield path, f"committee of round {number}, keep.models: {keep.models}"
    for number in rounds:
        state = RoundState(home, number)
        if state.outputs("assess") is None and state.outputs("finish") is None:
            continue  # its files may still be read
        if not keep.trajectories:
            for path in sorted(home.round(number).glob("explore-*.json")):
                yield path, f"exploration of round {number}, keep.trajectories: false"
        if not keep.predictions:
            for path in sorted(home.round(number).glob("score-*.npz")):
                yield path, f"predictions of round {number}, keep.predictions: false"


def _labels(campaign: Campaign, home: Home, snapshot: Snapshot, now: float) -> Iterator[tuple[Path, str]]:
    """Directories of labels that are in the store with the same attempt, as `keep` says."""
    if not home.labels.is_dir():
        return
    keep = campaign.keep
    states = {row.key: (row.status, row.attempt) for row in snapshot.labels(status=None)}
    for path in sorted(home.labels.iterdir()):
        known = states.get(path.name)
        if known is None or not path.is_dir() or not _is_over(path, known[1]):
            continue
        kind = "good" if known[0] == "ok" else "failed"
        old = keep.raw_for_s is not None and now - path.stat().st_mtime > keep.raw_for_s
        by_rule = keep.label_directories == "none" or (keep.label_directories == "failed" and kind == "good")
        if by_rule:
            yield path, f"folder of a {kind} label, keep.label_directories: {keep.label_directories}"
        elif old:
            yield path, f"folder of a {kind} label, older than keep.raw_for"


def _is_over(path: Path, attempt: int) -> bool:
    """Whether nothing in it is newer than the store: no attempt that was cut off."""
    if (path / FILE_NAME).exists():
        return LabelRecord.read(path).attempt <= attempt
    return not any(entry.is_file() for entry in path.iterdir())


def _aside(campaign: Campaign, home: Home, now: float) -> Iterator[tuple[Path, str]]:
    """What `alchemy redo` moved away, once it is old enough."""
    age = campaign.keep.raw_for_s
    if age is None or not (home.path / "aside").is_dir():
        return
    for path in sorted((home.path / "aside").iterdir()):
        if now - path.stat().st_mtime > age:
            yield path, "moved aside by redo, older than keep.raw_for"


def _temporary(home: Home, now: float) -> Iterator[tuple[Path, str]]:
    """Halves of files whose writer was killed."""
    for folder in ("rounds", "labels"):
        hidden = [*(home.path / folder).rglob(".*"), *(home.path / folder).glob("*.lock")]
        for path in sorted(hidden):
            half = path.suffix in (".tmp", ".lock") or path.suffix[1:].isdigit()
            if path.is_file() and half and now - path.stat().st_mtime > TEMPORARY_AGE_S:
                yield path, "half written by a process that was killed"
