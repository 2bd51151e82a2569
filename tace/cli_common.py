"""How commands look and what their arguments mean: shared by the `cli_*` modules."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tace.model import Tace

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
WHERE = click.Path(path_type=Path)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


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
