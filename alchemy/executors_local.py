"""Workers of this machine: nannies on loopback."""

from __future__ import annotations

import os
from typing import Any


def gpu_count(gpus: int | str) -> int:
    """GPUs that the `run` block means: of `auto`, all that are visible."""
    if gpus != "auto":
        return int(gpus)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([g for g in visible.split(",") if g.strip()])
    return len([n for n in os.listdir("/dev") if n.startswith("nvidia") and n[6:].isdigit()])


def local_cluster(workers: int, threads: int, gpus: int) -> Any:
    """Nannies on loopback; with GPUs, one worker sees each and only those take GPU tasks."""
    from dask.distributed import Nanny, Scheduler, SpecCluster

    base = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    base["OPENBLAS_NUM_THREADS"] = str(threads)
    specs = {}
    for n in range(max(workers, gpus)):
        environment = {**base, "CUDA_VISIBLE_DEVICES": str(n) if n < gpus else ""}
        resources = {"LABEL": 1.0}
        if not gpus or n < gpus:
            resources["GPU"] = 1.0
        specs[n] = {
            "cls": Nanny,
            "options": {
                "nthreads": 1,
                "resources": resources,
                "env": environment,
                "host": "127.0.0.1",
                "dashboard_address": None,
                "memory_limit": 0,  # a label code that needs memory is the user's wish, not a leak
                "silence_logs": 40,
            },
        }
    scheduler = {
        "cls": Scheduler,
        "options": {"host": "127.0.0.1", "port": 0, "dashboard_address": "127.0.0.1:0", "dashboard": False},
    }
    return SpecCluster(workers=specs, scheduler=scheduler, silence_logs=40)
