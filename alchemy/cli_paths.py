"""What a path on the command line means, and how tables look: shared by all `cli_*` modules.

A campaign may be given by its file, by the folder of the file, or by the directory that
`alchemy run` made.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alchemy.errors import InputError
from tace.cli_common import WHERE
from tace.tables import aligned

if TYPE_CHECKING:
    from alchemy.config import Campaign
    from alchemy.store import Snapshot

FILE, FACTS = "campaign.yaml", "campaign.json"

CAMPAIGN = click.argument("campaign", type=WHERE)


@dataclass(frozen=True)
class Given:
    """A campaign that the user pointed at."""

    campaign: Campaign
    file: Path
    home: Path  # where `alchemy run` keeps it; need not exist yet
    used: tuple[str, ...] = ()  # fidelities that an existing directory was run with


def is_home(path: Path) -> bool:
    """Whether `alchemy run` made this directory."""
    return (path / FACTS).is_file() or (path / "rounds").is_dir()


def find_campaign(path: Path, *, only: Sequence[str] = ()) -> Given:
    """Read the campaign at `path`: a file, its folder, or a campaign's directory.

    From a campaign's directory its own copy of the file is read; relative paths in it then start
    where those of the original did.
    """
    from alchemy.config import load_campaign, load_campaign_text

    if is_home(path):
        file = path / FILE
        facts = _facts(path)
        if not file.is_file() or "base_dir" not in facts:
            raise InputError(f"{path} lacks {FILE} or {FACTS}; give the campaign file instead")
        text = file.read_text(encoding="utf-8")
        base = Path(facts["base_dir"])
        if not base.is_dir():  # the folder was moved, most likely as a whole
            base = path.resolve().parent
        campaign = load_campaign_text(text, str(file), base)
        return Given(campaign, file, path, tuple(facts.get("used_fidelities", ())))
    file = _file_at(path)
    campaign = load_campaign(file)
    suffix = f"-only-{'-'.join(only)}" if only else ""
    return Given(campaign, file, file.parent / f"{campaign.name}{suffix}")


def find_home(path: Path) -> Path:
    """The directory of a campaign that has begun."""
    if is_home(path):
        return path
    if path.is_dir() and not (path / FILE).is_file():
        made = sorted(p.name for p in path.iterdir() if p.is_dir() and is_home(p))
        hint = f"; campaigns in it: {', '.join(made)}" if made else ""
        raise InputError(f"{path} is not the directory of a campaign{hint}")
    home = find_campaign(path).home
    if not is_home(home):
        command = f"alchemy run {shlex.quote(str(path))}"
        raise InputError(f"{home} does not exist: start the campaign with: {command}")
    return home


def find_store(path: Path) -> Path:
    """The store of a campaign, or the one at `path` (store.h5 or store.h5.d)."""
    if path.suffix == ".d" and path.with_suffix("").suffix == ".h5" and path.is_dir():
        return path.with_suffix("")
    if path.suffix == ".h5":
        if not path.is_file() and not path.with_name(path.name + ".d").is_dir():
            raise InputError(f"{path}: there is no store (neither that file nor {path.name}.d)")
        if path.is_file() and not path.with_name(path.name + ".d").is_dir():
            from alchemy.store.archive import is_archive

            if is_archive(path):
                raise InputError(f"{path} is an archive; 'alchemy data merge NEW.h5 {path}' makes it a store")
        return path
    if path.is_dir() and ((path / "store.h5.d").is_dir() or (path / "store.h5").is_file()):
        return path / "store.h5"
    store = find_home(path) / "store.h5"
    if not store.is_file() and not store.with_name("store.h5.d").is_dir():
        raise InputError(f"{store.parent} has no store yet: nothing was committed")
    return store


def open_snapshot(source: Path, as_of: int | None, *, salvage: bool) -> Snapshot:
    """A view of a store; with `salvage` of its sound files, and what is wrong goes to standard error."""
    from alchemy.store import Store

    store = Store(find_store(source))
    if not salvage:
        return store.snapshot(as_of)
    if as_of is not None:
        raise click.UsageError("--salvage reads what is sound now; leave --as-of out")
    snapshot, problems = store.salvage()
    for problem in problems:
        click.echo(f"warning: {problem}", err=True)
    return snapshot


def _file_at(path: Path) -> Path:
    if not path.is_dir():
        return path
    if (path / FILE).is_file():
        return path / FILE
    found = sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
    if len(found) == 1:
        return found[0]
    names = f"; give one of {', '.join(p.name for p in found)}" if found else ""
    raise InputError(f"{path}: no {FILE} in this folder{names}")


def _facts(home: Path) -> dict[str, Any]:
    from alchemy.records import read_json

    facts = read_json(home / FACTS) if (home / FACTS).is_file() else {}
    return facts if isinstance(facts, dict) else {}


def can_be_made(path: Path) -> Path:
    """The path, when the first of its parents that exists is a folder; a message otherwise."""
    there = next(p for p in (path, *path.resolve().parents) if p.exists())
    if there.is_dir() or there == path:
        return path
    raise InputError(f"{path}: {there} is a file, not a folder")


def say_table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print aligned columns, numbers to the right; '–' is unknown."""
    click.echo("\n".join(aligned([heads, *rows], digits=6)))
