"""Commands for what a campaign costs and leaves behind: plan, redo, gc."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alchemy.cli_paths import CAMPAIGN, find_campaign, find_home, is_home, say_table
from alchemy.errors import InputError
from tace.cli_common import AS_JSON, SETTINGS, say_json
from tace.wording import count

if TYPE_CHECKING:
    from alchemy.config import Campaign
    from alchemy.plan import Plan
    from alchemy.redo import Again, SetBack
    from alchemy.state import Home


@click.command(context_settings=SETTINGS)
@CAMPAIGN
@click.option("--measure", is_flag=True, help="Run one small label per level and some training steps first.")
@AS_JSON
def plan(campaign: Path, measure: bool, as_json: bool) -> None:
    """What CAMPAIGN will cost, stage by stage; nothing of it is run.

    Prices are those measured in the campaign, else by --measure, else defaults of the labelers, which may be
    ten times wrong: the range says so. A campaign that has begun: what is spent and what is left.

    \b
    Example:
      alchemy plan campaign.yaml
      alchemy plan campaign.yaml --measure --json

    Exit code 0: the expected cost fits into the budget, or there is none; 4: it does not.
    """
    given = find_campaign(campaign)
    from alchemy.plan import document, make_plan
    from alchemy.probe import probe
    from alchemy.state import Home

    levels = given.used or given.campaign.fidelity_names
    measured = probe(given.campaign, levels) if measure else None
    found = make_plan(given.campaign, Home(given.home), probe=measured)
    if as_json:
        say_json(document(found))
    else:
        _print_plan(found)
    total = found.total()
    beyond = any(total[name][1] > limit for name, limit in found.budget.items() if name in total)
    click.get_current_context().exit(4 if beyond else 0)


def _print_plan(found: Plan) -> None:
    from alchemy.config_budget import shown

    rows = [
        (
            row.stage, row.what, f"{row.tasks:.0f}", _jobs(row.jobs),
            _hours(row.cpu_s.low, row.cpu_s.mid, row.cpu_s.high),
            _hours(row.gpu_s.low, row.gpu_s.mid, row.gpu_s.high) if row.gpu_s.mid else "–",
            shown("disk_bytes", row.disk_bytes), row.cpu_s.source,
        )
        for row in found.rows
    ]  # fmt: skip
    total = found.total()
    if found.spent:
        have = found.spent
        rows.insert(
            0,
            (
                "spent", "until now", "–", "", f"{have['cpu_s'] / 3600:.3g}", _gpu(have["gpu_s"]),
                shown("disk_bytes", have["disk_bytes"]), "measured",
            ),
        )  # fmt: skip
    gpu = total["gpu_s"]
    rows.append(
        (
            "total", "", "–", _jobs(total.get("jobs")), _hours(*total["cpu_s"]),
            _hours(*gpu) if gpu[1] else "–", shown("disk_bytes", total["disk_bytes"][1]), "",
        )
    )  # fmt: skip
    heads = ("stage", "what", "tasks", "jobs", "core-hours", "GPU-hours", "disk", "price from")
    if "jobs" in total:
        say_table(heads, rows)
    else:  # nothing goes to a batch system by itself
        say_table(heads[:3] + heads[4:], [row[:3] + row[4:] for row in rows])
    left = sum(row.cpu_s.mid for row in found.rows)
    if found.queued:
        click.echo("how long it takes is the queue's to say")
    else:
        wall = shown("wall_s", left / found.workers)
        click.echo(f"about {wall} from now on {count(found.workers, 'core')}")
    for line in found.reused:
        click.echo(f"reused: {line}")
    for line in (*found.notes, *found.verdicts()):
        click.echo(line)


def _jobs(jobs: tuple[float, float, float] | None) -> str:
    return "" if jobs is None else f"{jobs[1]:.0f} ({jobs[0]:.0f} to {jobs[2]:.0f})"


def _hours(low: float, mid: float, high: float) -> str:
    return f"{mid / 3600:.2g} ({low / 3600:.2g} to {high / 3600:.2g})"


def _gpu(seconds: float) -> str:
    return f"{seconds / 3600:.2g}" if seconds else "–"


@click.command(context_settings=SETTINGS)
@CAMPAIGN
@click.option("--failed", is_flag=True, help="Try every failed label again.")
@click.option("--label", "keys", multiple=True, metavar="KEY", help="Try this label again (repeatable).")
@click.option("--reason", metavar="WORD", help="Try the labels again that failed for this reason.")
@click.option("--round", "number", type=click.IntRange(min=0), metavar="N", help="Set this round back …")
@click.option("--from", "stage", metavar="STAGE", help="… to before this stage.")
@click.option("--dry-run", is_flag=True, help="Only say what would be reused and what computed.")
@AS_JSON
def redo(
    campaign: Path,
    failed: bool,
    keys: tuple[str, ...],
    reason: str | None,
    number: int | None,
    stage: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Do parts of CAMPAIGN again: failed labels, or a round from one of its stages on.

    Labels are never deleted: a failed one gets another attempt, and labels of rounds that are set back stay
    in the store. What those rounds made is moved into the folder 'aside'; 'alchemy run' makes it anew.

    \b
    Example:
      alchemy redo campaign.yaml --failed
      alchemy redo campaign.yaml --reason scf-not-converged --dry-run
      alchemy redo campaign.yaml --round 3 --from select
    """
    chosen = [failed, bool(keys), reason is not None, number is not None or stage is not None]
    if sum(chosen) != 1:
        raise click.UsageError("give one of --failed, --label, --reason, or --round with --from")
    if (number is None) != (stage is None):
        raise click.UsageError("--round and --from go together")
    home = find_home(campaign)
    given = find_campaign(campaign if is_home(campaign) else home)
    from alchemy.state import Home

    place = Home(home.resolve())
    if number is not None and stage is not None:
        said = _set_back(place, number, stage, dry_run=dry_run)
    else:
        said = _label_again(given.campaign, place, keys, reason, dry_run=dry_run, quiet=as_json)
    if as_json:
        say_json(said)
        return
    for line in said["lines"]:
        click.echo(line)


def _set_back(home: Home, number: int, stage: str, *, dry_run: bool) -> dict[str, Any]:
    from alchemy.redo import plan_set_back, set_back

    found: SetBack = plan_set_back(home, number, stage)
    lines = [f"reused: round {number}, {name}" for name in found.kept]
    lines += [f"reused: {count(found.labels, 'label')}, all in the store"]
    lines += [f"again:  round {number}, {name}" for name in found.stages]
    lines += [f"again:  round {n}, everything" for n in found.rounds]
    aside = None if dry_run else set_back(home, found)
    if dry_run:
        lines.append("nothing was changed (--dry-run)")
    elif aside is not None:
        lines.append(f"moved to {aside}; next: alchemy run {shlex.quote(str(home.path))}")
    return {
        "reused": found.kept, "again": found.stages, "rounds": found.rounds, "labels_kept": found.labels,
        "moved_to": None if aside is None else str(aside), "lines": lines,
    }  # fmt: skip


def _label_again(
    campaign: Campaign, home: Home, keys: tuple[str, ...], reason: str | None, *, dry_run: bool, quiet: bool
) -> dict[str, Any]:
    import sys

    from alchemy.progress import Progress
    from alchemy.records import read_json
    from alchemy.redo import labels_again, run_again
    from alchemy.store import Store

    if not home.facts.exists():
        raise InputError(f"{home.path}: nothing was run yet")
    snapshot = Store(home.store).snapshot()
    used = read_json(home.facts)["used_fidelities"]
    found: list[Again] = labels_again(snapshot, used, keys=keys, reason=reason)
    good = len(snapshot.labels())
    lines = [f"reused: {count(good, 'good label')}"]
    lines += [f"again:  {a.key[:12]} {a.fidelity}, attempt {a.attempt}, was {a.reason}" for a in found]
    said: dict[str, Any] = {"reused": good, "again": [vars(a) for a in found], "result": None}
    if not found:
        lines.append("no failed label")
    elif dry_run:
        lines.append("nothing was computed (--dry-run)")
    else:
        result = run_again(campaign, home, found, progress=Progress(sys.stderr if quiet else None))
        said["result"] = result
        for fidelity, own in result.items():
            reasons = "".join(f", {n} {why}" for why, n in own["failed"].items())
            lines.append(f"{fidelity}: {own['ok']} ok{reasons}")
    return {**said, "lines": lines}


@click.command(context_settings=SETTINGS)
@CAMPAIGN
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@AS_JSON
def gc(campaign: Path, dry_run: bool, as_json: bool) -> None:
    """Remove what CAMPAIGN need not keep, by the rules of its keep block; never a label.

    \b
    Example:
      alchemy gc campaign.yaml --dry-run
      alchemy gc campaign.yaml
    """
    home = find_home(campaign)
    given = find_campaign(campaign)
    from alchemy.config_budget import shown
    from alchemy.keeping import clear, waste
    from alchemy.state import Home

    place = Home(home.resolve())
    found = waste(given.campaign, place) if dry_run else clear(given.campaign, place)
    freed = sum(one.bytes for one in found)
    if as_json:
        items = [{"path": str(one.path), "why": one.why, "bytes": int(one.bytes)} for one in found]
        say_json({"removed": not dry_run, "bytes": int(freed), "items": items})
        return
    for one in found:
        click.echo(f"{shown('disk_bytes', one.bytes):>8}  {one.path.relative_to(place.path)}  ({one.why})")
    verb = "would be freed" if dry_run else "freed"
    click.echo(f"{shown('disk_bytes', freed)} {verb}; labels stay, all of them are in the store")


COMMANDS = (plan, redo, gc)
