"""Tasks on Dask workers, wherever these come from and however many there are at the moment."""

from __future__ import annotations

import collections
import contextlib
import logging
import math
import operator
import queue
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from .errors import EnvironmentProblemError
from .executors import Interrupt, OnDone, Task, Waiting, WorkerKilledError

POLL_S = 0.5  # how soon an interrupt is noticed
LOOK_S = 1.0  # how often the workers are counted
AHEAD = 2  # tasks sent per slot: one runs, one waits there; more is memory, and a budget must await them
RESULT_S = 10.0  # for a small result that is done
MOST_LOST = 5  # times that the result of one task may be lost

Numbered = tuple[int, dict[str, Any]]  # a request and its place among all


class LostResultError(Exception):
    """A task was done and its worker died with the result; done again it finds its own output on disk."""


class Supply(Protocol):
    """Where the workers of a `DaskExecutor` come from; their number may change at any time."""

    def want(self, resource: str, tasks: int) -> None:
        """There are so many more (or fewer) tasks to do that need the resource."""

    def waiting(self, resource: str) -> str:
        """No worker offers the resource now: what is being waited for; raises when it will not come."""

    def stop(self) -> None:
        """Bring no more workers."""

    def close(self) -> None:
        """Release the workers and the scheduler that are ours; the client is closed by now."""


class StandingSupply:
    """Workers that somebody else starts, or that are all there from the beginning."""

    def __init__(self, cluster: Any = None, *, patience_s: float = 60.0) -> None:
        self._cluster, self._patience_s = cluster, patience_s
        self._asked: dict[str, float] = {}

    def want(self, resource: str, tasks: int) -> None:
        self._asked.pop(resource, None)

    def waiting(self, resource: str) -> str:
        begun = self._asked.setdefault(resource, time.monotonic())
        if time.monotonic() - begun > self._patience_s:
            raise EnvironmentProblemError(
                f"no Dask worker offers the resource {resource}; start workers with "
                f'--resources "GPU=1 LABEL=1"'
            )
        return f"waiting for a Dask worker that offers {resource}"

    def stop(self) -> None:
        return

    def close(self) -> None:
        if self._cluster is not None:
            # Dask asserts on a worker that it is just starting again; it ends with this process
            with contextlib.suppress(AssertionError):
                self._cluster.close()


class DaskExecutor:
    """A Dask client; resources GPU (training, exploration, scoring) and LABEL steer tasks.

    A task is handed to the scheduler when there is room for it: the requests of a long queue stay here, and
    a worker that comes later finds work that is not bound to the others.
    """

    def __init__(
        self, client: Any, supply: Supply, interrupt: Interrupt, *, waiting: Waiting = lambda text: None
    ) -> None:
        self._client, self._supply, self._interrupt, self._waiting = client, supply, interrupt, waiting

    @property
    def supply(self) -> Supply:
        """Where its workers come from."""
        return self._supply

    def say(self, text: str) -> None:
        """Tell the user what is being waited for, '' for nothing."""
        self._waiting(text)

    @property
    def workers(self) -> int:
        """Workers that are there now."""
        return len(self._running())

    def _running(self) -> list[dict[str, Any]]:
        found = self._client.scheduler_info(n_workers=-1)["workers"].values()
        return [worker for worker in found if worker.get("status", "running") == "running"]

    def slots(self, resource: str) -> int:
        """Tasks of the resource that can run at the same time now."""
        return int(sum(worker.get("resources", {}).get(resource, 0) for worker in self._running()))

    def run(
        self, task: Task, requests: Iterable[dict[str, Any]], *, resource: str, on_done: OnDone
    ) -> None:
        suspects: list[Numbered] = []

        def first_try(one: Numbered, result: dict[str, Any] | BaseException) -> None:
            if isinstance(result, WorkerKilledError):
                suspects.append(one)
            else:
                on_done(one[0], result)

        hint = operator.length_hint(requests, -1)
        known = None if hint < 0 else hint
        self._run(task, enumerate(requests), resource, first_try, known=known)
        # Dask also blames the tasks that waited at a worker that died: the suspects get a try each alone
        for one in suspects:
            self._run(
                task, iter([one]), resource, lambda one, result: on_done(one[0], result), known=1
            )

    def _run(
        self,
        task: Task,
        requests: Iterator[Numbered],
        resource: str,
        on_done: Callable[[Numbered, dict[str, Any] | BaseException], None],
        *,
        known: int | None,
    ) -> None:
        """`known`: how many requests there will be; else those under way say how many workers are needed."""
        finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
        sent: dict[str, tuple[Numbered, Any]] = {}
        again: list[Numbered] = []
        lost = collections.Counter[int]()
        demand, room, done = _Demand(self._supply, resource), _Room(self, resource), 0
        try:
            while True:
                while not self._interrupt.draining and len(sent) < room.now():
                    one = again.pop() if again else next(requests, None)
                    if one is None:
                        break
                    future = self._submit(task, one[1], resource)
                    sent[future.key] = one, future
                    future.add_done_callback(finished.put)
                demand.is_now(len(sent) if known is None else known - done)
                if not sent and not again and not self._interrupt.draining:
                    return
                future = self._next(finished, busy=bool(sent))
                if future is None:
                    continue
                one, _ = sent.pop(future.key)
                result = self._result(future)
                future.release()  # else Dask computes it again when the worker that holds it dies
                if isinstance(result, LostResultError) and lost[one[0]] < MOST_LOST:
                    lost[one[0]] += 1
                    again.append(one)
                    continue
                done += 1
                on_done(one, result)
        finally:
            demand.is_now(0)
            room.leave()
            for _, future in sent.values():
                if not future.done():
                    future.cancel()

    def _submit(self, task: Task, request: dict[str, Any], resource: str) -> Any:
        # where labels and training share workers, the training that labels wait for goes first
        first = 1 if resource == "GPU" else 0
        return self._client.submit(
            task, request, resources={resource: 1}, pure=False, retries=0, priority=first
        )

    def _next(self, finished: queue.SimpleQueue[Any], *, busy: bool) -> Any:
        """The next finished future, None after a short while; an interrupt is noticed."""
        self._interrupt.raise_if_set(busy=busy)
        try:
            return finished.get(timeout=POLL_S)
        except queue.Empty:
            return None

    def _result(self, future: Any) -> dict[str, Any] | BaseException:
        """What the task returned or raised; raises if there is no scheduler any more."""
        from distributed.client import FutureCancelledError
        from distributed.scheduler import KilledWorker

        try:
            result: dict[str, Any] = future.result(timeout=RESULT_S)
            return result
        except FutureCancelledError as lost:
            raise EnvironmentProblemError(
                "the Dask scheduler is gone; run the campaign again, nothing finished is lost"
            ) from lost
        except KilledWorker as killed:
            return WorkerKilledError(f"its worker died every time: {killed}")
        except Exception as problem:
            if isinstance(problem, TimeoutError) and future.status != "error":
                return LostResultError("its worker ended before the result was fetched")
            return problem  # the task's own; the stage decides

    def close(self) -> None:
        # workers that vanish while the scheduler drains are no news to the user
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        self._supply.stop()
        try:
            self._client.close()
        finally:
            self._supply.close()


class _Demand:
    """What one run tells the supply of its tasks, as changes: others may run beside it."""

    def __init__(self, supply: Supply, resource: str) -> None:
        self._supply, self._resource, self._told = supply, resource, 0

    def is_now(self, tasks: int) -> None:
        if tasks != self._told:
            self._supply.want(self._resource, tasks - self._told)
            self._told = tasks


class _Room:
    """How many tasks may be at the scheduler; one even without a worker, because it calls for one."""

    def __init__(self, executor: DaskExecutor, resource: str) -> None:
        self._executor, self._resource = executor, resource
        self._slots, self._looked = 0, -math.inf
        self._said = ""

    def now(self) -> int:
        if time.monotonic() - self._looked >= LOOK_S:
            self._look()
        return max(1, AHEAD * self._slots)

    def leave(self) -> None:
        """A short run may be over before the next look, and nobody waits then."""
        self._tell("")

    def _look(self) -> None:
        self._slots = self._executor.slots(self._resource)
        self._tell("" if self._slots else self._executor.supply.waiting(self._resource))
        self._looked = time.monotonic()

    def _tell(self, text: str) -> None:
        if text != self._said:
            self._executor.say(text)
            self._said = text
