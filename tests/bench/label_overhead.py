"""What the way of a label costs besides the label: controller CPU and memory per label, busy workers.

    python tests/bench/label_overhead.py --labels 10000 --sleep 0 --workers 2
    python tests/bench/label_overhead.py --labels 120 --sleep 1

Labels that only sleep go through the stage of a campaign: a store with the structures, a local Dask cluster,
records on disk, commits of some labels at a time. One JSON line:

controller_ms_per_label   CPU of the controller with Dask's scheduler in it, once the cluster runs
start_ms_per_label        of that until the first label is there: keys and requests
rss_MiB_tenth, rss_MiB_end   resident memory of the controller after a tenth of the labels and at the end
busy                      seconds slept over worker seconds between the first start and the last end
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from alchemy.campaign import opened
from alchemy.config import load_campaign_text
from alchemy.errors import AlchemyError
from alchemy.executors import Interrupt
from alchemy.identity import structure_uid
from alchemy.progress import Progress
from alchemy.stages import label
from alchemy.state import Home
from alchemy.store import Store

CAMPAIGN = """\
alchemy: 1
name: overhead
elements: [Cu]
fidelities:
  naps: {{labeler: ase, calculator: label_overhead.Naps, target: true}}
e0: least-squares
start:
  - rattle: {{structures: cu.xyz, count: 1, stdev: 0.1 A}}
    label: {{naps: all}}
run: {{where: {where}, workers: {workers}, gpus: 0}}
"""


class Naps(Calculator):
    """Sleeps for NAP_S seconds; the forces pull the atoms together, as the gate refuses zeros."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        super().calculate(atoms, list(properties), list(system_changes))
        time.sleep(float(os.environ["NAP_S"]))
        assert self.atoms is not None
        pull = self.atoms.positions - self.atoms.positions.mean(0)
        self.results = {"energy": 0.1, "forces": -0.1 * pull}


class Watch:
    """Takes the place of the progress bar: notes memory and when labels came."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.began_cpu_s = total, 0, time.process_time()
        self.first_cpu_s = 0.0
        self.memory: dict[int, float] = {}

    def advance(self) -> None:
        self.done += 1
        if self.done == 1:
            self.first_cpu_s = time.process_time() - self.began_cpu_s
        if self.done in (max(1, self.total // 10), self.total):
            self.memory[self.done] = resident_MiB()

    def note(self, text: str) -> None:
        return


def resident_MiB() -> float:
    """Of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def structures(number: int) -> list[Atoms]:
    """Pairs of copper atoms, each of another length."""
    return [Atoms("Cu2", positions=[[0, 0, 0], [2.2 + 1e-4 * n, 0, 0]]) for n in range(number)]


def measure(folder: Path, *, labels: int, sleep_s: float, workers: int) -> dict[str, Any]:
    """Label them; what it took."""
    (folder / "cu.xyz").write_text("1\n\nCu 0 0 0\n")
    text = CAMPAIGN.format(where="local" if workers else "inline", workers=workers or 1)
    campaign = load_campaign_text(text, "overhead.yaml", folder)
    home = Home(folder / "overhead")
    home.path.mkdir()
    frames = structures(labels)
    store = Store(home.store)
    store.append(structures=frames)
    requests = [(structure_uid(a), "naps") for a in frames]
    interrupt, watch = Interrupt(), Watch(labels)
    with opened(campaign, home, ("naps",), interrupt, progress=Progress()) as context:
        warm = structures(labels + 8 * workers)[labels:]
        context.store.append(structures=warm)
        label.label(context, [(structure_uid(a), "naps") for a in warm], what="", bar=Watch(0))
        watch.began_cpu_s, began = time.process_time(), time.perf_counter()
        label.label(context, requests, what="", bar=watch)
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - watch.began_cpu_s
        snapshot = context.store.snapshot()
    good = len(snapshot.labels())
    if good != labels + 8 * workers:
        raise AlchemyError(f"{good} good labels of {labels}: {snapshot.failures()[:1]}")
    return {
        "bench": "label_overhead",
        "labels": labels,
        "sleep_s": sleep_s,
        "workers": workers,
        "controller_ms_per_label": 1e3 * cpu_s / labels,
        "start_ms_per_label": 1e3 * watch.first_cpu_s / labels,
        "labels_per_s": labels / wall_s,
        "rss_MiB_tenth": watch.memory[max(1, labels // 10)],
        "rss_MiB_end": watch.memory[labels],
        "busy": labels * sleep_s / (max(1, workers) * wall_s),
        "load1": os.getloadavg()[0],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--labels", type=int, default=10_000)
    parser.add_argument("--sleep", type=float, default=0.0, help="seconds of a label")
    parser.add_argument("--workers", type=int, default=2, help="0: in this process")
    given = parser.parse_args(arguments)
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    here = mock.patch.dict(os.environ, NAP_S=str(given.sleep), PYTHONPATH=path)  # for the workers
    with here, tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), labels=given.labels, sleep_s=given.sleep, workers=given.workers)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
