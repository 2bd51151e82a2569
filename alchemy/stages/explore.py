"""Look for what the committee does not know, and score what was found."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alchemy_policies.calibration import Calibration
from alchemy_policies.guards import is_slab
from alchemy_policies.ladder import Climb
from ase import Atoms

from tace.errors import TaceError

from .. import tasks
from ..config_blocks import StopMd
from ..config_samples import Explore
from ..datasets import TEST, TRAIN
from ..errors import AlchemyError, EnvironmentProblemError, InputError
from ..generate import read_structures
from ..identity import structure_uid
from ..records import atoms_from_document, frame_to_document
from ..state import RoundState
from ..store import EventRow, PredictionRow, Snapshot
from . import saddles
from .context import Context
from .downhill import downhill_conditions
from .dynamics import climbed, climbs, dynamics, energy_limit
from .model import data_of
from .watch import watch_random, watch_walks

_SAID = (TaceError, AlchemyError)  # errors with a message for people


def explore(context: Context, state: RoundState, calibration: Calibration) -> dict[str, Any]:
    """Every condition is a task; candidates go to the store with where they came from."""
    snapshot = data_of(context, state)  # a resume must find the starts of walks that are over
    requests: list[dict[str, Any]] = []
    past, far_out = climbs(context, state.number), energy_limit(context, state, snapshot)
    for n, item in enumerate(context.campaign.explore):
        work = (
            saddles.searches(context, state, n)
            if item.ts is not None
            else _work(context, snapshot, item, past.get(n, []))
        )
        for starts, options in work:
            requests.append(
                {
                    "explorer": item.kind,
                    "ladder": n if item.md is not None and item.md.ladder_fs else None,
                    "options": {**options, **(far_out if item.md is not None else {})},
                    "starts": [frame_to_document(a) for a in starts],
                    "models": context.models(state.number),
                    "fidelity": context.target,
                    "calibration": calibration.to_json(),
                    "seed": context.seed(state.number, "explore", n, len(requests)),
                    "out": str(state.directory / f"explore-{len(requests)}.json"),
                }
            )
    requests, documents, broken = _explored(context, requests)
    watch_walks(context, requests, documents)
    uids, made = _commit(context, state, snapshot, documents, requests)
    walkers = [w for d in documents for w in d["walkers"]]
    state.facts["explore"] = {
        "candidates": len(uids),
        "force_calls": sum(d["force_calls"] for d in documents),
        "outcomes": dict(Counter(w["outcome"] for w in walkers)),
        "cpu_s": sum(d["cpu_s"] for d in documents),
        **far_out,
    }
    if broken:
        state.facts["explore"]["broken"] = broken
    ladders = climbed(requests, documents)
    if ladders:
        state.facts["explore"]["ladders"] = ladders
    if any(item.ts is not None for item in context.campaign.explore):
        state.facts["explore"]["reactions"] = saddles.found(context, state, documents, requests)
        uids = saddles.within_cap(state, uids)
    random = [uid for uid in uids if uid in made["reico"]]
    return {"candidates": uids, **({"reico": random} if random else {})}


def _explored(
    context: Context, requests: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, str]]]:
    """Requests that were fulfilled, what each found, and what became of the others.

    An explorer that fails costs the round its candidates, not the campaign; unless all of them do.

    Raises:
        TaceError, AlchemyError: nobody found anything; as the first one said.
        EnvironmentProblemError: the same of a plug-in's own exception, or of a dead worker.
    """
    outcomes = context.run_each(tasks.explore, requests, resource="GPU", what="explore")
    kept, documents, broken = [], [], []
    first: BaseException | None = None
    for request, outcome in zip(requests, outcomes, strict=True):
        if isinstance(outcome, BaseException):
            first = first or outcome
            said = str(outcome) if isinstance(outcome, _SAID) else f"{type(outcome).__name__}: {outcome}"
            broken.append({"explorer": request["explorer"], "message": said})
            context.progress.message(f"explorer '{request['explorer']}' failed: {said}")
        else:
            kept.append(request)
            documents.append(tasks.read_candidates(Path(outcome["out"])))
    if first is not None and not documents:
        if isinstance(first, _SAID):
            raise first
        raise EnvironmentProblemError(
            f"explorer '{broken[0]['explorer']}' failed: {broken[0]['message']}; the round has no other"
        ) from first
    return kept, documents, broken


def _work(
    context: Context, snapshot: Snapshot, item: Explore, past: Sequence[Climb]
) -> list[tuple[list[Atoms], dict[str, Any]]]:
    """Starts and options of every task of an item."""
    starts = _starts(context, snapshot, item)
    return [(starts, options) for options in conditions(item, context.campaign.stop_md, past)]


def _starts(context: Context, snapshot: Snapshot, item: Explore) -> list[Atoms]:
    """Structures of a file, or every labelled training structure of the target level.

    At a pressure only those with a volume: a training set may hold molecules and slabs beside crystals.
    Random structures need none.
    """
    md, named = item.md, "start" if item.plugin else item.block.structures
    if named is None:
        return []
    if named != "start":
        return read_structures(context.campaign.resolve(named), ":", context.campaign.elements)
    parts = snapshot.part_of()
    uids = {r.structure_uid for r in snapshot.labels(fidelity=context.target)}
    chosen = sorted(uid for uid in uids if parts.get(uid) == TRAIN)
    frames = snapshot.structures(chosen)
    if md is None or md.ensemble != "npt":
        return frames
    periodic = [atoms for atoms in frames if atoms.pbc.all() and not is_slab(atoms)]
    if not periodic:
        raise InputError(
            "ensemble npt: no labelled training structure is periodic along three axes without a vacuum; "
            "name a file of crystals or liquids with 'structures:', or choose ensemble nvt"
        )
    return periodic


def conditions(item: Explore, stop: StopMd, past: Sequence[Climb] = ()) -> list[dict[str, Any]]:
    """Options of the explorer, one entry per task; `past`: what a ladder has seen in earlier rounds."""
    if item.plugin is not None:
        return [dict(item.options)]
    if item.md is None:
        return downhill_conditions(item.block, stop)
    return dynamics(item.md, stop, past)


def _commit(
    context: Context,
    state: RoundState,
    snapshot: Snapshot,
    documents: list[dict[str, Any]],
    requests: list[dict[str, Any]],
) -> tuple[list[str], dict[str, set[str]]]:
    """Structures and events; uids that may be labelled, without known and test ones, and all by source."""
    now = time.time()
    parts = snapshot.part_of()
    structures, events, fresh = [], [], []
    made: dict[str, set[str]] = defaultdict(set)
    for document, request in zip(documents, requests, strict=True):
        for candidate in document["candidates"]:
            atoms = atoms_from_document(candidate["structure"])
            uid = structure_uid(atoms)
            index = document["walkers"][candidate["walker"]]["start"]
            start = atoms_from_document(request["starts"][index]) if index >= 0 else None
            if start is not None:
                atoms.set_constraint(start.constraints)  # the next walk holds the same atoms
            structures.append(atoms)
            made[candidate["source"]].add(uid)
            error = candidate["expected_error_eV_per_A"]
            events.append(
                EventRow(
                    uid,
                    "candidate",
                    parent_uid=None if start is None else structure_uid(start),
                    sampler=candidate["source"],
                    reason=candidate["reason"],
                    round=state.number,
                    step=candidate["step"],
                    temperature_K=candidate["temperature_K"],
                    expected_error_eV_per_A=float("nan") if error is None else error,
                    time=now,
                )
            )
            if parts.get(uid) not in (TRAIN, TEST):
                fresh.append(uid)
    context.store.append(structures=structures, events=events)
    return list(dict.fromkeys(fresh)), made


def score(context: Context, state: RoundState, uids: list[str]) -> dict[str, Any]:
    """Predictions of all candidates with their spread, kept in the store."""
    if not uids:
        return {}
    scores = context.score(state.number, uids, context.target, name="candidates")
    prediction = scores.prediction()
    spreads = scores.per_structure(scores.force_spread_eV_per_A)
    random = set((state.outputs("explore") or {}).get("reico", ()))
    if random:
        places = [n for n, uid in enumerate(uids) if uid in random]
        chosen = [uids[n] for n in places]
        frames = context.store.snapshot().structures(chosen)
        forces = scores.per_structure(scores.mean_forces_eV_per_A)
        state.facts["reico"] = watch_random(context, frames, [forces[n] for n in places])
    model_set = context.model_set(state.number)
    context.store.append(
        predictions=[
            PredictionRow(
                structure_uid=uid,
                model_set=model_set,
                fidelity=context.target,
                energy_eV=float(prediction.mean_energies[n]),
                energy_std_eV=float(prediction.energy_spread[n]),
                max_force_std_eV_per_A=float(spreads[n].max()),
                force_std_eV_per_A=spreads[n],
            )
            for n, uid in enumerate(uids)
        ]
    )
    return {"scored": len(uids)}
