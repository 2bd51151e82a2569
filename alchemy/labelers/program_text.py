"""Small pieces of programs' inputs and outputs: words by element, data files, lines of text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from ase import Atoms

from alchemy.errors import EnvironmentProblemError, InputError
from alchemy.labelers.base import LabelFailureError


def line_with(text: str, words: str) -> str:
    """The last line that contains these words, without the blanks around it; '' when there is none."""
    found = text.rfind(words)
    if found < 0:
        return ""
    start = text.rfind("\n", 0, found) + 1
    return " ".join(text[start:].partition("\n")[0].split())


def by_element(choice: str | Mapping[str, str], element: str, *, option: str, name: str) -> str:
    """What an option says for an element: one word for all, or a word by element.

    Raises:
        InputError: the element is not among those of the option.
    """
    if isinstance(choice, str):
        return choice
    if element not in choice:
        raise InputError(f"labeler '{name}': option '{option}' says nothing for {element}; add {element}: …")
    return choice[element]


def data_file(name: str, places: Iterable[str | None], *, labeler: str, option: str) -> Path:
    """The first place that has a file of this name.

    Raises:
        EnvironmentProblemError: none has it.
    """
    searched = [Path(place).expanduser() for place in places if place]
    for place in searched:
        if (place / name).is_file():
            return place / name
    where = ", ".join(map(str, searched)) or "no place was given"
    raise EnvironmentProblemError(
        f"labeler '{labeler}': there is no file {name} (searched: {where}); say where it is by `{option}`"
    )


def refuse_charged_cell(atoms: Atoms, *, allowed: bool, name: str) -> None:
    """The energy of a charged cell depends on the cell: on the vacuum, on the background.

    Raises:
        LabelFailureError: the structure is charged, and its user did not say that this is meant.
    """
    charge = atoms.info.get("charge", 0)
    if charge and not allowed:
        raise LabelFailureError(
            "charge-not-supported",
            f"{name}: charge {charge:+d} in a periodic cell, whose energy depends on the cell; "
            "`charged_cells: true`, if that is meant",
        )
