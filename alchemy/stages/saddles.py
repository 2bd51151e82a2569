"""Transition states within a campaign's rounds: which reactions are searched, labelled, and done.

Each round the reactions that are not settled are searched with the committee of the round; a saddle that
holds its checks is labelled before anything else, and the label is compared with what the committee said.
A reaction is settled when both agree, when its labels are used up, or when its ends cannot be joined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from alchemy_policies.base import StopReason

from ..config_ts import ExploreTs
from ..datasets import labelled
from ..identity import label_key, structure_uid
from ..reactions import reactions_of
from ..records import atoms_from_document
from ..state import RoundState

if TYPE_CHECKING:
    from alchemy_policies.ts import Reaction
    from ase import Atoms

    from .context import Context

AGREED, LABEL_CAP, DISCONNECTED = "agreed", "label-cap", "disconnected"
# what is kept first where more was offered than may be labelled
_WORTH = ("saddle", "unconfirmed-saddle", "end", "surplus-mode", "crossed", "path", "along-mode", "last-good")


def searches(context: Context, state: RoundState, number: int) -> list[tuple[list[Atoms], dict[str, Any]]]:
    """Start structures and options of the explorer, one pair per composition: those run side by side,
    and twins among their saddles are known.

    Args:
        number: of the item in the campaign's explore block.
    """
    item = context.campaign.explore[number].ts
    assert item is not None
    settled = {row["name"] for row in history(context, state.number - 1) if row["settled"]}
    groups: dict[str, list[Reaction]] = {}
    for reaction in reactions_of(context.campaign, number):
        if reaction.name not in settled:
            groups.setdefault(reaction.reactant.get_chemical_formula(), []).append(reaction)
    return [_search(context, item, group) for group in groups.values()]


def _search(
    context: Context, item: ExploreTs, group: Sequence[Reaction]
) -> tuple[list[Atoms], dict[str, Any]]:
    stop = context.campaign.stop_md
    starts: list[Atoms] = []
    entries: list[dict[str, Any]] = []
    for reaction in group:
        entry: dict[str, Any] = {"name": reaction.name, "is_guess": reaction.is_guess}
        for what in ("reactant", "product", "guess"):
            atoms = getattr(reaction, what)
            if atoms is not None:
                entry[what] = len(starts)
                starts.append(atoms)
        entries.append({**entry, "fixed": list(item.fixed)})
    return starts, {
        "reactions": entries,
        "label_above_eV_per_A": stop.label_above_eV_per_A,
        "abort_above_eV_per_A": stop.abort_above_eV_per_A,
        "guards": {
            "pair_factor": stop.guards.min_distance_factor,
            "max_force_eV_per_A": stop.guards.max_force_eV_per_A,
        },
        "search": {
            "method": item.method,
            "images": item.images,
            "fmax_eV_per_A": item.fmax_eV_per_A,
            "along_mode_A": item.along_mode_A,
        },
    }


def found(
    context: Context,
    state: RoundState,
    documents: Sequence[Mapping[str, Any]],
    requests: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """What the searches of a round report, each with the structures that may be labelled for it."""
    before = {row["name"]: row for row in history(context, state.number - 1)}
    items = {reaction: item for item, reaction in _names(context)}
    rows = []
    for document, request in zip(documents, requests, strict=True):
        reports = document.get("facts", {}).get("reactions", [])
        if request["explorer"] != "ts":
            continue
        for walker, report in enumerate(reports):
            own = [c for c in document["candidates"] if c["walker"] == walker]
            # it is offered before the product
            reactant = next((c for c in own if c["reason"] == "end"), None)
            own.sort(key=lambda c: (_WORTH.index(c["reason"]), -(c["expected_error_eV_per_A"] or 0.0)))
            uids = [structure_uid(atoms_from_document(c["structure"])) for c in own]
            item = items[report["name"]]
            room = item.max_labels - before.get(report["name"], {"labels": 0})["labels"]
            saddle = next((u for u, c in zip(uids, own, strict=True) if c["reason"] == "saddle"), None)
            kept = list(dict.fromkeys(uids))[: max(0, room)]
            row = {**report, "saddle_uid": saddle, "kept": kept, "offered": uids}
            row["reactant_uid"] = None if reactant is None else uids[own.index(reactant)]
            rows.append(row)
    return rows


def _names(context: Context) -> list[tuple[ExploreTs, str]]:
    return [
        (item.ts, reaction.name)
        for number, item in enumerate(context.campaign.explore)
        if item.ts is not None
        for reaction in reactions_of(context.campaign, number)
    ]


def within_cap(state: RoundState, uids: Sequence[str]) -> list[str]:
    """Candidates without those for which their reaction has no labels left."""
    rows = state.facts["explore"].get("reactions", [])
    kept = {uid for row in rows for uid in row["kept"]}
    refused = {uid for row in rows for uid in row["offered"]} - kept
    return [uid for uid in uids if uid not in refused]


def picks(state: RoundState, uids: Sequence[str], room: int) -> dict[str, str]:
    """Saddles that hold their checks, to be labelled before all else: uid -> why."""
    rows = state.facts.get("explore", {}).get("reactions", [])
    wanted = [row["saddle_uid"] for row in rows if row["saddle_uid"] in uids]
    return dict.fromkeys(wanted[: max(0, room)], "saddle")


def assess(context: Context, state: RoundState, picked: Sequence[Mapping[str, Any]]) -> None:
    """Compare labels with what the committee said of its saddles; facts 'saddles', one row each."""
    rows = state.facts.get("explore", {}).get("reactions")
    if rows is None or not any(item.ts is not None for item in context.campaign.explore):
        return
    items = {name: item for item, name in _names(context)}
    bought = {p["uid"] for p in picked if context.target in p["fidelities"]}
    before = {row["name"]: row for row in history(context, state.number - 1)}
    fresh, barriers = {}, []
    for row in rows:
        name, item = row["name"], items[row["name"]]
        labels = before.get(name, {"labels": 0})["labels"] + len(bought & set(row["kept"]))
        difference, force = _compared(context, row, item)
        agreed = (
            difference is not None
            and force is not None
            and abs(difference) < item.agree_energy_eV
            and force < item.agree_force_eV_per_A
        )
        settled = AGREED if agreed else LABEL_CAP if labels >= item.max_labels else None
        if row["outcome"] == DISCONNECTED:
            settled = DISCONNECTED
        fresh[name] = {
            "name": name,
            "outcome": row["outcome"],
            "message": row.get("message"),
            "barrier_eV": row.get("barrier_eV"),
            "imaginary_per_cm": next(iter(row.get("lowest_frequencies_per_cm", [])), None),
            "labels": labels,
            "model_minus_label_eV": difference,
            "largest_labelled_force_eV_per_A": force,
            "settled": settled,
            "round": state.number,
        }
        labelled_barrier = _labelled_barrier(context, row)
        if labelled_barrier is not None and row.get("barrier_eV") is not None:
            barriers.append(abs(row["barrier_eV"] - labelled_barrier))
            fresh[name]["labelled_barrier_eV"] = labelled_barrier
    if barriers:
        state.facts["barriers"] = {"mae_eV": float(np.mean(barriers)), "count": len(barriers)}
    state.facts["saddles"] = list({**before, **fresh}.values())


def _compared(
    context: Context, row: Mapping[str, Any], item: ExploreTs
) -> tuple[float | None, float | None]:
    """Model − label at the saddle, and the largest labelled force on an atom that moves."""
    uid = row["saddle_uid"]
    if uid is None:
        return None, None
    snapshot = context.store.snapshot()
    label = snapshot.label(label_key(uid, context.target, context.fingerprints[context.target]))
    if label is None or label.status != "ok":
        return None, None
    (frame,) = labelled(snapshot, [label])
    if frame.energy_eV is None or frame.forces_eV_per_A is None:
        return None, None
    forces = np.linalg.norm(frame.forces_eV_per_A, axis=1)
    moving = np.ones(len(forces), dtype=bool)
    moving[list(item.fixed)] = False
    return float(row["energy_eV"] - frame.energy_eV), float(forces[moving].max())


def _labelled_barrier(context: Context, row: Mapping[str, Any]) -> float | None:
    """Energy of the saddle above that of the reactant by labels; None where one of them has none."""
    snapshot, energies = context.store.snapshot(), list[float]()
    for uid in (row["reactant_uid"], row["saddle_uid"]):
        key = uid and label_key(uid, context.target, context.fingerprints[context.target])
        label = snapshot.label(key) if key else None
        if label is None or label.status != "ok" or label.energy_eV is None:
            return None
        energies.append(label.energy_eV)
    return energies[1] - energies[0]


def history(context: Context, number: int) -> list[dict[str, Any]]:
    """The rows of the last round, up to `number`, that has any."""
    for n in range(number, 0, -1):
        facts = RoundState(context.home, n).facts
        if "saddles" in facts:
            rows: list[dict[str, Any]] = facts["saddles"]
            return rows
    return []


def stop(context: Context, state: RoundState) -> StopReason | None:
    """A campaign that does nothing but look for saddles ends when all reactions are settled."""
    explore, rows = context.campaign.explore, state.facts.get("saddles", [])
    if not rows or not all(item.ts is not None for item in explore):
        return None
    open_ = [row for row in rows if row["settled"] is None]
    if open_ or len(rows) < len(_names(context)):
        return None
    others = [f"{row['name']} ({row['settled']})" for row in rows if row["settled"] != AGREED]
    if others:
        agreed = len(rows) - len(others)
        return StopReason(
            "transition-states", f"{agreed} saddles agree with their labels, not {', '.join(others)}", 5
        )
    return StopReason("transition-states", f"model and label agree at all {len(rows)} saddles", 0)
