"""Round zero: structures to start from, the fixed test set, isolated atoms; and what to label of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from .. import tasks
from ..config_samples import Sample
from ..datasets import ISOLATED, TEST, TRAIN
from ..errors import StructureError
from ..identity import structure_uid
from ..labelers.isolated import isolated_atom
from ..records import atoms_from_document, read_json
from ..state import RoundState
from ..store import EventRow, SplitRow
from .context import Context
from .holdout import hold_out


def start(context: Context, state: RoundState) -> dict[str, Any]:
    """Generate, commit and say what must be labelled: {'requests': [[uid, fidelity], …]}."""
    items = [(TRAIN, n, item) for n, item in enumerate(context.campaign.start)]
    items += [(TEST, n, item) for n, item in enumerate(context.campaign.test)]
    requests = [_request(context, part, n, item) for part, n, item in items]
    made = context.run(tasks.generate, requests, resource="LABEL", what="start structures")
    structures: list[Atoms] = []
    splits: dict[str, str] = {}
    wanted: list[tuple[str, str]] = []
    groups: dict[str, dict[str, str]] = {}
    for (part, _, item), result in zip(items, made, strict=True):
        documents = read_json(Path(result["out"]))
        frames = [atoms_from_document(d) for d in documents]
        for atoms, document in zip(frames, documents, strict=True):
            groups[structure_uid(atoms)] = document.get("group", {})
        structures += frames
        for fidelity, indices in _to_label(item, len(frames), context.fidelities).items():
            wanted += [(structure_uid(frames[i]), fidelity) for i in indices]
        # test comes last: a structure that is in both belongs to the test set
        splits.update({structure_uid(a): part for a in frames})
    if context.campaign.holdout is not None:
        by_uid = {structure_uid(a): a for a in structures}
        splits.update(hold_out(context, by_uid, splits, groups=groups, wanted=wanted))
    _refuse_unlabelled(context, wanted, splits)
    if context.campaign.e0 == "compute":
        atoms = [isolated_atom(symbol) for symbol in context.campaign.elements]
        structures += atoms
        splits.update({structure_uid(a): ISOLATED for a in atoms})
        wanted = [
            (structure_uid(a), f) for f in context.fidelities for a in atoms
        ] + wanted
    now = time.time()
    context.store.append(
        structures=structures,
        splits=[SplitRow(uid, part, now) for uid, part in splits.items()],
        events=[EventRow(uid, "start", sampler=part, round=0, time=now) for uid, part in splits.items()],
    )
    return {"requests": sorted(set(wanted), key=wanted.index)}


def _request(context: Context, part: str, n: int, item: Sample) -> dict[str, Any]:
    directory = context.home.round(0)
    directory.mkdir(parents=True, exist_ok=True)
    return {
        "kind": item.kind,
        "source": item.source.model_dump(mode="json", by_alias=False),
        "base_dir": str(context.campaign.base_dir),
        "elements": list(context.campaign.elements),
        "labelers": {
            name: {"labeler": f.labeler, "options": f.options}
            for name, f in context.campaign.fidelities.items()
        },
        "seed": context.seed(0, "start", part, n),
        "scratch": str(directory / f"scratch-{part}-{n}"),
        "out": str(directory / f"{part}-{n}.json"),
    }


def _to_label(item: Sample, frames: int, fidelities: tuple[str, ...]) -> dict[str, list[int]]:
    """Which frames get a label at which fidelity: evenly spaced when not all do."""
    out = {}
    for name, count in item.label.items():
        if name not in fidelities:
            continue
        number = frames if count == "all" else min(int(count), frames)
        out[name] = sorted({int(i) for i in np.linspace(0, frames - 1, number).round()}) if number else []
    return out


def _refuse_unlabelled(
    context: Context, wanted: list[tuple[str, str]], splits: dict[str, str]
) -> None:
    for fidelity in context.fidelities:
        if not any(f == fidelity and splits[uid] == TRAIN for uid, f in wanted):
            raise StructureError(
                f"no start structure is labelled with '{fidelity}'; add it to the label block of a start "
                "item, so that the first committee knows this level"
            )
