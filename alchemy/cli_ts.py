"""`alchemy ts`: look for the saddle between two structures, and check it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alchemy.cli_paths import say_table
from alchemy.errors import InputError
from tace.cli_common import AS_JSON, SETTINGS, THREADS, WHERE, say_json, threads

if TYPE_CHECKING:
    from alchemy_policies.calibration import Calibration
    from alchemy_policies.ts import Reaction, SearchResult
    from ase import Atoms

NOT_ALL_FOUND = 5
METHODS = ("neb", "neb+dimer", "neb+sella", "dimer", "sella")
_EXPLAINED = {
    "saddle": "one imaginary mode, and its ways down join the ends",
    "no-imaginary-mode": "the point is a minimum or a shoulder",
    "several-imaginary-modes": "the point is a saddle of higher order; more images may help",
    "members-disagree": "the members do not see the same mode; label structures along it",
    "irc-failed": "a way down reached no minimum",
    "rotation-only": "the mode only turns a group",
    "same-ends": "both ways down reach the same state",
    "other-ends": "a saddle, of another reaction than the named one",
    "duplicate": "found before, under another name",
    "disconnected": "no path can join the ends",
    "ends-collapse": "both ends relax into one minimum",
    "no-path": "atoms collide on every path; give --guess",
    "folded": "the path turned back on itself; use other images, or give --guess",
    "runaway": "the optimiser ran away",
    "not-converged": "out of steps",
    "label-stop": "the committee is not sure; label the structures that it stopped at",
    "abort": "the committee knows nothing of these structures",
}  # what the verdict means for the user


@click.command(context_settings=SETTINGS)
@click.argument("reactant", type=WHERE, required=False)
@click.argument("product", type=WHERE, required=False)
@click.option("--guess", type=WHERE, help="Structure near the saddle; alone, it is where the search begins.")
@click.option("--network", type=WHERE, metavar="YAML", help="File with a list of reactions.")
@click.option("--trajectory", type=WHERE, help="Frames in which bonds changed: each change is a reaction.")
@click.option(
    "--model", "models", type=WHERE, multiple=True, help="Model file, or folder of a committee (repeatable)."
)
@click.option("--fidelity", metavar="NAME", help="Level of the model. Default: its last.")
@click.option("--labeler", metavar="NAME", help="Search on a labeler instead: emt, tblite, pyscf, ase …")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Option of the labeler (repeatable)."
)
@click.option("--method", type=click.Choice(METHODS), default="neb+dimer", show_default=True)
@click.option("--images", type=click.IntRange(min=1), default=7, show_default=True, help="Between the ends.")
@click.option(
    "--fmax",
    type=click.FloatRange(min=0, min_open=True),
    default=0.02,
    show_default=True,
    metavar="eV/Å",
    help="Largest force at the saddle.",
)
@click.option(
    "--label-above",
    type=click.FloatRange(min=0, min_open=True),
    default=0.5,
    show_default=True,
    metavar="eV/Å",
    help="Expected error at which a committee's search stops; ten times as much ends it at once.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--out", type=WHERE, default=Path("ts-path.extxyz"), show_default=True, help="Paths and saddles."
)
@THREADS
@AS_JSON
def ts(reactant: Path | None, product: Path | None, out: Path, as_json: bool, **options: Any) -> None:
    """Find the transition state between REACTANT and PRODUCT.

    Both list the same atoms in the same order. Without PRODUCT a saddle near REACTANT is looked for, in
    a random direction. Structures are any files that ASE reads; 'file@3' is a frame of one.

    A saddle counts when it has one imaginary mode, on which the members of a committee agree, and when
    the ways down from it reach the two ends. Imaginary frequencies are printed with an i.

    \b
    Example:
      alchemy ts start.xyz end.xyz --model models/ --out path.extxyz
      alchemy ts start.xyz end.xyz --labeler tblite --set method=GFN2-xTB
      alchemy ts --network reactions.yaml --model models/ --json

    Exit code 0: every reaction has its saddle; 5: not all.
    """
    _refuse_unclear(reactant, product, options)
    if not out.resolve().parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}")
    threads(options["threads"])
    from alchemy.ts_runs import committee_sessions, labeler_sessions

    reactions = _reactions(reactant, product, options)
    if options["models"]:
        factory, calibration = committee_sessions(options["models"], options["fidelity"])
    else:
        factory, calibration = labeler_sessions(options["labeler"], options["settings"])
    rows, frames = [], []
    for row, result in _searches(reactions, factory, calibration, options):
        rows.append(row)
        frames += [] if result is None else _frames(result)
        if not as_json:
            _say(row)
    if frames:
        _write(frames, out)
    if as_json:
        say_json({"out": str(out) if frames else None, "reactions": rows})
    else:
        _say_all(rows, str(out) if frames else "")
    known = all(row["outcome"] in ("saddle", "duplicate") for row in rows)
    click.get_current_context().exit(0 if known else NOT_ALL_FOUND)


def _refuse_unclear(reactant: Path | None, product: Path | None, options: dict[str, Any]) -> None:
    ends = reactant is not None or options["guess"] is not None
    sources = [ends, options["network"] is not None, options["trajectory"] is not None]
    if sum(sources) != 1:
        raise click.UsageError("give REACTANT and PRODUCT (or --guess), or --network, or --trajectory")
    if bool(options["models"]) == (options["labeler"] is not None):
        raise click.UsageError("give --model or --labeler: one of them is the surface")
    if options["settings"] and options["labeler"] is None:
        raise click.UsageError("--set belongs to --labeler")
    if options["fidelity"] and not options["models"]:
        raise click.UsageError("--fidelity belongs to --model")
    if product is not None and reactant is None:
        raise click.UsageError("PRODUCT needs REACTANT")


def _reactions(reactant: Path | None, product: Path | None, options: dict[str, Any]) -> list[Reaction]:
    from alchemy.reactions import ReactionFiles, from_trajectory, load, read_network

    here = Path()
    if options["network"] is not None:
        network: Path = options["network"]
        return [load(entry, network.resolve().parent) for entry in read_network(network)]
    if options["trajectory"] is not None:
        return from_trajectory(options["trajectory"])
    named = [None if p is None else str(p) for p in (reactant, product, options["guess"])]
    name = (reactant or options["guess"]).stem + (f"-{product.stem}" if product is not None else "")
    return [load(ReactionFiles(name, *named), here)]


def _searches(
    reactions: Sequence[Reaction], factory: Any, calibration: Calibration, options: dict[str, Any]
) -> Any:
    """Yields the report and the result of each reaction; a mistake in one does not hide the others."""
    import numpy as np
    from alchemy_policies import PolicyError
    from alchemy_policies.ts import SearchOptions, Surface, TransitionStates, checked, search, summary

    above = options["label_above"]
    explorer = TransitionStates(
        label_above_eV_per_A=above,
        abort_above_eV_per_A=10 * above,
        search=SearchOptions(
            method=options["method"],
            images=options["images"],
            fmax_eV_per_A=options["fmax"],
            neb_fmax_eV_per_A=max(0.15, options["fmax"]),
        ),
    )
    known: list[Any] = []
    for reaction, rng in zip(
        reactions, np.random.default_rng(options["seed"]).spawn(len(reactions)), strict=True
    ):
        try:
            ready = checked(reaction)
        except PolicyError as problem:
            if len(reactions) == 1:
                raise
            yield {"name": reaction.name, "outcome": "disconnected", "message": str(problem)}, None
            continue
        surface = Surface(ready.reactant, factory, calibration)
        twins = [s for numbers, s in known if numbers == list(ready.reactant.numbers)]
        result = search(
            surface, ready, options=explorer.search, limits=explorer.limits, rng=rng, known=twins
        )
        if result.saddle is not None and result.found:
            known.append((list(ready.reactant.numbers), result.saddle))
        yield summary(result), result


def _frames(result: SearchResult) -> list[Atoms]:
    """The path over the saddle, or the band where there is no saddle, with energies."""
    from ase.calculators.singlepoint import SinglePointCalculator

    saddle, band = result.saddle, result.band
    if saddle is not None and saddle.path_A is not None and saddle.path_eV is not None:
        positions, energies, kind = saddle.path_A, saddle.path_eV, "irc"
    elif band is not None:
        positions, energies, kind = band.positions_A, band.energies_eV, "band"
    else:
        return []
    frames = []
    top = -1 if saddle is None else int((abs(positions - saddle.positions_A).max((1, 2))).argmin())
    for n, (x, energy) in enumerate(zip(positions, energies, strict=True)):
        atoms = result.reaction.reactant.copy()
        atoms.set_constraint()
        atoms.positions = x
        atoms.info = {key: atoms.info[key] for key in ("charge", "multiplicity") if key in atoms.info}
        atoms.info.update(reaction=result.reaction.name, path=kind, saddle=bool(n == top))
        if math.isfinite(energy):
            atoms.calc = SinglePointCalculator(atoms, energy=float(energy))
        frames.append(atoms)
    return frames


def _write(frames: Sequence[Atoms], out: Path) -> None:
    """The file appears at once and complete."""
    from ase.io import write

    draft = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        write(draft, list(frames), format="extxyz")
        os.replace(draft, out)
    finally:
        draft.unlink(missing_ok=True)


def frequency(value: float) -> str:
    """'1425i' for −1425 cm⁻¹."""
    return f"{abs(value):.0f}i" if value < 0 else f"{value:.0f}"


def _say(row: dict[str, Any]) -> None:
    """What was checked, in words."""
    outcome = row["outcome"]
    meaning = row.get("message") or _EXPLAINED.get(outcome, "a guard stopped the search")
    click.echo(f"{row['name']}: {outcome} ({meaning})")
    if "imaginary_modes" not in row:
        return
    lowest = ", ".join(frequency(f) for f in row["lowest_frequencies_per_cm"])
    click.echo(f"  modes: {row['imaginary_modes']} imaginary; lowest {lowest} cm⁻¹")
    if row["members"] > 1:
        curved = row["member_curvatures_eV_per_A2"]
        click.echo(
            f"  members: {row['members']}, curvature along the mode {min(curved):.2f} to {max(curved):.2f} "
            f"eV/Å², least overlap of modes {row['least_overlap']:.2f}"
        )
    if row["expected_error_eV_per_A"] is not None:
        click.echo(f"  expected force error at the saddle: {1e3 * row['expected_error_eV_per_A']:.0f} meV/Å")


def _say_all(rows: Sequence[dict[str, Any]], out: str) -> None:
    heads = ("reaction", "outcome", "barrier eV", "reverse eV", "imaginary cm⁻¹", "force calls")
    table = []
    for row in rows:
        lowest = row.get("lowest_frequencies_per_cm", [])
        imaginary = frequency(lowest[0]) if lowest and lowest[0] < 0 else "–"
        barriers = [
            "–" if row.get(key) is None else f"{row[key]:.3f}" for key in ("barrier_eV", "reverse_barrier_eV")
        ]
        table.append([row["name"], row["outcome"], *barriers, imaginary, row.get("force_calls", 0)])
    say_table(heads, table)
    if out:
        click.echo(f"paths in {out}")


COMMANDS = (ts,)
