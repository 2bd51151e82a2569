"""Tables of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def aligned(rows: Sequence[Sequence[Any]], *, digits: int = 4) -> list[str]:
    """Lines of aligned columns under the heads in `rows[0]`, numbers to the right; '–' is unknown."""
    cells = [[_cell(value, digits) for value in row] for row in rows]
    right = [_is_numeric([row[n] for row in rows[1:]]) for n in range(len(rows[0]))]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]


def _is_numeric(values: Sequence[Any]) -> bool:
    known = [value for value in values if value is not None]
    return bool(known) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in known)


def _cell(value: Any, digits: int) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return str(value).replace("\n", " ")
