"""`alchemy doctor --on slurm`: a one-minute job per partition, then one worker of each kind at work.

The small job comes first, because it says most precisely what a node lacks; the workers then try the
network, a step of training and a label at every level that is theirs. Levels that are batch jobs
(`run.labels`) are tried as such: the one-minute job of their partition computes a label of a pair of atoms.
"""

from __future__ import annotations

import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__, batch_systems, tasks
from .batch_job import EXIT, PACK
from .config import Campaign
from .config_cluster import Cluster, Where, Workers
from .config_labels import LabelJobs
from .doctor import Finding, label_request, training_request
from .errors import AlchemyError
from .executors import Interrupt, make_executor
from .executors_jobs import JobMaker, job_class, last_words
from .records import FILE_NAME, LabelRecord, read_json, write_json_atomic
from .trials import train_one_step

if TYPE_CHECKING:
    from .pyiron_queue import Queue

LONGEST_WAIT_S = 600.0
LOOK_EVERY_S = 2.0
TRIAL_LIMIT_S, WORKER_LIMIT_S = 60.0, 900.0
HOPELESS_LOOKS = 5  # a job that waits for what waiting does not bring; a node may just be coming back
# of run.labels, what makes one job different from another for the node or the partition
SHAPE = ("partition", "account", "nodes", "tasks", "cores", "memory", "setup", "template", "extra")


def uses(campaign: Campaign, where: str) -> bool:
    """Whether workers or labels of the campaign are jobs of this batch system."""
    labels = campaign.run.labels
    return campaign.run.where == where or any(labels.of(f).where == where for f in campaign.fidelities)


def examine_cluster(campaign: Campaign, where: Where) -> Iterator[Finding]:
    """Findings of all jobs of the campaign there; nothing here raises for what is broken."""
    try:
        batch_systems.require(where)
        if campaign.run.where == where:
            job_class(where)
    except AlchemyError as error:
        yield Finding(batch_systems.NAMES[where], False, str(error))
        return
    folder = Path(tempfile.mkdtemp(dir=campaign.base_dir, prefix=".alchemy-doctor-"))
    try:
        if campaign.run.where == where:
            found = list(_jobs(campaign, where, folder))
            yield from found
            if all(finding.ok is not False for finding in found):
                yield from _workers(campaign, folder)
        yield from _label_jobs(campaign, where, folder)
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
            if campaign.run.labels.of(name).batch:  # no worker may have its program
                continue
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


@dataclass(frozen=True)
class _Trial:
    """A one-minute job that labels a pair of atoms at some levels."""

    title: str
    name: str  # unique: the queue is searched for it
    directory: Path
    keys: Mapping[str, str]  # of the labels, by level
    number: str  # the scheduler's


def _label_jobs(campaign: Campaign, where: Where, folder: Path) -> Iterator[Finding]:
    """A trial of every kind of job that `run.labels` asks for; they wait in the queue together."""
    kinds: dict[str, tuple[LabelJobs, list[str]]] = {}
    for level in campaign.fidelities:
        jobs = campaign.run.labels.of(level)
        if jobs.where == where:
            shape = str([getattr(jobs, key) for key in SHAPE])
            kinds.setdefault(shape, (jobs, []))[1].append(level)
    if not kinds:
        return
    from .pyiron_queue import Queue, QueueFullError, UnreachableError

    trials: list[_Trial] = []
    try:
        queue = Queue(where)
    except AlchemyError as error:
        yield Finding("label job", False, str(error))
        return
    try:
        for jobs, levels in kinds.values():
            title = "label job" + (f", {jobs.partition}" if jobs.partition else "")
            try:
                trials.append(_try_labels(campaign, jobs, levels, queue=queue, folder=folder, title=title))
            except (AlchemyError, UnreachableError, QueueFullError, OSError) as error:
                yield Finding(title, False, f"{error}; see run.labels ({', '.join(levels)})")
        deadline = time.monotonic() + LONGEST_WAIT_S
        for trial in trials:
            yield from _labels_of(trial, _exit_of(trial, queue, deadline), folder / "labels")
    finally:
        for trial in trials:
            queue.cancel(trial.number)


def _try_labels(
    campaign: Campaign, jobs: LabelJobs, levels: list[str], *, queue: Queue, folder: Path, title: str
) -> _Trial:
    """Submit what a batch job of these levels is, but for a minute."""
    from .pyiron_jobs import label_key_of
    from .pyiron_queue import script

    name = f"al{uuid.uuid4().hex[:12]}"
    directory = folder / name
    directory.mkdir()
    requests = {level: label_request(campaign, level, folder) for level in levels}
    keys = {level: label_key_of(request) for level, request in requests.items()}
    labels = [{"key": keys[level], "request": requests[level]} for level in levels]
    pack = {"name": name, "walltime_s": TRIAL_LIMIT_S, "expected_s": {}, "labels": labels}
    write_json_atomic(directory / PACK, pack)
    short = jobs.model_copy(update={"walltime_s": TRIAL_LIMIT_S})
    text = script(short, name, directory=directory, base_dir=campaign.base_dir)
    return _Trial(title, name, directory, keys, queue.submit(text, directory=directory, name=name))


def _exit_of(trial: _Trial, queue: Queue, deadline: float) -> dict[str, Any] | str:
    """The exit record of the job, or why there is none."""
    from .pyiron_queue import UnreachableError

    missed = hopeless = 0
    path = trial.directory / EXIT
    while True:
        record: dict[str, Any] | None = read_json(path) if path.exists() else None
        if record is not None and record["reason"]:
            return record
        try:
            seen = queue.look({trial.name: trial.number}).get(trial.name)
        except (AlchemyError, UnreachableError) as error:
            return str(error)
        missed = missed + 1 if seen is None or seen.state == "ended" else 0
        if missed > 2:
            word = f" ({seen.word})" if seen else ""
            return f"job {trial.number} ended before its first label{word}; " + last_words(
                trial.directory / "job.out"
            )
        hopeless = hopeless + 1 if seen is not None and seen.hopeless else 0
        if hopeless >= HOPELESS_LOOKS and seen is not None:
            return f"job {trial.number} will never start: {seen.word}; see run.labels"
        if time.monotonic() > deadline:
            word = seen.word if seen else "not to be seen"
            return f"job {trial.number} did not end in time: {word}; is that the right partition for you?"
        time.sleep(LOOK_EVERY_S)


def _labels_of(trial: _Trial, found: dict[str, Any] | str, root: Path) -> Iterator[Finding]:
    """A finding of the job, and one of the label at every level."""
    if isinstance(found, str):
        yield Finding(trial.title, False, found)
        return
    here = f"job {trial.number} on {found['host']}"
    if found["reason"] in ("problem", "os-error"):
        yield Finding(trial.title, False, f"{here}: {found['message']}; see run.labels")
        return
    yield Finding(trial.title, True, here)
    lines = {line["key"]: line for line in found["labels"]}
    for level, key in trial.keys.items():
        if (root / key / FILE_NAME).is_file():
            record = LabelRecord.read(root / key)
            text = f"{record.code}, {record.atoms.get_chemical_formula()} in {here}, {record.wall_s:.1f} s"
            if record.status != "ok":
                text = f"{text}: {record.reason}: {record.message}".replace("\n", " ")
            yield Finding(level, record.status == "ok", text)
        elif lines.get(key, {}).get("state") == "died":
            yield Finding(level, False, f"{here}: {lines[key].get('message') or 'its process died'}")
        else:
            yield Finding(level, None, f"{here} works; a label does not fit into the minute of the trial")
