
"""The blocks that say where structures come from: start and test items, and explorers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    StringConstraints,
    Tag,
    WithJsonSchema,
    model_validator,
)

from alchemy.config_fields import (
    ONE_OR_LIST,
    Block,
    Count,
    FilePath,
    Flag,
    Labels,
    NotNegative,
    Positive,
    installed,
    wrong,
)
from alchemy.config_structures import (
    BLOCKS,
    Bulk,
    ExploreReico,
    Hops,
    SampleHopping,
    SampleReico,
    Slab,
    Smiles,
    Strain,
    Substitute,
    Vacancy,
)
from alchemy.config_ts import ExploreTs
from alchemy.quantities import Energy, Force, Length, Pressure, Temperature, Time
from tace.wording import describe, hint

SAMPLE_KINDS = ("files", "rattle", "md", *BLOCKS)
EXPLORERS = ("md", "reico", "basin_hopping", "ts")  # those with a block of their own
if TYPE_CHECKING:  # what they are once read
    Temperatures = tuple[float, ...]
    Pressures = tuple[float, ...]
else:

    def _one_or_list(item: Any) -> Any:
        many = Annotated[Annotated[tuple[item, ...], Field(min_length=1)], Tag("<value>")]
        return Annotated[
            many | Annotated[item, Tag("<word>")],
            ONE_OR_LIST,
            AfterValidator(lambda found: found if isinstance(found, tuple) else (found,)),
        ]

    Temperatures = _one_or_list(Temperature)
    Pressures = _one_or_list(Pressure)

_INDEX = r"^(-?\d+|(-?\d*)(:-?\d*){1,2})$"


def _check_index(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and not re.match(_INDEX, value):
        raise wrong(f'found \'{value}\'; write a slice such as ":", "0:100:10" or -1')
    return value


class Files(Block):
    """Structures from files that ASE can read."""

    paths: Annotated[tuple[FilePath, ...], Field(min_length=1)] = Field(
        description="Structure files, relative to the campaign file; 'path: one.xyz' works too"
    )
    index: Annotated[
        str,
        BeforeValidator(_check_index),
        StringConstraints(pattern=_INDEX),
        WithJsonSchema({"anyOf": [{"type": "string", "pattern": _INDEX}, {"type": "integer"}]}),
    ] = Field(default=":", description="Which frames of each file, as a Python slice")

    @model_validator(mode="before")
    @classmethod
    def _path_is_one_of_paths(cls, data: object) -> object:
        if not isinstance(data, Mapping) or "path" not in data:
            return data
        if "paths" in data:
            raise wrong("found both 'path' and 'paths'; keep one")
        return {**{k: v for k, v in data.items() if k != "path"}, "paths": [data["path"]]}

    model_config = ConfigDict(json_schema_extra=lambda schema: _path_schema(schema))


def _path_schema(schema: dict[str, Any]) -> None:
    schema["properties"]["path"] = {"type": "string", "minLength": 1}
    schema["required"].remove("paths")
    schema["oneOf"] = [{"required": ["paths"]}, {"required": ["path"]}]


class Rattle(Block):
    """Copies of structures with Gaussian displacements."""

    structures: FilePath = Field(description="Structure file, relative to the campaign file")
    count: Count = Field(description="Rattled copies in all, shared among the structures")
    stdev_A: Length = Field(alias="stdev", description="Standard deviation of each coordinate")
    relax_with: str | None = Field(
        default=None, description="Fidelity that relaxes the structures first; null: as they are"
    )
    strain: NotNegative = Field(
        default=0.0, description="Standard deviation of random strains of periodic cells"
    )


class SampleMd(Block):
    """Frames of molecular dynamics driven by a labeler, for the time before there is a model."""

    structures: FilePath = Field(description="Structure file, relative to the campaign file")
    fidelity: str = Field(alias="with", description="Fidelity that drives the dynamics")
    T_K: Temperatures = Field(alias="T", description="Temperatures, such as 300 K or [300 K, 600 K]")
    time_fs: Time = Field(alias="time", description="Length of each trajectory")
    timestep_fs: Time = Field(default=0.5, alias="timestep", description="Integration step")
    count: Count = Field(description="Frames in all, evenly spaced over all trajectories")
    relax_first: Flag = Field(default=True, description="Relax with the same fidelity before")
    friction_per_fs: Positive = Field(default=0.01, description="Langevin friction, in 1/fs")


class Sample(Block):
    """An item of `start` or `test`: exactly one source of structures, and their labels."""

    files: Files | None = Field(default=None, description="Structures from files")
    rattle: Rattle | None = Field(default=None, description="Displaced copies of structures")
    md: SampleMd | None = Field(default=None, description="Molecular dynamics with a labeler")
    reico: SampleReico | None = Field(default=None, description="Random structures of all elements")
    smiles: Smiles | None = Field(default=None, description="Conformers of molecules")
    bulk: Bulk | None = Field(default=None, description="A crystal by formula and prototype")
    slab: Slab | None = Field(default=None, description="Slabs by facet, bare or with adsorbates")
    substitute: Substitute | None = Field(default=None, description="Copies with other elements")
    vacancy: Vacancy | None = Field(default=None, description="Copies without some atoms")
    strain: Strain | None = Field(default=None, description="Copies at evenly spaced strains")
    basin_hopping: SampleHopping | None = Field(default=None, description="Minima found by random hops")
    label: Labels = Field(description="How many to label with which fidelity, or all of them")

    model_config = ConfigDict(json_schema_extra=lambda schema: _one_source_schema(schema))

    @model_validator(mode="before")
    @classmethod
    def _has_one_source(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        kinds = [kind for kind in SAMPLE_KINDS if kind in data]
        if len(kinds) > 1:
            raise wrong(f"found {' and '.join(kinds)} in one item; put each into its own '- ' item")
        unknown = [key for key in data if key not in (*SAMPLE_KINDS, "label")]
        if not kinds and not unknown:
            raise wrong(f"found no source of structures; add one of {', '.join(SAMPLE_KINDS)}")
        empty = [kind for kind in kinds if data[kind] is None]
        if empty:
            raise wrong(f"found nothing under '{empty[0]}'; indent its keys below it")
        return data

    @property
    def kind(self) -> str:
        return next(kind for kind in SAMPLE_KINDS if getattr(self, kind) is not None)

    @property
    def source(self) -> Any:
        """The block of the kind."""
        return getattr(self, self.kind)

    @property
    def most(self) -> int | None:
        """Structures that the item makes, at most; None where that shows only when they are made."""
        source = self.source
        if isinstance(source, Files):
            return None
        return int(source.count) if isinstance(source, Rattle | SampleMd) else source.most


def _not_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema["anyOf"][0], "description": schema["description"]}


def _one_source_schema(schema: dict[str, Any]) -> None:
    for kind in SAMPLE_KINDS:  # null is for Python only
        schema["properties"][kind] = _not_null(schema["properties"][kind])
    schema["oneOf"] = [{"required": [kind]} for kind in SAMPLE_KINDS]


def _check_structures(value: object) -> Path | Literal["start"]:
    if value == "start":
        return "start"
    if isinstance(value, str) and value.strip():
        return Path(value)
    raise wrong(f"found {describe(value)}; write 'start' or the path of a structure file")


Structures = Annotated[
    Path | Literal["start"],
    PlainValidator(_check_structures),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "minLength": 1}),
]


class ExploreMd(Block):
    """Molecular dynamics with the committee, stopped where it becomes unsure."""

    structures: Structures = Field(
        default="start", description="'start' (structures of the start block) or a structure file"
    )
    ensemble: Literal["nvt", "nve", "npt"] = Field(
        default="nvt", description="nvt, nve, or npt for cells that are periodic along three axes"
    )
    T_K: Temperatures = Field(alias="T", description="Temperatures, such as 300 K or [300 K, 600 K]")
    ramp_to_K: Temperature | None = Field(
        default=None, alias="ramp_to", description="Here the thermostat goes from T in a walk; null: it stays"
    )
    time_fs: Time | None = Field(default=None, alias="time", description="Length of each walk; or a ladder")
    ladder_fs: Annotated[tuple[Time, ...], Field(min_length=1)] | None = Field(
        default=None,
        alias="ladder",
        description="Lengths to climb, such as [1 ps, 4 ps]: longer, hotter walks open as easier ones last",
    )
    survive: Annotated[float, Field(strict=True, gt=0, le=1)] = Field(
        default=0.75, description="Share of walkers that must reach the end for a ladder to go on"
    )
    timestep_fs: Time = Field(default=0.5, alias="timestep", description="Integration step")
    thermostat: Literal["langevin", "bussi"] = Field(
        default="langevin", description="langevin, or bussi (velocity rescaling); not with nve"
    )
    friction_per_fs: Positive = Field(default=0.01, description="Friction of langevin, in 1/fs")
    tau_fs: Time = Field(default=100.0, alias="tau", description="Relaxation time of bussi")
    pressures_eV_per_A3: Pressures = Field(
        default=(0.0,), alias="pressure", description="External pressure of npt, or a list of them"
    )
    barostat_tau_fs: Time = Field(
        default=1000.0, alias="barostat_tau", description="Relaxation time of the volume in npt"
    )
    compressibility_per_GPa: Positive = Field(
        default=0.05, description="A guess, for barostat_tau to be right: metals 0.01, water 0.45"
    )
    walkers: Count = Field(default=4, description="Walkers at each temperature")
    batch_atoms: Count = Field(
        default=1024, description="Atoms side by side; more walkers wait. Changes no result"
    )
    check_every: Count = Field(default=10, description="Steps between looks at the uncertainty")
    sample_every: Count | None = Field(
        default=None, description="Steps between frames offered anyway; null: a few per walk"
    )
    bias: Literal["none", "udd"] = Field(
        default="none", description="udd: pushed to where the members disagree about the energy"
    )
    bias_height_eV: Annotated[Energy, Field(gt=0)] = Field(
        default=0.5, alias="bias_height", description="Depth of the bias of a structure"
    )
    bias_width_eV: Annotated[Energy, Field(gt=0)] = Field(
        default=0.01,
        alias="bias_width",
        description="Spread of energies per root of the number of atoms that gives 63 % of it",
    )

    @model_validator(mode="after")
    def _has_a_length(self) -> ExploreMd:
        if (self.time_fs is None) == (self.ladder_fs is None):
            found = "neither time nor ladder" if self.time_fs is None else "both time and ladder"
            raise wrong(f"found {found}; give one, such as 'time: 2 ps' or 'ladder: [1 ps, 4 ps]'")
        if self.ladder_fs is not None and list(self.ladder_fs) != sorted(set(self.ladder_fs)):
            raise wrong("ladder: found lengths out of order; write them from short to long, each once")
        for name, values in (("T", self.T_K), ("pressure", self.pressures_eV_per_A3)):
            if self.ladder_fs is not None and len(set(values)) < len(values):
                raise wrong(f"{name}: found a value twice; a ladder has each rung once")
        return self


class ExploreHopping(Hops):
    """Basin hopping with the committee: minima of the potential, wherever they are."""

    structures: Structures = Field(
        default="start", description="'start' (structures of the start block) or a structure file"
    )
    abort_above_eV_per_A: Force = Field(
        default=1.0, alias="abort_above", description="Expected error at which an optimisation ends"
    )
    batch_atoms: Count = Field(default=1024, description="Atoms side by side. Changes no result")


class Explore(Block):
    """An item of `explore`: one explorer by its plug-in name, with its options."""

    md: ExploreMd | None = Field(default=None, description="Molecular dynamics with the committee")
    reico: ExploreReico | None = Field(default=None, description="Random structures of all elements")
    basin_hopping: ExploreHopping | None = Field(default=None, description="Minima found by random hops")
    ts: ExploreTs | None = Field(default=None, description="Transition states with the committee")
    plugin: str | None = Field(default=None, description="Name of another package's explorer")
    options: dict[str, Any] = Field(default_factory=dict, description="What it was given")

    model_config = ConfigDict(json_schema_extra=lambda schema: _explorer_schema(schema))

    @model_validator(mode="before")
    @classmethod
    def _is_one_explorer(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        known = tuple(sorted({*EXPLORERS, *installed("explorers")}))
        if len(data) != 1:
            raise wrong(
                f"found {' and '.join(map(str, data)) or 'an empty mapping'}; each '- ' item is "
                f"one explorer ({', '.join(known)}) with its options indented below it"
            )
        kind, options = next(iter(data.items()))
        if kind not in known:
            near = "write 'reico: {method: grow, …}'" if kind == "grow" else hint(kind, known)
            raise wrong(f"found '{kind}', no such explorer; {near}")
        if options is None and kind in EXPLORERS:
            raise wrong(f"found nothing under '{kind}'; indent its keys below it")
        if kind in EXPLORERS:
            return {kind: options}
        return {"plugin": kind, "options": {} if options is None else options}

    @property
    def kind(self) -> str:
        return self.plugin or next(kind for kind in EXPLORERS if getattr(self, kind) is not None)

    @property
    def block(self) -> Any:
        """The block of the kind; None of a plug-in, which has options."""
        return None if self.plugin else getattr(self, self.kind)


def _explorer_schema(schema: dict[str, Any]) -> None:
    schema["properties"] = {kind: _not_null(schema["properties"][kind]) for kind in EXPLORERS}
    schema.update(additionalProperties={"type": "object"}, minProperties=1, maxProperties=1)
