"""Tasks for test_executors.py: importable by worker processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def double(request):
    """Twice the value."""
    return {"value": 2 * request["value"], "pid": os.getpid(), "omp": os.environ.get("OMP_NUM_THREADS")}


def refuse(request):
    """An error of the task's own."""
    raise ValueError(f"no {request['value']}")


def die_on_seven(request):
    """Takes its worker down whenever it sees a seven."""
    if request["value"] == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return double(request)


def sleep(request):
    """Longer than anybody wants to wait."""
    time.sleep(60)
    return {}


def note_and_sleep(request):
    """Leaves a file of its own for every time that it begins, and sleeps, or waits for a text in a file."""
    begun = Path(request["folder"]) / f"{request['value']}-{os.getpid()}-{time.time_ns()}"
    begun.touch()
    time.sleep(request["s"])
    if "until" in request:
        path, text = request["until"]
        while text not in Path(path).read_text():
            time.sleep(0.1)
    return {
        "value": request["value"],
        "job": os.environ.get("SLURM_JOB_ID"),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "omp": os.environ.get("OMP_NUM_THREADS"),
    }
