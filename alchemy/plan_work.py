"""How much of what a campaign has to do: labels, trainings, walks; of one that has begun, what is left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .builders.build import BUILDERS
from .builders.preview import preview
from .config import Campaign
from .config_samples import Sample
from .generate import read_structures
from .prices import FREE, Price, around
from .stages.backlog import Pair
from .state import Home, RoundState
from .store import Snapshot

Range = tuple[float, float, float]  # least, expected, most
RELAX_CALLS = 40  # of a relaxation, of which there are at most 300
EXPLORER_CPU_S, EXPLORER_FACTOR = 60.0, 10.0  # of an explorer whose steps cannot be counted beforehand
GOALS = (
    "force_rmse_eV_per_A", "element_rmse_eV_per_A", "coverage", "barrier_mae_eV", "candidate_fraction",
)  # fmt: skip


@dataclass
class Work:
    """What is left to do. Sizes are means over structures, counts are per round where it says so."""

    atoms: float = 1.0  # of a structure
    generators: int = 0
    generator_labels: dict[str, float] = field(default_factory=dict)  # energies asked of a level
    labels: dict[str, dict[str, Range]] = field(default_factory=dict)  # fidelity -> kind -> how many
    trainings: Range = (0.0, 0.0, 0.0)  # committees
    rounds: Range = (0.0, 0.0, 0.0)  # explorations, selections
    explorer_tasks: int = 0  # per round
    force_calls: float = 0.0  # frames times steps per round, if no walk ended early
    other_explorers: Price = FREE  # per round
    candidates: float = 0.0  # per round
    tests: float = 0.0
    trained: float = 0.0  # structures, in the mean of the rounds
    reused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def work_of(
    campaign: Campaign, home: Home | None, snapshot: Snapshot | None, fidelities: Sequence[str]
) -> Work:
    """Counts from the file; of a campaign that has begun without what is finished."""
    work = Work()
    items = [*campaign.start, *campaign.test]
    facts = [_sizes(campaign, item) for item in items]
    frames = sum(number for number, _ in facts)
    work.atoms = sum(number * atoms for number, atoms in facts) / max(1.0, frames)
    first: dict[str, float] = dict.fromkeys(fidelities, 0.0)
    for (number, _), item in zip(facts, items, strict=True):
        for name, asked in item.label.items():
            if name in first:
                first[name] += number if asked == "all" else min(float(asked), number)
    work.tests = sum(number for (number, _), item in zip(facts, items, strict=True) if item in campaign.test)
    _explorers(campaign, work, frames - work.tests)
    rounds = _rounds(campaign, first)
    work.trained = frames + rounds[1] * max(campaign.select.per_round.values()) / 2
    _first_labels(campaign, work, home, snapshot, first)
    _later_labels(campaign, work, home, snapshot, rounds, fidelities)
    _generators(campaign, work, home, items, facts)
    done = _finished(home, "train"), _finished(home, "assess")
    over = home is not None and _finished(home, "finish") > 0
    left = (0.0, 0.0, 0.0) if over else rounds
    work.rounds = _less(left, done[1])
    if not over:  # each round trains, and the last committee is trained after the last round
        low, mid, high = rounds
        work.trainings = _less((low + 1, mid + 1, high + 1), done[0])
    if done[0]:
        work.reused.append(f"{done[0]} committees, {done[1]} rounds of exploration and selection")
    return work


def _finished(home: Home | None, stage: str) -> int:
    """Rounds that have finished the stage."""
    if home is None:
        return 0
    return sum(RoundState(home, n).outputs(stage) is not None for n in home.rounds())


def _less(counts: Range, done: float) -> Range:
    return (max(0.0, counts[0] - done), max(0.0, counts[1] - done), max(0.0, counts[2] - done))


def _sizes(campaign: Campaign, item: Sample) -> tuple[float, float]:
    """(structures, mean number of atoms of one) that an item makes; neither needs a labeler."""
    source = item.source
    if item.kind in BUILDERS:
        found, _ = preview(campaign, item)
        if not found:  # made by hops from a file
            found = read_structures(campaign.resolve(source.structures), ":", campaign.elements)
        number = float(item.most if item.most is not None else len(found))
    else:
        paths = item.files.paths if item.files is not None else (source.structures,)
        index = item.files.index if item.files is not None else ":"
        found = [
            a for path in paths for a in read_structures(campaign.resolve(path), index, campaign.elements)
        ]
        number = float(item.most if item.most is not None else len(found))
    return number, sum(map(len, found)) / len(found)


def _rounds(campaign: Campaign, first: dict[str, float]) -> Range:
    """Rounds of the stop block: at most as many as labels allow, perhaps one where a goal is set."""
    most = float(campaign.stop.rounds)
    for name, limit in (campaign.stop.labels or {}).items():
        each = campaign.select.per_round.get(name, 0)
        if each and name in first:
            most = min(most, max(1.0, math.ceil((limit - first[name]) / each)))
    goals = any(getattr(campaign.stop, name) is not None for name in GOALS)
    return (1.0 if goals or campaign.stop.stalled else most, most, most)


def _first_labels(
    campaign: Campaign, work: Work, home: Home | None, snapshot: Snapshot | None, first: dict[str, float]
) -> None:
    """Of start and test structures and isolated atoms; exactly, once their requests are known."""
    asked = RoundState(home, 0).outputs("start") if home is not None else None
    if asked is None or snapshot is None:
        single = float(len(campaign.elements)) if campaign.e0 == "compute" else 0.0
        for name, number in first.items():
            work.labels[name] = {"start and test": (number, number, number)}
            work.labels[name] |= {"isolated atoms": (single, single, single)}
        return
    pairs = [(uid, f) for uid, f in asked["requests"]]
    for name, number in _missing(snapshot, pairs).items():
        work.labels.setdefault(name, {})["start and test"] = (number, number, number)
    work.reused.append(f"{len(snapshot.labels())} labels")


def _missing(snapshot: Snapshot, pairs: Sequence[Pair]) -> dict[str, float]:
    """Requests without a label, by fidelity; who labels them gives the fingerprint, so uids are compared."""
    have = {(row.structure_uid, row.fidelity) for row in snapshot.labels(status=None)}
    found: dict[str, float] = {}
    for uid, fidelity in pairs:
        found[fidelity] = found.get(fidelity, 0.0) + ((uid, fidelity) not in have)
    return found


def _later_labels(
    campaign: Campaign,
    work: Work,
    home: Home | None,
    snapshot: Snapshot | None,
    rounds: Range,
    fidelities: Sequence[str],
) -> None:
    """Of the rounds; there may be fewer candidates than a round may buy."""
    over = home is not None and _finished(home, "finish") > 0
    left = (0.0, 0.0, 0.0) if over else _less(rounds, _finished(home, "select"))
    open_ = {}
    if home is not None and snapshot is not None:
        pairs = [
            (uid, f)
            for n in home.rounds()
            for uid, f in (RoundState(home, n).outputs("select") or {}).get("requests", [])
        ]
        open_ = _missing(snapshot, pairs)
    for name in fidelities:
        each = float(campaign.select.per_round.get(name, 0))
        expected = min(each, work.candidates) if work.candidates else each
        more = open_.get(name, 0.0)
        low, mid, high = left
        counts = (more + 0.5 * low * expected, more + mid * expected, more + high * each)
        if counts[2]:
            work.labels.setdefault(name, {})["rounds"] = counts
    if campaign.select.fidelity_choice != "fixed":
        work.notes.append("select.fidelity_choice shares labels anew each round; per_round is planned with")


def _generators(
    campaign: Campaign, work: Work, home: Home | None, items: Sequence[Sample], facts: Sequence[Any]
) -> None:
    """Energies that dynamics, relaxations and hops of the start and test items ask of a level."""
    if _finished(home, "start"):
        return
    for (number, _), item in zip(facts, items, strict=True):
        source, calls = item.source, 0.0
        fidelity = getattr(source, "fidelity", None) or getattr(source, "relax_with", None)
        if item.md is not None:
            calls = len(item.md.T_K) * item.md.time_fs / item.md.timestep_fs
            calls += RELAX_CALLS if item.md.relax_first else 0
        elif item.rattle is not None and fidelity:
            calls = RELAX_CALLS
        elif fidelity:
            calls = RELAX_CALLS * number
        work.generators += 1
        if fidelity and calls:
            work.generator_labels[fidelity] = work.generator_labels.get(fidelity, 0.0) + calls


def _explorers(campaign: Campaign, work: Work, starts: float) -> None:
    """Steps and candidates of a round."""
    for item in campaign.explore:
        if item.md is None:
            made = float(getattr(item.block, "count", None) or getattr(item.block, "walkers", None) or 10)
            work.explorer_tasks += 1
            work.candidates += made
            other = around(EXPLORER_CPU_S, EXPLORER_FACTOR, f"default of '{item.kind}'")
            work.other_explorers = other if work.other_explorers is FREE else work.other_explorers + other
            continue
        md = item.md
        # of a ladder, which is climbed from short to long, half of its height
        length_fs = md.time_fs or sum(md.ladder_fs or ()) / len(md.ladder_fs or (0,))
        conditions = len(md.T_K) * len(md.pressures_eV_per_A3)
        steps = max(1, round(length_fs / md.timestep_fs))
        work.explorer_tasks += conditions
        work.force_calls += conditions * md.walkers * steps
        samples = 4.0 if md.sample_every is None else max(1, steps // md.sample_every)
        # a walk that ends early has offered the frames up to there and the one that ended it
        work.candidates += conditions * md.walkers * (0.3 * samples + 1)
    work.candidates = max(work.candidates, 1.0)
