"""`alchemy doctor --on slurm`: a one-minute job per partition, then one worker of each kind at work.

The small job comes first, because it says most precisely what a node lacks; the workers then try the
network, a step of training and a label at every level.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import __version__, batch_systems, tasks
from .config import Campaign
from .config_cluster import Cluster, Where, Workers
from .doctor import Finding, label_request, training_request
from .errors import AlchemyError
from .executors import Interrupt, make_executor
from .executors_jobs import JobMaker, job_class, last_words
from .records import LabelRecord, read_json
from .trials import train_one_step

LONGEST_WAIT_S = 600.0
LOOK_EVERY_S = 2.0
TRIAL_LIMIT_S, WORKER_LIMIT_S = 60.0, 900.0


def examine_cluster(campaign: Campaign) -> Iterator[Finding]:
    """Findings of all worker kinds of the campaign; nothing here raises for what is broken."""
    where: Any = campaign.run.where
    assert campaign.run.cluster is not None
    try:
        batch_systems.require(where)
        job_class(where)
    except AlchemyError as error:
        yield Finding(batch_systems.NAMES[where], False, str(error))
        return
    folder = Path(tempfile.mkdtemp(dir=campaign.base_dir, prefix=".alchemy-doctor-"))
    try:
        found = list(_jobs(campaign, where, folder))
        yield from found
        if all(finding.ok is not False for finding in found):
            yield from _workers(campaign, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _small(cluster: Cluster, limit_s: float) -> Cluster:
    """One job of each kind, and a short one."""

    def short(workers: Workers | None) -> Workers | None:
        if workers is None:
            return None
        limit = min(limit_s, workers.walltime_s)
        return workers.model_copy(update={"walltime_s": limit, "drain_s": None, "jobs": 1})

    return cluster.model_copy(
        update={
            "gpu": short(cluster.gpu),
            "cpu": short(cluster.cpu),
            "patience_s": min(cluster.patience_s, LONGEST_WAIT_S),
        }
    )


def _jobs(campaign: Campaign, where: Where, folder: Path) -> Iterator[Finding]:
    """A job that writes down what its node is, for every kind of worker."""
    cluster = campaign.run.cluster
    assert cluster is not None
    maker = JobMaker(
        _small(cluster, TRIAL_LIMIT_S), where, campaign.run.threads_per_worker, folder, campaign.base_dir, {}
    )
    submitted: dict[str, str] = {}
    for kind, workers in cluster.kinds.items():
        facts = folder / f"{kind}.json"
        script = folder / f"{kind}.sh"
        command = maker.python_command("alchemy.trials", facts)
        script.write_text(maker.script(kind, f"trial-{kind}", command), encoding="utf-8")
        try:
            submitted[kind] = batch_systems.submit(where, script)
        except AlchemyError as error:
            yield Finding(_title(kind, workers), False, str(error))
    deadline = time.monotonic() + min(cluster.patience_s, LONGEST_WAIT_S)
    try:
        for kind, job in submitted.items():
            workers = cluster.kinds[kind]
            ok, text = _outcome(where, job, folder / f"{kind}.json", workers, deadline)
            if not ok and not text:
                text = f"job {job} ended without a word; {last_words(folder / f'trial-{kind}.log')}"
            yield Finding(_title(kind, workers), ok, text)
    finally:
        batch_systems.cancel(where, list(submitted.values()))


def _title(kind: str, workers: Workers) -> str:
    return f"{kind} job" + (f", {workers.partition}" if workers.partition else "")


def _outcome(
    where: Where, job: str, facts: Path, workers: Workers, deadline: float
) -> tuple[bool, str]:
    """Whether the job did its work on a node that fits, and a sentence; '' when its log has to tell."""
    missed = 0
    while not facts.exists():
        try:
            seen = batch_systems.look(where, [job]).get(job)
        except AlchemyError as error:
            return False, str(error)
        missed = missed + 1 if seen is None or seen.state == "ended" else 0
        if missed > 2:  # three looks: the file of a node takes a moment on a network file system
            return False, ""
        if time.monotonic() > deadline:
            return False, f"job {job} did not end in time: {seen}; is that the right partition for you?"
        time.sleep(LOOK_EVERY_S)
    return judge(read_json(facts), workers, job)


def judge(facts: dict[str, Any], workers: Workers, job: str) -> tuple[bool, str]:
    """Whether the node has what the kind asks for."""
    here = f"job {job} on {facts['host']}"
    if facts["alchemy"] != __version__:
        return False, f"{here}: alchemy {facts['alchemy']} there, {__version__} here; see run.cluster.python"
    if facts["store"]:
        return False, f"{here}: a store in the campaign's folder: {facts['store']}"
    if workers.gpus and len(facts["gpus"]) < workers.gpus:
        return False, (
            f"{here}: {workers.gpus} GPU asked for, and torch {facts['torch']} sees {len(facts['gpus'])} "
            f"(CUDA_VISIBLE_DEVICES={facts['visible']}); is it a build with CUDA, and does the partition "
            "have GPUs? gpus: 0 computes on the cores"
        )
    gpus = f", {', '.join(facts['gpus'])}" if facts["gpus"] else ""
    return True, f"{here}: Python {facts['python']}, torch {facts['torch']}, {facts['cores']} cores{gpus}"


def _workers(campaign: Campaign, folder: Path) -> Iterator[Finding]:
    """One Dask worker of each kind: a step of training, and a label at every level."""
    assert campaign.run.cluster is not None
    run = campaign.run.model_copy(update={"cluster": _small(campaign.run.cluster, WORKER_LIMIT_S)})
    try:
        executor = make_executor(run, home=folder, base_dir=campaign.base_dir, interrupt=Interrupt())
    except AlchemyError as error:
        yield Finding("workers", False, str(error))
        return
    try:
        yield _on_worker(executor, train_one_step, training_request(campaign), "GPU", "training")
        for name in campaign.fidelities:
            request = label_request(campaign, name, folder)
            yield _on_worker(executor, tasks.label, request, "LABEL", name)
    finally:
        executor.close()


def _on_worker(executor: Any, task: Any, request: dict[str, Any], resource: str, what: str) -> Finding:
    done: list[Any] = []
    started = time.perf_counter()
    try:
        executor.run(task, [request], resource=resource, on_done=lambda n, result: done.append(result))
    except AlchemyError as error:
        return Finding(what, False, f"on a worker: {error}")
    result, spent = done[0], f"{time.perf_counter() - started:.1f} s with the wait for the worker"
    if isinstance(result, BaseException):
        return Finding(what, False, f"on a worker: {result}")
    if "device" in result:
        return Finding(what, True, f"one step on {result['device']} of {result['host']}, {spent}")
    record = LabelRecord.read(Path(request["root"]) / result["key"])
    text = f"{record.code}, {record.atoms.get_chemical_formula()} on a worker, {spent}"
    if record.status != "ok":
        return Finding(what, False, f"{text}: {record.reason}: {record.message}".replace("\n", " "))
    return Finding(what, True, text)
