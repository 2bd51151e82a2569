"""The published Hessians (npz) as frames that `tace train` reads: made/hessians.extxyz.gz.

    python runs/benchmarks/make_hessians.py --data DIR

Nothing is left out; energies, forces and Hessians keep their values and units.
"""

from __future__ import annotations

import argparse
import gzip
import io
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import write

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    frames = []
    for path in sorted((parser.parse_args().data / "hessian_molecules").glob("*.npz")):
        file = np.load(path)
        for n in range(len(file["positions"])):
            info = {"REF_energy": float(file["REF_energy"][n]), "REF_hessian": file["REF_hessian"][n].ravel()}
            atoms = Atoms(file["numbers"], file["positions"][n], info=info)
            atoms.arrays["REF_forces"] = file["REF_forces"][n]
            frames.append(atoms)
    text = io.StringIO()
    write(text, frames, format="extxyz")
    with gzip.GzipFile(HERE / "made" / "hessians.extxyz.gz", "wb", mtime=0) as target:
        target.write(text.getvalue().encode())


if __name__ == "__main__":
    main()
