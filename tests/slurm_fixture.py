"""A real Slurm on this machine for tests: munge, slurmctld and two slurmd, in their own folder and ports.

`slurm` is the cluster, cleaned after every test; SLURM_CONF is set meanwhile, so that squeue and the
code under test speak to it. Nothing else of the machine is touched, and no process outlives pytest (see
slurm_keeper.py). Tests that use it carry `@pytest.mark.slurm`; `make test-slurm` runs them. On Debian and
Ubuntu: apt-get install slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "sinfo")
ADMIN = "/usr/sbin:/sbin:/usr/local/sbin"
NODES = ("n1", "n2")
CPUS = 4  # said, not true: four small jobs share a node
MEMORY_MB = 4000

CONFIG = """\
ClusterName=alchemytest
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/munge.sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=10
InactiveLimit=0
MinJobAge=300
KillWait=2
OverTimeLimit=0
Waittime=0
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
SchedulerType=sched/backfill
"""


class Slurm:
    """The running cluster: nodes n1 and n2, partitions `debug` (the default) and `short` (one minute)."""

    nodes = NODES

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "slurm.conf"
        self.gpus = 0  # of each node; not real
        self._keeper: subprocess.Popen[str] | None = None

    def __call__(self, *words: object) -> str:
        """Standard output of a Slurm command; raises if it fails."""
        return subprocess.run(
            [str(w) for w in words],
            env={**os.environ, "SLURM_CONF": str(self.config)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout

    def job(self, number: object) -> dict[str, str]:
        """What `scontrol show job` says: JobState, Reason, ExitCode, …"""
        words = self("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def queue(self) -> dict[str, str]:
        """Number → state of the jobs that wait or run."""
        return dict(line.split() for line in self("squeue", "-h", "-o", "%i %T").splitlines())

    def start(self, name: str) -> None:
        """Start a daemon again: 'munged', 'slurmctld', 'n1' or 'n2'."""
        self._tell("start", name)

    def kill(self, name: str) -> None:
        """SIGKILL to a daemon; with a node go the jobs on it, as in a power cut."""
        self._tell("kill", name)

    def node(self, name: str, state: str) -> None:
        """`scontrol update`: 'down' makes its jobs fail at once, 'resume' brings it back."""
        try:
            self("scontrol", "update", f"nodename={name}", f"state={state}", "reason=test")
        except subprocess.CalledProcessError:
            if state != "resume" or self._state(name).startswith(("down", "drain")):
                raise  # else it has come back by itself, its daemon was alive

    def out_of_time(self, number: object) -> None:
        """Let a job reach its time limit now; Slurm's own limits are whole minutes."""
        self("scontrol", "update", f"jobid={number}", "EndTime=now+1seconds")

    def wait(self, what: Callable[[], object], *, timeout_s: float = 60.0) -> None:
        """Until `what` is true."""
        deadline = time.monotonic() + timeout_s
        while not what():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not so within {timeout_s} s; squeue: {self.queue()}; {self.logs()}")
            time.sleep(0.1)

    def clean(self) -> None:
        """As it was: all daemons up, nodes idle, partitions up, no jobs."""
        for name in ("munged", "slurmctld", *NODES):
            self._tell("start-if-dead", name)
        self.wait(self._answers)
        self("scancel", "--user", getpass.getuser())
        for partition in ("debug", "short"):
            self("scontrol", "update", f"partitionname={partition}", "state=up")
        self.wait(self._settled)

    def logs(self) -> str:
        """The last lines of every log."""
        parts = []
        for path in sorted((self.folder / "log").iterdir()):
            parts.append(f"== {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-8:]))
        return "\n".join(parts)

    def _state(self, node: str) -> str:
        return self("sinfo", "-h", "-N", "-n", node, "-p", "debug", "-o", "%t").split()[0].rstrip("*")

    def _settled(self) -> bool:
        """No jobs, all nodes idle; one may be drained late, for a job that could not be launched twice."""
        for name in NODES:
            if self._state(name).startswith(("down", "drain")):
                self.node(name, "resume")
        return not self.queue() and all(self._state(n) == "idle" for n in NODES)

    def _answers(self) -> bool:
        try:
            self("squeue", "-h")
        except subprocess.CalledProcessError:
            return False
        return True

    def _tell(self, word: str, name: str) -> None:
        assert self._keeper and self._keeper.stdin and self._keeper.stdout
        self._keeper.stdin.write(f"{word} {name}\n")
        self._keeper.stdin.flush()
        assert self._keeper.stdout.readline().split() == [word, name]

    def open(self) -> None:
        """Write the configuration and start everything."""
        self._write_config()
        keeper = [sys.executable, str(Path(__file__).with_name("slurm_keeper.py"))]
        self._keeper = subprocess.Popen(
            [*keeper, str(self.folder / "keeper.json")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.start("munged")
        self.wait((self.folder / "munge" / "munge.sock").exists, timeout_s=20)
        for name in ("slurmctld", *NODES):
            self.start(name)
        self.wait(self._answers)
        self.wait(lambda: all(self._state(n) == "idle" for n in NODES))

    def close(self) -> None:
        """Stop everything of ours, jobs included, and remove the folder."""
        if self._keeper and self._keeper.stdin:
            self._keeper.stdin.close()
            self._keeper.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write_config(self) -> None:
        for name in ("state", "spool", "log", "run", "munge"):
            (self.folder / name).mkdir()
        (self.folder / "munge").chmod(0o700)
        key = self.folder / "munge" / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        controller, *ports = _free_ports(1 + len(NODES))
        host = socket.gethostname().split(".")[0]
        self.gpus = self._fake_gpus()
        gres = "Gres=gpu:1 " if self.gpus else ""
        lines = ["GresTypes=gpu"] if self.gpus else []
        lines += [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} "
            f"CoresPerSocket={CPUS} ThreadsPerCore=1 RealMemory={MEMORY_MB} {gres}State=UNKNOWN"
            for name, port in zip(NODES, ports, strict=True)
        ]
        whole = f"Nodes={','.join(NODES)} State=UP OverSubscribe=NO"
        lines.append(f"PartitionName=debug {whole} Default=YES MaxTime=INFINITE")
        lines.append(f"PartitionName=short {whole} MaxTime=00:01:00")
        text = CONFIG.format(
            host=host, user=getpass.getuser(), folder=self.folder, controller_port=controller
        )
        self.config.write_text(text + "\n".join(lines) + "\n", encoding="utf-8")
        munge = self.folder / "munge"
        commands = {
            "munged": [
                _program("munged"), "--foreground", "--force", f"--key-file={key}",
                f"--socket={munge / 'munge.sock'}", f"--pid-file={self.folder / 'run' / 'munged.pid'}",
                f"--log-file={self.folder / 'log' / 'munged.log'}", f"--seed-file={munge / 'seed'}",
            ],
            "slurmctld": [_program("slurmctld"), "-D", "-f", str(self.config)],
        }  # fmt: skip
        for name in NODES:
            commands[name] = [_program("slurmd"), "-D", "-N", name, "-f", str(self.config)]
        document = {"commands": commands, "logs": str(self.folder / "log")}
        (self.folder / "keeper.json").write_text(json.dumps(document), encoding="utf-8")

    def _fake_gpus(self) -> int:
        """One per node where we may make a device: a count without a file is refused by slurmd."""
        device = self.folder / "gpu0"
        try:
            os.mknod(device, 0o666 | 0o020000, os.makedev(1, 3))
        except OSError:
            return 0
        (self.folder / "gres.conf").write_text(f"Name=gpu File={device}\n", encoding="utf-8")
        return 1


def missing_programs() -> list[str]:
    """Programs of Slurm and munge that are not installed."""
    return [name for name in PROGRAMS if _program(name) == name]


def _program(name: str) -> str:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{ADMIN}") or name


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[Slurm]:
    """Started at the first test that asks; use `slurm`."""
    absent = missing_programs()
    if absent:
        pytest.skip(
            f"no real Slurm here ({', '.join(absent)} missing): apt-get install slurmctld slurmd "
            "slurm-client slurm-wlm-basic-plugins munge"
        )
    # a short path: the socket's has a limit of 107 characters
    cluster = Slurm(Path(tempfile.mkdtemp(prefix="alchemy-slurm-", dir="/tmp")))
    try:
        cluster.open()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def slurm(slurm_cluster: Slurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    """The cluster, with nothing in it; SLURM_CONF points to it."""
    monkeypatch.setenv("SLURM_CONF", str(slurm_cluster.config))
    slurm_cluster.clean()
    yield slurm_cluster
    slurm_cluster.clean()


__all__ = ["Slurm", "missing_programs", "slurm", "slurm_cluster"]
