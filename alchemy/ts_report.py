"""What `alchemy ts` prints: verdicts in words, and a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from alchemy.cli_paths import say_table

EXPLAINED = {
    "saddle": "one imaginary mode, and its ways down join the ends",
    "no-imaginary-mode": "the point is a minimum or a shoulder",
    "several-imaginary-modes": "the point is a saddle of higher order; more images may help",
    "members-disagree": "the members do not see the same mode; label structures along it",
    "irc-failed": "a way down reached no minimum",
    "rotation-only": "the mode only turns a group",
    "same-ends": "both ways down reach the same state",
    "other-ends": "a saddle, of another reaction than the named one",
    "duplicate": "found before, under another name",
    "disconnected": "no path can join the ends",
    "ends-collapse": "both ends relax into one minimum",
    "no-path": "atoms collide on every path; give --guess",
    "folded": "the path turned back on itself; use other images, or give --guess",
    "runaway": "the optimiser ran away",
    "not-converged": "out of steps",
    "label-stop": "the committee is not sure; label the structures that it stopped at",
    "abort": "the committee knows nothing of these structures",
    "beyond-labels": "the climb left what its labels tell",
}  # what the verdict means for the user
ENDED = {
    "agreed": "surface and label agree at the saddle",
    "label-cap": "--labels are used up",
    "nothing-to-label": "nothing new was left to label",
    "labels-failed": "no label of a turn succeeded",
}


def frequency(value: float) -> str:
    """'1425i' for −1425 cm⁻¹."""
    return f"{abs(value):.0f}i" if value < 0 else f"{value:.0f}"


def say(row: dict[str, Any]) -> None:
    """What was checked, in words."""
    outcome = row["outcome"]
    meaning = row.get("message") or EXPLAINED.get(outcome, "a guard stopped the search")
    click.echo(f"{row['name']}: {outcome} ({meaning})")
    if "imaginary_modes" in row:
        _say_checks(row)
    if "labels" in row:
        _say_labels(row)


def _say_checks(row: dict[str, Any]) -> None:
    lowest = ", ".join(frequency(f) for f in row["lowest_frequencies_per_cm"])
    click.echo(f"  modes: {row['imaginary_modes']} imaginary; lowest {lowest} cm⁻¹")
    if row["members"] > 1:
        curved = row["member_curvatures_eV_per_A2"]
        click.echo(
            f"  members: {row['members']}, curvature along the mode {min(curved):.2f} to {max(curved):.2f} "
            f"eV/Å², least overlap of modes {row['least_overlap']:.2f}"
        )
    if row["expected_error_eV_per_A"] is not None:
        click.echo(f"  expected force error at the saddle: {1e3 * row['expected_error_eV_per_A']:.0f} meV/Å")


def _say_labels(row: dict[str, Any]) -> None:
    """How the loop of labels ended, and why a barrier is not known."""
    difference, force = row["model_minus_label_eV"], row["largest_labelled_force_eV_per_A"]
    at = "" if difference is None else f"; surface − label {1e3 * difference:+.1f} meV, {force:.3f} eV/Å left"
    click.echo(f"  {row['labels']} labels: {row['ended']} ({ENDED[row['ended']]}{at})")
    if row["ended"] == "agreed":
        click.echo(f"  {row['end_labels']} more for the ends: {', '.join(row['ends'])}")


def say_searched(rows: Sequence[dict[str, Any]], out: str) -> None:
    heads = ("reaction", "outcome", "barrier eV", "reverse eV", "imaginary cm⁻¹", "force calls")
    table = []
    for row in rows:
        lowest = row.get("lowest_frequencies_per_cm", [])
        imaginary = frequency(lowest[0]) if lowest and lowest[0] < 0 else "–"
        barriers = [
            "–" if row.get(key) is None else f"{row[key]:.3f}" for key in ("barrier_eV", "reverse_barrier_eV")
        ]
        table.append([row["name"], row["outcome"], *barriers, imaginary, row.get("force_calls", 0)])
    say_table(heads, table)
    if out:
        click.echo(f"paths in {out}")


def say_refined(rows: Sequence[dict[str, Any]], out: str, records: str) -> None:
    """Barriers of the labels; where these did not agree nothing is known of them."""
    heads = ("reaction", "outcome", "barrier eV", "reverse eV", "labels", "of the ends")
    table = []
    for row in rows:
        barriers = [
            "–" if row.get(key) is None else f"{row[key]:.3f}"
            for key in ("labelled_barrier_eV", "labelled_reverse_barrier_eV")
        ]
        table.append([row["name"], row["ended"], *barriers, row.get("labels", 0), row.get("end_labels", 0)])
    say_table(heads, table)
    click.echo(f"{f'labelled structures in {out}; ' if out else ''}records in {records}")
