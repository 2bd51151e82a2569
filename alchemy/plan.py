"""`alchemy plan`: what a campaign will cost, stage by stage, before anything runs.

Counts come from the campaign file, prices from what was measured (`prices.py`). What a campaign has finished
is counted as spent, and what a resume would not do again is said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .config import Campaign
from .config_budget import limits_of, shown
from .costs import StageCost, disk_bytes, spent, stage_costs
from .plan_jobs import cores_at_most, job_notes, label_jobs, trains_on_gpus
from .plan_work import Range, Work, work_of
from .prices import FREE, Labels, Price, around
from .probe import Probe
from .records import read_json
from .stages.model import READOUT_SHARE
from .state import Home, RoundState
from .store import Store

# CPU seconds per atom and member on one core with compiled kernels: of a step of training, of a force call.
# Those of nano are what the urea campaign takes (20 to 30 ms a step of 8 frames of 8 atoms), the others
# follow the arithmetic of the presets; a GPU takes a tenth of them, give or take a factor of four.
STEP_CPU_S = {"nano": 0.4e-3, "small": 1.2e-3, "medium": 4e-3, "large": 1.5e-2}
FORCE_CPU_S = {"nano": 0.04e-3, "small": 0.12e-3, "medium": 0.4e-3, "large": 1.5e-3}
MODEL_BYTES = {"nano": 0.2e6, "small": 0.8e6, "medium": 4e6, "large": 2e7}
DEFAULT_FACTOR, PROBE_FACTOR, MEASURED_FACTOR = 4.0, 2.0, 1.3
WALKS_LENGTH = (0.1, 0.4, 1.0)  # of the longest possible: walks end where the committee is unsure
GPU_SHARE = 0.1
BYTES_PER_LABEL, BYTES_PER_LABEL_ATOM, BYTES_PER_CANDIDATE_ATOM = 2_000.0, 150.0, 500.0


@dataclass(frozen=True)
class Row:
    """One kind of work that is still to be done."""

    stage: str
    what: str
    tasks: float
    cpu_s: Price
    gpu_s: Price
    disk_bytes: float
    level: str = ""  # of labels
    jobs: Range | None = None  # of the batch system, where these labels are jobs


@dataclass
class Plan:
    """The table, what is behind us, and what the budget says."""

    rows: list[Row]
    spent: dict[str, float]
    reused: list[str]
    budget: dict[str, float]
    workers: int  # cores that work at a time
    notes: list[str] = field(default_factory=list)
    queued: bool = False  # some of it waits for a batch system

    def total(self) -> dict[str, tuple[float, float, float]]:
        """(least, expected, most) of cpu_s, gpu_s and disk_bytes, what is spent included."""
        found = {}
        for name in ("cpu_s", "gpu_s"):
            prices = [getattr(row, name) for row in self.rows]
            have = self.spent.get(name, 0.0)
            found[name] = (
                have + math.fsum(p.low for p in prices),
                have + math.fsum(p.mid for p in prices),
                have + math.fsum(p.high for p in prices),
            )
        disk = math.fsum(row.disk_bytes for row in self.rows)
        have = self.spent.get("disk_bytes", 0.0)
        found["disk_bytes"] = (have + disk / 2, have + disk, have + 2 * disk)
        jobs = [row.jobs for row in self.rows if row.jobs is not None]
        if jobs:
            low, mid, high = (math.fsum(part) for part in zip(*jobs, strict=True))
            found["jobs"] = (low, mid, high)
        return found

    def verdicts(self) -> list[str]:
        """One line per limit of the budget that is known beforehand."""
        lines, total = [], self.total()
        for name, limit in self.budget.items():
            if name == "wall_s":
                low, mid, high = (t / self.workers for t in total["cpu_s"])
            else:
                low, mid, high = total[name]
            fits = "fits" if high <= limit else "may not fit" if low <= limit else "does not fit"
            key = name.rpartition("_")[0]
            lines.append(
                f"budget {key} {shown(name, limit)}: {shown(name, mid)} expected "
                f"({shown(name, low)} to {shown(name, high)}), {fits}"
            )
        return lines


def make_plan(campaign: Campaign, home: Home | None, *, probe: Probe | None = None) -> Plan:
    """Everything that is left to do; `home` is None, or not there yet, for a campaign that has not begun."""
    begun = home is not None and home.store.with_name(home.store.name + ".d").is_dir()
    snapshot = Store(home.store).snapshot() if home is not None and begun else None
    stages = stage_costs(home) if home is not None and begun else []
    labels = Labels(campaign)
    if probe is not None:
        for fidelity, atoms, cpu_s in probe.labels:
            labels.learn(fidelity, atoms, cpu_s, source="probe")
    if snapshot is not None:
        rows = snapshot.labels(status=None)
        labels.learn_rows(rows, snapshot.atom_counts({row.structure_uid for row in rows}))
    used = tuple(read_json(home.facts)["used_fidelities"]) if home is not None and home.facts.exists() else ()
    work = work_of(campaign, home if begun else None, snapshot, used or campaign.fidelity_names)
    prices = _Prices(campaign, work, stages, probe, labels, home if begun else None)
    have = {}
    if home is not None and snapshot is not None:
        before = spent(home, snapshot)
        have = {"cpu_s": before.cpu_s, "gpu_s": before.gpu_s, "wall_s": before.wall_s}
        have["disk_bytes"] = disk_bytes(home.path)
    rows_left = [row for row in _rows(work, prices) if row.tasks > 0]
    jobs: dict[str, Range] = {}
    for row in rows_left:
        if row.jobs is not None:
            before_it = jobs.get(row.level, (0.0, 0.0, 0.0))
            low, mid, high = (a + b for a, b in zip(before_it, row.jobs, strict=True))
            jobs[row.level] = (low, mid, high)
    return Plan(
        rows_left, have, work.reused, limits_of(campaign.stop.budget), cores_at_most(campaign),
        [*work.notes, *job_notes(campaign, jobs)], campaign.run.cluster is not None or bool(jobs),
    )  # fmt: skip


@dataclass
class _Prices:
    """Price of one task of each kind."""

    campaign: Campaign
    work: Work
    stages: Sequence[StageCost]
    probe: Probe | None
    labels: Labels
    home: Home | None

    def _measured(self, *names: str) -> Price | None:
        """Mean CPU of these stages together, per round that did the first of them."""
        rounds = {one.round for one in self.stages if one.stage == names[0] and one.cost.cpu_s > 0}
        if not rounds:
            return None
        cpu_s = math.fsum(s.cost.cpu_s for s in self.stages if s.stage in names and s.round in rounds)
        return around(cpu_s / len(rounds), MEASURED_FACTOR, f"measured, {len(rounds)} rounds")

    def training(self) -> Price:
        """Of a committee."""
        found = self._measured("train")
        if found is not None:
            return found
        model = self.campaign.model
        shares = 1 + (model.committee - 1) / READOUT_SHARE if model.trunk == "shared" else model.committee
        steps = shares * model.train.steps
        if self.probe is not None and self.probe.step_cpu_s is not None:
            return around(self.probe.step_cpu_s, PROBE_FACTOR, "probe").times(steps)
        batch_atoms = model.train.batch * self.work.atoms
        each = STEP_CPU_S[model.preset] * batch_atoms
        return around(each, DEFAULT_FACTOR, f"default of '{model.preset}'").times(steps)

    def _force(self) -> Price:
        """Of the committee on one frame."""
        if self.probe is not None and self.probe.force_cpu_s is not None:
            return around(self.probe.force_cpu_s, PROBE_FACTOR, "probe")
        model = self.campaign.model
        each = FORCE_CPU_S[model.preset] * self.work.atoms * model.committee
        return around(each, DEFAULT_FACTOR, f"default of '{model.preset}'")

    def exploration(self) -> Price:
        """Of all explorers of a round."""
        found = self._measured("explore")
        if found is not None:
            return found
        one = self._force()
        low, mid, high = WALKS_LENGTH
        most = self.work.force_calls
        walks = Price(low * most * one.low, mid * most * one.mid, high * most * one.high, one.source)
        return walks + self.work.other_explorers

    def judging(self) -> Price:
        """Test, score, select and assess of a round."""
        found = self._measured("score", "select", "assess", "test")
        if found is not None:
            return found
        frames = 2 * self.work.candidates + self.work.tests + self.work.trained
        return self._force().times(frames)

    def on_gpu(self, price: Price, stage: str) -> Price:
        """GPU time of what takes this CPU time without one."""
        measured = [s.cost.gpu_s for s in self.stages if s.stage == stage and s.cost.gpu_s > 0]
        if measured:
            return around(math.fsum(measured) / len(measured), MEASURED_FACTOR, "measured")
        if not trains_on_gpus(self.campaign):
            return FREE
        return around(GPU_SHARE * price.mid, DEFAULT_FACTOR, "a tenth of the CPU time")

    def model_bytes(self) -> float:
        """Of a committee."""
        if self.home is not None:
            for number in reversed(self.home.rounds()):
                if RoundState(self.home, number).outputs("train") is not None:
                    return disk_bytes(self.home.models(number))
        return MODEL_BYTES[self.campaign.model.preset] * self.campaign.model.committee


def _rows(work: Work, prices: _Prices) -> list[Row]:
    """The table, in the order of a campaign."""
    label_bytes = BYTES_PER_LABEL + BYTES_PER_LABEL_ATOM * work.atoms
    rows = []
    if work.generators > 0:
        made = FREE
        for fidelity, steps in work.generator_labels.items():
            made = made + prices.labels.price(fidelity, round(work.atoms)).times(steps)
        rows.append(Row("start", "start structures", work.generators, made, FREE, 0.0))
    for fidelity, counts in work.labels.items():
        for kind, number in counts.items():
            atoms = 1 if kind == "isolated atoms" else round(work.atoms)
            least, mid, most = number
            each = prices.labels.price(fidelity, atoms)
            price = Price(least * each.low, mid * each.mid, most * each.high, each.source)
            jobs = label_jobs(prices.campaign, fidelity, number, rounds=kind == "rounds")
            what = f"{fidelity}: {kind}"
            rows.append(Row("label", what, mid, price, FREE, mid * label_bytes, fidelity, jobs))
    trainings, turns = work.trainings, work.rounds
    committee = prices.training()
    member_tasks = trainings[1] * prices.campaign.model.committee
    rows.append(
        Row(
            "train", "committees", member_tasks, _spread(committee, trainings),
            _spread(prices.on_gpu(committee, "train"), trainings), trainings[1] * prices.model_bytes(),
        )
    )  # fmt: skip
    explored = prices.exploration()
    rows.append(
        Row(
            "explore", "explorers", turns[1] * work.explorer_tasks, _spread(explored, turns),
            _spread(prices.on_gpu(explored, "explore"), turns),
            turns[1] * work.candidates * BYTES_PER_CANDIDATE_ATOM * work.atoms,
        )
    )  # fmt: skip
    judged = prices.judging()
    rows.append(
        Row(
            "score", "test, score, select, assess", turns[1], _spread(judged, turns),
            _spread(prices.on_gpu(judged, "score"), turns), turns[1] * work.candidates * 1_200.0,
        )
    )  # fmt: skip
    return rows


def _spread(price: Price, counts: tuple[float, float, float]) -> Price:
    """A price for a number of times that is itself a range."""
    return Price(counts[0] * price.low, counts[1] * price.mid, counts[2] * price.high, price.source)


def document(plan: Plan) -> dict[str, Any]:
    """For `--json`: seconds and bytes, each as [least, expected, most]."""

    def three(price: Price) -> list[float]:
        return [price.low, price.mid, price.high]

    return {
        "rows": [
            {
                "stage": row.stage,
                "what": row.what,
                "tasks": round(row.tasks),
                "jobs": None if row.jobs is None else list(row.jobs),
                "cpu_s": three(row.cpu_s),
                "gpu_s": three(row.gpu_s),
                "disk_bytes": [row.disk_bytes / 2, row.disk_bytes, 2 * row.disk_bytes],
                "source": row.cpu_s.source,
            }
            for row in plan.rows
        ],
        "spent": plan.spent,
        "total": {name: list(value) for name, value in plan.total().items()},
        "reused": plan.reused,
        "budget": plan.budget,
        "verdicts": plan.verdicts(),
        "notes": plan.notes,
    }
