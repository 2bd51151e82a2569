"""`alchemy ts`: look for the saddle between two structures, and check it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alchemy.errors import InputError
from alchemy.ts_report import say, say_refined, say_searched
from tace.cli_common import AS_JSON, SETTINGS, THREADS, WHERE, say_json, threads

if TYPE_CHECKING:
    import numpy as np
    from alchemy_policies.ts import Reaction, Saddle, SearchResult, TransitionStates
    from alchemy_policies.ts.ends import Learnt
    from ase import Atoms

    from alchemy.ts_labels import Labels

NOT_ALL_FOUND = 5
METHODS = ("neb", "neb+dimer", "neb+sella", "dimer", "sella")
LABEL_ABOVE_eV_per_A, WITH_LABELS_eV_per_A = 0.5, 2.0  # as campaigns have it; as refine_saddle was measured
END_LABELS = 12


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
@click.option(
    "--labels",
    type=click.IntRange(min=1),
    metavar="N",
    help="Search on --model or --on, put right at most N labels of --labeler, until both agree.",
)
@click.option(
    "--end-labels",
    type=click.IntRange(min=0),
    metavar="N",
    help=f"Further labels of --labeler for both ends of a saddle that agreed. Default: {END_LABELS}.",
)
@click.option("--on", metavar="NAME", help="With --labels: search on this cheap labeler, such as tblite.")
@click.option(
    "--on-set", multiple=True, metavar="KEY=VALUE", help="Option of the cheap labeler (repeatable)."
)
@click.option(
    "--records", type=WHERE, metavar="DIR", help="Where --labels keeps them. Default: --out with .labels."
)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    help="Default: neb+dimer; with --labels neb+sella where Sella is installed.",
)
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
    metavar="eV/Å",
    help="Expected error at which a committee's search stops, from the 20th step of each of its parts on; "
    "ten times as much ends it without a second look. A saddle found before is told with its error. "
    f"Default: {LABEL_ABOVE_eV_per_A}, with --labels {WITH_LABELS_eV_per_A}.",
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

    With --labels the search goes on a cheap surface (--model, --on, or repelling atoms where neither is
    given) that is put right at some labels of --labeler, until both agree at the saddle (30 meV, 50
    meV/Å); then its ends are relaxed with labels. Labels are kept and not computed again.

    \b
    Example:
      alchemy ts start.xyz end.xyz --model models/ --out path.extxyz
      alchemy ts start.xyz end.xyz --labeler tblite --set method=GFN2-xTB
      alchemy ts start.xyz end.xyz --labels 12 --labeler pyscf --set method=PBE --on tblite
      alchemy ts --network reactions.yaml --model models/ --json

    Exit code 0: every reaction has its saddle; 5: not all.
    """
    _refuse_unclear(reactant, product, options)
    if not out.resolve().parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}")
    threads(options["threads"])
    reactions = _reactions(reactant, product, options)
    labels = None if options["labels"] is None else _labels(out, options)
    rows, frames = [], []
    for row, found in _searches(reactions, _surface(options), labels, options):
        rows.append(row)
        frames += found
        if not as_json:
            say(row)
    if frames:
        _write(frames, out)
    if as_json:
        records = {} if labels is None else {"records": str(labels.root)}
        say_json({"out": str(out) if frames else None, **records, "reactions": rows})
    else:
        written = str(out) if frames else ""
        if labels is None:
            say_searched(rows, written)
        else:
            say_refined(rows, written, str(labels.root))
    wanted = ("saddle", "duplicate") if labels is None else ("agreed",)
    known = all(row["outcome" if labels is None else "ended"] in wanted for row in rows)
    click.get_current_context().exit(0 if known else NOT_ALL_FOUND)


def _refuse_unclear(reactant: Path | None, product: Path | None, options: dict[str, Any]) -> None:
    ends = reactant is not None or options["guess"] is not None
    sources = [ends, options["network"] is not None, options["trajectory"] is not None]
    if sum(sources) != 1:
        raise click.UsageError("give REACTANT and PRODUCT (or --guess), or --network, or --trajectory")
    if options["labels"] is None:
        _refuse_without_labels(options)
    elif options["labeler"] is None:
        raise click.UsageError("--labels are of --labeler: name it")
    elif options["models"] and options["on"]:
        raise click.UsageError("give --model or --on: one of them is the surface")
    if options["on_set"] and options["on"] is None:
        raise click.UsageError("--on-set belongs to --on")
    if options["settings"] and options["labeler"] is None:
        raise click.UsageError("--set belongs to --labeler")
    if options["fidelity"] and not options["models"]:
        raise click.UsageError("--fidelity belongs to --model")
    if product is not None and reactant is None:
        raise click.UsageError("PRODUCT needs REACTANT")


def _refuse_without_labels(options: dict[str, Any]) -> None:
    if bool(options["models"]) == (options["labeler"] is not None):
        raise click.UsageError(
            "give --model or --labeler: one of them is the surface; both go with --labels"
        )
    for name in ("on", "end_labels", "records"):
        if options[name] is not None:
            raise click.UsageError(f"--{name.replace('_', '-')} belongs to --labels")


def _labels(out: Path, options: dict[str, Any]) -> Labels:
    from alchemy.ts_labels import Labels

    root = options["records"] or out.with_suffix(".labels")
    return Labels.of(options["labeler"], options["settings"], root, partial(click.echo, err=True))


def _surface(options: dict[str, Any]) -> Learnt | None:
    """What is searched on; None: what --labels alone tell."""
    from alchemy.ts_runs import committee_sessions, labeler_sessions

    if options["models"]:
        return committee_sessions(options["models"], options["fidelity"])
    if options["labels"] is None:
        return labeler_sessions(options["labeler"], options["settings"])
    return labeler_sessions(options["on"], options["on_set"]) if options["on"] else None


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


def _explorer(options: dict[str, Any]) -> TransitionStates:
    from alchemy_policies.ts import SearchOptions, TransitionStates

    above = options["label_above"]
    if above is None:
        above = LABEL_ABOVE_eV_per_A if options["labels"] is None else WITH_LABELS_eV_per_A
    return TransitionStates(
        label_above_eV_per_A=above,
        abort_above_eV_per_A=10 * above,
        search=SearchOptions(
            method=options["method"] or _method(with_labels=options["labels"] is not None),
            images=options["images"],
            fmax_eV_per_A=options["fmax"],
            neb_fmax_eV_per_A=max(0.15, options["fmax"]),
        ),
    )


def _method(*, with_labels: bool) -> str:
    """On a surface that is put right at labels Sella took 4 labels from a guess of HCN, the dimer 10."""
    return "neb+sella" if with_labels and find_spec("sella") else "neb+dimer"


def _searches(
    reactions: Sequence[Reaction], surface: Learnt | None, labels: Labels | None, options: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], list[Atoms]]]:
    """The report and the frames of each reaction; a mistake in one does not hide the others."""
    import numpy as np
    from alchemy_policies import PolicyError

    explorer = _explorer(options)
    known: list[tuple[list[int], Saddle]] = []
    streams = np.random.default_rng(options["seed"]).spawn(len(reactions))
    for reaction, rng in zip(reactions, streams, strict=True):
        try:
            if labels is None:
                assert surface is not None  # _refuse_unclear
                yield _searched(reaction, surface, explorer, rng, known)
            else:
                yield _refined(reaction, surface, labels, explorer, rng, options)
        except PolicyError as problem:
            if len(reactions) == 1:
                raise
            row = {"name": reaction.name, "outcome": "disconnected", "message": str(problem)}
            yield row if labels is None else {**row, "ended": "disconnected"}, []


def _searched(
    reaction: Reaction,
    learnt: Learnt,
    explorer: TransitionStates,
    rng: np.random.Generator,
    known: list[tuple[list[int], Saddle]],
) -> tuple[dict[str, Any], list[Atoms]]:
    from alchemy_policies.ts import Surface, checked, search, summary

    ready = checked(reaction)
    numbers = list(ready.reactant.numbers)
    twins = [saddle for of, saddle in known if of == numbers]
    result = search(
        Surface(ready.reactant, *learnt),
        ready,
        options=explorer.search,
        limits=explorer.limits,
        rng=rng,
        known=twins,
    )
    if result.saddle is not None and result.found:
        known.append((numbers, result.saddle))
    return summary(result), _frames(result)


def _refined(
    reaction: Reaction,
    first: Learnt | None,
    labels: Labels,
    explorer: TransitionStates,
    rng: np.random.Generator,
    options: dict[str, Any],
) -> tuple[dict[str, Any], list[Atoms]]:
    from alchemy.ts_labels import labelled_frames, refined

    ends = END_LABELS if options["end_labels"] is None else options["end_labels"]
    row, found = refined(
        reaction, explorer, labels, first=first, rng=rng, most=options["labels"], most_of_ends=ends
    )
    return row, labelled_frames(found)


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


COMMANDS = (ts,)
