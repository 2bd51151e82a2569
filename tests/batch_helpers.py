"""A campaign folder whose labels are Slurm jobs, with a calculator that obeys the files beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from ase.build import bulk
from ase.io import write

from alchemy.batch_ledger import counts

CALCULATOR = '''
import errno, os, subprocess, sys, time
from pathlib import Path
from ase.calculators.emt import EMT
from alchemy.identity import structure_uid

HERE = Path(__file__).parent

class Moody(EMT):
    """Logs what it has computed; before that it does what `mood` says."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        words = (HERE / "mood").read_text().split()
        if words and words[0] == "sleep":
            time.sleep(float(words[1]))
        while words == ["wait"] and len(atoms) > 1:  # for another mood
            time.sleep(0.1)
            words = (HERE / "mood").read_text().split()
        if words and words[0] == "die":
            os.kill(os.getpid(), 9)
        if words and words[0] == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "output")
        if words and words[0] == "child":  # a program in a session of its own
            child = subprocess.Popen(["sleep", "4242"], start_new_session=True)
            (HERE / "child").write_text(str(child.pid))
            time.sleep(300)
        super().calculate(atoms, list(properties), list(system_changes))
        with open(HERE / "computed", "a") as file:
            file.write(structure_uid(atoms) + "\\n")
'''

CAMPAIGN = """\
alchemy: 1
name: batch
elements: [Cu]
seed: 3
fidelities:
  emt: {labeler: ase, calculator: alchemy_moody.Moody}
model:
  preset: nano
  committee: 2
  cutoff: 3.5 A
  overrides: {channels: 4, radial_mlp: [8]}
  train: {steps: 12, batch: 4}
start:
  - rattle: {structures: cu.xyz, count: 6, stdev: 0.08 A}
    label: {emt: all}
test:
  - rattle: {structures: cu.xyz, count: 2, stdev: 0.1 A}
    label: {emt: all}
explore:
  - md: {T: [300 K], time: 40 fs, timestep: 2 fs, walkers: 2, check_every: 5}
stop_md: {label_above: 2 eV/A, abort_above: 40 eV/A}
select: {per_round: 2, random: 0.5, threshold: 0.1 meV/A, dedup: 0}
stop: {rounds: 1}
keep: {label_directories: all}
run:
  where: inline
  gpus: 0
  labels: LABELS
"""
SLURM = "{where: slurm, memory: 100 MB, walltime: 2 min, pack: 2, jobs: 4}"


class Place:
    """The folder: campaign.yaml, structures, calculator, mood."""

    def __init__(self, folder: Path, labels: str = SLURM) -> None:
        self.folder = folder
        (folder / "alchemy_moody.py").write_text(CALCULATOR, encoding="utf-8")
        self.campaign = folder / "campaign.yaml"
        self.labels(labels)
        frames = []
        for seed in range(6):
            atoms = bulk("Cu", a=3.7, cubic=True)
            atoms.rattle(0.05, seed=seed)
            frames.append(atoms)
        write(folder / "cu.xyz", frames[0])
        write(folder / "frames.xyz", frames)
        self.mood("")

    def labels(self, text: str) -> None:
        """Another run.labels block."""
        self.campaign.write_text(CAMPAIGN.replace("LABELS", text), encoding="utf-8")

    def mood(self, text: str) -> None:
        (self.folder / "mood").write_text(text, encoding="utf-8")

    def environment(self) -> dict[str, str]:
        paths = [str(self.folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}

    def start(self, *words: str) -> subprocess.Popen[str]:
        """`alchemy …` in this folder."""
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "alchemy", *words],
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def call(self, *words: str) -> tuple[int, str]:
        """Exit code and everything it printed."""
        process = self.start(*words)
        said, _ = process.communicate(timeout=240)
        assert "Traceback" not in said, said
        return process.returncode, said

    def start_label(self) -> subprocess.Popen[str]:
        """`alchemy label` of the six frames, not waited for."""
        command = ["label", "frames.xyz", "--campaign", ".", "--with", "emt", "--store", "store"]
        return self.start(*command, "--out", "out.extxyz")

    def label(self) -> tuple[int, str]:
        """The same to its end: exit code and everything it printed."""
        process = self.start_label()
        said, _ = process.communicate(timeout=240)
        assert "Traceback" not in said, said
        return process.returncode, said

    def attempts(self, root: str = "store") -> dict[str, int]:
        """Label key → how often a job has begun it."""
        files = (self.folder / root).glob("*/attempts.jsonl")
        return {path.parent.name: len(path.read_text().splitlines()) for path in files}

    def computed(self) -> list[str]:
        """Structures whose calculation came to its end, each as often as that happened; sorted."""
        path = self.folder / "computed"
        return sorted(path.read_text().split()) if path.exists() else []

    def status(self) -> dict[str, int]:
        """Batch jobs as the ledger of `label` has them: what `alchemy status` shows."""
        found = counts(self.folder / "store" / "pyiron")
        assert found is not None
        return {state: found[state] for state in ("queued", "running", "unknown")}

    def exits(self, project: str = "store/pyiron") -> list[dict]:
        """All exit records."""
        found = (self.folder / project).glob("al*_hdf5/al*/exit.json")
        return [json.loads(path.read_text()) for path in found]
