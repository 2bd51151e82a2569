"""GFN-xTB through tblite.

The energy is the free energy at the electronic temperature: at 20 000 K, N2 stretched to 1.8 Å, a
finite difference of tblite's energy equals its force to 5e-6 eV/Å (tblite 0.8.0).
Spin enters through occupation only, unless the template adds the spin-polarization interaction:
plain GFN2 puts the triplet O atom 0.05 eV above the singlet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ase import Atoms, units
from ase.stress import full_3x3_to_voigt_6_stress

from alchemy.errors import InputError
from alchemy.labelers import staging
from alchemy.labelers.base import LabelFailureError, LabelResult
from tace.wording import hint

METHODS = ("GFN2-xTB", "GFN1-xTB", "IPEA1-xTB")
SCHEMA: staging.Schema = {
    "physics": {
        "method": staging.TEXT,
        "accuracy": staging.NUMBER,
        "electronic_temperature_K": staging.NUMBER,
        "interactions": (list,),
    },
    "path": {
        "max_iterations": staging.COUNT,
        "mixer_damping": staging.NUMBER,
        "threads": staging.COUNT,
    },
    "structure": {"charge": staging.COUNT, "multiplicity": staging.COUNT},
}
REASONS = {  # piece of tblite's message -> our reason
    "not converged": "scf-not-converged",
    "too close": "overlapping-atoms",
    "no support for element": "element-not-supported",
    "unpaired electrons": "bad-multiplicity",
}


@dataclass(frozen=True)
class TbliteLabeler(staging.StagedLabeler):
    """GFN2-xTB and relatives, for molecules and for structures periodic in all three directions."""

    method: str = "GFN2-xTB"
    accuracy: float = 1.0
    electronic_temperature_K: float = 300.0
    max_iterations: int = 250
    mixer_damping: float = 0.4
    threads: int = 1

    name: ClassVar[str] = "tblite"
    own_template: ClassVar[str] = "labelers/tblite.yaml.j2"
    schema: ClassVar[staging.Schema] = SCHEMA
    periodic: ClassVar[bool] = True
    # urea and water sum to 1e-7 eV/Å; 1e-4 leaves room for loosely converged large systems
    net_force_eV_per_A_per_atom: ClassVar[float] = 1e-4

    def run(self, directory: Path) -> None:
        """output.json."""
        staging.run_stage(directory, compute, schema=SCHEMA)


def compute(atoms: Atoms, sections: Mapping[str, Any], directory: Path) -> LabelResult:
    """Energy, forces and (3D periodic) stress of one structure."""
    if sections["physics"]["method"] not in METHODS:
        listed = hint(sections["physics"]["method"], METHODS, label="methods")
        raise InputError(f"tblite has no method '{sections['physics']['method']}'; {listed}")
    interface = _load(sections["path"]["threads"])
    periodic = bool(atoms.pbc.all())
    if atoms.pbc.any() and not periodic:
        # measured: tblite 0.8.0 gives pbc (T, T, F) the energy of (T, T, T), silently
        raise LabelFailureError(
            "periodic-not-supported",
            "tblite treats every periodic structure as periodic in three directions; set pbc to "
            "true in all of them, with enough vacuum, if that is meant",
        )
    try:
        calculator = _calculator(interface, atoms, sections)
        with staging.threads_limited(sections["path"]["threads"]):
            output = calculator.singlepoint()
        energy, gradient = float(output["energy"]), np.asarray(output["gradient"])
        dipole = None if periodic or atoms.info.get("charge", 0) else np.asarray(output["dipole"])
        virial = np.asarray(output["virial"]) if periodic else None
    except RuntimeError as error:
        raise _failure(error) from error
    except ValueError as error:  # tblite's word for settings and interactions it does not know
        raise InputError(f"tblite: {error}") from error
    stress = None
    if virial is not None:  # tblite's virial is +dE/dstrain, as ASE's stress × volume
        stress = full_3x3_to_voigt_6_stress(virial * units.Hartree / atoms.get_volume())
    return LabelResult(
        energy_eV=energy * units.Hartree,
        forces_eV_per_A=-gradient * (units.Hartree / units.Bohr),
        stress_eV_per_A3=stress,
        energy_kind="free",
        dipole_eA=None if dipole is None else dipole * units.Bohr,
    )


def _calculator(interface: Any, atoms: Atoms, sections: Mapping[str, Any]) -> Any:
    physics, path, structure = (sections[name] for name in ("physics", "path", "structure"))
    told = atoms.copy()
    told.info.update(charge=structure["charge"], multiplicity=structure["multiplicity"])
    periodic = bool(atoms.pbc.all())
    calculator = interface.Calculator(
        physics["method"],
        np.asarray(atoms.numbers),
        atoms.positions / units.Bohr,
        charge=float(structure["charge"]),
        uhf=staging.unpaired_electrons(told),
        lattice=np.asarray(atoms.cell) / units.Bohr if periodic else None,
        periodic=np.asarray(atoms.pbc) if periodic else None,
    )
    calculator.set("verbosity", 0)
    calculator.set("accuracy", float(physics["accuracy"]))
    temperature_hartree = physics["electronic_temperature_K"] * units.kB / units.Hartree
    calculator.set("temperature", temperature_hartree)
    calculator.set("max-iter", path["max_iterations"])
    calculator.set("mixer-damping", float(path["mixer_damping"]))
    for interaction in physics["interactions"]:
        calculator.add(*interaction)
    return calculator


def _failure(error: Exception) -> LabelFailureError:
    text = str(error)
    for piece, reason in REASONS.items():
        if piece in text.lower():
            return LabelFailureError(reason, f"tblite: {text}")
    return LabelFailureError("engine-error", f"tblite: {text}")


def _load(threads: int) -> Any:
    try:
        # tblite brings its own OpenMP and BLAS, which look at these only while being loaded
        with staging.environment(OMP_NUM_THREADS=str(threads), OPENBLAS_NUM_THREADS=str(threads)):
            from tblite import interface
    except ImportError as error:
        raise staging.missing_package("tblite", error) from error
    return interface
