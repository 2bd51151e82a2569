
"""The blocks of the campaign file that say how: model, stopping rules, selection, machine.

Each description is one line, because `alchemy check --explain` prints it beside its key.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from alchemy.config_cluster import BATCH_SYSTEMS, Cluster, problems_of_run
from alchemy.config_fields import (
    AllOrCount,
    AutoOrCount,
    AutoOrWhole,
    Block,
    Count,
    Flag,
    Fraction,
    NotNegative,
    Positive,
    Whole,
    plugin_name,
    wrong,
)
from alchemy.config_labels import Labels
from alchemy.config_trust import GateLimits
from alchemy.quantities import Force, Length, WallTime
from tace.wording import hint


def _open_schema(schema: dict[str, Any]) -> None:
    schema["properties"].pop("options")
    schema["additionalProperties"] = True


class Fidelity(Block):
    """A level of theory: who computes it, and the options of that labeler."""

    model_config = ConfigDict(json_schema_extra=_open_schema)

    labeler: Annotated[str, plugin_name("labelers", "labeler")] = Field(
        description="Which code computes it; 'alchemy doctor' lists and tries the installed ones"
    )
    target: Flag = Field(
        default=False, description="The level that the potential must reproduce; else the last one"
    )
    gate: GateLimits = Field(
        default_factory=GateLimits, description="Limits beyond which a label is no label"
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Every other key; the labeler checks them"
    )

    @model_validator(mode="before")
    @classmethod
    def _collect_options(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        own = {key: data[key] for key in ("labeler", "target", "gate") if key in data}
        return {**own, "options": {key: data[key] for key in data if key not in own}}


class Train(Block):
    """How each committee member is trained."""

    steps: Count = Field(default=2000, description="Optimiser steps per member and round")
    batch: Count = Field(default=8, description="Structures per step")
    learning_rate: Positive = Field(default=0.02, description="Peak step size of the optimiser")
    energy_weight: NotNegative = Field(
        default=10.0, description="Weight of energies in the loss, in the first half of the steps"
    )
    energy_growth: Positive = Field(
        default=10.0, description="Factor by which it grows over the second half"
    )
    forces_weight: NotNegative = Field(default=10.0, description="Weight of forces in the loss")
    stress_weight: NotNegative = Field(default=1.0, description="Weight of stresses in the loss")
    ema: Annotated[float, Field(strict=True, ge=0, lt=1)] = Field(
        default=0.99, description="Decay of the running mean of the weights that is kept; 0 is off"
    )
    clip: Positive = Field(default=0.1, description="Largest norm of the gradient")
    schedule: Literal["constant", "cosine", "plateau"] = Field(
        default="cosine", description="How the step size falls: constant, cosine or plateau"
    )
    validation: Annotated[float, Field(strict=True, ge=0, lt=1)] = Field(
        default=0.1, description="Fraction of the structures held out; each member holds out others"
    )
    warm_start: Flag = Field(
        default=True, description="Start from the weights of the round before, not from random ones"
    )
    warm_share: Fraction = Field(
        default=1.0, description="Share of those weights that is kept; the rest is drawn anew"
    )
    fidelity_balance: Fraction = Field(
        default=0.5, description="0 draws structures as they come, 1 draws fidelities equally often"
    )
    patience: Count | None = Field(
        default=None, description="Validations without gain before training ends early; null: never"
    )
    compile: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Steps as a compiled graph: where it is built or pays for its building, always, never",
    )


class Overrides(Block):
    """Hyperparameters that replace those of the preset; null keeps the preset's."""

    channels: Count | None = Field(default=None, description="Feature channels")
    l_max: Whole | None = Field(default=None, description="Highest rank of the edge tensors")
    L_max: Whole | None = Field(default=None, description="Highest rank of the messages")
    correlation: Count | None = Field(default=None, description="Body order of the product, less 1")
    layers: Count | None = Field(default=None, description="Interaction layers")
    radial_mlp: tuple[Count, ...] | None = Field(
        default=None, description="Widths of the radial network, such as [64, 64]"
    )


class Model(Block):
    """The committee of potentials."""

    preset: Literal["nano", "small", "medium", "large"] = Field(
        default="small", description="Size of the network: nano, small, medium or large"
    )
    committee: Annotated[int, Field(strict=True, ge=2)] = Field(
        default=4, description="Members; their disagreement is the uncertainty, so at least 2"
    )
    trunk: Literal["own", "shared"] = Field(
        default="own",
        description="Layers of each member: its own, or those of the first under readouts of their own",
    )
    cutoff_A: Length = Field(
        default=5.0, alias="cutoff", description="Farthest neighbour that an atom sees"
    )
    dtype: Literal["float32", "float64"] = Field(
        default="float32", description="Precision of the network: float32 or float64"
    )
    les: bool = Field(
        default=True, description="Long-range electrostatics of learned charges (latent Ewald summation)"
    )
    start: Literal["small", "unit"] = Field(
        default="small",
        description="Size of features before training: small for a few dozen labels, unit for many hundreds",
    )
    zbl: bool = Field(default=False, description="Screened nuclear repulsion at short range")
    train: Train = Field(default_factory=Train, description="How each member is trained")
    overrides: Overrides = Field(
        default_factory=Overrides, description="Single hyperparameters that replace the preset's"
    )


class Guards(Block):
    """A walker that breaks one of these is ended and its last frames are dropped."""

    min_distance_factor: Positive = Field(
        default=0.6, description="Shortest pair distance, in sums of covalent radii"
    )
    max_force_eV_per_A: Force = Field(
        default=50.0, alias="max_force", description="Largest force that the model may predict"
    )
    max_temperature_factor: Annotated[float, Field(strict=True, gt=1)] = Field(
        default=3.0, description="Highest kinetic temperature, in units of the one asked for"
    )
    max_volume_factor: Annotated[float, Field(strict=True, gt=1)] = Field(
        default=1.8, description="Largest change of the volume of npt, either way"
    )


class StopMd(Block):
    """When a walker stops: thresholds on the calibrated expected force error, and guards."""

    label_above_eV_per_A: Force = Field(
        default=0.1, alias="label_above", description="Expected error at which a frame is offered"
    )
    abort_above_eV_per_A: Force = Field(
        default=1.0, alias="abort_above", description="Expected error at which a walker is ended"
    )
    energy_spread: Positive | None = Field(
        default=10.0,
        description="Members' energies spread this many times as on training: offered too; null: never",
    )
    guards: Guards = Field(default_factory=Guards, description="Limits beyond which it is nonsense")


def _check_where(value: object) -> object:
    if not isinstance(value, str) or value in ("local", "inline", *BATCH_SYSTEMS):
        return value
    try:
        url = urlsplit(value)
        host, port = url.hostname, url.port
    except ValueError:
        raise wrong(f"found '{value}', not an address; write tls://host:8786") from None
    if url.scheme not in ("tcp", "tls"):
        raise wrong(f"found '{value}'; {hint(value, ('local', 'inline', *BATCH_SYSTEMS, 'tls://host:8786'))}")
    if not host or port is None:
        raise wrong(f"found '{value}'; an address needs host and port: {url.scheme}://host:8786")
    if url.scheme == "tcp" and not _is_loopback(host):
        raise wrong(
            f"found '{value}'; tcp:// is not encrypted, and whoever reaches that port runs code "
            f"as you: use tls://{host}:{port}, or tcp:// with 127.0.0.1 or localhost"
        )
    return value


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Run(Block):
    """Where the work runs; changes no result."""

    where: Annotated[str, BeforeValidator(_check_where)] = Field(
        default="local",
        description="local, inline (this process), slurm, pbs, sge, lsf, or tls://host:port of a scheduler",
    )
    workers: AutoOrCount = Field(
        default="auto", description="Worker processes; auto: as many as the cores allow"
    )
    threads_per_worker: Count = Field(default=1, description="Cores that one task may use")
    gpus: AutoOrWhole = Field(default="auto", description="GPUs to use; auto: all that are visible")
    labels: Labels = Field(default_factory=Labels, description="Labels as batch jobs of a scheduler")
    cluster: Cluster | None = Field(default=None, description="Worker jobs, where a batch system runs them")
    overlap: Flag = Field(
        default=False, description="Train and explore while labels of the round before are computed"
    )
    retrain_at: Annotated[float, Field(strict=True, gt=0, le=1)] = Field(
        default=0.5, description="With overlap: share of a round's labels with which the next begins"
    )

    @model_validator(mode="after")
    def _cluster_fits(self) -> Run:
        for problem in problems_of_run(self.where, self.cluster, workers=self.workers, gpus=self.gpus):
            raise wrong(problem)
        return self

    @property
    def model_threads(self) -> int:
        """Threads of a training: all cores of a job that has but one worker."""
        gpu = self.cluster.gpu if self.cluster is not None else None
        return self.threads_per_worker if gpu is None else gpu.cores


class Keep(Block):
    """What stays on disk; labels always do."""

    label_directories: Literal["failed", "all", "none"] = Field(
        default="failed", description="Scratch folders of labels to keep: failed, all or none"
    )
    models: AllOrCount = Field(
        default="all", description="Newest committees that 'alchemy gc' leaves, at least 2; or all"
    )
    trajectories: Flag = Field(
        default=True, description="Files of finished explorations; their candidates are in the store"
    )
    predictions: Flag = Field(
        default=True, description="Arrays of predictions of finished rounds, made again when needed"
    )
    raw_for_s: WallTime | None = Field(
        default=None, alias="raw_for", description="Age at which other raw files go, such as 720 h"
    )
