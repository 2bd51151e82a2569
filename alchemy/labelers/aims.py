"""FHI-aims. Not tried against the program, which is licensed: its inputs and real outputs are.

A run that restarts its mixer prints forces of zero on the way; ASE's reader takes the last block, and
only when aims wished a nice day. Converged is what says so after the last start of the SCF: a run that
gave up wishes it, too. aims removes net force and torque itself (what they were stands in aims.out), so
a net force says nothing here.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from ase.io import read

from alchemy.errors import InputError
from alchemy.labelers.base import LabelFailureError, LabelResult
from alchemy.labelers.boxes import in_a_box, k_grid
from alchemy.labelers.program_files import last_lines
from alchemy.labelers.program_text import data_file, line_with, refuse_charged_cell
from alchemy.labelers.programs import (
    NOT_CONVERGED,
    ProgramLabeler,
    Rungs,
    check_geometry,
    unpaired_electrons,
)

END, BEGIN = "Have a nice day.", "Begin self-consistency loop"
CONVERGED = "Self-consistency cycle converged."
GAVE_UP = "SELF-CONSISTENCY CYCLE DID NOT CONVERGE"
NAMES_FILE = "{number:02d}_{element}_default"


@dataclass(frozen=True, kw_only=True)
class AimsLabeler(ProgramLabeler):
    """FHI-aims: all electrons, numeric orbitals, crystals and molecules; needs the program."""

    species: dict[str, str]  # by element: 'light', 'tight' (a folder of species_dir), or a file in it
    species_dir: str | None = None  # such as species_defaults/defaults_2020; None: $AIMS_SPECIES_DIR
    xc: str = "pbe"
    relativistic: str = "atomic_zora scalar"
    occupation: str = "gaussian"
    smearing_eV: float = 0.01
    kspacing_per_A: float | None = 0.25
    sc_accuracy_rho: float = 1e-5
    sc_accuracy_eev: float = 1e-3
    sc_accuracy_etot: float = 1e-6
    sc_accuracy_forces: float = 1e-4
    dispersion: str | None = None  # a line of control.in, such as vdw_correction_hirshfeld
    spin: bool = False
    moments: dict[str, float] = field(default_factory=dict)  # to start from, μ_B by element
    analytical_stress: bool = True  # false for functionals that have none
    charged_cells: bool = False  # label charged periodic structures
    vacuum_A: float = 30.0  # of slabs and wires; costs little with localised orbitals
    mixer: str = "pulay"
    sc_iter_limit: int = 150
    charge_mix_param: float | None = None
    n_max_pulay: int = 8
    net_force_eV_per_A_per_atom: float = 1e-4  # as printed: aims subtracts it

    name: ClassVar[str] = "aims"
    periodic: ClassVar[bool] = True
    own_template: ClassVar[str] = "labelers/aims.control.j2"
    own_command: ClassVar[str] = "aims.x"
    own_ladder: ClassVar[Rungs] = {
        "less mixing": {"charge_mix_param": 0.02, "sc_iter_limit": 400},
        "longer memory": {"charge_mix_param": 0.02, "n_max_pulay": 14, "sc_iter_limit": 800},
        "linear": {"mixer": "linear", "charge_mix_param": 0.02, "sc_iter_limit": 3000},
    }
    input_name: ClassVar[str] = "control.in"
    output_name: ClassVar[str] = "aims.out"
    path_options: ClassVar[tuple[str, ...]] = (
        "mixer", "sc_iter_limit", "charge_mix_param", "n_max_pulay",
    )  # fmt: skip
    file_options: ClassVar[tuple[str, ...]] = ("template", "species_dir")
    structure_variables: ClassVar[tuple[str, ...]] = ("k_grid", "fixed_spin_moment", "species_defaults")
    comment_marks: ClassVar[tuple[str, ...]] = ("#",)
    version_pattern: ClassVar[str] = r"(?:FHI-aims version\s*:|Version)\s*(\S+)"

    def __post_init__(self) -> None:
        super().__post_init__()
        for element in self.species:
            if element not in atomic_numbers or element == "X":
                raise InputError(f"labeler 'aims', species: there is no element '{element}'")

    def physics(self) -> dict[str, Any]:
        """Where the species' files lie is no physics; what is in them is."""
        return {key: value for key, value in super().physics().items() if key != "species_dir"}

    def data_files(self) -> Mapping[str, Path]:
        """One file of species defaults by element."""
        return {element: self._species_file(element) for element in self.species}

    def check_elements(self, elements: list[str]) -> None:
        """The right species for each."""
        for element in elements:
            self._species_file(element)

    def inputs(self, atoms: Atoms, values: Mapping[str, Any]) -> dict[str, str | Path]:
        """control.in and geometry.in."""
        if atoms.pbc.any():
            refuse_charged_cell(atoms, allowed=self.charged_cells, name=self.name)
        unpaired = unpaired_electrons(atoms)
        if unpaired and not self.spin:
            raise LabelFailureError(
                "bad-multiplicity", f"aims: {unpaired} unpaired electrons, but `spin` is false"
            )
        files = [self._species_file(element) for element in sorted(set(atoms.symbols))]
        spacing = values["kspacing_per_A"]
        grid = k_grid(atoms, spacing) if spacing else (1, 1, 1)
        text = self.rendered(
            atoms,
            values,
            k_grid=grid if atoms.pbc.any() else None,
            fixed_spin_moment=unpaired if atoms.info.get("multiplicity", 0) else None,
            species_defaults="\n".join(path.read_text(encoding="utf-8") for path in files),
        )
        return {self.input_name: text, "geometry.in": self._geometry(atoms)}

    def verdict(self, directory: Path) -> None:
        """Complete, and converged after the last start of the SCF."""
        path = directory / self.output_name
        text = path.read_text(encoding="utf-8", errors="replace")
        if GAVE_UP in text:
            raise LabelFailureError(NOT_CONVERGED, f"aims: {line_with(text, GAVE_UP).strip(' *')}")
        if END not in text:
            raise LabelFailureError("truncated-output", f"aims did not say '{END}': {last_lines(path)}")
        if CONVERGED not in text[text.rfind(BEGIN) :]:
            raise LabelFailureError(NOT_CONVERGED, f"aims did not say '{CONVERGED}' after its last '{BEGIN}'")

    def parse(self, atoms: Atoms, directory: Path) -> LabelResult:
        """Numbers through ASE's reader: the electronic free energy, whose slope the forces are."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = read(directory / self.output_name, format="aims-output")
        check_geometry(self._placed(atoms), found)
        numbers = found.calc.results
        if numbers.get("free_energy") is None or numbers.get("forces") is None:
            raise LabelFailureError("truncated-output", "aims: energy or forces are not in the output")
        stress = numbers.get("stress") if atoms.pbc.all() else None
        neutral_molecule = not atoms.pbc.any() and not atoms.info.get("charge", 0)
        return LabelResult(
            energy_eV=float(numbers["free_energy"]),
            forces_eV_per_A=np.asarray(numbers["forces"]),
            stress_eV_per_A3=stress,
            energy_kind="free",
            dipole_eA=numbers.get("dipole") if neutral_molecule else None,
        )

    def _placed(self, atoms: Atoms) -> Atoms:
        """The structure as aims sees it: a molecule stays one."""
        return in_a_box(atoms, self.vacuum_A) if atoms.pbc.any() else Atoms(atoms.symbols, atoms.positions)

    def _geometry(self, atoms: Atoms) -> str:
        placed, lines = self._placed(atoms), []
        if placed.pbc.any():
            lines += [f"lattice_vector {_digits(vector)}" for vector in np.asarray(placed.cell).tolist()]
        for symbol, position in zip(placed.symbols, placed.positions.tolist(), strict=True):
            lines.append(f"atom {_digits(position)} {symbol}")
            if self.spin and symbol in self.moments:
                lines.append(f"initial_moment {self.moments[symbol]}")
        return "\n".join([*lines, ""])

    def _species_file(self, element: str) -> Path:
        if element not in self.species:
            raise InputError(
                f"labeler 'aims': option 'species' says nothing for {element}; add {element}: light"
            )
        chosen = self.species[element]
        places = [self.species_dir] if self.species_dir else [os.environ.get("AIMS_SPECIES_DIR")]
        default = NAMES_FILE.format(number=atomic_numbers[element], element=element)
        folders = [Path(place).expanduser() / chosen for place in places if place]
        name = f"{chosen}/{default}" if any(folder.is_dir() for folder in folders) else chosen
        path = data_file(name, places, labeler=self.name, option="species_dir")
        words = [line.split()[:2] for line in path.read_text(encoding="utf-8").splitlines()]
        if ["species", element] not in words:
            raise InputError(f"{path} shall be the species of {element}, but has no line 'species {element}'")
        return path


def _digits(vector: list[float]) -> str:
    return " ".join(f"{value:.12f}" for value in vector)
