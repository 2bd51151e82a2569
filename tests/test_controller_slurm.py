"""The controller as a job of a real Slurm: it hands over, ends, is cancelled. Run with -m slurm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cluster_campaign import block, labels, write_cluster_campaign
from emt_campaign import write_campaign

from alchemy.campaign import run_campaign
from alchemy.config import load_campaign

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
pytest.importorskip("dask_jobqueue")


def alchemy(*words, code=0):
    done = subprocess.run(
        [sys.executable, "-P", "-m", "alchemy", *map(str, words)], capture_output=True, text=True
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def record(home):
    return json.loads((home / "controller.json").read_text(encoding="utf-8"))


def ended(home):
    """Whether the chain is over; its record then has an exit code and no job is in the queue."""
    found = record(home)
    return found["exit_code"] is not None and not found["message"].startswith("handed over")


def test_a_campaign_goes_on_from_job_to_job_to_the_labels_of_the_inline_run(slurm, tmp_path):
    inline = write_campaign(tmp_path / "inline")
    run_campaign(load_campaign(inline), tmp_path / "inline" / "mini")
    path = write_cluster_campaign(tmp_path / "there", block())
    home = tmp_path / "there" / "mini"
    said = alchemy("submit", path, "--partition", "debug", "--walltime", "10 min", "--memory", "500 MB")
    first = record(home)["job"]
    assert f"job {first}: controller of mini" in said
    assert "is the controller of this campaign" in alchemy("submit", path, code=3)  # one is enough
    slurm.wait(lambda: (home / "rounds" / "001").exists(), timeout_s=180)
    shown = json.loads(alchemy("status", path, "--json"))
    assert shown["controller"]["state"] == "RUNNING"
    queue = slurm.queue()
    assert {row["job"]: row["state"] for row in shown["workers"]} == {
        number: state for number, state in queue.items() if number != first
    }
    # Slurm now signals the end; a minute of margin is what ten minutes of walltime have
    slurm("scontrol", "update", f"jobid={first}", "EndTime=now+65seconds")
    slurm.wait(lambda: record(home)["job"] != first, timeout_s=120)
    slurm.wait(lambda: ended(home), timeout_s=400)
    found = record(home)
    assert (found["exit_code"], found["jobs"]) == (0, 2), found
    assert [entry["exit_code"] for entry in found["history"]] == [7, 0]
    assert labels(home) == labels(tmp_path / "inline" / "mini")
    slurm.wait(lambda: not slurm.queue())  # no worker and no successor is left
    assert "number 2 of its chain; 2 rounds, 2 were planned" in " ".join(alchemy("status", path).split())


def test_a_cancelled_controller_stops_cleanly_takes_its_workers_along_and_is_not_followed(slurm, tmp_path):
    path = write_cluster_campaign(tmp_path, block(cpu_jobs=2))
    home = tmp_path / "mini"
    alchemy("submit", path, "--walltime", "10 min", "--memory", "500 MB")
    slurm.wait(lambda: len(slurm.queue()) == 4, timeout_s=120)
    assert "is asked to stop" in alchemy("submit", path, "--cancel")
    slurm.wait(lambda: not slurm.queue(), timeout_s=60)
    found = record(home)
    assert (found["exit_code"], found["jobs"]) == (7, 1)
    assert not (home / "lease.json").exists()
    assert not list((home / "workers").glob(".tls-*"))


def test_scancel_of_the_controller_leaves_no_successor_and_the_campaign_can_go_on(slurm, tmp_path):
    path = write_campaign(tmp_path, where="inline")
    home = tmp_path / "mini"
    alchemy("submit", path, "--walltime", "10 min", "--memory", "500 MB")
    slurm.wait(lambda: (home / "lease.json").exists(), timeout_s=120)
    slurm("scancel", record(home)["job"])
    slurm.wait(lambda: not slurm.queue(), timeout_s=60)
    assert record(home)["jobs"] == 1
    alchemy("submit", path, "--walltime", "10 min", "--memory", "500 MB", "--until", "0")
    slurm.wait(lambda: ended(home) and not slurm.queue(), timeout_s=240)
    assert record(home)["exit_code"] == 0
    assert len(labels(home)) > 0


def test_what_the_job_says_is_in_its_log_and_in_status(slurm, tmp_path):
    path = write_campaign(tmp_path, where="inline")
    alchemy("submit", path, "--walltime", "10 min", "--memory", "500 MB", "--directive=--hold")
    home = tmp_path / "mini"
    # the file is broken between submission and start, as by somebody who edits it
    path.write_text(path.read_text().replace("seed: 3", "seed: three"), encoding="utf-8")
    slurm("scontrol", "release", record(home)["job"])
    slurm.wait(lambda: ended(home) and not slurm.queue(), timeout_s=120)
    assert record(home)["exit_code"] == 2
    assert "seed: found 'three'" in Path(home / "controller" / "controller.log").read_text()
    assert os.access(home / "controller" / "controller.slurm.sh", os.R_OK)


def doctor(path, code):
    said = alchemy("doctor", path, "--on", "slurm", "--json", code=code)
    return {(row["what"], row["ok"]): row["text"] for row in json.loads(said)}


def test_the_doctor_finds_a_working_cluster_working(slurm, tmp_path):
    path = write_cluster_campaign(tmp_path, block())
    found = doctor(path, 0)
    assert "Python" in found["gpu job", True]
    assert "one step on cpu of" in found["training", True]
    assert "Cu2 on a worker" in found["emt", True]
    assert not slurm.queue()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["campaign.yaml", "cu.xyz"]


def test_the_doctor_says_what_is_wrong_with_the_nodes(slurm, tmp_path):
    if not slurm.gpus:
        pytest.skip("fake GPUs need mknod")
    path = write_cluster_campaign(tmp_path, block(gpus=1))
    found = doctor(path, 3)
    assert "1 GPU asked for, and torch" in found["gpu job", False]
    assert "(CUDA_VISIBLE_DEVICES=0)" in found["gpu job", False]
    assert ("cpu job", True) in found
    text = path.read_text(encoding="utf-8")
    text = text.replace("interface: lo", "interface: lo\n    python: /gone/python")
    path.write_text(text, encoding="utf-8")
    found = doctor(path, 3)
    assert "/gone/python not found on node" in found["cpu job", False]
