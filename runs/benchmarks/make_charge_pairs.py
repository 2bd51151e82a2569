"""Ion pairs NH4+ and BF4- out of each other's reach, with an exact answer: made/charge_pairs*.extxyz.gz.

    python runs/benchmarks/make_charge_pairs.py

Harmonic springs between all atoms of a molecule, point charges (N -0.8, H +0.45; B +0.9, F -0.475 e) whose
Coulomb energy counts only between the molecules, thermal displacements of 0.03 Å, random orientations.
Centres are 7 to 16 Å apart to train and to test near, 16 to 40 Å to test far: no atom of one molecule is
ever within 4 Å of the other, so that a model of cutoff 4 Å sees two separate molecules. Seconds; seed 0.
"""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import write

HERE = Path(__file__).parent
COULOMB = 14.399645  # eV Å/e²
SPRING = 5.0  # eV/Å²
TETRAHEDRON = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)
IONS = (("N", "H", 1.03, -0.8, 0.45), ("B", "F", 1.40, 0.9, -0.475))
SETS = {"train": (250, 7.0, 16.0), "near": (60, 7.0, 16.0), "far": (60, 16.0, 40.0)}


def rotation(rng: np.random.Generator) -> np.ndarray:
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.linalg.det(q)


def pair(distance: float, rng: np.random.Generator) -> Atoms:
    """One structure with its exact energy and forces."""
    symbols, charges, rest, positions = [], [], [], []
    axis = rng.normal(size=3)
    axis *= distance / np.linalg.norm(axis)
    for n, (centre, corner, length, q0, q1) in enumerate(IONS):
        ideal = np.concatenate([np.zeros((1, 3)), length * TETRAHEDRON])
        symbols += [centre] + [corner] * 4
        charges += [q0] + [q1] * 4
        rest.append(np.linalg.norm(ideal[:, None] - ideal[None], axis=2))
        positions.append(ideal @ rotation(rng).T + n * axis + rng.normal(0, 0.03, (5, 3)))
    x, q = np.concatenate(positions), np.array(charges)
    energy, forces = 0.0, np.zeros_like(x)
    for i in range(10):
        for j in range(i):
            d = x[i] - x[j]
            r = np.linalg.norm(d)
            if i // 5 == j // 5:
                stretch = r - rest[i // 5][i % 5, j % 5]
                energy, slope = energy + 0.5 * SPRING * stretch**2, SPRING * stretch
            else:
                energy, slope = energy + COULOMB * q[i] * q[j] / r, -COULOMB * q[i] * q[j] / r**2
            forces[i] -= slope * d / r
            forces[j] += slope * d / r
    atoms = Atoms(symbols, x, info={"REF_energy": energy, "distance_A": distance})
    atoms.arrays["REF_forces"] = forces
    atoms.arrays["molecule"] = np.repeat([0, 1], 5)
    return atoms


def main() -> None:
    rng = np.random.default_rng(0)
    (HERE / "made").mkdir(exist_ok=True)
    for name, (count, low, high) in SETS.items():
        frames = [pair(r, rng) for r in rng.uniform(low, high, count)]
        text = io.StringIO()
        write(text, frames, format="extxyz")
        with gzip.GzipFile(HERE / "made" / f"charge_pairs_{name}.extxyz.gz", "wb", mtime=0) as file:
            file.write(text.getvalue().encode())


if __name__ == "__main__":
    main()
