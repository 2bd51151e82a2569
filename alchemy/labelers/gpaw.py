"""GPAW, by whatever interpreter has it: `gpaw_run.py` in the label's directory, always a process.

The template holds GPAW's keyword arguments as YAML. GPAW that is installed beside us is used; else the
system's Python (Debian's package `gpaw`), with our PYTHON* variables cleared; else what `command` says.
The energy is the free energy: for Al4 at 0.1 eV of Fermi smearing, the energy extrapolated to zero
width misses the forces by 0.09 eV/Å.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ruamel.yaml import YAML, YAMLError

from alchemy.errors import InputError
from alchemy.labelers import gpaw_run
from alchemy.labelers.base import LabelFailureError, LabelResult
from alchemy.labelers.boxes import in_a_box, k_grid
from alchemy.labelers.program_files import last_lines
from alchemy.labelers.programs import ProgramLabeler, Rungs, check_geometry, unpaired_electrons
from alchemy.records import read_json

INPUT, RESULT = "gpaw.json", "result.json"
SETUPS = "/usr/share/gpaw-setups"  # Debian's gpaw-data


@dataclass(frozen=True, kw_only=True)
class GpawLabeler(ProgramLabeler):
    """Plane waves by default; other modes by an edited template."""

    xc: str = "PBE"
    ecut_eV: float = 400.0
    kspacing_per_A: float = 0.25
    width_eV: float = 0.1
    starting_magnetization: dict[str, float] = field(default_factory=dict)  # μ_B per atom
    vacuum_A: float = 8.0
    density_convergence: float = 1e-6  # electrons per valence electron
    setups_dir: str | None = None  # None: GPAW_SETUP_PATH, or Debian's
    maxiter: int = 333
    mixer: dict[str, Any] = field(default_factory=dict)
    eigensolver: str = "dav"

    # the grid of the exchange-correlation energy: H2O in a box sums to 0.19 eV/Å at 350 eV
    net_force_eV_per_A_per_atom: float = 0.1

    name: ClassVar[str] = "gpaw"
    periodic: ClassVar[bool] = True
    own_template: ClassVar[str] = "labelers/gpaw.yaml.j2"
    own_command: ClassVar[str] = "/usr/bin/python3 {input}"
    input_name: ClassVar[str] = "gpaw_run.py"
    output_name: ClassVar[str] = "gpaw.out"
    path_options: ClassVar[tuple[str, ...]] = ("setups_dir", "maxiter", "mixer", "eigensolver")
    file_options: ClassVar[tuple[str, ...]] = ("template", "setups_dir")
    structure_variables: ClassVar[tuple[str, ...]] = ("k_size", "fixed_moment")
    comment_marks: ClassVar[tuple[str, ...]] = ("#",)
    version_pattern: ClassVar[str] = r"GPAW version (\S+)"
    own_ladder: ClassVar[Rungs] = {
        "less mixing": {"mixer": {"beta": 0.02, "nmaxold": 5, "weight": 100.0}, "maxiter": 600},
        "residual minimization": {
            "eigensolver": "rmm-diis",
            "mixer": {"beta": 0.05, "nmaxold": 5, "weight": 50.0},
            "maxiter": 600,
        },
        "conjugate gradients": {
            "eigensolver": "cg",
            "mixer": {"beta": 0.01, "nmaxold": 3, "weight": 100.0},
            "maxiter": 1000,
        },
    }

    def command_line(self) -> str:
        """As asked; ours, where GPAW is installed beside us; the system's Python."""
        if self.command is None and importlib.util.find_spec("gpaw") is not None:
            return f"{shlex.quote(sys.executable)} {{input}}"
        return super().command_line()

    def physics(self) -> dict[str, Any]:
        """With one hash for all data sets of the functional: which elements come is not known here."""
        return {**super().physics(), "setups": _setups_hash(*self._setups())}

    def environment(self) -> Mapping[str, str | None]:
        """Another interpreter must not see our packages."""
        ours = shlex.split(self.command_line())[0] == sys.executable
        cleared = {} if ours else {name: None for name in os.environ if name.startswith("PYTHON")}
        return {**cleared, "GPAW_SETUP_PATH": str(self._setups()[0])}

    def check_elements(self, elements: list[str]) -> None:
        """Whether each has a data set of the functional."""
        folder, files = self._setups()
        for element in elements:
            if not any(path.name.split(".")[0] == element for path in files):
                raise InputError(
                    f"GPAW data set of {element}: {folder} has none for {self.xc} (such as "
                    f"{element}.{self.xc}.gz); name another directory by setups_dir"
                )

    def inputs(self, atoms: Atoms, values: Mapping[str, Any]) -> dict[str, str | Path]:
        """gpaw.json and the script."""
        if atoms.info.get("charge", 0):
            raise LabelFailureError(
                "charge-not-supported", "charged structures are not labelled in GPAW's periodic cells"
            )
        self.check_elements(sorted(set(atoms.symbols)))
        boxed = in_a_box(atoms, self.vacuum_A)
        unpaired = unpaired_electrons(atoms)
        text = self.rendered(
            atoms,
            values,
            k_size=list(k_grid(atoms, self.kspacing_per_A)),
            fixed_moment=bool(unpaired),
        )
        document = {
            "arguments": _arguments(text, self.template or self.own_template),
            "structure": {
                "symbols": list(atoms.symbols),
                "positions_A": boxed.positions.tolist(),
                "cell_A": np.asarray(boxed.cell).tolist(),
                "pbc": [True] * 3,
                "moments": self._moments(atoms, unpaired),
                "stress": bool(atoms.pbc.all()),
            },
        }
        script = Path(gpaw_run.__file__).read_text(encoding="utf-8")
        return {INPUT: json.dumps(document, indent=1), self.input_name: script}

    def verdict(self, directory: Path) -> None:
        """What the script says; nothing said is a crash."""
        if not (directory / RESULT).is_file():
            output = directory / self.output_name
            said = last_lines(directory / f"{output.name}.err") or last_lines(output)
            raise LabelFailureError("engine-error", f"GPAW ended without a result: {said}")
        document = read_json(directory / RESULT)
        if document["status"] != "ok":
            raise LabelFailureError(document["reason"], document["message"])

    def parse(self, atoms: Atoms, directory: Path) -> LabelResult:
        """Numbers of the script."""
        found = read_json(directory / RESULT)
        calculated = Atoms(found["symbols"], found["positions_A"], cell=found["cell_A"], pbc=True)
        check_geometry(in_a_box(atoms, self.vacuum_A), calculated)
        stress = found["stress_eV_per_A3"]
        return LabelResult(
            energy_eV=float(found["energy_eV"]),
            forces_eV_per_A=np.array(found["forces_eV_per_A"], dtype=np.float64),
            stress_eV_per_A3=None if stress is None else np.array(stress, dtype=np.float64),
            energy_kind="free",
            dipole_eA=None,
        )

    def _moments(self, atoms: Atoms, unpaired: int) -> list[float]:
        """Given a multiplicity, shares of its moment; else where elements have a start; else none."""
        if unpaired:
            return [unpaired / len(atoms)] * len(atoms)
        starts = [self.starting_magnetization.get(symbol, 0.0) for symbol in atoms.symbols]
        return starts if any(starts) and not atoms.info.get("multiplicity", 0) else []

    def _setups(self) -> tuple[Path, tuple[Path, ...]]:
        """The directory, and its data sets of the functional (PBE's, where it has none of its own)."""
        asked = self.setups_dir or os.environ.get("GPAW_SETUP_PATH", "").split(os.pathsep)[0] or SETUPS
        folder = Path(asked)
        if not folder.is_dir():
            raise InputError(
                f"there is no directory {folder} of GPAW's PAW data sets; name it by setups_dir "
                "(apt-get install gpaw-data; where GPAW looks: python -c 'import gpaw; "
                "print(gpaw.setup_paths)')"
            )
        own = _files(folder, self.xc, folder.stat().st_mtime_ns)
        return folder, own or _files(folder, "PBE", folder.stat().st_mtime_ns)


def _arguments(text: str, source: str) -> dict[str, Any]:
    try:
        document = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise InputError(f"template {source} is not valid YAML: {error}") from error
    if not isinstance(document, dict):
        raise InputError(f"template {source} must be a mapping of GPAW's keyword arguments")
    return document


@lru_cache(maxsize=16)
def _files(folder: Path, kind: str, _changed: int) -> tuple[Path, ...]:
    return tuple(sorted(p for p in folder.iterdir() if f".{kind}." in f"{p.name}."))


@lru_cache(maxsize=16)
def _setups_hash(_folder: Path, files: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
