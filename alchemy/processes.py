"""External programs: started by an argument list, with a time limit, never outliving us."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alchemy import supervise
from alchemy.errors import EnvironmentProblemError

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Finished:
    """How a program ended: its exit code, −n when signal n killed it."""

    code: int
    timed_out: bool
    wall_s: float


def find_executable(name: str, *, remedy: str) -> str:
    """Absolute path of a program.

    Raises:
        EnvironmentProblemError: it is not there or cannot be executed.
    """
    found = shutil.which(name)
    if found is None:
        place = f"there is no program {name}" if os.sep in name else f"'{name}' is not in PATH"
        raise EnvironmentProblemError(f"{place}; {remedy}")
    return os.path.abspath(found)


def run_program(
    arguments: Sequence[str],
    directory: Path,
    *,
    stdout: Path,
    stderr: Path,
    threads: int = 1,
    timeout_s: float | None = None,
    environment: Mapping[str, str | None] | None = None,
) -> Finished:
    """Run to the end in `directory`, with nothing to read from stdin.

    Args:
        arguments: program (absolute, or of PATH) and its arguments; no shell sees them.
        environment: variables to set, or (None) to unset, over our own.
    """
    told = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
    for name, value in (environment or {}).items():
        told.pop(name, None)
        if value is not None:
            told[name] = value
    supervisor = [sys.executable, "-I", "-S", str(Path(supervise.__file__).resolve())]
    started = time.monotonic()
    with stdout.open("wb") as out, stderr.open("wb") as err:
        process = subprocess.Popen(
            [*supervisor, str(os.getpid()), *arguments],
            cwd=directory,
            env=told,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,  # Ctrl-C is for the controller, which then ends us
        )
        timed_out = False
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    return Finished(process.returncode, timed_out, time.monotonic() - started)
