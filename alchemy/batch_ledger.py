"""What the controller remembers of its batch jobs, and what the end of one means for its labels.

`batch.json` is written before a job is submitted and after, so that a controller that was killed in between
finds the job again by its name, which nobody else's has.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from alchemy.records import read_json, write_json_atomic
from alchemy.scheduler_states import Ending

FILE = "batch.json"
Cause = Literal[
    "", "out-of-time", "out-of-memory", "worker-killed", "cancelled", "preempted", "node-failure"
]
OWN_CAUSES = ("out-of-time", "out-of-memory", "worker-killed")  # the label's; the others are the machine's
LOST_REASONS = (*OWN_CAUSES, "cancelled", "preempted", "node-failure")


@dataclass
class BatchJob:
    """A job that is not over, as far as we know."""

    name: str  # ours, unique; also the scheduler's name of the job
    where: str
    fidelity: str
    root: str  # of the labels' directories
    keys: list[str]
    state: str = "submitting"  # then queued, running, or unknown
    id: str = ""  # the scheduler's
    word: str = ""
    submitted_unix_s: float = field(default_factory=time.time)


class Ledger:
    """Jobs by name, and the tries of labels that have failed before."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        document = read_json(self.path) if self.path.exists() else {}
        self.jobs = {job["name"]: BatchJob(**job) for job in document.get("jobs", ())}
        self.tries: dict[str, list[dict[str, Any]]] = document.get("tries", {})
        self.ended: Counter[str] = Counter(document.get("ended", {}))
        self.unreachable_unix_s: float | None = None  # since when the scheduler does not answer

    def save(self) -> None:
        """In one step; before and after everything that must not be forgotten."""
        document = {
            "jobs": [asdict(job) for job in self.jobs.values()],
            "tries": self.tries,
            "ended": dict(self.ended),
            "unreachable_unix_s": self.unreachable_unix_s,
            "written_unix_s": time.time(),
        }
        write_json_atomic(self.path, document)

    def charge(self, key: str, cause: str, *, job: BatchJob, word: str) -> tuple[int, int]:
        """Note a try that failed; how many were the label's own fault, and how many the machine's."""
        line = {"cause": cause, "job": job.name, "id": job.id, "word": word, "unix_s": round(time.time(), 1)}
        tries = self.tries.setdefault(key, [])
        tries.append(line)
        own = sum(one["cause"] in OWN_CAUSES for one in tries)
        return own, len(tries) - own


def counts(folder: Path) -> dict[str, Any] | None:
    """Jobs by state as the controller last knew them, for `alchemy status`; None without batch jobs."""
    if not (folder / FILE).is_file():
        return None
    document = read_json(folder / FILE)
    states = Counter(job["state"] for job in document["jobs"])
    return {
        "queued": states["queued"],
        "running": states["running"],
        "unknown": states["unknown"] + states["submitting"],
        "labels": sum(len(job["keys"]) for job in document["jobs"]),
        "ended": dict(document["ended"]),
        "unreachable_unix_s": document["unreachable_unix_s"],
        "written_unix_s": document["written_unix_s"],
    }


_CAUSES: dict[Ending, Cause] = {
    "timeout": "out-of-time",
    "out-of-memory": "out-of-memory",
    "cancelled": "cancelled",
    "preempted": "preempted",
    "node-failure": "node-failure",
}


def verdicts(
    keys: Sequence[str], record: Mapping[str, Any] | None, ending: Ending, *, walltime_s: float
) -> dict[str, Cause]:
    """Why each label of an ended job has no record: a cause, or '' if its turn had not come.

    Args:
        record: the exit record, None if the job did not get so far: then all labels share the cause.
        ending: the scheduler's word for it; 'unknown' where it has forgotten the job.
    """
    cause = _CAUSES.get(ending, "")
    if record is None:
        return dict.fromkeys(keys, cause)
    if not cause:
        # killed from outside, by somebody who has not said why
        over = record["ended_unix_s"] or time.time()
        late = over - record["began_unix_s"] > walltime_s - max(60.0, 0.05 * walltime_s)
        if record["reason"] == "signal":
            cause = "out-of-time" if late else "cancelled"
        else:
            cause = "out-of-time" if late and ending == "unknown" else "worker-killed"
    found: dict[str, Cause] = dict.fromkeys(keys, "")
    for line in record["labels"]:
        if line["key"] in found and line["state"] in ("running", "interrupted"):
            found[line["key"]] = cause
        elif line["key"] in found and line["state"] == "died":
            # the kernel takes the largest process, which is the label's, not the job's
            found[line["key"]] = cause if cause == "out-of-memory" else "worker-killed"
    return found
