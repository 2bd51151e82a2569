"""CP2K, Quickstep: Gaussians and plane waves for crystals, slabs and molecules.

- A molecule stands in a box of twice its extent and vacuum, whose images the Martyna-Tuckerman solver
  decouples (it needs the factor of two). What is periodic in one or two directions is periodic in all
  three for CP2K, with vacuum where the structure has no cell vector.
- The energy is the free energy where electrons are smeared: at 20 000 K, H2 (CP2K 2023.1), its finite
  difference is the force to 1e-5 eV/Å.
- CP2K prints the stress with the sign of a pressure; ASE's is the opposite.
- Basis sets and potentials are given by element; the files that hold them are hashed as wholes.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ase import Atoms, units
from ase.data import atomic_numbers
from ase.stress import full_3x3_to_voigt_6_stress

from alchemy.errors import InputError
from alchemy.labelers import staging
from alchemy.labelers.base import LabelFailureError, LabelResult, template_text
from alchemy.labelers.boxes import in_a_box, k_grid
from alchemy.labelers.program_files import last_lines
from alchemy.labelers.program_text import by_element, data_file, line_with, refuse_charged_cell
from alchemy.labelers.programs import NOT_CONVERGED, ProgramLabeler, Rungs, check_geometry

DATA = ("/usr/share/cp2k", "/usr/local/share/cp2k/data", "/opt/cp2k/data")
END = "PROGRAM ENDED AT"
COORDINATES = (  # header, row, footer of the first table of coordinates
    r"Atom\s+Kind\s+Element\s+X\s+Y\s+Z\s+Z\(eff\)\s+Mass\s*",
    r"\s*\d+\s+\d+\s+([A-Z][a-z]?)\s+\d+\s+(-?\d+\.\d+)\s+(-?\d+\.\d+)\s+(-?\d+\.\d+)\s+\S+\s+\S+\s*?",
    r"^\s*$",
)
UNCONVERGED = "SCF run NOT converged"
FAILURES = {  # what stands in the box of its last words
    "was not found in the basis set files": "no-basis",
    "was not found in the potential files": "no-pseudopotential",
}


@dataclass(frozen=True, kw_only=True)
class Cp2kLabeler(ProgramLabeler):
    """CP2K (Quickstep): Gaussians and plane waves for crystals, slabs and molecules."""

    xc: str = "PBE"  # as &XC_FUNCTIONAL names it
    basis: str | dict[str, str] = "DZVP-MOLOPT-SR-GTH"  # for all, or by element
    potential: str | dict[str, str] = "GTH-PBE"
    basis_file: str = "BASIS_MOLOPT"
    potential_file: str = "GTH_POTENTIALS"
    data_dir: str | None = None  # of these files; None: $CP2K_DATA_DIR, then the usual places
    cutoff_Ry: float = 400.0
    rel_cutoff_Ry: float = 50.0
    eps_default: float = 1e-12
    eps_scf: float = 1e-6
    kspacing_per_A: float | None = 0.25
    smearing_temperature_K: float | None = None
    dispersion: str | None = None  # DFTD3, DFTD3(BJ), DFTD4
    spin: bool = False  # unrestricted also where the number of electrons does not ask for it
    moments: dict[str, float] = field(default_factory=dict)  # to start from, μ_B by element
    charged_cells: bool = False  # label charged periodic structures
    vacuum_A: float = 8.0
    algorithm: str = "ot"  # or diagonalization, which smearing and k-points take in any case
    minimizer: str = "DIIS"
    preconditioner: str = "FULL_SINGLE_INVERSE"
    max_iterations: int = 50
    outer_iterations: int = 4
    mixing_alpha: float = 0.4
    added_states: int = 20
    net_force_eV_per_A_per_atom: float = 0.05  # the grid breaks momentum conservation: H2O has 0.01

    name: ClassVar[str] = "cp2k"
    periodic: ClassVar[bool] = True
    own_template: ClassVar[str] = "labelers/cp2k.inp.j2"
    own_command: ClassVar[str] = "cp2k -i {input}"
    own_ladder: ClassVar[Rungs] = {
        "gentler": {"minimizer": "CG", "mixing_alpha": 0.2, "max_iterations": 150},
        "other preconditioner": {
            "minimizer": "CG", "preconditioner": "FULL_ALL", "mixing_alpha": 0.1, "max_iterations": 300,
        },
        "diagonalization": {"algorithm": "diagonalization", "mixing_alpha": 0.05, "max_iterations": 600},
    }  # fmt: skip
    input_name: ClassVar[str] = "label.inp"
    output_name: ClassVar[str] = "label.out"
    path_options: ClassVar[tuple[str, ...]] = (
        "algorithm", "minimizer", "preconditioner", "max_iterations", "outer_iterations", "mixing_alpha",
        "added_states",
    )  # fmt: skip
    file_options: ClassVar[tuple[str, ...]] = ("template", "data_dir")
    structure_variables: ClassVar[tuple[str, ...]] = (
        "kinds", "coordinates_A", "cell_lines", "periodicity", "mesh", "uks",
    )  # fmt: skip
    comment_marks: ClassVar[tuple[str, ...]] = ("!", "#")
    scratch: ClassVar[tuple[str, ...]] = ("label-RESTART*",)
    version_pattern: ClassVar[str] = r"CP2K (?:\|.*)?version:?\s+(?:CP2K version )?(\d+(?:\.\d+)*)"
    version_arguments: ClassVar[tuple[str, ...]] = ("--version",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.algorithm not in ("ot", "diagonalization"):
            raise InputError(f"labeler 'cp2k': algorithm is '{self.algorithm}'; ot or diagonalization")

    def physics(self) -> dict[str, Any]:
        """Where the data files lie is no physics; what is in them is."""
        return {key: value for key, value in super().physics().items() if key != "data_dir"}

    def data_files(self) -> Mapping[str, Path]:
        """The files of basis sets and potentials."""
        return {name: self._data_file(name) for name in (self.basis_file, self.potential_file)}

    def check_elements(self, elements: list[str]) -> None:
        """A basis set and a potential for each, by the option and in the file."""
        if "kind.basis" not in template_text(self.template or self.own_template):
            return  # the user's template names them itself
        for option, choice, file in (
            ("basis", self.basis, self.basis_file),
            ("potential", self.potential, self.potential_file),
        ):
            path = self._data_file(file)
            entries = _entries(path, path.stat().st_mtime_ns)
            for element in elements:
                word = by_element(choice, element, option=option, name=self.name)
                if (element, word) not in entries:
                    raise InputError(f"labeler 'cp2k': {path} has no {word} for {element}; see `{option}`")

    def inputs(self, atoms: Atoms, values: Mapping[str, Any]) -> dict[str, str | Path]:
        """label.inp."""
        if atoms.pbc.any():
            refuse_charged_cell(atoms, allowed=self.charged_cells, name=self.name)
        shown = self._placed(atoms)
        vectors = zip("ABC", np.asarray(shown.cell).tolist(), strict=True)
        spacing = values["kspacing_per_A"]
        mesh = k_grid(atoms, spacing) if spacing else (1, 1, 1)
        several, smeared = mesh != (1, 1, 1), values["smearing_temperature_K"] is not None
        kinds = [
            {
                "element": element,
                "basis": by_element(values["basis"], element, option="basis", name=self.name),
                "potential": by_element(values["potential"], element, option="potential", name=self.name),
                "moment": values["moments"].get(element, 0.0),
            }
            for element in sorted(set(atoms.symbols))
        ]
        odd = staging.electrons(atoms) % 2 == 1
        chosen = {
            **values,
            "basis_file": self._data_file(self.basis_file),
            "potential_file": self._data_file(self.potential_file),
            "algorithm": "diagonalization" if several or smeared else values["algorithm"],
        }
        text = self.rendered(
            atoms,
            chosen,
            kinds=kinds,
            coordinates_A="\n".join(f"      {s} {_digits(r)}" for s, r in _sites(shown)),
            cell_lines="\n".join(f"      {axis} {_digits(vector)}" for axis, vector in vectors),
            periodicity="XYZ" if atoms.pbc.any() else "NONE",
            mesh=mesh if several else None,
            uks=values["spin"] or odd or atoms.info.get("multiplicity", 0) > 1,
        )
        return {self.input_name: text}

    def verdict(self, directory: Path) -> None:
        """Complete and converged."""
        text = (directory / self.output_name).read_text(encoding="utf-8", errors="replace")
        box = _aborted(text)
        if UNCONVERGED in text:
            raise LabelFailureError(NOT_CONVERGED, f"cp2k: {line_with(text, UNCONVERGED)}")
        for words, reason in FAILURES.items():
            if words in box:
                raise LabelFailureError(reason, f"cp2k: {box}")
        if "input/" in box:  # the module that refuses
            raise InputError(f"cp2k refuses its input, {directory / self.input_name}: {box}")
        if box:
            raise LabelFailureError("engine-error", f"cp2k: {box}")
        if END not in text or "SCF run converged" not in text:
            said = last_lines(directory / self.output_name)
            raise LabelFailureError("truncated-output", f"cp2k: no '{END}' in the output: {said}")

    def parse(self, atoms: Atoms, directory: Path) -> LabelResult:
        """Numbers through pymatgen's reader."""
        from pymatgen.core.units import Ha_to_eV

        output = _read_output(directory / self.output_name)
        sites = output.read_table_pattern(*COORDINATES, postprocess=str, last_one_only=False)
        if not (sites and output.data["forces"]):
            raise LabelFailureError("truncated-output", "cp2k: coordinates or forces are not in the output")
        expected = self._placed(atoms)
        found = Atoms([row[0] for row in sites[0]], [[float(x) for x in row[1:]] for row in sites[0]])
        found.set_cell(output.lattice)
        check_geometry(expected, found)
        stress = None
        if atoms.pbc.all() and output.data.get("stress_tensor"):
            stress = -full_3x3_to_voigt_6_stress(np.array(output.data["stress_tensor"][-1])) * units.GPa
        # pymatgen's Hartree differs from ASE's in the ninth digit, which is 4e-6 eV for water
        energy = output.final_energy / Ha_to_eV * units.Hartree
        forces = np.array(output.data["forces"][-1]) * (units.Hartree / units.Bohr)
        return LabelResult(float(energy), forces, stress, "free", None)

    def _placed(self, atoms: Atoms) -> Atoms:
        """The structure as CP2K sees it."""
        placed = in_a_box(atoms, self.vacuum_A)
        if not atoms.pbc.any():
            placed.set_cell(2 * np.asarray(placed.cell))
            placed.pbc = False
        return placed

    def _data_file(self, name: str) -> Path:
        places = [self.data_dir] if self.data_dir else [os.environ.get("CP2K_DATA_DIR"), *DATA]
        return data_file(name, places, labeler=self.name, option="data_dir")


@lru_cache(maxsize=8)
def _entries(path: Path, _changed: int) -> frozenset[tuple[str, str]]:
    """(element, name) of each set; a line begins with the element, then come all the names of one."""
    found = set()
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.split()
        if words and words[0].capitalize() in atomic_numbers:
            found |= {(words[0].capitalize(), word) for word in words[1:]}
    return frozenset(found)


def _read_output(path: Path) -> Any:
    from pymatgen.io.cp2k.outputs import Cp2kOutput

    class Output(Cp2kOutput):
        """Without its reading of the input, which stumbles over what an edited template may have."""

        def parse_input(self) -> None:
            pass

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = Output(str(path), auto_load=False)
        output.parse_energies()
        output.parse_forces()
        output.parse_stresses()
        output.lattice = output.parse_cell_params()
    return output


def _sites(atoms: Atoms) -> list[tuple[str, list[float]]]:
    return list(zip(atoms.symbols, atoms.positions.tolist(), strict=True))


def _digits(vector: Any) -> str:
    return " ".join(f"{value:.12f}" for value in vector)


def _aborted(text: str) -> str:
    """What stands in the box that CP2K draws around its last words; '' when there is none."""
    start = text.rfind("[ABORT]")
    if start < 0:
        return ""
    box = text[start:].splitlines()[:8]
    words = " ".join(line.strip(" */\\|_O") for line in box if not line.strip().startswith("==="))
    return " ".join(words.replace("[ABORT]", "").split())
