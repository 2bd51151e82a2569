"""A miniature campaign: copper, EMT, one process, everything derived from the seed. Seconds long."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write

from alchemy.identity import structure_uid

CAMPAIGN = """\
alchemy: 1
name: mini
elements: [Cu]
seed: 3
fidelities:
  emt: {{labeler: ase, calculator: {calculator}, target: true}}
e0: compute
model:
  preset: nano
  committee: 2
  cutoff: 3.5 A
  overrides: {{channels: 4, radial_mlp: [8]}}
  train: {{steps: 12, batch: 4}}
start:
  - rattle: {{structures: cu.xyz, count: 5, stdev: 0.08 A}}
    label: {{emt: all}}
test:
  - rattle: {{structures: cu.xyz, count: 2, stdev: 0.1 A}}
    label: {{emt: all}}
explore:
  - md: {{T: [300 K], time: 40 fs, timestep: 2 fs, walkers: 2, check_every: 5}}
stop_md: {{label_above: 2 eV/A, abort_above: 40 eV/A}}
select: {{per_round: 2, random: 0.5, threshold: 0.1 meV/A, dedup: 0}}
stop: {{rounds: 2}}
run: {{where: {where}, workers: 2}}
"""


class CountingEMT(EMT):
    """EMT that appends a line to the file named by EMT_CALLS for every calculation."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=()) -> None:
        super().calculate(atoms, properties, system_changes)
        with open(os.environ["EMT_CALLS"], "a", encoding="utf-8") as file:
            file.write(f"{structure_uid(atoms)}\n")


class DeadlyEMT(CountingEMT):
    """Kills its own process once, when the third structure comes; the file EMT_DEATH remembers it."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=()) -> None:
        death = Path(os.environ["EMT_DEATH"])
        calls = Path(os.environ["EMT_CALLS"])
        seen = len(calls.read_text().split()) if calls.exists() else 0
        if seen >= 3 and not death.exists():
            death.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        super().calculate(atoms, properties, system_changes)


def write_campaign(
    folder: Path, *, where: str = "inline", calculator: str = "ase.calculators.emt.EMT"
) -> Path:
    """campaign.yaml and its structure in `folder`; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    copper: Atoms = bulk("Cu", "fcc", a=3.7, cubic=True)
    write(folder / "cu.xyz", copper)
    path = folder / "campaign.yaml"
    path.write_text(CAMPAIGN.format(where=where, calculator=calculator), encoding="utf-8")
    return path
