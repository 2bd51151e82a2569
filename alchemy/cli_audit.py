"""`alchemy data audit`: whether the labels of a store can be trained on."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alchemy.cli_paths import find_store, say_table
from tace.cli_common import AS_JSON, SETTINGS, WHERE, say_json
from tace.wording import count

if TYPE_CHECKING:
    from alchemy.audit import Audit, Expected

LOOK, SHOWN = 2, 8


@click.command(context_settings=SETTINGS)
@click.argument("source", metavar="CAMPAIGN-OR-STORE", type=WHERE)
@click.option("--fidelity", metavar="NAME", help="Labels of this level of theory only.")
@click.option(
    "--quarantine", "set_aside", is_flag=True, help="Set aside the labels that a finding blames."
)
@AS_JSON
def audit(source: Path, fidelity: str | None, set_aside: bool, as_json: bool) -> int:
    """Look at the physics of all labels of a store.

    Physics and program versions of each level, net forces, zeroed forces, energies against a fit to
    compositions and against near frames and their forces, stresses against energies, copies that
    disagree, repeats, swapped species (docs/trust.md). A label in quarantine is not trained on,
    stays in the store under its reason, and is not computed again.

    \b
    Example:
      alchemy data audit campaign.yaml
      alchemy data audit set.h5 --fidelity pbe --json
      alchemy data query campaign.yaml "status != 'ok'" --columns key,status,energy,formula

    Exit code 0: nothing found but notes; 2: something must be looked at.
    """
    from alchemy.audit import audit as look
    from alchemy.errors import InputError
    from alchemy.quarantine import quarantine
    from alchemy.store import Store
    from tace.wording import hint

    store = Store(find_store(source))
    snapshot = store.snapshot()
    known = sorted(snapshot.levels())
    if fidelity is not None and fidelity not in known:
        raise InputError(f"no labels of '{fidelity}'; {hint(fidelity, known, label='there are')}")
    found = look(snapshot, only=fidelity, expected=_expected(store.path.parent))
    aside = quarantine(store, found.doubts()) if set_aside else []
    if as_json:
        say_json(
            {
                "store": str(store.path),
                "clean": found.clean,
                "levels": found.levels,
                "findings": [vars(f) | {"labels": dict(f.labels)} for f in found.findings],
                "set_aside": aside,
            }
        )
    else:
        _say(found, aside, set_aside=set_aside)
    return 0 if found.clean else LOOK


def _expected(home: Path) -> Expected:
    """Limits of the labelers and versions that were accepted, where a campaign lies beside the store."""
    from alchemy.audit import Expected
    from alchemy.errors import AlchemyError
    from alchemy.labelers.base import make_labeler
    from alchemy.records import read_json

    path = home / "campaign.json"
    if not path.is_file():
        return Expected()
    facts, limits = read_json(path), {}
    for name, own in facts.get("fidelities", {}).items():
        options: dict[str, Any] = {k: v for k, v in own.items() if k != "labeler"}
        with contextlib.suppress(AlchemyError, KeyError):  # a level of another machine is judged without
            labeler = make_labeler(own["labeler"], options, base_dir=Path(facts["base_dir"]))
            own_limit = facts.get("gates", {}).get(name, {}).get("net_force_eV_per_A_per_atom")
            limits[name] = own_limit or labeler.net_force_eV_per_A_per_atom
    return Expected(limits, facts.get("accepted_codes", {}))


def _say(found: Audit, aside: list[str], *, set_aside: bool) -> None:
    numbers = ("net force", "largest", "near pairs", "dE/work", "dE/stress", "noise")
    heads = ("level", "labels", "set aside", *numbers)
    rows = [
        (
            own["level"],
            own["labels"],
            own["set_aside"],
            own["net_force_eV_per_A"]["median"],
            own["net_force_eV_per_A"]["largest"],
            own["near_pairs"],
            own["energy_over_work"],
            own["energy_over_stress_work"],
            own["label_noise_eV_per_A"],
        )
        for own in found.levels
    ]
    say_table(heads, rows)
    click.echo("net forces and noise in eV/Å; dE/work should be 1")
    for finding in found.findings:
        click.echo(f"{finding.severity}: {finding.fidelity}: {finding.kind}: {finding.message}")
        for key, text in list(finding.labels.items())[:SHOWN]:
            click.echo(f"    {key[:12]} {text}")
        if len(finding.labels) > SHOWN:
            click.echo(f"    and {len(finding.labels) - SHOWN} more; --json has all")
    blamed = found.doubts()
    if set_aside:
        click.echo(f"set aside: {count(len(aside), 'label')}")
    elif blamed:
        click.echo(f"--quarantine sets {count(len(blamed), 'label')} aside")
    if found.clean:
        click.echo("nothing must be looked at")


COMMANDS = (audit,)
