"""Pseudopotential files by element, and what their headers say they are (UPF, versions 1 and 2).

Never by order: an element is looked up by its name, and the file must say that it is of this element
and of the functional that is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path

from ase.data import chemical_symbols

from alchemy.errors import InputError

HEADER_BYTES = 1 << 20  # the generation notes before it can be long, the grids after it are longer
# how Quantum ESPRESSO (Modules/funct.f90) and generators of files spell what has a name
FUNCTIONALS = {
    "SLA PW PBX PBC": "PBE", "SLA PW PBE PBE": "PBE", "SLA+PW+PBX+PBC": "PBE",
    "SLA PW PSX PSC": "PBESOL", "SLA PZ NOGX NOGC": "LDA", "PZ": "LDA",
    "SLA LYP B88 BLYP": "BLYP", "SLA PW GGX GGC": "PW91", "SLA PW REVX PBC": "REVPBE",
    "SLA PW TPSS TPSS": "TPSS",
}  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What a file says of itself; '' where it does not."""

    element: str
    functional: str  # by its common name, if it has one
    spin_orbit: bool  # of a fully relativistic calculation, for non-collinear runs only
    coulomb: bool  # the bare nucleus, which no usual cutoff can follow


def canonical(functional: str) -> str:
    """'PBE' of ' SLA  PW   PBX  PBC '; upper case of what has no other name."""
    words = functional.strip().upper().split()
    spelled = " ".join(words)
    if spelled in FUNCTIONALS:
        return FUNCTIONALS[spelled]
    # version 1 puts the short name after the four: 'SLA  PW   PBX  PBC    PBE'
    return FUNCTIONALS.get(" ".join(words[:4]), spelled)


def read_header(path: Path) -> Header:
    """The header of a UPF file.

    Raises:
        InputError: it cannot be read, or is not UPF.
    """
    try:
        changed = path.stat().st_mtime_ns
        return _read_header(path, changed)
    except OSError as error:
        raise InputError(f"pseudopotential {path} cannot be read: {error.strerror}") from error


@lru_cache(maxsize=1024)
def _read_header(path: Path, _changed: int) -> Header:
    with path.open("rb") as file:
        text = file.read(HEADER_BYTES).decode("utf-8", "replace")
    found = re.search(r"<PP_HEADER(.*?)(?:/>|</PP_HEADER>)", text, re.DOTALL)
    if found is None:
        raise InputError(f"pseudopotential {path} is not a UPF file: it has no PP_HEADER")
    body = found.group(1)
    attributes = dict(re.findall(r"""(\w+)\s*=\s*["']\s*([^"']*?)\s*["']""", body))
    if "element" in attributes:  # version 2
        return Header(
            element=attributes["element"].capitalize(),
            functional=canonical(attributes.get("functional", "")),
            spin_orbit=_true(attributes.get("has_so", "F")),
            coulomb=_true(attributes.get("is_coulomb", "F")),
        )
    lines = {name: _before(body, name) for name in ("Element", "Exchange-Correlation")}
    return Header(
        element=lines["Element"].capitalize(),
        functional=canonical(lines["Exchange-Correlation"]),
        spin_orbit="<PP_ADDINFO>" in text,
        coulomb=False,
    )


def _true(word: str) -> bool:
    return word.lower().strip(".") in ("t", "true")


def _before(body: str, name: str) -> str:
    """Version 1: the value stands before its name, a line each."""
    found = re.search(rf"^\s*(\S.*?)\s+{name}", body, re.MULTILINE)
    return found.group(1) if found else ""


@dataclass(frozen=True)
class Library:
    """A directory of UPF files and how an element finds its own there: `chosen`, or else by pattern."""

    directory: Path
    chosen: Mapping[str, str]  # element -> file, in the directory or absolute; if any, then for all
    pattern: str  # of file names; {element} stands for the symbol
    functional: str

    def __post_init__(self) -> None:
        for element in self.chosen:
            if element not in chemical_symbols[1:]:
                raise InputError(f"pseudopotentials: there is no element '{element}'")
        try:
            self.pattern.format(element="X")
        except (LookupError, ValueError) as error:
            raise InputError(f"pseudo_pattern '{self.pattern}' may name {{element}} only") from error

    def file(self, element: str) -> Path:
        """The one file of an element.

        Raises:
            InputError: none, several, or of another element or functional; says which there are.
        """
        if element in self.chosen:
            return self._checked(element, self.directory / self.chosen[element])
        if not self.directory.is_dir():
            raise InputError(f"pseudopotential of {element}: there is no directory {self.directory}")
        fitting, others = self._candidates(element)
        if len(fitting) == 1 and not self.chosen:
            return fitting[0]
        named = ", ".join(path.name for path in fitting)
        if fitting and self.chosen:
            raise InputError(
                f"pseudopotential of {element}: `pseudopotentials` names none; {self.directory} has {named}"
            )
        if fitting:
            raise InputError(
                f"pseudopotential of {element}: {self.directory} has {len(fitting)} of {self.functional} "
                f"({named}); choose one: pseudopotentials: {{{element}: {fitting[0].name}}}"
            )
        said = ", ".join(f"{path.name} ({why})" for path, why in others)
        raise InputError(
            f"pseudopotential of {element}: {self.directory} has none for {self.functional} under a name "
            f"like {self.pattern.format(element=element)}{', only ' + said if said else ''}. Put one there, "
            f"or name a file: pseudopotentials: {{{element}: <file>}}"
        )

    def known(self) -> dict[str, Path]:
        """The chosen files, or those of every element that has exactly one."""
        if self.chosen:
            return {element: self.file(element) for element in self.chosen}
        if not self.directory.is_dir():
            raise InputError(f"there is no directory {self.directory} of pseudopotentials")
        found = {element: self._candidates(element)[0] for element in chemical_symbols[1:]}
        return {element: fitting[0] for element, fitting in found.items() if len(fitting) == 1}

    def _candidates(self, element: str) -> tuple[list[Path], list[tuple[Path, str]]]:
        """Files of that name: the usable, and the others with what they are."""
        pattern = self.pattern.format(element=element).lower()
        fitting, others = [], []
        for path in _listed(self.directory, self.directory.stat().st_mtime_ns):
            if fnmatch(path.name.lower(), pattern):
                why = self._unfit(element, path)
                if why is None:
                    fitting.append(path)
                else:
                    others.append((path, why))
        return fitting, others

    def _unfit(self, element: str, path: Path) -> str | None:
        try:
            header = read_header(path)
        except InputError:
            return "not UPF"
        if header.element != element:
            return f"of {header.element or 'no named element'}"
        if header.functional != canonical(self.functional):
            return f"for {header.functional or 'no named functional'}"
        if header.coulomb:
            return "the bare nucleus"
        return "fully relativistic" if header.spin_orbit else None

    def _checked(self, element: str, path: Path) -> Path:
        header = read_header(path)
        if header.element != element:
            raise InputError(
                f"pseudopotentials: {element}: {path} is of {header.element or 'no named element'}"
            )
        if header.functional != canonical(self.functional):
            raise InputError(
                f"pseudopotentials: {element}: {path} is for {header.functional or 'no named functional'}, "
                f"not for {self.functional}; choose another, or set functional to what all files are for"
            )
        return path


@lru_cache(maxsize=32)
def _listed(directory: Path, _changed: int) -> tuple[Path, ...]:
    return tuple(sorted(path for path in directory.iterdir() if path.is_file()))
