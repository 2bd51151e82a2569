"""The scalar types and the base class of the campaign's blocks.

Numbers are strict: YAML `"3"` is not 3, and `true` is not 1. A value that may be a word or a number
is a tagged union, because the tags `<...>` are easily removed from pydantic's error locations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    PlainValidator,
    StringConstraints,
    Tag,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from tace.wording import describe, hint


class Block(BaseModel):
    """A mapping of the campaign file. YAML keys are the aliases; attributes add the unit."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def wrong(message: str) -> PydanticCustomError:
    """A complaint whose text reaches the user as it is."""
    return PydanticCustomError("campaign", "{why}", {"why": message})


@cache
def installed(group: str) -> tuple[str, ...]:
    """Names of the plug-ins in entry-point group `alchemy.<group>`, ours included."""
    return tuple(sorted({point.name for point in entry_points(group=f"alchemy.{group}")}))


def plugin_name(group: str, what: str) -> BeforeValidator:
    """Check that a plug-in of that name is installed; none is imported."""

    def check(value: object) -> object:
        if isinstance(value, str) and value not in installed(group):
            raise wrong(f"found '{value}', no such {what}; {hint(value, installed(group))}")
        return value

    return BeforeValidator(check)


def _is_word(value: object) -> str:
    return "<word>" if isinstance(value, str) else "<value>"


WORD_OR_VALUE = Discriminator(_is_word)
ONE_OR_LIST = Discriminator(lambda value: "<value>" if isinstance(value, list | tuple) else "<word>")

Whole = Annotated[int, Field(strict=True, ge=0)]
Count = Annotated[int, Field(strict=True, ge=1)]
Positive = Annotated[float, Field(strict=True, gt=0)]
NotNegative = Annotated[float, Field(strict=True, ge=0)]
Fraction = Annotated[float, Field(strict=True, ge=0, le=1)]
Flag = Annotated[bool, Field(strict=True)]
AllOrCount = Annotated[
    Annotated[Literal["all"], Tag("<word>")] | Annotated[Count, Tag("<value>")], WORD_OR_VALUE
]
AutoOrCount = Annotated[
    Annotated[Literal["auto"], Tag("<word>")] | Annotated[Count, Tag("<value>")], WORD_OR_VALUE
]
AutoOrWhole = Annotated[
    Annotated[Literal["auto"], Tag("<word>")] | Annotated[Whole, Tag("<value>")], WORD_OR_VALUE
]

# The config must load without ase.
_PERIODIC_TABLE = """
H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr
Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb
Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf
Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og"""
SYMBOLS: tuple[str, ...] = tuple(_PERIODIC_TABLE.split())


def _check_element(value: object) -> str:
    if isinstance(value, str) and value in SYMBOLS:
        return value
    if isinstance(value, str):
        raise wrong(f"found '{value}', not an element symbol; {_nearest_symbol(value)}")
    raise wrong(f"found {describe(value)}; write an element symbol such as Cu")


def _nearest_symbol(text: str) -> str:
    for size in (2, 1):  # 'CL' is Cl, 'Copper' is at best Co: say it only for short text
        if len(text) <= 2 and text[:size].capitalize() in SYMBOLS:
            return f"did you mean '{text[:size].capitalize()}'?"
    return "write symbols such as H or Cu"


Element = Annotated[
    str, PlainValidator(_check_element), WithJsonSchema({"type": "string", "enum": list(SYMBOLS)})
]


def _check_slug(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", value):
        slug = re.sub(r"[^A-Za-z0-9_.]+", "-", value).strip("-.")[:64]
        raise wrong(
            f"found '{value}'; it names a folder, so use letters, digits, '_', '-' and '.'"
            + (f", such as '{slug}'" if slug else "")
        )
    return value


Slug = Annotated[
    str,
    BeforeValidator(_check_slug),
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"),
]


def _check_path(value: object) -> Path:
    if isinstance(value, str) and value.strip():
        return Path(value)
    raise wrong(f"found {describe(value)}; write the path of a structure file")


FilePath = Annotated[
    Path,
    PlainValidator(_check_path),
    PlainSerializer(lambda path: path.as_posix(), return_type=str),
    WithJsonSchema({"type": "string", "minLength": 1}),
]


def list_as_all(value: object) -> object:
    """`label: [gfn2, pbe]` means `{gfn2: all, pbe: all}`."""
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        repeated = next((name for name in value if value.count(name) > 1), None)
        if repeated:
            raise wrong(f"found '{repeated}' twice; keep one")
        return dict.fromkeys(value, "all")
    if not isinstance(value, Mapping):
        raise wrong(f"found {describe(value)}; write {{pbe: 12}}, {{pbe: all}} or [pbe]")
    return value


_NAMES_SCHEMA: dict[str, Any] = {"type": "array", "items": {"type": "string"}, "minItems": 1}
_COUNTS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": {
        "anyOf": [{"const": "all"}, {"type": "integer", "minimum": 1}],
    },
    "minProperties": 1,
}
Labels = Annotated[
    dict[str, AllOrCount],
    Field(min_length=1),
    BeforeValidator(list_as_all),
    WithJsonSchema({"anyOf": [_COUNTS_SCHEMA, _NAMES_SCHEMA]}),
]

# A bare number means the target fidelity; `Campaign` fills in its name before the block is read.
_LIMITS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": {"type": "integer", "minimum": 1},
    "minProperties": 1,
}
PerFidelity = Annotated[
    dict[str, Count],
    Field(min_length=1),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, _LIMITS_SCHEMA]}),
]
