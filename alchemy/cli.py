"""The command line: which commands there are, and how errors become messages and exit codes.

Help must come at once, so no module that imports torch, ase, dask, matplotlib or pydantic is
imported before a command runs: the commands import what they need.
"""

from __future__ import annotations

import errno
import signal
import traceback
from collections.abc import Sequence

import click

from alchemy import __version__, cli_campaign, cli_data, cli_label, cli_plugins, cli_train
from alchemy.cli_paths import SETTINGS
from alchemy.errors import AlchemyError
from tace.errors import TaceError

INTERRUPTED, OUR_BUG, BAD_INPUT, ENVIRONMENT = 7, 1, 2, 3

EPILOG = """\b
A first campaign:
  alchemy init metal copper && cd copper
  alchemy check campaign.yaml
  alchemy run campaign.yaml
  alchemy status campaign.yaml

\b
Exit codes: 0 done, 1 our bug, 2 bad input, 3 environment, 4 budget used up, 5 stalled,
            6 limited by the model, 7 interrupted (the same command continues)"""


class _InOrder(click.Group):
    """Commands in the order in which a person needs them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings=SETTINGS, epilog=EPILOG)
@click.version_option(__version__, "-V", "--version", prog_name="alchemy")
def cli() -> None:
    """Active learning of interatomic potentials with committees of TACE models."""


for _module in (cli_campaign, cli_data, cli_train, cli_label, cli_plugins):
    for _command in _module.COMMANDS:
        cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code comes back."""
    try:
        code = cli.main(
            list(arguments) if arguments is not None else None,
            prog_name="alchemy",
            standalone_mode=False,
        )
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _said(INTERRUPTED, "interrupted; what was finished is on disk")
    except (AlchemyError, TaceError) as error:
        return _said(error.exit_code, str(error))
    except SystemExit:  # from click, when the reader of `alchemy data query … | head` has enough
        return 128 + signal.SIGPIPE
    except OSError as error:
        return _from_system(error)
    except Exception:
        return _bug()


def _said(code: int, message: str) -> int:
    click.echo(f"error: {message}", err=True)
    return code


def _from_system(error: OSError) -> int:
    """What the operating system refuses: mostly about the machine, not our code."""
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _said(
            ENVIRONMENT,
            f"{where}no space left on the disk (or over quota); make room and run it again, "
            "what was finished is kept",
        )
    if error.filename and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO):
        return _said(ENVIRONMENT, f"{where}{error.strerror}")
    return _bug()


def _bug() -> int:
    click.echo(
        f"This is a bug in alchemy {__version__}, not your mistake. Please report what follows, "
        "with the command and the campaign file:",
        err=True,
    )
    traceback.print_exc()
    return OUR_BUG
