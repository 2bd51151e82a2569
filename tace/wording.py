"""How messages speak of what was found, and of what would work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant, whatever its case; None if none is close."""
    folded = {other.casefold(): other for other in reversed(list(known))}
    cutoff = 0.6 if len(name) > 3 else 0.5  # one wrong letter of two is still close
    near = get_close_matches(name.casefold(), list(folded), n=1, cutoff=cutoff)
    return folded[near[0]] if near else None


def hint(name: str, known: Iterable[str], *, label: str | None = None) -> str:
    """The tail of an error about an unknown name: `did you mean 'x'?`, else `known: x, y`.

    Args:
        known: listed in the order of a list or tuple; what has no order that is meant is sorted.
        label: takes the place of `known`, and then the list follows in either case.
    """
    names = list(dict.fromkeys(known)) if isinstance(known, Sequence) else sorted(set(known))
    near = nearest(name, names)
    if near and label is None:
        return f"did you mean '{near}'?"
    listed = f"{label or 'known'}: {', '.join(names) or 'none'}"
    return f"did you mean '{near}'? {listed}" if near else listed


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


def count(number: int, noun: str) -> str:
    """'1 label', '2 labels'."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
