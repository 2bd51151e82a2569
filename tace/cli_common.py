"""How commands look, what their arguments mean, and how errors become messages and exit codes.

Nothing that imports torch, ase or matplotlib is imported before a command runs: help must come at once.
"""

from __future__ import annotations

import errno
import json
import signal
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tace.errors import TaceError

if TYPE_CHECKING:
    from tace.keys import Key
    from tace.model import Tace

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
WHERE = click.Path(path_type=Path)
INTERRUPTED, OUR_BUG, ENVIRONMENT = 7, 1, 3
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class InOrder(click.Group):
    """Commands in the order in which a person needs them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def run_command(
    group: click.Group,
    arguments: Sequence[str] | None,
    *,
    program: str,
    file: str,
    errors: tuple[type[Exception], ...] = (TaceError,),
) -> int:
    """Run one command; the exit code comes back.

    Args:
        program: its name, and a version for the report of a bug.
        file: what the user wrote, which belongs to such a report.
        errors: that users cause; each has an `exit_code` and is told without a traceback.
    """
    try:
        code = group.main(
            list(arguments) if arguments is not None else None,
            prog_name=program.split()[0],
            standalone_mode=False,
        )
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _said(INTERRUPTED, "interrupted; what was finished is on disk")
    except SystemExit:  # from click, when the reader of `tace info … | head` has enough
        return 128 + signal.SIGPIPE
    except errors as error:
        return _said(getattr(error, "exit_code", OUR_BUG), str(error))
    except Exception as error:
        said = _from_system(error) if isinstance(error, OSError) else None
        return _bug(program, file) if said is None else said


def _said(code: int, message: str) -> int:
    click.echo(f"error: {message}", err=True)
    return code


def _from_system(error: OSError) -> int | None:
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
    return None


def _bug(program: str, file: str) -> int:
    click.echo(
        f"This is a bug in {program}, not your mistake. Please report what follows, "
        f"with the command and the {file}:",
        err=True,
    )
    traceback.print_exc()
    return OUR_BUG


def say_json(document: Any) -> None:
    """Print a document; NaN and infinity are not JSON and never get here."""
    click.echo(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False))


def sorted_out(paths: Sequence[Path], *, wanted: str) -> tuple[list[Path], list[Path]]:
    """Model files (*.pt, or folders of member-*.pt) and the rest, in the order given.

    Raises:
        click.UsageError: there is no model, or nothing but models.
    """
    models: list[Path] = []
    rest: list[Path] = []
    for path in paths:
        members = sorted(path.glob("member-*.pt")) if path.is_dir() else []
        if members or path.suffix == ".pt":
            models += members or [path]
        else:
            rest.append(path)
    if not models:
        raise click.UsageError("give a model: a file that ends in .pt, or a folder of member-*.pt")
    if not rest:
        raise click.UsageError(f"give {wanted} besides the model")
    return models, rest


def load_models(paths: Iterable[Path]) -> list[Tace]:
    """Models of one committee.

    Raises:
        TaceError: a file that cannot be read, or models that do not belong together.
    """
    from tace.committee import Committee
    from tace.io import load_model

    return list(Committee([load_model(path) for path in paths]).members)


def threads(number: int) -> None:
    """Cores that torch may use."""
    import torch

    torch.set_num_threads(number)


THREADS = click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Cores to use."
)


def key_places(texts: Sequence[str], reads: Sequence[str] = ()) -> tuple[dict[str, Key], dict[str, Key]]:
    """Keys of labels and of conditions from --key options.

    Args:
        reads: conditions of a model; 'charges', which may be either, are a condition where it reads them.
    """
    from tace.keys import Key
    from tace.quantities import INPUTS, LABELS

    labels: dict[str, Key] = {}
    conditions: dict[str, Key] = {}
    for text in texts:
        name, sign, rest = text.partition("=")
        key, _, unit = rest.partition(":")
        if not sign or not key:
            raise click.UsageError(f"--key {text}: write it as energy=REF_energy or energy=E:Ha")
        is_input = name in reads or (name in INPUTS and name not in LABELS)
        (conditions if is_input else labels)[name] = Key(key, unit or None)
    return labels, conditions


def may_write(path: Path, *, force: bool) -> None:
    """Refuse a file that exists, and a folder that does not.

    Raises:
        TaceError: it says which.
    """
    if path.exists() and not force:
        raise TaceError(f"{path} exists; --force overwrites")
    if not path.resolve().parent.is_dir():
        raise TaceError(f"{path}: there is no folder {path.resolve().parent}")
