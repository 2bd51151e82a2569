"""`alchemy status`: where a campaign stands, as one JSON-able dict and as a table for people."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from alchemy.batch_ledger import counts as counts_of_jobs
from alchemy.controller_facts import job_lines, jobs_of
from alchemy.report_facts import (
    CampaignFacts,
    Tree,
    baselines,
    branch,
    counts,
    failures,
    fixed_test_rmse,
    fresh_rmse,
    label_cpu_s,
    latest,
    number,
    read_campaign,
    stop_of,
    total,
)
from alchemy.report_search import ladder_rows, reaction_rows
from alchemy.report_trust import trust_line, trust_rows
from alchemy.state import Home


def status(campaign_dir: Path) -> dict[str, Any]:
    """Summary of the campaign; what is not known yet is None. Errors are force
    RMSE at the target level."""
    facts = read_campaign(campaign_dir)
    rows = [_row(facts, tree) for tree in facts.rounds]
    stop = stop_of(facts)
    current = max([*(row["round"] for row in rows), *facts.stages], default=None)
    done = {row["round"] for row in rows if row["done"]}
    return {
        "name": facts.name,
        "directory": str(facts.directory),
        "target": facts.target,
        "fidelities": list(facts.fidelities),
        "rounds_done": len(done),
        "current_round": current,
        "stages_finished": list(facts.stages.get(-1 if current is None else current, ())),
        "labels": _labels_now(facts),
        "labels_cpu_s": _jsonable(latest(facts, "cost", "labels_cpu_s")),
        "train_cpu_s": _known(
            total({str(r["round"]): number(r, "train", "cpu_s") for r in facts.rounds})
        ),
        "explore_cpu_s": _known(
            total({str(r["round"]): number(r, "explore", "cpu_s") for r in facts.rounds})
        ),
        "failed": failures(facts),
        "batch_jobs": counts_of_jobs(Home(facts.directory).pyiron),
        "trust": [{k: _number_or(v) for k, v in row.items()} for row in trust_rows(facts)],
        "baselines_meV_per_A": {k: 1000 * v for k, v in baselines(facts).items()},
        "rounds": rows,
        "reactions": reaction_rows(facts),
        "ladders": ladder_rows(facts),
        "stop": {k: stop.get(k) for k in ("rule", "message", "exit_code")} if stop else None,
        **jobs_of(facts.directory),
    }


def render_status(summary: dict[str, Any]) -> RenderableType:
    """One row per round, then where it stands. `Text`, so that names are never read as markup."""
    table = Table(
        title=Text(summary["name"]),
        title_justify="left",
        title_style="bold",
        caption=Text(_caption(summary)),
        caption_justify="left",
        box=box.SIMPLE_HEAD,  # eighty columns have to be enough
    )
    table.add_column("round", justify="right")
    target = summary["target"] or "target"
    for head in (
        f"{target}\nlabels",
        "all\nlabels",
        "test RMSE\nmeV/Å",
        "fresh RMSE\nmeV/Å",
        "cover-\nage",
        "candi-\ndates",
        "picked",
        "label\nCPU s",
    ):
        table.add_column(Text(head), justify="right", overflow="fold")  # a number cut short would be another
    for row in summary["rounds"]:
        table.add_row(
            f"{row['round']}" if row["done"] else f"{row['round']} …",
            _text(row["target_labels"], "d"),
            _text(row["all_labels"], "d"),
            _text(row["test_force_rmse_meV_per_A"], ".1f"),
            _text(row["fresh_force_rmse_meV_per_A"], ".1f"),
            _text(row["coverage_90"], ".0%"),
            _text(row["candidates"], "d"),
            _text(row["picked"], "d"),
            _text(row["label_cpu_s"], ".1f"),
        )
    jobs = _jobs_line(summary.get("batch_jobs"))
    lines = [*([jobs] if jobs else []), *(Text(line) for line in job_lines(summary))]
    return Group(table, *_searches(summary), _stop_line(summary), *lines)


def _searches(summary: dict[str, Any]) -> list[Text]:
    """Saddles, and how far dynamics has climbed, a line each."""
    lines = []
    if summary["reactions"]:
        states = Counter(row["settled"] for row in summary["reactions"])
        told = ", ".join(f"{n} {state}" for state, n in states.items())
        lines.append(Text(f"reactions: {told}"))
    if summary["ladders"]:
        passed = [row for row in summary["ladders"] if row["survived"] == row["walkers"]]
        best = max(passed, key=lambda row: (row["T_K"], row["time_ps"]), default=None)
        told = "no rung is climbed"
        if best is not None:
            told = f"all walkers lived through {best['time_ps']:g} ps at {best['T_K']:g} K"
        lines.append(Text(f"ladder: {told}"))
    return lines


def _jobs_line(jobs: dict[str, Any] | None) -> Text | None:
    """Batch jobs as the controller last saw them."""
    if jobs is None:
        return None
    text = f"batch jobs: {jobs['queued']} queued, {jobs['running']} running, {jobs['unknown']} unknown"
    if jobs["unreachable_unix_s"]:
        minutes = (jobs["written_unix_s"] - jobs["unreachable_unix_s"]) / 60
        text += f"; the scheduler has not answered for {minutes:.0f} min"
    ended = ", ".join(f"{n} {word}" for word, n in sorted(jobs["ended"].items()))
    return Text(f"{text}; ended: {ended}" if ended else text)


def _row(facts: CampaignFacts, tree: Tree) -> dict[str, Any]:
    index = tree["round"]
    trained = counts(tree, "train", "labels")
    picked = branch(tree, "select").get("picked")
    fresh = branch(tree, "fresh", facts.target)
    stages = facts.stages.get(index, ())
    # The last round has no assess stage: a stop reason or a later round says that it is over.
    # A budget ends a campaign within a round, which goes on when there is more.
    ended = bool(stop_of(facts)) and stop_of(facts).get("rule") != "budget"
    over = ended or index < facts.rounds[-1]["round"]
    return {
        "round": index,
        "done": over or "assess" in stages or bool(branch(tree, "fresh")),
        "target_labels": trained.get(facts.target),
        "all_labels": sum(trained.values()) if trained else None,
        "labels": trained,
        "test_force_rmse_meV_per_A": _known(1000 * fixed_test_rmse(tree, facts.target)),
        "fresh_force_rmse_meV_per_A": _known(1000 * fresh_rmse(tree, facts.target)),
        "fresh_random_force_rmse_meV_per_A": _known(
            1000 * fresh_rmse(tree, facts.target, random_slice=True)
        ),
        "coverage_90": _known(number(fresh, "coverage_90")),
        "candidates": _whole(number(tree, "explore", "candidates")),
        "picked": len(picked) if isinstance(picked, list) else None,
        "label_cpu_s": _known(label_cpu_s(tree)),
    }


def _labels_now(facts: CampaignFacts) -> dict[str, int]:
    """Labels bought so far; before the first purchase, those of the first committee."""
    bought = latest(facts, "cost", "cumulative_labels") or latest(facts, "train", "labels")
    known = counts(bought)
    return {
        name: known[name] for name in dict.fromkeys([*facts.fidelities, *known]) if name in known
    }


def _stop_line(summary: dict[str, Any]) -> Text:
    stop = summary["stop"]
    if stop:
        code = stop["exit_code"]
        style = "green" if code == 0 else "yellow"
        return Text(f"stopped by {stop['rule']}: {stop['message']} (exit code {code})", style=style)
    if summary["current_round"] is None:
        return Text("no round has begun")
    stages = ", ".join(summary["stages_finished"])
    tail = f"; finished stages: {stages}" if stages else ""
    return Text(f"not stopped: round {summary['current_round']}{tail}")


def _caption(summary: dict[str, Any]) -> str:
    cpu = summary["labels_cpu_s"]
    parts = [
        f"{name} {count} labels" + (f", {cpu[name]:.1f} CPU s" if cpu.get(name) else "")
        for name, count in summary["labels"].items()
    ]
    parts += [
        f"{name} alone {value:.1f} meV/Å" for name, value in summary["baselines_meV_per_A"].items()
    ]
    parts += [
        f"{sum(reasons.values())} failed {name} labels ("
        + ", ".join(f"{reason} {n}" for reason, n in reasons.items())
        + ")"
        for name, reasons in summary["failed"].items()
    ]
    nan = math.nan
    parts += [
        trust_line({k: nan if v is None else v for k, v in row.items()}) for row in summary["trust"]
    ]
    return " · ".join(part for part in parts if part)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _number_or(value: Any) -> Any:
    return _known(value) if isinstance(value, float) else value


def _whole(value: float) -> int | None:
    return None if math.isnan(value) else int(value)


def _jsonable(tree: Tree) -> dict[str, float | None]:
    return {str(key): _known(number(tree, key)) for key in tree}


def _text(value: float | int | None, spec: str) -> str:
    if spec == ".1f" and value is not None and abs(value) >= 1000:
        spec = ".0f"  # a decimal of so much means nothing, and the columns are narrow
    return "–" if value is None else format(value, spec)
