"""Commands about input templates: list, show, copy."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alchemy.cli_paths import can_be_made, say_table
from tace.cli_common import AS_JSON, SETTINGS, WHERE, InOrder, say_json

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

KINDS = {  # folder of alchemy_templates -> how a copy comes into use
    "labelers": "name it under 'template:' in the fidelity that uses the labeler '{name}'",
    "schedulers": "name it under 'run: labels: template:' of the campaign",
    "campaigns": "then: alchemy check {file}; 'alchemy init {name}' brings its structures too",
}
# the controller's script ends otherwise: `alchemy submit` writes it, and no key takes another
ENDS = {"labelers": ".j2", "schedulers": ".sh.j2", "campaigns": ".yaml"}
COMMENTS = "#!-"  # what a line of comment begins with, in one code or another


@dataclass(frozen=True)
class Template:
    """One file of the package `alchemy_templates`."""

    kind: str
    name: str
    file: str
    text: str

    @property
    def summary(self) -> str:
        """The first sentence of its first line of comment."""
        for line in self.text.splitlines():
            words = line.strip().lstrip("{").lstrip(COMMENTS).rstrip("#}").strip()
            if words and not line.startswith("#!/"):
                sentence, dot, _ = words.partition(". ")
                return sentence + dot.strip() if len(sentence.split()) > 3 else words
        return ""


@click.group(cls=InOrder, context_settings=SETTINGS)
def templates() -> None:
    """Input templates to copy and edit.

    Of labelers, of schedulers, of campaigns.

    \b
    Example:
      alchemy templates list
      alchemy templates copy vasp --to INCAR.beef
    """


@templates.command("list", context_settings=SETTINGS)
@AS_JSON
def list_templates(as_json: bool) -> None:
    """List the templates that come with alchemy, with one line each.

    \b
    Example:
      alchemy templates list
    """
    rows = [{"kind": t.kind, "name": t.name, "what": t.summary} for t in _all()]
    if as_json:
        say_json(rows)
    else:
        say_table(("kind", "name", "what it is"), [list(row.values()) for row in rows])


@templates.command(context_settings=SETTINGS)
@click.argument("name")
def show(name: str) -> None:
    """Print the template NAME.

    \b
    Example:
      alchemy templates show orca
      alchemy templates show labelers/orca
    """
    sys.stdout.write(_find(name).text)


@templates.command(context_settings=SETTINGS)
@click.argument("name")
@click.option("--to", "target", type=WHERE, help="File or folder; otherwise the template's own name, here.")
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
def copy(name: str, target: Path | None, force: bool) -> None:
    """Copy the template NAME to a file that you can edit, and say how to use it.

    \b
    Example:
      alchemy templates copy cp2k --to my-cp2k.inp

    Exit code 2: there is no such template, or the file exists.
    """
    from alchemy.errors import InputError

    template = _find(name)
    path = target or Path(template.file)
    if path.is_dir():
        path = path / template.file
    can_be_made(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("w" if force else "x", encoding="utf-8") as handle:
            handle.write(template.text)
            handle.flush()
            os.fsync(handle.fileno())
    except FileExistsError as error:
        raise InputError(f"{path} exists; --force overwrites it, --to names another file") from error
    click.echo(f"{path}: {KINDS[template.kind].format(name=template.name, file=path)}")


def _all() -> list[Template]:
    found = []
    for kind in KINDS:
        folder = files("alchemy_templates") / kind
        if folder.is_dir():
            named = sorted(folder.iterdir(), key=lambda entry: entry.name)
            found += [_read(kind, entry) for entry in named if _is_template(kind, entry)]
    return found


def _is_template(kind: str, entry: Traversable) -> bool:
    return entry.is_file() and entry.name.endswith(ENDS[kind])


def _read(kind: str, entry: Traversable) -> Template:
    return Template(kind, entry.name.split(".")[0], entry.name, entry.read_text(encoding="utf-8"))


def _find(name: str) -> Template:
    """The template of that name, file name, or kind/name."""
    from alchemy.errors import InputError
    from tace.wording import hint

    known = _all()
    hits = [t for t in known if name in _names(t)]
    if not hits:
        listed = hint(name, (t.name for t in known), label="templates")
        raise InputError(f"there is no template '{name}'; {listed}")
    if len(hits) > 1:
        said = " or ".join(f"{t.kind}/{t.name}" for t in hits)
        raise InputError(f"there are several templates '{name}': say {said}")
    return hits[0]


def _names(template: Template) -> tuple[str, ...]:
    short: tuple[Any, ...] = (template.name, template.file)
    return (*short, *(f"{template.kind}/{name}" for name in short))


COMMANDS = (templates,)
