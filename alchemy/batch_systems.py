"""Slurm, PBS, SGE and LSF by their own commands: submit, ask, cancel.

For jobs of ours that are no labels: workers and the campaign's controller. Slurm is tested for real; the
words of the others are read as their manuals and published outputs show them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .config_cluster import BATCH_SYSTEMS, Where
from .errors import EnvironmentProblemError

COMMANDS: dict[Where, tuple[str, ...]] = {
    "slurm": ("sbatch", "squeue", "scancel"),
    "pbs": ("qsub", "qstat", "qdel"),
    "sge": ("qsub", "qstat", "qdel"),
    "lsf": ("bsub", "bjobs", "bkill"),
}
NAMES: dict[Where, str] = {"slurm": "Slurm", "pbs": "PBS", "sge": "SGE", "lsf": "LSF"}
TIMEOUT_S = 60

SLURM_PENDING = (
    "PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"
)  # fmt: skip
SLURM_RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")


@dataclass(frozen=True)
class Seen:
    """A job as its batch system shows it."""

    state: Literal["pending", "running", "ended"]
    word: str  # the batch system's own
    reason: str = ""
    left_s: float | None = None  # until its walltime, where the batch system says so

    def __str__(self) -> str:
        reason = self.reason if self.reason not in ("", "None", "-") else ""
        return f"{self.word} ({reason})" if reason else self.word


def require(where: Where) -> None:
    """Raises EnvironmentProblemError when a command of the batch system is missing."""
    missing = [name for name in COMMANDS[where] if shutil.which(name) is None]
    if missing:
        raise EnvironmentProblemError(
            f"{NAMES[where]} is not on this machine: {', '.join(missing)} not found in PATH; start alchemy "
            "on a login node, or set run.where to local"
        )


def installed() -> Where | None:
    """The batch system of this machine; SGE has PBS's commands, and a cell of its own."""
    found: list[Where] = [w for w in BATCH_SYSTEMS if all(shutil.which(c) for c in COMMANDS[w])]
    if "sge" in found and "pbs" in found:
        found.remove("pbs" if "SGE_ROOT" in os.environ else "sge")
    return found[0] if found else None


def submit(where: Where, script: Path, *, after: str | None = None) -> str:
    """Hand in a script, to start when the job `after` has ended in whichever way; returns the job's number.

    Raises:
        EnvironmentProblemError: the command is missing or refuses; says with which words.
    """
    require(where)
    number = re.search(r"\d+", _run(_submission(where, script, after), script if where == "lsf" else None))
    if number is None:
        raise EnvironmentProblemError(f"{NAMES[where]} took {script} without saying a job number")
    return number[0]


def _submission(where: Where, script: Path, after: str | None) -> list[str]:
    if where == "slurm":
        wait = [f"--dependency=afterany:{after}"] if after else []
        return ["sbatch", "--parsable", *wait, str(script)]
    if where == "pbs":
        return ["qsub", *(["-W", f"depend=afterany:{after}"] if after else []), str(script)]
    if where == "sge":
        return ["qsub", *(["-hold_jid", after] if after else []), str(script)]
    return ["bsub", *(["-w", f"ended({after})"] if after else [])]


def cancel(where: Where, jobs: Sequence[str]) -> None:
    """Take jobs out of the queue; those that are gone are no error."""
    if jobs:
        command = COMMANDS[where][2]
        subprocess.run([command, *jobs], capture_output=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)


def terminate_slurm(job: str) -> None:
    """SIGTERM to the script of a running job; Slurm kills nothing."""
    _run(["scancel", "--batch", "--signal=TERM", job])


def look(where: Where, jobs: Sequence[str]) -> dict[str, Seen]:
    """What the batch system says of these jobs; those that it has forgotten are left out.

    Raises:
        EnvironmentProblemError: it does not answer.
    """
    if not jobs:
        return {}
    if where == "slurm":  # of all our jobs, because squeue refuses a list with a number that is gone
        text = _run(["squeue", "-h", "-t", "all", "-u", str(os.getuid()), "-o", "%i|%T|%r|%e"])
        found = dict(read_squeue(text, time.time()))
    elif where == "pbs":
        found = dict(read_qstat_full(_run(["qstat", "-f", *jobs], partial=True)))
    elif where == "sge":
        found = dict(read_sge_qstat(_run(["qstat", "-u", _user()])))
    else:
        fields = "jobid stat time_left pend_reason delimiter='|'"
        found = dict(read_bjobs(_run(["bjobs", "-noheader", "-o", fields, *jobs], partial=True)))
    return {job: found[job] for job in jobs if job in found}


def read_squeue(text: str, now_unix_s: float) -> Iterator[tuple[str, Seen]]:
    """Lines of `squeue -h -o '%i|%T|%r|%e'` with times as seconds; its time left ignores a changed end."""
    for line in text.splitlines():
        number, word, reason, end = line.strip().split("|", 3)
        state = "pending" if word in SLURM_PENDING else "running" if word in SLURM_RUNNING else "ended"
        left_s = float(end) - now_unix_s if state == "running" and end.isdigit() else None
        yield number, Seen(_state(state), word, reason, left_s)


def read_qstat_full(text: str) -> Iterator[tuple[str, Seen]]:
    """`qstat -f` of OpenPBS and Torque."""
    text = text.replace("\n\t", "")  # long values go on in the next line
    for block in re.split(r"^Job Id: ", text, flags=re.MULTILINE)[1:]:
        facts = dict(re.findall(r"^\s+(\S+) = (.*)$", block, flags=re.MULTILINE))
        word = facts.get("job_state", "?")
        state = "running" if word in "REBS" else "ended" if word in "CFX" else "pending"
        limit, used = (facts.get(f"{k}.walltime") for k in ("Resource_List", "resources_used"))
        both = (seconds(limit or ""), seconds(used or "0:00"))
        left = both[0] - both[1] if both[0] is not None and both[1] is not None else None
        number = block.split(".")[0].split()[0]
        left = left if state == "running" else None
        yield number, Seen(_state(state), word, facts.get("comment", ""), left)


def read_sge_qstat(text: str) -> Iterator[tuple[str, Seen]]:
    """The table of `qstat -u`; its fifth column is the state."""
    for line in text.splitlines():
        words = line.split()
        if len(words) < 5 or not words[0].isdigit():
            continue
        word = words[4]
        state = "running" if set(word) & set("rtsST") else "pending"
        reason = f"an error of the job; qstat -j {words[0]} says which" if "E" in word else ""
        yield words[0], Seen(_state(state), word, reason)


def read_bjobs(text: str) -> Iterator[tuple[str, Seen]]:
    """Lines of `bjobs -noheader -o "jobid stat time_left pend_reason delimiter='|'"`."""
    for line in text.splitlines():
        if line.count("|") < 3:
            continue
        number, word, left, reason = line.strip().split("|", 3)
        over = word in ("DONE", "EXIT")
        state = "running" if word in ("RUN", "USUSP", "SSUSP") else "ended" if over else "pending"
        minutes = re.match(r"(\d+):(\d+)", left)
        known = minutes is not None and state == "running"
        left_s = 60.0 * (60 * int(minutes[1]) + int(minutes[2])) if minutes and known else None
        yield number, Seen(_state(state), word, reason.strip(), left_s)


def seconds(text: str) -> float | None:
    """Of PBS's '02:03:04' or '03:04'; None for anything else."""
    match = re.fullmatch(r"(?:(\d+):)?(\d+):(\d+)", text.strip())
    if match is None:
        return None
    hours, minutes, rest = (int(part or 0) for part in match.groups())
    return float((hours * 60 + minutes) * 60 + rest)


def walltime_text(limit_s: float) -> str:
    """'12:00:00', which all four understand but LSF, whose limits are minutes: '12:00'."""
    whole = round(limit_s)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _state(word: str) -> Literal["pending", "running", "ended"]:
    return "pending" if word == "pending" else "running" if word == "running" else "ended"


def _user() -> str:
    import getpass

    return getpass.getuser()


def _run(command: list[str], stdin: Path | None = None, *, partial: bool = False) -> str:
    """Standard output; with `partial` also where some of the jobs asked for are unknown."""
    environment: Mapping[str, str] = {**os.environ, "LC_ALL": "C", "SLURM_TIME_FORMAT": "%s"}
    try:
        text = stdin.read_text(encoding="utf-8") if stdin else ""
        done = subprocess.run(
            command, input=text, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except FileNotFoundError as error:
        raise EnvironmentProblemError(f"{command[0]} not found in PATH") from error
    except subprocess.TimeoutExpired as error:
        raise EnvironmentProblemError(f"{command[0]} does not answer within {TIMEOUT_S} s") from error
    if done.returncode != 0 and not (partial and done.stdout.strip()):
        said = " ".join((done.stderr or done.stdout).split())
        if partial and re.search(r"unknown job|not found|finished", said, re.IGNORECASE):
            return ""
        raise EnvironmentProblemError(f"{' '.join(command[:3])}… failed with code {done.returncode}: {said}")
    return done.stdout
