"""`alchemy train`: one model or a committee from labelled structures, without a campaign."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alchemy.cli_paths import can_be_made, say_table
from alchemy.errors import EnvironmentProblemError, InputError
from tace.cli_common import AS_JSON, SETTINGS, WHERE, say_json
from tace.wording import count

if TYPE_CHECKING:
    from alchemy.cli_dataset import Dataset
    from tace.config import TaceConfig
    from tace.data import Labelled
    from tace.model import Tace

PRESETS = ("nano", "small", "medium", "large")
CHECKS = ("error", "warn", "off")


@click.command(context_settings=SETTINGS)
@click.option(
    "--data",
    "sources",
    multiple=True,
    required=True,
    type=WHERE,
    metavar="FILE|CAMPAIGN",
    help="Extended XYZ files (repeatable), or one campaign.",
)
@click.option("--out", type=WHERE, help="Model file; a folder for several members.")
@click.option("--preset", type=click.Choice(PRESETS), default="small", show_default=True)
@click.option("--members", type=click.IntRange(min=1), default=1, show_default=True, metavar="K")
@click.option("--steps", type=click.IntRange(min=1), default=2000, show_default=True, metavar="N")
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, metavar="N")
@click.option(
    "--cutoff", type=click.FloatRange(min=0, min_open=True), metavar="Å", help="Default: 5."
)
@click.option(
    "--valid-fraction",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.1,
    show_default=True,
    help="Share of structures kept out of training.",
)
@click.option(
    "--fidelity",
    "fidelities",
    multiple=True,
    metavar="NAME",
    help="Only this level (repeatable).",
)
@click.option("--fidelity-key", metavar="KEY", help="Info key with the level of a frame.")
@click.option("--energy-key", metavar="KEY", help="Default: REF_energy, else energy.")
@click.option("--forces-key", metavar="KEY", help="Default: REF_forces, else forces.")
@click.option("--stress-key", metavar="KEY", help="Default: REF_stress, else stress.")
@click.option(
    "--checks",
    type=click.Choice(CHECKS),
    default="error",
    show_default=True,
    help="If the labels have errors: stop, say so and go on (warn), or do not look (off).",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,  # a second busy core slows it 50 times, an idle one speeds it up by a fifth
    show_default=True,
    metavar="N",
    help="Cores to use; more help large models.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--force", is_flag=True, help="Overwrite a model that exists.")
@AS_JSON
def train(sources: tuple[Path, ...], out: Path | None, as_json: bool, **options: Any) -> None:
    """Train a model or a committee on labelled structures.

    Labels are in eV, eV/Å and eV/Å³ (stress with ASE's sign). One that a frame lacks is left out of
    the loss, never taken for zero. Single atoms that are not periodic give the energies of isolated
    atoms if every element has one; otherwise these are fitted. Labels are checked before training:
    errors (coincident atoms, forces that are not the slope of the energy) stop it, warnings do not.

    \b
    Example:
      alchemy train --data train.extxyz --preset nano --steps 500
      alchemy train --data dft.extxyz --energy-key REF_energy --members 4 --out models
      alchemy train --data campaign.yaml --preset medium --out medium.pt
    """
    members = options["members"]
    out = out or Path("model.pt" if members == 1 else "models")
    files = _files(out, members, force=options["force"])
    from alchemy.cli_dataset import read_dataset

    keys = {name: options[f"{name}_key"] for name in ("energy", "forces", "stress", "fidelity")}
    dataset = read_dataset(sources, keys, options["fidelities"])
    if not as_json:
        _say_labels(dataset)
    device = _device(options["device"], options["threads"])
    found = _check_labels(dataset, options["checks"], quiet=as_json)
    rows = _train(dataset, files, options, device)
    if as_json:
        models = [str(f) for f in files]
        say_json({"models": models, "labels": dataset.table(), "checks": found, "errors": rows})
        return
    heads = ("set", "level", "frames", "force RMSE", "force MAE", "energy RMSE", "stress RMSE")
    say_table(heads, [_milli(row) for row in rows])
    click.echo(
        "in meV/Å, meV/atom and meV/Å³" + (", of the committee's mean" if members > 1 else "")
    )
    click.echo(f"{count(members, 'model')} in {out}")


def _files(out: Path, members: int, *, force: bool) -> list[Path]:
    if members > 1 and (out.suffix == ".pt" or out.is_file()):
        raise click.UsageError(f"--out {out}: several members need a folder, such as --out models")
    if members == 1 and out.is_dir():
        raise click.UsageError(f"--out {out} is a folder; give a file such as {out / 'model.pt'}")
    files = [out] if members == 1 else [out / f"member-{k}.pt" for k in range(members)]
    there = [str(path) for path in files if path.exists()]
    if there and not force:
        raise InputError(f"{', '.join(there)} exists; --force overwrites")
    can_be_made(out)
    return files


def _device(name: str, threads: int) -> str:
    from tace import devices
    from tace.errors import TaceError

    try:
        return devices.use(name, threads)
    except TaceError as error:
        raise EnvironmentProblemError(f"--{error}") from None


def _say_labels(dataset: Dataset) -> None:
    for line in dataset.notes:
        click.echo(line)
    rows = dataset.table()
    heads = ("level", "frames", "with energy", "with forces", "with stress")
    say_table(heads, [list(row.values()) for row in rows])


def _check_labels(dataset: Dataset, checks: str, *, quiet: bool) -> list[dict[str, Any]] | None:
    """Say what is wrong with the labels, as `tace train` does; the findings, None if none were looked for.

    Raises:
        InputError: there are errors, and `checks` does not say to go on.
    """
    if checks == "off":
        return None
    from dataclasses import asdict

    from tace.checks import check_labels, summary

    findings = check_labels([*dataset.frames, *dataset.test])
    if not quiet:
        click.echo(summary(findings))
    errors = [f for f in findings if f.severity == "error"]
    if checks == "error" and errors:
        wrong = "\n".join(f"  {': '.join([f.message, *_first(f.frames)])}" for f in errors)
        raise InputError(
            f"the labels have errors:\n{wrong}\ncorrect them, or go on in spite of them with --checks warn"
        )
    return [asdict(f) for f in findings]


def _first(frames: Sequence[str]) -> list[str]:
    """The first few in one text; none for a finding about all frames together."""
    return [", ".join(frames[:5])] if frames else []


def _train(
    dataset: Dataset, files: list[Path], options: dict[str, Any], device: str
) -> list[dict[str, Any]]:
    """Train every member; rows of errors of the committee."""
    from alchemy.datasets import split_validation
    from alchemy.identity import seed_for
    from tace.committee import Committee
    from tace.reference import statistics

    config = _config(dataset, options)
    inside, outside = split_validation(
        dataset.uids,
        fraction=options["valid_fraction"],
        seed=seed_for(options["seed"], "split"),
    )
    facts = statistics(dataset.frames, config, dataset.e0_eV)
    for note in facts.notes:
        click.echo(f"warning: {note}", err=True)
    parts = {
        "train": [dataset.frames[n] for n in inside],
        "validation": [dataset.frames[n] for n in outside],
        "test": dataset.test,
    }
    models = []
    for member, path in enumerate(files):
        seed = seed_for(options["seed"], "train", member)
        models.append(_member(config, facts, parts, options, path=path, seed=seed, device=device))
    committee = Committee(models)
    return [row for name, frames in parts.items() for row in _errors(committee, name, frames)]


def _config(dataset: Dataset, options: dict[str, Any]) -> TaceConfig:
    from dataclasses import replace

    from tace.config import preset
    from tace.reference import mean_neighbors

    config = preset(
        options["preset"],
        elements=dataset.elements,
        fidelities=dataset.fidelities,
        cutoff_A=options["cutoff"] or dataset.cutoff_A,
    )
    return replace(config, avg_neighbors=mean_neighbors(dataset.frames, config))


def _member(
    config: TaceConfig,
    facts: Any,
    parts: dict[str, list[Labelled]],
    options: dict[str, Any],
    *,
    path: Path,
    seed: int,
    device: str,
) -> Tace:
    """One model, written to `path`; an interrupted training continues from its checkpoint."""
    import json

    from alchemy.cli_dataset import digest
    from alchemy.progress import Progress
    from tace.data import make_samples
    from tace.io import save_model
    from tace.model import Tace
    from tace.reference import set_statistics
    from tace.train import TrainSettings, fit

    model = Tace(config, seed=seed)
    set_statistics(model, facts)
    model.to(device)
    settings = TrainSettings(
        steps=options["steps"],
        batch_size=options["batch"],
        validate_every=max(1, min(200, options["steps"] // 5)),
        seed=seed % 2**32,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = digest(parts["train"] + parts["validation"])[:12]
    checkpoint = path.with_name(f".{path.name}.{mark}.checkpoint")
    with Progress(sys.stderr).stage(f"train {path.name}", options["steps"]) as bar:

        def on_step(step: int, loss: float) -> bool:
            bar.advance()
            return True

        result = fit(
            model,
            make_samples(parts["train"], config),
            make_samples(parts["validation"], config),
            settings=settings,
            checkpoint=checkpoint,
            on_step=on_step,
        )
    training = {"steps": result.steps, "best_step": result.best_step, "seed": seed}
    save_model(path, model, {"training": json.dumps(training)})
    checkpoint.unlink(missing_ok=True)
    return model


def _errors(committee: Any, part: str, frames: list[Labelled]) -> list[dict[str, Any]]:
    from tace.comparison import errors

    rows = []
    for fidelity in committee.fidelities:
        own = [frame for frame in frames if frame.fidelity == fidelity]
        if not own:
            continue
        stress = all(f.stress_eV_per_A3 is not None and f.atoms.pbc.all() for f in own)
        prediction = committee(
            [f.atoms for f in own], fidelity=fidelity, member_forces=False, stress=stress
        )
        found = errors(own, prediction).to_json()
        rows.append({"set": part, "fidelity": fidelity, **found})
    return rows


def _milli(row: dict[str, Any]) -> list[Any]:
    names = (
        "force_rmse_eV_per_A",
        "force_mae_eV_per_A",
        "energy_rmse_eV_per_atom",
        "stress_rmse_eV_per_A3",
    )
    small = [None if row[n] is None else float(f"{1e3 * row[n]:.3g}") for n in names]
    return [row["set"], row["fidelity"], row["frames"], *small]


COMMANDS = (train,)
