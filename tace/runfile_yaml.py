"""The text of a run file (YAML 1.2) as plain data with the line of every key, and problems told by line.

Version 1.2 so that the element `No` and a key `on` stay text. Only JSON values come out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from .errors import TaceError

Loc = tuple[int | str, ...]
MAX_NODES = 50_000  # a run file has dozens; nested aliases can unfold into billions
_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


class RunFileError(TaceError):
    """What is wrong in a run file, one line for each problem."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with the key at `loc`: what was found and what would work."""

    loc: Loc
    message: str


@dataclass(frozen=True)
class Document:
    """A run file as plain data, and where each key of it stands."""

    name: str
    data: dict[str, Any]
    lines: Mapping[Loc, int]

    def error(self, problems: Iterable[Problem]) -> RunFileError:
        """The problems in the order of the file."""
        rows = {(self._line(p.loc), dotted(p.loc), p.message): None for p in problems}
        ordered = sorted(rows, key=lambda row: row[0])  # stable: keeps our order within a line
        return RunFileError(
            "\n".join(
                f"{self.name}{f':{line}' if line else ''}: {f'{path}: ' if path else ''}{message}"
                for line, path, message in ordered
            )
        )

    def _line(self, loc: Loc) -> int:
        while loc and loc not in self.lines:  # a missing key stands at its nearest ancestor
            loc = loc[:-1]
        return self.lines.get(loc, 0)


def dotted(loc: Loc) -> str:
    """`('data', 'train', 0, 'file')` → `data.train[0].file`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.removeprefix(".")


def read_document(text: str, name: str) -> Document:
    """Parse the text.

    Raises:
        RunFileError: not YAML, repeated keys, values that are not plain; with the lines.
    """
    if re.search(r"^%YAML", text, re.MULTILINE):
        raise RunFileError(f"{name}:1: found a %YAML directive; remove it, run files are YAML 1.2")
    lines: dict[Loc, int] = {(): 1}
    problems: list[Problem] = []
    try:
        node = YAML(typ="safe", pure=True).compose(text)
        if node is None:
            raise RunFileError(f"{name}:1: the file is empty; 'tace example' prints a commented one")
        _note_lines(node, (), lines, problems)
        if problems:
            raise Document(name, {}, lines).error(problems)
        data = YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        raise RunFileError(_syntax(error, text, name)) from None
    except RecursionError:
        raise RunFileError(f"{name}:1: nested too deeply for a run file") from None
    except (YAMLError, ValueError) as error:
        raise RunFileError(f"{name}:1: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        line = node.start_mark.line + 1
        raise RunFileError(f"{name}:{line}: found {described(data)}; a run file starts with 'data:'")
    document = Document(name, data, lines)
    problems = list(_unusable(data, ()))
    if problems:
        raise document.error(problems)
    return document


def with_changes(document: Document, changes: Sequence[str]) -> Document:
    """The document with `train.steps=500` and its like applied; values are YAML.

    Raises:
        RunFileError: no '=', an empty key, or a value in the way.
    """
    data, lines = _copied(document.data), dict(document.lines)
    for change in changes:
        key, sign, text = change.partition("=")
        parts = key.strip().split(".")
        if not sign or not all(parts):
            raise RunFileError(f"--set {change}: write it as train.steps=500")
        try:
            value = YAML(typ="safe", pure=True).load(text)
        except YAMLError:
            raise RunFileError(f"--set {change}: '{text}' is not a YAML value") from None
        if any(_unusable(value, ())):
            raise RunFileError(f"--set {change}: '{text}' is not a number, text or list of them")
        place = data
        for part in parts[:-1]:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise RunFileError(f"--set {change}: '{part}' is {described(place)} in {document.name}")
        place[parts[-1]] = value
        lines = {loc: line for loc, line in lines.items() if loc[: len(parts)] != tuple(parts)}
        lines[tuple(parts)] = 0  # told without a line
    return Document(document.name, data, lines)


def described(value: object) -> str:
    """`text 'abc'`, `a list`: what was found, in the words of a person."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, str):
        return f"'{value[:60]}'"
    return "a list" if isinstance(value, list) else "a mapping"


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    return [_copied(v) for v in value] if isinstance(value, list) else value


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
