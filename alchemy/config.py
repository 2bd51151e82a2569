"""The campaign file, schema version 1: the only reader of what the user writes.

`load_campaign` reports every mistake at once, each as `file:line: key.path: found; would work`.
Attributes carry units (`model.cutoff_A`), YAML keys do not (`cutoff: 5 A`): there the value does.
Neither torch, dask nor ase is imported here, because `alchemy check` must answer at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    Tag,
    ValidationError,
    model_validator,
)

from alchemy.config_blocks import Fidelity, Keep, Model, Run, StopMd
from alchemy.config_checks import problems_of, warnings_of
from alchemy.config_errors import problems_in
from alchemy.config_fields import WORD_OR_VALUE, Block, Element, Slug, Whole, wrong
from alchemy.config_samples import Explore, Sample
from alchemy.config_select import Holdout, Select, Stop
from alchemy.config_trust import Trust
from alchemy.errors import ConfigError
from alchemy.quantities import Energy
from tace.documents import Document, Kind, Problem, read_document
from tace.wording import describe

__all__ = [
    "Campaign",
    "campaign_hash",
    "campaign_warnings",
    "json_schema",
    "load_campaign",
    "load_campaign_text",
]

DEFAULT_PER_ROUND = 10
CAMPAIGN_FILE = Kind(
    ConfigError,
    remedy="'alchemy init' writes a commented campaign",
    top="a campaign is a mapping of 'key: value' lines, starting with 'alchemy: 1'",
)
_STAND_INS = {"alchemy": 1, "name": "unnamed"}  # so that checks run where only these are wrong

E0 = Annotated[
    Annotated[Literal["compute", "least-squares"], Tag("<word>")]
    | Annotated[dict[str, dict[Element, Energy]], Tag("<value>")],
    WORD_OR_VALUE,
]


def _items(value: object) -> object:
    if not isinstance(value, list):
        raise wrong(f"found {describe(value)}; must be a list, each item starting with '- '")
    return value


def _distinct(value: tuple[str, ...]) -> tuple[str, ...]:
    twice = sorted({symbol for symbol in value if value.count(symbol) > 1})
    if twice:
        raise wrong(f"found {', '.join(twice)} twice; keep one")
    return value


class Campaign(Block):
    """A campaign file, schema version 1."""

    alchemy: Literal[1] = Field(description="Version of this file format")
    name: Slug = Field(description="Names the campaign and its folder")
    elements: Annotated[tuple[Element, ...], Field(min_length=1), AfterValidator(_distinct)] = (
        Field(description="Every element that the potential will meet")
    )
    seed: Whole = Field(default=0, description="All random numbers of the campaign follow from it")
    fidelities: Annotated[dict[Slug, Fidelity], Field(min_length=1)] = Field(
        description="Levels of theory by name, cheap ones first"
    )
    e0: E0 = Field(
        default="compute",
        description="Atomic energies: compute, least-squares, or a table {fidelity: {H: -13.6 eV}}",
    )
    model: Model = Field(default_factory=Model, description="The committee of potentials")
    start: Annotated[tuple[Sample, ...], BeforeValidator(_items)] = Field(
        default=(), description="Structures for the first committee"
    )
    test: Annotated[tuple[Sample, ...], BeforeValidator(_items)] = Field(
        default=(), description="Structures to judge the potential by, never trained on"
    )
    holdout: Holdout | None = Field(
        default=None, description="A leak-proof part of the start structures to test on as well"
    )
    explore: Annotated[tuple[Explore, ...], BeforeValidator(_items)] = Field(
        default=(), description="Where each round looks for what the committee does not know"
    )
    stop_md: StopMd = Field(default_factory=StopMd, description="When an exploring walk stops")
    select: Select = Field(description="Which candidates are labelled")
    stop: Stop = Field(default_factory=Stop, description="When the campaign is done")
    trust: Trust = Field(default_factory=Trust, description="When labels are doubted")
    run: Run = Field(default_factory=Run, description="Where the work runs")
    keep: Keep = Field(default_factory=Keep, description="What stays on disk")

    _base_dir: Path = PrivateAttr(default_factory=Path.cwd)

    @model_validator(mode="before")
    @classmethod
    def _numbers_count_for_the_target(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        target = _target_of(data.get("fidelities"))
        filled = dict(data)
        if isinstance(data.get("select", {}), Mapping):
            filled["select"] = {"per_round": DEFAULT_PER_ROUND, **data.get("select", {})}
        for block, key in (("select", "per_round"), ("stop", "labels")):
            rest = filled.get(block)
            if isinstance(rest, Mapping) and type(rest.get(key)) is int:
                filled[block] = {**rest, key: {target: rest[key]}}
        return filled

    @property
    def base_dir(self) -> Path:
        """Folder of the campaign file; relative paths in it start here."""
        return self._base_dir

    @property
    def fidelity_names(self) -> tuple[str, ...]:
        """Cheap to dear, as in the file."""
        return tuple(self.fidelities)

    @property
    def target(self) -> str:
        """The fidelity that the potential must reproduce."""
        flagged = [name for name, fidelity in self.fidelities.items() if fidelity.target]
        return flagged[0] if flagged else self.fidelity_names[-1]

    def resolve(self, path: Path | str) -> Path:
        """The absolute path that the file means."""
        return (self._base_dir / Path(path).expanduser()).resolve()


def load_campaign(path: Path) -> Campaign:
    """Read, check and resolve a campaign file; a ConfigError lists everything that is wrong."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; 'alchemy init' writes one") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text, byte {error.start}; save it as such") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    return load_campaign_text(text, str(path), Path(path).resolve().parent)


def load_campaign_text(text: str, name: str, base_dir: Path) -> Campaign:
    """The same for text; `name` stands for the file in messages, `base_dir` for its folder."""
    document = read_document(text, name, CAMPAIGN_FILE)
    problems: list[Problem] = []
    campaign: Campaign | None = None
    try:
        campaign = Campaign.model_validate(document.data)
    except ValidationError as error:
        problems = problems_in(error, Campaign)
        campaign = _what_is_left(document, problems)
    if campaign is not None:
        campaign._base_dir = base_dir.resolve()
        broken = {problem.loc[:1] for problem in problems}
        problems += [p for p in problems_of(campaign) if p.loc[:1] not in broken]
    if problems or campaign is None:
        raise document.error(problems)
    return campaign


def campaign_warnings(campaign: Campaign) -> list[str]:
    """What is allowed and probably not meant, one line each."""
    return warnings_of(campaign)


def campaign_hash(campaign: Campaign) -> str:
    """32 hex digits of all resolved values; comments, units and the file's place do not count."""
    from alchemy.identity import content_hash  # imports ase

    document = campaign.model_dump(mode="json", by_alias=True)
    document["fidelities"] = list(document["fidelities"].items())  # their order is meant
    return content_hash(document)


def json_schema() -> dict[str, Any]:
    """JSON schema (2020-12) of the campaign file, for editors."""
    schema = Campaign.model_json_schema(by_alias=True)
    schema["required"] = [key for key in schema["required"] if key != "select"] + ["start"]
    select = schema["$defs"]["Select"]
    select["required"] = [key for key in select.get("required", []) if key != "per_round"]
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return schema


def _target_of(fidelities: object) -> str:
    if not isinstance(fidelities, Mapping) or not fidelities:
        return "target"  # an error of its own; this name is never checked then
    flagged = [
        name
        for name, options in fidelities.items()
        if isinstance(options, Mapping) and options.get("target") is True
    ]
    return str(flagged[0] if flagged else list(fidelities)[-1])


def _what_is_left(document: Document, problems: list[Problem]) -> Campaign | None:
    """The campaign without its broken blocks, for the checks between the sound ones."""
    broken = {problem.loc[0] for problem in problems if problem.loc}
    sound = {key: value for key, value in document.data.items() if key not in broken}
    stand_ins = {key: value for key, value in _STAND_INS.items() if key in broken}
    try:
        return Campaign.model_validate({**sound, **stand_ins})
    except ValidationError:
        return None  # fidelities or elements are broken: everything hangs on them
