"""Where tasks run: local Dask workers, those of a scheduler by address or of a batch system, this process.

With executors_*.py the only importer of dask, distributed and dask_jobqueue. Tasks are plain functions of
one small request; Dask forgets, the store and the label records remember, so that a dead scheduler or worker
costs at most what was under way.
"""

from __future__ import annotations

import logging
import math
import operator
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .config_cluster import BATCH_SYSTEMS
from .errors import EnvironmentProblemError, InterruptedRunError

if TYPE_CHECKING:
    from .config_blocks import Run

Task = Callable[[dict[str, Any]], dict[str, Any]]
OnDone = Callable[[int, dict[str, Any] | BaseException], None]
Waiting = Callable[[str], None]
POLL_S = 0.5  # how soon an interrupt is noticed
LOOK_S = 1.0  # how often the workers are counted


class Interrupt:
    """Set by Ctrl-C or SIGTERM; the executor stops handing out work and the campaign ends cleanly."""

    def __init__(self) -> None:
        self._event, self._drain = threading.Event(), threading.Event()

    def set(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        """Whether to end, now or when what runs has finished."""
        return self._event.is_set() or self._drain.is_set()

    def drain(self) -> None:
        """Begin no task any more; those under way may finish, then it is as if set."""
        self._drain.set()

    @property
    def draining(self) -> bool:
        return self._drain.is_set()

    def raise_if_set(self, *, busy: bool = False) -> None:
        """Raises InterruptedRunError if set, or if draining and not `busy` with tasks under way."""
        if self._event.is_set() or (self._drain.is_set() and not busy):
            raise InterruptedRunError(
                "interrupted; everything finished is on disk, the same command continues"
            )


class Executor(Protocol):
    """Runs tasks and hands each result over as soon as it is there.

    Requests are drawn when there is room for them, so that they may be made one by one, and may end early.
    """

    @property
    def workers(self) -> int:
        """Workers that are there now."""

    def run(
        self, task: Task, requests: Iterable[dict[str, Any]], *, resource: str, on_done: OnDone
    ) -> None:
        """Call `on_done(index, result or exception)` in this thread, in order of completion."""

    def close(self) -> None:
        """Release workers."""


class InlineExecutor:
    """Everything in this process, one after another: deterministic, for tests and for looking closely."""

    workers = 1

    def __init__(self, interrupt: Interrupt) -> None:
        self._interrupt = interrupt

    def run(
        self, task: Task, requests: Iterable[dict[str, Any]], *, resource: str, on_done: OnDone
    ) -> None:
        for index, request in enumerate(requests):
            self._interrupt.raise_if_set()
            try:
                result: dict[str, Any] | BaseException = task(request)
            except Exception as error:  # handed on; the stage decides
                result = error
            on_done(index, result)

    def close(self) -> None:
        return


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
    def workers(self) -> int:
        """Workers that are there now."""
        return len(self._running())

    def _running(self) -> list[dict[str, Any]]:
        found = self._client.scheduler_info(n_workers=-1)["workers"].values()
        return [worker for worker in found if worker.get("status", "running") == "running"]

    def _slots(self, resource: str) -> int:
        return int(sum(worker.get("resources", {}).get(resource, 0) for worker in self._running()))

    def run(
        self, task: Task, requests: Iterable[dict[str, Any]], *, resource: str, on_done: OnDone
    ) -> None:
        suspects: list[tuple[int, dict[str, Any]]] = []

        def first_try(index: int, request: dict[str, Any], result: dict[str, Any] | BaseException) -> None:
            if isinstance(result, WorkerKilledError):
                suspects.append((index, request))
            else:
                on_done(index, result)

        self._run(task, enumerate(requests), resource, first_try, expected=operator.length_hint(requests, 1))
        # Dask also blames the tasks that waited at a worker that died: the suspects get a try each alone
        for one in suspects:
            self._run(task, iter([one]), resource, lambda n, _, result: on_done(n, result), expected=1)

    def _run(
        self,
        task: Task,
        requests: Iterator[tuple[int, dict[str, Any]]],
        resource: str,
        on_done: Callable[[int, dict[str, Any], dict[str, Any] | BaseException], None],
        *,
        expected: int,
    ) -> None:
        """`expected`: how many requests there probably are, for those who bring workers."""
        flying = dict[str, tuple[int, dict[str, Any], Any]]()
        finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._supply.want(resource, expected)
        room, left = _Room(self, resource), True
        try:
            while left or flying:
                while left and not self._interrupt.draining and len(flying) < room.now():
                    found = next(requests, None)
                    if found is None:
                        left = False
                        break
                    future = self._submit(task, found[1], resource)
                    flying[future.key] = (*found, future)
                    future.add_done_callback(finished.put)
                future = self._next(finished, busy=bool(flying)) if left or flying else None
                if future is None:
                    continue
                index, request, _ = flying.pop(future.key)
                result = self._result(future)
                future.release()  # else Dask computes it again when the worker that holds it dies
                if expected:
                    self._supply.want(resource, -1)
                    expected -= 1
                on_done(index, request, result)
        finally:
            self._supply.want(resource, -expected)
            for _, _, future in flying.values():
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
            result: dict[str, Any] = future.result(timeout=30)
            return result
        except FutureCancelledError as lost:
            raise EnvironmentProblemError(
                "the Dask scheduler is gone; run the campaign again, nothing finished is lost"
            ) from lost
        except KilledWorker as killed:
            return WorkerKilledError(f"its worker died every time: {killed}")
        except Exception as problem:  # the task's own; the stage decides
            return problem

    def close(self) -> None:
        # workers that vanish while the scheduler drains are no news to the user
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        self._supply.stop()
        try:
            self._client.close()
        finally:
            self._supply.close()


class _Room:
    """How many tasks may be at the scheduler: two for each slot, so that no worker waits for the next."""

    def __init__(self, executor: DaskExecutor, resource: str) -> None:
        self._executor, self._resource = executor, resource
        self._slots, self._looked = 0, -math.inf
        self._said = ""

    def now(self) -> int:
        if time.monotonic() - self._looked < LOOK_S:
            return 2 * self._slots
        self._slots = self._executor._slots(self._resource)
        text = "" if self._slots else self._executor._supply.waiting(self._resource)
        if text != self._said:
            self._executor._waiting(text)
            self._said = text
        self._looked = time.monotonic()
        return 2 * self._slots


class WorkerKilledError(Exception):
    """A task that takes its worker down again and again (out of memory, a crash in compiled code)."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def make_executor(
    run: Run,
    *,
    home: Path,
    base_dir: Path,
    interrupt: Interrupt,
    waiting: Waiting = lambda text: None,
) -> Executor:
    """The executor that the campaign's `run` block asks for.

    Args:
        home: the campaign's directory, which the nodes of a batch system see as well.
        base_dir: where relative paths of the block start.
        waiting: told in words what is being waited for, and '' when that is over.

    Raises:
        EnvironmentProblemError: the scheduler cannot be reached, or the batch system is not there.
    """
    if run.where == "inline":
        return InlineExecutor(interrupt)
    import dask
    from dask.distributed import Client

    dask.config.set({"distributed.scheduler.allowed-failures": 2})
    dask.config.set({"distributed.worker.profile.enabled": False})  # 100 looks a second
    if run.where in BATCH_SYSTEMS:
        from .executors_cluster import start_fleet

        client, fleet = start_fleet(run, home=home, base_dir=base_dir)
        return DaskExecutor(client, fleet, interrupt, waiting=waiting)
    threads = run.threads_per_worker
    if run.where == "local":
        count = max(1, cores() // threads) if run.workers == "auto" else int(run.workers)
        from .executors_local import gpu_count, local_cluster

        cluster = local_cluster(count, threads, gpu_count(run.gpus))
        return DaskExecutor(Client(cluster, set_as_default=False), StandingSupply(cluster), interrupt)
    try:
        client = Client(run.where, timeout="10s", set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise EnvironmentProblemError(f"no Dask scheduler answers at {run.where}: {error}") from error
    return DaskExecutor(client, StandingSupply(), interrupt, waiting=waiting)


@contextmanager
def signals_caught(interrupt: Interrupt) -> Iterator[None]:
    """Ctrl-C and SIGTERM set `interrupt`; the second one ends the process the ordinary way.

    Workers are started with the signals ignored, because Ctrl-C reaches the whole process group and
    would kill them before the controller has drained.
    """
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def handler(number: int, frame: Any) -> None:
        interrupt.set()
        for s, previous in before.items():
            signal.signal(s, previous)

    for s in before:
        signal.signal(s, handler)
    try:
        yield
    finally:
        for s, previous in before.items():
            signal.signal(s, previous)


@contextmanager
def signals_ignored() -> Iterator[None]:
    """For the moment in which workers are spawned: they inherit the disposition."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
