"""Quantum ESPRESSO's pw.x: one SCF with forces, and stress where the structure is periodic.

The energy is that of the line with '!', F = E − TS: forces are its slope (Al4 at 0.02 Ry of cold
smearing: tests/test_espresso.py). pw.x removes the net force itself, so a net force says nothing here.
Units are those of ASE's reader (CODATA 2006): 9e-8 of an energy from today's, the same for every label.
Fixed atoms are free for pw.x: with if_pos it would write zeros for their forces.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from ase import Atoms
from ase.data import atomic_masses, atomic_numbers

from alchemy.errors import InputError
from alchemy.labelers.base import LabelFailureError, LabelResult
from alchemy.labelers.boxes import in_a_box, k_grid
from alchemy.labelers.program_files import last_lines
from alchemy.labelers.programs import (
    NOT_CONVERGED,
    ProgramLabeler,
    Rungs,
    check_geometry,
    unpaired_electrons,
)
from alchemy.labelers.pseudopotentials import Library

PSEUDO = "pseudo"
DUAL = 8.0  # of ultrasoft and PAW sets; norm-conserving ones need 4
# messages of its diagonalizers, which another one may not have
DIAGONALIZATION = (
    "too many bands are not converged",
    "S matrix not positive definite",
    "problems computing cholesky",
    "eigenvectors failed to converge",
)
# keywords that have an option here, or that the structure decides
TAKEN = {
    "control": {
        "calculation": "", "outdir": "", "prefix": "", "disk_io": "", "pseudo_dir": "pseudo_dir",
        "tprnfor": "", "tstress": "",
    },
    "system": {
        "ibrav": "", "nat": "", "ntyp": "", "ecutwfc": "ecutwfc_Ry", "ecutrho": "ecutrho_Ry",
        "occupations": "occupations", "smearing": "smearing", "degauss": "degauss_Ry",
        "input_dft": "input_dft", "nspin": "starting_magnetization", "tot_charge": "",
        "tot_magnetization": "", "assume_isolated": "assume_isolated",
    },
    "electrons": {
        "conv_thr": "conv_thr_Ry", "mixing_beta": "mixing_beta", "mixing_mode": "mixing_mode",
        "mixing_ndim": "mixing_ndim", "diagonalization": "diagonalization",
        "electron_maxstep": "electron_maxstep", "scf_must_converge": "",
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EspressoLabeler(ProgramLabeler):
    """pw.x. Molecules stand in a box; `functional` is what the pseudopotentials must be made for."""

    functional: str = "PBE"
    input_dft: str | None = None  # another functional than that of the pseudopotentials
    ecutwfc_Ry: float = 40.0
    ecutrho_Ry: float | None = None  # None: eight times ecutwfc_Ry
    kspacing_per_A: float = 0.25
    k_shift: bool = False
    occupations: Literal["smearing", "fixed"] = "smearing"
    smearing: Literal["gaussian", "mp", "cold", "fd"] = "cold"
    degauss_Ry: float = 0.01
    starting_magnetization: dict[str, float] = field(default_factory=dict)
    vacuum_A: float = 10.0
    assume_isolated: Literal["none", "mt"] = "none"  # of molecules
    charged_cells: bool = False
    conv_thr_Ry: float = 1e-9
    control: dict[str, Any] = field(default_factory=dict)
    system: dict[str, Any] = field(default_factory=dict)
    electrons: dict[str, Any] = field(default_factory=dict)
    pseudo_dir: str = "/usr/share/espresso/pseudo"
    pseudopotentials: dict[str, str] = field(default_factory=dict)
    pseudo_pattern: str = "{element}[._-]*.upf"
    mixing_beta: float = 0.4
    mixing_mode: Literal["plain", "TF", "local-TF"] = "plain"
    mixing_ndim: int = 8
    diagonalization: Literal["david", "cg", "ppcg", "paro"] = "david"
    electron_maxstep: int = 100

    # pw.x subtracts the mean force, but not in external fields (dipole correction), where grids show
    net_force_eV_per_A_per_atom: float = 5e-3

    name: ClassVar[str] = "espresso"
    periodic: ClassVar[bool] = True
    own_template: ClassVar[str] = "labelers/espresso.in.j2"
    own_command: ClassVar[str] = "pw.x -in {input}"
    input_name: ClassVar[str] = "pw.in"
    output_name: ClassVar[str] = "pw.out"
    path_options: ClassVar[tuple[str, ...]] = (
        "pseudo_dir", "pseudopotentials", "pseudo_pattern", "mixing_beta", "mixing_mode", "mixing_ndim",
        "diagonalization", "electron_maxstep",
    )  # fmt: skip
    file_options: ClassVar[tuple[str, ...]] = ("template", "pseudo_dir")
    structure_variables: ClassVar[tuple[str, ...]] = (
        "nspin", "magnetizations", "isolated", "stress", "ecutrho", "more_control", "more_system",
        "more_electrons", "atomic_species", "k_points", "cell_parameters", "atomic_positions",
    )  # fmt: skip
    comment_marks: ClassVar[tuple[str, ...]] = ("!",)
    scratch: ClassVar[tuple[str, ...]] = ("tmp",)
    version_pattern: ClassVar[str] = r"Program PWSCF v\.(\S+) starts"
    version_arguments: ClassVar[tuple[str, ...]] = ("-in", "/dev/null")
    # each rung from scratch: a charge that did not converge is no better start than the atoms'
    own_ladder: ClassVar[Rungs] = {
        "more steps, less mixing": {"mixing_beta": 0.2, "electron_maxstep": 250, "mixing_ndim": 12},
        "screened mixing": {"mixing_beta": 0.3, "mixing_mode": "local-TF", "electron_maxstep": 250},
        "conjugate gradients": {"mixing_beta": 0.1, "diagonalization": "cg", "electron_maxstep": 400},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for section, taken in TAKEN.items():
            for keyword in getattr(self, section):
                if keyword.lower() in taken:
                    option = taken[keyword.lower()]
                    instead = f"use the option {option}" if option else "it is set for you"
                    raise InputError(f"labeler 'espresso': {section}.{keyword}: {instead}")
        for name in ("ecutwfc_Ry", "kspacing_per_A", "conv_thr_Ry", "vacuum_A"):
            if not getattr(self, name) > 0:
                raise InputError(f"labeler 'espresso': {name} is {getattr(self, name)}, but must be above 0")
        self._library()

    def _library(self) -> Library:
        return Library(
            Path(self.pseudo_dir), self.pseudopotentials, self.pseudo_pattern, self.functional
        )

    def data_files(self) -> Mapping[str, Path]:
        """Pseudopotentials by element."""
        return self._library().known()

    def check_elements(self, elements: list[str]) -> None:
        """Whether each has its pseudopotential."""
        for element in elements:
            self._library().file(element)

    def inputs(self, atoms: Atoms, values: Mapping[str, Any]) -> dict[str, str | Path]:
        """pw.in and a link to each pseudopotential."""
        self._check_charge(atoms)
        boxed = in_a_box(atoms, self.vacuum_A)
        files = {element: self._library().file(element) for element in sorted(set(atoms.symbols))}
        isolated = self.assume_isolated if not atoms.pbc.any() else "none"
        text = self.rendered(
            atoms,
            values,
            **_spin(atoms, self.starting_magnetization),
            isolated=isolated,
            stress=bool(atoms.pbc.all()),
            ecutrho=self.ecutrho_Ry or DUAL * self.ecutwfc_Ry,
            more_control=_namelist(self.control),
            more_system=_namelist(self.system),
            more_electrons=_namelist(self.electrons),
            atomic_species="\n".join(
                f"{e} {atomic_masses[atomic_numbers[e]]:.6f} {file.name}" for e, file in files.items()
            ),
            k_points=_k_points(k_grid(atoms, self.kspacing_per_A), self.k_shift),
            cell_parameters=_rows(np.asarray(boxed.cell)),
            atomic_positions="\n".join(
                f"{symbol} {row}"
                for symbol, row in zip(atoms.symbols, _rows(atoms.positions).split("\n"), strict=True)
            ),
        )
        return {self.input_name: text, **{f"{PSEUDO}/{path.name}": path for path in files.values()}}

    def verdict(self, directory: Path) -> None:
        """'JOB DONE.' alone says nothing: pw.x writes it after an SCF that ran out of steps, too."""
        output = directory / self.output_name
        text = output.read_text("utf-8", "replace")
        if "convergence NOT achieved" in text:
            steps = text.split("convergence NOT achieved after", 1)[1].split(":")[0].strip()
            raise LabelFailureError(NOT_CONVERGED, f"not converged after {steps}")
        if "%%%%%%%%%%" in text:
            said = [line.strip() for line in text.split("%%%%%%%%%%", 1)[1].splitlines()]
            message = " ".join(line for line in said if line and not line.startswith("%"))[:500]
            path = any(piece in message for piece in DIAGONALIZATION)
            raise LabelFailureError(NOT_CONVERGED if path else "engine-error", f"pw.x: {message}")
        if "JOB DONE." not in text or "convergence has been achieved" not in text:
            missing = "JOB DONE." if "JOB DONE." not in text else "'convergence has been achieved'"
            raise LabelFailureError(
                "truncated-output", f"{output.name} has no {missing}; its end: {last_lines(output, 3)}"
            )

    def parse(self, atoms: Atoms, directory: Path) -> LabelResult:
        """Through ASE's reader."""
        from ase.io.espresso import read_espresso_out

        with warnings.catch_warnings(), (directory / self.output_name).open(errors="replace") as file:
            warnings.simplefilter("ignore")
            (found,) = list(read_espresso_out(file, index=slice(-1, None)))
        asked = in_a_box(atoms, self.vacuum_A)
        check_geometry(asked, found)
        if found.calc.results.get("forces") is None:
            raise LabelFailureError("truncated-output", f"{self.output_name} has no forces")
        stress = None
        if atoms.pbc.all():
            stress = found.calc.results.get("stress")
            if stress is None:
                raise LabelFailureError("truncated-output", f"{self.output_name} has no stress")
        return LabelResult(
            energy_eV=float(found.calc.results["energy"]),
            forces_eV_per_A=np.array(found.calc.results["forces"], dtype=np.float64),
            stress_eV_per_A3=None if stress is None else np.array(stress, dtype=np.float64),
            energy_kind="free" if self.occupations == "smearing" else "total",
            dipole_eA=None,  # periodic cells have none that does not depend on the origin
        )

    def _check_charge(self, atoms: Atoms) -> None:
        if not atoms.info.get("charge", 0):
            return
        if atoms.pbc.any() and not self.charged_cells:
            raise LabelFailureError(
                "charge-not-supported",
                f"charge {atoms.info['charge']:+d} in a periodic cell: its energy depends on the "
                "neutralizing background; set charged_cells: true if that is meant",
            )
        if not atoms.pbc.any() and self.assume_isolated == "none":
            raise LabelFailureError(
                "charge-not-supported",
                f"charge {atoms.info['charge']:+d} of a molecule that sees its images; set "
                "assume_isolated: mt, and vacuum_A to at least the molecule's own extent",
            )


def _spin(atoms: Atoms, starting: Mapping[str, float]) -> dict[str, Any]:
    """Given a multiplicity, the total moment is fixed; else elements that have a start find theirs."""
    unpaired = unpaired_electrons(atoms)
    elements = sorted(set(atoms.symbols))
    if unpaired:
        # any start but zero: from zero the spin densities would stay the same
        share = min(1.0, max(0.1, unpaired / (4 * len(atoms))))
        return {"nspin": 2, "magnetizations": [starting.get(e, share) for e in elements]}
    if atoms.info.get("multiplicity", 0) == 0 and any(starting.get(e, 0.0) for e in elements):
        return {"nspin": 2, "magnetizations": [starting.get(e, 0.0) for e in elements]}
    return {"nspin": 1, "magnetizations": []}


def _k_points(grid: tuple[int, int, int], shifted: bool) -> str:
    if grid == (1, 1, 1) and not shifted:
        return "K_POINTS gamma"  # real wave functions: half of the time, the same numbers
    shift = "1 1 1" if shifted else "0 0 0"
    return f"K_POINTS automatic\n{' '.join(map(str, grid))} {shift}"


def _rows(values: np.ndarray) -> str:
    return "\n".join(" ".join(f"{x:.12f}" for x in row) for row in values)


def _namelist(settings: Mapping[str, Any]) -> list[str]:
    """'key = value' lines with the values as Fortran writes them."""
    lines = []
    for key, value in settings.items():
        name = key.split("(")[0]
        if not name.isidentifier() or any(sign in key for sign in "=/&\n!"):
            raise InputError(f"labeler 'espresso': '{key}' is not a keyword of pw.x")
        lines.append(f"{key} = {_fortran(value)}")
    return lines


def _fortran(value: Any) -> str:
    if isinstance(value, bool):
        return f".{str(value).lower()}."
    if isinstance(value, int | float):
        return repr(value).replace("e", "d")
    return "'" + str(value).replace("'", "''").replace("\n", " ") + "'"
