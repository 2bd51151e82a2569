"""A harmonic chain as a labeler, and labels of small structures."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.calculator import Calculator, SCFError

from alchemy.gate import Gate
from alchemy.labelers.base import make_labeler
from alchemy.labelers.label import label_structure


def needs(package):
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"the Python package {package} is not installed")


HERE = Path(__file__).parent
SMALL = {"basis": "STO-3G", "grid_level": 1}


class Spring(Calculator):
    """A harmonic chain that leaves a line in a file for every calculation, or fails as told."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012  (as ASE declares it)

    def __init__(self, log=os.devnull, fail="", k_eV_per_A2=1.0):
        super().__init__()
        self.log, self.fail, self.k = Path(log), fail, k_eV_per_A2

    def calculate(self, atoms=None, properties=None, system_changes=None):
        super().calculate(atoms, properties, system_changes)
        with self.log.open("a") as file:
            file.write("calculated\n")
        if self.fail == "scf":
            raise SCFError("after 60 cycles")
        if self.fail == "bug":
            raise ZeroDivisionError("deep inside")
        if self.fail == "package":
            raise ModuleNotFoundError("No module named 'quantum'")
        if self.fail == "disk":
            raise OSError(28, "No space left on device")
        step = np.diff(atoms.positions, axis=0)
        forces = np.zeros_like(atoms.positions)
        forces[:-1] += self.k * step
        forces[1:] -= self.k * step
        if self.fail == "nan":
            forces[0, 0] = np.nan
        self.results = {"energy": 0.5 * self.k * float((step**2).sum()), "forces": forces}


def spring(**arguments):
    options = {"calculator": f"{__name__}.Spring", "arguments": arguments}
    return make_labeler("ase", options, base_dir=HERE)


def make(name, **options):
    return make_labeler(name, options, base_dir=HERE)


def label(atoms, labeler, root, **more):
    values = {"fidelity": "test", "gate": Gate(), **more}
    return label_structure(atoms, labeler=labeler, root=root, **values)


def water(seed=1):
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=seed)
    return atoms
