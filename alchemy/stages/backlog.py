"""Labels that are computed while the loop goes on: `run.overlap`.

A batch of requests is a thread that buys them as a synchronous round would. Nothing is remembered here:
what is open follows from the requests of finished selections and from the labels in the store.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence

from ..identity import label_key
from ..state import RoundState
from . import label, trust
from .context import Context

Pair = tuple[str, str]  # structure uid, fidelity
LOOK_EVERY_S = 0.2


def left_open(context: Context) -> list[Pair]:
    """Requests of rounds whose label stage is over that have no label, nor a failure that ended them."""
    asked: list[Pair] = []
    for number in context.home.rounds():
        state = RoundState(context.home, number)
        if number > 0 and state.outputs("label") is not None:
            asked += [(uid, f) for uid, f in (state.outputs("select") or {}).get("requests", [])]
    return without_label(context, asked)


def without_label(context: Context, asked: Sequence[Pair]) -> list[Pair]:
    """Those of them that the store knows nothing of."""
    if not asked:
        return []
    snapshot = context.store.snapshot()
    lost = {(f.structure_uid, f.fidelity) for f in snapshot.failures() if f.reason == "worker-killed"}
    keys = {label_key(uid, f, context.fingerprints[f]): (uid, f) for uid, f in asked}
    known = snapshot.label_states(keys)
    return [pair for key, pair in keys.items() if key not in known and pair not in lost]


class Backlog:
    """Batches of labels under way; errors of theirs are raised by whoever waits or looks next."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []
        self._asked: list[Pair] = []

    def add(self, requests: Sequence[Pair]) -> None:
        """Begin to label these."""
        if not requests:
            return
        self._asked += requests
        thread = threading.Thread(target=self._buy, args=(list(requests),), name="alchemy-labels")
        self._threads.append(thread)
        thread.start()

    def _buy(self, requests: list[Pair]) -> None:
        try:
            label.label(self._context, requests, what="label", bar=_Unseen())
        except BaseException as error:  # handed to the main thread
            self._errors.append(error)

    def look(self) -> None:
        """Note what is open now. Raises what ended a batch."""
        if self._errors:
            raise self._errors[0]
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._asked = without_label(self._context, self._asked)
        self._context.open_pairs = tuple(self._asked)

    def wait(self, requests: Sequence[Pair], share: float) -> None:
        """Until this share of the requests has been answered, well or not, or all batches are over."""
        enough = math.ceil(share * len(requests))
        while True:
            over = not any(thread.is_alive() for thread in self._threads)
            self.look()
            if over or len(requests) - len(set(requests) & set(self._asked)) >= enough:
                return
            time.sleep(LOOK_EVERY_S)

    def drain(self) -> None:
        """Until nothing is under way."""
        while any(thread.is_alive() for thread in self._threads):
            self.look()
            time.sleep(LOOK_EVERY_S)
        self.look()

    def finish(self, state: RoundState) -> None:
        """Until nothing is under way; what came last is checked as well, and rounds are counted anew."""
        self.look()
        late = self._context.open_pairs
        self.drain()
        if late:  # without a committee's doubts: that of this round is yet to be trained
            trust.check_labels(self._context, state, late)
        for number in range(1, state.number):
            label.recount(self._context, RoundState(self._context.home, number))

    def close(self) -> None:
        """Wait for the threads, whatever ends them."""
        for thread in self._threads:
            thread.join()


class _Unseen:
    """The loop has the live line."""

    def advance(self) -> None:
        return

    def note(self, text: str) -> None:
        return
