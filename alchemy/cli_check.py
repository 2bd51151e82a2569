"""What `alchemy check` finds beyond the file itself, and what `alchemy run` says at its end."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alchemy.config import Campaign, campaign_warnings
from alchemy.errors import AlchemyError, InputError
from tace.wording import count

if TYPE_CHECKING:
    from ase import Atoms

    from alchemy.campaign import Outcome
    from alchemy.config_samples import Sample


@dataclass
class Findings:
    """Problems prevent a run, warnings do not."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    structures: list[dict[str, Any]] = field(default_factory=list)
    fidelities: dict[str, dict[str, str]] = field(default_factory=dict)
    exit_code: int = 0

    def blame(self, error: AlchemyError, where: str = "") -> None:
        """Add a problem; bad input outranks a missing program."""
        self.problems.append(f"{where}{error}")
        self.exit_code = error.exit_code if self.exit_code in (0, 3) else self.exit_code

    def document(self) -> dict[str, Any]:
        return {"ok": not self.problems, **vars(self)}


def examine(campaign: Campaign) -> Findings:
    """Read every structure file, make every labeler, find every plug-in."""
    findings = Findings(warnings=campaign_warnings(campaign))
    frames = _read_structures(campaign, findings)
    _volumes_for_npt(campaign, findings)
    _read_reactions(campaign, findings)
    _make_labelers(campaign, findings, frames)
    _find_plugins(campaign, findings)
    present = {symbol for atoms in frames for symbol in atoms.get_chemical_symbols()}
    absent = [symbol for symbol in campaign.elements if symbol not in present]
    if absent and frames and not findings.problems:
        findings.warnings.append(
            f"elements: no start or test structure holds {', '.join(absent)}; the potential will "
            "know nothing of it"
        )
    return findings


def _files(campaign: Campaign) -> Iterator[tuple[Path, str]]:
    for sample in (*campaign.start, *campaign.test):
        yield from _sources(sample)
    for item in campaign.explore:
        structures = getattr(item.block, "structures", None)
        if isinstance(structures, Path):
            yield structures, ":"


def _sources(sample: Sample) -> Iterator[tuple[Path, str]]:
    if sample.files is not None:
        yield from ((path, sample.files.index) for path in sample.files.paths)
    elif getattr(sample.source, "structures", None) is not None:
        yield sample.source.structures, ":"


def _read_structures(campaign: Campaign, findings: Findings) -> list[Atoms]:
    from alchemy.builders.preview import summary
    from alchemy.generate import read_structures

    frames: list[Atoms] = []
    for path, index in dict.fromkeys(_files(campaign)):
        try:
            found = read_structures(campaign.resolve(path), index, campaign.elements)
        except AlchemyError as error:
            findings.blame(error)
            continue
        frames += found
        findings.structures.append({"path": str(path), **summary(found)})
    frames += _build_structures(campaign, findings)
    wires = [a for a in frames if int(a.pbc.sum()) == 1]
    if wires and campaign.model.les:
        findings.blame(
            InputError(
                f"model.les: {wires[0].get_chemical_formula()} is periodic along one axis only, which latent "
                "Ewald summation does not treat; give it vacuum and three periodic axes, or set les: false"
            )
        )
    return frames


def _build_structures(campaign: Campaign, findings: Findings) -> list[Atoms]:
    """What is made from descriptions, as far as no labeler is needed; of random ones a few."""
    from alchemy.builders.build import BUILDERS
    from alchemy.builders.preview import look_for_slabs, preview

    frames: list[Atoms] = []
    for block in ("start", "test"):
        for number, sample in enumerate(getattr(campaign, block)):
            if sample.kind not in BUILDERS:
                continue
            try:
                found, shown = preview(campaign, sample)
            except AlchemyError as error:
                mark = "." if str(error).startswith(sample.kind) else ": "
                findings.blame(error, f"{block}[{number}]{mark}")
                continue
            frames += found
            if found:
                findings.structures.append({"path": f"{block}[{number}].{sample.kind}", **shown})
    for number, item in enumerate(campaign.explore):
        if item.reico is not None:
            try:
                look_for_slabs(campaign, item.reico)
            except AlchemyError as error:
                findings.blame(error, f"explore[{number}].")
    return frames


def _volumes_for_npt(campaign: Campaign, findings: Findings) -> None:
    """A file must hold nothing but periodic structures; of the training set those that are will be taken."""
    from alchemy_policies.guards import is_slab

    from alchemy.builders.build import BUILDERS
    from alchemy.generate import read_structures

    for number, item in enumerate(campaign.explore):
        if item.md is None or item.md.ensemble != "npt" or findings.problems:
            continue
        named = item.md.structures
        if isinstance(named, Path):
            files = [(named, ":")]
        else:
            asked = [s for s in campaign.start if campaign.target in s.label]
            if any(s.kind in BUILDERS for s in asked):
                continue  # most of them are periodic; a round says what it finds
            files = [file for sample in asked for file in _sources(sample)]
        frames = [
            atoms
            for path, index in files
            for atoms in read_structures(campaign.resolve(path), index, campaign.elements)
        ]
        flat = [atoms for atoms in frames if not atoms.pbc.all() or is_slab(atoms)]
        if flat and (isinstance(named, Path) or len(flat) == len(frames)):
            formula = flat[0].get_chemical_formula()
            found = f"{named} holds" if isinstance(named, Path) else "start has only such as"
            findings.blame(
                InputError(
                    f"explore[{number}].md.ensemble: npt needs structures that are periodic along three "
                    f"axes, without a vacuum, and {found} {formula}; name others with structures:, or "
                    "choose nvt"
                )
            )


def _read_reactions(campaign: Campaign, findings: Findings) -> None:
    if any(item.ts is not None for item in campaign.explore):
        from alchemy.reactions import examined

        for error in examined(campaign):
            findings.blame(error, "explore: ts: ")


def _make_labelers(campaign: Campaign, findings: Findings, frames: Sequence[Atoms]) -> None:
    from alchemy.labelers.base import fingerprint, make_labeler, require_elements

    periodic = any(bool(atoms.pbc.any()) for atoms in frames)
    for name, fidelity in campaign.fidelities.items():
        try:
            labeler = make_labeler(fidelity.labeler, fidelity.options, base_dir=campaign.base_dir)
            require_elements(labeler, campaign.elements)
            findings.fidelities[name] = {
                "labeler": fidelity.labeler,
                "code": labeler.code(),
                "fingerprint": fingerprint(labeler),
            }
        except AlchemyError as error:
            findings.blame(error, f"fidelities.{name}: ")
            continue
        if periodic and not labeler.periodic:
            findings.warnings.append(
                f"fidelities.{name}: '{fidelity.labeler}' treats molecules only, and there are "
                "periodic structures: their labels will fail"
            )


def _find_plugins(campaign: Campaign, findings: Findings) -> None:
    from alchemy.plugins import construct, find

    wanted = [("selectors", campaign.select.method)]
    wanted += [("explorers", item.kind) for item in campaign.explore]
    for kind, name in dict.fromkeys(wanted):
        try:
            find(kind, name)
        except AlchemyError as error:
            findings.blame(error)
            return
    from alchemy.selection import make_selector
    from alchemy.stopping import stop_rules

    made: list[tuple[str, Callable[[], object]]] = [
        (f"explore[{n}].", partial(construct, "explorers", item.plugin, item.options))
        for n, item in enumerate(campaign.explore)
        if item.plugin is not None
    ]
    made += [("", partial(make_selector, campaign.select)), ("stop.", partial(stop_rules, campaign))]
    for where, make in made:
        try:
            make()
        except AlchemyError as error:
            findings.blame(error, where)


def print_findings(findings: Findings, file: Path, *, err: bool) -> None:
    """For people; `err` keeps stdout for a file."""
    for entry in findings.structures:
        least, most = entry["atoms"]
        size = f"{least} atoms" if least == most else f"{least} to {most} atoms"
        kind = "periodic" if entry["periodic"] else "not periodic"
        some = "for example " if entry.get("preview") else ""
        what = f"{some}{count(entry['frames'], 'structure')} of {size}"
        click.echo(
            f"{entry['path']}: {what} ({' '.join(entry['elements'])}), {kind}",
            err=err,
        )
    for name, entry in findings.fidelities.items():
        click.echo(f"{name}: {entry['labeler']}, {entry['code']}", err=err)
    for text in findings.warnings:
        click.echo(f"warning: {text}", err=True)
    for text in findings.problems:
        click.echo(f"error: {text}", err=True)
    if findings.problems:
        click.echo(f"{file}: {count(len(findings.problems), 'problem')}", err=True)
    else:
        click.echo(f"{file} is fine; next: alchemy run {shlex.quote(str(file))}", err=err)


def outcome_lines(outcome: Outcome, target: str) -> Iterator[str]:
    """Errors of the last committee, and where everything is."""
    home = outcome.home
    for name, errors in outcome.facts.get("test", {}).items():
        mark = " (target)" if name == target else ""
        yield (
            f"test set, {name}{mark}, {count(errors['frames'], 'frame')}: "
            f"forces {_milli(errors['force_rmse_eV_per_A'])} meV/Å RMSE, "
            f"energies {_milli(errors['energy_rmse_eV_per_atom'])} meV/atom RMSE"
        )
    if outcome.stop is None:
        yield "paused; the same command without --until continues"
    final = home.path / "final"
    places = {"committee": final} if final.is_dir() else {}
    places |= {"report": home.report, "store": home.store}
    for what, path in places.items():
        yield f"{what + ':':<10} {path}"


def _milli(value: float | None) -> str:
    return "unknown" if value is None else f"{1e3 * value:.3g}"
