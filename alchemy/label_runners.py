"""Who computes labels: workers, batch jobs, or both at once; to the stage that asks they look alike."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from . import tasks
from .batch_ledger import Ledger
from .batch_service import OVER, BatchService, Request
from .config_labels import Labels
from .executors import Executor, Interrupt, OnDone


class LostLabelError(Exception):
    """A label without a record, after all tries: `reason` is a short code, the text tells the tries."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason, self.message = reason, message

    def __str__(self) -> str:
        return self.message


class NotABatchJobError(Exception):
    """A label of a batch job that failed, of a level that is the workers' by now."""


class Requests:
    """An iterator of requests that are made when there is room for them, and how many there probably are."""

    def __init__(self, made: Iterator[Request], number: int) -> None:
        self._made, self._number = made, number

    def __iter__(self) -> Iterator[Request]:
        return self._made

    def __length_hint__(self) -> int:
        return self._number


class LabelRunner(Protocol):
    """Computes packs of labels; each result is handed over as soon as it is there, in the caller's thread.

    A pack is what `tasks.labels` takes. Packs of batch jobs are all drawn at once: they wait in a queue then.
    """

    def alone(self, request: Request) -> bool:
        """Whether this label is a pack of its own: it is, or was already, a batch job's."""

    def run(self, packs: Iterable[Request], *, on_done: OnDone) -> None:
        """`on_done(index, result)`; a result is what `tasks.labels` returns, or an exception."""


class WorkerLabels:
    """As tasks of the executor."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def alone(self, request: Request) -> bool:
        return False

    def run(self, packs: Iterable[Request], *, on_done: OnDone) -> None:
        self._executor.run(tasks.labels, packs, resource="LABEL", on_done=on_done)


class JobLabels:
    """As batch jobs where the campaign says so, as tasks of the executor elsewhere; both at once."""

    def __init__(
        self,
        executor: Executor,
        labels: Labels,
        *,
        folder: Path,
        base_dir: Path,
        say: Callable[[str], None],
        interrupt: Interrupt,
    ) -> None:
        self._executor, self._labels = executor, labels
        self._folder, self._base_dir, self._say, self._interrupt = folder, base_dir, say, interrupt
        # of jobs of an earlier run, which may be at work on labels of a level that is the workers' by now;
        # replaced as a whole and only ever less: rounds that overlap may ask at the same time
        self._held: set[str] = set()
        self._service: BatchService | None = None
        self._lock = threading.Lock()

    def alone(self, request: Request) -> bool:
        return self._labels.of(request["fidelity"]).batch or request.get("key") in self._held

    def run(self, packs: Iterable[Request], *, on_done: OnDone) -> None:
        held = self._held = {key for job in Ledger(self._folder).jobs.values() for key in job.keys}
        if not self._labels.any_batch and not held:
            return self._executor.run(tasks.labels, packs, resource="LABEL", on_done=on_done)
        packs = list(packs)
        batch = [n for n, pack in enumerate(packs) if self.alone(pack["requests"][0])]
        if not batch:
            return self._executor.run(tasks.labels, packs, resource="LABEL", on_done=on_done)
        left = self._both(packs, batch, on_done)
        if left:
            again = [packs[n] for n in left]
            self._executor.run(
                tasks.labels, again, resource="LABEL", on_done=lambda i, result: on_done(left[i], result)
            )
        return None

    def _both(self, packs: list[Request], batch: list[int], on_done: OnDone) -> list[int]:
        """Jobs and tasks, each in a thread; their results are handed over here. Those left to the workers."""
        found: queue.SimpleQueue[tuple[list[int], int, Any]] = queue.SimpleQueue()
        rest, left = sorted(set(range(len(packs))) - set(batch)), []
        stopped = threading.Event()

        def hand_over(index: int, result: Any) -> None:
            if stopped.is_set():
                raise RuntimeError("the labels are not wanted any more")
            found.put((rest, index, result))

        def work() -> None:
            ended: BaseException | None = None
            try:
                own = [packs[n] for n in rest]
                self._executor.run(tasks.labels, own, resource="LABEL", on_done=hand_over)
            except Exception as error:
                ended = error
            found.put((rest, OVER, ended))

        call = self._jobs().ask(
            [packs[n]["requests"][0] for n in batch], lambda index, result: found.put((batch, index, result))
        )
        if rest:
            threading.Thread(target=work, daemon=True).start()
        open_ = 1 + bool(rest)
        try:
            while open_:
                places, index, result = found.get()
                if index == OVER:
                    open_ -= 1
                    if result is not None:
                        raise result
                elif isinstance(result, NotABatchJobError):
                    left.append(places[index])
                elif places is rest or isinstance(result, BaseException):
                    on_done(places[index], result)
                else:
                    on_done(places[index], {"results": [result]})
        finally:
            stopped.set()
            call.close()
        return left

    def _jobs(self) -> BatchService:
        """One for all threads that ask."""
        with self._lock:
            if self._service is None:
                from .pyiron_batch import BatchLabels

                self._service = BatchService(
                    lambda: BatchLabels(
                        self._folder,
                        jobs_of=self._labels.of,
                        base_dir=self._base_dir,
                        say=self._say,
                        interrupt=self._interrupt,
                    )
                )
            return self._service
