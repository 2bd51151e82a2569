"""Tables of the report on searches: reactions, random structures, and how far dynamics climbed."""

from __future__ import annotations

from typing import Any

from alchemy.report_facts import CampaignFacts, branch, number


def reaction_rows(facts: CampaignFacts) -> list[dict[str, Any]]:
    """One row per reaction, as the last round that searched left it."""
    last: list[dict[str, Any]] = []
    for tree in facts.rounds:
        rows = tree.get("saddles")
        last = rows if isinstance(rows, list) else last
    return [
        {
            "name": row["name"],
            "round": row["round"],
            "outcome": row["outcome"],
            "barrier_eV": row.get("barrier_eV"),
            "labelled_barrier_eV": row.get("labelled_barrier_eV"),
            "imaginary_per_cm": row.get("imaginary_per_cm"),
            "off_meV": _thousand(row.get("model_minus_label_eV")),
            "force_meV_per_A": _thousand(row.get("largest_labelled_force_eV_per_A")),
            "labels": row["labels"],
            "settled": row["settled"] or "open",
            "message": row.get("message") or "",
        }
        for row in last
    ]


def random_rows(facts: CampaignFacts) -> list[dict[str, Any]]:
    """Health of the random structures of each round that made some."""
    rows = []
    for tree in facts.rounds:
        found = branch(tree, "reico")
        if found:
            rows.append(
                {
                    "round": tree["round"],
                    "structures": int(number(found, "structures")),
                    "nearest_low_A": number(found, "nearest_A", "p5"),
                    "nearest_high_A": number(found, "nearest_A", "p95"),
                    "force_rms_eV_per_A": number(found, "forces", "rms_eV_per_A"),
                    "largest_eV_per_A": number(found, "forces", "largest_eV_per_A"),
                    "isolated": number(found, "structures_with_isolated_atoms"),
                }
            )
    return rows


def ladder_rows(facts: CampaignFacts) -> list[dict[str, Any]]:
    """What each round walked on ladders, and how many walkers reached the end."""
    rows = []
    for tree in facts.rounds:
        for climbs in branch(tree, "explore", "ladders").values():
            for climb in climbs:
                rows.append(
                    {
                        "round": tree["round"],
                        "T_K": climb["temperature_K"],
                        "pressure_GPa": climb["pressure_eV_per_A3"] * 160.21766208,
                        "time_ps": climb["time_fs"] / 1000.0,
                        "walkers": climb["walkers"],
                        "survived": climb["survived"],
                    }
                )
    return rows


def _thousand(value: float | None) -> float | None:
    return None if value is None else 1000.0 * value
