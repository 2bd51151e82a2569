"""GFN-xTB through the program xtb; the labeler tblite has the same methods as a library.

Measured with xtb 6.5.1 (Debian): GFN2 energies are tblite's to 1e-6 eV. The energy is the free energy
at the electronic temperature, whose slope the forces are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ase import Atoms, units
from ase.io import read

from alchemy.errors import InputError
from alchemy.labelers.base import LabelFailureError, LabelResult
from alchemy.labelers.program_files import last_lines
from alchemy.labelers.program_text import line_with
from alchemy.labelers.programs import NOT_CONVERGED, ProgramLabeler, Rungs, check_geometry
from tace.wording import hint

METHODS = {"GFN2-xTB": 2, "GFN1-xTB": 1, "GFN0-xTB": 0}
LAST_ELEMENT = 86  # Rn
END = "normal termination of xtb"
FAILURES = {
    "convergence criteria cannot be satisfied": NOT_CONVERGED,
    "did not converge": NOT_CONVERGED,
    "Multiplicity missmatch": "bad-multiplicity",
}
PATH_WORDS = ("--input", "--grad", "--norestart", "--parallel", "-P", "--verbose", "--silent")


@dataclass(frozen=True, kw_only=True)
class XtbLabeler(ProgramLabeler):
    """xtb, the program: GFN-xTB for molecules."""

    method: str = "GFN2-xTB"
    electronic_temperature_K: float = 300.0
    solvent: str | None = None  # ALPB; xtb's name, such as water
    max_iterations: int = 250
    mixer_damping: float = 0.4
    net_force_eV_per_A_per_atom: float = 1e-4

    name: ClassVar[str] = "xtb"
    periodic: ClassVar[bool] = False
    own_template: ClassVar[str] = "labelers/xtb.inp.j2"
    own_command: ClassVar[str] = "xtb coord.tmol --input {input} --grad --norestart"
    own_ladder: ClassVar[Rungs] = {
        "damped": {"mixer_damping": 0.1, "max_iterations": 1000},
        "more damped": {"mixer_damping": 0.02, "max_iterations": 4000},
    }
    input_name: ClassVar[str] = "label.inp"
    output_name: ClassVar[str] = "label.out"
    path_options: ClassVar[tuple[str, ...]] = ("max_iterations", "mixer_damping")
    structure_variables: ClassVar[tuple[str, ...]] = ("method_number",)
    comment_marks: ClassVar[tuple[str, ...]] = ("#",)
    scratch: ClassVar[tuple[str, ...]] = ("xtbrestart", "xtbtopo.mol", "wbo", "charges", "coord.engrad")
    version_pattern: ClassVar[str] = r"xtb version (\d+(?:\.\d+)+)"
    version_arguments: ClassVar[tuple[str, ...]] = ("--version",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            listed = hint(self.method, METHODS, label="methods")
            raise InputError(f"labeler 'xtb' has no method '{self.method}'; {listed}")
        words = self._command_words()
        start = next((i for i, word in enumerate(words) if Path(word).name == self.name), len(words))
        for word in words[start + 1 :]:
            if word.startswith("-") and word not in PATH_WORDS:
                raise InputError(
                    f"labeler 'xtb', command: '{word}' may change the level of theory, which the "
                    f"fingerprint would not see; use the options or the template ({', '.join(PATH_WORDS)} "
                    "are allowed)"
                )

    def inputs(self, atoms: Atoms, values: Mapping[str, Any]) -> dict[str, str | Path]:
        """label.inp and coord.tmol, in Bohr."""
        if atoms.pbc.any():
            raise LabelFailureError(
                "periodic-not-supported", "the xtb labeler treats molecules; tblite has periodic ones"
            )
        if atoms.numbers.max(initial=0) > LAST_ELEMENT:
            heavy = ", ".join(sorted(set(atoms[atoms.numbers > LAST_ELEMENT].symbols)))
            raise LabelFailureError("element-not-supported", f"xtb has no parameters for {heavy}")
        positions = (atoms.positions / units.Bohr).tolist()
        lines = [
            f" {x:.14f} {y:.14f} {z:.14f} {symbol.lower()}"
            for symbol, (x, y, z) in zip(atoms.symbols, positions, strict=True)
        ]
        text = self.rendered(atoms, values, method_number=METHODS[values["method"]])
        return {self.input_name: text, "coord.tmol": "\n".join(["$coord", *lines, "$end", ""])}

    def verdict(self, directory: Path) -> None:
        """Complete and converged; xtb's last word goes to stderr."""
        text = (directory / self.output_name).read_text(encoding="utf-8", errors="replace")
        errors = directory / f"{self.output_name}.err"
        for words, reason in FAILURES.items():
            if words in text:
                raise LabelFailureError(reason, f"xtb: {line_with(text, words)}")
        if "[ERROR]" in text:
            said = " ".join(text.partition("[ERROR]")[2].partition("####")[0].split())
            raise LabelFailureError("engine-error", f"xtb: {said}")
        if END not in errors.read_text(encoding="utf-8", errors="replace").splitlines():
            said = last_lines(directory / self.output_name)
            raise LabelFailureError("truncated-output", f"xtb did not say '{END}': {said}")

    def parse(self, atoms: Atoms, directory: Path) -> LabelResult:
        """Numbers of the file `gradient` through ASE's reader of Turbomole's format."""
        found = read(directory / "gradient", format="turbomole-gradient")
        check_geometry(atoms, found)
        return LabelResult(
            energy_eV=float(found.get_potential_energy()),
            forces_eV_per_A=np.asarray(found.get_forces(apply_constraint=False)),
            stress_eV_per_A3=None,
            energy_kind="free",
            dipole_eA=None,  # of the three blocks that xtb prints, no reader takes it
        )
