"""The campaign's controller as a batch job that hands over to the next before its walltime.

`controller.json` in the campaign's directory says which job it is. The job runs the campaign as `alchemy
run` does. Some time before its walltime it begins no more tasks, lets those under way finish, stops as after
SIGTERM, and submits its own script again, to start when it has ended; so there are never two. A job that
ends for any other reason, a signal from outside included, is not followed by another.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import batch_systems
from .config_cluster import Where, size_bytes
from .errors import (
    AlchemyError,
    CampaignBusyError,
    EnvironmentProblemError,
    InputError,
    InterruptedRunError,
)
from .executors import Interrupt
from .lease import STALE_S, refuse_if_held
from .records import read_json, write_json_atomic, write_text_atomic
from .state import Home, RoundState

RECORD, FOLDER = "controller.json", "controller"
STALLED = 5  # exit code
IDLE_JOBS = 2  # jobs in a row that may end at their walltime without having brought the campaign on
NAME_LENGTH = 15  # what older releases of PBS take
HARD_STOP_S = 30.0
LEAST_MARGIN_S, MOST_MARGIN_S = 45.0, 1800.0
BUSY_RETRY_S = 15.0
JOB_ID: dict[Where, str] = {
    "slurm": "SLURM_JOB_ID", "pbs": "PBS_JOBID", "sge": "JOB_ID", "lsf": "LSB_JOBID"
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What `alchemy submit` was asked for; the same for every job of the chain."""

    where: Where
    campaign: str  # path of the file or directory that the user named
    home: str
    until: int | None = None
    only: tuple[str, ...] = ()
    partition: str | None = None
    account: str | None = None
    walltime_s: float = 43200.0
    cores: int = 1
    memory: str = "4 GB"
    directives: tuple[str, ...] = ()
    setup: str | None = None
    python: str | None = None

    @property
    def margin_s(self) -> float:
        """Before the walltime, for tasks under way to finish: a tenth of it, within limits."""
        return min(max(0.1 * self.walltime_s, LEAST_MARGIN_S), MOST_MARGIN_S)


@dataclass
class Record:
    """What is known of the chain of jobs."""

    request: Request
    job: str = ""
    jobs: int = 0  # submitted so far
    idle: int = 0  # of these, how many in a row brought nothing
    exit_code: int | None = None
    message: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)

    def write(self) -> None:
        write_json_atomic(Path(self.request.home) / RECORD, asdict(self))


def read_record(home: Path) -> Record | None:
    """None for a campaign that was never submitted."""
    if not (home / RECORD).is_file():
        return None
    document = read_json(home / RECORD)
    request = document.pop("request")
    request.update(only=tuple(request["only"]), directives=tuple(request["directives"]))
    return Record(request=Request(**request), **document)


def script(request: Request) -> str:
    """The job script, for a person to read or the batch system to run."""
    from .executors_jobs import first_lines, header_path
    from .labelers.base import render

    home = Path(request.home)
    python = request.python or sys.executable
    context = {
        "name": re.sub(r"[^A-Za-z0-9_.-]+", "_", f"alchemy-{home.name}")[:NAME_LENGTH],
        "log": header_path(home / FOLDER / "controller.log"),
        "limit": batch_systems.walltime_text(request.walltime_s),
        "limit_minutes": batch_systems.walltime_text(request.walltime_s).rpartition(":")[0],
        "cores": request.cores,
        "memory_MB": -(-size_bytes(request.memory) // 10**6),
        "signal_s": round(request.margin_s),
        "partition": request.partition,
        "account": request.account,
        "directives": list(request.directives),
        "lines": first_lines(request.setup, python, home),
        "command": f"{shlex.quote(python)} -P -m alchemy controller {shlex.quote(request.home)}",
    }
    return render(f"schedulers/controller.{request.where}.j2", context)


def submit(request: Request) -> str:
    """Submit the first job of a chain; its number.

    Raises:
        CampaignBusyError: somebody runs the campaign, or its controller is in the queue.
        EnvironmentProblemError: the batch system is missing or refuses.
    """
    home = Path(request.home)
    refuse_if_held(Home(home).lease)
    before = read_record(home)
    if before is not None and (seen := seen_of(before)) is not None and seen.state != "ended":
        raise CampaignBusyError(
            f"job {before.job} ({seen}) is the controller of this campaign; 'alchemy submit --cancel' ends it"
        )
    batch_systems.require(request.where)
    (home / FOLDER).mkdir(parents=True, exist_ok=True)
    record = Record(request, history=before.history if before else [])
    _submit(record, after=None)
    return record.job


def _submit(record: Record, after: str | None) -> None:
    path = Path(record.request.home) / FOLDER / f"controller.{record.request.where}.sh"
    write_text_atomic(path, script(record.request))
    record.job = batch_systems.submit(record.request.where, path, after=after)
    record.jobs += 1
    record.write()


def cancel(home: Path) -> str:
    """Ask the controller's job to stop, as Ctrl-C would; which job it was.

    Raises:
        InputError: there is none.
    """
    record = read_record(home)
    seen = seen_of(record) if record else None
    if record is None or seen is None or seen.state == "ended":
        raise InputError(f"{home} has no controller in a queue; 'alchemy submit' starts one")
    if record.request.where == "slurm" and seen.state == "running":
        batch_systems.terminate_slurm(record.job)  # the signal alone: it takes the time that it needs
    else:
        batch_systems.cancel(record.request.where, [record.job])
    return record.job


def seen_of(record: Record) -> batch_systems.Seen | None:
    """The job as its batch system shows it; None when it is forgotten there, or nothing answers."""
    try:
        return batch_systems.look(record.request.where, [record.job]).get(record.job)
    except EnvironmentProblemError:
        return None


def facts(home: Path) -> dict[str, Any] | None:
    """For `alchemy status`; None for a campaign that was never submitted."""
    record = read_record(home)
    if record is None:
        return None
    seen = seen_of(record)
    return {
        "where": record.request.where,
        "job": record.job,
        "state": str(seen) if seen else "no longer in the queue",
        "jobs": record.jobs,
        "exit_code": record.exit_code,
        "message": record.message,
    }


# -- inside the job ------------------------------------------------------------------------------------


class Clock:
    """Rings some time before the walltime: first for no more tasks, at last for an end whatever runs."""

    def __init__(self, request: Request, interrupt: Interrupt, started_unix_s: float) -> None:
        self.rang = False
        self._interrupt, self._request = interrupt, request
        self._end = started_unix_s + request.walltime_s
        self._ring = threading.Event()
        threading.Thread(target=self._wait, daemon=True).start()

    def ring(self) -> None:
        """The batch system says that the end is near; it may have been moved."""
        self._end = min(self._end, time.time() + self._request.margin_s)
        self._ring.set()

    def _wait(self) -> None:
        self._ring.wait(max(0.0, self._end - self._request.margin_s - time.time()))
        self.rang = True
        self._interrupt.drain()
        time.sleep(max(0.0, self._end - HARD_STOP_S - time.time()))
        self._interrupt.set()


def run_job(home: Path, run: Callable[[Request, Interrupt], tuple[int, str]]) -> Record:
    """What the job does: `run` the campaign (exit code and last words), hand over if time is up.

    Raises:
        InputError: `home` was never submitted.
    """
    record = read_record(home)
    if record is None:
        raise InputError(f"{home} has no {RECORD}: 'alchemy submit' writes it, and its job runs this command")
    job = _own_number(record.request.where)
    if job and job != record.job:  # the first job started before its number was written, or was requeued
        record.job = job
    started = float(os.environ.get("ALCHEMY_JOB_STARTED", time.time()))
    before, interrupt = progress_mark(home), Interrupt()
    clock = Clock(record.request, interrupt, started)
    signal.signal(signal.SIGUSR1, lambda number, frame: clock.ring())
    code, message = _run(record, interrupt, run)
    record = read_record(home) or record
    entry = {"job": job, "started_unix_s": started, "ended_unix_s": round(time.time(), 1), "exit_code": code}
    record.history.append(entry)
    record.exit_code, record.message = code, message
    if code == InterruptedRunError.exit_code and clock.rang:
        record.idle = 0 if progress_mark(home) != before else record.idle + 1
        _hand_over(record, after=job)
    record.write()
    return record


def _hand_over(record: Record, after: str) -> None:
    if record.idle >= IDLE_JOBS:
        record.exit_code = STALLED
        record.message = (
            f"{IDLE_JOBS} jobs in a row reached their walltime of {record.request.walltime_s:g} s without "
            "finishing a stage, a label or a training; submit again with a longer --walltime, or see "
            f"{Path(record.request.home) / FOLDER / 'controller.log'}"
        )
        return
    record.message = "handed over to the next job"  # already true of what the submission writes
    try:
        _submit(record, after=after)
    except EnvironmentProblemError as error:
        record.message = f"the next job could not be submitted: {error}; run 'alchemy submit' again"
        record.exit_code = error.exit_code
        return
    record.message = f"handed over to job {record.job}"


def _run(
    record: Record, interrupt: Interrupt, run: Callable[[Request, Interrupt], tuple[int, str]]
) -> tuple[int, str]:
    """A job that its batch system started again on another node waits until the old lease is stale."""
    deadline = time.monotonic() + (STALE_S + 60 if _started_again(record.request.where) else 0.0)
    while True:
        try:
            return run(record.request, interrupt)
        except CampaignBusyError as error:
            if time.monotonic() > deadline:
                return error.exit_code, str(error)
            time.sleep(BUSY_RETRY_S)
        except AlchemyError as error:
            return error.exit_code, str(error)


def _own_number(where: Where) -> str:
    return os.environ.get(JOB_ID[where], "").split(".")[0]


def _started_again(where: Where) -> bool:
    if where == "sge":
        return os.environ.get("RESTARTED") == "1"
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0" or where in ("pbs", "lsf")


def progress_mark(home: Path) -> tuple[int, int, int]:
    """Changes when a stage ends, a label is committed, or a file of a round is made."""
    from .store import Store

    place = Home(home)
    stages = sum(len(RoundState(place, number).stages) for number in place.rounds())
    there = place.store.exists() or place.store.with_name(f"{place.store.name}.d").exists()
    commits = Store(place.store).snapshot().last if there else 0
    files = sum(1 for path in home.glob("rounds/*/**/*") if not path.name.startswith("."))
    return stages, commits, files
