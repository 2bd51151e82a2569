"""What a round has to watch: training that diverges, random structures, walks and labels that are in vain.

Errors of random structures have heavy tails, and the RMSE of a model may rise while its MAE falls
(`tace.divergence`); every round looks for it in the history of each member, whatever the structures are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from alchemy_policies.health import PUBLISHED_FORCE_RMS_eV_per_A, health
from ase import Atoms

from tace.divergence import diagnose
from tace.wording import count

from ..config_structure_checks import uses_reico
from .context import Context

SETTLED_STEPS = 100  # validations of a shorter training scatter for other reasons


def watch_training(context: Context, results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the members' histories show, worst first said to people; empty where all is well."""
    found = []
    for result in results:
        seen = diagnose(result["history"])
        if seen is not None and result["history"][-1]["step"] >= SETTLED_STEPS:
            found.append({"member": result["member"], "kind": seen.kind, "message": seen.message})
    if found:
        members = ", ".join(str(entry["member"]) for entry in found)
        context.progress.message(
            f"training, member {members}: {found[0]['message']}; {_advice(context)}"
        )
    return found


def _advice(context: Context) -> str:
    if not context.campaign.model.les:
        return "set model.les: true, which cured it in the TACE paper"
    if uses_reico(context.campaign):
        return "lower model.train.learning_rate, or more relax_steps of reico, which lower the forces"
    return "lower model.train.learning_rate, and look at the labels with the largest forces"


def watch_random(
    context: Context, frames: Sequence[Atoms], forces_eV_per_A: Sequence[np.ndarray]
) -> dict[str, Any]:
    """Health of random structures with the committee's forces on them."""
    document = health(frames, forces_eV_per_A)
    nearest, rms = document["nearest_A"], document["forces"]["rms_eV_per_A"]
    context.progress.message(
        f"reico: {len(frames)} structures, nearest neighbours {nearest['p5']:.2f} to {nearest['p95']:.2f} A "
        f"(5 to 95 %), forces {rms:.2f} eV/A RMS by the committee ({PUBLISHED_FORCE_RMS_eV_per_A:.2f} in "
        "the published set)"
    )
    return document


def watch_walks(
    context: Context, requests: Sequence[dict[str, Any]], documents: Sequence[dict[str, Any]]
) -> None:
    """Say so where the committee is too unsure for any walker of an explorer to take a step."""
    for request, document in zip(requests, documents, strict=True):
        walkers = document["walkers"]
        if walkers and all(one["outcome"] == "abort" for one in walkers):
            least = min(one["max_expected_error_eV_per_A"] or math.nan for one in walkers)
            context.progress.message(
                f"{request['explorer']}: all of {count(len(walkers), 'walker')} aborted, as the expected "
                f"error, {least:.3g} eV/A or more, exceeds abort_above"
            )


def watch_labels(context: Context, facts: dict[str, Any]) -> dict[str, Any]:
    """The facts of a round's labels as they are; failed ones are said, with their reasons."""
    for fidelity, own in facts.items():
        failed = sum(own["failed"].values())
        if failed:
            why = ", ".join(f"{n} {reason}" for reason, n in sorted(own["failed"].items()))
            asked = count(failed + own["ok"], f"{fidelity} label")
            context.progress.message(f"{failed} of {asked} failed: {why}")
    return facts
