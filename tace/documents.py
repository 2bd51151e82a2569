"""YAML text that people write, as plain data with the line of every key; problems are told by line.

YAML 1.2, so that the element `No` and a key `on` stay text. Only JSON values come out: dates, NaN,
infinities, keys that are not text and repeated keys are problems, all of them reported together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from .wording import describe

Loc = tuple[int | str, ...]
MAX_NODES = 50_000  # a campaign has hundreds; nested aliases can unfold into billions
_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


@dataclass(frozen=True)
class Kind:
    """What a document is for, as its errors say it."""

    error: type[Exception]
    remedy: str  # for an empty one
    top: str  # how one begins


@dataclass(frozen=True)
class Problem:
    """What is wrong with the key at `loc`: what was found and what would work."""

    loc: Loc
    message: str


@dataclass(frozen=True)
class Document:
    """A file as plain data, and where each key of it stands; without lines, one that is no file."""

    name: str
    data: dict[str, Any]
    lines: Mapping[Loc, int]
    kind: Kind

    def error(self, problems: Iterable[Problem]) -> Exception:
        """One line `file:line: key.path: message` for each problem, in the order of the file."""
        rows = {(self._line(p.loc), dotted(p.loc), p.message): None for p in problems}
        ordered = sorted(rows, key=lambda row: row[0])  # stable: keeps our order within a line
        return self.kind.error(
            "\n".join(
                f"{self.name}{f':{line}' if line else ''}: {f'{path}: ' if path else ''}{message}"
                for line, path, message in ordered
            )
        )

    def _line(self, loc: Loc) -> int:
        # A missing key, or one that came through an alias, stands at its nearest ancestor.
        while loc and loc not in self.lines:
            loc = loc[:-1]
        return self.lines.get(loc, 0)


def dotted(loc: Loc) -> str:
    """`('start', 0, 'md', 'T')` → `start[0].md.T`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.removeprefix(".")


def read_document(text: str, name: str, kind: Kind) -> Document:
    """Parse the text; every syntax error, repeated key and unusable value is in the error of `kind`."""
    if re.search(r"^%YAML", text, re.MULTILINE):
        raise kind.error(f"{name}:1: found a %YAML directive; remove it, this is read as YAML 1.2")
    lines: dict[Loc, int] = {(): 1}
    problems: list[Problem] = []
    try:
        node = YAML(typ="safe", pure=True).compose(text)
        if node is None:
            raise kind.error(f"{name}:1: the file is empty; {kind.remedy}")
        _note_lines(node, (), lines, problems)
        if problems:
            raise Document(name, {}, lines, kind).error(problems)
        data = YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        raise kind.error(_syntax(error, text, name)) from None
    except RecursionError:
        raise kind.error(f"{name}:1: nested too deeply") from None
    except (YAMLError, ValueError) as error:
        raise kind.error(f"{name}:1: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise kind.error(f"{name}:{node.start_mark.line + 1}: found {describe(data)}; {kind.top}")
    document = Document(name, data, lines, kind)
    problems = list(_unusable(data, ()))
    if problems:
        raise document.error(problems)
    return document


def read_value(text: str) -> Any:
    """One YAML value, such as `[a, b]`.

    Raises:
        ValueError: not YAML, or a date, NaN or infinity in it.
    """
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError):
        raise ValueError("not a YAML value") from None
    if any(_unusable(value, ())):
        raise ValueError("not a number, text or list of them")
    return value


def _note_lines(node: Node, path: Loc, lines: dict[Loc, int], problems: list[Problem]) -> None:
    if len(lines) > MAX_NODES:
        raise ValueError(f"more than {MAX_NODES} values; aliases that contain aliases?")
    if isinstance(node, SequenceNode):
        for index, child in enumerate(node.value):
            lines[(*path, index)] = child.start_mark.line + 1
            _note_lines(child, (*path, index), lines, problems)
    elif isinstance(node, MappingNode):
        first: dict[str, int] = {}
        for key_node, child in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode):
                problems.append(Problem(path, "a key must be text, not a list or mapping"))
                continue
            if key_node.tag == _MERGE:
                _note_lines(child, path, lines, problems)
                continue
            loc = (*path, key_node.value)
            lines[loc] = line
            if key_node.value in first:
                before = first[key_node.value]
                problems.append(Problem(loc, f"given twice, first in line {before}; keep one"))
            elif key_node.tag != _TEXT:
                problems.append(Problem(loc, f'a key must be text; write "{key_node.value}":'))
            else:
                first[key_node.value] = line
                _note_lines(child, loc, lines, problems)


def _unusable(value: Any, path: Loc) -> Iterable[Problem]:
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _unusable(child, (*path, key))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _unusable(child, (*path, index))
    elif isinstance(value, float) and not math.isfinite(value):
        yield Problem(path, f"found {value}; must be a finite number")
    elif not (value is None or isinstance(value, str | int | float | bool)):
        yield Problem(path, f'found {value}, a YAML {type(value).__name__}; put it in "quotes"')


def _syntax(error: MarkedYAMLError, text: str, name: str) -> str:
    mark = error.problem_mark or error.context_mark
    number = mark.line + 1 if mark else 1
    source = text.splitlines()
    line = source[number - 1] if number <= len(source) else ""
    parts = [part for part in (error.context, error.problem) if part]
    message = f"{name}:{number}: not YAML: {', '.join(' '.join(p.split()) for p in parts)}"
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return f"{message}; the line is indented by a tab, use spaces"
    if error.problem and "mapping values are not allowed" in error.problem:
        return f"{message}; text that contains ': ' needs quotes, and blocks equal indentation"
    return f"{message}; check the indentation, brackets and quotes up to this line"
