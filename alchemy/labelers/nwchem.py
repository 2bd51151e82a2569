"""NWChem: molecules with Gaussian basis sets.

Measured with NWChem 7.0.2 (Debian), PBE/6-31G water: the energy is PySCF's to 1e-6 eV. NWChem prints
gradients to 1e-6 Hartree/Bohr, so forces carry a rounding of 2.6e-5 eV/Å.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ase import Atoms, units
from ase.io import read

from alchemy.errors import InputError
from alchemy.labelers.base import LabelFailureError, LabelResult
from alchemy.labelers.program_files import last_lines
from alchemy.labelers.program_text import line_with
from alchemy.labelers.programs import NOT_CONVERGED, ProgramLabeler, Rungs, check_geometry

WRONG_INPUT = ("failed opening basis file", "There is an error in the input file")
END = "Total times  cpu:"
FAILURES = {  # what NWChem says -> our reason; the first that is found
    "Calculation failed to converge": NOT_CONVERGED,
    "failed to locate basis": "no-basis",
}


@dataclass(frozen=True, kw_only=True)
class NwchemLabeler(ProgramLabeler):
    """NWChem: density functionals and Hartree-Fock for molecules."""

    xc: str = "xpbe96 cpbe96"  # as NWChem spells it; hfexch for Hartree-Fock
    basis: str | dict[str, str] = "def2-svp"  # of its library, for all or by element
    ecp: str | dict[str, str] | None = None
    spherical: bool = True  # NWChem's own default is Cartesian, also for sets made otherwise
    grid: str = "fine"
    dispersion: str | None = None  # such as 'vdw 4', which is D3(BJ)
    tolerance_energy_hartree: float = 1e-8
    tolerance_density: float = 1e-6
    tolerance_gradient: float = 1e-5
    max_iterations: int = 80
    damp_percent: int = 0
    level_shift_hartree: float = 0.0
    memory_MB: int = 2000
    net_force_eV_per_A_per_atom: float = 0.02  # grids: 1e-4 for fine ones, more for small ones

    name: ClassVar[str] = "nwchem"
    periodic: ClassVar[bool] = False
    own_template: ClassVar[str] = "labelers/nwchem.nw.j2"
    own_command: ClassVar[str] = "nwchem {input}"
    own_ladder: ClassVar[Rungs] = {
        "damped": {"max_iterations": 200, "damp_percent": 70},
        "level shift": {"max_iterations": 400, "damp_percent": 70, "level_shift_hartree": 0.5},
    }
    input_name: ClassVar[str] = "label.nw"
    output_name: ClassVar[str] = "label.out"
    path_options: ClassVar[tuple[str, ...]] = (
        "max_iterations", "damp_percent", "level_shift_hartree", "memory_MB",
    )  # fmt: skip
    structure_variables: ClassVar[tuple[str, ...]] = ("coordinates_bohr", "basis_lines", "ecp_lines")
    comment_marks: ClassVar[tuple[str, ...]] = ("#",)
    scratch: ClassVar[tuple[str, ...]] = ("label.db", "label.movecs", "label.gridpts*", "label.aoints*")
    version_pattern: ClassVar[str] = r"\(NWChem\) (\d+(?:\.\d+)+)"

    def check_elements(self, elements: list[str]) -> None:
        """Sets that are given by element are given for each."""
        library_lines(self.basis, elements, option="basis")

    def inputs(self, atoms: Atoms, values: Mapping[str, Any]) -> dict[str, str | Path]:
        """label.nw."""
        if atoms.pbc.any():
            raise LabelFailureError(
                "periodic-not-supported", "the nwchem labeler treats molecules; this one is periodic"
            )
        positions = (atoms.positions / units.Bohr).tolist()  # one Bohr radius for positions and forces
        lines = [
            f"  {symbol} {x:.12f} {y:.12f} {z:.12f}"
            for symbol, (x, y, z) in zip(atoms.symbols, positions, strict=True)
        ]
        more = {
            "coordinates_bohr": "\n".join(lines),
            "basis_lines": library_lines(values["basis"], set(atoms.symbols), option="basis"),
            "ecp_lines": library_lines(values["ecp"], set(atoms.symbols), option=None),
        }
        return {self.input_name: self.rendered(atoms, values, **more)}

    def verdict(self, directory: Path) -> None:
        """Complete and converged."""
        text = (directory / self.output_name).read_text(encoding="utf-8", errors="replace")
        for words, reason in FAILURES.items():
            if words in text:
                raise LabelFailureError(reason, f"nwchem: {line_with(text, words)}")
        wrong = [line_with(text, words) for words in WRONG_INPUT if words in text]
        if wrong:
            said = f"{_blamed(text)}; {wrong[0]}"
            raise InputError(f"nwchem refuses its input, {directory / self.input_name}: {said}")
        if END not in text:
            said = last_lines(directory / self.output_name)
            raise LabelFailureError("truncated-output", f"nwchem: no '{END}' at the end: {said}")

    def parse(self, atoms: Atoms, directory: Path) -> LabelResult:
        """Numbers through ASE's reader."""
        found = read(directory / self.output_name, format="nwchem-out")
        numbers = found.calc.results
        if numbers.get("energy") is None or numbers.get("forces") is None:
            raise LabelFailureError("truncated-output", "nwchem: energy or gradient are not in the output")
        check_geometry(atoms, found)
        neutral = not atoms.info.get("charge", 0)  # otherwise the dipole depends on the origin
        return LabelResult(
            energy_eV=float(numbers["energy"]),
            forces_eV_per_A=numbers["forces"],
            stress_eV_per_A3=None,
            energy_kind="total",
            dipole_eA=numbers.get("dipole") if neutral else None,
        )


def library_lines(
    choice: str | dict[str, str] | None, elements: Iterable[str], *, option: str | None
) -> str:
    """Lines of NWChem's `basis` and `ecp` blocks.

    Raises:
        InputError: `option` lists sets by element, and one of these is not among them.
    """
    if choice is None:
        return ""
    if isinstance(choice, str):
        return f'  * library "{choice}"'
    wanted = sorted(elements)
    missing = [element for element in wanted if element not in choice]
    if option and missing:
        raise InputError(
            f"labeler 'nwchem': option '{option}' names no set for {', '.join(missing)}; add it"
        )
    return "\n".join(f'  {element} library "{choice[element]}"' for element in wanted if element in choice)


def _blamed(text: str) -> str:
    """The line of the input that NWChem stopped at."""
    lines = text.partition("current input line :")[2].splitlines()
    return next((" ".join(line.split()) for line in lines if line.strip()), "")
