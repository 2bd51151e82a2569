"""Where tasks run: local Dask workers, those of a scheduler by address or of a batch system, this process.

With executors_*.py the only importer of dask, distributed and dask_jobqueue. Tasks are plain functions of
one small request; Dask forgets, the store and the label records remember, so that a dead scheduler or worker
costs at most what was under way.
"""

from __future__ import annotations

import os
import signal
import threading
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
        EnvironmentProblemError: a worker does not start, the scheduler cannot be reached, or the batch
            system is not there.
    """
    if run.where == "inline":
        return InlineExecutor(interrupt)
    import dask
    from dask.distributed import Client

    from .executors_dask import DaskExecutor, StandingSupply

    dask.config.set({"distributed.scheduler.allowed-failures": 2})
    # a profiler that looks 100 times a second, and logs that nobody reads: the low-level one keeps whole
    # messages, structures and all, of every connection
    dask.config.set({"distributed.worker.profile.enabled": False, "distributed.admin.log-length": 1000})
    dask.config.set({"distributed.admin.low-level-log-length": 50})
    if run.where in BATCH_SYSTEMS:
        from .executors_cluster import start_fleet

        client, fleet = start_fleet(run, home=home, base_dir=base_dir)
        return DaskExecutor(client, fleet, interrupt, waiting=waiting)
    threads = run.threads_per_worker
    if run.where == "local":
        count = max(1, cores() // threads) if run.workers == "auto" else int(run.workers)
        try:
            cluster = _local_cluster(count, threads, gpu_count(run.gpus))
        except (RuntimeError, OSError, TimeoutError) as error:
            raise EnvironmentProblemError(
                f"a worker died while it was started ({error}); out of memory, or killed? Run it again"
            ) from error
        return DaskExecutor(Client(cluster, set_as_default=False), StandingSupply(cluster), interrupt)
    try:
        client = Client(run.where, timeout="10s", set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise EnvironmentProblemError(f"no Dask scheduler answers at {run.where}: {error}") from error
    return DaskExecutor(client, StandingSupply(), interrupt, waiting=waiting)


def gpu_count(gpus: int | str) -> int:
    """GPUs that the `run` block means: of `auto`, all that are visible."""
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
