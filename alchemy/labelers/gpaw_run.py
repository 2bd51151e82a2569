"""One GPAW calculation: `python gpaw_run.py`, beside a gpaw.json; writes result.json.

Copied into each label's directory and run there by the interpreter that has GPAW, which need not be
ours: it imports GPAW, ASE and the standard library, and keeps to Python 3.8.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

NO_GPAW = 127


def main() -> int:
    """Exit code: 0 with a result.json of whatever outcome."""
    try:
        import gpaw
        from ase import Atoms
        from gpaw import KohnShamConvergenceError
    except ImportError as error:
        sys.stderr.write(f"{sys.executable} cannot import GPAW: {error}\n")
        return NO_GPAW
    print("GPAW version", gpaw.__version__)
    with open("gpaw.json", encoding="utf-8") as file:
        told = json.load(file)
    structure = told["structure"]
    atoms = Atoms(
        structure["symbols"], structure["positions_A"], cell=structure["cell_A"], pbc=structure["pbc"]
    )
    if structure["moments"]:
        atoms.set_initial_magnetic_moments(structure["moments"])
    try:
        document = calculate(gpaw.GPAW(**told["arguments"]), atoms, stress=structure["stress"])
    except KohnShamConvergenceError as error:
        document = {"status": "failed", "reason": "scf-not-converged", "message": str(error)}
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        document = {"status": "failed", "reason": "engine-error", "message": message}
    if gpaw.mpi.world.rank == 0:
        with open("result.json.part", "w", encoding="utf-8") as file:
            json.dump(document, file)
        os.replace("result.json.part", "result.json")
    return 0


def calculate(calculator: Any, atoms: Any, *, stress: bool) -> dict[str, Any]:
    """Free energy, forces without constraints, and what they belong to."""
    atoms.calc = calculator
    return {
        "status": "ok",
        "energy_eV": float(atoms.get_potential_energy(force_consistent=True)),
        "forces_eV_per_A": atoms.get_forces(apply_constraint=False).tolist(),
        "stress_eV_per_A3": atoms.get_stress(apply_constraint=False).tolist() if stress else None,
        "moment": float(atoms.get_magnetic_moment()) if calculator.get_spin_polarized() else 0.0,
        "symbols": list(atoms.symbols),
        "positions_A": atoms.positions.tolist(),
        "cell_A": [list(row) for row in atoms.cell],
    }


if __name__ == "__main__":
    sys.exit(main())
