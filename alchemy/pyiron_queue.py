"""One batch scheduler through pysqa: submit a script, cancel a job, look at the queue.

pysqa knows the commands and reads the job's number; scripts are rendered here, in the sandbox that all
templates go through, and what went wrong is raised in the scheduler's words (pysqa drops them). States are
asked for by ourselves where pysqa's table does not do: it says nothing of jobs that ended, takes a finished
one of Torque for a waiting one, and cuts names.
"""

from __future__ import annotations

import getpass
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alchemy import scheduler_states
from alchemy.config_labels import LabelJobs
from alchemy.errors import EnvironmentProblemError, InputError
from alchemy.labelers.base import render
from alchemy.scheduler_states import Seen

COMMAND_TIMEOUT_S = 60.0
PYSQA_NAMES = {"slurm": "SLURM", "pbs": "TORQUE", "sge": "SGE", "lsf": "LSF"}
QUERIES = ("squeue", "qstat", "bjobs")  # that one of them fails is a reason to wait, never to end
# what a path may hold that stands in a comment for the scheduler, which knows no quotes
_UNFIT = re.compile(r"[^\w./+@=~-]")
_UNREACHABLE = re.compile(
    r"[Uu]nable to contact|[Cc]onnection (refused|reset|failure|timed out)|[Ss]ocket timed out|timed out"
    r"|[Zz]ero [Bb]ytes|cannot connect|[Cc]annot contact|unable to send|commlib error|not responding"
    r"|LSF is down|[Tt]ransport endpoint|munge|[Cc]ommunication"
)
_FULL = re.compile(r"MaxSubmit|submit limit|job limit|would exceed|too many jobs", re.IGNORECASE)
# a controller inside a job has the variables of that job, which sbatch would take for options
_NOT_OURS = re.compile(r"(SBATCH|SQUEUE|SACCT|SCANCEL)_|SLURM_(?!CONF|CLUSTERS)")


class UnreachableError(Exception):
    """The scheduler does not answer; waiting may help."""


class QueueFullError(Exception):
    """The scheduler takes no more jobs of this user for now."""


def checked_directory(folder: Path) -> None:
    """Raise InputError for a path that cannot stand in a batch script."""
    bad = _UNFIT.search(str(folder))
    if bad:
        raise InputError(
            f"{folder}: batch jobs cannot work in a path with '{bad[0]}'; choose another folder for the "
            "campaign (letters, digits and . _ - + @ = ~ are safe)"
        )


def script(jobs: LabelJobs, name: str, *, directory: Path, base_dir: Path) -> str:
    """The batch script of a job.

    Raises:
        InputError: the template is wrong, or the setup file is not there.
    """
    checked_directory(directory)
    setup = None
    if jobs.setup is not None:
        setup = _existing(base_dir / jobs.setup.expanduser(), "run.labels.setup")
    template: str | Path = f"schedulers/{jobs.where}.sh.j2"
    if jobs.template is not None:
        template = _existing(base_dir / jobs.template.expanduser(), "run.labels.template")
    minutes = math.ceil(jobs.walltime_s / 60)
    tasks_per_node = math.ceil(jobs.tasks / jobs.nodes)
    in_all = jobs.tasks * jobs.cores
    memory = jobs.memory_MB
    context: dict[str, Any] = {
        "job_name": name,
        "working_directory": str(directory),
        "partition": jobs.partition,
        "account": jobs.account,
        "nodes": jobs.nodes,
        "tasks": jobs.tasks,
        "cores": jobs.cores,
        "tasks_per_node": tasks_per_node,
        "cores_per_node": tasks_per_node * jobs.cores,
        "cores_in_all": in_all,
        "memory_MB": memory,
        "memory_per_core_MB": memory and max(1, memory * jobs.nodes // in_all),
        "walltime_minutes": minutes,
        "walltime_clock": f"{minutes // 60:02d}:{minutes % 60:02d}:00",
        "extra": jobs.extra,
        "setup": setup and shlex.quote(str(setup)),
        "command": f"{shlex.quote(sys.executable)} -P -m alchemy.batch_job",
    }
    return render(template, context)


def _existing(path: Path, key: str) -> Path:
    if not path.is_file():
        raise InputError(f"{key}: there is no file {path}")
    return path.resolve()


class Queue:
    """A scheduler as this user sees it."""

    def __init__(self, where: str) -> None:
        self.where = where
        self._accounting = where == "slurm"  # until sacct says that there is none
        try:
            from pysqa import QueueAdapter

            self._adapter = QueueAdapter(queue_type=PYSQA_NAMES[where], execute_command=self._command)
        except ImportError as error:
            wanted = "defusedxml" if error.name == "defusedxml" else "pysqa"
            raise EnvironmentProblemError(
                f"batch jobs on {where} need the Python package '{wanted}' ({error}); "
                f"try: pip install {wanted}"
            ) from error

    def submit(self, text: str, *, directory: Path, name: str) -> str:
        """The number of the new job.

        Raises:
            EnvironmentProblemError: refused; in the scheduler's words.
            UnreachableError: no answer: the job may have been taken all the same.
            QueueFullError: later.
        """
        try:
            number = self._adapter.submit_job(
                job_name=name,
                working_directory=str(directory),
                command=text,
                submission_template="{{command}}",  # the script is rendered already
            )
        except (ValueError, IndexError) as error:
            raise UnreachableError(f"the answer to the submission makes no sense: {error}") from error
        return str(number)

    def cancel(self, number: str) -> None:
        """No complaint if it is gone already, or nobody answers."""
        try:
            self._adapter.delete_job(int(number))
        except (EnvironmentProblemError, UnreachableError):
            return

    def look(self, wanted: Mapping[str, str]) -> dict[str, Seen]:
        """What the scheduler says of these jobs (name → number, '' if it is not known), by name.

        A job that it does not know any more, or not yet, is missing.
        """
        found = {seen.name: seen for seen in self._table() if seen.name in wanted}
        gone = [number for name, number in wanted.items() if name not in found and number]
        if gone and self._accounting:
            found.update({seen.name: seen for seen in self._accounted(gone) if seen.name in wanted})
        return found

    def _table(self) -> Sequence[Seen]:
        user = getpass.getuser()
        if self.where == "slurm":
            words = ["squeue", "--noheader", f"--user={user}", "--states=all", "--format=%i|%T|%r|%j"]
            return list(scheduler_states.slurm(self._text(words)))
        if self.where == "pbs":
            return list(scheduler_states.pbs(self._text(["qstat", "-f"])))
        if self.where == "lsf":
            what = "jobid stat job_name:40 exit_reason pend_reason delimiter='|'"
            return list(scheduler_states.lsf(self._text(["bjobs", "-a", "-noheader", "-o", what])))
        table = self._adapter.get_queue_status(user=user)
        rows = table[["jobid", "jobname", "status"]].itertuples(index=False) if len(table) else ()
        return [scheduler_states.sge(str(n), str(name), str(state)) for n, name, state in rows]

    def _accounted(self, numbers: Sequence[str]) -> Sequence[Seen]:
        words = ["sacct", "-X", "-n", "-P", "--format=JobIDRaw,State,JobName", f"--jobs={','.join(numbers)}"]
        try:
            return list(scheduler_states.slurm_accounting(self._text(words)))
        except (EnvironmentProblemError, UnreachableError):
            self._accounting = False
            return []

    def _text(self, words: list[str]) -> str:
        return str(self._command(words, split_output=False))

    def _command(
        self,
        commands: str | list[str],
        working_directory: str | None = None,
        split_output: bool = True,
        shell: bool = False,
        error_filename: str = "",
    ) -> str | list[str]:
        """What pysqa calls for each command; a list of words, never a shell."""
        words = [commands] if isinstance(commands, str) else list(commands)
        script_in = None
        if words[0] == "bsub":  # LSF reads its #BSUB lines from standard input only
            script_in = Path(words.pop()).read_text(encoding="utf-8")
        try:
            done = subprocess.run(
                words,
                cwd=working_directory,
                env={k: v for k, v in os.environ.items() if not _NOT_OURS.match(k)},
                input=script_in if script_in is not None else "",
                capture_output=True,
                text=True,
                timeout=COMMAND_TIMEOUT_S,
                check=False,
            )
        except FileNotFoundError as error:
            raise EnvironmentProblemError(
                f"run.labels.where: {self.where}, but there is no program '{words[0]}' here: run alchemy "
                "where jobs can be submitted, or set where: workers"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise UnreachableError(f"{words[0]} gave no answer in {COMMAND_TIMEOUT_S:.0f} s") from error
        said = (done.stderr or done.stdout).strip()
        if done.returncode and not (words[0] == "bjobs" and re.search(r"No .*job", said)):
            raise _problem(words[0], said, done.returncode)
        # not splitlines: pysqa wants the first line of an empty answer
        return done.stdout.split("\n") if split_output else done.stdout


def _problem(program: str, said: str, code: int) -> Exception:
    text = f"{program}: {said.splitlines()[-1] if said else f'ended with status {code} and said nothing'}"
    if _UNREACHABLE.search(said) or program in QUERIES:
        return UnreachableError(text)
    if _FULL.search(said):
        return QueueFullError(text)
    return EnvironmentProblemError(text)
