"""What the selector of a round sees: scores of the candidates, and what is trained and tested on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
from alchemy_policies.base import Pool
from alchemy_policies.calibration import Calibration, worst_decile
from alchemy_policies.energy_spread import energy_spread_per_atom
from alchemy_policies.environments import count_frames, frame_environments
from alchemy_policies.fidelity_choice import Level, Shares, force_correlation

from ..datasets import ISOLATED, TEST, TRAIN, counts, rows_of, total_labels
from ..plugins import find
from ..records import finite_or_none
from ..selection import needs_gradients, raw_deviation
from ..state import RoundState
from ..store import Snapshot
from .context import Context


def build_pool(
    context: Context, state: RoundState, uids: list[str], calibration: Calibration
) -> Pool:
    """The candidates as selectors take them; the training error comes out on the way, and is kept."""
    snapshot = context.store.snapshot()
    gradients = needs_gradients(context.campaign.select)

    def score(names: list[str], name: str) -> Any:
        return context.score(state.number, names, context.target, name=name, gradients=gradients)

    scores = score(uids, "candidates")
    frames = snapshot.structures(uids)
    spreads = scores.per_structure(scores.force_spread_eV_per_A)
    forces = scores.per_structure(scores.mean_forces_eV_per_A)
    expected = [
        worst_decile(calibration.expected_error(a.numbers, s)) for a, s in zip(frames, spreads, strict=True)
    ]
    met = {e.structure_uid: e for e in snapshot.events(kind="candidate", round=state.number)}
    parts = snapshot.part_of()
    labelled = {r.structure_uid for r in snapshot.labels() if parts.get(r.structure_uid) == TRAIN}
    known = sorted(labelled | {uid for uid, _ in context.open_pairs})  # the latter soon will be
    train = score(known, "train")
    predicted = train.per_structure(train.mean_forces_eV_per_A)
    _training_error(context, state, snapshot, dict(zip(known, predicted, strict=True)))
    tested = [r.structure_uid for r in rows_of(snapshot, TEST, [context.target])]
    return Pool(
        uids=tuple(uids),
        expected_error_eV_per_A=np.array(expected),
        features=scores.features,
        sources=tuple(met[uid].sampler for uid in uids),
        max_force_eV_per_A=np.array([np.linalg.norm(f, axis=1).max() for f in forces]),
        train_features=train.features,
        deviation_eV_per_A=np.array([raw_deviation(s.max(), context.members) for s in spreads]),
        steps=np.array([met[uid].step for uid in uids]),
        reasons=tuple(met[uid].reason for uid in uids),
        environments=frame_environments(frames),
        train_environments=count_frames(frame_environments(snapshot.structures(known))),
        test_features=score(tested, f"test-{context.target}").features if tested else None,
        energy_spread_eV_per_atom=energy_spread_per_atom(scores.prediction()),
        train_energy_spread_eV_per_atom=energy_spread_per_atom(train.prediction()),
    )


def _training_error(
    context: Context, state: RoundState, snapshot: Snapshot, forces: dict[str, np.ndarray]
) -> None:
    rows = [r for r in rows_of(snapshot, TRAIN, [context.target]) if r.forces_eV_per_A is not None]
    if rows:
        squares = [(r.forces_eV_per_A - forces[r.structure_uid]) ** 2 for r in rows]
        rmse = float(np.sqrt(np.concatenate(squares).mean()))
        state.facts.setdefault("train", {})["force_rmse_eV_per_A"] = finite_or_none(rmse)


def shares(context: Context) -> Shares:
    """Labels that may be bought this round: the round's share within the campaign's limits."""
    chosen = context.campaign.select
    choice = find("fidelity_choices", chosen.fidelity_choice)()
    levels = measured_levels(context)
    found: Shares = choice(levels, target=context.target, budget_cpu_s=chosen.cost_per_round_s)
    limits = context.campaign.stop.labels or {}
    under_way = Counter(fidelity for _, fidelity in context.open_pairs)
    room = {
        level.name: limits.get(level.name, 10**9) - level.labels - under_way[level.name] for level in levels
    }
    within = {name: max(0, min(found.labels[name], places)) for name, places in room.items()}
    return replace(found, labels=within)


def measured_levels(context: Context) -> list[Level]:
    """What the labels so far say of each level: their cost, and how well it knows the target."""
    snapshot = context.store.snapshot()
    have = total_labels(counts(snapshot, context.fidelities))
    parts = snapshot.part_of()
    reference = _forces(snapshot, context.target)
    out = []
    for name in context.fidelities:
        rows = [
            r for r in snapshot.labels(fidelity=name, status=None) if parts.get(r.structure_uid) != ISOLATED
        ]
        good, spent = sum(r.status == "ok" for r in rows), sum(r.cpu_s for r in rows)
        own = reference if name == context.target else _forces(snapshot, name)
        pairs = sorted(reference.keys() & own.keys())
        rho = 1.0 if name == context.target else None
        if pairs and rho is None:
            cheap, target = (np.concatenate([side[uid] for uid in pairs]) for side in (own, reference))
            rho = finite_or_none(force_correlation(cheap, target))
        out.append(
            Level(
                name,
                per_round=context.campaign.select.per_round.get(name, 0),
                labels=have[name],
                cpu_s_per_label=spent / good if good and spent > 0 else None,
                correlation=rho,
                pairs=len(pairs),
            )
        )
    return out


def _forces(snapshot: Snapshot, fidelity: str) -> dict[str, np.ndarray]:
    return {
        row.structure_uid: row.forces_eV_per_A
        for row in snapshot.labels(fidelity=fidelity)
        if row.forces_eV_per_A is not None and len(row.forces_eV_per_A) > 1 and row.replica == 0
    }


def label_noise(snapshot: Snapshot, fidelity: str) -> float | None:
    """RMS scatter of repeated labels per force component (eV/Å); None without repeats."""
    first = _forces(snapshot, fidelity)
    gaps = [
        row.forces_eV_per_A - first[row.structure_uid]
        for row in snapshot.labels(fidelity=fidelity)
        if row.replica > 0 and row.forces_eV_per_A is not None and row.structure_uid in first
    ]
    return float(np.sqrt((np.concatenate(gaps) ** 2).mean() / 2)) if gaps else None
