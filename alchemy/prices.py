"""What one thing is expected to cost: a label, a step of training, a force call; and how sure that is.

Measured in the campaign where it was, else by `alchemy plan --measure`, else a default by labeler that is
scaled with the number of atoms and may be ten times wrong, which its range says.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from .config import Campaign
from .costs import Cost, StageCost
from .store import LabelRow, Snapshot


@dataclass(frozen=True)
class Price:
    """CPU seconds, and the range in which they may be expected."""

    low: float
    mid: float
    high: float
    source: str

    def times(self, factor: float) -> Price:
        """Of this many."""
        return Price(factor * self.low, factor * self.mid, factor * self.high, self.source)

    def __add__(self, other: Price) -> Price:
        source = "; ".join(dict.fromkeys(filter(None, (self.source, other.source))))
        return Price(self.low + other.low, self.mid + other.mid, self.high + other.high, source)


FREE = Price(0.0, 0.0, 0.0, "")


def around(mid: float, factor: float, source: str) -> Price:
    """A price that may be this many times less or more."""
    return Price(mid / factor, mid, mid * factor, source)


@dataclass(frozen=True)
class Default:
    """CPU seconds of a label: `least`, and `eight` more for eight atoms, which grow with atoms**power."""

    eight: float
    power: float
    least: float = 0.0

    def cpu_s(self, atoms: int) -> float:
        """Of one label."""
        return self.least + self.eight * (atoms / 8) ** self.power


# Orders of magnitude on one core of 2020s: what a code costs depends on basis, grid, k-points and spin far
# more than on its name, so that a measurement replaces these at the first label.
DEFAULTS: Mapping[str, Default] = {
    "emt": Default(0.001, 1.0, least=0.002),
    "ase": Default(0.01, 1.0, least=0.002),
    "tblite": Default(0.015, 2.0, least=0.005),
    "xtb": Default(0.05, 2.0, least=0.05),
    "pyscf": Default(5.0, 2.5, least=0.3),
}
PROGRAM = Default(200.0, 2.5, least=5.0)  # plane waves and large basis sets
DEFAULT_FACTOR = 10.0
PROBE_FACTOR = 2.0  # one small label or some steps stand for all
MEASURED_FACTOR = 1.3  # later structures are farther from equilibrium, and machines are shared
FEW_LABELS = 4  # fewer measured ones than this say less


class Labels:
    """Prices of labels, from every label that is known; atoms alone are a kind of their own."""

    def __init__(self, campaign: Campaign) -> None:
        self._labelers = {name: f.labeler for name, f in campaign.fidelities.items()}
        self._cpu_s: dict[tuple[str, bool], list[tuple[float, int]]] = defaultdict(list)
        self._source: dict[tuple[str, bool], str] = {}

    def learn(self, fidelity: str, atoms: int, cpu_s: float, *, source: str = "measured") -> None:
        """A label that was computed."""
        if cpu_s > 0 and fidelity in self._labelers:
            key = (fidelity, atoms == 1)
            if source == "measured" and self._source.get(key) not in (None, source):
                self._cpu_s[key].clear()  # a probe gives way to the real thing
            self._cpu_s[key].append((cpu_s, atoms))
            self._source[key] = source

    def learn_rows(self, rows: Iterable[LabelRow], sizes: Mapping[str, int]) -> None:
        """Labels of a store."""
        for row in rows:
            if row.structure_uid in sizes:
                self.learn(row.fidelity, sizes[row.structure_uid], row.cpu_s)

    def price(self, fidelity: str, atoms: int) -> Price:
        """Of one label."""
        default = DEFAULTS.get(self._labelers[fidelity], PROGRAM)
        known = self._cpu_s.get((fidelity, atoms == 1))
        if not known:
            return around(default.cpu_s(atoms), DEFAULT_FACTOR, f"default of '{self._labelers[fidelity]}'")
        scaled = [cpu_s * (atoms / n) ** default.power for cpu_s, n in known]
        source = self._source[fidelity, atoms == 1]
        mid = math.fsum(scaled) / len(scaled)
        if source != "measured":
            return around(mid, PROBE_FACTOR, source)
        factor = MEASURED_FACTOR + float(np.std(scaled)) / mid / math.sqrt(len(scaled))
        sizes = [n for _, n in known]
        if len(known) < FEW_LABELS or not min(sizes) / 2 <= atoms <= max(sizes) * 2:
            factor = max(factor, PROBE_FACTOR)
        return around(mid, factor, f"measured, {len(known)} labels")


class CampaignPrices:
    """What `Budget` asks: labels by size, stages as they were in the round before."""

    def __init__(self, campaign: Campaign, snapshot: Snapshot, stages: Iterable[StageCost]) -> None:
        self.labels = Labels(campaign)
        rows = snapshot.labels(status=None)
        self.labels.learn_rows(rows, snapshot.atom_counts({r.structure_uid for r in rows}))
        self._stages = {one.stage: one.cost for one in stages}  # the last one of each name
        self._threads = campaign.run.threads_per_worker

    def label(self, fidelity: str, atoms: int) -> Cost:
        """Of one label; on the disk a row of the store."""
        cpu_s = self.labels.price(fidelity, atoms).mid
        return Cost(cpu_s=cpu_s, wall_s=cpu_s / self._threads, disk_bytes=2_000.0 + 100.0 * atoms)

    def stage(self, stage: str) -> Cost:
        """As it was last time; nothing is known of the first time."""
        return self._stages.get(stage, Cost())

    def learn_stage(self, stage: str, cost: Cost) -> None:
        """It was done once more."""
        self._stages[stage] = cost
