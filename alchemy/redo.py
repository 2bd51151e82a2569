"""Do something again: failed labels, or a round from one of its stages on.

Nothing is deleted. Labels stay in the store, a failed one gets another attempt beside its old row; what a
round or a later one made is moved into `aside/`, where `alchemy gc` finds it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .config import Campaign
from .errors import InputError
from .executors import Interrupt, signals_caught
from .identity import label_key
from .lease import Lease
from .progress import Progress
from .records import FILE_NAME, LabelRecord, write_json_atomic
from .state import Home, RoundState
from .store import Snapshot, Store

FIRST = ("start", "label")  # of round 0
LATER = ("data", "train", "test", "explore", "score", "select", "label", "assess", "finish")
FILES = {  # what a stage leaves in the round's directory
    "start": ("train-*.json", "test-*.json"),
    "train": ("models",),
    "test": ("score-test-*.npz",),
    "explore": ("explore-*.json",),
    "score": ("score-candidates-*.npz",),
    "select": ("pool.npz", "score-train-*.npz"),
    "assess": ("calibration.npz", "score-fresh-*.npz"),
}
FACTS = {
    "test": ("test", "parity", "baselines"),
    "explore": ("explore", "reico"),
    "assess": ("fresh", "calibration", "saddles", "barriers", "cost", "stop"),
}
LOST = "worker-killed"


@dataclass(frozen=True)
class Again:
    """A label to try again."""

    key: str
    structure_uid: str
    fidelity: str
    reason: str
    attempt: int  # the next one


@dataclass
class SetBack:
    """A round that begins again at a stage: what moves aside, what stays."""

    round: int
    stage: str
    rounds: list[int] = field(default_factory=list)  # later ones, as a whole
    files: list[Path] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    labels: int = 0


def labels_again(
    snapshot: Snapshot,
    fidelities: Sequence[str],
    *,
    keys: Sequence[str] = (),
    reason: str | None = None,
) -> list[Again]:
    """Failed labels: all, those of a reason, or those whose keys begin with what is given.

    Raises:
        InputError: a key that no label has, or of a label that is good; a reason that there is not.
    """
    failed = [
        Again(row.key, row.structure_uid, row.fidelity, row.status, row.attempt + 1)
        for row in snapshot.labels(status=None)
        if row.status != "ok" and row.fidelity in fidelities
    ]
    failed += _lost(snapshot, fidelities, {one.key for one in failed})
    if reason is not None:
        known = sorted({one.reason for one in failed})
        if known and reason not in known:
            raise InputError(f"--reason {reason}: no label failed so; there are {', '.join(known)}")
        failed = [one for one in failed if one.reason == reason]
    return [_chosen(snapshot, failed, key) for key in keys] if keys else failed


def _chosen(snapshot: Snapshot, failed: Sequence[Again], key: str) -> Again:
    found = [one for one in failed if one.key.startswith(key)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"--label {key}: {len(found)} failed labels begin so; give more digits")
    if any(row.key.startswith(key) for row in snapshot.labels()):
        raise InputError(f"--label {key}: that label is good, and a good label is never computed again")
    raise InputError(f"--label {key}: no failed label has that key; 'alchemy data select' lists them")


def _lost(snapshot: Snapshot, fidelities: Sequence[str], have: set[str]) -> list[Again]:
    """Labels whose worker died each time: there is no row, only the failure; the key comes from others."""
    marks = {row.fidelity: row.fingerprint for row in snapshot.labels(status=None)}
    found: dict[str, Again] = {}
    for one in snapshot.failures():
        if one.reason == LOST and one.fidelity in fidelities and one.fidelity in marks:
            key = label_key(one.structure_uid, one.fidelity, marks[one.fidelity])
            found[key] = Again(key, one.structure_uid, one.fidelity, LOST, 1)
    known = snapshot.label_states(found)
    return [one for key, one in found.items() if key not in known and key not in have]


def run_again(
    campaign: Campaign, home: Home, chosen: Sequence[Again], *, progress: Progress
) -> dict[str, Any]:
    """Label them, with the campaign's workers. {'ok': n, 'failed': {reason: n}}"""
    from .campaign import opened
    from .records import read_json
    from .stages import label

    fidelities = read_json(home.facts)["used_fidelities"]
    interrupt = Interrupt()
    with (
        Lease(home.lease),
        signals_caught(interrupt),
        opened(campaign, home, fidelities, interrupt, progress=progress) as context,
    ):
        other = [a for a in chosen if a.key != _key(a, context.fingerprints)]
        if other:
            raise InputError(
                f"fidelity '{other[0].fidelity}' now means other physics than the label {other[0].key[:8]}; "
                "labels of the new level are made by 'alchemy run' under a new name"
            )
        attempts = {a.key: max(a.attempt, 1 + _on_disk(home, a.key)) for a in chosen}
        pairs = [(a.structure_uid, a.fidelity) for a in chosen]
        label.label(context, pairs, what="labels again", attempts=attempts)
        for number in home.rounds():
            label.recount(context, RoundState(home, number))
        return label.label_facts(context, pairs)


def _key(one: Again, fingerprints: dict[str, str]) -> str:
    return label_key(one.structure_uid, one.fidelity, fingerprints[one.fidelity])


def _on_disk(home: Home, key: str) -> int:
    """The attempt of a record that never reached the store, such as one killed from outside; else 0."""
    directory = home.labels / key
    return LabelRecord.read(directory).attempt if (directory / FILE_NAME).exists() else 0


def plan_set_back(home: Home, number: int, stage: str) -> SetBack:
    """What `--round N --from STAGE` would do.

    Raises:
        InputError: no such round, or not a stage of it.
    """
    known = home.rounds()
    if number not in known:
        raise InputError(f"--round {number}: the campaign has rounds {', '.join(map(str, known)) or 'none'}")
    order = FIRST if number == 0 else LATER
    if stage not in order:
        raise InputError(f"--from {stage}: the stages of round {number} are {', '.join(order)}")
    again = order[order.index(stage) :]
    state = RoundState(home, number)
    plan = SetBack(number, stage, [n for n in known if n > number])
    plan.stages = [name for name in state.stages if name in again]
    plan.kept = [name for name in state.stages if name not in again]
    for name in again:
        for pattern in FILES.get(name, ()):
            plan.files += sorted(home.round(number).glob(pattern))
    if (home.path / "final").is_dir():
        plan.files.append(home.path / "final")
    if home.store.with_name(home.store.name + ".d").is_dir():
        plan.labels = len(Store(home.store).snapshot().labels())
    return plan


def set_back(home: Home, plan: SetBack) -> Path | None:
    """Move what `plan` says into a new folder of `aside/`; killed meanwhile, it may be given again.

    Later rounds go first and the list of finished stages before the files, so that no stage ever looks
    finished whose files are gone.
    """
    with Lease(home.lease):
        aside = home.path / "aside" / time.strftime("%Y%m%d-%H%M%S")
        for number in sorted(plan.rounds, reverse=True):
            _move(home.round(number), aside / "rounds" / f"{number:03d}")
        state = RoundState(home, plan.round)
        facts = {k: v for k, v in state.facts.items() if k not in _facts_of(plan)}
        document = {name: entry for name, entry in state.stages.items() if name not in plan.stages}
        write_json_atomic(
            home.round(plan.round) / "state.json", {"round": plan.round, "stages": document}
        )
        write_json_atomic(home.round(plan.round) / "round.json", facts)
        for path in plan.files:
            _move(path, aside / path.relative_to(home.path))
        return aside if aside.exists() else None


def _facts_of(plan: SetBack) -> set[str]:
    order = FIRST if plan.round == 0 else LATER
    again = order[order.index(plan.stage) :]
    return {"stop", *(fact for name in again for fact in FACTS.get(name, (name,)))}


def _move(path: Path, target: Path) -> None:
    if path.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
