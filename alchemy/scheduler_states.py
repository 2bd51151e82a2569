"""What schedulers say about jobs, in one vocabulary. Pure functions of the text that their programs print.

Slurm's is checked against a real Slurm, the others' against printed examples.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

State = Literal["queued", "running", "ended"]
Ending = Literal[
    "", "completed", "failed", "timeout", "out-of-memory", "cancelled", "preempted", "node-failure", "unknown"
]


@dataclass(frozen=True)
class Seen:
    """One job as the scheduler shows it."""

    id: str
    name: str
    state: State
    ending: Ending = ""
    word: str = ""  # the scheduler's own
    hopeless: bool = False  # waits for something that waiting does not bring


_SLURM_ENDED: dict[str, Ending] = {
    "COMPLETED": "completed",
    "FAILED": "failed",
    "SPECIAL_EXIT": "failed",
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "OUT_OF_MEMORY": "out-of-memory",
    "CANCELLED": "cancelled",
    "REVOKED": "cancelled",
    "PREEMPTED": "preempted",
    "NODE_FAIL": "node-failure",
    "BOOT_FAIL": "node-failure",
}
_SLURM_QUEUED = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD")
_SLURM_HOPELESS = re.compile(
    r"Partition(Config|NodeLimit|TimeLimit)|BadConstraints|AccountNotAllowed|QOSNotAllowed|Invalid(Account|QOS)"
    r"|DependencyNeverSatisfied|(Assoc|QOS)(Max|Grp)\w*(PerJob|PerJobLimit)|MaxMemPerLimit"
    r"|launch failed requeued held"
)


def slurm(squeue: str) -> Iterator[Seen]:
    """Lines `id|STATE|Reason|name` of squeue."""
    for line in squeue.splitlines():
        fields = line.strip().split("|")
        if len(fields) < 4:
            continue
        number, state, reason, name = fields[0], fields[1], fields[2], "|".join(fields[3:])
        yield _slurm_job(number, name, state, "" if reason == "None" else reason)


def slurm_accounting(sacct: str) -> Iterator[Seen]:
    """Lines `id|State|name` of sacct; a state may be 'CANCELLED by 1000'."""
    for line in sacct.splitlines():
        fields = line.strip().split("|")
        if len(fields) >= 3 and "." not in fields[0]:
            yield _slurm_job(fields[0], "|".join(fields[2:]), fields[1].split()[0], "")


def _slurm_job(number: str, name: str, state: str, reason: str) -> Seen:
    word = f"{state} ({reason})" if reason else state
    if state in _SLURM_ENDED:
        return Seen(number, name, "ended", _SLURM_ENDED[state], word)
    if state in _SLURM_QUEUED:
        return Seen(number, name, "queued", "", word, bool(_SLURM_HOPELESS.fullmatch(reason)))
    return Seen(number, name, "running", "", word)


_KILLED = 256 + 15  # what PBS reports for a job that it ended


def pbs(qstat: str) -> Iterator[Seen]:
    """The blocks of `qstat -f`, of OpenPBS and of Torque."""
    for block in re.split(r"^Job Id: *", qstat, flags=re.MULTILINE)[1:]:
        head, _, rest = block.partition("\n")
        joined = re.sub(r"\n\t", "", rest)  # long values go on after a tab
        facts = dict(re.findall(r"^ +([\w.]+) = (.*)$", joined, flags=re.MULTILINE))
        number, name = head.strip().split(".")[0], facts.get("Job_Name", "")
        letter, comment = facts.get("job_state", ""), facts.get("comment", "")
        word = f"{letter} ({comment})" if comment else letter
        if letter in ("C", "F", "X"):
            yield Seen(number, name, "ended", _pbs_ending(facts), word)
        elif letter in ("R", "E"):
            yield Seen(number, name, "running", "", word)
        else:
            yield Seen(number, name, "queued", "", word, "Can Never Run" in comment)


def _pbs_ending(facts: dict[str, str]) -> Ending:
    status = facts.get("exit_status", facts.get("Exit_status", ""))
    if status == "0":
        return "completed"
    used, limit = (_seconds(facts.get(f"{k}.walltime", "")) for k in ("resources_used", "Resource_List"))
    if limit and used >= limit:
        return "timeout"
    return "cancelled" if status in (str(_KILLED), "-15") else "failed"


def _seconds(clock: str) -> int:
    parts = [int(p) for p in clock.split(":")] if re.fullmatch(r"\d+(:\d+)*", clock) else []
    total = 0
    for part in parts:
        total = 60 * total + part
    return total


def sge(number: str, name: str, state: str) -> Seen:
    """A row of pysqa's table of `qstat -xml`; a job that ended is in no row."""
    if state == "pending":
        return Seen(number, name, "queued", "", "qw")
    if state == "error" or "h" in state:
        return Seen(number, name, "queued", "", "Eqw" if state == "error" else state, state == "error")
    return Seen(number, name, "running", "", state)


_LSF_TERMS: dict[str, Ending] = {
    "TERM_RUNLIMIT": "timeout",
    "TERM_DEADLINE": "timeout",
    "TERM_MEMLIMIT": "out-of-memory",
    "TERM_SWAP": "out-of-memory",
    "TERM_OWNER": "cancelled",
    "TERM_FORCE_OWNER": "cancelled",
    "TERM_ADMIN": "cancelled",
    "TERM_FORCE_ADMIN": "cancelled",
    "TERM_PREEMPT": "preempted",
    "TERM_ZOMBIE": "node-failure",
}


def lsf(bjobs: str) -> Iterator[Seen]:
    """Lines `id|STAT|name|exit_reason|pend_reason` of bjobs."""
    for line in bjobs.splitlines():
        fields = [part.strip() for part in line.split("|")]
        if len(fields) < 3:
            continue
        number, state, name = fields[:3]
        reason = next((f for f in fields[3:] if f not in ("", "-")), "")
        word = f"{state} ({reason})" if reason else state
        if state == "DONE":
            yield Seen(number, name, "ended", "completed", word)
        elif state == "EXIT":
            term = re.match(r"TERM_\w+", reason)
            yield Seen(number, name, "ended", _LSF_TERMS.get(term[0] if term else "", "failed"), word)
        elif state in ("PEND", "PSUSP"):
            yield Seen(number, name, "queued", "", word)
        elif state in ("ZOMBI", "UNKWN"):
            yield Seen(number, name, "ended" if state == "ZOMBI" else "running", "node-failure", word)
        else:
            yield Seen(number, name, "running", "", word)
