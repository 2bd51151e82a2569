"""`tace eval`, `tace predict` and `tace info`: what models say, and what is known of them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tace.cli_common import (
    AS_JSON,
    SETTINGS,
    THREADS,
    WHERE,
    key_places,
    load_models,
    may_write,
    say_json,
    sorted_out,
    threads,
)
from tace.errors import DataError, TaceError

if TYPE_CHECKING:
    from ase import Atoms

    from tace.data import Labelled
    from tace.model import Tace

FORCE = click.option("--force", is_flag=True, help="Overwrite a file that exists.")
FIDELITY = click.option(
    "--fidelity", metavar="NAME", help="Level of theory; by default that of the frames, or the model's last."
)


KEYS = click.option(
    "--key",
    "keys",
    multiple=True,
    metavar="NAME=KEY[:UNIT]",
    help="Where a label or a condition stands, and its unit.",
)


@click.command("eval", context_settings=SETTINGS)
@click.argument("paths", nargs=-1, required=True, type=WHERE, metavar="MODEL... DATA...")
@FIDELITY
@KEYS
@click.option("--plot", type=WHERE, metavar="FILE", help="Write a parity plot.")
@FORCE
@THREADS
@AS_JSON
def evaluate(
    paths: tuple[Path, ...], fidelity: str | None, plot: Path | None, **options: Any
) -> None:
    """Errors of a model on labelled structures, for every quantity that both have.

    Several models (or a folder of member-*.pt) are compared as a committee, by their mean. RMSE and MAE
    are over components; energies are per atom.

    \b
    Examples:
      tace eval model.pt test.extxyz --plot parity.png
      tace eval a.pt b.pt test.extxyz --fidelity dft --key energy=E_total:Ha
    """
    models_at, data = sorted_out(paths, wanted="a file of labelled structures")
    if plot is not None:
        may_write(plot, force=options["force"])
    threads(options["threads"])
    models = load_models(models_at)
    frames = _labelled(data, options["keys"], models[0], fidelity=fidelity)
    from tace.comparison import compare, error_rows
    from tace.tables import aligned

    table = compare(models, frames)
    if plot is not None:
        from tace.plots import parity

        parity(plot, table)
    rows = error_rows(table)
    if options["as_json"]:
        say_json({"models": [str(p) for p in models_at], "frames": len(frames), "errors": rows})
        return
    if not rows:
        raise DataError(f"{data[0]}: no label that the model predicts")
    columns = ("fidelity", "quantity", "labels", "rmse", "mae", "unit")
    heads = ["fidelity", "quantity", "labels", "RMSE", "MAE", "unit"]
    click.echo("\n".join(aligned([heads, *([row[k] for k in columns] for row in rows)])))


@click.command(context_settings=SETTINGS)
@click.argument("paths", nargs=-1, required=True, type=WHERE, metavar="MODEL... INPUT")
@click.option("-o", "--output", type=WHERE, required=True, metavar="OUT.extxyz", help="File to write.")
@click.option(
    "--properties", default="energy,forces", show_default=True, metavar="A,B,…",
    help="Quantities to predict; 'tace info MODEL' lists them.",
)  # fmt: skip
@FIDELITY
@KEYS
@click.option("--index", default=":", show_default=True, metavar="I", help="Frames to take, as in ASE.")
@FORCE
@THREADS
def predict(paths: tuple[Path, ...], output: Path, fidelity: str | None, **options: Any) -> None:
    """Write what a model, or the mean of several, predicts for structures.

    Keys are TACE_energy, TACE_forces and so on, and of several models TACE_energy_spread and
    TACE_force_spread. Units are eV, Å, e and V (stress eV/Å³, order xx yy zz yz xz xy, positive under
    tension; dipole e·Å); TACE_units in every frame repeats them. Labels that the input has are kept.
    """
    models_at, inputs = sorted_out(paths, wanted="a file of structures")
    if len(inputs) > 1:
        raise click.UsageError(f"one file of structures at a time, not {len(inputs)}")
    may_write(output, force=options["force"])
    threads(options["threads"])
    models = load_models(models_at)
    from tace.properties import predict as predict_frames

    frames = _read_structures(inputs[0], options["index"], options["keys"], models[0])
    names = [name.strip() for name in options["properties"].split(",") if name.strip()]
    level = fidelity or models[0].config.fidelities[-1]
    found = predict_frames(models, frames, [level] * len(frames), names=names, spread=True)
    for atoms, values in zip(frames, found, strict=True):
        _put(atoms, values, models[0], level)
    _write(output, frames)
    click.echo(f"{len(frames)} structures with {', '.join(names)} at '{level}' in {output}")


@click.command(context_settings=SETTINGS)
@click.argument("model", type=WHERE)
@click.option("--check", is_flag=True, help="Recompute the self-test of the card; exit code 2 if it fails.")
@AS_JSON
def info(model: Path, check: bool, as_json: bool) -> None:
    """What a model is: elements, levels, quantities, training data, errors, settings and versions.

    --check repeats a prediction that was made when the model was written, and tells whether this machine
    gives the same numbers (within rounding: see the tolerances it prints).
    """
    from tace.card import check as run_check
    from tace.card import load_with_card

    loaded, card = load_with_card(model)
    result = run_check(loaded, card, where=str(model)) if check else None
    if as_json:
        say_json({**card, **({"check": result} if result else {})})
    else:
        lines = _card_lines(card)
        if loaded.edges.tables is not None:
            from tace.graphs import status

            lines += ["", f"graph       {status(loaded)}"]
        click.echo("\n".join(lines))
        if result:
            click.echo(_check_line(result))
    if result and not result["passed"]:
        raise TaceError(f"{model}: the self-test failed: {_check_line(result)}")


# ------------------------------------------------------------------ data
def _labelled(
    data: Sequence[Path], keys: Sequence[str], model: Tace, *, fidelity: str | None
) -> list[Labelled]:
    """Frames of the levels that are asked for; those that name none are at the level asked for."""
    from tace.readers import Source, read_dataset
    from tace.runfile_data import extra_quantities

    known = model.config.fidelities
    labels, conditions = key_places(keys, model.config.input_names)
    sources = [Source(path, keys=labels, inputs=conditions) for path in data]
    dataset = read_dataset(sources, extra=extra_quantities(model.config.heads))
    frames = [*dataset.frames, *dataset.test]
    level = fidelity or (known[0] if len(known) == 1 else None)
    if level is not None:
        frames = [f if f.fidelity != "default" else replace(f, fidelity=level) for f in frames]
    if fidelity is not None:
        frames = [f for f in frames if f.fidelity == fidelity]
    unknown = sorted({f.fidelity for f in frames} - set(known))
    if unknown or not frames:
        found = ", ".join(unknown) or "none of that name"
        raise DataError(
            f"{data[0]}: levels in the data: {found}; the model knows {', '.join(known)}; --fidelity says "
            "which one frames without a level are at"
        )
    return frames


def _read_structures(path: Path, index: str, keys: Sequence[str], model: Tace) -> list[Atoms]:
    """Frames with the conditions that the model reads under their own names."""
    from tace.keys import find_all, with_inputs
    from tace.quantities import INPUTS
    from tace.readers import read_frames

    frames = read_frames(path, index)
    labels, conditions = key_places(keys, model.config.input_names)
    if labels:
        raise click.UsageError(f"--key {next(iter(labels))}: a prediction needs no labels")
    known = {name: q for name, q in INPUTS.items() if name in (*model.config.input_names, *conditions)}
    found = find_all(frames, conditions, known, where=str(path))
    for n, atoms in enumerate(frames):
        bare = with_inputs(atoms, found, f"{path}, frame {n}")
        for name in found:
            for mine, given in ((atoms.info, bare.info), (atoms.arrays, bare.arrays)):
                mine.update({name: given[name]} if name in given else {})
    return frames


def _put(atoms: Atoms, values: Mapping[str, Any], model: Tace, level: str) -> None:
    """Predictions into `info` and `arrays`."""
    from tace.properties import scope_of, unit_of

    units = []
    for name, value in values.items():
        base = {"energy_spread": "energy", "force_spread": "forces"}.get(name, name)
        units.append(f"{name} {unit_of(base) or '-'}")
        if scope_of(base, model.config) == "atom" and name != "hessian":
            columns = value.reshape(len(atoms), -1)
            atoms.arrays[f"TACE_{name}"] = columns[:, 0] if columns.shape[1] == 1 else columns
        else:
            flat = value.reshape(-1)
            atoms.info[f"TACE_{name}"] = float(flat[0]) if flat.size == 1 else flat
    atoms.info["TACE_units"] = ", ".join(units)
    atoms.info["TACE_fidelity"] = level


def _write(path: Path, frames: Sequence[Atoms]) -> None:
    """Extended XYZ, in one step: a reader sees all of it or nothing."""
    from ase.io import write

    handle, temporary = tempfile.mkstemp(dir=path.resolve().parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            write(file, list(frames), format="extxyz")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


# ------------------------------------------------------------------ the card
def _card_lines(card: Mapping[str, Any]) -> list[str]:
    from tace.tables import aligned

    config = card["config"]
    size = f"{config['n_layers']} layers, {config['channels']} channels, l_max {config['l_max']}"
    lines = [
        f"elements    {' '.join(card['elements'])}",
        f"levels      {', '.join(card['fidelities'])} (the last is the default)",
        f"model       {card['parameters']} parameters, {card['dtype']}, "
        f"cutoff {card['cutoff_A']:g} Å; {size}",
        f"predicts    {', '.join(card['predicts'])}",
    ]
    tables = card["radial_tables"]
    if tables is not None:
        lines.append(
            f"compiled    radial tables, {tables.get('intervals', '?')} intervals, forces within "
            f"{tables.get('force_error_eV_per_A', float('nan')):.1e} eV/Å of the network"
        )
    if card["reads"]:
        lines.append(f"reads       {', '.join(card['reads'])}")
    lines += ["", "energies of isolated atoms (eV)"]
    symbols = card["elements"]
    table = [["level", *symbols]]
    e0 = card["e0_eV"]
    table += [[level, *(f"{own[s]:.6f}" for s in symbols)] for level, own in e0.items()]
    lines += [f"  {line}" for line in aligned(table)]
    if "date" not in card:
        return [*lines, "", "no card: the file was not written by 'tace train'"]
    training = card["training"]
    lines += ["", f"trained     {card['date']}, {training.get('steps', '?')} steps"]
    if training.get("cpu_s") is not None:
        lines.append(f"            {training['cpu_s']:.0f} s of CPU, {training['wall_s']:.0f} s in all")
    if training.get("started_from"):
        lines.append(f"            started from {training['started_from']}")
    lines.append(f"data        {card['data_hash'][:16] or 'unknown'}")
    for rows, title in ((card["labels"], "frames and labels"), (card["errors"], "errors")):
        if rows:
            lines += ["", title]
            lines += [f"  {line}" for line in aligned([list(rows[0]), *(list(r.values()) for r in rows)])]
    if card["settings"]:
        lines += ["", "settings", *(f"  {line}" for line in _flat(card["settings"]))]
    return [*lines, "", "versions    " + ", ".join(f"{k} {v}" for k, v in card["versions"].items())]


def _flat(value: Any, where: str = "") -> list[str]:
    """`train.steps: 500`, one line for each value that the run file gave."""
    if isinstance(value, dict):
        return [line for key, part in value.items() for line in _flat(part, f"{where}.{key}")]
    return [f"{where.removeprefix('.')}: {value if isinstance(value, str) else json.dumps(value)}"]


def _check_line(result: Mapping[str, Any]) -> str:
    verdict = "the same numbers" if result["passed"] else "other numbers"
    return (
        f"self-test   {verdict} ({result['dtype']}): energy off by "
        f"{result['energy_off_eV_per_atom']:.2g} eV/atom (tolerance "
        f"{result['energy_tolerance_eV_per_atom']:.2g}), forces by "
        f"{result['forces_off_eV_per_A']:.2g} eV/Å (tolerance {result['forces_tolerance_eV_per_A']:.2g})"
    )


COMMANDS = (evaluate, predict, info)
