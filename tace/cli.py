"""The command line of `tace`: which commands there are, and how errors become messages and exit codes.

Help must come at once, so nothing that imports torch, ase or matplotlib is imported before a command runs.
"""

from __future__ import annotations

import errno
import signal
import traceback
from collections.abc import Sequence

import click

from tace import cli_model, cli_train
from tace.cli_common import SETTINGS
from tace.errors import TaceError

INTERRUPTED, OUR_BUG, ENVIRONMENT = 7, 1, 3

EPILOG = """\b
A first model:
  tace example > train.yaml      (then name your files in it)
  tace train train.yaml
  tace eval train/model.pt test.extxyz
  tace predict train/model.pt new.extxyz -o predicted.extxyz

\b
Exit codes: 0 done, 1 our bug, 2 bad input, 3 environment, 7 interrupted (the same command continues)"""


class _InOrder(click.Group):
    """Commands in the order in which a person needs them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings=SETTINGS, epilog=EPILOG)
def cli() -> None:
    """Train, test and use TACE interatomic potentials."""


for _module in (cli_train, cli_model):
    for _command in _module.COMMANDS:
        cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code comes back."""
    try:
        code = cli.main(
            list(arguments) if arguments is not None else None, prog_name="tace", standalone_mode=False
        )
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _said(INTERRUPTED, "interrupted; what was finished is on disk")
    except TaceError as error:
        return _said(error.exit_code, str(error))
    except SystemExit:  # from click, when the reader of `tace info … | head` has enough
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
        return _said(ENVIRONMENT, f"{where}no space left on the disk (or over quota); make room and repeat")
    if error.filename and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO):
        return _said(ENVIRONMENT, f"{where}{error.strerror}")
    return _bug()


def _bug() -> int:
    click.echo(
        "This is a bug in tace, not your mistake. Please report what follows, with the command and the "
        "run file:",
        err=True,
    )
    traceback.print_exc()
    return OUR_BUG
