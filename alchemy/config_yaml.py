"""The campaign's YAML text as plain data, with the line of every key, and problems told by line.

YAML 1.2, so that element `No` and a key `on` stay text. Only JSON values come out: dates, NaN,
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

from alchemy.errors import ConfigError
from alchemy.quantities import describe

Loc = tuple[int | str, ...]

MAX_NODES = 50_000  # a campaign has hundreds; nested aliases can unfold into billions
_TEXT_TAG = "tag:yaml.org,2002:str"
_MERGE_TAG = "tag:yaml.org,2002:merge"


@dataclass(frozen=True)
class Problem:
    """What is wrong with the key at `loc`: what was found and what would work."""

    loc: Loc
    message: str


@dataclass(frozen=True)
class Document:
    """A campaign file as plain data, and where each key of it stands."""

    name: str
    data: dict[str, Any]
    lines: Mapping[Loc, int]


def read_document(text: str, name: str) -> Document:
    """Parse the text; every syntax error, repeated key and unusable value is in the ConfigError."""
    if re.search(r"^%YAML", text, re.MULTILINE):
        raise ConfigError(f"{name}:1: found a %YAML directive; remove it, campaigns are YAML 1.2")
    lines: dict[Loc, int] = {(): 1}
    problems: list[Problem] = []
    try:
        node = YAML(typ="safe", pure=True).compose(text)
        if node is None:
            raise ConfigError(
                f"{name}:1: the file is empty; 'alchemy init' writes a commented campaign"
            )
        _note_lines(node, (), lines, problems)
        if problems:
            raise ConfigError(render(problems, name, lines))
        data = YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        raise ConfigError(_syntax_message(error, text, name)) from None
    except RecursionError:
        raise ConfigError(f"{name}:1: nested too deeply for a campaign file") from None
    except (YAMLError, ValueError) as error:
        raise ConfigError(f"{name}:1: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ConfigError(
            f"{name}:{node.start_mark.line + 1}: found {describe(data)}; "
            "a campaign is a mapping of 'key: value' lines, starting with 'alchemy: 1'"
        )
    problems = list(_unusable_values(data, ()))
    if problems:
        raise ConfigError(render(problems, name, lines))
    return Document(name, data, lines)


def render(problems: Iterable[Problem], name: str, lines: Mapping[Loc, int]) -> str:
    """One line `file:line: key.path: message` for each problem, in the order of the file."""
    rows = {(_line(p.loc, lines), dotted(p.loc), p.message): None for p in problems}
    ordered = sorted(rows, key=lambda row: row[0])  # stable: keeps our order within a line
    return "\n".join(
        f"{name}:{line}: {f'{path}: ' if path else ''}{message}" for line, path, message in ordered
    )


def dotted(loc: Loc) -> str:
    """`('start', 0, 'md', 'T')` → `start[0].md.T`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.removeprefix(".")


def _line(loc: Loc, lines: Mapping[Loc, int]) -> int:
    # A missing key, or one that came through an alias, stands at its nearest ancestor.
    while loc not in lines:
        loc = loc[:-1]
    return lines[loc]


def _note_lines(node: Node, path: Loc, lines: dict[Loc, int], problems: list[Problem]) -> None:
    if len(lines) > MAX_NODES:
        raise ValueError(f"more than {MAX_NODES} values; aliases that contain aliases?")
    if isinstance(node, SequenceNode):
        for index, child in enumerate(node.value):
            lines[(*path, index)] = child.start_mark.line + 1
            _note_lines(child, (*path, index), lines, problems)
    elif isinstance(node, MappingNode):
        own: dict[str, int] = {}
        for key_node, child in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode):
                problems.append(Problem(path, "a key must be text, not a list or mapping"))
                continue
            if key_node.tag == _MERGE_TAG:
                _note_lines(child, path, lines, problems)
                continue
            loc = (*path, key_node.value)
            if key_node.value in own:
                lines[loc] = line
                first = own[key_node.value]
                problems.append(Problem(loc, f"given twice, first in line {first}; keep one"))
            elif key_node.tag != _TEXT_TAG:
                lines[loc] = line
                problems.append(Problem(loc, f'a key must be text; write "{key_node.value}":'))
            else:
                lines[loc] = own[key_node.value] = line
                _note_lines(child, loc, lines, problems)


def _unusable_values(value: Any, path: Loc) -> Iterable[Problem]:
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _unusable_values(child, (*path, key))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _unusable_values(child, (*path, index))
    elif isinstance(value, float) and not math.isfinite(value):
        yield Problem(path, f"found {value}; must be a finite number")
    elif not (value is None or isinstance(value, (str, int, float, bool))):
        yield Problem(path, f'found {value}, a YAML {type(value).__name__}; put it in "quotes"')


def _syntax_message(error: MarkedYAMLError, text: str, name: str) -> str:
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
