"""Run one program and see to it that nothing of it outlives whoever asked for it.

    python -I -S supervise.py PARENT_PID PROGRAM [ARGUMENT …]

A death signal reaches only a direct child: of `mpirun`, or of a shell script, it leaves what they
started, and a SIGKILLed worker's calculation goes on beside its repetition. This small process stands
in between: it dies with its parent, and adopts (as a subreaper) and kills all that the program left.
Standard library only: it is started by its path and for every calculation.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
GRACE_S = 2.0  # for mpirun to remove its session files
NOT_STARTED = 127  # as a shell has it


class Stop(BaseException):
    """SIGTERM: the parent is dead, or does not want to wait any longer."""


def main(arguments: Sequence[str]) -> int:
    """Exit status of the program; if a signal killed it, we die of the same."""
    parent, program = int(arguments[0]), list(arguments[1:])
    libc = ctypes.CDLL(None, use_errno=True)
    signal.signal(signal.SIGTERM, _stop)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    child = 0
    try:
        if os.getppid() != parent:  # it died before we asked to be told
            return NOT_STARTED
        child = _start(libc, program)
        status = _wait_for(child)
    except Stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _end(child)
        return -signal.SIGTERM
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _kill_children()
    return os.waitstatus_to_exitcode(status)


def _stop(number: int, frame: object) -> None:
    raise Stop


def _start(libc: ctypes.CDLL, program: list[str]) -> int:
    ours = os.getpid()
    child = os.fork()
    if child:
        return child
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        if os.getppid() == ours:
            os.setpgid(0, 0)
            os.execvp(program[0], program)  # noqa: S606  (no shell is the point)
    except OSError as error:
        os.write(2, f"{program[0]}: {error.strerror}\n".encode())
    os._exit(NOT_STARTED)


def _wait_for(child: int) -> int:
    """Status of the program; children that it left to us are reaped on the way."""
    while True:
        pid, status = os.wait()
        if pid == child:
            return status


def _end(child: int) -> None:
    """Ask, wait a little, then kill whatever is left."""
    if child:
        _signal(-child, signal.SIGTERM)
    until = time.monotonic() + GRACE_S
    while _children() and time.monotonic() < until:
        _reap()
        time.sleep(0.02)
    _kill_children()


def _kill_children() -> None:
    """Until there are none: the children of a killed one become ours."""
    while children := _children():
        for pid in children:
            _signal(pid, signal.SIGKILL)
        _reap()
        time.sleep(0.005)


def _children() -> list[int]:
    """Pids of living and dead children."""
    try:
        return [int(pid) for pid in Path("/proc/thread-self/children").read_text("ascii").split()]
    except OSError:  # a kernel without it: only the program itself and its group were signalled
        return []


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        (os.kill if pid > 0 else os.killpg)(abs(pid), number)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    if code >= 0:
        sys.exit(code)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the program has dumped its own
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
