"""A campaign file that is right, to be broken or read."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).parent.parent

GOOD = """\
alchemy: 1
name: demo
elements: [H, O]
seed: 3
fidelities:
  cheap: {labeler: tblite, method: GFN2-xTB}
  dear: {labeler: pyscf, method: PBE, target: true}
e0: compute
model: {preset: nano, committee: 3, cutoff: 4.5 A}
start:
  - files: {path: a.xyz}
    label: {cheap: all, dear: 2}
  - rattle: {structures: a.xyz, count: 10, stdev: 0.08 A}
    label: [cheap]
test:
  - md: {structures: a.xyz, with: cheap, T: [300 K], time: 1 ps, count: 4}
    label: [dear]
explore:
  - md: {T: [300 K, 600 K], time: 2 ps}
stop_md: {label_above: 80 meV/A, abort_above: 1 eV/A}
select: {per_round: 5}
stop: {rounds: 2, wall: 12 h, labels: 40}
run: {where: local}
"""


def demo_folder(folder: Path) -> Path:
    """The structure that GOOD names, in `folder`; returns it."""
    (folder / "a.xyz").write_text("2\n\nH 0 0 0\nO 0 0 1\n")
    return folder
