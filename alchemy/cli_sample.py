"""`alchemy sample`: one way of making structures, alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from alchemy.cli_paths import say_table
from alchemy.errors import InputError
from tace.cli_common import AS_JSON, SETTINGS, WHERE, say_json

KINDS = (
    "grow", "reico", "smiles", "bulk", "slab", "rattle", "strain", "substitute", "vacancy", "md",
    "basin-hopping",
)  # fmt: skip


@click.command(context_settings=SETTINGS)
@click.argument("kind", type=click.Choice(KINDS), metavar="KIND")
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("-o", "--out", type=WHERE, help="Extended XYZ file to write; none: the table only.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N")
@click.option(
    "--model", "models", multiple=True, type=WHERE, metavar="FILE",
    help="Model files or a folder of member-*.pt: explore with this committee.",
)  # fmt: skip
@click.option("--fidelity", metavar="NAME", help="Level of the model; default: its last.")
@click.option(
    "--labeler", metavar="YAML", help="What drives dynamics or relaxes, such as emt or '{labeler: tblite}'."
)
@click.option("--keys", is_flag=True, help="List the keys of KIND, and end.")
@AS_JSON
def sample(
    kind: str,
    settings: tuple[str, ...],
    out: Path | None,
    seed: int,
    models: tuple[Path, ...],
    fidelity: str | None,
    labeler: str | None,
    keys: bool,
    as_json: bool,
) -> None:
    """Make structures in one way, as a campaign would.

    KIND is grow or reico (random cells of all elements: ours, or by the published rules), smiles, bulk,
    slab, rattle, strain, substitute, vacancy, md or basin-hopping. KEY=VALUE are the keys of its block in
    a campaign file; --keys lists them. With --model, grow, reico, md and basin-hopping explore as in
    `explore:`; otherwise they make what they make in `start:`, md and basin-hopping with --labeler.
    A table says what came of it: distances, densities and, where they are known, forces.

    \b
    Example:
      alchemy sample grow count=40 'mix={Pd: 0-6, O: 0-3}' -o born.xyz
      alchemy sample slab formula=Pd 'facets=[111, 211]' 'adsorbates=[CO]' -o slabs.xyz
      alchemy sample md structures=slabs.xyz 'T=[300 K]' time='1 ps' --model final -o md.xyz
    """
    from alchemy.sampling import Order, keys_of, run

    order = Order(kind, _pairs(settings), seed, tuple(models), fidelity, labeler)
    if keys:
        rows = keys_of(order)
        if as_json:
            say_json(rows)
        else:
            say_table(("key", "default", "what it is"), [list(row.values()) for row in rows])
        return
    if out is not None and not out.resolve().parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}")
    found = run(order, out)
    if as_json:
        say_json(found)
        return
    say_table(("what", "value"), _rows(found))
    if out is not None:
        click.echo(f"{found['health']['structures']} structures in {out}")


def _pairs(settings: tuple[str, ...]) -> dict[str, Any]:
    from tace.documents import read_value

    found: dict[str, Any] = {}
    for text in settings:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise InputError(f"'{text}': write settings as KEY=VALUE, such as count=40")
        if key in found:
            raise InputError(f"{key}: given twice; keep one")
        try:
            found[key] = read_value(value)
        except ValueError as error:
            raise InputError(f"{key}: found '{value}', {error}; quote it as in a campaign file") from None
    return found


def _rows(found: dict[str, Any]) -> list[list[Any]]:
    health = found["health"]
    if not health["structures"]:
        return [["structures", 0], *_outcomes(found)]
    sizes, nearest, volume = health["atoms"], health["nearest_A"], health["volume_A3_per_atom"]
    forces = health.get("forces")
    rows: list[list[Any]] = [
        ["structures", health["structures"]],
        ["atoms, least to most (mean)", f"{sizes['least']} to {sizes['most']} ({sizes['mean']:.3g})"],
        ["elements", ", ".join(f"{s} {100 * x:.3g} %" for s, x in health["elements"].items())],
        ["nearest neighbour, Å", _spread(nearest)],
        ["closest pair / covalent radii", _short(health["least_ratio"])],
        ["structures with an atom alone (3 Å)", f"{100 * health['structures_with_isolated_atoms']:.3g} %"],
        ["volume, Å³ per atom, with vacuum", _spread(volume)],
    ]
    if forces is not None:
        rows.append(["forces, RMS (REICO set: 2.5), eV/Å", _short(forces["rms_eV_per_A"])])
        rows.append(["largest force, eV/Å", _short(forces["largest_eV_per_A"])])
    return [*rows, *_outcomes(found), ["CPU time, s", _short(found["cpu_s"])]]


def _outcomes(found: dict[str, Any]) -> list[list[Any]]:
    told = ", ".join(f"{name} {number}" for name, number in found["outcomes"].items())
    rows: list[list[Any]] = [["outcomes", told]] if told else []
    if found["force_calls"] is not None:
        rows.append(["structures evaluated", found["force_calls"]])
    return rows


def _spread(numbers: dict[str, float] | None) -> str | None:
    if numbers is None:
        return None
    low, middle, high = (_short(numbers[name]) for name in ("least", "p50", "most"))
    return f"{low} to {high}, median {middle}, 5-95 % {_short(numbers['p5'])}-{_short(numbers['p95'])}"


def _short(number: float | None) -> str | None:
    return None if number is None else f"{number:.3g}"


COMMANDS = (sample,)
