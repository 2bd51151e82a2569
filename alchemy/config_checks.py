"""What no single block can see: names that must exist, elements that must be covered, files.

Every check takes the campaign and yields problems; they run even where another block is broken, so
that one look at the file finds everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from alchemy.config_samples import ExploreMd, Files, Rattle, Sample, SampleMd
from alchemy.config_select import without_effect
from alchemy.config_structure_checks import problems_of_block, reico_warnings
from tace.documents import Loc, Problem
from tace.wording import hint

REASONS = (  # with which our explorers offer frames: docs/dynamics.md, `reico`, `hopping`, `ts.search`
    "sampled", "crossed", "energy-spread", "last-good", "failed", "survivor", "born", "along", "relaxed",
    "minimum", "end", "path", "climb", "saddle", "unconfirmed-saddle", "surplus-mode", "along-mode",
)  # fmt: skip

if TYPE_CHECKING:
    from alchemy.config import Campaign


LEAST_BAROSTAT_STEPS = 10  # Euler's steps of the volume are off by dt/2τ, and unstable at 2


def problems_of(campaign: Campaign) -> Iterator[Problem]:
    """Contradictions between blocks, and files that do not exist."""
    yield from _fidelity_flags(campaign)
    yield from _reference_energies(campaign)
    yield from _samples(campaign)
    yield from _explorers(campaign)
    yield from _limits(campaign)
    yield from _label_jobs(campaign)
    yield from without_effect(campaign.select)
    if campaign.run.cluster is not None and campaign.run.cluster.setup is not None:
        yield from _no_file(campaign, Path(campaign.run.cluster.setup), ("run", "cluster", "setup"))
    if campaign.run.overlap and campaign.run.where == "inline":
        found = "true needs workers beside this process; set run.where: local, or leave it out"
        yield Problem(("run", "overlap"), found)


def warnings_of(campaign: Campaign) -> list[str]:
    """What is allowed and probably not meant; `alchemy check` prints it."""
    target, stop = campaign.target, campaign.stop
    found = []
    if not campaign.holdout and not any(target in sample.label for sample in campaign.test):
        found.append(
            f"test: no item labels '{target}'; without a fixed test set the report shows only the "
            "error on freshly selected structures"
        )
    if not campaign.explore:
        found.append("explore: empty; each round trains on the start structures again")
    for name in campaign.fidelity_names:
        started = any(name in sample.label for sample in campaign.start)
        if not started and name not in campaign.select.per_round:
            found.append(f"fidelities.{name}: nothing is ever labelled with it")
    limit, threshold = stop.force_rmse_eV_per_A, campaign.select.threshold_eV_per_A
    if limit is not None and threshold > limit:
        found.append(
            "select.threshold is above stop.force_rmse: the frames that would have to improve are "
            "skipped"
        )
    if campaign.select.random == 0:
        found.append("select.random: 0; then no error estimate is free of selection bias")
    found += _idle_quotas(campaign)
    return found + reico_warnings(campaign)


def _idle_quotas(campaign: Campaign) -> Iterator[str]:
    """Quotas of what no explorer of the file offers; another package's may offer anything."""
    if any(item.plugin is not None for item in campaign.explore):
        return
    known = (*(item.kind for item in campaign.explore), *REASONS)
    for name in campaign.select.quota:
        if name not in known:
            yield f"select.quota.{name}: no explorer and no reason is called so; {hint(name, known)}"


def _fidelity_flags(campaign: Campaign) -> Iterator[Problem]:
    flagged = [name for name, fidelity in campaign.fidelities.items() if fidelity.target]
    for name in flagged[1:]:
        yield Problem(
            ("fidelities", name, "target"),
            f"found a second target, the first is '{flagged[0]}'; keep one",
        )


def _reference_energies(campaign: Campaign) -> Iterator[Problem]:
    if isinstance(campaign.e0, str):
        return
    for name in campaign.e0:
        yield from _unknown(campaign, name, ("e0", name))
    for name in campaign.fidelity_names:
        if name not in campaign.e0:
            yield Problem(("e0", name), f"missing; the fidelity '{name}' needs its atomic energies")
            continue
        table = campaign.e0[name]
        for symbol in campaign.elements:
            if symbol not in table:
                yield Problem(
                    ("e0", name, symbol),
                    f"missing; element {symbol} needs its energy in {name}: '{symbol}: -13.6 eV'",
                )
        for symbol in table:
            if symbol not in campaign.elements:
                yield Problem(
                    ("e0", name, symbol),
                    f"found an energy of {symbol}; elements: {', '.join(campaign.elements)}",
                )


def _label_jobs(campaign: Campaign) -> Iterator[Problem]:
    block = campaign.run.labels
    for name in block.fidelities:
        yield from _unknown(campaign, name, ("run", "labels", "fidelities", name))
    here: Loc = ("run", "labels")
    for loc, jobs in ((here, block), *(((*here, "fidelities", n), j) for n, j in block.fidelities.items())):
        for key in ("setup", "template"):
            path = getattr(jobs, key)
            if jobs.batch and path is not None:
                yield from _no_file(campaign, path, (*loc, key))


def _samples(campaign: Campaign) -> Iterator[Problem]:
    if not campaign.start:
        yield Problem(("start",), "found no items; the first committee needs labelled structures")
    elif not any(campaign.target in sample.label for sample in campaign.start):
        yield Problem(
            ("start",),
            f"no item labels the target '{campaign.target}'; add it to a label: line, such as "
            f"label: {{{campaign.target}: all}}",
        )
    for block in ("start", "test"):
        samples: tuple[Sample, ...] = getattr(campaign, block)
        for number, sample in enumerate(samples):
            yield from _sample(campaign, sample, (block, number))


def _sample(campaign: Campaign, sample: Sample, loc: Loc) -> Iterator[Problem]:
    source, here = sample.source, (*loc, sample.kind)
    if isinstance(source, Files):
        for number, path in enumerate(source.paths):
            yield from _no_file(campaign, path, (*here, "paths", number))
    elif getattr(source, "structures", None) is not None:
        yield from _no_file(campaign, source.structures, (*here, "structures"))
    yield from problems_of_block(campaign, source, here)
    if isinstance(source, Rattle) and source.relax_with is not None:
        yield from _unknown(campaign, source.relax_with, (*here, "relax_with"))
    if isinstance(source, SampleMd):
        yield from _unknown(campaign, source.fidelity, (*here, "with"))
        yield from _too_short(source, here)
    for name, count in sample.label.items():
        yield from _unknown(campaign, name, (*loc, "label", name))
        if sample.most is not None and count != "all" and count > sample.most:
            yield Problem(
                (*loc, "label", name),
                f"found {count}, but the item makes {sample.most} structures; write 'all' or less",
            )


def _explorers(campaign: Campaign) -> Iterator[Problem]:
    for number, item in enumerate(campaign.explore):
        if item.ts is not None:
            for key in ("network", "reactant", "product", "guess", "trajectory"):
                path = getattr(item.ts, key)
                if path is not None:
                    yield from _no_file(campaign, path, ("explore", number, "ts", key))
        elif item.plugin is None and item.md is None:
            loc = ("explore", number, item.kind)
            if isinstance(item.block.structures, Path):
                yield from _no_file(campaign, item.block.structures, (*loc, "structures"))
            yield from problems_of_block(campaign, item.block, loc)
        if item.md is None:
            continue
        loc = ("explore", number, "md")
        if isinstance(item.md.structures, Path):
            yield from _no_file(campaign, item.md.structures, (*loc, "structures"))
        yield from _too_short(item.md, loc)
        yield from _without_effect(item.md, loc)
        steps = item.md.barostat_tau_fs / item.md.timestep_fs
        if item.md.ensemble == "npt" and steps < LEAST_BAROSTAT_STEPS:
            yield Problem(
                (*loc, "barostat_tau"),
                f"found {item.md.barostat_tau_fs:g} fs, which is {steps:.3g} steps; a cell that is to "
                f"follow its pressure needs at least {LEAST_BAROSTAT_STEPS}",
            )


def _without_effect(md: ExploreMd, loc: Loc) -> Iterator[Problem]:
    """Settings that were changed and that the chosen ensemble or thermostat does not look at."""
    needs = {
        "thermostat": (md.ensemble != "nve", "ensemble nve has no thermostat"),
        "friction_per_fs": _of_thermostat(md, "langevin"),
        "tau_fs": _of_thermostat(md, "bussi"),
    }
    for name in ("pressures_eV_per_A3", "barostat_tau_fs", "compressibility_per_GPa"):
        needs[name] = md.ensemble == "npt", f"ensemble {md.ensemble} has no barostat, only npt has"
    needs["ramp_to_K"] = md.ensemble == "nvt" and not md.ladder_fs, "a ramp is for nvt, without a ladder"
    needs["survive"] = md.ladder_fs is not None, "only a ladder looks at it"
    for name in ("bias_height_eV", "bias_width_eV"):
        needs[name] = md.bias != "none", "bias is none; write bias: udd"
    for name, (used, why) in needs.items():
        field = ExploreMd.model_fields[name]
        if not used and getattr(md, name) != field.default:
            key = field.alias or name
            yield Problem((*loc, key), f"has no effect: {why}; remove the key")


def _of_thermostat(md: ExploreMd, name: str) -> tuple[bool, str]:
    if md.ensemble == "nve":
        return False, "ensemble nve has no thermostat"
    return md.thermostat == name, f"it belongs to thermostat {name}, and this is {md.thermostat}"


def _too_short(md: SampleMd | ExploreMd, loc: Loc) -> Iterator[Problem]:
    ladder = md.ladder_fs if isinstance(md, ExploreMd) else None
    key, shortest = ("ladder", ladder[0]) if ladder else ("time", float(md.time_fs or 0.0))
    steps = round(shortest / md.timestep_fs)
    if steps < 1:
        yield Problem((*loc, key), f"found {shortest:g} fs, less than one step of {md.timestep_fs:g} fs")
    if isinstance(md, ExploreMd) and 1 <= steps < md.check_every:
        yield Problem(
            (*loc, "check_every"), f"found {md.check_every}, but the walk has only {steps} steps"
        )
    if isinstance(md, SampleMd) and 1 <= steps * len(md.T_K) < md.count:
        yield Problem(
            (*loc, "count"),
            f"found {md.count}, but all trajectories have {steps * len(md.T_K)} steps",
        )


def _limits(campaign: Campaign) -> Iterator[Problem]:
    stop_md = campaign.stop_md
    if stop_md.label_above_eV_per_A >= stop_md.abort_above_eV_per_A:
        yield Problem(
            ("stop_md", "label_above"),
            f"found {stop_md.label_above_eV_per_A:g} eV/A, not below abort_above "
            f"({stop_md.abort_above_eV_per_A:g} eV/A); above the first a frame is worth a label, "
            "above the second the walk has left what the model knows",
        )
    for name in campaign.select.per_round:
        yield from _unknown(campaign, name, ("select", "per_round", name))
    for name in campaign.stop.labels or {}:
        yield from _unknown(campaign, name, ("stop", "labels", name))


def _unknown(campaign: Campaign, name: str, loc: Loc) -> Iterator[Problem]:
    if name not in campaign.fidelities:
        yield Problem(
            loc, f"found '{name}', no such fidelity; {hint(name, campaign.fidelity_names)}"
        )


def _no_file(campaign: Campaign, path: Path, loc: Loc) -> Iterator[Problem]:
    try:
        full = campaign.resolve(path)
        if full.is_file():
            return
        if not full.parent.is_dir():
            yield Problem(loc, f"found '{path}', but there is no folder {full.parent}")
            return
        names = sorted(p.name for p in full.parent.iterdir() if p.is_file())[:20]
    except (OSError, ValueError, RuntimeError) as error:  # no permission, NUL, ~nobody
        yield Problem(loc, f"found '{path}', which cannot be read: {error}")
        return
    near = hint(full.name, tuple(names)) if names else "the folder holds no files"
    yield Problem(loc, f"found '{path}', no such file in {full.parent}; {near}")
