"""What a batch job executes on its node: the labels of its pack, one after another.

    python -P -m alchemy.batch_job --began UNIX_SECONDS       (in the job's directory)

Needs neither pyiron nor its database nor the scheduler: it reads `pack.json`, leaves the labels' records
where they always are, and keeps `exit.json` up to date, from which the controller knows what happened.
Each label is a process of its own, so that one that crashes does not take the others with it; when the job
ends, everything that was started in it ends too. A label is begun only if it is expected to fit.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alchemy import label_claims, tasks
from alchemy.errors import AlchemyError, EnvironmentProblemError
from alchemy.orphans import adopt_orphans, die_with_parent, kill_descendants
from alchemy.records import FILE_NAME, read_json, write_json_atomic

PACK, EXIT, REVOKED, PROBLEM, RESERVE = "pack.json", "exit.json", "revoked", "problem.json", ".reserve"
RESERVE_BYTES = 65536  # given back when the disk is full, so that this can be said
JOB_ID_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
SLACK = 1.3  # a label may take so much longer than the longest of its level until now
MARGIN_FRACTION, MARGIN_S = 0.05, (5.0, 300.0)  # of the walltime: for the scheduler and our own end
DISK_FULL, TERMINATED = 74, 128 + signal.SIGTERM


class _TerminatedError(Exception):
    """The scheduler wants the job to end."""


class Job:
    """The pack, and the exit record as it grows."""

    def __init__(self, directory: Path, began: float) -> None:
        self.directory = directory
        self.pack: dict[str, Any] = read_json(directory / PACK)
        margin = min(max(MARGIN_FRACTION * self.pack["walltime_s"], MARGIN_S[0]), MARGIN_S[1])
        self.ends = began + self.pack["walltime_s"] - margin
        self.longest: dict[str, float] = dict(self.pack["expected_s"])
        self.record: dict[str, Any] = {
            "format": "alchemy-exit-record",
            "version": 1,
            "job": self.pack["name"],
            "scheduler_id": next((os.environ[n] for n in JOB_ID_VARIABLES if n in os.environ), None),
            "host": platform.node(),
            "pid": os.getpid(),
            "began_unix_s": began,
            "labels": [],
            "ended_unix_s": None,
            "reason": None,
            "message": None,
        }

    def run(self) -> int:
        """All labels that fit; the exit status of the job."""
        (self.directory / RESERVE).write_bytes(b" " * RESERVE_BYTES)
        self._write()
        try:
            for entry in self.pack["labels"]:
                reason = self._reason_to_stop(entry["request"]["fidelity"])
                if reason:
                    return self._end(reason, "")
                self._label(entry)
        except _TerminatedError:
            return self._end("signal", "SIGTERM: cancelled, preempted, or the time is over", TERMINATED)
        except AlchemyError as error:
            return self._end("problem", str(error), error.exit_code, kind=type(error).__name__)
        except OSError as error:
            (self.directory / RESERVE).unlink(missing_ok=True)
            return self._end("os-error", str(error), DISK_FULL)
        return self._end("done", "")

    def _reason_to_stop(self, fidelity: str) -> str:
        if (self.directory / REVOKED).exists():
            return "revoked"
        expected = self.longest.get(fidelity, 0.0) * SLACK
        # the first one is begun in any case: a job that does nothing would come again for ever
        if self.record["labels"] and time.time() + expected > self.ends:
            return "walltime"
        return ""

    def _label(self, entry: dict[str, Any]) -> None:
        key, request, name = entry["key"], entry["request"], self.pack["name"]
        root = Path(request["root"])
        line: dict[str, Any] = {"key": key, "state": "running", "began_unix_s": time.time()}
        self.record["labels"].append(line)
        if (root / key / FILE_NAME).is_file():
            line["state"] = "finished"
            return self._write()
        holder = label_claims.take(root, key, name)
        if holder:
            line.update(state="held", message=f"{holder} computes it")
            return self._write()
        try:
            if not (root / key / FILE_NAME).is_file():  # finished between our look and our claim
                label_claims.log_attempt(root, key, name)
                self._write()
                line["message"] = self._in_child(key, request)
        finally:
            kill_descendants()
            label_claims.release(root, [key], name)
        line["wall_s"] = time.time() - line["began_unix_s"]
        line["state"] = "finished" if (root / key / FILE_NAME).is_file() else "died"
        if line["state"] == "finished":
            known = self.longest.get(request["fidelity"], 0.0)
            self.longest[request["fidelity"]] = max(known, line["wall_s"])
        return self._write()

    def _in_child(self, key: str, request: dict[str, Any]) -> str:
        """'' or how the label's process died; what is wrong for all labels is raised."""
        sys.stdout.flush()
        problem = self.directory / PROBLEM
        problem.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                die_with_parent()
                status = _compute(key, request, problem)
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        if problem.is_file():
            document = read_json(problem)
            if document["error"] == "OSError":
                raise OSError(document["message"])
            raise _kind(document["error"])(document["message"])
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM:
            raise _TerminatedError  # sent to all processes of the job; ours is on its way
        if os.WIFSIGNALED(status):
            return f"its process was killed by {signal.Signals(os.WTERMSIG(status)).name}"
        code = os.WEXITSTATUS(status)
        return f"its process ended with status {code}; see job.out" if code else ""

    def _end(self, reason: str, message: str, status: int = 0, *, kind: str = "") -> int:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        kill_descendants()
        for line in self.record["labels"]:
            if line["state"] == "running":
                line["state"] = "interrupted"
        self.record.update(ended_unix_s=time.time(), reason=reason, message=message, kind=kind)
        self._write()
        (self.directory / RESERVE).unlink(missing_ok=True)
        if message:
            print(message, file=sys.stderr)
        return status

    def _write(self) -> None:
        write_json_atomic(self.directory / EXIT, self.record)


def _compute(key: str, request: dict[str, Any], problem: Path) -> int:
    """One label, in its own process."""
    try:
        result = tasks.label(request)
        if result["key"] != key:
            raise EnvironmentProblemError(
                f"labeler '{request['labeler']}' means other physics on {platform.node()} than where the "
                "campaign runs (another release of its code, another template?): use the same "
                "environment on both, such as by run.labels.setup"
            )
    except AlchemyError as error:
        write_json_atomic(problem, {"error": type(error).__name__, "message": str(error)})
        return error.exit_code
    except OSError as error:
        traceback.print_exc()
        (problem.parent / RESERVE).unlink(missing_ok=True)
        write_json_atomic(problem, {"error": "OSError", "message": str(error)})
        return DISK_FULL
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _kind(name: str) -> type[AlchemyError]:
    from alchemy import errors

    found: type[AlchemyError] = getattr(errors, name, EnvironmentProblemError)
    return found


def _terminate(number: int, frame: Any) -> None:
    raise _TerminatedError


def main(arguments: Sequence[str]) -> int:
    """Run the pack in the current directory."""
    parser = argparse.ArgumentParser(prog="python -m alchemy.batch_job")
    parser.add_argument("--began", type=float, default=time.time(), help="when the job began, Unix time")
    given = parser.parse_args(arguments)
    adopt_orphans()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return Job(Path.cwd(), given.began).run()
    except OSError as error:  # not even the exit record could be written
        print(f"{Path.cwd()}: {error}", file=sys.stderr)
        return DISK_FULL


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
