"""What the checks of labels cost and found: rows for status and report, from the rounds' facts."""

from __future__ import annotations

import math
from typing import Any

from alchemy.report_facts import CampaignFacts, branch, counts, number


def trust_rows(facts: CampaignFacts) -> list[dict[str, Any]]:
    """Per fidelity, over all rounds; levels of which nothing was checked are left out."""
    rows = []
    for name in facts.fidelities:
        trees = [branch(tree, "trust", name) for tree in facts.rounds]
        row: dict[str, Any] = {
            "name": name,
            **{k: _sum(trees, k) for k in ("force_checks", "repeats", "suspects")},
            "force_gap_eV_per_A": _largest(trees, "force_gap_eV_per_A"),
            "label_noise_eV_per_A": _last(trees, "label_noise_eV_per_A"),
            "near_pairs": _last(trees, "near_pairs"),
            "near_slope": _last(trees, "near_slope"),
            "cpu_s": _sum(trees, "cpu_s"),
            "quarantined": {},
        }
        for tree in trees:
            for reason, n in counts(tree, "quarantined").items():
                row["quarantined"][reason] = row["quarantined"].get(reason, 0) + n
        done = row["force_checks"] + row["repeats"] + row["suspects"]
        if done or row["quarantined"] or not math.isnan(row["near_slope"]):
            rows.append(row)
    return rows


def trust_line(row: dict[str, Any]) -> str:
    """One level in a line: `pbe: 4 force checks, largest gap 3 meV/Å; 2 repeats, noise 0.1 meV/Å`."""
    parts = []
    if row["force_checks"]:
        parts.append(f"{row['force_checks']:.0f} force checks, {_gap(row['force_gap_eV_per_A'])} at most")
    if row["repeats"]:
        noise = row["label_noise_eV_per_A"]
        known = "" if math.isnan(noise) else f", noise {_gap(noise)}"
        parts.append(f"{row['repeats']:.0f} repeats{known}")
    if row["suspects"]:
        parts.append(f"{row['suspects']:.0f} suspects computed again")
    if row["quarantined"]:
        parts.append("set aside " + ", ".join(f"{reason} {n}" for reason, n in row["quarantined"].items()))
    cost = f" ({row['cpu_s']:.1f} CPU s)" if row["cpu_s"] > 0 else ""
    return f"{row['name']} labels checked{cost}: {'; '.join(parts)}" if parts else ""


def _gap(value: float) -> str:
    return f"{1e3 * value:.3g} meV/Å"


def _sum(trees: list[Any], key: str) -> float:
    return math.fsum(v for v in (number(tree, key) for tree in trees) if not math.isnan(v))


def _largest(trees: list[Any], key: str) -> float:
    return max((v for v in (number(tree, key) for tree in trees) if not math.isnan(v)), default=math.nan)


def _last(trees: list[Any], key: str) -> float:
    known = [v for v in (number(tree, key) for tree in trees) if not math.isnan(v)]
    return known[-1] if known else math.nan
