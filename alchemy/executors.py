"""Where tasks run: a local Dask cluster, a scheduler by address, or this process.

The only importer of dask and distributed. Tasks are plain functions of one small request; Dask forgets, the
store and the label records remember, so that a dead scheduler or worker costs at most what was under way.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from .errors import EnvironmentProblemError, InterruptedRunError

Task = Callable[[dict[str, Any]], dict[str, Any]]
OnDone = Callable[[int, dict[str, Any] | BaseException], None]
POLL_S = 0.5  # how soon an interrupt is noticed


class Interrupt:
    """Set by Ctrl-C or SIGTERM; the executor stops handing out work and the campaign ends cleanly."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()

    def raise_if_set(self) -> None:
        if self._event.is_set():
            raise InterruptedRunError(
                "interrupted; everything finished is on disk, the same command continues"
            )


class Executor(Protocol):
    """Runs tasks and hands each result over as soon as it is there."""

    workers: int

    def run(
        self, task: Task, requests: Sequence[dict[str, Any]], *, resource: str, on_done: OnDone
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
        self, task: Task, requests: Sequence[dict[str, Any]], *, resource: str, on_done: OnDone
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


class DaskExecutor:
    """A Dask client; resources GPU (training, exploration, scoring) and LABEL steer tasks."""

    def __init__(self, client: Any, cluster: Any, interrupt: Interrupt) -> None:
        self._client, self._cluster, self._interrupt = client, cluster, interrupt
        info = client.scheduler_info(n_workers=-1)["workers"].values()
        self.workers = max(1, len(info))
        self._offered = {
            name: sum(worker.get("resources", {}).get(name, 0) for worker in info)
            for name in ("GPU", "LABEL")
        }

    def run(
        self, task: Task, requests: Sequence[dict[str, Any]], *, resource: str, on_done: OnDone
    ) -> None:
        if not requests:
            return
        if not self._offered[resource]:
            raise EnvironmentProblemError(
                f"no Dask worker offers the resource {resource}; start workers with "
                f'--resources "GPU=1 LABEL=1"'
            )
        suspects: list[int] = []

        def first_try(index: int, result: dict[str, Any] | BaseException) -> None:
            if isinstance(result, WorkerKilledError):
                suspects.append(index)
            else:
                on_done(index, result)

        self._run(task, dict(enumerate(requests)), resource, first_try)
        # Dask also blames the tasks that waited at a worker that died: the suspects get a try each alone
        for index in suspects:
            self._run(task, {index: requests[index]}, resource, on_done)

    def _run(
        self, task: Task, requests: dict[int, dict[str, Any]], resource: str, on_done: OnDone
    ) -> None:
        from distributed.client import FutureCancelledError
        from distributed.scheduler import KilledWorker

        futures = {
            n: self._client.submit(task, request, resources={resource: 1}, pure=False, retries=0)
            for n, request in requests.items()
        }
        index = {future.key: n for n, future in futures.items()}
        finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for future in futures.values():
            future.add_done_callback(finished.put)
        try:
            for _ in futures:
                future = self._wait(finished)
                error: Exception | None = None
                try:
                    result = future.result(timeout=30)
                except FutureCancelledError as lost:
                    raise EnvironmentProblemError(
                        "the Dask scheduler is gone; run the campaign again, nothing finished is lost"
                    ) from lost
                except KilledWorker as killed:
                    error = WorkerKilledError(f"its worker died every time: {killed}")
                except Exception as problem:  # the task's own; the stage decides
                    error = problem
                future.release()  # else Dask computes it again when the worker that holds it dies
                on_done(index[future.key], result if error is None else error)
        finally:
            for future in futures.values():
                if not future.done():
                    future.cancel()

    def _wait(self, finished: queue.SimpleQueue[Any]) -> Any:
        """The next finished future; an interrupt is noticed meanwhile."""
        while True:
            self._interrupt.raise_if_set()
            try:
                return finished.get(timeout=POLL_S)
            except queue.Empty:
                continue

    def close(self) -> None:
        # workers that vanish while the scheduler drains are no news to the user
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()


class WorkerKilledError(Exception):
    """A task that takes its worker down again and again (out of memory, a crash in compiled code)."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def make_executor(
    where: str, *, workers: int | str, threads_per_worker: int, gpus: int | str, interrupt: Interrupt
) -> Executor:
    """The executor that the campaign's `run` block asks for.

    Raises:
        EnvironmentProblemError: the scheduler at the address cannot be reached.
    """
    if where == "inline":
        return InlineExecutor(interrupt)
    import dask
    from dask.distributed import Client

    dask.config.set({"distributed.scheduler.allowed-failures": 2})
    if where == "local":
        count = max(1, cores() // threads_per_worker) if workers == "auto" else int(workers)
        cluster = _local_cluster(count, threads_per_worker, _gpu_count(gpus))
        return DaskExecutor(Client(cluster, set_as_default=False), cluster, interrupt)
    try:
        client = Client(where, timeout="10s", set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise EnvironmentProblemError(f"no Dask scheduler answers at {where}: {error}") from error
    return DaskExecutor(client, None, interrupt)


def _gpu_count(gpus: int | str) -> int:
    if gpus != "auto":
        return int(gpus)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([g for g in visible.split(",") if g.strip()])
    return len([n for n in os.listdir("/dev") if n.startswith("nvidia") and n[6:].isdigit()])


def _local_cluster(workers: int, threads: int, gpus: int) -> Any:
    """Nannies on loopback; with GPUs, one worker sees each and only those take GPU tasks."""
    from dask.distributed import Nanny, Scheduler, SpecCluster

    base = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    base["OPENBLAS_NUM_THREADS"] = str(threads)
    specs = {}
    for n in range(max(workers, gpus)):
        environment = {**base, "CUDA_VISIBLE_DEVICES": str(n) if n < gpus else ""}
        resources = {"LABEL": 1.0}
        if not gpus or n < gpus:
            resources["GPU"] = 1.0
        specs[n] = {
            "cls": Nanny,
            "options": {
                "nthreads": 1,
                "resources": resources,
                "env": environment,
                "host": "127.0.0.1",
                "dashboard_address": None,
                "memory_limit": 0,  # a label code that needs memory is the user's wish, not a leak
                "silence_logs": 40,
            },
        }
    scheduler = {
        "cls": Scheduler,
        "options": {"host": "127.0.0.1", "port": 0, "dashboard_address": "127.0.0.1:0", "dashboard": False},
    }
    return SpecCluster(workers=specs, scheduler=scheduler, silence_logs=40)


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
