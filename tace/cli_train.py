"""`tace train`, `tace finetune` and `tace example`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import click

from tace.cli_common import AS_JSON, INTERRUPTED, SETTINGS, WHERE, say_json

_SET = click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a key, as in train.steps=500."
)
_OUT = click.option("--out", type=WHERE, metavar="DIR", help="Folder to write to.")
_RESTART = click.option("--restart", is_flag=True, help="Start over, deleting what is in the folder.")


@click.command(context_settings=SETTINGS)
@click.argument("config", type=WHERE)
@_SET
@_OUT
@_RESTART
@AS_JSON
def train(config: Path, **options: Any) -> int:
    """Train a model as a run file says; 'tace example' prints one.

    Everything is written to a folder named like the run file: model.pt with its card, best.pt, last.pt,
    metrics.jsonl, report.json, learning_curve.png and parity.png. The same command continues a run that
    was ended before its time, to the same weights bit by bit (on one kind of machine, with as many threads).

    \b
    Examples:
      tace train train.yaml
      tace train train.yaml --set train.steps=500 --set model.preset=nano --out quick
    """
    return _run(config, None, options)


@click.command(context_settings=SETTINGS)
@click.argument("model", type=WHERE)
@click.argument("config", type=WHERE)
@_SET
@_OUT
@_RESTART
@AS_JSON
def finetune(model: Path, config: Path, **options: Any) -> int:
    """Train MODEL further on the data of a run file.

    The run file is one of 'tace train' without a model block, and may hold

    \b
      finetune:
        freeze: [backbone]        # or embedding, radial, layers, layers.0, readout, heads
        replay: {data: old.extxyz, fraction: 0.3}

    'backbone' is everything but the readouts. Replayed old data keep what was learnt. Levels of theory
    that MODEL lacks are added if data.fidelities names them; elements cannot be added.
    """
    return _run(config, model, options)


@click.command(context_settings=SETTINGS)
def example() -> None:
    """Print a run file with every key and a comment on it."""
    click.echo(files("tace").joinpath("example.yaml").read_text(encoding="utf-8"), nl=False)


def _run(config: Path, model: Path | None, options: Mapping[str, Any]) -> int:
    from tace.runfile import read_runfile

    out, as_json = options["out"], options["as_json"]
    run = read_runfile(config, changes=options["changes"], out=out, model=model, finetune=model is not None)
    from tace.runfile_train import execute  # imports torch: a run file with mistakes need not wait for it

    result = execute(
        run,
        restart=options["restart"],
        say=None if as_json else click.echo,
        progress=not as_json,
    )
    if as_json:
        say_json({**result.report, "out": str(result.out), "stopped": result.stopped})
    return INTERRUPTED if result.stopped == "interrupted" else 0


COMMANDS = (example, train, finetune)
