"""`alchemy data audit` and `release`: whether labels can be trained on; doubted ones that can."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alchemy.cli_paths import find_store, say_table
from tace.cli_common import AS_JSON, SETTINGS, WHERE, say_json
from tace.wording import count

if TYPE_CHECKING:
    from alchemy.audit import Audit, Expected
    from alchemy.store import LabelRow

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


@click.command(context_settings=SETTINGS)
@click.argument("source", metavar="CAMPAIGN-OR-STORE", type=WHERE)
@click.argument("keys", metavar="[KEY]...", nargs=-1)
@click.option("--reason", metavar="WORD", help="All labels that were set aside for this reason.")
@AS_JSON
def release(source: Path, keys: tuple[str, ...], reason: str | None, as_json: bool) -> None:
    """Let labels in quarantine count again, by KEY (or its beginning) or by reason.

    Without KEY and --reason it lists what is in quarantine and changes nothing. A released label is as it
    was before: trained on from the next round on. A check that doubts it again sets it aside again.

    \b
    Example:
      alchemy data release campaign.yaml
      alchemy data release campaign.yaml 3f2a91c0 77b01d2e
      alchemy data release set.h5 --reason energy-outlier
    """
    from alchemy.quarantine import quarantined
    from alchemy.quarantine import release as give_back
    from alchemy.store import Store

    store = Store(find_store(source))
    doubted = {row.key: row for row in quarantined(store.snapshot())}
    chosen = _chosen(doubted, keys, reason)
    given = give_back(store, chosen) if chosen else []
    if as_json:
        rows = [
            {"key": r.key, "structure": r.structure_uid, "fidelity": r.fidelity, "reason": r.status}
            for r in doubted.values()
        ]
        say_json({"store": str(store.path), "quarantine": rows, "released": given})
    elif keys or reason is not None:
        click.echo(f"released: {count(len(given), 'label')}, {len(doubted) - len(given)} still set aside")
    elif doubted:
        heads = ("key", "structure", "level", "reason", "energy eV")
        found = doubted.values()
        cells = [(r.key[:12], r.structure_uid[:8], r.fidelity, r.status, r.energy_eV) for r in found]
        say_table(heads, cells)
    else:
        click.echo("no label is in quarantine")


def _chosen(doubted: Mapping[str, LabelRow], keys: Sequence[str], reason: str | None) -> list[str]:
    """Whole keys of labels in quarantine.

    Raises:
        InputError: a key is none of them or the beginning of several, or nothing has this reason.
    """
    from alchemy.errors import InputError
    from tace.wording import hint

    chosen = []
    for key in keys:
        found = [whole for whole in doubted if whole.startswith(key)]
        if len(found) != 1:
            what = f"is the beginning of {len(found)} of them" if found else "is none of them"
            held = f"{count(len(doubted), 'label')} in quarantine, '{key}' {what}"
            raise InputError(f"{held}; without a key 'alchemy data release' lists them")
        chosen += found
    if reason is not None:
        found = [key for key, row in doubted.items() if row.status == reason]
        words = sorted({row.status for row in doubted.values()})
        if not found:
            there = hint(reason, words, label="there are") if words else "quarantine is empty"
            raise InputError(f"no label was set aside for '{reason}'; {there}")
        chosen += [key for key in found if key not in chosen]
    return chosen


COMMANDS = (audit, release)
