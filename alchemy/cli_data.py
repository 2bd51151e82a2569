"""Commands that read what a campaign made: data query, show, stats, and export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alchemy import cli_audit, cli_data_files, cli_data_store
from alchemy.cli_paths import find_home, find_store, open_snapshot, say_table
from tace.cli_common import AS_JSON, SETTINGS, WHERE, InOrder, say_json
from tace.wording import count

if TYPE_CHECKING:
    from ase import Atoms

    from alchemy.store import Snapshot

SHOWN = 20  # rows for people; JSON has all of them
ROWS = ("auto", "structures", "labels", "predictions", "events", "failures")


@click.group(cls=InOrder, context_settings=SETTINGS)
def data() -> None:
    """Questions to the store of a campaign, its files and its care.

    \b
    Example:
      alchemy data query campaign.yaml "max_force > 20"
      alchemy data import campaign.yaml aimd.extxyz --fidelity pbe
    """


SOURCE = click.argument("source", metavar="CAMPAIGN-OR-STORE", type=WHERE)
SALVAGE = click.option("--salvage", is_flag=True, help="Of a damaged store, what is sound.")
AS_OF = click.option("--as-of", type=click.IntRange(min=0), metavar="N", help="The store after commit N.")


@data.command(context_settings=SETTINGS)
@SOURCE
@click.argument("expression", default="")
@click.option("--rows", type=click.Choice(ROWS), default="auto", help="Kind of rows.")
@click.option("--columns", metavar="A,B,…", help="Fields to show.")
@click.option("--sort", metavar="FIELD", help="Sort by this field; -FIELD: descending.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N rows.")
@click.option("--count", "only_count", is_flag=True, help="Print the number of rows only.")
@click.option("--fields", is_flag=True, help="List the fields with meaning and unit.")
@click.option("--explain", "only_explain", is_flag=True, help="Say what is read to answer it.")
@AS_OF
@SALVAGE
@AS_JSON
def query(
    source: Path,
    expression: str,
    rows: str,
    columns: str | None,
    sort: str | None,
    limit: int | None,
    only_count: bool,
    fields: bool,
    only_explain: bool,
    as_of: int | None,
    salvage: bool,
    as_json: bool,
) -> None:
    """Rows of the store for which EXPRESSION is true; all without one.

    Expressions compare fields: fidelity == 'pbe' and max_force > 2 and 'O' in elements.
    An unknown value never matches; "x is None" asks for it.

    \b
    Example:
      alchemy data query campaign.yaml "fidelity == 'pbe'" --sort -max_force --limit 5
      alchemy data query campaign.yaml --fields
      alchemy data query urea/store.h5 "reason == 'scf-not-converged'" --rows failures
    """
    snapshot = open_snapshot(source, as_of, salvage=salvage)
    if fields:
        meanings = snapshot.fields(rows)
        if as_json:
            say_json(meanings)
        else:
            say_table(("field", "meaning"), list(meanings.items()))
        return
    names = [name.strip() for name in columns.split(",") if name.strip()] if columns else None
    if only_explain:
        _explain(snapshot, expression, {"rows": rows, "columns": names, "sort": sort}, as_json=as_json)
        return
    if only_count:
        number = snapshot.count(expression, rows=rows)
        number = number if limit is None else min(number, limit)
        say_json({"rows": number}) if as_json else click.echo(number)
        return
    shown = limit if limit is not None or as_json else SHOWN
    table = snapshot.select(expression, rows=rows, columns=names, sort=sort, limit=shown)
    found = list(table.rows())
    if as_json:
        say_json(found)
        return
    say_table(list(table.columns), [list(row.values()) for row in found])
    if limit is None and len(found) < table.matched:
        click.echo(f"… {table.matched - len(found)} more of {table.matched}; --limit N shows N")
    elif not found:
        click.echo("\n".join(["no row matches", *table.notes]))


def _explain(snapshot: Snapshot, expression: str, how: dict[str, Any], *, as_json: bool) -> None:
    from alchemy.store.table import explain

    found = explain(snapshot, expression, **how)
    if as_json:
        say_json(found)
        return
    click.echo(f"rows: {found['rows']}; {found['matched']} of {found['looked_at']} match")
    for name, meaning in found["fields"].items():
        click.echo(f"reads {name}: {meaning}")
    click.echo(f"shows {', '.join(found['columns'])}")
    say_table(("file", "rows", "matches"), [(name, *counts) for name, counts in found["files"].items()])


@data.command(context_settings=SETTINGS)
@SOURCE
@click.argument("uid", metavar="UID")
@click.option("--view", is_flag=True, help="Open ASE's viewer.")
@AS_OF
@AS_JSON
def show(source: Path, uid: str, view: bool, as_of: int | None, as_json: bool) -> None:
    """One structure with its labels and its history.

    UID is that of a structure or the key of a label; its first digits are enough. In a terminal the
    structure is drawn too.

    \b
    Example:
      alchemy data show campaign.yaml 1a2b3c
      alchemy data show campaign.yaml 1a2b3c --view
    """
    from alchemy.data_facts import find_uid, story
    from alchemy.store import Store

    snapshot = Store(find_store(source)).snapshot(as_of)
    found = find_uid(snapshot, uid)
    facts = story(snapshot, found)
    if as_json:
        say_json(facts)
    else:
        _say_story(facts)
        if sys.stdout.isatty():
            _draw(snapshot.structure(found))
    if view:
        from ase.visualize import view as open_viewer

        open_viewer(snapshot.structure(found))


def _draw(atoms: Atoms) -> None:
    from rich.console import Console

    from alchemy.picture import picture

    console = Console()
    drawn = picture(atoms, width=min(console.width, 100), height=24)
    if drawn is not None:
        console.print(drawn)


def _say_story(facts: dict[str, Any]) -> None:
    for name in ("uid", "formula", "n_atoms", "pbc", "charge", "multiplicity", "split"):
        click.echo(f"{name + ':':14}{facts[name]}")
    heads = ("symbol", "x", "y", "z")
    say_table(heads, [[s, *xyz] for s, xyz in zip(facts["symbols"], facts["positions_A"], strict=True)])
    for row in facts["labels"]:
        energy = "no energy" if row["energy_eV"] is None else f"{row['energy_eV']:.6f} eV"
        more = ", ".join([*row["has"], *(f"{n} = {v}" for n, v in row["conditions"].items())])
        click.echo(f"label {row['key'][:8]} {row['fidelity']} {row['status']}: {energy}; {more}")
    for row in facts["history"]:
        click.echo(f"{row['time']} {row['what']}")


@data.command(context_settings=SETTINGS)
@SOURCE
@click.argument("expression", default="")
@click.option("--plot", type=WHERE, metavar="FILE.png", help="Energies and forces per level.")
@AS_OF
@AS_JSON
def stats(source: Path, expression: str, plot: Path | None, as_of: int | None, as_json: bool) -> None:
    """Labels per level of theory, element and round; EXPRESSION chooses rows as in query.

    \b
    Example:
      alchemy data stats campaign.yaml --plot labels.png
    """
    from alchemy.data_facts import draw, statistics
    from alchemy.store import Store

    snapshot = Store(find_store(source)).snapshot(as_of)
    facts = statistics(snapshot, expression)
    if plot is not None:
        draw(snapshot, expression, plot)
    if as_json:
        say_json(facts)
        return
    for name, rows in facts.items():
        if rows:
            click.echo(f"per {name}")
            say_table(list(rows[0]), [list(row.values()) for row in rows])
            click.echo()
    if plot is not None:
        click.echo(f"plot in {plot}")


@click.command(context_settings=SETTINGS)
@click.argument("campaign", metavar="CAMPAIGN", type=WHERE)
@click.argument("expression", default="")
@click.option("--out", type=WHERE, metavar="FILE.extxyz", help="Write labelled structures.")
@click.option("--fidelity", metavar="NAME", help="Labels of this level of theory only.")
@click.option("--ref-keys", is_flag=True, help="Call them REF_energy, REF_forces, REF_stress.")
@click.option("--models", type=WHERE, metavar="FOLDER", help="Write the trained committee.")
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
@AS_JSON
def export(
    campaign: Path,
    expression: str,
    out: Path | None,
    fidelity: str | None,
    ref_keys: bool,
    models: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Export CAMPAIGN's labels or its committee.

    Labels become extended XYZ in eV, eV/Å and eV/Å³ (ASE's sign); EXPRESSION chooses them as in
    'alchemy data query'. The committee comes with its calibration and a model card.

    \b
    Example:
      alchemy export campaign.yaml --out pbe.extxyz --fidelity pbe
      alchemy export campaign.yaml "split == 'test'" --out test.extxyz
      alchemy export campaign.yaml --models urea-model
    """
    if out is None and models is None:
        raise click.UsageError("give --out FILE.extxyz for data, --models FOLDER for the committee")
    written: dict[str, object] = {}
    if out is not None:
        written |= {
            "data": str(out),
            "frames": _data(campaign, expression, out, fidelity, force=force, ref_keys=ref_keys),
        }
    if models is not None:
        from alchemy.cli_models import export_models

        card = export_models(find_home(campaign), models, force=force)
        written |= {"models": str(models), "round": card["round"], "members": len(card["files"])}
    if as_json:
        say_json(written)
        return
    if out is not None:
        click.echo(f"{count(int(str(written['frames'])), 'labelled structure')} in {out}")
    if models is not None:
        members = count(int(str(written["members"])), "member")
        click.echo(f"committee of {members}, round {written['round']}, in {models}")


def _data(
    campaign: Path,
    expression: str,
    out: Path,
    fidelity: str | None,
    *,
    force: bool,
    ref_keys: bool,
) -> int:
    from alchemy.errors import InputError
    from alchemy.store import Store, export_extxyz

    snapshot = Store(find_store(campaign)).snapshot()
    known = sorted({row.fidelity for row in snapshot.labels()})
    if fidelity is not None and fidelity not in known:
        raise InputError(f"no labels of '{fidelity}'; there are {', '.join(known) or 'none'}")
    if not out.resolve().parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}")
    return export_extxyz(
        snapshot, expression, out, fidelity=fidelity, overwrite=force, ref_keys=ref_keys
    )


for _command in (*cli_data_files.COMMANDS, *cli_data_store.COMMANDS, *cli_audit.COMMANDS):
    data.add_command(_command)

COMMANDS = (data, export)
