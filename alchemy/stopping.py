"""When a campaign is done: the rules that its `stop` block asks for, and the facts they judge."""

from __future__ import annotations

import time

from alchemy_policies.base import RoundFacts, StopReason, StopRule

from tace.wording import count

from .config import Campaign
from .datasets import counts, total_labels
from .plugins import blamed_on, construct, find
from .records import read_json
from .stages import saddles
from .stages.context import Context
from .stages.dynamics import still_to_climb
from .stages.pool import label_noise
from .state import RoundState


def stop_rules(campaign: Campaign) -> list[StopRule]:
    """Goals together, then each limit by itself."""
    block = campaign.stop
    goals = {
        "force_rmse": block.force_rmse_eV_per_A,
        "element_rmse": block.element_rmse_eV_per_A,
        "coverage": block.coverage,
        "barrier_mae": block.barrier_mae_eV,
        "candidate_fraction": block.candidate_fraction,
    }
    asked = tuple(
        find("stops", name)(value, patience=block.patience)
        for name, value in goals.items()
        if value is not None
    )
    rules: list[StopRule] = []
    if asked:
        from alchemy_policies.goals import AllGoals

        rules.append(AllGoals(asked))
    if block.labels:
        rules.append(find("stops", "labels")(dict(block.labels)))
    if block.cost_s is not None:
        rules.append(find("stops", "cost")(block.cost_s))
    if block.wall_s is not None:
        rules.append(find("stops", "wall")(block.wall_s))
    if block.stalled is not None:  # the more telling reason first
        rules += [find("stops", name)(block.stalled, block.gain) for name in ("model_limited", "stalled")]
    rules += [construct("stops", name, options) for name, options in block.plugins.items()]
    rules.append(find("stops", "rounds")(block.rounds))
    return rules


def decide_stop(context: Context, state: RoundState) -> StopReason | None:
    """The first rule's reason; a round without anything to buy ends a campaign too."""
    past = [RoundState(context.home, n) for n in range(1, state.number)]
    history = [facts_of(context, one) for one in (*past, state)]
    for rule in stop_rules(context.campaign):
        with blamed_on("stop rule", rule):
            reason = rule(history)
        if reason is not None:
            return reason
    settled = saddles.stop(context, state)
    if settled is not None:
        return settled
    if (state.outputs("select") or {}).get("picked", []) or history[-1].unclimbed:
        return None  # a ladder goes on to what is harder
    return nothing_new(state)


def nothing_new(state: RoundState) -> StopReason:
    """The round found nothing to buy: because nothing was offered, or why what was offered was left."""
    offered = state.facts.get("explore", {}).get("candidates", 0)
    what = "the explorers offered no structure that is not trained on or tested with already"
    if offered:
        rejected = state.facts.get("select", {}).get("rejected", {})
        left = ", ".join(f"{n} {why}" for why, n in sorted(rejected.items()))
        what = f"no candidate was worth a label ({count(offered, 'candidate')}: {left})"
    return StopReason("nothing-new", f"{what}; explore wider or stop here", 5)


def facts_of(context: Context, state: RoundState) -> RoundFacts:
    """What the round's documents and the store say."""
    fresh = state.facts.get("fresh", {}).get(context.target, {})
    random = fresh.get("random", {})
    explored = state.outputs("explore") or {"candidates": []}
    selected = state.outputs("select") or {"above_threshold": 0}
    test = state.facts.get("test", {}).get(context.target, {})
    cost = state.facts.get("cost", {})
    snapshot = context.store.snapshot()
    labels = cost.get("cumulative_labels") or total_labels(counts(snapshot, context.fidelities))
    barriers = state.facts.get("barriers") or {}
    return RoundFacts(
        round=state.number,
        target=context.target,
        labels=labels,
        fresh_force_rmse_eV_per_A=fresh.get("force_rmse_eV_per_A"),
        fresh_random_force_rmse_eV_per_A=random.get("force_rmse_eV_per_A"),
        fresh_frames=fresh.get("frames", 0),
        test_force_rmse_eV_per_A=test.get("force_rmse_eV_per_A"),
        wall_s=time.time() - read_json(context.home.facts)["started_unix_s"],
        candidates=len(explored["candidates"]),
        candidates_above_threshold=selected["above_threshold"],
        fresh_random_frames=random.get("frames"),
        fresh_element_rmse_eV_per_A=random.get("element_force_rmse_eV_per_A"),
        coverage_90=random.get("coverage_90"),
        barrier_mae_eV=barriers.get("mae_eV"),
        barriers=barriers.get("count", 0),
        train_force_rmse_eV_per_A=state.facts.get("train", {}).get("force_rmse_eV_per_A"),
        label_noise_eV_per_A=label_noise(snapshot, context.target),
        unclimbed=still_to_climb(context, state.number),
        labels_cpu_s=sum(cost["labels_cpu_s"].values()) if "labels_cpu_s" in cost else None,
    )
