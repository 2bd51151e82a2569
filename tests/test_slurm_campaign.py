"""A campaign on a real Slurm: training and exploration on its Dask workers, labels as jobs through pyiron."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from batch_helpers import CAMPAIGN, Place
from slurm_fixture import Slurm

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(590)]
pytest.importorskip("dask_jobqueue")

# the workers' kind is gpu alone, so that a label could be theirs; resubmissions: cancelled and lost nodes
RUN = """\
run:
  where: slurm
  cluster:
    interface: lo
    ask_every: 1 s
    patience: 3 min
    gpu: {cores: 1, memory: 500 MB, walltime: 15 min, drain: 30 s, gpus: 0, jobs: 2}
  labels: {where: slurm, partition: debug, memory: 100 MB, walltime: 5 min, pack: 2, jobs: 4}
"""
JOBS = 4  # the eight labels of round zero in packs of two


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Label key → energy in eV of the same campaign in one process."""
    place = Place(tmp_path_factory.mktemp("inline"), "{}")
    assert place.call("run", "campaign.yaml")[0] == 0
    return energies(place)


@pytest.fixture
def place(slurm: Slurm, tmp_path: Path) -> Iterator[Place]:
    """Its controllers do not outlive the test: one that goes on would submit jobs for ever."""
    made = Place(tmp_path)
    made.campaign.write_text(CAMPAIGN[: CAMPAIGN.index("run:\n")] + RUN, encoding="utf-8")
    made.mood("wait")  # labels begin, and end when the test has looked and struck
    started: list[subprocess.Popen[str]] = []
    start = made.start

    def kept(*words: str) -> subprocess.Popen[str]:
        started.append(start(*words))
        return started[-1]

    made.start = kept  # type: ignore[method-assign]
    yield made
    for process in started:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def energies(place: Place) -> dict[str, float]:
    records = [json.loads(p.read_text()) for p in (place.folder / "batch/labels").glob("*/record.json")]
    return {r["key"]: r["energy_eV"] for r in records}


def tries(place: Place) -> dict[str, list[str]]:
    """Label key → the jobs that have begun it, in order."""
    return {
        path.parent.name: [json.loads(line)["job"] for line in path.read_text().splitlines()]
        for path in (place.folder / "batch/labels").glob("*/attempts.jsonl")
    }


def queue(slurm: Slurm) -> list[dict[str, str]]:
    """Number, state, name and node of every job that waits or runs."""
    rows = [line.split("|") for line in slurm("squeue", "-h", "-o", "%i|%T|%j|%N").splitlines()]
    return [dict(zip(("id", "state", "name", "node"), row, strict=True)) for row in rows]


def running(slurm: Slurm, *, labels: bool) -> list[dict[str, str]]:
    return [
        row
        for row in queue(slurm)
        if row["state"] == "RUNNING" and row["name"].startswith("alchemy-gpu") != labels
    ]


def settled(slurm: Slurm, place: Place) -> bool:
    """Whether every label job computes one, and both workers that there should be have reported."""
    begun = {jobs[-1] for jobs in tries(place).values()}
    waiting = {row["name"] for row in running(slurm, labels=True)} & begun
    path = place.folder / "batch/workers/jobs.json"
    workers = json.loads(path.read_text())["jobs"] if path.exists() else []
    there = {row["id"] for row in running(slurm, labels=False)}
    return len(waiting) == JOBS and len(there) == 2 and {w["id"] for w in workers if w["workers"]} == there


def agree(slurm: Slurm, place: Place) -> bool:
    """Whether status says of labels and workers what squeue and scontrol say, at one moment."""
    before = queue(slurm)
    shown = json.loads(place.call("status", "batch", "--json")[1])
    workers = {row["job"]: row["state"] for row in shown["workers"]}
    control = {row["id"]: slurm.job(row["id"])["JobState"] for row in before}
    if before != queue(slurm):
        return False  # it went on meanwhile: look again
    assert {row["id"]: row["state"] for row in before} == control
    labels = [row["state"] for row in before if row["id"] not in workers]
    assert shown["batch_jobs"]["unknown"] == 0
    return (
        workers == {row["id"]: row["state"] for row in before if row["name"] == "alchemy-gpu"}
        and [shown["batch_jobs"]["running"], shown["batch_jobs"]["queued"]]
        == [labels.count("RUNNING"), labels.count("PENDING")]
        and labels.count("RUNNING") > 0
    )


def under(job: str) -> list[int]:
    """Processes of a worker job that compute: children of the nanny, not the nanny."""
    found = []
    for process in psutil.process_iter():
        try:
            parent = process.parent()
            ours = process.environ().get("SLURM_JOB_ID") == job and parent is not None
            if ours and "dask_worker" in " ".join(parent.cmdline()):
                found += [process.pid] if "spawn_main" in " ".join(process.cmdline()) else []
        except psutil.Error:
            continue
    return found


def stages(place: Place, number: int) -> list[str]:
    """Finished stages of a round."""
    path = place.folder / f"batch/rounds/{number:03d}/state.json"
    return list(json.loads(path.read_text())["stages"]) if path.exists() else []


def finish(slurm: Slurm, place: Place, process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    assert "Traceback" not in said, said
    slurm.wait(lambda: slurm.queue() == {}, timeout_s=20)  # no worker and no label job stays
    shown = json.loads(place.call("status", "batch", "--json")[1])
    assert [shown["batch_jobs"][s] for s in ("queued", "running", "unknown", "labels")] == [0, 0, 0, 0]
    assert shown["workers"] == []
    return said


def test_a_campaign_with_workers_and_labels_on_slurm_has_the_labels_of_the_inline_run(
    slurm: Slurm, place: Place, inline: dict[str, float]
):
    process = place.start("run", "campaign.yaml")
    slurm.wait(lambda: settled(slurm, place), timeout_s=120)
    slurm.wait(lambda: agree(slurm, place))
    place.mood("")
    finish(slurm, place, process)
    assert len(inline) >= 10
    assert energies(place) == inline
    assert {len(jobs) for jobs in tries(place).values()} == {1}
    assert len(set(place.computed())) == len(place.computed()) == len(inline)
    begun = {job for jobs in tries(place).values() for job in jobs}
    assert begun == {record["job"] for record in place.exits("batch/pyiron")}  # none was a worker's


def test_cancelled_killed_and_lost_jobs_and_a_killed_controller_leave_the_same_labels(
    slurm: Slurm, place: Place, inline: dict[str, float]
):
    chance = random.Random(7)
    process = place.start("run", "campaign.yaml")
    slurm.wait(lambda: settled(slurm, place), timeout_s=120)

    victim = chance.choice(running(slurm, labels=True))
    worker = chance.choice(running(slurm, labels=False))
    hit = {victim["name"]}
    slurm("scancel", victim["id"], worker["id"])
    slurm.wait(lambda: not {victim["id"], worker["id"]} & set(slurm.queue()))
    slurm.wait(lambda: settled(slurm, place), timeout_s=120)

    node = chance.choice(running(slurm, labels=True))["node"]
    lost = {row["name"] for row in running(slurm, labels=True) if row["node"] == node}
    hit |= lost
    slurm.node(node, "down")
    slurm.wait(lambda: not lost & {row["name"] for row in queue(slurm)})
    slurm.node(node, "resume")
    slurm.wait(lambda: settled(slurm, place), timeout_s=120)

    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(running(slurm, labels=True)) == JOBS  # they go on without the controller
    old = {row["id"] for row in running(slurm, labels=False)}
    process = place.start("run", "campaign.yaml")
    slurm.wait(lambda: not old & set(slurm.queue()), timeout_s=120)
    slurm.wait(lambda: settled(slurm, place), timeout_s=120)
    slurm.wait(lambda: agree(slurm, place))
    place.mood("")

    slurm.wait(lambda: "label" in stages(place, 0), timeout_s=120)  # now the committee is trained
    pids = under(chance.choice(running(slurm, labels=False))["id"])
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert "train" not in stages(place, 1)

    said = finish(slurm, place, process)
    assert energies(place) == inline, said
    assert len(set(place.computed())) == len(place.computed()) == len(inline)
    for key, jobs in tries(place).items():  # begun again only where its job was taken away
        assert set(jobs[:-1]) <= hit, (key, jobs, hit)
    ended = json.loads(place.call("status", "batch", "--json")[1])["batch_jobs"]["ended"]
    assert {word: ended[word] for word in ("cancelled", "node-failure")} == {
        "cancelled": 1,
        "node-failure": len(lost),
    }
