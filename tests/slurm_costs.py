"""What a batch job costs the controller, on the Slurm of the tests; prints JSON lines, asserts nothing.

    python tests/slurm_costs.py [--labels 48]

EMT labels of four atoms, so that nothing but the way there counts. CPU is of this process and of sbatch and
squeue; the labels' own is not in it. docs/hpc.md has the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from played_scheduler import request
from slurm_fixture import Slurm

from alchemy import pyiron_desk
from alchemy.config_labels import Labels
from alchemy.executors import InlineExecutor, Interrupt
from alchemy.label_runners import JobLabels


def cpu_s() -> float:
    """Of this process and the commands it has waited for."""
    parts = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in parts)


def measure(folder: Path, labels: int, pack: int, first_seed: int) -> dict[str, Any]:
    """One call of `labels` labels; the first call of a process pays for imports and is thrown away."""
    requests = [request(folder, first_seed + n) for n in range(labels)]
    jobs = Labels.model_validate({"where": "slurm", "memory": "100 MB", "pack": pack, "walltime": "5 min"})
    interrupt, spent = Interrupt(), [0.0]
    submit = pyiron_desk.Desk.submit

    def timed(*arguments: Any) -> None:
        began = time.perf_counter()
        submit(*arguments)
        spent.append(time.perf_counter() - began)

    pyiron_desk.Desk.submit = timed  # type: ignore[method-assign]
    runner = JobLabels(
        InlineExecutor(interrupt),
        jobs,
        folder=folder / "pyiron",
        base_dir=folder,
        say=print,
        interrupt=interrupt,
    )
    cpu, wall = cpu_s(), time.perf_counter()
    runner.run(requests, on_done=lambda index, result: None)
    cpu, wall = cpu_s() - cpu, time.perf_counter() - wall
    pyiron_desk.Desk.submit = submit  # type: ignore[method-assign]
    number = len(spent) - 1
    records = [json.loads(p.read_text()) for p in (folder / "pyiron").glob("al*_hdf5/al*/exit.json")]
    lasted = [r["ended_unix_s"] - r["began_unix_s"] for r in records[-number:]]
    kept = sum(p.stat().st_size for p in (folder / "pyiron").glob("al*.h5"))
    return {
        "labels": labels,
        "pack": pack,
        "jobs": number,
        "controller_cpu_ms_per_job": round(1e3 * cpu / number, 1),
        "controller_cpu_ms_per_label": round(1e3 * cpu / labels, 1),
        "submission_wall_ms_per_job": round(1e3 * statistics.median(spent[1:]), 1),
        "wall_s": round(wall, 1),
        "job_lasted_s": round(statistics.median(lasted), 2),
        "hdf5_kB_per_job": round(kept / len(records) / 1e3),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--labels", type=int, default=48)
    given = parser.parse_args()
    cluster = Slurm(Path(tempfile.mkdtemp(prefix="alchemy-slurm-", dir="/tmp")))
    try:
        cluster.open()
        os.environ["SLURM_CONF"] = str(cluster.config)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            (folder / "labels").mkdir()
            measure(folder, 2, 2, 0)
            for n, pack in enumerate((1, 16)):
                print(json.dumps(measure(folder, given.labels, pack, 1000 * (n + 1))), flush=True)
    finally:
        cluster.close()


if __name__ == "__main__":
    main()
