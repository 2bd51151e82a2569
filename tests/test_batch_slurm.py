"""Labels as jobs of a real Slurm: to the end, and through everything that happens to jobs there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from batch_helpers import SLURM, Place
from slurm_fixture import Slurm

from alchemy.batch_ledger import Ledger

pytestmark = pytest.mark.slurm

ONE_EACH = SLURM.replace("pack: 2, jobs: 4", "pack: 1, jobs: 8")
LOOK = "import pyiron_base as p, sys; print(list(p.Project(sys.argv[1]).job_table()['status']))"


def running(slurm: Slurm) -> list[str]:
    return [number for number, state in slurm.queue().items() if state == "RUNNING"]


def names(slurm: Slurm) -> list[str]:
    """Names of all jobs that this Slurm has seen in the last minutes."""
    return slurm("squeue", "-h", "--states=all", "-o", "%j").split()


def energies(place: Place, root: str = "store") -> dict[str, float]:
    """Label key → energy in eV, of all records."""
    records = [json.loads(p.read_text()) for p in (place.folder / root).glob("*/record.json")]
    return {r["key"]: r["energy_eV"] for r in records}


def test_labels_are_slurm_jobs_and_rows_of_the_pyiron_project(slurm: Slurm, tmp_path: Path, monkeypatch):
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    place = Place(tmp_path)
    before = set(names(slurm))
    code, said = place.label()
    assert code == 0, said
    assert set(place.attempts().values()) == {1}
    assert len(place.computed()) == 6
    made = set(names(slurm)) - before
    assert len(made) == 3  # six labels in packs of two
    assert {record["reason"] for record in place.exits()} == {"done"}
    assert {record["job"] for record in place.exits()} == made
    project = tmp_path / "store" / "pyiron"
    seen = subprocess.run(
        [sys.executable, "-c", LOOK, str(project)],
        cwd=project,
        env={**os.environ, "PYIRONCONFIG": str(project / "pyiron.conf")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert seen.stdout.strip() == "['finished', 'finished', 'finished']"
    assert not list((tmp_path / "home").iterdir())
    assert place.label()[0] == 0
    assert set(names(slurm)) - before == made


def test_a_campaign_has_the_same_labels_from_slurm_though_its_controller_is_killed(slurm: Slurm, tmp_path):
    places = {}
    for name, labels in (("here", "{}"), ("there", SLURM)):
        (tmp_path / name).mkdir()
        places[name] = Place(tmp_path / name, labels)
    assert places["here"].call("run", "campaign.yaml")[0] == 0
    place = places["there"]
    place.mood("sleep 8")
    process = place.start("run", "campaign.yaml")
    slurm.wait(lambda: len(running(slurm)) == 4)

    def agree() -> bool:
        jobs = json.loads(place.call("status", "batch", "--json")[1])["batch_jobs"]
        states = list(slurm.queue().values())
        assert jobs["unknown"] == 0
        return [jobs["running"], jobs["queued"]] == [states.count("RUNNING"), states.count("PENDING")]

    slurm.wait(agree)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(running(slurm)) == 4
    place.mood("")
    code, said = place.call("run", "campaign.yaml")
    assert code == 0, said
    labels = energies(places["here"], "batch/labels")
    assert len(labels) >= 10
    assert energies(place, "batch/labels") == labels
    assert set(place.attempts("batch/labels").values()) == {1}
    jobs = json.loads(place.call("status", "batch", "--json")[1])["batch_jobs"]
    assert [jobs[state] for state in ("queued", "running", "unknown", "labels")] == [0, 0, 0, 0]
    assert jobs["ended"] == {"completed": len(place.exits("batch/pyiron"))}
    assert "batch jobs: 0 queued, 0 running, 0 unknown; ended:" in place.call("status", "batch")[1]
    assert slurm.queue() == {}


def test_cancelled_late_and_lost_jobs_are_repeated_and_the_labels_are_the_same(slurm: Slurm, tmp_path: Path):
    place = Place(tmp_path, ONE_EACH)
    place.mood("sleep 75")  # Slurm looks at time limits every half minute, and kills half a minute later
    process = place.start_label()
    slurm.wait(lambda: len(running(slurm)) == 6)
    slurm.wait(lambda: place.status() == {"queued": 0, "running": 6, "unknown": 0})
    slurm.wait(lambda: len(place.attempts()) == 6)
    node = {number: slurm.job(number)["NodeList"] for number in running(slurm)}
    on = {n: [number for number in node if node[number] == n] for n in slurm.nodes}
    first = on["n1"] or on["n2"]
    slurm("scancel", first[0])
    slurm.out_of_time(first[1])
    slurm.node("n2", "down")
    place.mood("")
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert "cancelled in batch job" in said
    assert "out-of-time in batch job" in said
    assert not on["n2"] or "node-failure in batch job" in said
    attempts = place.attempts()
    assert len(attempts) == 6
    assert sum(attempts.values()) == 6 + said.count(" in batch job ")
    assert len(place.computed()) == len(set(place.computed())) == 6
    (tmp_path / "plain").mkdir()
    plain = Place(tmp_path / "plain", "{}")
    assert plain.label()[0] == 0
    assert energies(place) == energies(plain)


def test_a_controller_that_is_killed_finds_its_jobs_again(slurm: Slurm, tmp_path: Path):
    place = Place(tmp_path, ONE_EACH.replace("jobs: 8", "jobs: 3"))
    place.mood("sleep 5")
    before = set(names(slurm))
    process = place.start_label()
    slurm.wait(lambda: len(running(slurm)) == 3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    # killed before the answer of sbatch was noted
    ledger = Ledger(tmp_path / "store" / "pyiron")
    assert len(ledger.jobs) == 3
    forgotten = next(iter(ledger.jobs.values()))
    forgotten.id, forgotten.state = "", "submitting"
    ledger.save()
    code, said = place.label()
    assert code == 0, said
    assert len(set(names(slurm)) - before) == 6
    assert set(place.attempts().values()) == {1}
    assert len(place.computed()) == len(set(place.computed())) == 6


def test_programs_that_were_started_in_a_job_end_with_it(slurm: Slurm, tmp_path: Path):
    place = Place(tmp_path, "{where: slurm, memory: 100 MB, pack: 6, resubmissions: 0}")
    place.mood("child")
    process = place.start_label()
    slurm.wait((tmp_path / "child").exists)
    pid = (tmp_path / "child").read_text()
    slurm("scancel", *running(slurm))
    slurm.wait(lambda: not Path(f"/proc/{pid}").exists(), timeout_s=20)
    slurm.wait(lambda: place.exits()[0]["reason"] == "signal")
    place.mood("")
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 0, said
    # the label that was begun is given up at once, those that waited in its pack are not
    assert said.count("failed: cancelled") == 1, said
    assert len(place.computed()) == 5


def test_a_label_that_kills_its_process_is_given_up_and_a_full_disk_ends_the_call(slurm: Slurm, tmp_path):
    place = Place(tmp_path, "{where: slurm, memory: 100 MB, pack: 3, retries: 1}")
    place.mood("full")
    code, said = place.label()
    assert code == 3
    assert "No space left on device" in said
    assert "the same command continues" in said
    place.mood("die")
    code, said = place.label()
    assert code == 5, said
    assert "6 failed: worker-killed" in said
    assert "2 tries" in said
    assert set(place.attempts().values()) >= {2}
    place.mood("")
    assert place.label()[0] == 0


def test_a_scheduler_that_is_away_is_waited_for_and_nothing_is_submitted_twice(slurm: Slurm, tmp_path: Path):
    place = Place(tmp_path, ONE_EACH.replace("jobs: 8", "jobs: 2"))
    place.mood("sleep 2")
    process = place.start_label()
    slurm.wait(lambda: len(running(slurm)) == 2)
    slurm.kill("slurmctld")
    deadline = time.monotonic() + 90
    while place.status()["unknown"] == 0 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert place.status()["unknown"] >= 1
    slurm.start("slurmctld")
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert "the scheduler does not answer" in said
    assert "the scheduler answers again" in said
    assert set(place.attempts().values()) == {1}
    assert len(place.computed()) == 6


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ("{where: slurm, partition: nosuch}", ("invalid partition", "run.labels")),
        ("{where: slurm, memory: 100 MB, nodes: 3, tasks: 3}", ("will never start", "PartitionNodeLimit")),
        ("{where: slurm, memory: 100 MB, setup: wrong.sh}", ("before its first label", "nosuchmodule")),
        ("{where: slurm, memory: 900 GB}", ("run.labels",)),
    ],
)
def test_what_no_waiting_will_mend_is_said_in_the_scheduler_s_words(slurm: Slurm, tmp_path, labels, words):
    (tmp_path / "wrong.sh").write_text("nosuchmodule load pbe\n")
    place = Place(tmp_path, labels)
    code, said = place.label()
    assert code == 3, said
    for word in words:
        assert word.lower() in said.lower(), said
    slurm.wait(lambda: slurm.queue() == {}, timeout_s=20)
    assert place.attempts() == {}
