"""Commands about the installation: policies, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from alchemy.cli_paths import say_table
from tace.cli_common import AS_JSON, SETTINGS, say_json

KINDS = {
    "explorers": "explorer",
    "selectors": "selector",
    "fidelity_choices": "fidelity",
    "stops": "stop rule",
    "labelers": "labeler",
}


@click.command(context_settings=SETTINGS)
@AS_JSON
def policies(as_json: bool) -> None:
    """List installed explorers, selectors, stop rules and labelers.

    Other packages add theirs through the entry points alchemy.explorers, alchemy.selectors,
    alchemy.stops and alchemy.labelers.

    \b
    Example:
      alchemy policies
    """
    from alchemy.errors import AlchemyError
    from alchemy.plugins import find, installed

    rows: list[dict[str, Any]] = []
    for kind, noun in KINDS.items():
        for name in installed(kind):
            try:
                paragraph = (find(kind, name).__doc__ or "").strip().partition("\n\n")[0]
                text = " ".join(paragraph.split())
            except AlchemyError as error:
                text = f"cannot be used: {error}"
            rows.append({"kind": noun, "name": name, "what": text})
    if as_json:
        say_json(rows)
    else:
        say_table(("kind", "name", "what it is"), [list(row.values()) for row in rows])


@click.command(context_settings=SETTINGS)
@click.argument("campaign", type=click.Path(path_type=Path), required=False)
@click.option(
    "--on",
    type=click.Choice(["slurm", "pbs", "sge", "lsf"]),
    help="Also try CAMPAIGN's worker jobs on this batch system: minutes, and a few of its core-minutes.",
)
@AS_JSON
def doctor(campaign: Path | None, on: str | None, as_json: bool) -> None:
    """Try what alchemy stands on.

    Versions, cores, GPU, a store in the campaign's folder, one step of training, and a real label of
    a pair of atoms: at every level of theory of CAMPAIGN, otherwise with every installed labeler.
    With --on the same from a job of each of its partitions and on one worker of each kind.

    \b
    Example:
      alchemy doctor
      alchemy doctor campaign.yaml
      alchemy doctor campaign.yaml --on slurm

    Exit code 0: all work; 2: bad input; 3: something does not.
    """
    from alchemy.doctor import Finding, examine

    findings: list[Finding] = []
    for finding in examine(campaign, on=on):
        findings.append(finding)
        mark = {True: "ok  ", False: "FAIL", None: "    "}[finding.ok]
        if not as_json:
            click.echo(f"{mark} {finding.what:<14} {finding.text}")
    if as_json:
        say_json([vars(finding) for finding in findings])
    click.get_current_context().exit(3 if any(f.ok is False for f in findings) else 0)


COMMANDS = (policies, doctor)
