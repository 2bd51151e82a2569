"""`alchemy data export` and `alchemy data import`: a store and the files of other programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from alchemy.cli_paths import find_campaign, find_store, is_home, open_snapshot
from tace.cli_common import AS_JSON, SETTINGS, WHERE, key_places, say_json
from tace.wording import count

FORMATS = ("extxyz", "ase-db", "parquet", "pymatgen")


@click.command("export", context_settings=SETTINGS)
@click.argument("source", metavar="CAMPAIGN-OR-STORE", type=WHERE)
@click.argument("out", metavar="FILE", type=WHERE)
@click.option("--where", "expression", default="", metavar="EXPRESSION", help="As in 'alchemy data query'.")
@click.option("--fidelity", metavar="NAME", help="Labels of this level of theory only.")
@click.option("--format", "form", type=click.Choice(FORMATS), help="Default: that of the suffix.")
@click.option("--ref-keys", is_flag=True, help="Call labels REF_energy, REF_forces, …")
@click.option("--as-of", type=click.IntRange(min=0), metavar="N", help="The store after commit N.")
@click.option("--salvage", is_flag=True, help="Of a damaged store, what is sound.")
@click.option("--force", is_flag=True, help="Overwrite a file that exists.")
@AS_JSON
def export_command(
    source: Path,
    out: Path,
    expression: str,
    fidelity: str | None,
    form: str | None,
    ref_keys: bool,
    as_of: int | None,
    salvage: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write good labels to FILE.

    .xyz and .extxyz (ASE's extended XYZ), .db (ASE database), .parquet (needs pyarrow), .json
    (pymatgen). Units are eV, eV/Å, eV/Å³ with ASE's sign; all other labels and the conditions of a
    label come along.

    \b
    Example:
      alchemy data export campaign.yaml train.extxyz --where "split == 'train'" --fidelity pbe
      alchemy data export urea/store.h5 all.db
    """
    from alchemy.dataset_export import export, format_of
    from alchemy.errors import InputError
    from tace.wording import hint

    snapshot = open_snapshot(source, as_of, salvage=salvage)
    known = sorted({row.fidelity for row in snapshot.labels()})
    if fidelity is not None and fidelity not in known:
        raise InputError(f"no labels of '{fidelity}'; {hint(fidelity, known, label='there are')}")
    options = {"fidelity": fidelity, "overwrite": force, "ref_keys": ref_keys}
    number = export(snapshot, expression, out, form=format_of(out, form), **options)  # type: ignore[arg-type]
    if as_json:
        say_json({"data": str(out), "frames": number, "commit": snapshot.last})
    else:
        click.echo(f"{count(number, 'labelled structure')} in {out}")


@click.command("import", context_settings=SETTINGS)
@click.argument("target", metavar="CAMPAIGN-OR-STORE", type=WHERE)
@click.argument("files", metavar="FILE…", type=WHERE, nargs=-1, required=True)
@click.option("--fidelity", metavar="NAME", help="Level of theory of all frames.")
@click.option("--fidelity-key", metavar="KEY", help="Info key with the level of a frame.")
@click.option(
    "--key", "keys", multiple=True, metavar="NAME=KEY[:UNIT]", help="Where a label or condition stands."
)
@click.option(
    "--label",
    "heads",
    multiple=True,
    metavar="NAME:SCOPE:RANK[:UNIT]",
    help="A further tensor, of structure or atom.",
)
@click.option("--index", default=":", metavar="SLICE", help="Frames to take, such as ::10.")
@click.option("--part", metavar="NAME", help="Put the structures into train, test, …")
@click.option("--skip-unconverged", is_flag=True, help="Leave out calculations that did not converge or end.")
@click.option("--skip-rejected", is_flag=True, help="Leave out frames whose labels cannot be right.")
@AS_JSON
def import_command(
    target: Path,
    files: Sequence[Path],
    fidelity: str | None,
    fidelity_key: str | None,
    keys: Sequence[str],
    heads: Sequence[str],
    index: str,
    part: str | None,
    skip_unconverged: bool,
    skip_rejected: bool,
    as_json: bool,
) -> None:
    """Read labelled structures from FILEs into a store; a store that does not exist is made.

    Whatever ASE reads: extended XYZ, ASE databases, vasprun.xml, OUTCAR, outputs of pw.x, …; single
    calculations of CP2K in orthorhombic cells. Outputs of VASP, Quantum ESPRESSO and CP2K that did not
    converge or end are refused, and so are labels that cannot be right: NaN, forces of fixed atoms
    that were written as zero, an impossible multiplicity, another label of a structure that is there
    (docs/trust.md). A label that is there already is not read again. Without --key a label is
    looked for under REF_<name>, then <name>. VASP's "energy" is the one extrapolated to zero
    smearing; --key energy=free_energy takes the one that the forces belong to.

    \b
    Example:
      alchemy data import campaign.yaml aimd.extxyz --fidelity pbe --part train
      alchemy data import set.h5 */vasprun.xml --fidelity pbe --key energy=free_energy
      alchemy data import set.h5 qm.xyz --fidelity ccsd --key energy=E:Ha --key forces=F:Ha/Bohr
    """
    from alchemy.dataset_import import import_files
    from alchemy.store import Store
    from tace.readers import Source

    store, levels = _target(target)
    extra = dict(_head(text) for text in heads)
    labels, conditions = key_places(keys)
    how = {"keys": labels, "inputs": conditions, "fidelity_key": fidelity_key}
    sources = [Source(path, fidelity=fidelity, index=index, **how) for path in files]  # type: ignore[arg-type]
    found = import_files(
        Store(store),
        sources,
        part=part,
        levels=levels,
        extra=extra,
        skip_unconverged=skip_unconverged,
        skip_rejected=skip_rejected,
    )
    if as_json:
        own: dict[str, Any] = {**vars(found), "labels": dict(found.labels), "store": str(store)}
        say_json(own)
        return
    for note in found.notes:
        click.echo(note)
    new = ", ".join(f"{n} of {name}" for name, n in found.labels.items()) or "none"
    structures = count(found.structures, "new structure")
    click.echo(f"{store}: {structures}; new labels: {new}; known already: {found.known}")


def _target(path: Path) -> tuple[Path, list[str] | None]:
    """The store, and the levels that a campaign allows."""
    if path.suffix in (".h5", ".d"):
        return (find_store(path) if path.exists() else new_store(path)), None
    given = find_campaign(path)
    home = path if is_home(path) else given.home
    home.mkdir(parents=True, exist_ok=True)
    return home / "store.h5", list(given.campaign.fidelity_names)


def new_store(path: Path) -> Path:
    from alchemy.errors import InputError

    if not path.resolve().parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    return path


def _head(text: str) -> tuple[str, Any]:
    from tace.keys import quantity_of_head

    name, _, rest = text.partition(":")
    scope, _, rest = rest.partition(":")
    rank, _, unit = rest.partition(":")
    if scope not in ("structure", "atom") or not rank.isdigit():
        raise click.UsageError(f"--label {text}: write it as quadrupole:atom:2:e*A^2")
    return name, quantity_of_head(name, scope, int(rank), unit)


COMMANDS = (export_command, import_command)
