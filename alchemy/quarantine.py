"""Labels that were good and are doubted: hidden from training, kept with their numbers and a reason.

A doubted label is withdrawn and written again under its reason in one commit. Its numbers stay readable, it
is not computed again, and a later 'ok' row of the same key, `release`, makes it count as before.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

from .errors import InputError
from .store import FailureRow, LabelRow, RetractionRow, Snapshot, Store

STAGE = "trust"  # of the failures that say what was found


def quarantine(store: Store, doubts: Mapping[str, tuple[str, str]]) -> list[str]:
    """Set good labels aside, by key: (reason word, message); the keys that were, come back.

    Raises:
        InputError: 'ok' as a reason.
        StoreError: the disk refuses; nothing is changed then.
    """
    if any(reason in ("", "ok") for reason, _ in doubts.values()):
        raise InputError("quarantine: a reason is a word of its own, not 'ok'")
    rows = store.snapshot().labels(keys=list(doubts)) if doubts else []
    if not rows:
        return []
    now = time.time()
    store.append(
        retractions=[RetractionRow(row.key, doubts[row.key][0], now) for row in rows],
        labels=[replace(row, status=doubts[row.key][0]) for row in rows],
        failures=[
            FailureRow(row.structure_uid, STAGE, row.fidelity, *doubts[row.key], row.attempt, now)
            for row in rows
        ],
    )
    return [row.key for row in rows]


def release(store: Store, keys: Iterable[str]) -> list[str]:
    """Make doubted labels count again; those that are not in quarantine are left as they are."""
    wanted = set(keys)
    rows = [row for row in quarantined(store.snapshot()) if row.key in wanted]
    store.append(labels=[replace(row, status="ok") for row in rows])
    return [row.key for row in rows]


def quarantined(snapshot: Snapshot) -> list[LabelRow]:
    """Doubted labels with their numbers; the status is the reason."""
    withdrawn = sorted(set(snapshot.retracted()))
    rows = snapshot.labels(status=None, keys=withdrawn) if withdrawn else []
    return [row for row in rows if row.status != "ok" and _has_numbers(row)]


def _has_numbers(row: LabelRow) -> bool:
    return row.energy_eV is not None or row.forces_eV_per_A is not None
