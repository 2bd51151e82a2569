"""The block `run.labels`: which levels of theory are computed as batch jobs, and what each job asks for.

The keys of the block hold for all levels; those under `fidelities` replace them for one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from alchemy.config_fields import Block, Count, FilePath, Slug, Whole, wrong
from alchemy.quantities import WallTime
from tace.wording import describe

WORKERS = "workers"
_NAME = re.compile(r"[A-Za-z0-9_.,:@+-]+")  # what a partition or an account may be called
_MEMORY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(MB|GB|TB)\s*")
_MB = {"MB": 1, "GB": 1000, "TB": 1_000_000}


def _check_name(value: object) -> object:
    """It goes into a shell script, as a comment that the scheduler reads."""
    if isinstance(value, str) and not _NAME.fullmatch(value):
        raise wrong(f"found '{value}'; a name of letters, digits and _.,:@+- is expected")
    return value


def _check_memory(value: object) -> object:
    if value is None or (isinstance(value, str) and _MEMORY.fullmatch(value)):
        return value
    raise wrong(f'found {describe(value)}; write an amount such as "4 GB"')


def _one_line(lines: tuple[str, ...]) -> tuple[str, ...]:
    for line in lines:
        if "\n" in line or "\r" in line or not line.strip():
            raise wrong(f"found {line!r}; each entry is one line, such as --constraint=haswell")
        if line.lstrip().startswith("#"):
            raise wrong(f"found '{line}'; leave the scheduler's mark out: --constraint=haswell")
    return lines


Name = Annotated[str, BeforeValidator(_check_name)]


class LabelJobs(Block):
    """Where the labels of a level are computed, and the batch jobs that do it."""

    where: Literal["workers", "slurm", "pbs", "sge", "lsf"] = Field(
        default="workers", description="workers (those of this block), or batch jobs: slurm, pbs, sge or lsf"
    )
    partition: Name | None = Field(
        default=None, description="Partition or queue; null: the scheduler's default"
    )
    account: Name | None = Field(default=None, description="Account or project that pays")
    nodes: Count = Field(default=1, description="Nodes of a job")
    tasks: Count = Field(default=1, description="MPI tasks of a job, on all its nodes")
    cores: Count = Field(default=1, description="Cores of each task; OMP_NUM_THREADS is set to it")
    memory: Annotated[str | None, BeforeValidator(_check_memory)] = Field(
        default=None, description="Memory of a job per node, such as 4 GB; null: the scheduler's default"
    )
    walltime_s: WallTime = Field(
        default=3600.0, alias="walltime", description="Longest time of a job, a full minute or more"
    )
    pack: Count = Field(default=1, description="Labels in one job, computed one after another")
    jobs: Count = Field(default=100, description="Jobs in the queue at a time, running ones included")
    setup: FilePath | None = Field(
        default=None, description="Shell file that each job sources first, such as one of module loads"
    )
    template: FilePath | None = Field(
        default=None, description="Your own copy of the scheduler script; null: the one that is shipped"
    )
    extra: Annotated[tuple[str, ...], AfterValidator(_one_line)] = Field(
        default=(), description="More options of the scheduler, such as [--constraint=haswell]"
    )
    retries: Whole = Field(
        default=2, description="New tries of a label that ran out of time or memory, or whose program died"
    )
    resubmissions: Whole = Field(
        default=10, description="New tries of a label whose job was cancelled or preempted, or lost its node"
    )

    @property
    def batch(self) -> bool:
        """Whether these labels are batch jobs."""
        return self.where != WORKERS

    @property
    def memory_MB(self) -> int | None:
        """In units of 10⁶ bytes."""
        if self.memory is None:
            return None
        match = _MEMORY.fullmatch(self.memory)
        assert match is not None  # the validator has seen it
        return max(1, round(float(match[1]) * _MB[match[2]]))

    @model_validator(mode="after")
    def _long_enough(self) -> LabelJobs:
        if self.batch and self.walltime_s < 60:
            raise wrong(f"walltime: found {self.walltime_s:g} s; schedulers count minutes, so one at least")
        return self


class Labels(LabelJobs):
    """The same for all levels, and what is different for some."""

    fidelities: dict[Slug, LabelJobs] = Field(
        default_factory=dict, description="Keys that replace those above for one level: {pbe: {cores: 8}}"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: object) -> object:
        """What a level does not say, it takes from the block."""
        own = data.get("fidelities") if isinstance(data, Mapping) else None
        if not isinstance(data, Mapping) or not isinstance(own, Mapping):
            return data
        common = {key: value for key, value in data.items() if key in _keys()}
        filled: dict[Any, Any] = {
            name: {**common, **keys} if isinstance(keys, Mapping) else keys for name, keys in own.items()
        }
        return {**data, "fidelities": filled}

    def of(self, fidelity: str) -> LabelJobs:
        """What holds for one level."""
        return self.fidelities.get(fidelity, self)

    @property
    def any_batch(self) -> bool:
        """Whether some level is computed as batch jobs."""
        return self.batch or any(jobs.batch for jobs in self.fidelities.values())


def _keys() -> set[str]:
    return {field.alias or name for name, field in LabelJobs.model_fields.items()}
