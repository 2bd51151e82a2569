"""The keeper of worker jobs, with real Dask workers and a batch system of paper."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from executor_tasks import note_and_sleep
from paper_slurm import PaperSlurm

from alchemy.config_blocks import Run
from alchemy.executors import Interrupt, make_executor


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    paper = PaperSlurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{paper.folder}:{os.environ['PATH']}")
    paths = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(":")]
    monkeypatch.setenv("PYTHONPATH", ":".join(p for p in paths if p))
    yield paper
    paper.kill_all()


def test_a_worker_near_its_end_finishes_its_task_another_takes_the_rest_and_none_stays(slurm, tmp_path):
    cluster = {"interface": "lo", "ask_every": "1 s", "cpu": {"walltime": "10 min", "drain": "1 min"}}
    said = []
    executor = make_executor(
        Run.model_validate({"where": "slurm", "cluster": cluster}),
        home=tmp_path,
        base_dir=tmp_path,
        interrupt=Interrupt(),
        waiting=said.append,
    )
    begun = tmp_path / "begun"
    begun.mkdir()
    end = threading.Thread(target=_end_when_begun, args=(slurm, begun), daemon=True)
    end.start()
    found, requests = {}, [{"value": n, "s": 0.1, "folder": str(begun)} for n in range(3)]
    requests[0]["until"] = [str(tmp_path / "workers" / "jobs.json"), "its walltime ends"]
    try:
        executor.run(
            note_and_sleep,
            requests,
            resource="LABEL",
            on_done=lambda n, result: found.update({n: result}),
        )
        assert executor._client.scheduler.address.startswith("tls://127.0.0.1:")
    finally:
        executor.close()
    assert {n: result["value"] for n, result in found.items()} == {0: 0, 1: 1, 2: 2}
    starts = Counter(path.name.split("-")[0] for path in begun.iterdir())
    assert starts == {"0": 1, "1": 1, "2": 1}  # the one under way was not taken away
    assert len({path.name.split("-")[1] for path in begun.iterdir()}) == 2  # by two workers
    assert said[0].startswith("waiting for a worker: ")
    assert said[-1] == ""  # told even when all was done before the next look
    assert wait_until(lambda: not slurm.running())
    assert not list((tmp_path / "workers").glob(".tls-*"))


def _end_when_begun(slurm, begun):
    while not any(begun.iterdir()):
        time.sleep(0.1)
    slurm.ends_in("1", 30.0)


def wait_until(what):
    deadline = time.monotonic() + 20
    while not what() and time.monotonic() < deadline:
        time.sleep(0.1)
    return what()
