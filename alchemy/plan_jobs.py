"""What a plan asks of a batch system: jobs of labels, workers, cores."""

from __future__ import annotations

import math
from collections.abc import Iterator

from tace.wording import count

from .config import Campaign
from .config_budget import shown
from .executors import cores, gpu_count
from .plan_work import Range


def label_jobs(campaign: Campaign, fidelity: str, number: Range, *, rounds: bool) -> Range | None:
    """Jobs of this many labels without a failure; None where workers compute them.

    Args:
        rounds: whether they come some per round, or all at once.
    """
    jobs = campaign.run.labels.of(fidelity)
    if not jobs.batch:
        return None
    each = float(campaign.select.per_round.get(fidelity, 0)) if rounds else 0.0
    low, mid, high = (_packed(n, each or math.inf, jobs.pack) for n in number)
    return low, mid, high


def _packed(labels: float, each: float, pack: int) -> float:
    if math.isinf(each):
        return float(math.ceil(labels / pack))
    full, rest = divmod(labels, each)
    return full * math.ceil(each / pack) + math.ceil(rest / pack)


def job_notes(campaign: Campaign, found: dict[str, Range]) -> Iterator[str]:
    """A line per level whose labels are jobs, and one per kind of worker job."""
    for fidelity, (low, mid, high) in found.items():
        jobs = campaign.run.labels.of(fidelity)
        each = jobs.tasks * jobs.cores
        most = high * each * jobs.walltime_s / 3600
        yield (
            f"{fidelity}: {mid:.0f} ({low:.0f} to {high:.0f}) jobs of {jobs.where}, {count(each, 'core')} "
            f"and at most {shown('wall_s', jobs.walltime_s)} each; a site that counts whole walltimes "
            f"counts up to {most:.3g} core-hours"
        )
    cluster = campaign.run.cluster
    for name, kind in (cluster.kinds if cluster else {}).items():
        gpus = f", {count(kind.gpus, 'GPU')}" if kind.gpus else ""
        yield (
            f"{name} workers: {kind.least} to {kind.most} jobs of {campaign.run.where} at a time, "
            f"{count(kind.cores, 'core')}{gpus}, {shown('wall_s', kind.walltime_s)} each"
        )


def cores_at_most(campaign: Campaign) -> int:
    """Cores that work on the campaign at a time."""
    run = campaign.run
    if run.cluster is not None:
        return max(1, sum(kind.most * kind.cores for kind in run.cluster.kinds.values()))
    most = max(1, cores() // run.threads_per_worker) if run.workers == "auto" else int(run.workers)
    return (1 if run.where == "inline" else most) * run.threads_per_worker


def trains_on_gpus(campaign: Campaign) -> bool:
    """Whether a GPU trains, explores and scores, as far as it is known here."""
    run = campaign.run
    if run.cluster is not None:
        return run.cluster.gpu is not None and run.cluster.gpu.gpus > 0
    return run.where == "local" and bool(gpu_count(run.gpus))
