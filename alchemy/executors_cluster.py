"""Workers that a batch system runs: one Dask scheduler here, long-lived worker jobs there.

dask-jobqueue writes and submits the jobs of the four batch systems. How many there are and when one is
replaced is decided here, because `scale()` does not replace a job that died, `adapt()` counts tasks that
wait for another resource, and Dask's own `--lifetime` takes a running task away from the worker. Before
its walltime a worker gets no more tasks, finishes the one it has, and a new job is already in the queue.

Between hosts everything is encrypted, with keys that are made for this run and lie in the campaign's
directory, readable by its owner alone. A worker whose controller is gone ends by itself.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import batch_systems
from .batch_systems import Seen
from .config_blocks import Run
from .config_cluster import Workers
from .errors import EnvironmentProblemError
from .executors_jobs import JobMaker, job_class, last_words
from .records import read_json, write_json_atomic

FOLDER, JOBS_FILE = "workers", "jobs.json"
TICK_S = 1.0
FAILED_STARTS = 3  # jobs of one kind that end before their worker was there, one after another


@dataclass
class WorkerJob:
    """One job of the batch system and what is known of it."""

    kind: str
    name: str
    id: str
    submitted: float  # monotonic
    seen: Seen | None = None
    seen_at: float = 0.0
    running_since: float | None = None
    joined: bool = False  # its worker has reported
    draining: str = ""  # why it gets no more tasks
    gone: int = 0  # how often in a row the batch system did not know it
    addresses: list[str] = field(default_factory=list)


def start_fleet(run: Run, *, home: Path, base_dir: Path) -> tuple[Any, Fleet]:
    """A scheduler of our own on the chosen network, and the fleet that brings its workers.

    Raises:
        EnvironmentProblemError: dask-jobqueue, `cryptography` or the batch system is missing.
    """
    assert run.cluster is not None
    where: Any = run.where
    batch_systems.require(where)
    job_class(where)
    from distributed import Client
    from distributed.security import Security

    try:
        security = Security.temporary()
    except ImportError as error:
        raise EnvironmentProblemError(f"run.where: {where}: {error} (pip install cryptography)") from error
    folder = home / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    scheduler = _scheduler(run.cluster.interface, security)
    client = Client(scheduler, set_as_default=False)
    maker = JobMaker(run.cluster, where, run.threads_per_worker, folder, base_dir, _keys(security, folder))
    return client, Fleet(client, scheduler, maker)


def _scheduler(interface: str | None, security: Any) -> Any:
    from distributed import Scheduler, SpecCluster
    from distributed.utils import get_ip

    options = {
        "protocol": "tls://",
        "security": security,
        "port": 0,
        "dashboard": False,
        "dashboard_address": "127.0.0.1:0",  # plain HTTP: for this host only
        **({"interface": interface} if interface else {"host": get_ip()}),
    }
    try:
        return SpecCluster(
            workers={},
            scheduler={"cls": Scheduler, "options": options},
            security=security,
            silence_logs=40,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise EnvironmentProblemError(f"run.cluster.interface: {interface}: {error}") from error


def _keys(security: Any, folder: Path) -> dict[str, Path]:
    """The worker's certificate and key as private files."""
    found = {}
    for role, text in security.get_tls_config_for_role("worker").items():
        if not isinstance(text, str) or "\n" not in text:
            continue
        path = folder / f".tls-{role}.pem"
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(text)
        found[role] = path
    return found


class Fleet:
    """Keeps as many worker jobs of each kind as the work asks for, in a thread of its own."""

    def __init__(self, client: Any, scheduler: Any, maker: JobMaker) -> None:
        self._client, self._scheduler, self._maker = client, scheduler, maker
        self._cluster, self._where = maker.cluster, maker.where
        self._record = maker.folder / JOBS_FILE
        self._tasks: Counter[str] = Counter()
        self._jobs: list[WorkerJob] = []
        self._failed: Counter[str] = Counter()
        self._surplus_since: dict[str, float] = {}
        self._problem: EnvironmentProblemError | None = None
        self._hiccup = ""
        self._number = self._clear_old_jobs()
        self._asked = 0.0  # when the batch system was asked last
        self._waiting_since: dict[str, float] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="worker jobs", daemon=True)
        self._thread.start()

    # -- what the executor asks ------------------------------------------------------------------------

    def want(self, resource: str, tasks: int) -> None:
        with self._lock:
            self._tasks[resource] += tasks
        self._waiting_since.pop(resource, None)

    def waiting(self, resource: str) -> str:
        if self._problem is not None:
            raise self._problem
        begun = self._waiting_since.setdefault(resource, time.monotonic())
        with self._lock:
            jobs = [job for job in self._jobs if resource in self._cluster.resources(job.kind)]
            words = [f"{job.kind} job {job.id} {job.seen or 'submitted'}" for job in jobs if not job.draining]
        text = "; ".join(words) or self._hiccup or "submitting jobs"
        if time.monotonic() - begun > self._cluster.patience_s:
            raise EnvironmentProblemError(
                f"no worker for {resource} came within {self._cluster.patience_s / 60:g} min "
                f"(run.cluster.patience): {text}; is the partition right, and may you use it?"
            )
        return f"waiting for a worker: {text}"

    def stop(self) -> None:
        """Cancel every job."""
        self._stop.set()
        self._thread.join(timeout=60)
        batch_systems.cancel(self._where, [job.id for job in self._jobs])
        self._jobs = []
        self._write()

    def close(self) -> None:
        for path in self._maker.keys.values():
            path.unlink(missing_ok=True)
        self._scheduler.close()

    # -- the thread ------------------------------------------------------------------------------------

    def _keep(self) -> None:
        failures = 0
        while not self._stop.is_set() and self._problem is None:
            try:
                self._tick()
                failures, self._hiccup = 0, ""
            except (OSError, RuntimeError, ValueError, EnvironmentProblemError) as error:
                failures += 1  # a scheduler that is being restarted answers again after a while
                self._hiccup = " ".join(str(error).split())
                if failures * self._cluster.ask_every_s > self._cluster.patience_s or (
                    not self._jobs and failures >= FAILED_STARTS
                ):
                    self._problem = EnvironmentProblemError(f"{self._where}: {self._hiccup}")
                self._stop.wait(self._cluster.ask_every_s)
            except Exception as error:  # not foreseen: the executor shall say it, not a dead thread
                self._problem = EnvironmentProblemError(f"the keeper of the worker jobs broke: {error!r}")
            self._stop.wait(TICK_S)

    def _tick(self) -> None:
        self._note_workers()
        now = time.monotonic()
        if now - self._asked >= self._cluster.ask_every_s:
            self._ask()
            self._asked = now
        for job in list(self._jobs):
            self._end_if_done(job)
        for kind, workers in self._cluster.kinds.items():
            self._match(kind, workers)

    def _note_workers(self) -> None:
        found: dict[str, list[str]] = {}
        for address, worker in self._client.scheduler_info(n_workers=-1)["workers"].items():
            found.setdefault("-".join(str(worker["name"]).split("-")[:2]), []).append(address)
        for job in self._jobs:
            job.addresses = found.get(job.name, [])
            if job.addresses and not job.joined:
                job.joined = True
                self._failed[job.kind] = 0

    def _ask(self) -> None:
        seen = batch_systems.look(self._where, [job.id for job in self._jobs])
        now = time.monotonic()
        for job in list(self._jobs):
            job.seen, job.seen_at = seen.get(job.id), now
            alive = job.seen is not None and job.seen.state != "ended"
            job.gone = 0 if alive else job.gone + 1
            if alive and job.seen is not None and job.seen.state == "running" and job.running_since is None:
                job.running_since = now
            # a fresh job may not be listed yet; one that the batch system calls ended is
            if (job.seen is not None and not alive) or job.gone >= 2:
                self._forget(job)
            elif self._left_s(job) < self._cluster.kinds[job.kind].drain_or_default_s:
                self._drain(job, "its walltime ends")
        self._write()

    def _left_s(self, job: WorkerJob) -> float:
        if job.seen is None or job.running_since is None:
            return float("inf")
        now = time.monotonic()
        own = self._cluster.kinds[job.kind].walltime_s - (now - job.running_since)
        told = job.seen.left_s
        return own if told is None else min(own, told - (now - job.seen_at))

    def _forget(self, job: WorkerJob) -> None:
        with self._lock:
            self._jobs.remove(job)
        if job.joined or job.draining:
            return
        self._failed[job.kind] += 1
        if self._failed[job.kind] >= FAILED_STARTS:
            log = self._maker.folder / f"{job.name}.log"
            self._problem = EnvironmentProblemError(
                f"{FAILED_STARTS} {job.kind} jobs in a row ended before their worker was there, the last is "
                f"{job.id}, {job.seen or 'no longer known'}; {log} says: {last_words(log)}"
            )

    def _match(self, kind: str, workers: Workers) -> None:
        """Submit what is missing; end what nobody needs for a while."""
        with self._lock:
            tasks = sum(self._tasks[resource] for resource in self._cluster.resources(kind))
        wanted = jobs_wanted(workers, tasks, self._maker.processes(kind))
        here = [job for job in self._jobs if job.kind == kind and not job.draining]
        for _ in range(wanted - len(here)):
            self._submit(kind)
        if len(here) <= wanted:
            self._surplus_since.pop(kind, None)
            return
        since = self._surplus_since.setdefault(kind, time.monotonic())
        if time.monotonic() - since < self._cluster.idle_s:
            return
        busy = self._client.processing()
        idle = [job for job in here if not any(busy.get(a) for a in job.addresses)]
        idle.sort(key=lambda job: (job.joined, -job.submitted))  # those that still wait first
        for job in idle[: len(here) - wanted]:
            self._drain(job, "nothing to do")

    def _submit(self, kind: str) -> None:
        self._number += 1
        name = f"{kind}-{self._number}"
        job = self._maker.job(kind, name, self._scheduler.scheduler_address)
        asyncio.run(job.start())
        with self._lock:
            self._jobs.append(WorkerJob(kind, name, job.job_id, time.monotonic()))
        self._write()

    def _drain(self, job: WorkerJob, why: str) -> None:
        """No more tasks for its workers; what runs there goes on."""
        if not job.draining:
            if job.addresses:
                self._client.run(pause, workers=job.addresses)
            job.draining = why
            self._write()

    def _end_if_done(self, job: WorkerJob) -> None:
        if not job.draining:
            return
        running = self._client.run(tasks_running, workers=job.addresses) if job.addresses else {}
        if any(running.values()):
            return
        if job.addresses:  # tasks that waited there go to others, and count as nobody's fault
            self._client.retire_workers(job.addresses, close_workers=True)
        batch_systems.cancel(self._where, [job.id])
        with self._lock:
            self._jobs.remove(job)
        self._write()

    # -- what outlives this process --------------------------------------------------------------------

    def _write(self) -> None:
        with self._lock:
            rows = [
                {
                    "kind": job.kind, "name": job.name, "id": job.id, "draining": job.draining,
                    "state": job.seen.word if job.seen else "", "reason": job.seen.reason if job.seen else "",
                    "workers": len(job.addresses),
                }
                for job in self._jobs
            ]  # fmt: skip
        document = {"where": self._where, "number": self._number, "jobs": rows}
        write_json_atomic(self._record, {**document, "unix_s": round(time.time(), 1)})

    def _clear_old_jobs(self) -> int:
        """Cancel what a controller that was killed left in the queue; the last number that it gave."""
        if not self._record.exists():
            return 0
        document = read_json(self._record)
        if document["where"] == self._where:
            batch_systems.cancel(self._where, [job["id"] for job in document["jobs"]])
        return int(document["number"])


def jobs_wanted(workers: Workers, tasks: int, processes: int) -> int:
    """Jobs of a kind for so many tasks, within the limits of the file."""
    return min(max(-(-tasks // processes), workers.least), workers.most)


def pause(dask_worker: Any) -> None:
    """On a worker: begin no more tasks."""
    from distributed.core import Status

    dask_worker.status = Status.paused


def tasks_running(dask_worker: Any) -> int:
    """On a worker: how many tasks are being computed."""
    return len(dask_worker.state.executing)
