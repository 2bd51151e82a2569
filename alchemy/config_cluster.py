"""The `run.cluster` block: what kinds of workers a batch system is asked for.

A kind is one shape of job. `gpu` workers train, explore and score, `cpu` workers label; where one of the
two is left out, the other does its tasks as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from alchemy.config_fields import Block, Count, Whole, wrong
from alchemy.quantities import WallTime
from tace.wording import describe

Where = Literal["slurm", "pbs", "sge", "lsf"]
BATCH_SYSTEMS: tuple[Where, ...] = ("slurm", "pbs", "sge", "lsf")
DRAIN_SHARE, DRAIN_MOST_S = 0.1, 3600.0
_SIZE = re.compile(r"\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[kMGT]i?B)\s*")
_FACTOR = {"k": 1, "M": 2, "G": 3, "T": 4}
_JOBS = re.compile(r"(\d+)-(\d+)")


def _check_memory(value: object) -> object:
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None or float(match["number"]) == 0:
        raise wrong(f'found {describe(value)}; write a size such as "16 GB"')
    return f"{match['number']} {match['unit']}"


def size_bytes(text: str) -> int:
    """Bytes of a checked size; GB is 10⁹, GiB is 2³⁰."""
    match = _SIZE.fullmatch(text)
    assert match is not None
    base = 1024 if match["unit"].endswith("iB") else 1000
    return round(float(match["number"]) * base ** _FACTOR[match["unit"][0]])


def _check_jobs(value: object) -> object:
    if isinstance(value, str) and (match := _JOBS.fullmatch(value.strip())):
        least, most = int(match[1]), int(match[2])
        if least > most or most == 0:
            raise wrong(f"found '{value}'; write the smaller number first, such as 0-4")
        return f"{least}-{most}"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise wrong(f"found {describe(value)}; write a number of jobs such as 4, or a range such as 0-4")


def _check_name(value: object) -> object:
    """A word that goes into a job's header; a space or a newline in it would be another option."""
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.,:@+/-]*", value):
        raise wrong(f"found '{value}'; use letters, digits and any of _ . , : @ + / -")
    return value


def _check_line(value: object) -> object:
    if isinstance(value, str) and (not value.strip() or not value.isprintable()):
        raise wrong(f"found {describe(value)}; each directive is one line of text, such as --qos=high")
    return value


def _check_text(value: object) -> object:
    if isinstance(value, str) and (not value.strip() or not value.isprintable()):
        raise wrong(f"found {describe(value)}; write a path")
    return value


Name = Annotated[str, BeforeValidator(_check_name)]
Line = Annotated[str, BeforeValidator(_check_line)]
PathText = Annotated[str, BeforeValidator(_check_text)]
Memory = Annotated[str, BeforeValidator(_check_memory)]
Jobs = Annotated[
    Any,
    BeforeValidator(_check_jobs),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": "^[0-9]+-[0-9]+$"}]}
    ),
]


class Workers(Block):
    """One shape of worker job."""

    partition: Name | None = Field(
        default=None, description="Partition or queue; null: the default of the batch system"
    )
    cores: Count = Field(default=1, description="Cores of one job")
    memory: Memory = Field(default="4 GB", description="Memory of one job")
    walltime_s: WallTime = Field(
        default=43200.0, alias="walltime", description="Time limit of one job; a new one follows in time"
    )
    drain_s: WallTime | None = Field(
        default=None,
        alias="drain",
        description="Rest of the walltime in which no task begins; longer than one task; null: a tenth",
    )
    gpus: Whole = Field(default=0, description="GPUs of one job; all of them are seen by its one worker")
    gpu_type: Name | None = Field(default=None, description="Kind of GPU where the site has several")
    jobs: Jobs = Field(default=1, description="Jobs: a number, or a range such as 0-4 that follows the work")
    directives: tuple[Line, ...] = Field(
        default=(), description="More options for the head of the job script, such as --qos=high"
    )

    @model_validator(mode="after")
    def _drains_before_the_end(self) -> Workers:
        if self.drain_s is not None and self.drain_s >= self.walltime_s:
            raise wrong(f"a drain of {self.drain_s:g} s is not below the walltime, {self.walltime_s:g} s")
        return self

    @property
    def least(self) -> int:
        return int(self.jobs.split("-")[0]) if isinstance(self.jobs, str) else self.jobs

    @property
    def most(self) -> int:
        return int(self.jobs.split("-")[1]) if isinstance(self.jobs, str) else self.jobs

    @property
    def drain_or_default_s(self) -> float:
        if self.drain_s is not None:
            return self.drain_s
        return min(DRAIN_SHARE * self.walltime_s, DRAIN_MOST_S)


class GpuWorkers(Workers):
    """Workers that train, explore and score."""

    gpus: Whole = Field(default=1, description="GPUs of one job; all of them are seen by its one worker")


class Cluster(Block):
    """Worker jobs of a batch system."""

    gpu: GpuWorkers | None = Field(
        default=None, description="Jobs that train, explore and score; null: the cpu jobs do"
    )
    cpu: Workers | None = Field(default=None, description="Jobs that label; null: the gpu jobs do")
    account: Name | None = Field(default=None, description="Account or project that pays")
    setup: PathText | None = Field(
        default=None, description="Shell file that every job reads first (modules, conda)"
    )
    python: PathText | None = Field(
        default=None, description="Python on the nodes; null: the one that runs alchemy"
    )
    interface: Name | None = Field(
        default=None, description="Network of scheduler and workers, such as ib0; null: the default route"
    )
    idle_s: WallTime = Field(
        default=300.0, alias="idle", description="Time without work after which jobs above the least end"
    )
    patience_s: WallTime = Field(
        default=86400.0, alias="patience", description="Longest wait for a first worker before giving up"
    )
    ask_every_s: WallTime = Field(
        default=15.0, alias="ask_every", description="How often the batch system is asked about the jobs"
    )

    @model_validator(mode="after")
    def _has_a_kind(self) -> Cluster:
        if self.gpu is None and self.cpu is None:
            raise wrong("names no workers; add gpu: or cpu: (or both)")
        if self.gpu is None and self.cpu is not None and self.cpu.most == 0:
            raise wrong("asks for no job at all")
        return self

    @property
    def kinds(self) -> dict[str, Workers]:
        """The kinds that the file names."""
        given = {"gpu": self.gpu, "cpu": self.cpu}
        return {name: workers for name, workers in given.items() if workers is not None}

    def resources(self, kind: str) -> tuple[str, ...]:
        """What a worker of the kind offers: GPU, LABEL or both."""
        if len(self.kinds) == 1:
            return ("GPU", "LABEL")
        return ("GPU",) if kind == "gpu" else ("LABEL",)


def problems_of_run(where: str, cluster: Cluster | None, **others: object) -> Iterator[str]:
    """What is contradictory in a `run` block; `others` are keys that count only elsewhere."""
    batch = where in BATCH_SYSTEMS
    if batch and cluster is None:
        yield (
            f"where: {where} needs to know which jobs to ask for; add a block 'cluster:' with cpu: or gpu:, "
            "such as cluster: {cpu: {cores: 8, walltime: 12 h, jobs: 0-4}}"
        )
    if cluster is not None and not batch:
        yield f"cluster: has no effect with where: {where}; write where: {', '.join(BATCH_SYSTEMS)}"
    for key, value in others.items():
        if batch and value != "auto":
            yield f"{key}: has no effect with where: {where}; the cluster block says how many"
