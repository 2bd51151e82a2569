"""Small labelled structures on disk, and run files for them: seconds, not minutes, to train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.morse import MorsePotential
from ase.io import write

E0 = {"C": -2.0, "O": -3.0, "H": -1.0}
PLACES = np.array([[0.0, 0.0, 0.0], [1.35, 0.0, 0.0], [0.2, 1.4, 0.0], [0.1, 0.3, 1.4]])
MODEL = {
    "preset": "nano",
    "cutoff_A": 3.0,
    "channels": 4,
    "l_max": 1,
    "L_max": 1,
    "correlation": 2,
    "radial_hidden": [8],
    "readout_hidden": 4,
}
TRAIN = {"steps": 24, "batch_size": 4, "validate_every": 8}


def frames(count: int, *, seed: int = 0, r0: float = 1.3, symbols: str = "COCO") -> list[Atoms]:
    """Clusters of three or four atoms with energy, forces and a dipole under REF_ names.

    Args:
        r0: of the Morse potential; another one is another level of theory.
    """
    rng = np.random.default_rng(seed)
    kinds = [symbol for symbol in ("C", "O", "H") for _ in range(symbols.count(symbol))]
    made = []
    for n in range(count):
        chosen = [kinds[k] for k in rng.integers(0, len(kinds), 3 + n % 2)]
        atoms = Atoms(chosen, positions=PLACES[: len(chosen)] + rng.normal(scale=0.06, size=(len(chosen), 3)))
        atoms.calc = MorsePotential(epsilon=1.0, r0=r0, rho0=3.0, rcut1=2.4, rcut2=2.9)
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = None
        atoms.info["REF_energy"] = energy + sum(E0[s] for s in chosen)
        atoms.arrays["REF_forces"] = forces
        charges = np.where(atoms.numbers == 8, -0.4, 0.3)
        atoms.info["REF_dipole"] = (charges - charges.mean()) @ atoms.positions
        made.append(atoms)
    return made


def put(path: Path, made: list[Atoms]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, made)
    return path


def folder(path: Path) -> Path:
    """A folder with train.extxyz and test.extxyz."""
    put(path / "train.extxyz", frames(16))
    put(path / "test.extxyz", frames(5, seed=1))
    return path


def run_file(path: Path, **blocks: object) -> Path:
    """A run file (JSON is YAML) on the data of its folder; blocks are merged into the usual ones."""
    import json

    document: dict[str, object] = {
        "data": {"train": "train.extxyz", "valid": 0.2, "test": "test.extxyz"},
        "model": dict(MODEL),
        "train": dict(TRAIN),
    }
    for name, block in blocks.items():
        if isinstance(block, dict) and isinstance(document.get(name), dict):
            document[name] = {**document[name], **block}  # type: ignore[dict-item]
        elif block is None:
            document.pop(name, None)
        else:
            document[name] = block
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")
    return path
