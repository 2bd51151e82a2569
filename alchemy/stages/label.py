"""Labels: buy what is asked for, once each; every record enters the store as it comes."""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from .. import tasks
from ..batch_ledger import LOST_REASONS
from ..budget import BudgetEndedError, Cost
from ..datasets import isolated_energies, rows_of
from ..errors import EnvironmentProblemError
from ..executors import WorkerKilledError
from ..identity import label_key
from ..label_runners import LostLabelError, Requests
from ..progress import Bar
from ..records import FILE_NAME, LabelRecord, atoms_to_document
from ..state import RoundState
from ..store import FailureRow, LabelRow, Snapshot
from .context import Context

FLUSH_S = 1.0  # records wait at most this long on disk before they are in the store as well
FLUSH_RECORDS = 64
TIDY_AFTER = 64  # commits of a few labels each, after which they are merged
READ_AT_ONCE = 256
KILLED = ("program-killed",)  # by the kernel or by hand, which says nothing about the structure
MAX_ATTEMPTS = 3
PACK_S, PACK = 0.2, 32  # labels of one task: together so long, at most so many


def label(
    context: Context,
    requests: Sequence[tuple[str, str]],
    *,
    what: str,
    replica: int = 0,
    attempts: Mapping[str, int] | None = None,
    bar: Bar | None = None,
) -> None:
    """Label (uid, fidelity) pairs that the store does not have; failures become rows, not exceptions.

    Args:
        replica: above 0 a repeat of labels that are there, to see their noise.
        attempts: label keys to try again, with the number of the attempt (`alchemy redo`).
        bar: where progress is shown; None: a line of its own named `what`.

    Raises:
        BudgetEndedError: the next label does not fit; those that had begun are in the store.
        EnvironmentProblemError: a task failed for a reason that is not the structure's.
    """
    snapshot = context.store.snapshot()
    keys = {
        label_key(uid, fidelity, context.fingerprints[fidelity], replica): (uid, fidelity)
        for uid, fidelity in requests
    }
    known = snapshot.label_states(keys)
    again = attempts or {}
    asked = {key: again.get(key, 1) for key in keys if key not in known or key in again}
    if not asked:
        return
    context.home.labels.mkdir(parents=True, exist_ok=True)
    _sweep(context, (key for key, ok in known.items() if ok and key not in asked))
    with nullcontext(bar) if bar else context.progress.stage(what, len(asked)) as shown:
        purchase = _Purchase(context, snapshot, keys, shown, replica=replica)
        try:
            while asked:  # what was killed from outside is tried again, at most MAX_ATTEMPTS times
                purchase.run(asked)
                asked, purchase.killed = purchase.killed, {}
        finally:
            purchase.sink.flush()
    _sweep(context, purchase.sink.stored)


class _Purchase:
    """Labels on their way from requests, which are made when a worker has room, to the sink."""

    def __init__(
        self,
        context: Context,
        snapshot: Snapshot,
        keys: Mapping[str, tuple[str, str]],
        bar: Bar,
        *,
        replica: int,
    ) -> None:
        self.context, self.snapshot, self.keys, self.bar = context, snapshot, keys, bar
        self.replica = replica
        self.e0 = symbols_of(isolated_energies(snapshot, context.fidelities))
        self.sink = _Sink(context)
        self.sent: list[list[str]] = []
        self.attempts: Mapping[str, int] = {}
        self.killed: dict[str, int] = {}
        self.alone: set[str] = set()  # their pack took its worker down
        self.wall_s: dict[str, float] = {}  # of the last label of a fidelity

    def run(self, attempts: Mapping[str, int]) -> None:
        """One pass over the keys; `killed` holds those that need another."""
        self.sent, self.attempts = [], attempts
        ended: list[BudgetEndedError] = []
        packs = self._packs(attempts, ended)
        self.context.label_runner.run(Requests(packs, len(attempts)), on_done=self._done)
        if ended:
            raise ended[0]

    def _packs(
        self, attempts: Mapping[str, int], ended: list[BudgetEndedError]
    ) -> Iterator[dict[str, Any]]:
        """Requests; those of milliseconds some at a time, as handing out a task takes longer."""
        pack: list[dict[str, Any]] = []
        names: list[str] = []
        seconds = 0.0
        for key, document, price in self._documents(attempts):
            try:
                self.context.budget.begin(key, price)
            except BudgetEndedError as end:
                ended.append(end)
                break
            if self.context.label_runner.alone(document):
                self.sent.append([key])
                yield {"requests": [document]}
                continue
            pack.append(document)
            names.append(key)
            one_by_one = self.context.inline or key in self.alone
            seconds += math.inf if one_by_one else self.wall_s.get(document["fidelity"], math.inf)
            if seconds >= PACK_S or len(pack) >= PACK:
                self.sent.append(names)
                yield {"requests": pack}
                pack, names, seconds = [], [], 0.0
        if pack:
            self.sent.append(names)
            yield {"requests": pack}

    def _documents(self, attempts: Mapping[str, int]) -> Iterator[tuple[str, dict[str, Any], Cost]]:
        """Keys, requests and what they may cost; structures are read some at a time."""
        keys = list(attempts)
        for start in range(0, len(keys), READ_AT_ONCE):
            some = keys[start : start + READ_AT_ONCE]
            frames = self.snapshot.structures([self.keys[key][0] for key in some])
            for key, atoms in zip(some, frames, strict=True):
                fidelity = self.keys[key][1]
                chosen = self.context.campaign.fidelities[fidelity]
                document = {
                    "key": key,
                    "structure": atoms_to_document(atoms),
                    "fidelity": fidelity,
                    "labeler": chosen.labeler,
                    "options": chosen.options,
                    "base_dir": str(self.context.campaign.base_dir),
                    "root": str(self.context.home.labels),
                    "replica": self.replica,
                    "gate": chosen.gate.limits(),
                    "e0_eV": self.e0.get(fidelity) if len(atoms) > 1 else None,
                    "attempt": attempts[key],
                }
                yield key, document, self.context.budget.label_price(fidelity, len(atoms))

    def _done(self, index: int, result: dict[str, Any] | BaseException) -> None:
        keys = self.sent[index]
        self.sent[index] = []
        for key in keys:
            if not isinstance(result, BaseException):
                self._finished(key)
                continue
            self.context.budget.end(key)
            uid, fidelity = self.keys[key]
            if isinstance(result, LostLabelError):
                self.sink.lost(uid, fidelity, result.message, reason=result.reason)
                self.bar.advance()
                continue
            if not isinstance(result, WorkerKilledError):
                raise EnvironmentProblemError(
                    f"labelling {uid[:8]} with {fidelity} failed outside the calculation: {result}"
                ) from result
            if len(keys) > 1:  # one of them did it
                self.killed[key] = self.attempts[key]
                self.alone.add(key)
                continue
            self.sink.lost(uid, fidelity, str(result))
            self.bar.advance()

    def _finished(self, key: str) -> None:
        record = tasks.read_label(self.context.home.labels, key)
        self.context.budget.end(key, record)
        if record.reason in KILLED and record.attempt < MAX_ATTEMPTS:
            self.killed[key] = record.attempt + 1
            return
        self.wall_s[record.fidelity] = record.wall_s
        self.sink.take(record)
        self.bar.note(f"{record.fidelity} {'ok' if record.status == 'ok' else record.reason}")
        self.bar.advance()


class _Sink:
    """Collects records and commits them in small batches; then tidies their directories.

    A record itself stays until the last task of the batch is over: Dask runs a finished task again when
    the worker that held its result dies, and only the record keeps that from being a second calculation.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.stored: set[str] = set()
        self.records: list[LabelRecord] = []
        self.failures: list[FailureRow] = []
        self.since = time.monotonic()
        self.commits = 0

    def take(self, record: LabelRecord) -> None:
        """One finished record; commits when enough waited."""
        self.records.append(record)
        if record.status != "ok":
            self.failures.append(
                FailureRow(
                    record.structure_uid,
                    "label",
                    record.fidelity,
                    record.reason,
                    record.message,
                    record.attempt,
                    time.time(),
                )
            )
        if len(self.records) >= FLUSH_RECORDS or time.monotonic() - self.since > FLUSH_S:
            self.flush()

    def lost(self, uid: str, fidelity: str, message: str, *, reason: str = "worker-killed") -> None:
        """A label whose worker or batch job died each time: no record, only the failure."""
        self.failures.append(FailureRow(uid, "label", fidelity, reason, message, 1, time.time()))

    def flush(self) -> None:
        """Commit, then empty the directories that `keep` does not ask for, but for their records."""
        if self.records or self.failures:
            self.context.store.append(
                labels=[row_of(r) for r in self.records], failures=self.failures
            )
            self.commits += 1
            if self.commits % TIDY_AFTER == 0:
                self.context.store.tidy()
        keep = self.context.campaign.keep.label_directories
        for record in self.records:
            if keep == "none" or (keep == "failed" and record.status == "ok"):
                self.stored.add(record.key)
                _empty(self.context.home.labels / record.key)
        self.records, self.failures, self.since = [], [], time.monotonic()


def _empty(directory: Path) -> None:
    """Remove everything in a label's directory except its record."""
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != FILE_NAME:
            path.unlink(missing_ok=True)


def _sweep(context: Context, keys: Iterable[str]) -> None:
    """Remove the directories of these labels, which are good and in the store, unless all are kept."""
    if context.campaign.keep.label_directories != "all":
        for key in keys:
            shutil.rmtree(context.home.labels / key, ignore_errors=True)


def row_of(record: LabelRecord) -> LabelRow:
    """A record as a row of the store; the status of a failed one is its reason."""
    ok = record.status == "ok"
    return LabelRow(
        key=record.key,
        structure_uid=record.structure_uid,
        fidelity=record.fidelity,
        fingerprint=record.fingerprint,
        status="ok" if ok else record.reason,
        code=record.code,
        energy_eV=float(record.energy_eV) if record.energy_eV is not None else float("nan"),
        energy_kind=record.energy_kind or "total",
        forces_eV_per_A=record.forces_eV_per_A,
        stress_eV_per_A3=record.stress_eV_per_A3,
        wall_s=record.wall_s,
        cpu_s=record.cpu_s,
        created=datetime.fromisoformat(record.created_utc).timestamp(),
        replica=record.replica,
        attempt=record.attempt,
        properties={} if record.dipole_eA is None else {"dipole": np.asarray(record.dipole_eA)},
    )


def symbols_of(table: dict[str, dict[int, float]]) -> dict[str, dict[str, float]]:
    """Atomic numbers to symbols."""
    from ase.data import chemical_symbols

    return {f: {chemical_symbols[z]: e for z, e in own.items()} for f, own in table.items()}


def label_facts(context: Context, requests: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """What became of the requests, per fidelity, as the store knows it: counts, reasons, cost."""
    snapshot = context.store.snapshot()
    lost = {
        (f.structure_uid, f.fidelity): f.reason for f in snapshot.failures() if f.reason in LOST_REASONS
    }
    facts: dict[str, Any] = {}
    for uid, fidelity in requests:
        own = facts.setdefault(fidelity, {"ok": 0, "failed": {}, "cpu_s": 0.0, "wall_s": 0.0})
        row = snapshot.label(label_key(uid, fidelity, context.fingerprints[fidelity]))
        if row is None and (uid, fidelity) in context.open_pairs:
            own["open"] = own.get("open", 0) + 1
            continue
        if row is None:
            reason = lost.get((uid, fidelity), "missing")
            own["failed"][reason] = own["failed"].get(reason, 0) + 1
            continue
        own["cpu_s"] += row.cpu_s
        own["wall_s"] += row.wall_s
        if row.status != "ok":
            own["failed"][row.status] = own["failed"].get(row.status, 0) + 1
        else:
            own["ok"] += 1
    return facts


def recount(context: Context, state: RoundState) -> None:
    """Write anew what became of the labels of a round, where some came later."""
    asked = state.outputs("start" if state.number == 0 else "select")
    if asked is not None and "label" in state.facts:
        state.facts["label"] = label_facts(context, [(uid, f) for uid, f in asked["requests"]])
        state.save_facts()


def require_usable(context: Context) -> None:
    """After round zero: every fidelity has labels to train on, every element its energy.

    Raises:
        EnvironmentProblemError: with the reasons of the failures.
    """
    snapshot = context.store.snapshot()
    for fidelity in context.fidelities:
        reasons = Counter(
            f"{f.reason}: {f.message}" for f in snapshot.failures() if f.fidelity == fidelity
        )
        why = "; ".join(f"{n} × {text[:200]}" for text, n in reasons.most_common(3))
        if not rows_of(snapshot, "train", [fidelity]):
            raise EnvironmentProblemError(f"no label of '{fidelity}' succeeded: {why}")
        if context.campaign.e0 == "compute":
            known = isolated_energies(snapshot, [fidelity]).get(fidelity, {})
            from ase.data import atomic_numbers

            missing = [s for s in context.campaign.elements if atomic_numbers[s] not in known]
            if missing:
                raise EnvironmentProblemError(
                    f"no isolated-atom energy for {', '.join(missing)} at '{fidelity}' ({why}); "
                    "give it under e0, or use e0: least-squares"
                )
