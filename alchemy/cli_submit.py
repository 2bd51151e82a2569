"""`alchemy submit`: the campaign's controller as a batch job; and the command that this job runs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alchemy.cli_paths import CAMPAIGN, find_campaign, is_home
from alchemy.errors import EnvironmentProblemError, InputError
from tace.cli_common import SETTINGS

if TYPE_CHECKING:
    from alchemy.cli_paths import Given
    from alchemy.controller import Request
    from alchemy.executors import Interrupt

TARGET = click.Path(path_type=Path)


@click.command(context_settings=SETTINGS)
@CAMPAIGN
@click.option("--partition", metavar="NAME", help="Partition or queue of the controller's job.")
@click.option("--account", metavar="NAME", help="Who pays; default: run.cluster.account.")
@click.option("--walltime", default="12 h", show_default=True, help="Of each job of the chain.")
@click.option("--cores", type=click.IntRange(min=1), default=1, show_default=True, help="Of the job.")
@click.option("--memory", default="4 GB", show_default=True, help="Of the job.")
@click.option(
    "--directive", "directives", multiple=True, metavar="TEXT",
    help="One more option for the job, such as --directive=--qos=long (repeatable).",
)  # fmt: skip
@click.option("--setup", type=TARGET, help="Shell file to read first; default: run.cluster.setup.")
@click.option(
    "--scheduler", type=click.Choice(["slurm", "pbs", "sge", "lsf"]),
    help="Default: that of run.where, else the one of this machine.",
)  # fmt: skip
@click.option("--until", type=click.IntRange(min=0), metavar="N", help="Pause after round N.")
@click.option("--only", multiple=True, metavar="FIDELITY", help="As for 'alchemy run'.")
@click.option("--dir", "directory", type=TARGET, metavar="DIR", help="As for 'alchemy run'.")
@click.option("--dry-run", is_flag=True, help="Print the job script and do nothing.")
@click.option("--cancel", "cancelling", is_flag=True, help="Ask the controller's job to stop.")
@click.pass_context
def submit(context: click.Context, campaign: Path, **options: Any) -> None:
    """Run CAMPAIGN from a batch job, which hands over to a next one before its walltime.

    The controller itself needs little: training and labels run where the file's run block says. With
    where: local they run in the controller's own job; give it --cores (and a GPU with --directive).

    \b
    Example:
      alchemy submit campaign.yaml --partition long --walltime "24 h"
      alchemy submit campaign.yaml --dry-run
      alchemy submit campaign.yaml --cancel

    Exit code 0: submitted; 2: bad input; 3: no batch system, or somebody runs the campaign.
    """
    from alchemy import controller

    directory: Path | None = options["directory"]
    if directory is not None and is_home(campaign):
        raise click.UsageError("CAMPAIGN is a campaign's directory already; leave --dir out")
    given = find_campaign(campaign, only=options["only"])
    home = (directory or given.home).resolve()
    if options["cancelling"]:
        job = controller.cancel(home)
        click.echo(f"job {job} is asked to stop; 'alchemy submit {campaign}' continues later")
        return
    request = _request(given, campaign.resolve(), home, options)
    if options["dry_run"]:
        click.echo(controller.script(request), nl=False)
        return
    home.mkdir(parents=True, exist_ok=True)
    job = controller.submit(request)
    log = home / controller.FOLDER / "controller.log"
    click.echo(f"job {job}: controller of {given.campaign.name}, log {log}")
    click.echo(f"next: alchemy status {shlex.quote(str(campaign))}")


def _request(given: Given, source: Path, home: Path, options: dict[str, Any]) -> Request:
    """The options, checked like the keys of the campaign file."""
    from pydantic import ValidationError

    from alchemy import batch_systems
    from alchemy.config_cluster import BATCH_SYSTEMS, Workers
    from alchemy.controller import HARD_STOP_S, LEAST_MARGIN_S, Request
    from alchemy.executors_jobs import setup_file

    run = given.campaign.run
    where = options["scheduler"] or next((w for w in BATCH_SYSTEMS if w == run.where), None)
    where = where or batch_systems.installed()
    if where is None:
        raise EnvironmentProblemError(
            "no batch system here: none of sbatch, qsub and bsub is in PATH; --scheduler with --dry-run "
            "writes the script for another machine"
        )
    words = {key: options[key] for key in ("partition", "walltime", "cores", "memory", "directives")}
    cluster = run.cluster
    try:
        job = Workers.model_validate({**words, "directives": list(words["directives"])})
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"--{first['loc'][0]}: {first['msg']}") from None
    if job.walltime_s <= 2 * (LEAST_MARGIN_S + HARD_STOP_S):
        raise InputError(
            f"--walltime {options['walltime']}: too short; the job needs "
            f"{LEAST_MARGIN_S + HARD_STOP_S:g} s to come to its end"
        )
    setup = options["setup"].resolve() if options["setup"] else None
    if setup is not None and not setup.is_file():
        raise InputError(f"--setup {options['setup']}: no such file")
    in_file = setup_file(cluster.setup, given.campaign.base_dir) if cluster else None
    return Request(
        where=where,
        campaign=str(source),
        home=str(home),
        until=options["until"],
        only=tuple(options["only"] or given.used),
        partition=job.partition,
        account=options["account"] or (cluster.account if cluster else None),
        walltime_s=job.walltime_s,
        cores=job.cores,
        memory=job.memory,
        directives=job.directives,
        setup=str(setup) if setup else in_file,
        python=cluster.python if cluster else None,
    )


@click.command(context_settings=SETTINGS, hidden=True)
@click.argument("home", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.pass_context
def controller(context: click.Context, home: Path) -> None:
    """What the job of 'alchemy submit' runs: HOME's campaign, until its walltime comes near.

    \b
    Example:
      alchemy controller runs/copper/copper
    """
    from alchemy.controller import run_job

    record = run_job(home.resolve(), _run)
    click.echo(record.message)
    context.exit(record.exit_code or 0)


def _run(request: Request, interrupt: Interrupt) -> tuple[int, str]:
    from alchemy.campaign import run_campaign
    from alchemy.cli_check import outcome_lines

    given = find_campaign(Path(request.campaign), only=request.only)
    outcome = run_campaign(
        given.campaign,
        Path(request.home),
        until=request.until,
        only=request.only,
        source=given.file,
        interrupt=interrupt,
    )
    lines = list(outcome_lines(outcome, given.campaign.target))
    click.echo("\n".join(lines))
    return outcome.exit_code, outcome.stop.message if outcome.stop else "paused"


COMMANDS = (submit, controller)
