"""What `alchemy status` says of jobs: the campaign's controller and its workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import batch_systems
from .cli_paths import find_campaign, is_home
from .controller import RECORD, facts
from .errors import EnvironmentProblemError
from .executors_cluster import FOLDER, JOBS_FILE
from .records import read_json


def jobs_of(home: Path) -> dict[str, Any]:
    """`controller` (None: never submitted) and `workers`, as the batch system shows them now."""
    return {"controller": facts(home), "workers": _workers(home)}


def _workers(home: Path) -> list[dict[str, Any]]:
    path = home / FOLDER / JOBS_FILE
    if not path.is_file():
        return []
    document = read_json(path)
    rows = document["jobs"]
    try:
        seen = batch_systems.look(document["where"], [row["id"] for row in rows])
    except EnvironmentProblemError:
        seen = {}
    return [
        {
            "job": row["id"],
            "kind": row["kind"],
            "state": seen[row["id"]].word if row["id"] in seen else "unknown",
            "reason": seen[row["id"]].reason if row["id"] in seen else "",
            "draining": row["draining"],
        }
        for row in rows
    ]


def job_lines(summary: dict[str, Any]) -> Iterator[str]:
    """For people."""
    controller = summary["controller"]
    if controller is not None:
        words = f"controller: job {controller['job']} ({controller['where']}), {controller['state']}"
        if controller["jobs"] > 1:
            words += f", number {controller['jobs']} of its chain"
        yield words + (f"; {controller['message']}" if controller["message"] else "")
    kinds = Counter((row["kind"], row["state"]) for row in summary["workers"])
    if kinds:
        yield "workers: " + ", ".join(f"{n} {kind} {state}" for (kind, state), n in sorted(kinds.items()))


def before_the_beginning(path: Path) -> tuple[dict[str, Any], list[str]] | None:
    """Of a campaign that was submitted and has not begun: its summary and the lines for people."""
    if is_home(path):
        return None
    home = path if (path / RECORD).is_file() else find_campaign(path).home
    if is_home(home) or not (home / RECORD).is_file():
        return None
    summary = {"directory": str(home), "current_round": None, **jobs_of(home)}
    return summary, ["no round has begun", *job_lines(summary)]
