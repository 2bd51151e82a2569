"""Workers from a real Slurm: they come, are replaced, released, and say what is wrong. Run with -m slurm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from cluster_campaign import block, jobs, labels, write_cluster_campaign
from emt_campaign import write_campaign
from executor_tasks import note_and_sleep

from alchemy.campaign import run_campaign
from alchemy.config import load_campaign
from alchemy.config_blocks import Run
from alchemy.errors import EnvironmentProblemError
from alchemy.executors import Interrupt, make_executor

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
pytest.importorskip("dask_jobqueue")

MINUTE = {"memory": "500 MB", "walltime": "10 min", "drain": "30 s"}


@pytest.fixture(autouse=True)
def _workers_find_the_tasks(monkeypatch):
    """Slurm hands the environment on."""
    paths = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(":")]
    monkeypatch.setenv("PYTHONPATH", ":".join(p for p in paths if p))


@pytest.fixture
def fleet(slurm, tmp_path):
    """Executors made by the test, closed after it."""
    made = []

    def make(**cluster):
        settings = {"interface": "lo", "ask_every": "1 s", "patience": "2 min", **cluster}
        run = Run.model_validate({"where": "slurm", "cluster": settings})
        said = []
        made.append(
            make_executor(
                run, home=tmp_path, base_dir=tmp_path, interrupt=Interrupt(), waiting=said.append
            )
        )
        return made[-1], said

    yield make
    for executor in made:
        executor.close()
    slurm.wait(lambda: not slurm.queue())  # nothing of ours stays in the queue


def work(executor, folder, count, *, seconds=0.1, resource="LABEL"):
    """Results by value, and how often each task began."""
    begun = folder / f"begun-{resource}"
    begun.mkdir(exist_ok=True)
    found = {}
    requests = [{"value": n, "s": seconds, "folder": str(begun)} for n in range(count)]
    executor.run(
        note_and_sleep, requests, resource=resource, on_done=lambda n, result: found.update({n: result})
    )
    return found, Counter(path.name.split("-")[0] for path in begun.iterdir())


def test_a_campaign_ends_with_the_labels_of_the_inline_run_though_a_worker_is_cancelled(slurm, tmp_path):
    inline = write_campaign(tmp_path / "inline")
    run_campaign(load_campaign(inline), tmp_path / "inline" / "mini")
    path = write_cluster_campaign(tmp_path / "there", block())
    home = tmp_path / "there" / "mini"
    done = subprocess.Popen([sys.executable, "-P", "-m", "alchemy", "run", str(path)], stdout=subprocess.PIPE)
    slurm.wait(lambda: (home / "rounds" / "001").exists(), timeout_s=120)
    victim = next(job["id"] for job in jobs(home) if job["kind"] == "gpu")
    slurm("scancel", victim)
    said = done.communicate(timeout=500)[0].decode()
    assert done.returncode == 0, said
    assert labels(home) == labels(tmp_path / "inline" / "mini")
    assert json.loads((home / "workers" / "jobs.json").read_text())["number"] >= 3  # two, and the new one
    assert not list((home / "workers").glob(".tls-*"))  # the keys are gone with the run


def test_traffic_is_encrypted_and_keys_are_private(fleet, slurm, tmp_path):
    executor, said = fleet(cpu={**MINUTE})
    work(executor, tmp_path, 1)
    assert any("waiting for a worker: cpu job" in text for text in said)
    assert said[-1] == ""  # and it said that it waits no longer
    assert executor._client.scheduler.address.startswith("tls://127.0.0.1:")
    workers = executor._client.scheduler_info(n_workers=-1)["workers"]
    assert all(address.startswith("tls://127.0.0.1:") for address in workers)
    keys = sorted((tmp_path / "workers").glob(".tls-*"))
    assert len(keys) == 3
    assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}
    pids = {os.getpid(), *_processes("distributed.cli.dask_worker")}
    open_to_all = [port for pid in pids for port in _listening(pid) if not port.startswith("127.0.0.1")]
    assert not open_to_all  # the plain HTTP of Dask's servers included


def _processes(word):
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word in path.read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                yield int(path.parent.name)
        except OSError:
            continue


def _listening(pid):
    import psutil

    open_ones = (c for c in psutil.Process(pid).net_connections() if c.status == "LISTEN")
    return [f"{c.laddr.ip}:{c.laddr.port}" for c in open_ones]


def test_a_cancelled_worker_is_replaced_and_its_task_done_by_another(fleet, slurm, tmp_path):
    executor, _ = fleet(cpu={**MINUTE, "jobs": 2})
    work(executor, tmp_path, 2)
    first = set(slurm.queue())
    assert len(first) == 2
    threading.Timer(1.0, lambda: slurm("scancel", min(first))).start()
    found, _ = work(executor, tmp_path, 10, seconds=1.0)
    assert {result["value"] for result in found.values()} == set(range(10))
    slurm.wait(lambda: len(set(slurm.queue()) - {min(first)}) == 2)


def test_a_worker_whose_walltime_ends_finishes_its_task_and_another_takes_over(fleet, slurm, tmp_path):
    executor, _ = fleet(cpu={**MINUTE})
    work(executor, tmp_path, 1)
    (old,) = slurm.queue()
    # twenty seconds are less than the drain of thirty: it may begin nothing more
    threading.Timer(
        1.0, lambda: slurm("scontrol", "update", f"jobid={old}", "EndTime=now+20seconds")
    ).start()
    found, begun = work(executor, tmp_path, 4, seconds=5.0)
    by_job = Counter(result["job"] for result in found.values())
    assert by_job[old] >= 1  # the one under way when the end came near
    assert sum(by_job.values()) == 4
    assert len(by_job) == 2
    assert begun["1"] == begun["2"] == begun["3"] == 1  # none twice (0 is also the task of the start)
    assert begun["0"] == 2


def test_a_worker_on_a_node_that_fails_is_replaced(fleet, slurm, tmp_path):
    executor, _ = fleet(cpu={**MINUTE})
    work(executor, tmp_path, 1)
    (old,) = slurm.queue()
    slurm.node(slurm("squeue", "-h", "-j", old, "-o", "%N").strip(), "down")
    found, _ = work(executor, tmp_path, 2, seconds=1.0)
    assert {result["job"] for result in found.values()}.isdisjoint({old})


def test_gpu_jobs_come_for_gpu_tasks_see_their_gpu_and_go_when_idle(fleet, slurm, tmp_path):
    if not slurm.gpus:
        pytest.skip("fake GPUs need mknod")
    executor, _ = fleet(
        gpu={**MINUTE, "jobs": "0-2", "gpus": 1}, cpu={**MINUTE, "cores": 2, "jobs": 1}, idle="3 s"
    )
    found, _ = work(executor, tmp_path, 4, seconds=0.5)
    assert {result["gpus"] for result in found.values()} == {""}  # a labeler does not take a GPU
    assert len(slurm.queue()) == 1  # nothing asked for a GPU yet
    assert {result["omp"] for result in found.values()} == {"1"}
    found, _ = work(executor, tmp_path, 4, seconds=3.0, resource="GPU")
    assert {result["gpus"] for result in found.values()} == {"0"}
    assert len({result["job"] for result in found.values()}) == 2
    slurm.wait(lambda: len(slurm.queue()) == 1)  # released while labels are computed
    found, _ = work(executor, tmp_path, 1, resource="GPU")
    assert len(found) == 1  # and there again when needed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"python": "/no/such/python"}, "/no/such/python not found on node"),
        ({"setup": "broken.sh"}, "broken.sh failed on node"),
        ({"cpu": {**MINUTE, "partition": "nowhere"}}, "invalid partition"),
        ({"cpu": {**MINUTE, "directives": ["--nodelist=n7"]}}, "node"),
        ({"interface": "ib7"}, "run.cluster.interface: ib7"),
    ],
)
def test_what_keeps_workers_from_coming_is_said_in_words(fleet, slurm, tmp_path, change, said):
    (tmp_path / "broken.sh").write_text("echo loading; false\n")
    with pytest.raises(EnvironmentProblemError) as caught:
        work(fleet(**{"cpu": {**MINUTE}, **change})[0], tmp_path, 1)
    assert said in str(caught.value)


def test_waiting_gives_up_with_the_reason_of_the_batch_system(fleet, slurm, tmp_path):
    # the partition ends its jobs after a minute, so one of ten minutes waits for ever
    executor, _ = fleet(cpu={**MINUTE, "partition": "short"}, patience="5 s")
    with pytest.raises(EnvironmentProblemError, match=r"PENDING \(PartitionTimeLimit\)"):
        work(executor, tmp_path, 1)


def test_jobs_of_a_killed_controller_are_cleared_by_the_next(slurm, tmp_path):
    path = write_cluster_campaign(tmp_path, block(cpu_jobs=2, gpu_jobs=2))
    home = tmp_path / "mini"
    command = [sys.executable, "-P", "-m", "alchemy", "run", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as first:
        slurm.wait(lambda: len(slurm.queue()) == 4)
        time.sleep(2)
        first.send_signal(signal.SIGKILL)
    old = set(slurm.queue())
    with subprocess.Popen(command, stdout=subprocess.PIPE) as second:
        slurm.wait(lambda: len(slurm.queue()) == 4 and not old & set(slurm.queue()))
        second.send_signal(signal.SIGTERM)
        said = second.communicate(timeout=60)[0].decode()
    assert second.returncode == 7, said
    slurm.wait(lambda: not slurm.queue())
    assert jobs(home) == []
