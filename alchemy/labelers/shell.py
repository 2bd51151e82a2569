"""Any program, by a script of the user: a template, run by bash in the label's directory.

What the script finds, besides the variables of its template: `structure.extxyz`, `structure.xyz` and
`structure.json` (charge and multiplicity, too). What it must leave is either `result.json`

    {"converged": true, "energy_eV": …, "forces_eV_per_A": [[…], …]}           a label; where known, with
        "stress_eV_per_A3": [xx, yy, zz, yz, xz, xy], "energy_kind": "free",
        "symbols": […], "positions_A": [[…], …]                                compared with the structure's
    {"converged": false, "message": "…"}                                       the next rung is tried
    {"failed": "a-short-reason", "message": "…"}                               nothing more is tried

or, with `result_file` and `result_format`, a file that ASE reads; then `must_contain` says by which text
of which file a converged run is known, because a reader cannot tell.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError

from alchemy.errors import InputError
from alchemy.labelers.base import LabelFailureError, LabelResult
from alchemy.labelers.program_files import last_lines
from alchemy.labelers.programs import NOT_CONVERGED, ProgramLabeler, check_geometry

RESULT = "result.json"
REASON = re.compile(r"[a-z][a-z0-9-]{1,39}")
# none of these means anything to a shell, quoted in whatever way or not at all
PLAIN = re.compile(r"[A-Za-z0-9_./+=:,@%^-]*")


@dataclass(frozen=True, kw_only=True)
class ShellLabeler(ProgramLabeler):
    """The script's own variables are `physics_values` and `path_values`; a rung may change the latter."""

    program: str = "shell"  # how records and fingerprint call what the script runs
    physics_values: dict[str, str | float | int | bool] = field(default_factory=dict)
    path_values: dict[str, str | float | int | bool] = field(default_factory=dict)
    result_file: str = RESULT
    result_format: str = ""  # as ase.io.read knows it; "": result.json
    must_contain: dict[str, str] = field(default_factory=dict)  # file -> text of a converged run

    name: ClassVar[str] = "shell"
    periodic: ClassVar[bool] = True
    own_template: ClassVar[str] = "labelers/shell.sh.j2"
    own_command: ClassVar[str] = "bash {input}"
    input_name: ClassVar[str] = "label.sh"
    output_name: ClassVar[str] = "label.out"
    path_options: ClassVar[tuple[str, ...]] = ("path_values",)
    structure_variables: ClassVar[tuple[str, ...]] = ("path", "physics")

    def __post_init__(self) -> None:
        super().__post_init__()
        for rung in ({"path_values": self.path_values}, *self.rungs().values()):
            _check_plain("path_values", rung.get("path_values", {}))
        _check_plain("physics_values", self.physics_values)
        if self.template is None:
            raise InputError(
                "labeler 'shell': name your script by `template`; a copy of labelers/shell.sh.j2 of "
                "alchemy_templates is a start"
            )
        if self.result_format and not self.must_contain:
            raise InputError(
                "labeler 'shell': with result_format, must_contain must say by which text of which file "
                "a converged run is known, such as {run.out: 'SCF converged'}"
            )
        for name in (self.result_file, *self.must_contain):
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise InputError(f"labeler 'shell': '{name}' must be a file in the label's directory")

    def code(self) -> str:
        """What the user calls it; only the script knows versions."""
        return self.program

    def inputs(self, atoms: Atoms, values: Mapping[str, Any]) -> dict[str, str | Path]:
        """The script and the structure."""
        path = {**self.path_values, **values["path_values"]}  # a rung names what it changes
        text = self.rendered(atoms, values, physics=self.physics_values, path=path)
        xyz = "".join(
            f"{symbol} {' '.join(f'{x:.12f}' for x in row)}\n"
            for symbol, row in zip(atoms.symbols, atoms.positions, strict=True)
        )
        return {
            self.input_name: text,
            "structure.xyz": f"{len(atoms)}\n\n{xyz}",
            "structure.extxyz": f"{len(atoms)}\n{_comment(atoms)}\n{xyz}",
        }

    def verdict(self, directory: Path) -> None:
        """Texts of the user, or what result.json says."""
        for name, text in self.must_contain.items():
            path = directory / name
            if not path.is_file():
                said = last_lines(directory / f"{self.output_name}.err")
                raise LabelFailureError("engine-error", f"the script left no {name}; {said}")
            if text not in path.read_text("utf-8", "replace"):
                said = last_lines(path, 3)
                raise LabelFailureError(NOT_CONVERGED, f"{name} has no '{text}'; its end: {said}")
        if self.result_format:
            return
        document = self._result(directory)
        if "failed" in document:
            reason, message = str(document["failed"]), str(document.get("message", ""))
            if not REASON.fullmatch(reason):
                reason, message = "engine-error", f"{reason} {message}"
            raise LabelFailureError(reason, message)
        if document.get("converged") is not True:
            raise LabelFailureError(NOT_CONVERGED, str(document.get("message", "the script says so")))

    def parse(self, atoms: Atoms, directory: Path) -> LabelResult:
        """result.json, or the file that ASE reads."""
        if self.result_format:
            return self._read_with_ase(atoms, directory)
        found = self._result(directory)
        missing = [name for name in ("energy_eV", "forces_eV_per_A") if name not in found]
        if missing:
            raise LabelFailureError("truncated-output", f"{RESULT} has no {' and no '.join(missing)}")
        if "positions_A" in found:
            symbols = found.get("symbols", list(atoms.symbols))
            check_geometry(atoms, Atoms(symbols, found["positions_A"], cell=atoms.cell, pbc=atoms.pbc))
        stress = found.get("stress_eV_per_A3")
        return LabelResult(
            energy_eV=float(found["energy_eV"]),
            forces_eV_per_A=np.array(found["forces_eV_per_A"], dtype=np.float64),
            stress_eV_per_A3=None if stress is None else np.array(stress, dtype=np.float64),
            energy_kind=str(found.get("energy_kind", "total")),
            dipole_eA=None,
        )

    def _result(self, directory: Path) -> dict[str, Any]:
        path = directory / self.result_file
        try:
            document = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            said = last_lines(directory / f"{self.output_name}.err")
            raise LabelFailureError("engine-error", f"no {path.name} to read ({error}); {said}") from error
        if not isinstance(document, dict):
            raise LabelFailureError("engine-error", f"{path.name} is not a mapping")
        return document

    def _read_with_ase(self, atoms: Atoms, directory: Path) -> LabelResult:
        from ase.io import read

        found = read(directory / self.result_file, index=-1, format=self.result_format)
        check_geometry(atoms, found)
        try:
            energy, kind = float(found.get_potential_energy(force_consistent=True)), "free"
        except PropertyNotImplementedError:
            energy, kind = float(found.get_potential_energy()), "total"
        stress = None
        if atoms.pbc.all():
            try:
                stress = np.array(found.get_stress(apply_constraint=False), dtype=np.float64)
            except PropertyNotImplementedError:
                stress = None
        forces = np.array(found.get_forces(apply_constraint=False), dtype=np.float64)
        return LabelResult(energy, forces, stress, kind, None)


def _check_plain(option: str, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if not key.isidentifier():
            raise InputError(f"labeler 'shell', {option}: '{key}' is not a name for a variable")
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"labeler 'shell', {option}: {key} is {value}")
        if isinstance(value, str) and not PLAIN.fullmatch(value):
            raise InputError(
                f"labeler 'shell', {option}: {key} is {value!r}; what reaches a shell may hold letters, "
                "digits and _ . / + = : , @ % ^ - only. Write anything else into the script itself"
            )


def _comment(atoms: Atoms) -> str:
    """Extended XYZ's second line, with all digits."""
    lattice = " ".join(f"{x:.12f}" for x in np.asarray(atoms.cell).ravel())
    periodic = " ".join("FT"[int(flag)] for flag in atoms.pbc)
    return f'Lattice="{lattice}" Properties=species:S:1:pos:R:3 pbc="{periodic}"'
