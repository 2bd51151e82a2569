"""The Slurm of the tests: real, and gone when they are."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from slurm_fixture import Slurm, missing_programs

HERE = Path(__file__).parent


def submit(slurm: Slurm, script: str, *options: str) -> str:
    words = ["sbatch", "--parsable", "-o", "/dev/null", "--mem=10", *options, "--wrap", script]
    return slurm(*words).strip()


@pytest.mark.slurm
def test_jobs_run_and_end_as_slurm_says(slurm: Slurm, tmp_path: Path):
    out = tmp_path / "out"
    good, bad = submit(slurm, f"hostname > {out}"), submit(slurm, "exit 3")
    late = submit(slurm, "sleep 300", "-w", "n1")
    lost = submit(slurm, "sleep 300", "-w", "n2", "--no-requeue")
    never = submit(slurm, "true", "-N", "3")
    slurm.wait(lambda: slurm.job(lost)["JobState"] == slurm.job(late)["JobState"] == "RUNNING")
    slurm.out_of_time(late)
    slurm.node("n2", "down")
    slurm.wait(lambda: set(slurm.queue()) == {never})
    states = [slurm.job(n)["JobState"] for n in (good, bad, late, lost)]
    assert states == ["COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL"]
    assert slurm.job(bad)["ExitCode"] == "3:0"
    assert out.read_text()
    assert slurm.job(never)["Reason"] == "PartitionNodeLimit"


@pytest.mark.slurm
def test_a_node_that_is_killed_comes_back_and_leaves_no_job_behind(slurm: Slurm, tmp_path: Path):
    pid = tmp_path / "pid"
    submit(slurm, f"setsid sleep 300 & echo $! > {pid}; wait", "-w", "n2")
    slurm.wait(lambda: pid.exists() and pid.read_text())
    slurm.kill("n2")
    slurm.wait(lambda: not Path(f"/proc/{pid.read_text().strip()}").exists())
    slurm.clean()
    assert slurm.queue() == {}


BEHIND = """
import os, signal, sys, tempfile
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from slurm_fixture import Slurm
cluster = Slurm(Path(tempfile.mkdtemp(prefix="alchemy-slurm-", dir="/tmp")))
cluster.open()
cluster("sbatch", "-o", "/dev/null", "--wrap", "sleep 4242")
cluster.wait(lambda: "RUNNING" in cluster.queue().values())
print(cluster.folder, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def processes_of(folder: str) -> list[str]:
    """Command lines that name the folder, or run in a job of it."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words, variables = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
        except OSError:
            continue
        if folder.encode() in words + variables:
            found.append(words.decode())
    return found


@pytest.mark.slurm
@pytest.mark.skipif(bool(missing_programs()), reason="no real Slurm here")
def test_nothing_outlives_a_test_session_that_is_killed():
    ended = subprocess.run([sys.executable, "-c", BEHIND, str(HERE)], stdout=subprocess.PIPE, text=True)
    assert ended.returncode == -signal.SIGKILL
    folder = ended.stdout.strip()
    deadline = time.monotonic() + 20
    while processes_of(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(folder) == []
    assert folder.startswith("/tmp/alchemy-slurm-")
    subprocess.run(["rm", "-r", folder], check=True)
