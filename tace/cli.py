"""The command line of `tace`: which commands there are."""

from __future__ import annotations

from collections.abc import Sequence

import click

from tace import cli_compile, cli_model, cli_train
from tace.cli_common import SETTINGS, InOrder, run_command

EPILOG = """\b
A first model:
  tace example > train.yaml      (then name your files in it)
  tace train train.yaml
  tace eval train/model.pt test.extxyz
  tace predict train/model.pt new.extxyz -o predicted.extxyz
  tace compile train/model.pt -o fast.pt

\b
Exit codes: 0 done, 1 our bug, 2 bad input, 3 environment, 7 interrupted (the same command continues)"""


@click.group(cls=InOrder, context_settings=SETTINGS, epilog=EPILOG)
def cli() -> None:
    """Train, test and use TACE interatomic potentials."""


for _module in (cli_train, cli_model, cli_compile):
    for _command in _module.COMMANDS:
        cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code comes back."""
    return run_command(cli, arguments, program="tace", file="run file")
