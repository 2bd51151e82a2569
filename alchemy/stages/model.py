"""Train the committee and judge it on the fixed test set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tace.comparison import errors
from tace.data import Labelled

from .. import tasks
from ..config import Campaign
from ..config_blocks import Model
from ..datasets import TEST, TRAIN, counts, isolated_energies, labelled, rows_of, total_labels
from ..state import RoundState
from ..store import LabelRow, Snapshot
from .context import CommitteeScores, Context
from .watch import watch_training

PARITY_POINTS = 1500
READOUT_SHARE = 4  # readouts on a trained trunk take this part of its steps


def train(context: Context, state: RoundState, *, final: bool = False) -> dict[str, Any]:
    """K tasks; each member has its own seed and holds out its own structures.

    Args:
        final: nothing is explored with this committee, so that it needs no cold member.
    """
    snapshot = data_of(context, state)
    requests = [_request(context, state.number, k, snapshot) for k in range(context.members)]
    for member, request in enumerate(requests):
        request["init"] = _warm_start(context, state.number, member, final=final)
    results = _trained(context, requests)
    table = counts(snapshot, context.fidelities)
    state.facts.update(target=context.target, fidelities=list(context.fidelities))
    state.facts["train"] = {
        "members": context.members,
        "labels": {f: own.get(TRAIN, 0) for f, own in table.items()},
        "cpu_s": sum(r["cpu_s"] for r in results),
        "wall_s": max(r["wall_s"] for r in results),
        "members_valid_force_rmse_eV_per_A": [r["valid_force_rmse_eV_per_A"] for r in results],
    }
    found = watch_training(context, results)
    if found:
        state.facts["train"]["divergence"] = found
    return {"as_of": snapshot.last, "models": context.models(state.number)}


def data_of(context: Context, state: RoundState) -> Snapshot:
    """The store as the round found it where labels come in meanwhile, else as it is."""
    found = state.outputs("data")
    return context.store.snapshot(None if found is None else found["as_of"])


def _trained(context: Context, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All members side by side; with a shared trunk the first alone, then readouts on its layers."""
    if context.campaign.model.trunk == "own":
        return context.run(tasks.train_member, requests, resource="GPU", what="train committee")
    first, *others = requests
    results = context.run(tasks.train_member, [first], resource="GPU", what="train trunk")
    for request in others:
        steps = max(1, first["settings"]["steps"] // READOUT_SHARE)
        request.update(trunk=first["out"], init=None)
        request["settings"] |= {"steps": steps, "validate_every": max(1, min(200, steps // 5))}
    return results + context.run(tasks.train_member, others, resource="GPU", what="train readouts")


def overrides(model: Model) -> dict[str, Any]:
    """Hyperparameters of the network that the file sets, by the names of `tace.config`."""
    chosen: dict[str, Any] = {
        "channels": model.overrides.channels,
        "l_max": model.overrides.l_max,
        "L_max": model.overrides.L_max,
        "correlation": model.overrides.correlation,
        "n_layers": model.overrides.layers,
        "radial_hidden": model.overrides.radial_mlp,
        "start": model.start,
        "les": {} if model.les else None,
        "zbl": model.zbl or None,
    }
    given = {name: value for name, value in chosen.items() if value is not None}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}


def recipe(campaign: Campaign, fidelities: Sequence[str]) -> dict[str, Any]:
    """What the campaign's models are and how they are trained, as `training` takes it."""
    model, settings = campaign.model, campaign.model.train
    return {
        "fidelities": list(fidelities),
        "elements": sorted(_numbers(campaign.elements)),
        "preset": model.preset,
        "cutoff_A": model.cutoff_A,
        "overrides": overrides(model),
        "dtype": model.dtype,
        "settings": {
            "steps": settings.steps,
            "batch_size": settings.batch,
            "learning_rate": settings.learning_rate,
            "schedule": settings.schedule,
            "energy_weight": settings.energy_weight,
            "energy_growth": settings.energy_growth,
            "forces_weight": settings.forces_weight,
            "stress_weight": settings.stress_weight,
            "fidelity_balance": settings.fidelity_balance,
            "ema_decay": settings.ema,
            "clip_norm": settings.clip,
            "patience": settings.patience or 0,
            "compile": settings.compile,
            "validate_every": max(1, min(200, settings.steps // 5)),
        },
        "warm_share": settings.warm_share,
        "validation": settings.validation,
        "threads": campaign.run.model_threads,
    }


def _request(context: Context, number: int, member: int, snapshot: Snapshot) -> dict[str, Any]:
    return {
        **recipe(context.campaign, context.fidelities),
        "store": str(context.home.store),
        "as_of": snapshot.last,
        "e0_eV": _reference(context, snapshot),
        "split_seed": context.seed("split", member),  # the same bag every round: no leak by warm start
        "seed": context.seed(number, "train", member),
        "member": member,
        "trunk": None,
        "inline": context.inline,
        "out": str(context.home.members(number, context.members)[member]),
    }


def _numbers(symbols: Sequence[str]) -> list[int]:
    from ase.data import atomic_numbers

    return [atomic_numbers[s] for s in symbols]


def _warm_start(context: Context, number: int, member: int, *, final: bool) -> str | None:
    """The member of the round before; one member per round starts cold, as a guard against shared drift."""
    if not context.campaign.model.train.warm_start or number <= 1:
        return None
    if not final and (number + member) % context.members == 0:
        return None
    return str(context.home.members(number - 1, context.members)[member])


def _reference(context: Context, snapshot: Snapshot) -> dict[str, dict[str, float]]:
    """Isolated-atom energies by fidelity and atomic number; empty where they are fitted."""
    e0 = context.campaign.e0
    if e0 == "least-squares":
        return {}
    if e0 == "compute":
        found = isolated_energies(snapshot, context.fidelities)
        return {f: {str(z): e for z, e in own.items()} for f, own in found.items()}
    return {
        f: {str(z): own[s] for s, z in zip(own, _numbers(list(own)), strict=True)}
        for f, own in e0.items()
        if f in context.fidelities
    }


def test(context: Context, state: RoundState) -> dict[str, Any]:
    """Errors on the fixed test set at every level, the cheap levels' own error, parity points."""
    snapshot = context.store.snapshot()
    state.facts["test"], state.facts["parity"] = {}, {}
    for fidelity in context.fidelities:
        rows = rows_of(snapshot, TEST, [fidelity])
        if not rows:
            continue
        frames = labelled(snapshot, rows)
        scores = context.score(
            state.number, [r.structure_uid for r in rows], fidelity, name=f"test-{fidelity}"
        )
        measured = errors(frames, scores.prediction()).to_json()
        state.facts["test"][fidelity] = measured
        reference = isolated_energies(snapshot, [fidelity]).get(fidelity, {})
        state.facts["parity"][fidelity] = parity(frames, scores, reference)
    state.facts["baselines"] = baselines(snapshot, context.fidelities, context.target)
    state.facts["cost"] = cost(context, snapshot)
    return {}


def parity(
    frames: Sequence[Labelled], scores: CommitteeScores, e0: dict[int, float]
) -> dict[str, list[list[float]]]:
    """[label, committee] pairs: force components, and energies per atom counted from isolated atoms."""
    forces = np.concatenate([forces_of(f).reshape(-1) for f in frames])
    predicted = scores.mean_forces_eV_per_A.reshape(-1)
    step = max(1, len(forces) // PARITY_POINTS)
    energy = []
    for frame, e in zip(frames, scores.prediction().mean_energies, strict=True):
        assert frame.energy_eV is not None
        atoms = len(frame.atoms)
        zero = sum(e0.get(int(z), 0.0) for z in frame.atoms.numbers)
        energy.append([(frame.energy_eV - zero) / atoms, (float(e) - zero) / atoms])
    pairs = np.stack([forces, predicted], 1)[::step]
    return {"force": pairs.round(5).tolist(), "energy": np.round(energy, 6).tolist()}


def forces_of(label: Labelled | LabelRow) -> np.ndarray:
    """Forces [A,3], eV/Å; NaN where the label has none."""
    if label.forces_eV_per_A is None:
        return np.full((1, 3), np.nan)
    return label.forces_eV_per_A


def baselines(
    snapshot: Snapshot, fidelities: Sequence[str], target: str
) -> dict[str, dict[str, float]]:
    """Force RMSE of each cheaper level itself against the target, on the test structures that have both."""
    reference = {r.structure_uid: r for r in rows_of(snapshot, TEST, [target])}
    out = {}
    for fidelity in fidelities:
        rows: list[LabelRow] = [
            r for r in rows_of(snapshot, TEST, [fidelity]) if r.structure_uid in reference
        ]
        if fidelity == target or not rows:
            continue
        difference = np.concatenate(
            [forces_of(r) - forces_of(reference[r.structure_uid]) for r in rows]
        )
        out[fidelity] = {"force_rmse_eV_per_A": float(np.sqrt((difference**2).mean()))}
    return out


def cost(context: Context, snapshot: Snapshot) -> dict[str, Any]:
    """CPU seconds of all labels so far, failed ones too, and the number of labels; per fidelity."""
    seconds = dict.fromkeys(context.fidelities, 0.0)
    for row in snapshot.labels(status=None):
        if row.fidelity in seconds:
            seconds[row.fidelity] += row.cpu_s
    return {
        "labels_cpu_s": seconds,
        "cumulative_labels": total_labels(counts(snapshot, context.fidelities)),
    }
