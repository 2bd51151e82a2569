"""The command line: which commands there are.

Help must come at once, so no module that imports torch, ase, dask, matplotlib or pydantic is
imported before a command runs: the commands import what they need.
"""

from __future__ import annotations

from collections.abc import Sequence

import click

from alchemy import (
    __version__,
    cli_campaign,
    cli_costs,
    cli_data,
    cli_label,
    cli_plugins,
    cli_sample,
    cli_select,
    cli_submit,
    cli_templates,
    cli_train,
    cli_ts,
    cli_why,
)
from alchemy.errors import AlchemyError
from tace.cli_common import SETTINGS, InOrder, run_command
from tace.errors import TaceError

EPILOG = """\b
A first campaign:
  alchemy init metal copper && cd copper
  alchemy check campaign.yaml
  alchemy run campaign.yaml
  alchemy status campaign.yaml

\b
Exit codes: 0 done, 1 our bug, 2 bad input, 3 environment, 4 budget used up, 5 stalled,
            6 limited by the model, 7 interrupted (the same command continues)"""


@click.group(cls=InOrder, context_settings=SETTINGS, epilog=EPILOG)
@click.version_option(__version__, "-V", "--version", prog_name="alchemy")
def cli() -> None:
    """Active learning of interatomic potentials with committees of TACE models."""


for _module in (
    cli_campaign, cli_costs, cli_why, cli_data, cli_train, cli_sample, cli_ts, cli_select, cli_label,
    cli_plugins, cli_submit, cli_templates,
):  # fmt: skip
    for _command in _module.COMMANDS:
        cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code comes back."""
    return run_command(
        cli,
        arguments,
        program=f"alchemy {__version__}",
        file="campaign file",
        errors=(AlchemyError, TaceError),
    )
