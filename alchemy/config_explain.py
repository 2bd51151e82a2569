"""The resolved campaign as a commented file: every key, every default, every unit.

What `explain` prints is a campaign file again, and reads back equal; a test holds it to that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from alchemy.config import Campaign
from alchemy.config_blocks import Fidelity
from alchemy.config_samples import SAMPLE_KINDS, Explore, Sample
from alchemy.config_select import Select, Stop
from alchemy.quantities import ENERGY, Kind

_COMMENT_COLUMN = 46
# Also quoted, for readers with YAML 1.1: there `no` is false, and NO an oxide no more.
_PLAIN = re.compile(r"(?!(?:true|false|null|yes|no|on|off|y|n)$)[a-z][a-z0-9_./-]*", re.IGNORECASE)


def explain(campaign: Campaign) -> str:
    """The campaign with all defaults, each line with what its key means."""
    head = [
        "# Resolved campaign: every key of the schema with its value in force.",
        "# [default] marks what the campaign file leaves out.",
    ]
    return "\n".join([*head, *_block(campaign, "")]) + "\n"


def _block(block: BaseModel, indent: str) -> Iterator[str]:
    for name, field in type(block).model_fields.items():
        value = getattr(block, name)
        if isinstance(block, Sample) and name in SAMPLE_KINDS and value is None:
            continue
        if isinstance(block, Stop) and name == "plugins":
            for rule, options in value.items():
                yield _line(f"{indent}{_text(rule)}: {value_text(options, None)}", "Rule of another package")
            continue
        if isinstance(block, Select) and name == "options":
            for option, setting in value.items():
                yield from _entry(option, setting, None, "", indent)
            continue
        note = field.description or ""
        if name not in block.model_fields_set:
            note += " [default]"
        yield from _entry(field.alias or name, value, kind_of(field), note, indent)


def _entry(key: str, value: Any, kind: Kind | None, note: str, indent: str) -> Iterator[str]:
    if isinstance(value, Fidelity):
        options = {"labeler": value.labeler, "target": value.target, "gate": value.gate, **value.options}
        yield f"{indent}{_text(key)}:"
        for option, setting in options.items():
            known = Fidelity.model_fields.get(option)
            yield from _entry(
                option, setting, None, (known.description or "") if known else "", indent + "  "
            )
    elif isinstance(value, BaseModel):
        yield _line(f"{indent}{key}:", note)
        yield from _block(value, indent + "  ")
    elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        yield _line(f"{indent}{key}:", note)
        for item in value:
            yield from _item(item, indent + "  ")
    elif isinstance(value, Mapping) and any(
        isinstance(v, Mapping | BaseModel) for v in value.values()
    ):
        yield _line(f"{indent}{_text(key)}:", note)
        inner = ENERGY if key == "e0" or kind else None
        for name, child in value.items():
            yield from _entry(name, child, inner, "", indent + "  ")
    else:
        yield _line(f"{indent}{_text(key)}: {value_text(value, kind)}", note)


def _item(item: BaseModel, indent: str) -> Iterator[str]:
    if isinstance(item, Explore) and item.plugin is not None:
        lines = iter([f"{indent}  {_text(item.plugin)}: {value_text(item.options, None)}"])
    elif isinstance(item, Explore):
        note = Explore.model_fields[item.kind].description or ""
        lines = _entry(item.kind, item.block, None, note, indent + "  ")
    else:
        lines = _block(item, indent + "  ")
    first = next(lines)
    yield f"{indent}- {first[len(indent) + 2 :]}"
    yield from lines


def value_text(value: Any, kind: Kind | None) -> str:
    """As a campaign file has it, with its unit."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(value_text(part, kind) for part in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_text(k)}: {value_text(v, kind)}' for k, v in value.items())}}}"
    if kind is not None and isinstance(value, float):
        return kind.text(value)
    if isinstance(value, str | Path):
        return _text(str(value))
    return json.dumps(value)


def _text(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def _line(text: str, note: str) -> str:
    return f"{text:<{_COMMENT_COLUMN}}  # {note}" if note else text


def kind_of(field: FieldInfo) -> Kind | None:
    """The unit of a field, which stands in its metadata or deeper in its annotation."""
    return next(
        (found for found in (*field.metadata, *_walk(field.annotation)) if _is(found)), None
    )


def _walk(annotation: Any) -> Iterator[Any]:
    yield from getattr(annotation, "__metadata__", ())
    for argument in get_args(annotation):
        yield from _walk(argument)


def _is(found: object) -> bool:
    return isinstance(found, Kind)
