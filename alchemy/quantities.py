"""Quantities with units in text: `"80 meV/A"`, `"12 h"`, `"600 K"` become floats in one fixed unit.

Every unit is an exact fraction of eV, Å, fs and K, so that `"80 meV/A"` is the same float as 0.08
and a value written by `Kind.text` is read back to the last bit. Bare numbers are refused: a file
that says `label_above: 80` has been wrong by a factor of a thousand too often.
Constants: h, e, k_B and N_A as fixed by the SI of 2019; hartree and bohr from CODATA 2022.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Context, Decimal, Inexact
from difflib import get_close_matches
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

Dimension = tuple[int, int, int, int]  # powers of energy, length, time, temperature

_PASCAL_A3 = Fraction("6.241509074460763e-12")  # eV/Å³ in one Pa: 1e-30 m³ / 1.602176634e-19 J
_PER_MOL = Fraction("6.02214076e23")
_JOULE = Fraction(10**19) / Fraction("1.602176634")
_SECOND = Fraction(10**15)

_UNITS: dict[str, tuple[Fraction, Dimension]] = {
    **{
        s: (Fraction(f), (1, 0, 0, 0))
        for s, f in {
            "eV": "1",
            "meV": "1e-3",
            "keV": "1e3",
            "Ha": "27.211386245981",
            "Hartree": "27.211386245981",
            "Ry": "13.6056931229905",
        }.items()
    },
    "J": (_JOULE, (1, 0, 0, 0)),
    "kJ": (_JOULE * 1000, (1, 0, 0, 0)),
    "kcal": (_JOULE * 4184, (1, 0, 0, 0)),
    "mol": (_PER_MOL, (0, 0, 0, 0)),
    **{
        s: (Fraction(f), (0, 1, 0, 0))
        for s, f in {
            "A": "1",
            "Å": "1",
            "Angstrom": "1",
            "pm": "1e-2",
            "nm": "10",
            "Bohr": "0.529177210544",
        }.items()
    },
    **{
        s: (Fraction(f), (0, 0, 1, 0))
        for s, f in {"fs": "1", "ps": "1e3", "ns": "1e6", "us": "1e9", "ms": "1e12"}.items()
    },
    **{
        s: (n * _SECOND, (0, 0, 1, 0))
        for s, n in {"s": 1, "min": 60, "h": 3600, "d": 86400}.items()
    },
    "K": (Fraction(1), (0, 0, 0, 1)),
    **{
        s: (Fraction(f) * _PASCAL_A3, (1, -3, 0, 0))
        for s, f in {
            "Pa": "1",
            "kPa": "1e3",
            "MPa": "1e6",
            "GPa": "1e9",
            "bar": "1e5",
            "kbar": "1e8",
        }.items()
    },
}

_DIMENSION_NAMES: dict[Dimension, str] = {
    (1, 0, 0, 0): "an energy",
    (0, 1, 0, 0): "a length",
    (0, 0, 1, 0): "a time",
    (0, 0, 0, 1): "a temperature",
    (1, -1, 0, 0): "a force",
    (1, -3, 0, 0): "a pressure",
}

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?"
_QUANTITY = re.compile(rf"\s*(?P<number>{_NUMBER})\s*(?P<unit>\S.*?)?\s*")
_FACTOR = re.compile(r"\s*([*/])\s*([^\W\d_]+)(?:(?:\^|\*\*)?(-?\d))?\s*")


class QuantityError(ValueError):
    """The text is not a quantity of the kind asked for; says what was found and what works."""


@dataclass(frozen=True)
class Kind:
    """What a key holds: its unit in memory, the units it is written in, the signs allowed."""

    noun: str
    unit: str
    written: tuple[str, ...]  # for messages and `text`, largest first
    sign: Literal["positive", "any"] = "positive"

    @property
    def dimension(self) -> Dimension:
        return parse_unit(self.unit)[1]

    @property
    def example(self) -> str:
        return _EXAMPLES[self.unit]

    def parse(self, value: object) -> float:
        """The float, in `self.unit`, that the text stands for."""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            options = " or ".join(f'"{value} {unit}"' for unit in self.written)
            raise QuantityError(f"found {value}, a bare number; write {options}")
        if not isinstance(value, str):
            like = f'{self.noun} such as "{self.example}"'
            raise QuantityError(f"found {describe(value)}; write {like}")
        exact, dimension = parse_quantity(value, self)
        if dimension != self.dimension:
            found = _DIMENSION_NAMES.get(dimension, "something else")
            raise QuantityError(
                f'found "{value}", which is {found}; write {self.noun} such as "{self.example}"'
            )
        exact /= parse_unit(self.unit)[0]
        if self.sign == "positive" and exact <= 0:
            raise QuantityError(f'found "{value}"; must be positive, such as "{self.example}"')
        try:
            return float(exact)
        except OverflowError:
            raise QuantityError(f'found "{value}", which is too large for a number') from None

    def text(self, value: float) -> str:
        """The quantity as a user would write it; `parse` returns exactly the same float."""
        exact = Fraction(repr(float(value))) * parse_unit(self.unit)[0]
        for unit in self.written:
            number = exact / parse_unit(unit)[0]
            digits = _decimal(number)
            if digits and abs(number) >= 1 and self.parse_or_none(f"{digits} {unit}") == value:
                return f"{digits} {unit}"
        return f"{float(value)!r} {self.unit}"

    def parse_or_none(self, text: str) -> float | None:
        try:
            return self.parse(text)
        except QuantityError:
            return None

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        def validate(value: object) -> float:
            try:
                return self.parse(value)
            except QuantityError as error:
                raise PydanticCustomError("quantity", "{why}", {"why": str(error)}) from None

        return core_schema.no_info_plain_validator_function(validate)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {
            "type": "string",
            "pattern": rf"^\s*{_NUMBER}\s*[^\s0-9].*$",
            "examples": [self.example],
        }


_EXAMPLES = {
    "A": "5 A", "fs": "2 ps", "s": "12 h", "K": "600 K", "eV": "-13.6 eV", "eV/A": "80 meV/A",
    "eV/A^3": "1 GPa",
}  # fmt: skip

LENGTH = Kind("a length", "A", ("A",))
TIME = Kind("a time", "fs", ("ns", "ps", "fs"))
WALL_TIME = Kind("a time", "s", ("h", "min", "s"))
TEMPERATURE = Kind("a temperature", "K", ("K",))
ENERGY = Kind("an energy", "eV", ("eV",), sign="any")
FORCE = Kind("a force", "eV/A", ("eV/A", "meV/A"))
PRESSURE = Kind("a pressure", "eV/A^3", ("GPa",), sign="any")

Length = Annotated[float, LENGTH]
Time = Annotated[float, TIME]
WallTime = Annotated[float, WALL_TIME]
Temperature = Annotated[float, TEMPERATURE]
Energy = Annotated[float, ENERGY]
Force = Annotated[float, FORCE]
Pressure = Annotated[float, PRESSURE]


def parse_quantity(text: str, kind: Kind | None = None) -> tuple[Fraction, Dimension]:
    """Number times unit, exactly, in eV, Å, fs and K, with the powers of these four."""
    like = f'; write {kind.noun} such as "{kind.example}"' if kind else ""
    match = _QUANTITY.fullmatch(_plain(text))
    if match is None:
        raise QuantityError(f'found "{text}", which is not a number and a unit{like}')
    number = Fraction(Decimal(match["number"]))
    if match["unit"] is None:
        options = [f'"{text.strip()} {unit}"' for unit in kind.written] if kind else ['"600 K"']
        raise QuantityError(f'found "{text}", a bare number; write {" or ".join(options)}')
    try:
        factor, dimension = parse_unit(match["unit"])
    except QuantityError as error:
        raise QuantityError(f'found "{text}": {error}{like}') from None
    return number * factor, dimension


def parse_unit(unit: str) -> tuple[Fraction, Dimension]:
    """`eV/Å^3` → its size in eV, Å, fs and K, and its dimension; `/` binds one factor only."""
    rest, factor, powers = "*" + _plain(unit).strip(), Fraction(1), [0, 0, 0, 0]
    while rest:
        match = _FACTOR.match(rest)
        if match is None:
            raise QuantityError(f"'{unit}' is not a unit")
        operator, symbol, power_text = match.groups()
        if symbol not in _UNITS:
            raise QuantityError(f"unknown unit '{symbol}'{_nearest_unit(symbol)}")
        power = int(power_text or 1) * (1 if operator == "*" else -1)
        size, dimension = _UNITS[symbol]
        factor *= size**power
        powers = [p + power * d for p, d in zip(powers, dimension, strict=True)]
        rest = rest[match.end() :]
    return factor, (powers[0], powers[1], powers[2], powers[3])


def describe(value: object) -> str:
    """A found value in the words of a YAML file: `a list`, `a mapping`, `nothing`, `'text'`, 3."""
    names: dict[type, Callable[[Any], str]] = {
        dict: lambda v: "a mapping" if v else "an empty mapping",
        list: lambda v: "a list" if v else "an empty list",
        tuple: lambda v: "a list" if v else "an empty list",
        type(None): lambda v: "nothing",
        bool: lambda v: "true" if v else "false",
        str: lambda v: repr(v if len(v) <= 60 else v[:57] + "..."),
    }
    return names.get(type(value), repr)(value)


def _plain(text: str) -> str:
    # NFKC turns the Angstrom sign U+212B into Å, and ³ into 3, which `_FACTOR` takes as a power.
    return unicodedata.normalize("NFKC", text).replace("·", "*").replace("−", "-")


def _nearest_unit(symbol: str) -> str:
    same = [unit for unit in _UNITS if unit.casefold() == symbol.casefold()]
    near = same or get_close_matches(symbol, list(_UNITS), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _decimal(number: Fraction) -> str | None:
    """The fraction in decimal digits, or None where these do not end within reason."""
    if abs(number) >= 10**16:
        return None
    exactly = Context(prec=25, traps=[Inexact])
    try:
        return f"{exactly.divide(Decimal(number.numerator), Decimal(number.denominator)):f}"
    except Inexact:
        return None
