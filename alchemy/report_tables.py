"""The tables of the report: facts in, rows out. Numbers stay numbers; the template writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from alchemy.report_facts import (
    CampaignFacts,
    branch,
    cost_at_training,
    counts,
    failures,
    fixed_test_rmse,
    fresh_rmse,
    latest,
    number,
    total,
)

PICKS_SHOWN = 60  # per round: a person reads the first ones, and the file has to stay small
ROUNDS_OPEN = 3  # selections of older rounds are folded away
THIN = "\u2009"


def mev(value: float) -> str:
    """A force (eV/Å) in meV/Å, or an energy per atom (eV) in meV."""
    return "–" if math.isnan(value) else f"{1000 * value:.1f}"


def plain(value: float | None, digits: int = 2) -> str:
    """A number with so many decimals; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def count_text(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:,.0f}".replace(",", THIN) if abs(value) >= 10000 else f"{value:.0f}"


def cpu_text(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.1f}" if abs(value) < 100 else count_text(value)


def percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.0f} %"


def tiles(facts: CampaignFacts) -> list[dict[str, str]]:
    target = facts.target
    test = latest(facts, "test", target)
    spent = total(latest(facts, "cost", "labels_cpu_s"))
    labels = counts(latest(facts, "cost", "cumulative_labels") or latest(facts, "train", "labels"))
    others = ", ".join(f"{count_text(n)} {name}" for name, n in labels.items() if name != target)
    fresh = latest(facts, "fresh", target)
    mae, frames = mev(number(test, "force_mae_eV_per_A")), count_text(number(test, "frames"))
    return [
        {
            "name": "Force RMSE, fixed test set",
            "unit": "meV/Å",
            "value": mev(number(test, "force_rmse_eV_per_A")),
            "note": f"MAE {mae} meV/Å" if mae != "–" else "",
        },
        {
            "name": "Energy RMSE, fixed test set",
            "unit": "meV/atom",
            "value": mev(number(test, "energy_rmse_eV_per_atom")),
            "note": f"{frames} frames" if frames != "–" else "",
        },
        {
            "name": f"{target} labels bought",
            "unit": "",
            "value": count_text(labels.get(target)),
            "note": f"and {others}" if others else "",
        },
        {
            "name": "Spent on labels",
            "unit": "CPU s",
            "value": cpu_text(spent),
            "note": f"{spent / 3600:.2f} CPU h" if spent >= 360 else "",
        },
        {
            "name": "Errors below the 90 % bound",
            "unit": "",
            "value": percent(number(fresh, "coverage_90")),
            "note": "newest fresh labels; 90 % is right",
        },
    ]


def round_rows(facts: CampaignFacts) -> list[dict[str, Any]]:
    rows, target = [], facts.target
    before = (math.nan, math.nan)
    for position, tree in enumerate(facts.rounds):
        here = (cost_at_training(facts, position), fixed_test_rmse(tree, target))
        paid, gained = here[0] - before[0], before[1] - here[1]
        price = (
            "–"
            if math.isnan(paid) or math.isnan(gained)
            else (cpu_text(paid / (1000 * gained)) if gained > 0 else "no gain")
        )
        test, fresh = branch(tree, "test", target), branch(tree, "fresh", target)
        rows.append(
            {
                "round": tree["round"],
                "labels": counts(tree, "train", "labels"),
                "rmse": here[1],
                "mae": number(test, "force_mae_eV_per_A"),
                "energy": number(test, "energy_rmse_eV_per_atom"),
                "fresh": fresh_rmse(tree, target),
                "frames": number(fresh, "frames"),
                "random": fresh_rmse(tree, target, random_slice=True),
                "random_frames": number(fresh, "random", "frames"),
                "coverage": number(fresh, "coverage_90"),
                "cost": here[0],
                "price": price,
            }
        )
        before = here
    return rows


def comparison_rows(campaigns: Sequence[CampaignFacts]) -> list[dict[str, Any]]:
    """Labels and cost that each campaign needed for the error that all of them reached."""
    curves = [
        [
            (fixed_test_rmse(tree, c.target), tree, cost_at_training(c, i))
            for i, tree in enumerate(c.rounds)
        ]
        for c in campaigns
    ]
    curves = [[point for point in curve if not math.isnan(point[0])] for curve in curves]
    common = max((min(p[0] for p in curve) for curve in curves if curve), default=math.nan)
    rows = []
    for facts, curve in zip(campaigns, curves, strict=True):
        first = next((point for point in curve if point[0] <= common), None)
        labels = counts(first[1], "train", "labels") if first else {}
        rows.append(
            {
                "name": facts.name,
                "target": facts.target,
                "common": common,
                "frames": number(latest(facts, "test", facts.target), "frames"),
                "final": curve[-1][0] if curve else math.nan,
                "final_labels": counts(curve[-1][1], "train", "labels") if curve else {},
                "final_cost": curve[-1][2] if curve else math.nan,
                "needed": labels,
                "round": first[1]["round"] if first else None,
                "needed_cost": first[2] if first else math.nan,
            }
        )
    return rows


def element_rows(facts: CampaignFacts) -> dict[str, Any]:
    trees = [
        branch(t, "test", facts.target, "force_rmse_by_element_eV_per_A") for t in facts.rounds
    ]
    names = list(dict.fromkeys(name for tree in trees for name in tree))
    rows = [
        {"round": facts.rounds[i]["round"], "values": [number(tree, n) for n in names]}
        for i, tree in enumerate(trees)
        if tree
    ]
    return {"names": names, "rows": rows}


def explore_rows(facts: CampaignFacts) -> dict[str, Any]:
    matrix = reasons_by_round(facts, "explore", "outcomes")
    for row in matrix["rows"]:
        tree = next(t for t in facts.rounds if t["round"] == row["round"])
        row["candidates"] = number(tree, "explore", "candidates")
        row["force_calls"] = number(tree, "explore", "force_calls")
        row["cpu_s"] = number(tree, "explore", "cpu_s")
        row["sum"] = sum(row["values"])
    return matrix


def reasons_by_round(facts: CampaignFacts, stage: str, key: str) -> dict[str, Any]:
    """Counts by reason, one row per round that did this stage; the commonest reason first."""
    found = {t["round"]: counts(t, stage, key) for t in facts.rounds if branch(t, stage)}
    sums: dict[str, int] = {}
    for reasons in found.values():
        for reason, n in reasons.items():
            sums[reason] = sums.get(reason, 0) + n
    names = sorted(sums, key=lambda reason: (-sums[reason], reason))
    rows = [
        {"round": index, "values": [reasons.get(name, 0) for name in names]}
        for index, reasons in found.items()
    ]
    return {"names": names, "rows": rows}


def selections(facts: CampaignFacts) -> list[dict[str, Any]]:
    found = []
    for tree in facts.rounds:
        picked = branch(tree, "select").get("picked")
        if not isinstance(picked, list):
            continue
        rows = [
            {
                "uid": str(branch(pick).get("uid", "–"))[:8],
                "why": str(branch(pick).get("why", "–")),
                "expected": number(pick, "expected_error_eV_per_A"),
                "fidelities": [str(name) for name in branch(pick).get("fidelities") or []],
            }
            for pick in picked
        ]
        found.append(
            {
                "round": tree["round"],
                "rows": rows[:PICKS_SHOWN],
                "count": len(rows),
                "hidden": max(0, len(rows) - PICKS_SHOWN),
            }
        )
    for position, entry in enumerate(found):
        entry["open"] = position >= len(found) - ROUNDS_OPEN
    return found


def label_rows(facts: CampaignFacts) -> list[dict[str, Any]]:
    """Per fidelity: all labels that exist, and what the rounds asked for."""
    have = counts(latest(facts, "cost", "cumulative_labels") or latest(facts, "train", "labels"))
    spent = latest(facts, "cost", "labels_cpu_s")
    everything = total(spent)
    failed = failures(facts)
    rows = []
    for name in facts.fidelities:
        trees = [branch(tree, "label", name) for tree in facts.rounds]
        cpu = number(spent, name)
        rows.append(
            {
                "name": name,
                "labeler": str(branch(facts.meta, "fidelities", name).get("labeler", "–")),
                "have": have.get(name),
                "asked_ok": sum(counts(tree).get("ok", 0) for tree in trees),
                "failed": sum(failed.get(name, {}).values()),
                "cpu_s": cpu,
                "each": cpu / have[name] if have.get(name) else math.nan,
                "share": cpu / everything if everything > 0 else math.nan,
            }
        )
    return rows


def compute(facts: CampaignFacts) -> list[tuple[str, float]]:
    """CPU seconds by what they were spent on, known parts only."""
    parts = {
        "labels": total(latest(facts, "cost", "labels_cpu_s")),
        "training": total({str(t["round"]): number(t, "train", "cpu_s") for t in facts.rounds}),
        "exploration": total(
            {str(t["round"]): number(t, "explore", "cpu_s") for t in facts.rounds}
        ),
    }
    return [(name, value) for name, value in parts.items() if not math.isnan(value)]


def failure_rows(facts: CampaignFacts) -> list[dict[str, Any]]:
    return [
        {"round": tree["round"], "fidelity": fidelity, "reason": reason, "count": n}
        for tree in facts.rounds
        for fidelity in branch(tree, "label")
        for reason, n in counts(tree, "label", fidelity, "failed").items()
    ]
