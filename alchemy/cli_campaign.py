"""Commands for a whole campaign: init, check, run, status, report."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from alchemy.cli_paths import CAMPAIGN, can_be_made, find_campaign, find_home, is_home
from alchemy.errors import InputError
from tace.cli_common import AS_JSON, SETTINGS, say_json

TARGET = click.Path(path_type=Path)


@click.command(context_settings=SETTINGS)
@click.argument("kind", type=click.Choice(["molecule", "metal"]), default="molecule")
@click.argument("directory", type=TARGET, default=Path("."))
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
def init(kind: str, directory: Path, force: bool) -> None:
    """Write a campaign file to start from, and its structure.

    They go into DIRECTORY, the current one by default. molecule: urea, GFN2-xTB below PBE, needs
    tblite and PySCF. metal: copper with ASE's EMT, needs no other program.

    \b
    Example:
      alchemy init metal copper
    """
    from alchemy.config_init import init_files

    contents = init_files(kind)
    there = [name for name in contents if (directory / name).exists()]
    if there and not force:
        raise InputError(f"{directory}: {' and '.join(there)} exist; --force overwrites")
    if directory.is_file():
        raise InputError(f"{directory} is a file; give the name of a folder")
    can_be_made(directory).mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        (directory / name).write_text(text, encoding="utf-8")
        click.echo(f"wrote {directory / name}")
    click.echo(f"next: alchemy check {shlex.quote(str(directory / 'campaign.yaml'))}")


@click.command(context_settings=SETTINGS)
@click.argument("campaign", type=TARGET, required=False)
@click.option("--explain", "explained", is_flag=True, help="Print the file with every default.")
@click.option(
    "--schema", is_flag=True, help="Print the JSON schema of campaign files, for editors."
)
@AS_JSON
def check(campaign: Path | None, explained: bool, schema: bool, as_json: bool) -> None:
    """Check CAMPAIGN without running it.

    Keys, units, structures, elements, options of the labelers: all mistakes are reported at once.

    \b
    Example:
      alchemy check campaign.yaml
      alchemy check campaign.yaml --explain > resolved.yaml
      alchemy check --schema > campaign.schema.json

    Exit code 0: it can run; 2: it cannot, and why; 3: a program or package is missing.
    """
    if schema:
        from alchemy.config import json_schema

        say_json(json_schema())
        return
    if campaign is None:
        raise click.UsageError("give a campaign file (or --schema)")
    from alchemy.cli_check import examine, print_findings

    given = find_campaign(campaign)
    findings = examine(given.campaign)
    if explained:
        from alchemy.config_explain import explain

        click.echo(explain(given.campaign), nl=False)
    if as_json and not explained:
        say_json({"file": str(given.file), **findings.document()})
    else:  # what --explain prints is a campaign file: the findings stay out of it
        print_findings(findings, given.file, err=explained)
    click.get_current_context().exit(findings.exit_code)


@click.command(context_settings=SETTINGS)
@CAMPAIGN
@click.option("--until", type=click.IntRange(min=0), metavar="N", help="Pause after round N.")
@click.option(
    "--only",
    multiple=True,
    metavar="FIDELITY",
    help="Use only this level of theory (repeat for several); the target must be among them.",
)
@click.option(
    "--budget",
    multiple=True,
    metavar="LIMIT",
    help="Spend at most this: +2min (more than so far), cpu=200h, gpu=+3h or disk=2TB (repeatable).",
)
@click.option(
    "--dir",
    "directory",
    type=TARGET,
    metavar="DIR",
    help="Where the campaign lives; default: its name, beside the file.",
)
@click.option(
    "--accept-code-version",
    "accept_code",
    is_flag=True,
    help="Go on with another version of a labeler's program; it is recorded.",
)
def run(
    campaign: Path,
    until: int | None,
    only: tuple[str, ...],
    budget: tuple[str, ...],
    directory: Path | None,
    accept_code: bool,
) -> None:
    """Run CAMPAIGN, or continue it where it stopped.

    CAMPAIGN is the file, its folder, or the directory of a campaign that has begun; a directory
    continues from its own copy of the file. Ctrl-C ends cleanly, the same command continues.

    \b
    Example:
      alchemy run campaign.yaml
      alchemy run campaign.yaml --until 2
      alchemy run campaign.yaml --only pbe
      alchemy run campaign.yaml --budget +2min

    Exit code 0: a goal of the stop block was met, or the pause of --until; 4: budget used up;
    5: stalled; 6: limited by the model; 7: interrupted.
    """
    if directory is not None and is_home(campaign):
        raise click.UsageError("CAMPAIGN is a campaign's directory already; leave --dir out")
    given = find_campaign(campaign, only=only)
    from alchemy.campaign import run_campaign  # torch and Dask start here
    from alchemy.cli_check import outcome_lines

    outcome = run_campaign(
        given.campaign,
        (directory or given.home).resolve(),
        until=until,
        only=only or given.used,
        budget=budget,
        source=given.file,
        accept_code=accept_code,
    )
    for line in outcome_lines(outcome, given.campaign.target):
        click.echo(line)
    click.get_current_context().exit(outcome.exit_code)


@click.command(context_settings=SETTINGS)
@CAMPAIGN
@AS_JSON
def status(campaign: Path, as_json: bool) -> None:
    """Where CAMPAIGN stands: rounds, labels, errors, cost.

    \b
    Example:
      alchemy status campaign.yaml
      alchemy status runs/urea/urea --json
    """
    from alchemy.controller_facts import before_the_beginning

    waiting = before_the_beginning(campaign)
    if waiting is not None:
        summary, lines = waiting
        say_json(summary) if as_json else click.echo("\n".join(lines))
        return
    home = find_home(campaign)
    from alchemy.status import render_status
    from alchemy.status import status as summarise

    summary = summarise(home)
    if as_json:
        say_json(summary)
        return
    from rich.console import Console

    Console(highlight=False).print(render_status(summary))


@click.command(context_settings=SETTINGS)
@CAMPAIGN
@click.option(
    "--beside", multiple=True, type=TARGET, help="Compare with this campaign (repeatable)."
)
@click.option("--output", type=TARGET, help="File to write; default: report.html in the directory.")
def report(campaign: Path, beside: tuple[Path, ...], output: Path | None) -> None:
    """Write CAMPAIGN's report, one HTML file.

    \b
    Example:
      alchemy report campaign.yaml
      alchemy report runs/urea/urea --beside runs/urea/urea-only-pbe --output both.html
    """
    home, others = find_home(campaign), [find_home(path) for path in beside]
    from alchemy.report import write_report

    click.echo(write_report(home, beside=others, output=output))


COMMANDS = (init, check, run, status, report)
