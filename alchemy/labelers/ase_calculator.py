"""Any ASE calculator as a labeler, and EMT for tests and demonstrations.

Forces are taken with apply_constraint=False: ASE zeroes those of fixed atoms otherwise, and a model
trained on them learns that fixed atoms feel nothing (ACEsuit/mace PR#1448).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import (
    CalculationFailed,
    CalculatorSetupError,
    PropertyNotImplementedError,
    SCFError,
)

from alchemy.errors import EnvironmentProblemError, InputError
from alchemy.labelers import staging
from alchemy.labelers.base import LabelFailureError, LabelResult, installed_version, minor_release

EMT = "ase.calculators.emt.EMT"
SCHEMA: staging.Schema = {
    "physics": {"calculator": staging.TEXT, "arguments": (dict,)},
    "path": {"arguments": (dict,)},
    "structure": {"arguments": (dict,), "charge": staging.COUNT, "multiplicity": staging.COUNT},
}


@dataclass(frozen=True)
class AseLabeler(staging.StagedLabeler):
    """An ASE calculator by dotted name. Energy and forces belong together (the free energy)."""

    calculator: str
    arguments: dict[str, Any] = field(default_factory=dict)
    # plane-wave codes break momentum conservation by their grid: GPAW H2O 0.06, CP2K 0.01 eV/Å/atom
    net_force_eV_per_A_per_atom: float = 0.02

    name: ClassVar[str] = "ase"
    own_template: ClassVar[str] = "labelers/ase.yaml.j2"
    schema: ClassVar[staging.Schema] = SCHEMA
    periodic: ClassVar[bool] = True

    def physics(self) -> dict[str, Any]:
        """Release of the calculator's package and the physics section of the template."""
        section = self._section()
        return {"code": _release(section["calculator"], minor=True), **section}

    def code(self) -> str:
        """The calculator and the version of its package."""
        return f"{self.calculator} ({_release(self.calculator, minor=False)})"

    def run(self, directory: Path) -> None:
        """output.json."""
        staging.run_stage(directory, compute, schema=SCHEMA)

    def _options(self) -> dict[str, Any]:
        return {"calculator": self.calculator, "arguments": self.arguments}


@dataclass(frozen=True)
class EmtLabeler:
    """ASE's effective-medium theory: microseconds per label, for tests and demonstrations."""

    name: ClassVar[str] = "emt"
    periodic: ClassVar[bool] = True
    net_force_eV_per_A_per_atom: ClassVar[float] = 1e-6  # analytic: only round-off is left

    def physics(self) -> dict[str, Any]:
        """As of the general labeler."""
        return AseLabeler(EMT).physics()

    def code(self) -> str:
        """ASE and its version."""
        return AseLabeler(EMT).code()

    def write_input(self, atoms: Atoms, directory: Path) -> None:
        """input.yaml and structure.json."""
        AseLabeler(EMT).write_input(atoms, directory)

    def run(self, directory: Path) -> None:
        """output.json."""
        AseLabeler(EMT).run(directory)

    def read(self, atoms: Atoms, directory: Path) -> LabelResult:
        """The verdict."""
        return AseLabeler(EMT).read(atoms, directory)


def _release(dotted: str, *, minor: bool) -> str:
    """'ase 3.29' of 'ase.calculators.emt.EMT'; a module that is not installed has no version."""
    package = dotted.partition(".")[0]
    try:
        return f"{package} {minor_release(package) if minor else installed_version(package)}"
    except EnvironmentProblemError:
        return package


def load_calculator(dotted: str) -> Any:
    """The class (or factory) of that dotted name."""
    module_name, _, attribute = dotted.rpartition(".")
    if not module_name:
        raise InputError(f"calculator '{dotted}' must be a dotted name, such as {EMT}")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise EnvironmentProblemError(f"calculator '{dotted}': {error}") from error
    if not hasattr(module, attribute):
        raise InputError(f"calculator '{dotted}': module {module_name} has no '{attribute}'")
    return getattr(module, attribute)


def compute(atoms: Atoms, sections: Mapping[str, Any], directory: Path) -> LabelResult:
    """Energy, forces and (3D periodic, where implemented) stress of one structure."""
    structure = sections["structure"]
    if structure["charge"] and not structure["arguments"]:
        raise LabelFailureError(
            "charge-not-supported",
            f"the structure has charge {structure['charge']:+d}, and the template does not tell "
            "the calculator (structure.arguments is empty)",
        )
    if structure["multiplicity"] > 1:  # ASE's way to ask for spin; calculators without it ignore it
        moments = np.full(len(atoms), (structure["multiplicity"] - 1) / len(atoms))
        atoms.set_initial_magnetic_moments(moments)
    arguments = {
        **sections["physics"]["arguments"],
        **sections["path"]["arguments"],
        **structure["arguments"],
    }
    factory = load_calculator(sections["physics"]["calculator"])
    try:
        calculator = factory(**arguments)
    except (TypeError, CalculatorSetupError) as error:
        raise InputError(f"calculator '{sections['physics']['calculator']}': {error}") from error
    if hasattr(calculator, "directory"):  # file-based calculators write into the label's directory
        calculator.directory = str(directory)
    atoms.calc = calculator
    try:
        return _evaluate(atoms)
    except SCFError as error:
        raise LabelFailureError("scf-not-converged", str(error)) from error
    except (CalculationFailed, NotImplementedError) as error:
        raise LabelFailureError("engine-error", f"{type(error).__name__}: {error}") from error


def _evaluate(atoms: Atoms) -> LabelResult:
    forces = np.array(atoms.get_forces(apply_constraint=False), dtype=np.float64)
    try:
        # with smearing, forces are the slope of the free energy: GPAW Al4 at 0.1 eV is off by
        # 0.09 eV/Å against the energy extrapolated to zero width
        energy, kind = float(atoms.get_potential_energy(force_consistent=True)), "free"
    except PropertyNotImplementedError:
        energy, kind = float(atoms.get_potential_energy()), "total"
    stress = None
    if atoms.pbc.all():
        try:
            stress = np.array(atoms.get_stress(apply_constraint=False), dtype=np.float64)
        except PropertyNotImplementedError:
            stress = None
    return LabelResult(
        energy_eV=energy,
        forces_eV_per_A=forces,
        stress_eV_per_A3=stress,
        energy_kind=kind,
        dipole_eA=None,  # ASE has no common answer for charged or periodic structures
        total_moment_muB=_moment(atoms),
    )


def _moment(atoms: Atoms) -> float | None:
    """The total magnetic moment beside the energy; asking for one could be a second calculation."""
    found = getattr(atoms.calc, "results", {}).get("magmom")
    return None if found is None or np.ndim(found) else float(found)
