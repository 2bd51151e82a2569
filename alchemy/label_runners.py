"""Who computes labels: workers, batch jobs, or both at once; to the stage that asks they look alike."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from . import tasks
from .batch_ledger import Ledger
from .config_labels import Labels
from .executors import Executor, Interrupt, OnDone

if TYPE_CHECKING:
    from .pyiron_batch import BatchLabels

Request = dict[str, Any]


class LostLabelError(Exception):
    """A label without a record, after all tries: `reason` is a short code, the text tells the tries."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason, self.message = reason, message

    def __str__(self) -> str:
        return self.message


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
        # of jobs of an earlier run, which may be at work on labels of a level that is the workers' by now
        self._held: set[str] = set()

    def alone(self, request: Request) -> bool:
        return self._labels.of(request["fidelity"]).batch or request.get("key") in self._held

    def run(self, packs: Iterable[Request], *, on_done: OnDone) -> None:
        self._held = {key for job in Ledger(self._folder).jobs.values() for key in job.keys}
        if not self._labels.any_batch and not self._held:
            return self._executor.run(tasks.labels, packs, resource="LABEL", on_done=on_done)
        packs = list(packs)
        batch = [n for n, pack in enumerate(packs) if self.alone(pack["requests"][0])]
        rest = [n for n in range(len(packs)) if n not in set(batch)]
        if not batch:
            return self._executor.run(tasks.labels, packs, resource="LABEL", on_done=on_done)
        from .pyiron_batch import BatchLabels

        def of_job(place: int, result: dict[str, Any] | BaseException) -> None:
            on_done(batch[place], result if isinstance(result, BaseException) else {"results": [result]})

        jobs = BatchLabels(
            self._folder,
            jobs_of=self._labels.of,
            base_dir=self._base_dir,
            say=self._say,
            interrupt=self._interrupt,
        )
        try:
            jobs.begin([packs[n]["requests"][0] for n in batch], of_job)
            self._both(jobs, [packs[n] for n in rest], lambda i, result: on_done(rest[i], result))
        finally:
            jobs.close()
        left = [n for n in batch if packs[n]["requests"][0].get("key") in jobs.leftover]
        if left:
            again = [packs[n] for n in left]
            self._executor.run(
                tasks.labels, again, resource="LABEL", on_done=lambda i, result: on_done(left[i], result)
            )
        return None

    def _both(self, jobs: BatchLabels, packs: list[Request], on_done: OnDone) -> None:
        """Tasks in a thread, whose results are handed over here, between two looks at the jobs."""
        found: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        stopped = threading.Event()

        def hand_over(index: int, result: Any) -> None:
            if stopped.is_set():
                raise RuntimeError("the labels are not wanted any more")
            found.put((index, result))

        def work() -> None:
            try:
                self._executor.run(tasks.labels, packs, resource="LABEL", on_done=hand_over)
            except Exception as error:
                found.put((-1, error))

        thread = threading.Thread(target=work, daemon=True)
        if packs:
            thread.start()
        try:
            while jobs.busy or thread.is_alive() or not found.empty():
                while not found.empty():
                    index, result = found.get()
                    if index < 0:
                        raise result
                    on_done(index, result)
                jobs.step()
                if jobs.busy or thread.is_alive():
                    jobs.wait()
        finally:
            stopped.set()
