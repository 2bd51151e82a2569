"""`alchemy report`: one HTML file that says what a campaign did, bought and is worth.

Everything comes from the rounds' JSON files. Reference and committee are in this order in `parity`;
`calibration.pairs` are single atoms of the newest round that has them.
"""

from __future__ import annotations

import importlib.resources
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jinja2
import markupsafe

from alchemy.errors import InputError
from alchemy.report_facts import (
    CampaignFacts,
    baselines,
    branch,
    counts,
    fixed_test_rmse,
    read_campaign,
    stop_of,
)
from alchemy.report_figures import (
    calibration_figures,
    comparison_figures,
    coverage_figure,
    element_figure,
    learning_figures,
    parity_figures,
)
from alchemy.report_search import ladder_rows, random_rows, reaction_rows
from alchemy.report_tables import (
    comparison_rows,
    compute,
    count_text,
    cpu_text,
    element_rows,
    explore_rows,
    failure_rows,
    label_rows,
    mev,
    percent,
    plain,
    reasons_by_round,
    round_rows,
    selections,
    tiles,
)
from alchemy.report_trust import trust_rows


def write_report(
    campaign_dir: Path, *, beside: Sequence[Path] = (), output: Path | None = None
) -> Path:
    """Write the report, compared with the campaigns `beside` this one; returns the file's path."""
    facts = read_campaign(campaign_dir)
    others = [read_campaign(directory) for directory in beside]
    path = facts.directory / "report.html" if output is None else Path(output)
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} does not exist: the report cannot be written there")
    text = render_report(facts, others)
    # A reader who reloads the page while the campaign runs never sees half a file.
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(draft).chmod(0o644)
        os.replace(draft, path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    return path


def render_report(facts: CampaignFacts, others: Sequence[CampaignFacts] = ()) -> str:
    """The page as text; the same facts give the same bytes."""
    source = importlib.resources.files("alchemy_templates").joinpath("report.html.j2")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "mev": mev,
        "plain": plain,
        "count": count_text,
        "cpu": cpu_text,
        "percent": percent,
        "svg": markupsafe.Markup,
    }
    template = environment.from_string(source.read_text(encoding="utf-8"))
    return template.render(
        facts=facts,
        about=_about(facts),
        state=_state(facts),
        verdict=verdict(facts),
        tiles=tiles(facts),
        calibration_note=_calibration_note(facts),
        learning=learning_figures(facts),
        round_rows=round_rows(facts),
        comparison=comparison_figures([facts, *others]) if others else [],
        comparison_rows=comparison_rows([facts, *others]) if others else [],
        parity=parity_figures(facts),
        calibration=calibration_figures(facts),
        coverage=coverage_figure(facts),
        elements=element_figure(facts),
        element_rows=element_rows(facts),
        explore=explore_rows(facts),
        reactions=reaction_rows(facts),
        random=random_rows(facts),
        ladders=ladder_rows(facts),
        selections=selections(facts),
        rejected=reasons_by_round(facts, "select", "rejected"),
        label_rows=label_rows(facts),
        compute=compute(facts),
        failures=failure_rows(facts),
        trust=trust_rows(facts),
        baselines=baselines(facts),
    )


def verdict(facts: CampaignFacts) -> list[str]:
    """What a reader who reads nothing else should know, in sentences."""
    stop, target = stop_of(facts), facts.target
    if stop:
        said = str(stop.get("message") or "no message").rstrip(".")
        code = stop.get("exit_code")
        sentences = [
            f"Stopped by the rule “{stop.get('rule')}”: {said}"
            + (f" (exit code {code})." if code else ".")
        ]
    elif facts.rounds:
        sentences = [f"Not stopped: round {facts.rounds[-1]['round']} is the newest."]
    else:
        sentences = ["No round has begun."]
    tested = [(tree, fixed_test_rmse(tree, target)) for tree in facts.rounds]
    tested = [(tree, rmse) for tree, rmse in tested if not math.isnan(rmse)]
    if not tested:
        return [*sentences, "No committee has met the fixed test set yet."]
    (first, start), (last, end) = tested[0], tested[-1]
    frames = counts(last, "test", target).get("frames")
    basis = f" ({frames} frames)" if frames else ""
    which = "final" if stop else "newest"
    sentences.append(
        f"The {which} committee's force RMSE at {target} on the fixed test set{basis}"
        f" is {mev(end)} meV/Å."
    )
    if first is not last:
        sentences.append(_than(end, start, f"than in round {first['round']} ({mev(start)} meV/Å)"))
    for name, own in baselines(facts).items():
        sentences.append(_than(end, own, f"than {name} itself ({mev(own)} meV/Å)"))
    return sentences


def _about(facts: CampaignFacts) -> list[str]:
    meta = facts.meta
    elements = meta.get("elements")
    rounds = len(facts.rounds)
    parts = [
        "alchemy campaign",
        ", ".join(map(str, elements)) if isinstance(elements, list) else "",
        f"target level {facts.target}" if facts.target else "",
        f"{rounds} round" + ("" if rounds == 1 else "s"),
        f"seed {meta['seed']}" if meta.get("seed") is not None else "",
        f"begun {meta['created_utc']}" if meta.get("created_utc") else "",
    ]
    return [part for part in parts if part]


def _state(facts: CampaignFacts) -> str:
    stop = stop_of(facts)
    if not stop:
        return "open"
    return "done" if stop.get("exit_code") == 0 else "halted"


def _calibration_note(facts: CampaignFacts) -> str:
    for tree in reversed(facts.rounds):
        note = branch(tree, "calibration").get("note")
        if note:
            return f"Round {tree['round']}: {str(note).rstrip('.')}."
    return ""


def _than(value: float, other: float, tail: str) -> str:
    if value <= 0 or other <= 0:
        return f"The difference is {mev(value - other)} meV/Å."
    ratio, word = (other / value, "lower") if value <= other else (value / other, "higher")
    if ratio < 1.05:
        return f"It is about the same {tail.replace('than', 'as', 1)}."
    return f"It is {ratio:.1f} times {word} {tail}."
