"""`alchemy label`: label a file of structures with one level of theory of a campaign."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alchemy.cli_paths import find_campaign, say_table
from alchemy.errors import AlchemyError, EnvironmentProblemError, InputError
from tace.cli_common import AS_JSON, SETTINGS, WHERE, say_json
from tace.wording import count, hint

if TYPE_CHECKING:
    from alchemy.config import Campaign
    from alchemy.config_blocks import Run
    from alchemy.records import LabelRecord

NOTHING_LABELLED = 5


@click.command(context_settings=SETTINGS)
@click.argument("structures", type=WHERE)
@click.option("--campaign", "source", required=True, type=WHERE, help="Where the level is defined.")
@click.option("--with", "fidelity", required=True, metavar="FIDELITY", help="Level of theory.")
@click.option("--out", type=WHERE, default=Path("labels.extxyz"), show_default=True)
@click.option(
    "--store",
    type=WHERE,
    metavar="DIR",
    help="Folder of the label records; default: the output's name with .labels.",
)
@click.option(
    "--pyiron",
    type=WHERE,
    metavar="PROJECT_DIR",
    help="Make each label a job of the pyiron project in this folder, in place of --store.",
)
@AS_JSON
def label(
    structures: Path,
    source: Path,
    fidelity: str,
    out: Path,
    store: Path | None,
    pyiron: Path | None,
    as_json: bool,
) -> None:
    """Label STRUCTURES with a level of theory of a campaign.

    STRUCTURES is any file that ASE reads; the good labels are written as extended XYZ.
    Every label leaves a record in --store and is taken from there when the command runs again:
    after an interrupt, or with more structures. The campaign's run block says where it works.

    With --pyiron the labels are computed here, one after another, and the project keeps them; a
    pyiron session sees it with PYIRONCONFIG set to PROJECT_DIR/pyiron.conf. Where run.labels makes
    batch jobs of them, the project (default: the folder pyiron in --store) has those jobs.

    \b
    Example:
      alchemy label frames.xyz --campaign campaign.yaml --with pbe --out pbe.extxyz

    Exit code 0: all or some are labelled; 5: none is.
    """
    given = find_campaign(source)
    campaign = given.campaign
    if fidelity not in campaign.fidelities:
        raise InputError(f"no fidelity '{fidelity}'; {hint(fidelity, campaign.fidelity_names)}")
    if not out.resolve().parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}")
    if out.exists() and structures.exists() and out.samefile(structures):
        raise InputError(f"--out {out} is the file of the structures; give another name")
    batch = campaign.run.labels.of(fidelity).batch
    if store and pyiron and not batch:
        raise InputError("--pyiron keeps the records in its project; leave --store out")
    kept = store or out.with_suffix(".labels")
    root = (kept if batch else pyiron or kept).resolve()
    requests, which = _requests(campaign, fidelity, structures, root)
    if pyiron and not batch:
        unique = _run_as_jobs(requests, pyiron, quiet=as_json)
    else:
        project = (pyiron or root / "pyiron").resolve()
        unique = _run(
            requests, campaign.run, root, project=project, base_dir=campaign.base_dir, quiet=as_json
        )
    records = [unique[n] for n in which]
    good = [record for record in records if record.status == "ok"]
    if good:
        _write(good, out)
    _report(records, out, root, as_json=as_json)
    click.get_current_context().exit(0 if good else NOTHING_LABELLED)


def _report(records: list[LabelRecord], out: Path, root: Path, *, as_json: bool) -> None:
    """One row per frame, and what is where."""
    good = sum(record.status == "ok" for record in records)
    rows = [_row(n, record) for n, record in enumerate(records)]
    failed = Counter(record.reason for record in records if record.status != "ok")
    if as_json:
        path = str(out) if good else None
        say_json({"out": path, "records": str(root), "failed": dict(failed), "labels": rows})
    else:
        say_table(
            ("frame", "formula", "status", "energy eV", "max force eV/Å", "CPU s", "reason"),
            [list(row.values())[:-1] for row in rows],
        )
        for row in rows:
            if row["message"]:
                click.echo(f"frame {row['frame']}: {row['message']}")
        reasons = "".join(f", {n} failed: {reason}" for reason, n in failed.items())
        place = f" in {out}" if good else ""
        click.echo(f"{count(good, 'label')}{place}{reasons}; records in {root}")


def _requests(
    campaign: Campaign, fidelity: str, structures: Path, root: Path
) -> tuple[list[dict[str, Any]], list[int]]:
    """One request per structure, and each frame's; what is there twice is labelled once."""
    from alchemy.cli_structures import read_frames
    from alchemy.identity import label_key, structure_uid
    from alchemy.labelers.base import fingerprint, make_labeler
    from alchemy.records import atoms_to_document

    frames = read_frames(structures)
    strange = {s for a in frames for s in a.get_chemical_symbols()} - set(campaign.elements)
    if strange:
        raise InputError(
            f"{structures}: {', '.join(sorted(strange))} is not among the campaign's elements "
            f"({', '.join(campaign.elements)})"
        )
    chosen = campaign.fidelities[fidelity]
    labeler = make_labeler(chosen.labeler, chosen.options, base_dir=campaign.base_dir)
    mark = fingerprint(labeler)  # what is wrong with it is said here, not there
    unique = {structure_uid(atoms): atoms for atoms in frames}
    e0 = campaign.e0[fidelity] if isinstance(campaign.e0, dict) else None
    requests = [
        {
            "key": label_key(uid, fidelity, mark),
            "structure": atoms_to_document(atoms),
            "fidelity": fidelity,
            "labeler": chosen.labeler,
            "options": chosen.options,
            "base_dir": str(campaign.base_dir),
            "root": str(root),
            "gate": {},
            "e0_eV": e0 if len(atoms) > 1 else None,
        }
        for uid, atoms in unique.items()
    ]
    place = {uid: n for n, uid in enumerate(unique)}
    return requests, [place[structure_uid(atoms)] for atoms in frames]


def _run(
    requests: list[dict[str, Any]], where: Run, root: Path, *, project: Path, base_dir: Path, quiet: bool
) -> list[LabelRecord]:
    """The labels, where the run block says; Ctrl-C ends it cleanly."""
    from alchemy import tasks
    from alchemy.executors import Interrupt, make_executor, signals_caught, signals_ignored
    from alchemy.label_runners import JobLabels, LostLabelError
    from alchemy.progress import Progress

    root.mkdir(parents=True, exist_ok=True)
    found: dict[int, LabelRecord] = {}
    interrupt, progress = Interrupt(), Progress(sys.stderr)
    in_jobs = bool(requests) and where.labels.of(requests[0]["fidelity"]).batch
    with signals_caught(interrupt):
        with signals_ignored():
            executor = make_executor(
                _for_labels(where, 0 if in_jobs else len(requests)),
                home=root,
                base_dir=base_dir,
                interrupt=interrupt,
                waiting=progress.waiting,
            )
        runner = JobLabels(
            executor,
            where.labels,
            folder=project,
            base_dir=base_dir,
            say=progress.message,
            interrupt=interrupt,
        )
        with progress.stage("label", 0 if quiet else len(requests)) as bar:

            def done(index: int, result: dict[str, Any] | BaseException) -> None:
                if isinstance(result, LostLabelError):
                    found[index] = _lost(requests[index], result.reason, result.message)
                elif isinstance(result, AlchemyError):
                    raise result
                elif isinstance(result, BaseException):
                    raise EnvironmentProblemError(f"a label failed outside its code: {result!r}")
                else:
                    found[index] = tasks.read_label(root, result["results"][0]["key"])
                bar.note(found[index].reason or "ok")
                bar.advance()

            try:
                runner.run([{"requests": [request]} for request in requests], on_done=done)
            finally:
                executor.close()
    return [found[n] for n in range(len(requests))]


def _lost(request: dict[str, Any], reason: str, message: str) -> LabelRecord:
    """Stands for a label that no job has brought to an end; it is not written, so it can be tried again."""
    from alchemy.records import LabelRecord, atoms_from_document

    return LabelRecord(
        key="", structure_uid="", fidelity=request["fidelity"], fingerprint="", replica=0, attempt=1,
        status="failed", reason=reason, message=message, energy_eV=None, energy_kind=None,
        forces_eV_per_A=None, stress_eV_per_A3=None, dipole_eA=None, wall_s=0.0, cpu_s=0.0, code="",
        host="", created_utc="", atoms=atoms_from_document(request["structure"]), physics={},
    )  # fmt: skip


def _for_labels(where: Run, requests: int) -> Run:
    """The run block without what only models need; a single label needs no cluster."""
    if requests <= 1:
        return where.model_copy(update={"where": "inline"})
    if where.cluster is not None and where.cluster.cpu is not None:
        return where.model_copy(update={"cluster": where.cluster.model_copy(update={"gpu": None})})
    return where.model_copy(update={"gpus": 0})


def _run_as_jobs(
    requests: list[dict[str, Any]], project: Path, *, quiet: bool
) -> list[LabelRecord]:
    """The same as jobs of a pyiron project."""
    from alchemy.executors import Interrupt, signals_caught
    from alchemy.progress import Progress
    from alchemy.pyiron_jobs import label_as_jobs

    interrupt = Interrupt()
    stage = Progress(sys.stderr).stage("label", 0 if quiet else len(requests))
    with signals_caught(interrupt), stage as bar:

        def done(record: LabelRecord) -> None:
            bar.note(record.reason or "ok")
            bar.advance()
            interrupt.raise_if_set()

        return label_as_jobs(requests, project, on_done=done)


def _row(number: int, record: LabelRecord) -> dict[str, Any]:
    forces = record.forces_eV_per_A
    return {
        "frame": number,
        "formula": record.atoms.get_chemical_formula(),
        "status": record.status,
        "energy_eV": record.energy_eV,
        "max_force_eV_per_A": None if forces is None else float((forces**2).sum(1).max() ** 0.5),
        "cpu_s": round(record.cpu_s, 2),
        "reason": record.reason or None,
        "message": record.message or None,
    }


def _write(records: list[LabelRecord], out: Path) -> None:
    """Energy, forces and stress as ASE's results; the file appears at once and complete."""
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    frames = []
    for record in records:
        atoms = record.atoms.copy()
        results = {
            "energy": record.energy_eV,
            "forces": record.forces_eV_per_A,
            "stress": record.stress_eV_per_A3,
        }
        present = {name: value for name, value in results.items() if value is not None}
        atoms.calc = SinglePointCalculator(atoms, **present)
        atoms.info.update(fidelity=record.fidelity, label_key=record.key)
        frames.append(atoms)
    draft = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        write(draft, frames, format="extxyz")
        os.replace(draft, out)
    finally:
        draft.unlink(missing_ok=True)


COMMANDS = (label,)
