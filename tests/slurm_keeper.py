"""Keeps the daemons of a Slurm for tests, and sees to it that nothing of them stays behind.

    python slurm_keeper.py COMMANDS.json      (standard input: lines `start NAME`, `kill NAME`)

It is the reaper of everything below it, of jobs that made themselves sessions of their own too, and kills
all of that when its standard input ends: when the test session says so or dies, whichever way.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LIBC = ctypes.CDLL(None, use_errno=True)


def parents() -> dict[int, int]:
    """Process → parent, of everything that /proc shows."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found[int(path.parent.name)] = int(fields[1])
    return found


def below(root: int) -> list[int]:
    """All descendants of a process."""
    table = parents()
    found = [root]
    for pid in found:  # grows while it is read
        found += [child for child, parent in table.items() if parent == pid]
    return found[1:]


def reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def kill_below(root: int) -> None:
    """SIGKILL to all descendants, again until none is left."""
    for _ in range(200):
        reap()
        rest = below(root)
        if not rest:
            return
        for pid in rest:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        select.select([], [], [], 0.02)


def alive(pid: int | None) -> bool:
    return pid is not None and Path(f"/proc/{pid}").exists()  # we reap, so a dead one is gone


def start(command: list[str], log: Path) -> int:
    def bind() -> None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    with open(log, "ab") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            preexec_fn=bind,
            start_new_session=True,
        )
    process.returncode = 0  # reaped by us all together; keeps Popen from complaining
    return process.pid


def main() -> None:
    document = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C is for pytest, which then ends our input
    running: dict[str, int] = {}
    parent = os.getppid()
    try:
        while os.getppid() == parent:  # a fork of the parent may hold our input open after its death
            ready = select.select([sys.stdin], [], [], 0.5)[0]
            reap()
            line = sys.stdin.readline() if ready else None
            if line == "":
                return
            if line is None:
                continue
            word, name = line.split()
            if word == "start" or (word == "start-if-dead" and not alive(running.get(name))):
                running[name] = start(document["commands"][name], Path(document["logs"]) / f"{name}.out")
            elif word == "kill":
                victims = [running.pop(name), *on_node(name)]
                for pid in victims:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
            print(line.strip(), flush=True)
    finally:
        kill_below(os.getpid())


def on_node(name: str) -> list[int]:
    """The jobs of a node, and the slurmstepd above them: what a power cut takes."""
    table, found = parents(), []
    for pid in below(os.getpid()):
        if f"SLURMD_NODENAME={name}".encode() in _read(pid, "environ").split(b"\0"):
            found += [pid] if b"slurmstepd" not in _read(table[pid], "cmdline") else [table[pid], pid]
    return found


def _read(pid: int, what: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes()
    except OSError:
        return b""


if __name__ == "__main__":
    main()
