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
@AS_JSON
def doctor(campaign: Path | None, as_json: bool) -> None:
    """Try what alchemy stands on.

    Versions, cores, GPU, a store, and a real label of a pair of atoms: at every level of theory
    of CAMPAIGN, otherwise with every installed labeler.

    \b
    Example:
      alchemy doctor
      alchemy doctor campaign.yaml

    Exit code 0: all work; 3: something does not.
    """
    from alchemy.cli_doctor import examine

    findings = examine(campaign)
    if as_json:
        say_json([vars(finding) for finding in findings])
    else:
        for finding in findings:
            mark = {True: "ok  ", False: "FAIL", None: "    "}[finding.ok]
            click.echo(f"{mark} {finding.what:<14} {finding.text}")
    click.get_current_context().exit(3 if any(f.ok is False for f in findings) else 0)


COMMANDS = (policies, doctor)
