"""Labels as jobs of a pyiron project: what a pyiron user sees in job_table() and loads by name.

Local execution, one job after another, each a command of its own: `alchemy label --pyiron`. Batch jobs
are in pyiron_batch.py, the project itself in pyiron_project.py.

    <folder>/label_<key>.h5                         the job as pyiron keeps it, the numbers included
    <folder>/label_<key>_hdf5/label_<key>/<key>/    the label's directory as everywhere, record.json in it

A label that fails (SCF, gate) is a finished job with a failed record. A job is aborted when its
program breaks; the next call removes it and makes it again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alchemy import errors, tasks
from alchemy.errors import (
    AlchemyError,
    EnvironmentProblemError,
    InterruptedRunError,
    StoreDamagedError,
)
from alchemy.pyiron_project import (
    CONFIG,
    LEASE,
    broken_pyiron,
    checked_folder,
    open_project,
    quiet,
    settings_of,
    status_of_jobs,
)
from alchemy.records import (
    FILE_NAME,
    LabelRecord,
    atoms_from_document,
    read_json,
    write_json_atomic,
    write_text_atomic,
)

__all__ = [
    "CONFIG",
    "LEASE",
    "collect_output",
    "job_name",
    "label_as_jobs",
    "label_key_of",
    "main",
    "open_project",
    "working_directory",
    "write_input",
]

REQUEST, PROBLEM, SHELL_ERROR = "request.json", "problem.json", "error.msg"
FORMULA_LENGTH = 50  # the width of pyiron's column
MESSAGE_LINES = 6
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGABRT)  # those that job.run() takes

Request = dict[str, Any]
OnDone = Callable[[LabelRecord], None]


def label_as_jobs(
    requests: Sequence[Request], project: Path, *, on_done: OnDone | None = None
) -> list[LabelRecord]:
    """The labels of these requests (those of `tasks.label`, whose `root` is not used), in order.

    A job that is finished is read, not run. If a program broke, the other labels are computed first;
    what is wrong for every label alike (a package, an option) ends the call at once.

    Raises:
        EnvironmentProblemError: jobs were aborted; says which, why, and where their files are.
        CampaignBusyError: another process works in the project.
    """
    from alchemy.lease import Lease

    if threading.current_thread() is not threading.main_thread():
        raise EnvironmentProblemError("pyiron jobs run in the main thread only (they take signals)")
    folder = checked_folder(project)
    keys = [label_key_of(request) for request in requests]
    wanted = dict(zip(keys, requests, strict=True))  # the same label twice is one job
    records: dict[str, LabelRecord] = {}
    aborted: dict[str, str] = {}
    with Lease(folder / LEASE), settings_of(folder):
        opened = open_project(folder)
        status = status_of_jobs(opened, folder)
        for key, request in wanted.items():
            if status.get(job_name(key)) != "finished":
                problem = _run(opened, folder, key, request)
                if problem:
                    aborted[key] = problem
                    continue
            records[key] = _record(folder, key)
            if on_done:
                on_done(records[key])
    if aborted:
        key, problem = next(iter(aborted.items()))
        raise EnvironmentProblemError(
            f"{len(aborted)} of {len(wanted)} pyiron jobs were aborted; {job_name(key)} in "
            f"{working_directory(folder, key)}: {problem}"
        )
    return [records[key] for key in keys]


def job_name(key: str) -> str:
    """A pyiron name is an identifier; a key may begin with a digit."""
    return f"label_{key}"


def working_directory(folder: Path, key: str) -> Path:
    """Where pyiron runs the job of that label."""
    return folder / f"{job_name(key)}_hdf5" / job_name(key)


def label_key_of(request: Request) -> str:
    """The key under which `tasks.label` will record the label."""
    from alchemy.identity import label_key, structure_uid
    from alchemy.labelers.base import fingerprint, make_labeler

    labeler = make_labeler(request["labeler"], request["options"], base_dir=Path(request["base_dir"]))
    uid = structure_uid(atoms_from_document(request["structure"]))
    return label_key(uid, request["fidelity"], fingerprint(labeler))


def main(arguments: Sequence[str]) -> int:
    """What a job executes: one label in the current directory; pyiron is not needed here."""
    request = read_json(Path(arguments[0]))
    try:
        tasks.label({**request, "root": os.getcwd()})
    except AlchemyError as error:
        write_json_atomic(Path(PROBLEM), {"error": type(error).__name__, "message": str(error)})
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def write_input(input_dict: Mapping[str, Any], working_directory: str = ".") -> None:
    """pyiron's first hook."""
    write_text_atomic(Path(working_directory) / REQUEST, input_dict["request"])


def collect_output(working_directory: str = ".") -> dict[str, Any]:
    """pyiron's last hook: what a user finds in job.output."""
    directory = Path(working_directory)
    record = LabelRecord.read(directory / read_json(directory / REQUEST)["key"])
    names = ("status", "reason", "message", "energy_eV", "forces_eV_per_A", "stress_eV_per_A3")
    found = {name: getattr(record, name) for name in (*names, "dipole_eA", "wall_s", "code")}
    return {name: value for name, value in found.items() if value is not None}


def _run(opened: Any, folder: Path, key: str, request: Request) -> str:
    """Make and run one job; '' or why it was aborted."""
    formula = atoms_from_document(request["structure"]).get_chemical_formula()
    document = {**request, "key": key, "base_dir": str(Path(request["base_dir"]).resolve())}
    inputs = {
        "formula": formula,
        "fidelity": request["fidelity"],
        "labeler": request["labeler"],
        "request": json.dumps(document, allow_nan=False),  # text: the same bits arrive
    }
    try:
        with broken_pyiron(folder), _signals_kept(), quiet():
            job = _made(opened, job_name(key), inputs)
            job.run()
            if len(formula) <= FORMULA_LENGTH:
                opened.db.item_update({"chemicalformula": formula}, job.job_id)
    except (KeyboardInterrupt, SystemExit) as stop:  # SystemExit: pyiron's answer to SIGTERM
        raise InterruptedRunError(
            f"interrupted; {job_name(key)} is aborted, everything finished is in {folder}, "
            "the same command continues"
        ) from stop
    except RuntimeError:
        return _why(working_directory(folder, key))
    return ""


def _made(opened: Any, name: str, inputs: dict[str, Any]) -> Any:
    """A new job; one of that name that did not finish (aborted, or its process killed) goes."""
    job = opened.create.job.ExecutableContainerJob(job_name=name, delete_existing_job=True)
    job.set_job_type(
        # exec: the shell makes way, so that an interrupt reaches the program itself
        executable_str=f"exec {shlex.quote(sys.executable)} -P -m alchemy.pyiron_jobs {REQUEST}",
        write_input_funct=write_input,
        collect_output_funct=collect_output,
        default_input_dict=inputs,
    )
    job.server.run_mode.modal = True
    return job


def _why(directory: Path) -> str:
    """What the program said last; an error of ours is raised again as what it was."""
    if (directory / PROBLEM).is_file():
        document = read_json(directory / PROBLEM)
        kind = getattr(errors, document["error"], EnvironmentProblemError)
        raise kind(document["message"])
    said = directory / SHELL_ERROR
    lines = said.read_text("utf-8", "replace").strip().splitlines() if said.is_file() else []
    return "\n".join(lines[-MESSAGE_LINES:]) or "its program died without a word (out of memory?)"


def _record(folder: Path, key: str) -> LabelRecord:
    directory = working_directory(folder, key)
    if not (directory / key / FILE_NAME).is_file():
        raise StoreDamagedError(
            f"pyiron job {job_name(key)} is finished, but its record {directory / key / FILE_NAME} is "
            "gone: if the job was compressed, call its decompress() in pyiron; otherwise remove the "
            "job there, and the label is computed again"
        )
    return LabelRecord.read(directory / key)


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """job.run() leaves the default handlers behind, whatever was there before."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: set by C code, out of Python's reach
                signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
