"""Pydantic's validation errors in the words of a campaign file: what was found; what would work."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tace.documents import Loc, Problem
from tace.wording import describe, hint

_LIMITS = {
    "greater_than": ("gt", "must be greater than"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than": ("lt", "must be less than"),
    "less_than_equal": ("le", "must be at most"),
}
_NEEDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": 'text; put numbers and true/false in "quotes"',
    "tuple_type": "a list, such as [a, b]",
    "list_type": "a list, such as [a, b]",
    "dict_type": "a mapping of 'key: value'",
    "model_type": "a mapping of 'key: value'",
    "model_attributes_type": "a mapping of 'key: value'",
}
_COLLECTED = ("options", "plugin", "plugins")  # fields for the keys of other packages, no keys themselves
_NOT_KEYS = ("[key]", "<word>", "<value>")  # the tags of config_fields.WORD_OR_VALUE


def problems_in(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Every complaint of the validation, at the key where the user made the mistake."""
    return [Problem(clean_loc(detail["loc"]), _message(detail, model)) for detail in error.errors()]


def clean_loc(loc: Loc) -> Loc:
    """Without what pydantic adds for dictionary keys and the branches of unions."""
    return tuple(part for part in loc if part not in _NOT_KEYS)


def _message(detail: ErrorDetails, model: type[BaseModel]) -> str:
    kind, found, context = detail["type"], detail["input"], detail.get("ctx", {})
    loc = clean_loc(detail["loc"])
    if kind == "extra_forbidden":
        known = _keys(_annotation_at(model, loc[:-1]))
        return f"unknown key; {hint(str(loc[-1]), known)}" if known else "unknown key"
    if kind == "missing":
        return _missing_message(model, loc)
    if kind in _LIMITS:
        name, words = _LIMITS[kind]
        return f"found {describe(found)}; {words} {context[name]:g}"
    if kind == "literal_error":
        return _literal_message(model, loc, found)
    if kind in _NEEDS:
        return f"found {describe(found)}; must be {_NEEDS[kind]}"
    if kind in ("too_short", "string_too_short"):
        return f"found {describe(found)}; must have at least {context['min_length']} entry"
    return detail["msg"].removeprefix("Value error, ")


def _missing_message(model: type[BaseModel], loc: Loc) -> str:
    block = _annotation_at(model, loc[:-1])
    for name, field in getattr(block, "model_fields", {}).items():
        if (field.alias or name) == loc[-1]:
            return f"missing; add '{loc[-1]}:' ({field.description})"
    return f"missing; add '{loc[-1]}:'"


def _literal_message(model: type[BaseModel], loc: Loc, found: object) -> str:
    annotation = _annotation_at(model, loc)
    words = tuple(_literals(annotation))
    if not isinstance(found, str):
        choices = " or ".join(map(str, words))
        return f"found {describe(found)}; must be {choices}"
    text = tuple(word for word in words if isinstance(word, str))
    number = "; a number works too" if _holds_number(annotation) else ""
    return f"found '{found}'; {hint(found, text) if text else f'must be {words[0]}'}{number}"


def _annotation_at(annotation: Any, loc: Loc) -> Any:
    """The type that the schema has at `loc`; None where the schema ends."""
    for part in loc:
        for branch in _branches(annotation):
            child = _child(branch, part)
            if child is not None:
                annotation = child
                break
        else:
            return None
    models = [b for b in _branches(annotation) if isinstance(b, type) and issubclass(b, BaseModel)]
    return models[0] if models else annotation


def _child(annotation: Any, part: int | str) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            if (field.alias or name) == part:
                return field.annotation
        return None
    children: dict[Any, Callable[[], Any]] = {
        dict: lambda: get_args(annotation)[1] if isinstance(part, str) else None,
        tuple: lambda: get_args(annotation)[0] if isinstance(part, int) else None,
    }
    return children.get(get_origin(annotation), lambda: None)()


def _branches(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return _branches(get_args(annotation)[0])
    if get_origin(annotation) in (typing.Union, UnionType):
        return [b for arg in get_args(annotation) if arg is not NoneType for b in _branches(arg)]
    return [annotation]


def _literals(annotation: Any) -> list[Any]:
    literals = [b for b in _branches(annotation) if get_origin(b) is typing.Literal]
    return [word for literal in literals for word in get_args(literal)]


def _holds_number(annotation: Any) -> bool:
    return any(branch in (int, float) for branch in _branches(annotation))


def _keys(block: Any) -> tuple[str, ...]:
    fields: Mapping[str, Any] = getattr(block, "model_fields", {})
    return tuple(field.alias or name for name, field in fields.items() if name not in _COLLECTED)
