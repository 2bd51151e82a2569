"""Quantities with units in text: `"80 meV/A"`, `"12 h"`, `"600 K"` become floats in one fixed unit.

Every unit is an exact fraction (`tace.units`), so that `"80 meV/A"` is the same float as 0.08 and a
value written by `Kind.text` is read back to the last bit. Bare numbers are refused: a file that says
`label_above: 80` has been wrong by a factor of a thousand too often.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Context, Decimal, Inexact
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from tace.units import DIMENSION_NAMES, Dimension, UnitError, parse_unit, plain
from tace.wording import describe

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?"
_QUANTITY = re.compile(rf"\s*(?P<number>{_NUMBER})\s*(?P<unit>\S.*?)?\s*")


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
            found = DIMENSION_NAMES.get(dimension, "something else")
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
        if value == 0:
            return f"0 {self.written[0]}"
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
    """Number times unit, exactly, in the units of `tace.units`, with their powers."""
    like = f'; write {kind.noun} such as "{kind.example}"' if kind else ""
    match = _QUANTITY.fullmatch(plain(text))
    if match is None:
        raise QuantityError(f'found "{text}", which is not a number and a unit{like}')
    number = Fraction(Decimal(match["number"]))
    if match["unit"] is None:
        options = [f'"{text.strip()} {unit}"' for unit in kind.written] if kind else ['"600 K"']
        raise QuantityError(f'found "{text}", a bare number; write {" or ".join(options)}')
    try:
        factor, dimension = parse_unit(match["unit"])
    except UnitError as error:
        raise QuantityError(f'found "{text}": {error}{like}') from None
    return number * factor, dimension


def _decimal(number: Fraction) -> str | None:
    """The fraction in decimal digits, or None where these do not end within reason."""
    if abs(number) >= 10**16:
        return None
    exactly = Context(prec=25, traps=[Inexact])
    try:
        return f"{exactly.divide(Decimal(number.numerator), Decimal(number.denominator)):f}"
    except Inexact:
        return None
