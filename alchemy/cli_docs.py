"""`python -m alchemy.cli_docs` prints docs/commands.md: the help of every command, as it is."""

from __future__ import annotations

from collections.abc import Iterator

import click

from alchemy.cli import cli
from tace.cli import cli as tace_cli

HEAD = """\
# Commands

The help of every command. `make docs` writes this file; a test fails when it is out of date.
"""
WIDTH = 100


def commands(
    command: click.Command = cli, path: tuple[str, ...] = ("alchemy",)
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with the words that call it."""
    yield path, command
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(child, (*path, name))


def help_of(path: tuple[str, ...], command: click.Command) -> str:
    """What `-h` prints, at a fixed width."""
    parent: click.Context | None = None
    for word in path[:-1]:  # a group without arguments: click writes those of a parent before the command
        parent = click.Context(click.Group(word), info_name=word, parent=parent)
    context = click.Context(
        command, info_name=path[-1], parent=parent, terminal_width=WIDTH, max_content_width=WIDTH
    )
    context.help_option_names = ["-h", "--help"]
    return command.get_help(context)


def markdown() -> str:
    """The whole file."""
    parts = [HEAD]
    for path, command in (*commands(), *commands(tace_cli, ("tace",))):
        parts.append(f"## {' '.join(path)}\n\n```\n{help_of(path, command).rstrip()}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    click.echo(markdown(), nl=False)
