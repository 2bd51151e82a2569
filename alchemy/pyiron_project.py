"""The pyiron project of a folder: everything of it in there, nothing in $HOME, nothing of the user's touched.

    <folder>/pyiron.conf             settings: export PYIRONCONFIG=<folder>/pyiron.conf
    <folder>/pyiron.db               the table of its jobs
    <folder>/<job>.h5, <job>_hdf5/   a job as pyiron keeps it, and its working directory

Moving the folder breaks pyiron's absolute paths. pyiron's settings belong to the process.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alchemy.errors import AlchemyError, EnvironmentProblemError, InputError
from alchemy.records import write_text_atomic

CONFIG, DATABASE, RESOURCES, LEASE = "pyiron.conf", "pyiron.db", "resources", "lease.json"
# pyiron splits lists of paths at , and :, its config parser ends a value at ;, SQLAlchemy at ?
FORBIDDEN = ",:;?"
ABORTED = "Job aborted"  # the text of pyiron's RuntimeError


def open_project(project: Path) -> Any:
    """The pyiron Project in this folder, made if it is not there.

    pyiron's settings belong to the process: from here on it works with this project's database.
    """
    folder = checked_folder(project)
    (folder / RESOURCES).mkdir(parents=True, exist_ok=True)
    config = folder / CONFIG
    text = (
        f"[DEFAULT]\nFILE = {folder / DATABASE}\nPROJECT_PATHS = {folder.parent}\n"
        f"RESOURCE_PATHS = {folder / RESOURCES}\n"
    )
    if not config.is_file() or config.read_text("utf-8") != text:
        write_text_atomic(config, text)
    with _pyiron_environment(folder):
        fresh = "pyiron_base" not in sys.modules
        try:
            with contextlib.chdir(folder):  # the logger opens pyiron.log where the process stands
                importlib.import_module("pyiron_snippets.logger")
            from pyiron_base import Project, state
        except ImportError as error:
            raise EnvironmentProblemError(
                f"the Python package 'pyiron_base' cannot be imported ({error}); "
                "try: pip install 'pyiron_base>=0.15'"
            ) from error
        if not fresh and state.settings.configuration["sql_file"] != str(folder / DATABASE):
            state.update()
    return Project(str(folder))


def checked_folder(project: Path) -> Path:
    folder = project.expanduser().resolve()
    bad = [sign for sign in FORBIDDEN if sign in str(folder)]
    if bad:
        raise InputError(f"{folder}: pyiron cannot work in a path with '{bad[0]}'; choose another")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; a pyiron project is a folder")
    return folder


@contextlib.contextmanager
def _pyiron_environment(folder: Path) -> Iterator[None]:
    """The variables that pyiron reads when it is imported or updated, and none of the user's."""
    before = {name: value for name, value in os.environ.items() if name.startswith("PYIRON")}
    for name in before:
        del os.environ[name]
    ours = {
        "PYIRONSQLFILE": str(folder / DATABASE),
        # the parent: where a project is its own top, pyiron stores './', asks for '' and finds nothing
        "PYIRONPROJECTPATHS": str(folder.parent),
        "PYIRONRESOURCEPATHS": str(folder / RESOURCES),
    }
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
        os.environ.update(before)


@contextlib.contextmanager
def settings_of(folder: Path) -> Iterator[None]:
    """A pyiron that this process has used before gets its own settings back."""
    used = sys.modules.get("pyiron_base")
    before = dict(used.state.settings.configuration) if used else None
    try:
        yield
    finally:
        if used and before and before["sql_file"] != str(folder / DATABASE):
            used.state.update(before)


@contextlib.contextmanager
def broken_pyiron(folder: Path) -> Iterator[None]:
    """What pyiron, HDF5 or SQLite raise is about the project, not a bug of ours."""
    try:
        yield
    except (AlchemyError, OSError):
        raise
    except Exception as error:
        if str(error) == ABORTED:
            raise
        raise EnvironmentProblemError(
            f"pyiron_base could not work with the project {folder}: {type(error).__name__}: {error}; "
            f"its log is {folder / 'pyiron.log'}"
        ) from error


def status_of_jobs(opened: Any, folder: Path) -> dict[str, str]:
    """One query for all jobs."""
    with broken_pyiron(folder):
        table = opened.job_table(recursive=False)
    return dict(zip(table["job"], table["status"], strict=True)) if len(table) else {}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """pyiron prints each job's number to stdout and failures to stderr; we report them ourselves."""
    console = [
        handler
        for handler in logging.getLogger("pyiron_log").handlers
        if not isinstance(handler, logging.FileHandler)
    ]
    levels = [handler.level for handler in console]
    for handler in console:
        handler.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for handler, level in zip(console, levels, strict=True):
            handler.setLevel(level)


class BatchProject:
    """The rows that a pyiron user sees of our batch jobs; `job.run()` is never called, which takes signals.

    Each method says what has happened elsewhere: we submit through pysqa and know the states.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = checked_folder(folder)
        self._settings = contextlib.ExitStack()
        self._settings.enter_context(settings_of(self.folder))
        self._project = open_project(self.folder)
        self._open: dict[str, Any] = {}

    def close(self) -> None:
        """A pyiron that this process has used before gets its own settings back."""
        self._settings.close()

    def directory(self, name: str) -> Path:
        """Where pyiron expects the files of a job."""
        return self.folder / f"{name}_hdf5" / name

    def make(self, name: str, inputs: Mapping[str, Any]) -> None:
        """A new row, 'created'; one that is there stays."""
        with self._at_work():
            job = self._project.create.job.ExecutableContainerJob(job_name=name)
            if job.status.string == "initialized":
                job.set_job_type(
                    executable_str="python -m alchemy.batch_job", default_input_dict=dict(inputs)
                )
                job.save()
            self._open[name] = job

    def submitted(self, name: str, number: str) -> None:
        """In the queue, under the scheduler's number."""
        with self._at_work():
            job = self._job(name)
            if job is not None:
                with job.server.unlocked():
                    job.server.queue_id = int(number)
                job.project_hdf5.write_dict(data_dict={"server": job.server.to_dict()})
                job.status.submitted = True

    def running(self, name: str) -> None:
        """It has begun."""
        with self._at_work():
            job = self._job(name)
            if job is not None:
                job.status.running = True

    def ended(self, name: str, outputs: Mapping[str, Any], *, aborted: bool) -> None:
        """It is over; what became of it is in job.output."""
        with self._at_work():
            job = self._job(name)
            if job is not None:
                job.save_output(output_dict=dict(outputs))
                if aborted:
                    job.status.aborted = True
                else:
                    job.status.finished = True
                self._open.pop(name, None)

    def _job(self, name: str) -> Any:
        """None if the user has removed it."""
        if name not in self._open:
            self._open[name] = self._project.load(name)
        return self._open[name]

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        with broken_pyiron(self.folder), quiet():
            yield
