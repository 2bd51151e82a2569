"""Programs that we start end with us: reaping what they left behind, on Linux.

A calculator may start a program that starts others in sessions of their own; a process that has called
`adopt_orphans` becomes the parent of all of them when theirs dies, and finds them below itself.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
TRIES, PAUSE_S = 100, 0.02


def adopt_orphans() -> None:
    """From here on, descendants whose parent dies become children of this process."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """Called in a fresh child: the kernel kills it when its parent is gone."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def descendants() -> list[int]:
    """Processes below this one, parents before their children; zombies are no news."""
    parent: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # gone meanwhile
        if fields[0] != "Z":
            parent[int(path.parent.name)] = int(fields[1])
    found = [os.getpid()]
    for pid in found:  # grows while it is read
        found += [child for child, above in parent.items() if above == pid]
    return found[1:]


def kill_descendants() -> None:
    """SIGKILL to everything below, until nothing is left."""
    for _ in range(TRIES):
        rest = descendants()
        if not rest:
            break
        for pid in rest:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(PAUSE_S)
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return
