"""Which panels the report has: facts in, drawings with their legends out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from alchemy_policies.spread_law import SpreadLaw
from ase.data import chemical_symbols

from alchemy.report_facts import (
    CampaignFacts,
    Tree,
    baselines,
    branch,
    columns,
    cost_at_training,
    counts,
    fixed_test_rmse,
    fresh_rmse,
    latest,
    number,
    table,
)
from alchemy.report_plots import (
    COLOURS,
    POINTS_DRAWN,
    Level,
    Series,
    calibration_panel,
    coverage_panel,
    curve_panel,
    element_panel,
    parity_panel,
)

RMSE_AXIS = "Force RMSE (meV/Å)"
HOURS_FROM_S = 20_000.0  # beyond, an axis in seconds is all zeros


@dataclass(frozen=True)
class Key:
    """One entry of a legend: `kind` is line, dashed, dot or ring."""

    label: str
    colour: str
    kind: str = "line"


@dataclass(frozen=True)
class Figure:
    """One panel with its title, its note and its legend; all but the drawing is plain text."""

    title: str
    svg: str
    note: str = ""
    keys: tuple[Key, ...] = ()


def learning_figures(facts: CampaignFacts) -> list[Figure]:
    """Errors against labels and against cost, the target level first."""
    found: list[Figure] = []
    for fidelity in sorted(facts.fidelities, key=lambda name: name != facts.target):
        levels = [Level(f"{name} itself", 1000 * own) for name, own in baselines(facts).items()]
        if fidelity != facts.target:
            levels = []
        labels = tuple(number(t, "train", "labels", fidelity) for t in facts.rounds)
        costs, unit = _cost_axis([_costs(facts)])
        for x, title, axis in (
            (
                labels,
                f"{fidelity}: error against labels",
                "Labels of this level trained on (number)",
            ),
            (
                costs[0],
                f"{fidelity}: error against cost",
                f"Cost of all labels trained on ({unit})",
            ),
        ):
            series = _learning_series(facts, fidelity, x)
            if not any(s.known for s in series):
                continue
            key = f"learning-{fidelity}-{'cost' if x is costs[0] else 'labels'}"
            found.append(
                Figure(
                    title,
                    curve_panel(series, levels, key=key, x=axis, y=RMSE_AXIS),
                    keys=(
                        *(
                            Key(s.label, s.colour, "dashed" if s.dashed else "line")
                            for s in series
                            if s.known
                        ),
                        *(Key(level.label, level.colour, "dashed") for level in levels),
                    ),
                )
            )
    return found


def _learning_series(facts: CampaignFacts, fidelity: str, x: tuple[float, ...]) -> list[Series]:
    def values(read: Callable[[Tree], float]) -> tuple[float, ...]:
        return tuple(1000 * read(tree) for tree in facts.rounds)

    return [
        Series(
            "fixed test set", x, values(lambda t: fixed_test_rmse(t, fidelity)), "s1", valued=True
        ),
        Series("fresh labels, all", x, values(lambda t: fresh_rmse(t, fidelity)), "s8", "s"),
        Series(
            "fresh labels, random slice",
            x,
            values(lambda t: fresh_rmse(t, fidelity, random_slice=True)),
            "s5",
            "D",
            dashed=True,
        ),
    ]


def comparison_figures(campaigns: Sequence[CampaignFacts]) -> list[Figure]:
    """Test errors of several campaigns over each other: what the cheap level bought."""
    names = campaign_labels(campaigns)
    costs, unit = _cost_axis([_costs(facts) for facts in campaigns])
    labels = [
        tuple(number(t, "train", "labels", facts.target) for t in facts.rounds)
        for facts in campaigns
    ]
    errors = [
        tuple(1000 * fixed_test_rmse(t, facts.target) for t in facts.rounds) for facts in campaigns
    ]
    levels = [Level(f"{name} itself", 1000 * own) for name, own in baselines(campaigns[0]).items()]
    found = []
    for key, xs, title, axis in (
        ("labels", labels, "Test error against target labels", "Target labels trained on (number)"),
        ("cost", costs, "Test error against cost", f"Cost of all labels trained on ({unit})"),
    ):
        series = [
            Series(name, x, y, COLOURS[i % len(COLOURS)], "os^Dv<>p"[i % 8], valued=True)
            for i, (name, x, y) in enumerate(zip(names, xs, errors, strict=True))
        ]
        if any(s.known for s in series):
            found.append(
                Figure(
                    title,
                    curve_panel(series, levels, key=f"beside-{key}", x=axis, y=RMSE_AXIS),
                    keys=(
                        *(Key(s.label, s.colour) for s in series if s.known),
                        *(Key(level.label, level.colour, "dashed") for level in levels),
                    ),
                )
            )
    return found


def campaign_labels(campaigns: Sequence[CampaignFacts]) -> list[str]:
    """Names, with the directory where two campaigns have the same one."""
    names = [facts.name for facts in campaigns]
    return [
        name if names.count(name) == 1 else f"{name} ({facts.directory.resolve().name})"
        for name, facts in zip(names, campaigns, strict=True)
    ]


def parity_figures(facts: CampaignFacts) -> list[Figure]:
    """The newest committee that has points, per fidelity; numbers are of the whole test set."""
    found = []
    for fidelity in sorted(facts.fidelities, key=lambda name: name != facts.target):
        points, test = latest(facts, "parity", fidelity), latest(facts, "test", fidelity)
        for what, unit, error, error_unit, colour in (
            ("force", "eV/Å", number(test, "force_rmse_eV_per_A"), "meV/Å", "s1"),
            ("energy", "eV/atom", number(test, "energy_rmse_eV_per_atom"), "meV/atom", "s2"),
        ):
            rows = table(points, what, 2)
            if not rows:
                continue
            noun = "Force component" if what == "force" else "Energy"
            shown = (
                f", every {math.ceil(len(rows) / POINTS_DRAWN)}th drawn"
                if len(rows) > POINTS_DRAWN
                else ""
            )
            rmse = "" if math.isnan(error) else f"RMSE {1000 * error:.1f} {error_unit} · "
            found.append(
                Figure(
                    f"{fidelity}: {what}",
                    parity_panel(
                        rows, key=f"parity-{fidelity}-{what}", what=noun, unit=unit, colour=colour
                    ),
                    note=f"{rmse}{len(rows)} points{shown}",
                )
            )
    return found


def calibration_figures(facts: CampaignFacts) -> list[Figure]:
    """One panel per set of elements that share the two calibrated numbers."""
    calibration = _newest_calibration(facts)
    rows = columns(branch(calibration, "pairs"), "spread_eV_per_A", "error_eV_per_A", "number")
    points: dict[str, list[tuple[float, ...]]] = {}
    for spread, error, z in rows:
        if spread > 0 and error > 0 and 0 < z < len(chemical_symbols):
            points.setdefault(chemical_symbols[int(z)], []).append((spread, error))
    points = dict(sorted(points.items(), key=lambda item: chemical_symbols.index(item[0])))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(points)}
    shared: dict[tuple[float, float], list[str]] = {}
    for element in points:
        fit = branch(calibration, "elements", element)
        shared.setdefault((_slope(fit, "expected"), _slope(fit, "bound_90")), []).append(element)
    law, found = _law(calibration), []
    for (expected, bound), names in shared.items():
        atoms = sum(len(points[name]) for name in names)
        lines = [Key(f"expected error = {_formula(expected, law)}", "ink")] if expected > 0 else []
        lines += [Key(f"90 % bound = {_formula(bound, law)}", "ink", "dashed")] if bound > 0 else []
        found.append(
            Figure(
                ", ".join(names),
                calibration_panel(
                    [(colours[name], points[name]) for name in names],
                    key=f"calibration-{'-'.join(names)}",
                    expected=expected,
                    bound=bound,
                    law=law,
                ),
                note=f"{atoms} atoms"
                + (", one fit for all of these elements" if len(names) > 1 else ""),
                keys=(*(Key(name, colours[name], "dot") for name in names), *lines),
            )
        )
    return found


def _newest_calibration(facts: CampaignFacts) -> Tree:
    for tree in reversed(facts.rounds):
        if branch(tree, "calibration", "pairs"):
            return branch(tree, "calibration")
    return {}


def _law(calibration: Tree) -> SpreadLaw:
    """How errors grow with the spread; in proportion where the record does not say otherwise."""
    told = branch(calibration, "spread_law")
    values = [number(told, field.name) for field in fields(SpreadLaw)]
    return SpreadLaw(*values) if all(0 < value < math.inf for value in values) else SpreadLaw()


def _formula(factor: float, law: SpreadLaw) -> str:
    if law.exponent == 1.0:
        return f"{factor:.2f} × spread"
    typical = 1000 * law.typical_eV_per_A
    return f"{factor * typical:.3g} (spread/{typical:.3g})^{law.exponent:.2f} meV/Å"


def _slope(fit: Tree, name: str) -> float:
    """−1 for unknown: NaN would not be equal to itself as a key."""
    value = number(fit, name)
    return -1.0 if math.isnan(value) else value


def coverage_figure(facts: CampaignFacts) -> Figure | None:
    """Coverage of the labels that each round bought, by the calibration it had before."""
    series = []
    for i, fidelity in enumerate(sorted(facts.fidelities, key=lambda name: name != facts.target)):
        line = Series(
            fidelity,
            tuple(float(t["round"]) for t in facts.rounds),
            tuple(100 * number(t, "fresh", fidelity, "coverage_90") for t in facts.rounds),
            COLOURS[i % len(COLOURS)],
            "osD^"[i % 4],
        )
        series += [line] if line.known else []
    if not series:
        return None
    return Figure(
        "Coverage of new labels",
        coverage_panel(series, key="coverage"),
        note="Shaded: 85 to 95 %.",
        keys=(*(Key(s.label, s.colour) for s in series), Key("nominal", "muted", "dashed")),
    )


def element_figure(facts: CampaignFacts) -> Figure | None:
    """First and newest committee, element by element, the worst one on top."""
    path = ("test", facts.target, "force_rmse_by_element_eV_per_A")
    tested = [tree for tree in facts.rounds if branch(tree, *path)]
    if not tested:
        return None
    rows = [
        (name, 1000 * number(tested[0], *path, name), 1000 * number(tested[-1], *path, name))
        for name in branch(tested[-1], *path)
    ]
    rows = sorted(
        (row for row in rows if not math.isnan(row[2])), key=lambda row: (-row[2], row[0])
    )
    if not rows:
        return None
    keys: tuple[Key, ...] = (Key(f"round {tested[-1]['round']}", "s1", "dot"),)
    if len(tested) > 1:
        keys = (Key(f"round {tested[0]['round']}", "muted", "ring"), *keys)
    frames = counts(tested[-1], "test", facts.target).get("frames")
    return Figure(
        f"{facts.target}: error by element",
        element_panel(rows, key="elements"),
        note=f"{frames} frames" if frames else "",
        keys=keys,
    )


def _costs(facts: CampaignFacts) -> tuple[float, ...]:
    return tuple(cost_at_training(facts, i) for i in range(len(facts.rounds)))


def _cost_axis(costs: Sequence[tuple[float, ...]]) -> tuple[list[tuple[float, ...]], str]:
    largest = max((c for line in costs for c in line if not math.isnan(c)), default=0.0)
    if largest < HOURS_FROM_S:
        return list(costs), "CPU s"
    return [tuple(c / 3600 for c in line) for line in costs], "CPU h"
