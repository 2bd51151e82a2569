"""D3 dispersion on top of a model that was trained on labels without it (spec §14).

    atoms.calc = with_dispersion(TaceCalculator("model.pt"), functional="pbe")

The correction is that of the s-dftd3 library (Ehlert, J. Open Source Softw. 9, 7169 (2024)) in its two-body
form, as DFT codes add it: without the three-body term, which costs a hundred times as much. Its pair sum ends
smoothly, so that stress is the slope of the energy (with a sharp end it is 4e-4 off in a dense crystal).
Units: eV, eV/Å, eV/Å³ (ASE sign).
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress

from .errors import TaceError

# our name of a damping function: (class of the library, its name in the library's table of functionals)
DAMPINGS = {
    "d3bj": ("RationalDampingParam", "bj"),  # Becke and Johnson
    "d3zero": ("ZeroDampingParam", "zero"),
    "d3bjm": ("ModifiedRationalDampingParam", "bjm"),
    "d3zerom": ("ModifiedZeroDampingParam", "zerom"),
}
# of pairs, triples (not summed here) and coordination numbers: the defaults of the library, and a smooth end,
# which takes 1e-4 of the energy of a dense crystal
CUTOFFS_BOHR = {"disp2": 60.0, "disp3": 40.0, "cn": 40.0, "width2": 5.0}
REACH_A = CUTOFFS_BOHR["disp2"] * units.Bohr
LAST_ELEMENT = 103  # the library, 1.7.0, reads beyond its tables for the next: zeros, or a crash


class DispersionCorrected(Calculator):
    """Sum of a calculator and D3; whatever else the calculator knows stays.

    Spreads of a committee stay too: its members share the correction. `results` also holds
    `dispersion_energy` (eV). Stress is that of the calculator, where it gives one, plus that of D3.
    """

    def __init__(self, calculator: Calculator, *, functional: str, damping: str = "d3bj") -> None:
        """See `with_dispersion`."""
        super().__init__()
        self.calculator = calculator
        self.damping = _damping(functional, damping)
        self.implemented_properties = [*calculator.implemented_properties, "dispersion_energy"]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill `results`."""
        super().calculate(atoms, list(properties), list(system_changes))
        assert self.atoms is not None
        wanted = [p for p in properties if p != "dispersion_energy"] or ["energy"]
        for name in wanted:
            self.calculator.get_property(name, self.atoms)
        energy, forces, virial = _d3(self.atoms, self.damping)
        self.results = dict(self.calculator.results)
        for name in {"energy", "free_energy"} & set(self.results):
            self.results[name] = self.results[name] + energy
        if "forces" in self.results:
            self.results["forces"] = self.results["forces"] + forces
        if "stress" in self.results:
            stress = full_3x3_to_voigt_6_stress(virial / self.atoms.get_volume())
            self.results["stress"] = self.results["stress"] + stress
        self.results["dispersion_energy"] = energy


def with_dispersion(calculator: Calculator, *, functional: str, damping: str = "d3bj") -> DispersionCorrected:
    """The calculator plus D3 with the parameters of a density functional.

    Use it for a model whose labels lack dispersion, and name the functional of these labels; a model that has
    learnt labels with D3 would count it twice, which nothing here can notice.

    Args:
        functional: as the library spells it, in any case: 'pbe', 'r2scan', 'b3lyp', ...
        damping: 'd3bj' (Becke–Johnson), 'd3zero', or the refitted 'd3bjm' and 'd3zerom'.

    Raises:
        TaceError: the library is missing, or has no such damping or no parameters for the functional.
    """
    return DispersionCorrected(calculator, functional=functional, damping=damping)


def _damping(functional: str, damping: str) -> Any:
    """The library's parameters."""
    if damping not in DAMPINGS:
        raise TaceError(f"dispersion: unknown damping '{damping}'; known: {', '.join(DAMPINGS)}")
    try:
        from dftd3 import interface
    except ImportError as error:
        raise TaceError(
            f"dispersion needs the Python package 'dftd3', which cannot be imported ({error}); "
            f"try: pip install 'dftd3>=1.4'"
        ) from None
    kind, key = DAMPINGS[damping]
    try:
        return getattr(interface, kind)(method=functional, atm=False)
    except RuntimeError:
        known = _functionals(key)
        near = difflib.get_close_matches(functional.lower(), known, n=3) or known[:20]
        raise TaceError(
            f"dispersion: no {damping} parameters for functional '{functional}'; try: {', '.join(near)}"
        ) from None


def _functionals(key: str) -> list[str]:
    """Functionals that have parameters of this damping, by the table that pip installs with the library."""
    table = files("dftd3") / "parameters.toml"
    if not table.is_file():  # conda puts it elsewhere
        return ["pbe", "r2scan", "b3lyp"]
    known = tomllib.loads(table.read_text(encoding="utf-8"))["parameter"]
    return sorted(name for name, entry in known.items() if key in entry.get("d3", {}))


def _d3(atoms: Atoms, damping: Any) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy (eV), forces [A,3] (eV/Å) and virial [3,3] (eV).

    Raises:
        TaceError: D3 lacks an element, or the library refuses the structure (atoms on one spot).
    """
    from dftd3.interface import DispersionModel

    heaviest = int(atoms.numbers.max(initial=0))
    if heaviest > LAST_ELEMENT:
        raise TaceError(f"dispersion: D3 has no parameters for {chemical_symbols[heaviest]} ({heaviest})")
    lattice: dict[str, np.ndarray] = {}
    if atoms.pbc.any():
        lattice = {"lattice": _box(atoms) / units.Bohr, "periodic": np.ones(3, dtype=bool)}
    try:
        model = DispersionModel(atoms.numbers, atoms.positions / units.Bohr, **lattice)
        model.set_realspace_cutoff(**CUTOFFS_BOHR)
        found = model.get_dispersion(damping, grad=True)
    except RuntimeError as error:
        formula = atoms.get_chemical_formula()
        raise TaceError(f"dispersion: the D3 library refuses {formula}: {error}") from None
    forces = found["gradient"] * (-units.Hartree / units.Bohr)
    return float(found["energy"]) * units.Hartree, forces, found["virial"] * units.Hartree


def _box(atoms: Atoms) -> np.ndarray:
    """The cell, with vacuum beyond the reach of D3 along the axes that are not periodic.

    The library takes periodic flags, but where only some axes are periodic its energy (release 1.7.0) is a
    quarter off and depends on the vectors of the axes that are not.
    """
    cell = np.array(atoms.cell)
    cell[~atoms.pbc] = 0.0
    # an orthonormal complement of the periodic vectors: the last right singular vectors
    across = np.linalg.svd(cell)[2][int(atoms.pbc.sum()) :]
    spread = np.ptp(atoms.positions @ across.T, axis=0)
    cell[~atoms.pbc] = across * (spread + REACH_A + 1.0)[:, None]
    return cell
