"""Random SIGKILLs on a campaign: controllers, Dask workers, programs that they started. JSON at the end.

    python tests/chaos_campaign.py FOLDER --kills 30 --seed 1 [--overlap]

A miniature EMT campaign runs on a local cluster; every label and every training is a process of its own
below a worker. What is killed and when follows from the seed and from what happens to run. A killed
controller is started again at once. `finished_twice` names labels whose output was written more than once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emt_campaign import write_campaign

from alchemy.identity import content_hash
from alchemy.store import LabelRow, Store

HERE = Path(__file__).parent
MARK = "ALCHEMY_CHAOS"
KINDS = ("controller", "worker", "program")
PAUSES = (0.2, 1.8)  # between kills, in units of the pace
NAP = 0.6  # a label takes this long, in units of the pace
GIVE_UP_S = 1500.0


def prepared(folder: Path, *, overlap: bool, nap_s: float) -> tuple[Path, dict[str, str]]:
    """Campaign file and environment."""
    path = write_campaign(folder, where="local", calculator="chaos_emt.ChildEMT")
    text = path.read_text()
    text = text.replace("count: 5,", "count: 24,").replace("per_round: 2,", "per_round: 6,")
    text = text.replace("walkers: 2,", "walkers: 8,").replace("gpus: auto", "gpus: 0")
    text = text.replace("workers: 2}", f"workers: 2, gpus: 0, overlap: {str(overlap).lower()}}}")
    path.write_text(text)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": "1",
        "CHAOS_LOG": str(folder / "finished.log"),
        "CHAOS_NAP_S": str(nap_s),
        MARK: str(folder),
    }
    return path, environment


def ours(folder: Path) -> Iterator[tuple[int, str]]:
    """(pid, kind) of every live process that was started for this folder."""
    wanted = f"{MARK}={folder}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if wanted not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            state = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if state[0] in "ZX":
            continue
        yield int(entry.name), kind_of(words, (entry / "comm").read_text().strip())


def kind_of(words: list[str], name: str) -> str:
    """What a command line is."""
    line = " ".join(words)
    if "alchemy.training" in line or words[0] == "sleep":
        return "program"
    if "spawn_main" in line:
        return "worker"
    if "-m alchemy run" in line:
        return "controller"
    return name  # resource tracker and the like: never killed by us


def start(path: Path, environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """A controller."""
    with open(log, "ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "alchemy", "run", str(path)],
            env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL,
        )  # fmt: skip


def disturbed(folder: Path, *, kills: int, seed: int, overlap: bool, pace_s: float) -> dict[str, Any]:
    """Run it to its end; what was killed, and what is left."""
    rng = random.Random(seed)
    path, environment = prepared(folder, overlap=overlap, nap_s=NAP * pace_s)
    wanted = [KINDS[n % len(KINDS)] for n in range(kills)]  # as many of each kind, in any order
    rng.shuffle(wanted)
    done: list[str] = []
    restarts, odd = 0, []
    began = time.monotonic()
    controller = start(path, environment, folder / "run.log")
    while controller.poll() is None or controller.returncode != 0:
        if time.monotonic() - began > GIVE_UP_S:
            controller.kill()
            break
        if controller.poll() is not None:
            if controller.returncode != -signal.SIGKILL:
                odd.append(controller.returncode)
            restarts += 1
            controller = start(path, environment, folder / "run.log")
        if wanted and _kill_one(folder, rng, wanted[-1], controller):
            done.append(wanted.pop())
            time.sleep(pace_s * rng.uniform(*PAUSES))
        else:
            time.sleep(0.1)
    time.sleep(2.0)
    orphans = [kind for _, kind in ours(folder)]
    finished = Counter((folder / "finished.log").read_text().split())
    labels = stored(folder)
    return {
        "seed": seed,
        "overlap": overlap,
        "kills": dict(Counter(done)),
        "restarts": restarts,
        "unexpected_exit_codes": odd,
        "exit_code": controller.returncode,
        "labels": {row.key: contents(row) for row in labels if row.status == "ok"},
        "failed": dict(Counter(row.status for row in labels if row.status != "ok")),
        "finished_twice": sorted(key for key, number in finished.items() if number > 1),
        "finished": len(finished),
        "orphans": orphans,
        "wall_s": round(time.monotonic() - began, 1),
    }


def _kill_one(
    folder: Path, rng: random.Random, kind: str, controller: subprocess.Popen[bytes]
) -> bool:
    """One process of the kind, if there is one by now."""
    alive = sorted(pid for pid, own in ours(folder) if own == kind)
    if not alive or not (folder / "mini" / "store.h5.d").exists():
        return False
    pid = rng.choice(alive)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    if pid == controller.pid:
        controller.wait()
    return True


def stored(folder: Path) -> list[LabelRow]:
    """All labels, failed ones too."""
    return Store(folder / "mini" / "store.h5").snapshot().labels(status=None)


def contents(row: LabelRow) -> str:
    """A hash of structure, energy, forces and stress to the last bit."""
    arrays = (row.forces_eV_per_A, row.stress_eV_per_A3)
    return content_hash(
        [row.structure_uid, row.fingerprint, row.energy_eV, *(a if a is None else a.tolist() for a in arrays)]
    )


def calm(folder: Path, *, nap_s: float) -> dict[str, str]:
    """Labels of the same campaign that nobody disturbs: keys and contents."""
    path, environment = prepared(folder, overlap=False, nap_s=nap_s)
    done = start(path, environment, folder / "run.log").wait()
    if done != 0:
        raise RuntimeError(f"the undisturbed campaign ended with {done}: {folder / 'run.log'}")
    return {row.key: contents(row) for row in stored(folder)}


def main() -> None:
    """Print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pace", type=float, default=1.5, help="seconds from kill to kill")
    parser.add_argument("--overlap", action="store_true")
    given = parser.parse_args()
    found = disturbed(
        given.folder.resolve() / "killed", kills=given.kills, seed=given.seed, overlap=given.overlap,
        pace_s=given.pace,
    )  # fmt: skip
    if not given.overlap:
        found["same_labels"] = found["labels"] == calm(given.folder.resolve() / "calm", nap_s=0.0)
    print(json.dumps({**found, "labels": len(found["labels"])}, indent=1))


if __name__ == "__main__":
    main()
