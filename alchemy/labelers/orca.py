"""ORCA. Not tried against the program, which is licensed: its inputs, and outputs that it wrote, are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.io import read
from ase.io.orca import read_orca_engrad

from alchemy.errors import InputError
from alchemy.labelers.base import LabelFailureError, LabelResult
from alchemy.labelers.program_files import last_lines
from alchemy.labelers.program_text import line_with
from alchemy.labelers.programs import NOT_CONVERGED, ProgramLabeler, Rungs, check_geometry

END = "ORCA TERMINATED NORMALLY"
FAILURES = {
    "SCF NOT CONVERGED": NOT_CONVERGED,
    "Wavefunction not fully converged": NOT_CONVERGED,
    "wavefunction IS NOT": NOT_CONVERGED,  # … CONVERGED, or FULLY CONVERGED
    "and number of electrons": "bad-multiplicity",  # multiplicity (2) is even and number of …
    "There are no main basis functions": "no-basis",
    "basis set was either not assigned or not available": "no-basis",
}
WRONG_INPUT = ("UNRECOGNIZED OR DUPLICATED KEYWORD", "INPUT ERROR", "Unknown identifier")


@dataclass(frozen=True, kw_only=True)
class OrcaLabeler(ProgramLabeler):
    """ORCA: density functionals and wave functions for molecules; needs the program."""

    method: str = "PBE"
    basis: str = "def2-SVP"
    keywords: list[str] = field(default_factory=list)  # more of the simple input: D3BJ, RIJCOSX, DefGrid3
    scf_tolerance: str = "TightSCF"
    max_iterations: int = 150
    aids: list[str] = field(default_factory=list)
    maxcore_MB: int = 2000
    net_force_eV_per_A_per_atom: float = 0.02  # grids

    name: ClassVar[str] = "orca"
    periodic: ClassVar[bool] = False
    own_template: ClassVar[str] = "labelers/orca.inp.j2"
    own_command: ClassVar[str] = "orca {input}"
    own_ladder: ClassVar[Rungs] = {
        "slow": {"max_iterations": 500, "aids": ["SlowConv"]},
        "KDIIS": {"max_iterations": 500, "aids": ["KDIIS", "SOSCF"]},
        "very slow": {"max_iterations": 1500, "aids": ["VerySlowConv"]},
    }
    input_name: ClassVar[str] = "label.inp"
    output_name: ClassVar[str] = "label.out"
    path_options: ClassVar[tuple[str, ...]] = ("max_iterations", "aids", "maxcore_MB")
    structure_variables: ClassVar[tuple[str, ...]] = ("coordinates_A",)
    comment_marks: ClassVar[tuple[str, ...]] = ("#",)
    scratch: ClassVar[tuple[str, ...]] = ("*.gbw", "*.densities", "*.tmp*", "*.bas*", "*.prop", "*.ges")
    version_pattern: ClassVar[str] = r"Program Version (\d+(?:\.\d+)+)"

    def inputs(self, atoms: Atoms, values: Mapping[str, Any]) -> dict[str, str | Path]:
        """label.inp."""
        if atoms.pbc.any():
            raise LabelFailureError(
                "periodic-not-supported", "the orca labeler treats molecules; this one is periodic"
            )
        lines = [
            f"  {symbol} {x:.12f} {y:.12f} {z:.12f}"
            for symbol, (x, y, z) in zip(atoms.symbols, atoms.positions.tolist(), strict=True)
        ]
        return {self.input_name: self.rendered(atoms, values, coordinates_A="\n".join(lines))}

    def verdict(self, directory: Path) -> None:
        """Converged, and ORCA's own word that it ended."""
        path = directory / self.output_name
        text = path.read_text(encoding="utf-8", errors="replace")
        for words, reason in FAILURES.items():
            if words in text:
                raise LabelFailureError(reason, f"orca: {line_with(text, words)}")
        for words in WRONG_INPUT:
            if words in text:
                said = f"{line_with(text, words)}; {last_lines(path, 4)}"
                raise InputError(f"orca refuses its input, {directory / self.input_name}: {said}")
        if END not in text:
            raise LabelFailureError("truncated-output", f"orca did not say '{END}': {last_lines(path)}")

    def parse(self, atoms: Atoms, directory: Path) -> LabelResult:
        """Numbers through ASE's readers: the energy of the output, the gradient of label.engrad.

        The output may have several gradients (of a reference, of an excited state); .engrad has the
        one of the final energy, with more digits.
        """
        found = read(directory / self.output_name, format="orca-output")
        check_geometry(atoms, found)
        path = directory / Path(self.input_name).with_suffix(".engrad")
        energy, neutral = found.calc.results.get("energy"), not atoms.info.get("charge", 0)
        if energy is None or not np.isfinite(energy):
            raise LabelFailureError(NOT_CONVERGED, f"orca printed the energy {energy}")
        return LabelResult(
            energy_eV=float(energy),
            forces_eV_per_A=read_orca_engrad(path).reshape(-1, 3),
            stress_eV_per_A3=None,
            energy_kind="total",
            dipole_eA=found.calc.results.get("dipole") if neutral else None,
        )
