"""The miniature campaign with workers of a batch system, and what a test wants to know of them."""

from __future__ import annotations

import json
from pathlib import Path

from emt_campaign import write_campaign

from alchemy.store import Store

# walltimes are minutes because Slurm counts in them; everything else is as short as it works
BLOCK = """\
run:
  where: slurm
  cluster:
    interface: lo
    ask_every: 1 s
    idle: {idle}
    patience: 2 min
    gpu: {{cores: 1, memory: 500 MB, walltime: {walltime}, drain: {drain}, gpus: {gpus}, jobs: {gpu_jobs}}}
    cpu: {{cores: 1, memory: 500 MB, walltime: {walltime}, drain: {drain}, jobs: {cpu_jobs}}}
"""


def block(**changes: object) -> str:
    """The `run` block; `gpus`, `gpu_jobs`, `cpu_jobs`, `walltime`, `drain` and `idle` may be set."""
    options = {
        "gpus": 0, "gpu_jobs": 1, "cpu_jobs": 1, "walltime": "10 min", "drain": "30 s", "idle": "1 h"
    }  # fmt: skip
    return BLOCK.format(**{**options, **changes})


def write_cluster_campaign(folder: Path, run_block: str, **options: str) -> Path:
    """campaign.yaml in `folder` with another run block."""
    path = write_campaign(folder, **options)
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: text.index("run: ")] + run_block, encoding="utf-8")
    return path


def labels(home: Path) -> list[tuple[str, float]]:
    """Structure and energy of every label, sorted: what has to be the same however it came about."""
    rows = Store(home / "store.h5").snapshot().labels()
    return sorted((row.structure_uid, row.energy_eV) for row in rows)


def jobs(home: Path) -> list[dict]:
    """The worker jobs that the controller keeps."""
    return json.loads((home / "workers" / "jobs.json").read_text(encoding="utf-8"))["jobs"]
