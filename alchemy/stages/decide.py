"""What is worth a label, and what the new labels say about the committee that chose them."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from alchemy_policies.base import Choice, Pool
from alchemy_policies.calibration import Calibration, fit_calibration, worst_decile

from tace.comparison import errors

from .. import tasks
from ..datasets import TRAIN, counts, labelled, total_labels
from ..identity import label_key
from ..plugins import find
from ..records import finite_or_none
from ..state import RoundState
from ..store import EventRow, SplitRow
from . import saddles
from .context import CommitteeScores, Context

MIN_CALIBRATION_FRAMES = 8  # fewer random frames than this: all fresh labels are used, and it is said
MAX_PAIRS = 800


def select(
    context: Context, state: RoundState, uids: list[str], calibration: Calibration
) -> dict[str, Any]:
    """Choose for the target level first, then for the cheaper ones from what is left.

    What is worth the target's price is labelled at the cheaper levels too: the pair teaches the
    difference between them.
    """
    budgets = _budgets(context)
    scores = context.score(state.number, uids, context.target, name="candidates")
    pool = _pool(context, state, uids, scores, calibration)
    selector = _selector(context)
    picked = saddles.picks(state, uids, budgets[context.target])
    reasons: dict[str, str] = {}
    order = [context.target, *(f for f in reversed(context.fidelities) if f != context.target)]
    for fidelity in order:
        budget = budgets[fidelity] - len(picked)
        left = [n for n, uid in enumerate(pool.uids) if uid not in picked]
        for entry in picked.values():
            entry["fidelities"].append(fidelity)
        if budget <= 0 or not left:
            continue
        part = _restrict(pool, left, [uids.index(u) for u in picked])
        rng = np.random.default_rng(context.seed(state.number, "select", fidelity))
        choice: Choice = selector(part, budget, rng)
        for pick in choice.picks:
            picked[part.uids[pick.index]] = {
                "uid": part.uids[pick.index],
                "fidelities": [fidelity],
                "why": pick.why,
                "expected_error_eV_per_A": finite_or_none(part.expected_error_eV_per_A[pick.index]),
            }
        reasons = {part.uids[n]: why for n, why in choice.rejected.items()} | reasons
    rejected = {uid: why for uid, why in reasons.items() if uid not in picked}
    _commit_choice(context, state, list(picked.values()), rejected)
    above = pool.expected_error_eV_per_A >= context.campaign.select.threshold_eV_per_A
    state.facts["select"] = {
        "picked": list(picked.values()),
        "rejected": dict(Counter(rejected.values())),
    }
    return {
        "picked": list(picked.values()),
        "requests": [[p["uid"], f] for p in picked.values() for f in p["fidelities"]],
        "above_threshold": int(above.sum()),
    }


def _budgets(context: Context) -> dict[str, int]:
    """Labels that may be bought this round: the round's share within the campaign's limit."""
    have = total_labels(counts(context.store.snapshot(), context.fidelities))
    limits = context.campaign.stop.labels or {}
    out = {}
    for name in context.fidelities:
        share = context.campaign.select.per_round.get(name, 0)
        out[name] = max(0, min(share, limits.get(name, 10**9) - have[name]))
    return out


def _selector(context: Context) -> Any:
    chosen = context.campaign.select
    factory = find("selectors", chosen.method)
    if chosen.method == "calibrated":
        return factory(
            threshold_eV_per_A=chosen.threshold_eV_per_A,
            random_fraction=chosen.random,
            dedup_distance=chosen.dedup,
            max_force_eV_per_A=chosen.max_force_eV_per_A,
        )
    return factory()


def _pool(
    context: Context,
    state: RoundState,
    uids: list[str],
    scores: CommitteeScores,
    calibration: Calibration,
) -> Pool:
    snapshot = context.store.snapshot()
    frames = snapshot.structures(uids)
    spreads = scores.per_structure(scores.force_spread_eV_per_A)
    forces = scores.per_structure(scores.mean_forces_eV_per_A)
    expected = [
        worst_decile(calibration.expected_error(a.numbers, s))
        for a, s in zip(frames, spreads, strict=True)
    ]
    found_by = {
        e.structure_uid: e.sampler for e in snapshot.events(kind="candidate", round=state.number)
    }
    parts = snapshot.part_of()
    known = sorted(
        {r.structure_uid for r in snapshot.labels() if parts.get(r.structure_uid) == TRAIN}
    )
    train = context.score(state.number, known, context.target, name="train")
    return Pool(
        uids=tuple(uids),
        expected_error_eV_per_A=np.array(expected),
        features=scores.features,
        sources=tuple(found_by[uid] for uid in uids),
        max_force_eV_per_A=np.array([np.linalg.norm(f, axis=1).max() for f in forces]),
        train_features=train.features,
    )


def _restrict(pool: Pool, keep: list[int], taken: list[int]) -> Pool:
    """The frames that are left; what is taken already counts as known."""
    return Pool(
        uids=tuple(pool.uids[n] for n in keep),
        expected_error_eV_per_A=pool.expected_error_eV_per_A[keep],
        features=pool.features[keep],
        sources=tuple(pool.sources[n] for n in keep),
        max_force_eV_per_A=pool.max_force_eV_per_A[keep],
        train_features=np.concatenate([pool.train_features, pool.features[taken]]),
    )


def _commit_choice(
    context: Context, state: RoundState, picked: list[dict[str, Any]], rejected: dict[str, str]
) -> None:
    now = time.time()
    events = [
        EventRow(
            p["uid"],
            "selected",
            reason=p["why"],
            round=state.number,
            expected_error_eV_per_A=p["expected_error_eV_per_A"] or math.nan,
            time=now,
        )
        for p in picked
    ]
    events += [
        EventRow(uid, "rejected", reason=why, round=state.number, time=now)
        for uid, why in rejected.items()
    ]
    context.store.append(events=events, splits=[SplitRow(p["uid"], TRAIN, now) for p in picked])


def assess(
    context: Context,
    state: RoundState,
    picked: Sequence[dict[str, Any]],
    calibration: Calibration,
) -> tuple[dict[str, Any], Calibration]:
    """The committee that chose the labels, judged by them before it is trained on them.

    Returns:
        outputs, and the calibration for the next round, fitted to the fresh labels of all rounds.
    """
    state.facts["fresh"] = {}
    saddles.assess(context, state, picked)
    for fidelity in context.fidelities:
        own = [p for p in picked if fidelity in p["fidelities"]]
        measured = _fresh(context, state, own, fidelity, calibration)
        if measured:
            state.facts["fresh"][fidelity] = measured
    fitted, pairs = refit(context, state)
    state.facts["calibration"] = {**fitted.to_json(), "pairs": pairs}
    return {"calibration": fitted.to_json()}, fitted


def _fresh(
    context: Context,
    state: RoundState,
    picked: Sequence[dict[str, Any]],
    fidelity: str,
    calibration: Calibration,
) -> dict[str, Any] | None:
    snapshot = context.store.snapshot()
    rows = [
        row
        for p in picked
        if (row := snapshot.label(label_key(p["uid"], fidelity, context.fingerprints[fidelity])))
        and row.status == "ok"
    ]
    if not rows:
        return None
    why = {p["uid"]: p["why"] for p in picked}
    frames = labelled(snapshot, rows)
    uids = [r.structure_uid for r in rows]
    scores = context.score(state.number, uids, fidelity, name=f"fresh-{fidelity}")
    measured = errors(frames, scores.prediction())
    out: dict[str, Any] = {
        "frames": len(rows),
        "force_rmse_eV_per_A": finite_or_none(measured.force_rmse_eV_per_A),
        "energy_rmse_eV_per_atom": finite_or_none(measured.energy_rmse_eV_per_atom),
    }
    pieces = scores.per_structure(scores.mean_forces_eV_per_A)
    error = [
        np.linalg.norm(f.forces_eV_per_A - p, axis=1) for f, p in zip(frames, pieces, strict=True)
    ]
    random = [n for n, uid in enumerate(uids) if why[uid] == "random"]
    if random:
        squares = np.concatenate([(frames[n].forces_eV_per_A - pieces[n]) ** 2 for n in random])
        out["random"] = {
            "frames": len(random),
            "force_rmse_eV_per_A": float(np.sqrt(squares.mean())),
        }
    if fidelity == context.target:
        numbers = np.concatenate([f.atoms.numbers for f in frames])
        everything = np.concatenate(error)
        out["coverage_90"] = finite_or_none(
            calibration.coverage(numbers, scores.force_spread_eV_per_A, everything)
        )
        tasks.write_arrays(
            state.directory / "calibration.npz",
            numbers=numbers,
            spread=scores.force_spread_eV_per_A,
            error=everything,
            frame=np.repeat(np.arange(len(frames)), scores.n_atoms),
            random=np.repeat([n in random for n in range(len(frames))], scores.n_atoms),
        )
    return out


def refit(context: Context, state: RoundState) -> tuple[Calibration, dict[str, list[float]]]:
    """Calibrate on the fresh target labels of every round so far."""
    columns: dict[str, list[np.ndarray]] = {}
    offset = 0
    for number in range(1, state.number + 1):
        path: Path = context.home.round(number) / "calibration.npz"
        if not path.exists():
            continue
        arrays = tasks.read_arrays(path)
        arrays["frame"] = arrays["frame"] + offset
        offset = int(arrays["frame"].max()) + 1
        for name, values in arrays.items():
            columns.setdefault(name, []).append(values)
    if not columns:
        return Calibration.uncalibrated(context.members), {}
    data = {name: np.concatenate(parts) for name, parts in columns.items()}
    random = data["random"].astype(bool)
    enough = len(np.unique(data["frame"][random])) >= MIN_CALIBRATION_FRAMES
    mask = random if enough else np.ones(len(random), bool)
    fitted = fit_calibration(
        data["numbers"][mask],
        data["spread"][mask],
        data["error"][mask],
        data["frame"][mask],
        members=context.members,
    )
    if not enough:
        note = "; ".join(filter(None, [fitted.note, "selected frames included, the random slice is small"]))
        fitted = Calibration(fitted.elements, fitted.pooled, note)
    step = max(1, int(mask.sum()) // MAX_PAIRS)
    pairs = {
        "spread_eV_per_A": data["spread"][mask][::step].round(6).tolist(),
        "error_eV_per_A": data["error"][mask][::step].round(6).tolist(),
        "number": data["numbers"][mask][::step].tolist(),
    }
    return fitted, pairs
