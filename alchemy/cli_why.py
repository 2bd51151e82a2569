"""`alchemy why` and `alchemy whatif`: what a campaign decided, and what it would have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from alchemy.cli_paths import CAMPAIGN, find_home, say_table
from alchemy.errors import InputError
from tace.cli_common import AS_JSON, SETTINGS, say_json


@click.command(context_settings=SETTINGS)
@CAMPAIGN
@click.argument("what")
@AS_JSON
def why(campaign: Path, what: str, as_json: bool) -> None:
    """Tell why a frame of CAMPAIGN was bought or not, or why it stopped.

    WHAT is 'stop', or the first characters of a structure's uid or of a label's key: who offered
    the frame, its expected error beside the threshold, the atom in doubt, and what its label cost.

    \b
    Example:
      alchemy why campaign.yaml stop
      alchemy why campaign.yaml 1a2b
    """
    from alchemy.reasons import why as ask
    from alchemy.state import Home

    answer = ask(Home(find_home(campaign)), what)
    if as_json:
        lines = answer.pop("lines")
        say_json({**_plain(answer), "text": lines})
    else:
        click.echo("\n".join(answer["lines"]))


def _plain(value: Any) -> Any:
    """NaN is null in JSON."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and value != value else value


@click.command(context_settings=SETTINGS)
@CAMPAIGN
@click.option("--round", "number", type=click.IntRange(min=1), metavar="N", help="Default: all.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="A key of the select block (repeatable), such as threshold='20 meV/A'.",
)
@click.option("--frames", is_flag=True, help="List the frames that differ.")
@AS_JSON
def whatif(
    campaign: Path, number: int | None, settings: tuple[str, ...], frames: bool, as_json: bool
) -> None:
    """Replay the selections of CAMPAIGN with other settings.

    From the recorded scores, so that nothing is computed and nothing is changed. Each round is
    replayed by itself: what later rounds would have seen after another choice is not known.
    Without --set the replay repeats what happened.

    \b
    Example:
      alchemy whatif campaign.yaml --set per_round=40
      alchemy whatif campaign.yaml --round 2 --set method=lcmd --set threshold='20 meV/A' --frames
    """
    from alchemy.replay import replay, rounds_with_pools
    from alchemy.state import Home

    home = Home(find_home(campaign))
    known = rounds_with_pools(home)
    wanted = known if number is None else [number]
    if not known or wanted[0] not in known:
        had = ", ".join(map(str, known)) or "none"
        raise InputError(f"{home.path}: no selection of that round is recorded; there are: {had}")
    answers = [replay(home, n, settings) for n in wanted]
    if as_json:
        say_json(answers)
        return
    _say(answers, frames=frames)


def _say(answers: list[dict[str, Any]], *, frames: bool) -> None:
    heads = ("round", "was", "would be", "kept", "dropped", "added", "error was meV/Å", "would be meV/Å")
    rows = []
    for answer in answers:
        errors = [answer[run]["mean_expected_error_eV_per_A"] for run in ("was", "would")]
        rows.append(
            (
                answer["round"],
                answer["was"]["frames"],
                answer["would"]["frames"],
                *(len(answer[name]) for name in ("kept", "dropped", "added")),
                *("–" if error is None else f"{1e3 * error:.3g}" for error in errors),
            )
        )
    say_table(heads, rows)
    for note in dict.fromkeys(note for answer in answers for note in answer["notes"]):
        click.echo(f"note: {note}")
    if not frames:
        return
    for answer in answers:
        for change, verb in (("dropped", "would be left"), ("added", "was left")):
            for frame in answer[change]:
                error = 1e3 * frame["expected_error_eV_per_A"]
                click.echo(
                    f"round {answer['round']} {change} {frame['uid'][:12]} ({frame['source']}, "
                    f"{error:.3g} meV/Å): {verb} as {frame['reason']}"
                )


COMMANDS = (why, whatif)
