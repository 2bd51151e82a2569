"""What a campaign has cost, from its own files: CPU and GPU time, wall time, bytes.

Finished stages stand in `rounds/NNN/state.json` with their cost, labels in the store. CPU time counts what
tasks and labels used, not the controller. `hours.json` holds when `alchemy run` ran: pauses are free.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from .records import read_json, write_json_atomic
from .state import Home
from .store import LabelRow, Snapshot

HOURS = "hours.json"
SAVE_EVERY_S = 5.0


@dataclass(frozen=True)
class Cost:
    """An amount of each of what a budget may limit."""

    cpu_s: float = 0.0
    gpu_s: float = 0.0
    wall_s: float = 0.0
    disk_bytes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def times(self, factor: float) -> Cost:
        """The cost of this many of it."""
        return Cost(*(factor * value for value in astuple(self)))


@dataclass(frozen=True)
class StageCost:
    """A finished stage of a round; of a label stage the labels are counted by themselves."""

    round: int
    stage: str
    cost: Cost


def stage_costs(home: Home) -> list[StageCost]:
    """Every finished stage, in the order of the rounds."""
    found = []
    for number in home.rounds():
        directory = home.round(number)
        facts = read_json(directory / "round.json") if (directory / "round.json").exists() else {}
        for stage, entry in read_json(directory / "state.json")["stages"].items():
            old = (facts.get(stage) or {}).get("cpu_s", 0.0) if stage in ("train", "explore") else 0.0
            cost = Cost(entry.get("cpu_s", old), entry.get("gpu_s", 0.0), entry["wall_s"])
            found.append(StageCost(number, stage, cost))
    return found


def label_cost(rows: list[LabelRow]) -> Cost:
    """Of all these labels, failed ones too."""
    return Cost(cpu_s=math.fsum(row.cpu_s for row in rows if row.cpu_s > 0))


def spent(home: Home, snapshot: Snapshot) -> Cost:
    """Everything so far."""
    stages = [one.cost for one in stage_costs(home)]
    cpu_s = math.fsum(c.cpu_s for c in stages) + label_cost(snapshot.labels(status=None)).cpu_s
    gpu_s = math.fsum(c.gpu_s for c in stages)
    wall_s = math.fsum(seen - began for began, seen in _periods(home))
    return Cost(cpu_s, gpu_s, wall_s, disk_bytes(home.path))


def disk_bytes(directory: Path) -> float:
    """Sizes of all files below a directory; of those that vanish meanwhile, nothing."""
    total = 0.0
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    total += disk_bytes(Path(entry.path))
                else:
                    total += entry.stat(follow_symlinks=False).st_size
    return total


def _periods(home: Home) -> list[tuple[float, float]]:
    path = home.path / HOURS
    if not path.exists():
        return []
    return [(float(began), float(seen)) for began, seen in read_json(path)["runs_unix_s"]]


class Clock:
    """Wall time of the controllers: this one, and those before as they were last seen."""

    def __init__(self, home: Home) -> None:
        self._home, self._before = home, _periods(home)
        self._began = self._saved = time.time()
        self._wall_before = math.fsum(seen - began for began, seen in self._before)

    def wall_s(self) -> float:
        """Seconds so far."""
        return self._wall_before + time.time() - self._began

    def save(self, *, every_s: float = SAVE_EVERY_S) -> None:
        """Write down that this controller is alive, unless that was done a moment ago."""
        now = time.time()
        if now - self._saved < every_s:
            return
        self._saved = now
        runs: list[Any] = [[round(t, 3) for t in one] for one in (*self._before, (self._began, now))]
        write_json_atomic(self._home.path / HOURS, {"runs_unix_s": runs})


class Meter:
    """Adds up what the tasks of the stage under way report, each output once."""

    def __init__(self) -> None:
        self._cost = Cost()
        self._seen: set[str] = set()

    def add(self, result: dict[str, Any]) -> None:
        """One result of a task, which says what it cost or nothing."""
        if result.get("out", "") not in self._seen:
            self._cost += Cost(float(result.get("cpu_s", 0.0)), float(result.get("gpu_s", 0.0)))
        self._seen |= {result["out"]} if "out" in result else set()

    def taken(self) -> Cost:
        """Since this was asked last."""
        cost, self._cost = self._cost, Cost()
        return cost
