"""A campaign folder as a user has it: copper with EMT, seconds long."""

from __future__ import annotations

from pathlib import Path

from ase.build import bulk
from ase.io import write

CAMPAIGN = """\
alchemy: 1
name: copper
elements: [Cu]
seed: 3
fidelities:
  emt: {labeler: emt}
model: {preset: nano, committee: 2, cutoff: 4 A, train: {steps: 5, batch: 4}}
start:
  - rattle: {structures: cu.xyz, count: 4, stdev: 0.05 A}
    label: {emt: all}
test:
  - rattle: {structures: cu.xyz, count: 2, stdev: 0.08 A}
    label: [emt]
explore:
  - md: {T: [300 K], time: 40 fs, timestep: 2 fs, walkers: 1}
select: {per_round: 2, random: 0.5, threshold: 1 meV/A}
stop: {rounds: 1}
run: {where: inline, gpus: 0}
"""


def campaign_folder(folder: Path) -> Path:
    """The campaign file and its start structure of four atoms, in `folder`; returns it."""
    (folder / "campaign.yaml").write_text(CAMPAIGN, encoding="utf-8")
    write(folder / "cu.xyz", bulk("Cu", cubic=True), format="extxyz")
    return folder


def edited(folder: Path, old: str, new: str) -> str:
    """The campaign file of a folder, changed; its path."""
    path = folder / "campaign.yaml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    return str(path)
