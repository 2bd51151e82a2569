"""Urea at three levels of theory, labelled by `alchemy.labelers`: made/urea.extxyz.gz.

    python runs/benchmarks/make_urea.py

Langevin dynamics at 500 K on GFN2-xTB (seed 0), a frame every 20 fs after 1 ps; of 440 frames, 400 are to
train on and 40, drawn at random, are a test set at the dearest level. Of the 400, GFN2-xTB labels all,
PBE/STO-3G 60 and PBE/def2-SVP 15 (nested, evenly spaced). About 8 CPU minutes.
"""

from __future__ import annotations

import gzip
import io
import tempfile
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

from alchemy.labelers.base import make_labeler

HERE = Path(__file__).parent
LEVELS = {
    "GFN2-xTB": ("tblite", {"method": "GFN2-xTB"}),
    "PBE/STO-3G": ("pyscf", {"method": "PBE", "basis": "STO-3G", "grid_level": 2}),
    "PBE/def2-SVP": ("pyscf", {"method": "PBE", "basis": "def2-SVP", "grid_level": 2}),
}
TRAIN = {"GFN2-xTB": 400, "PBE/STO-3G": 60, "PBE/def2-SVP": 15}
TEST, SPACING_FS, FIRST_FS = 40, 20, 1000


def trajectory(count: int) -> list[Atoms]:
    """Frames of a dynamics at 500 K."""
    from tblite.ase import TBLite

    rng = np.random.default_rng(0)
    atoms = read(HERE.parent / "urea" / "urea.xyz")
    assert isinstance(atoms, Atoms)
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    MaxwellBoltzmannDistribution(atoms, temperature_K=500, rng=rng)
    dynamics = Langevin(atoms, units.fs, temperature_K=500, friction=0.02 / units.fs, rng=rng)
    dynamics.run(FIRST_FS)
    frames = []
    for _ in range(count):
        dynamics.run(SPACING_FS)
        frames.append(Atoms(atoms.numbers, atoms.positions - atoms.get_center_of_mass()))
    return frames


def labelled(frames: list[Atoms], level: str) -> list[Atoms]:
    """Copies with energy and forces of a level."""
    name, options = LEVELS[level]
    labeler = make_labeler(name, options, base_dir=HERE)
    found = []
    for atoms in frames:
        with tempfile.TemporaryDirectory() as folder:
            labeler.write_input(atoms, Path(folder))
            labeler.run(Path(folder))
            label = labeler.read(atoms, Path(folder))
        copy = atoms.copy()
        copy.info = {"REF_energy": label.energy_eV, "fidelity": level, **atoms.info}
        copy.arrays["REF_forces"] = label.forces_eV_per_A
        found.append(copy)
    return found


def main() -> None:
    frames = trajectory(TRAIN["GFN2-xTB"] + TEST)
    order = np.random.default_rng(1).permutation(len(frames))
    test, rest = [frames[n] for n in sorted(order[:TEST])], [frames[n] for n in sorted(order[TEST:])]
    rows = []
    for level, count in TRAIN.items():
        chosen = np.linspace(0, len(rest) - 1, count).round().astype(int)
        rows += labelled([rest[n] for n in chosen], level)
    for atoms in test:
        atoms.info["split"] = "test"
    rows += labelled(test, "PBE/def2-SVP")
    text = io.StringIO()
    write(text, rows, format="extxyz")
    with gzip.GzipFile(HERE / "made" / "urea.extxyz.gz", "wb", mtime=0) as file:
        file.write(text.getvalue().encode())


if __name__ == "__main__":
    main()
