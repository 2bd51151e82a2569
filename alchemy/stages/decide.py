"""What is worth a label, and what the new labels say about the committee that chose them."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from alchemy_policies.calibration import Calibration, fit_calibration, fresh_weights
from alchemy_policies.first_committee import at_later_level
from ase.data import chemical_symbols

from tace.comparison import errors
from tace.data import Labelled

from .. import tasks
from ..datasets import TRAIN, labelled
from ..identity import label_key
from ..records import finite_or_none
from ..selection import divide, make_selector, needs_gradients, pool_bytes
from ..state import RoundState
from ..store import EventRow, SplitRow
from . import saddles
from .context import Context
from .pool import build_pool, shares

MIN_CALIBRATION_FRAMES = 8  # fewer random frames than this: the selected ones weigh more, and it is said
MAX_PAIRS = 800
POOL = "pool.npz"  # in the directory of a round


def select(
    context: Context, state: RoundState, uids: list[str], calibration: Calibration
) -> dict[str, Any]:
    """What is worth a label, at which levels; what the selector saw is kept for `why` and `whatif`."""
    chosen = context.campaign.select
    selector = make_selector(chosen)
    found = shares(context)
    pool = build_pool(context, state, uids, calibration)
    order = [context.target, *(f for f in reversed(context.fidelities) if f != context.target)]
    asked: dict[str, Any] = {
        "select": chosen.model_dump(mode="json"),
        "budgets": dict(found.labels),
        "order": order,
        "unpaired": list(found.unpaired),
        "seeds": {f: context.seed(state.number, "select", f) for f in order},
        "gradients": needs_gradients(chosen),
        "first": saddles.picks(state, uids, found.labels[context.target]),
    }
    tasks.write_bytes(state.directory / POOL, pool_bytes(pool, asked))
    bought, rejected = divide(
        pool,
        selector,
        found.labels,
        order=order,
        seeds=asked["seeds"],
        first=asked["first"],
        unpaired=found.unpaired,
    )
    errors_of = dict(zip(pool.uids, pool.expected_error_eV_per_A, strict=True))
    picked: list[dict[str, Any]] = [
        {
            "uid": one.uid,
            "fidelities": list(one.fidelities),
            "why": one.why,
            "expected_error_eV_per_A": finite_or_none(errors_of[one.uid]),
        }
        for one in bought
    ]
    _commit_choice(context, state, picked, rejected)
    above = pool.expected_error_eV_per_A >= chosen.threshold_eV_per_A
    state.facts["select"] = {
        "picked": picked,
        "rejected": dict(Counter(rejected.values())),
        "shares": {"labels": dict(found.labels), "expected_cpu_s": found.expected_cpu_s, "note": found.note},
    }
    return {
        "picked": picked,
        "requests": [[p["uid"], f] for p in picked for f in p["fidelities"]],
        "above_threshold": int(above.sum()),
    }


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
        own = _unseen(context, state, picked, fidelity)
        measured = _fresh(context, state, own, fidelity, calibration)
        if measured:
            state.facts["fresh"][fidelity] = measured
    fitted, pairs = refit(context, state)
    state.facts["calibration"] = {**fitted.to_json(), "pairs": pairs}
    return {"calibration": fitted.to_json()}, fitted


def _unseen(
    context: Context, state: RoundState, picked: Sequence[dict[str, Any]], fidelity: str
) -> list[dict[str, Any]]:
    """Picks of the round; where labels come in late, of all rounds, that the committee was not trained on."""
    data = state.outputs("data")
    if data is None:
        return [p for p in picked if fidelity in p["fidelities"]]
    before = context.store.snapshot(data["as_of"])
    past = [RoundState(context.home, n).outputs("select") or {} for n in range(1, state.number)]
    every = [*(p for one in past for p in one.get("picked", [])), *picked]
    mark = context.fingerprints[fidelity]
    keys = {label_key(p["uid"], fidelity, mark): p for p in every if fidelity in p["fidelities"]}
    known = before.label_states(keys)
    return [p for key, p in keys.items() if key not in known]


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
        spreads = scores.per_structure(scores.force_spread_eV_per_A)
        slice_of = [(frames[n], pieces[n], spreads[n]) for n in random]
        out["random"] = _on_slice(slice_of, calibration)
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


def _on_slice(
    frames: Sequence[tuple[Labelled, np.ndarray, np.ndarray]], calibration: Calibration
) -> dict[str, Any]:
    """Errors and coverage on labelled frames with their mean forces and spreads: what stop rules judge."""
    numbers = np.concatenate([frame.atoms.numbers for frame, _, _ in frames])
    difference = np.concatenate([frame.forces_eV_per_A - mean for frame, mean, _ in frames])
    spread = np.concatenate([own for _, _, own in frames])
    covered = calibration.coverage(numbers, spread, np.linalg.norm(difference, axis=1))
    return {
        "frames": len(frames),
        "force_rmse_eV_per_A": float(np.sqrt((difference**2).mean())),
        "element_force_rmse_eV_per_A": {
            chemical_symbols[z]: float(np.sqrt((difference[numbers == z] ** 2).mean()))
            for z in np.unique(numbers).tolist()
        },
        "coverage_90": finite_or_none(covered),
    }


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
        arrays["round"] = np.full(len(arrays["frame"]), number)
        for name, values in arrays.items():
            columns.setdefault(name, []).append(values)
    if not columns:
        return Calibration.uncalibrated(context.members), {}
    data = {name: np.concatenate(parts) for name, parts in columns.items()}
    _, first, frame = np.unique(data["frame"], return_index=True, return_inverse=True)
    random = data["random"].astype(bool)[first]
    rounds = data["round"][first]
    atoms = data["numbers"], data["spread"]
    error = at_later_level(*atoms, data["error"], frame, random=random, first=rounds == 1)
    weights = fresh_weights(random, state.number - rounds)[frame]
    fitted = fit_calibration(*atoms, error, frame, weights=weights, members=context.members)
    if random.sum() < MIN_CALIBRATION_FRAMES:
        note = "; ".join(filter(None, [fitted.note, "mostly selected frames: the random slice is small"]))
        fitted = replace(fitted, note=note)
    step = max(1, len(frame) // MAX_PAIRS)
    pairs = {
        "spread_eV_per_A": data["spread"][::step].round(6).tolist(),
        "error_eV_per_A": data["error"][::step].round(6).tolist(),
        "number": data["numbers"][::step].tolist(),
    }
    return fitted, pairs
