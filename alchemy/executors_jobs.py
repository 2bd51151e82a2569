"""Scripts of worker jobs: dask-jobqueue writes them for Slurm, PBS, SGE and LSF from the `run.cluster` block.

Every script first reads the setup file and says on standard error what the node lacks, each with an exit
code of its own, because "the job failed" helps nobody.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import batch_systems
from .config_cluster import Cluster, Where, size_bytes
from .errors import EnvironmentProblemError, InputError

DEATH_TIMEOUT_S = 60  # how long a worker without its controller lives
LOG_LINES = 6
SETUP_FAILED, NO_PYTHON, NO_FOLDER = 97, 98, 99  # exit codes of the first lines


@dataclass(frozen=True)
class JobMaker:
    """Writes and submits worker jobs of every kind."""

    cluster: Cluster
    where: Where
    threads: int  # of one task of a kind without GPUs
    folder: Path
    base_dir: Path
    keys: dict[str, Path]

    def processes(self, kind: str) -> int:
        """Tasks that one job of the kind runs at the same time."""
        workers = self.cluster.kinds[kind]
        return 1 if workers.gpus or kind == "gpu" else max(1, workers.cores // self.threads)

    def job(self, kind: str, name: str, scheduler: str | None) -> Any:
        """dask-jobqueue's job, not yet submitted."""
        from distributed.security import Security

        workers = self.cluster.kinds[kind]
        quoted = {role: shlex.quote(str(path)) for role, path in self.keys.items()}
        security = Security(
            require_encryption=True,
            tls_ca_file=quoted.get("ca_file"),
            tls_worker_cert=quoted.get("cert"),
            tls_worker_key=quoted.get("key"),
        )
        offered = ",".join(f"{name}=1" for name in self.cluster.resources(kind))
        extra = ["--resources", offered, "--memory-limit", "0"]  # the batch system guards the memory
        extra += ["--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
        return job_class(self.where)(
            scheduler,
            name=name,
            job_name=f"alchemy-{kind}",
            cores=self.processes(kind),  # threads that Dask sees: one for each task
            processes=self.processes(kind),
            memory=f"{size_bytes(workers.memory)}B",
            python=f"{shlex.quote(self.cluster.python or sys.executable)} -P",
            shebang="#!/usr/bin/env bash",
            death_timeout=DEATH_TIMEOUT_S,
            interface=self.cluster.interface,
            protocol="tls://",
            security=security,
            worker_command="distributed.cli.dask_worker",
            worker_extra_args=extra,
            job_script_prologue=self.prologue(kind),
            job_directives_skip=[],
            queue=workers.partition,
            **self.directives(kind, self.folder / f"{name}.log"),
        )

    def directives(self, kind: str, log: Path) -> dict[str, Any]:
        """What each batch system calls cores, memory, GPUs, time and the file of the output."""
        workers, account = self.cluster.kinds[kind], self.cluster.account
        out = header_path(log)
        cores, memory = workers.cores, size_bytes(workers.memory)
        limit = batch_systems.walltime_text(workers.walltime_s)
        sort = f"{workers.gpu_type}:" if workers.gpu_type else ""
        more = list(workers.directives)
        if self.where == "slurm":
            gpus = [f"--gres=gpu:{sort}{workers.gpus}"] if workers.gpus else []
            lines = [f"-o {out}", "--no-requeue", *gpus, *more]  # a new job comes sooner
            return {"account": account, "walltime": limit, "job_cpu": cores, "job_extra_directives": lines}
        if self.where == "pbs":
            gpus = [f"ngpus={workers.gpus}"] if workers.gpus else []
            gpus += [f"gpu_type={workers.gpu_type}"] if workers.gpu_type else []
            spec = ":".join(["select=1", f"ncpus={cores}", f"mem={-(-memory // 10**6)}mb", *gpus])
            lines = ["-j oe", f"-o {out}", "-r n", *more]
            common = {"account": account, "walltime": limit}
            return {**common, "resource_spec": spec, "job_extra_directives": lines}
        if self.where == "sge":
            spec = f"h_vmem={-(-memory // (cores * 10**6))}M"  # of each slot
            spec += f",gpu={workers.gpus}" if workers.gpus else ""
            lines = [f"-o {out}", "-r n", *([f"-pe smp {cores}"] if cores > 1 else []), *more]
            common = {"project": account, "walltime": limit}
            return {**common, "resource_spec": spec, "job_extra_directives": lines}
        gpu = f"num={workers.gpus}" + (f":gmodel={workers.gpu_type}" if workers.gpu_type else "")
        lines = [f"-o {out}", "-rn", *([f'-gpu "{gpu}"'] if workers.gpus else []), *more]
        return {
            "project": account, "walltime": limit.rpartition(":")[0], "ncpus": cores, "mem": memory,
            "lsf_units": "mb", "use_stdin": True, "job_extra_directives": lines,
        }  # fmt: skip

    def python_command(self, module: str, *words: object) -> str:
        """Shell text that runs a module with the Python of the nodes."""
        python = self.cluster.python or sys.executable
        return " ".join([shlex.quote(python), "-P", "-m", module, *(shlex.quote(str(w)) for w in words)])

    def script(self, kind: str, name: str, command: str) -> str:
        """A job of the kind that runs another command, such as a trial."""
        job = self.job(kind, name, "tls://nobody:0")
        return "\n".join([job.shebang, job.job_header, *self.prologue(kind), command, ""])

    def prologue(self, kind: str) -> list[str]:
        """First lines of every job: environment, and a word about what is wrong with the node."""
        workers = self.cluster.kinds[kind]
        threads = workers.cores if workers.gpus or kind == "gpu" else self.threads
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        setup = setup_file(self.cluster.setup, self.base_dir)
        lines = first_lines(setup, self.cluster.python or sys.executable, self.folder)
        lines += [f"export {name}={threads}" for name in names]
        return lines if workers.gpus else [*lines, "export CUDA_VISIBLE_DEVICES="]


def job_class(where: Where) -> Any:
    """dask-jobqueue's job of a batch system.

    Raises:
        EnvironmentProblemError: the package is missing.
    """
    try:
        import dask_jobqueue as them
    except ImportError as error:
        raise EnvironmentProblemError(
            f"run.where: {where} needs a package that is missing ({error}); try: pip install dask-jobqueue"
        ) from error
    clusters = {
        "slurm": them.SLURMCluster, "pbs": them.PBSCluster, "sge": them.SGECluster, "lsf": them.LSFCluster
    }  # fmt: skip
    return clusters[where].job_cls


def header_path(path: Path) -> str:
    """A path for the head of a job script, where a line break would begin another directive."""
    if not str(path).isprintable():
        raise InputError(f"{str(path)!r} holds characters that no job script can; choose another folder")
    return shlex.quote(str(path))


def setup_file(setup: str | None, base_dir: Path) -> str | None:
    """The absolute path of the setup file that the campaign names."""
    return None if setup is None else str((base_dir / Path(setup).expanduser()).resolve())


def first_lines(setup: str | None, python: str, folder: Path) -> list[str]:
    """Shell lines that set a node up, or say on standard error what it lacks and end.

    Args:
        setup: absolute path of a shell file that is read first.
        folder: where the job works; the node must see it.
    """
    lines, program = [], shlex.quote(python)
    if setup is not None:
        lines.append(f". {shlex.quote(setup)} || {_complain(f'setup file {setup} failed', SETUP_FAILED)}")
    lines.append(f"command -v {program} >/dev/null || {_complain(f'{python} not found', NO_PYTHON)}")
    there = shlex.quote(str(folder))
    lines.append(f"cd {there} || {_complain(f'{folder} is not visible', NO_FOLDER)}")
    return lines


def _complain(text: str, code: int) -> str:
    return f'{{ echo {shlex.quote(f"alchemy: {text} on node")} "$(hostname)" >&2; exit {code}; }}'


def last_words(log: Path) -> str:
    """The end of a job's log, in one line."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "nothing, there is no such file; does the node see this folder?"
    said = [line for line in lines if line.startswith("alchemy: ")] or lines[-LOG_LINES:]
    return " | ".join(line.strip() for line in said if line.strip()) or "nothing"
