"""The one thread in which a campaign's batch jobs are looked after, whoever asks for labels.

Rounds that overlap, and the checks of labels beside them, ask for batch labels at the same time. The ledger,
the lease and the pyiron project are one process's and one thread's at a time: whoever asks hands the requests
in, and takes the results in its own thread. The thread lives while something is asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

Request = dict[str, Any]

if TYPE_CHECKING:
    from alchemy.pyiron_batch import BatchLabels

OVER = -1  # the index that comes last, with None or with what ended it


@dataclass(eq=False)
class Call:
    """Labels that one thread asks for; `found` takes (index, result), and OVER when the service is done."""

    requests: Sequence[Request]
    found: Callable[[int, Any], None]
    waiting: set[int] = field(init=False)
    over: threading.Event = field(default_factory=threading.Event)
    abandoned: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.waiting = set(range(len(self.requests)))

    def take(self, index: int, result: Any) -> None:
        """A label's result, in the thread of the service."""
        self.waiting.discard(index)
        self.found(index, result)

    def end(self, error: BaseException | None = None) -> None:
        """Nothing comes any more."""
        self.found(OVER, error)
        self.over.set()

    def close(self) -> None:
        """The results are not wanted any more; back when nobody works on them."""
        self.abandoned.set()
        self.over.wait()


class BatchService:
    """Takes calls from any thread, and makes the thread that serves them."""

    def __init__(self, make: Callable[[], BatchLabels]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._asked: list[Call] = []
        self._thread: threading.Thread | None = None
        self._serving = False

    def ask(self, requests: Sequence[Request], found: Callable[[int, Any], None]) -> Call:
        """Begin to label these; `found` is called in the thread of the service and must not block."""
        call = Call(requests, found)
        with self._lock:
            self._asked.append(call)
            if not self._serving:
                self._serving = True
                # the one before may still be about to let the folder go
                self._thread = threading.Thread(
                    target=self._serve, args=(self._thread,), name="alchemy-batch-jobs", daemon=True
                )
                self._thread.start()
        return call

    def _serve(self, before: threading.Thread | None) -> None:
        if before is not None:
            before.join()
        calls: list[Call] = []
        problem = None
        try:
            jobs = self._make()
            try:
                while self._due(jobs, calls):
                    jobs.step()
                    if jobs.busy:
                        jobs.wait()
            finally:
                jobs.close()
        except BaseException as error:  # handed to everybody who waits
            problem = error
            with self._lock:
                calls += self._asked
                self._asked, self._serving = [], False
        for call in calls:
            call.end(problem)

    def _due(self, jobs: BatchLabels, calls: list[Call]) -> bool:
        """Take new calls, let go of those that have all; whether anything is left to do."""
        with self._lock:
            fresh, self._asked = self._asked, []
        calls += fresh
        for call in fresh:
            jobs.begin(call.requests, call.take)
        for call in [call for call in calls if call.abandoned.is_set()]:
            jobs.forget(call.take)
            call.waiting.clear()
        if jobs.wanted:  # others go on; the last to leave waits until the folder is free
            for call in [call for call in calls if not call.waiting]:
                calls.remove(call)
                call.end()
            return True
        nobody = bool(calls) and all(call.abandoned.is_set() for call in calls)
        if nobody or not jobs.busy:
            with self._lock:
                self._serving = bool(self._asked)
            return self._serving
        return True
