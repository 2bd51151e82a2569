"""What submitting batch jobs and watching them share: the project, the ledger, the schedulers."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from alchemy.batch_job import PACK, REVOKED
from alchemy.batch_ledger import BatchJob, Ledger
from alchemy.config_labels import LabelJobs
from alchemy.errors import AlchemyError, EnvironmentProblemError
from alchemy.label_runners import Request
from alchemy.pyiron_project import BatchProject
from alchemy.pyiron_queue import Queue, QueueFullError, script
from alchemy.records import write_json_atomic


@dataclass
class Watch:
    """What a controller knows of a job beside the ledger."""

    directory: Path
    recovered: bool = False  # it was submitted by an earlier controller
    stamp: int = 0  # of the exit record that was read last
    record: dict[str, Any] | None = None
    missing_since: float | None = None
    over_since: float | None = None
    hopeless_since: float | None = None
    incomplete_since: float | None = None


class Desk:
    """The batch jobs of a folder."""

    def __init__(
        self,
        folder: Path,
        *,
        jobs_of: Callable[[str], LabelJobs],
        base_dir: Path,
        say: Callable[[str], None],
    ) -> None:
        self.jobs_of, self.base_dir, self.say = jobs_of, base_dir, say
        self.project = BatchProject(folder)
        self.ledger = Ledger(folder)
        self.watches = {n: Watch(self.project.directory(n), True) for n in self.ledger.jobs}
        self._queues: dict[str, Queue] = {}

    def queue(self, where: str) -> Queue:
        """The scheduler of that kind."""
        if where not in self._queues:
            self._queues[where] = Queue(where)
        return self._queues[where]

    def give_up(self, error: AlchemyError) -> NoReturn:
        """Cancel what has not begun, then raise."""
        for job in list(self.ledger.jobs.values()):
            if job.id and self.watches[job.name].record is None:
                self.queue(job.where).cancel(job.id)
                (self.watches[job.name].directory / REVOKED).touch()
                self.project.ended(job.name, {"ending": "cancelled", "word": str(error)}, aborted=True)
                del self.ledger.jobs[job.name], self.watches[job.name]
                self.ledger.ended["cancelled"] += 1
        self.ledger.save()
        raise error

    def submit(
        self, fidelity: str, requests: Mapping[str, Request], expected_s: Mapping[str, float]
    ) -> None:
        """One job for these labels, by key.

        Raises:
            EnvironmentProblemError: refused, in the scheduler's words.
            UnreachableError: no answer; the ledger has the job, and its name tells whether it is there.
            QueueFullError: not now.
        """
        jobs, keys = self.jobs_of(fidelity), list(requests)
        name = f"al{uuid.uuid4().hex[:12]}"  # PBS cuts names at 15 characters
        directory = self.project.directory(name)
        text = script(jobs, name, directory=directory, base_dir=self.base_dir)
        queue = self.queue(jobs.where)
        directory.mkdir(parents=True)
        labels = [{"key": key, "request": requests[key]} for key in keys]
        pack = {"name": name, "walltime_s": jobs.walltime_s, "expected_s": dict(expected_s), "labels": labels}
        write_json_atomic(directory / PACK, pack)
        job = BatchJob(name, jobs.where, fidelity, requests[keys[0]]["root"], keys)
        self.ledger.jobs[name], self.watches[name] = job, Watch(directory)
        self.ledger.save()
        self.project.make(name, {"fidelity": fidelity, "labels": keys, "where": jobs.where})
        try:
            job.id = queue.submit(text, directory=directory, name=name)
        except (QueueFullError, EnvironmentProblemError) as error:
            del self.ledger.jobs[name], self.watches[name]
            self.ledger.save()
            self.project.ended(name, {"ending": "refused", "word": str(error)}, aborted=True)
            if isinstance(error, QueueFullError):
                raise
            self.give_up(
                EnvironmentProblemError(
                    f"{jobs.where} refuses the batch job of '{fidelity}': {error}; change run.labels "
                    f"(script: {directory / 'run_queue.sh'})"
                )
            )
        job.state = "queued"
        self.ledger.save()
        self.project.submitted(name, job.id)
