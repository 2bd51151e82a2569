"""VASP. Not tried against the program, which is licensed: its inputs and real outputs are.

- POTCARs are joined by element name, in the order of the POSCAR, which groups the atoms by element;
  their TITELs are checked before the run, and those that VASP read after it. Forces come back in the
  structure's order.
- The label is the free energy, whose slope the forces are (TOTEN, `e_fr_energy`), not 'energy(sigma→0)'.
- "reached required accuracy" is about atoms. That the electrons converged is taken from OUTCAR's words, or
  where it has none from the number of steps, which must be less than NELM.
- No selective dynamics, no symmetry (ISYM = 0), one ionic step.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.io import read
from ase.io.vasp import write_vasp

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

OUTCAR, RUN = "OUTCAR", "vasprun.xml"
END = "General timing and accounting informations for this job"
CONVERGED, UNCONVERGED = "aborting loop because EDIFF is reached", "EDIFF was not reached"
TITEL, VALENCE = re.compile(r"^\s*TITEL\s*=\s*(.+?)\s*$", re.MULTILINE), re.compile(r"ZVAL\s*=\s*([\d.]+)")


@dataclass(frozen=True, kw_only=True)
class VaspLabeler(ProgramLabeler):
    """VASP: projector-augmented waves; needs the program and its POTCARs."""

    encut_eV: float  # VASP's own default depends on the elements, so on the structure
    potcars: dict[str, str]  # folder of each element's POTCAR, such as {Pd: Pd_pv, C: C}
    potcar_dir: str | None = None  # of these folders; None: $VASP_PP_PATH
    gga: str = "PE"
    kspacing_per_A: float | None = 0.25
    ismear: int = 1
    sigma_eV: float = 0.1
    ediff_eV: float = 1e-6
    prec: str = "Accurate"
    lreal: str = ".FALSE."
    dispersion: int | None = None  # IVDW: 11 and 12 are D3
    spin: bool = False
    moments: dict[str, float] = field(default_factory=dict)  # to start from, μ_B by element
    charged_cells: bool = False  # label charged structures, molecules too: their images are there
    vacuum_A: float = 12.0  # along what is not periodic
    algo: str = "Normal"
    nelm: int = 100
    nelmin: int = 4
    amix: float | None = None
    bmix: float | None = None
    nbands: int | None = None
    ncore: int | None = None
    kpar: int | None = None

    name: ClassVar[str] = "vasp"
    periodic: ClassVar[bool] = True
    own_template: ClassVar[str] = "labelers/vasp.incar.j2"
    own_command: ClassVar[str] = "vasp_std"
    own_ladder: ClassVar[Rungs] = {
        "more steps": {"nelm": 300},
        "gentler mixing": {"nelm": 300, "amix": 0.1, "bmix": 0.01},
        "all bands": {"nelm": 300, "algo": "All"},
    }
    input_name: ClassVar[str] = "INCAR"
    output_name: ClassVar[str] = "vasp.out"
    path_options: ClassVar[tuple[str, ...]] = (
        "algo", "nelm", "nelmin", "amix", "bmix", "nbands", "ncore", "kpar",
    )  # fmt: skip
    file_options: ClassVar[tuple[str, ...]] = ("template", "potcar_dir")
    structure_variables: ClassVar[tuple[str, ...]] = ("magmom", "nelect", "nupdown")
    comment_marks: ClassVar[tuple[str, ...]] = ("#", "!")
    # the POTCAR is licensed and large: its hash is in the fingerprint, a copy beside each label is not
    scratch: ClassVar[tuple[str, ...]] = ("POTCAR", "WAVECAR", "CHG", "CHGCAR", "PROCAR", "vaspout.h5")
    version_pattern: ClassVar[str] = r"vasp\.(\d+(?:\.\d+)+)"

    def physics(self) -> dict[str, Any]:
        """Where the POTCARs lie is no physics; what is in them is."""
        return {key: value for key, value in super().physics().items() if key != "potcar_dir"}

    def data_files(self) -> Mapping[str, Path]:
        """One POTCAR by element."""
        return {element: self._potcar(element) for element in self.potcars}

    def check_elements(self, elements: list[str]) -> None:
        """The right POTCAR for each."""
        for element in elements:
            self._checked_potcar(element)

    def inputs(self, atoms: Atoms, values: Mapping[str, Any]) -> dict[str, str | Path]:
        """INCAR, KPOINTS, POSCAR and POTCAR."""
        refuse_charged_cell(atoms, allowed=self.charged_cells, name=self.name)
        unpaired = unpaired_electrons(atoms)
        if unpaired and not self.spin:
            raise LabelFailureError(
                "bad-multiplicity", f"vasp: {unpaired} unpaired electrons, but `spin` is false"
            )
        placed, _ = self._placed(atoms)
        texts = [self._checked_potcar(element) for element in _groups(placed)]
        poscar = StringIO()
        write_vasp(poscar, placed, direct=True, vasp5=True, sort=False, ignore_constraints=True)
        charge, moments = atoms.info.get("charge", 0), values["moments"]
        text = self.rendered(
            atoms,
            values,
            magmom=" ".join(f"{moments.get(s, 0.0):g}" for s in placed.symbols) if moments else None,
            nelect=_valence(placed, texts) - charge if charge else None,
            nupdown=unpaired if atoms.info.get("multiplicity", 0) else None,
        )
        spacing = values["kspacing_per_A"]
        mesh = k_grid(atoms, spacing) if spacing else (1, 1, 1)
        kpoints = f"k-points\n0\nGamma\n{mesh[0]} {mesh[1]} {mesh[2]}\n0 0 0\n"
        return {
            self.input_name: text,
            "KPOINTS": kpoints,
            "POSCAR": poscar.getvalue(),
            "POTCAR": "".join(texts),
        }

    def verdict(self, directory: Path) -> None:
        """Complete, one step, electrons converged, and the POTCARs that were asked for."""
        path = directory / OUTCAR
        said = last_lines(directory / self.output_name)
        if not path.is_file() or not (directory / RUN).is_file():
            raise LabelFailureError("engine-error", f"vasp wrote no {OUTCAR} or no {RUN}: {said}")
        text = path.read_text(encoding="utf-8", errors="replace")
        if UNCONVERGED in text:
            raise LabelFailureError(NOT_CONVERGED, f"vasp: {line_with(text, UNCONVERGED).strip(' -')}")
        if END not in text:
            raise LabelFailureError("truncated-output", f"vasp: '{END}' is missing in {OUTCAR}: {said}")
        run = _read_run(directory)
        if len(run.ionic_steps) != 1:
            raise InputError(
                f"vasp made {len(run.ionic_steps)} ionic steps: the template must keep NSW = 0 or 1 step"
            )
        if CONVERGED not in text and not run.converged_electronic:
            steps = len(run.ionic_steps[0]["electronic_steps"])
            raise LabelFailureError(NOT_CONVERGED, f"vasp: {steps} electronic steps, NELM is as many")

    def parse(self, atoms: Atoms, directory: Path) -> LabelResult:
        """Numbers of vasprun.xml through ASE's reader, in the structure's order."""
        placed, order = self._placed(atoms)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = read(directory / RUN, format="vasp-xml")
        check_geometry(placed, found)
        self._check_titels(placed, _read_run(directory).potcar_symbols)
        numbers = found.calc.results
        forces = np.empty((len(atoms), 3))
        forces[order] = numbers["forces"]
        stress = numbers.get("stress") if atoms.pbc.all() else None
        return LabelResult(float(numbers["free_energy"]), forces, stress, "free", None)

    def _placed(self, atoms: Atoms) -> tuple[Atoms, np.ndarray]:
        """The structure as VASP sees it, grouped by element, and where each of its atoms comes from."""
        order = np.argsort(np.array(atoms.symbols), kind="stable")
        placed = in_a_box(atoms, self.vacuum_A)[order]
        return placed, order

    def _potcar(self, element: str) -> Path:
        if element not in self.potcars:
            raise InputError(
                f"labeler 'vasp': option 'potcars' says nothing for {element}; add {element}: {element}"
            )
        places = [self.potcar_dir] if self.potcar_dir else [os.environ.get("VASP_PP_PATH")]
        name = f"{self.potcars[element]}/POTCAR"
        return data_file(name, places, labeler=self.name, option="potcar_dir")

    def _checked_potcar(self, element: str) -> str:
        path = self._potcar(element)
        text = path.read_text(encoding="utf-8", errors="replace")
        titles = TITEL.findall(text)
        if len(titles) != 1 or _element_of(titles[0]) != element:
            found = "; ".join(titles) or "none"
            raise InputError(f"{path} shall be the POTCAR of {element}, but its TITEL is: {found}")
        return text if text.endswith("\n") else text + "\n"

    def _check_titels(self, placed: Atoms, used: list[str]) -> None:
        wanted = [TITEL.findall(self._checked_potcar(element))[0] for element in _groups(placed)]
        if [_words(title) for title in wanted] != [_words(title) for title in used]:
            raise LabelFailureError(
                "wrong-pseudopotential", f"vasp read {used}, but the structure needs {wanted}, in this order"
            )


def _read_run(directory: Path) -> Any:
    return _parsed(directory / RUN, (directory / RUN).stat().st_mtime_ns)


@lru_cache(maxsize=1)  # verdict and parse ask for it one after the other
def _parsed(path: Path, _changed: int) -> Any:
    from pymatgen.io.vasp.outputs import Vasprun

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Vasprun(str(path), parse_dos=False, parse_eigen=False, parse_potcar_file=False)


def _groups(placed: Atoms) -> list[str]:
    """Elements in the order of the POSCAR."""
    return list(dict.fromkeys(placed.symbols))


def _element_of(titel: str) -> str:
    """Pd of 'PAW_PBE Pd_pv 28Jan2005'."""
    words = titel.split()
    return re.split(r"[_.\d]", words[1] if len(words) > 1 else words[0])[0]


def _words(titel: str) -> list[str]:
    return titel.split()


def _valence(placed: Atoms, potcars: list[str]) -> float:
    """Electrons that the POTCARs bring."""
    total = 0.0
    for element, text in zip(_groups(placed), potcars, strict=True):
        found = VALENCE.search(text)
        if found is None:
            raise InputError(f"the POTCAR of {element} states no ZVAL, which a charged structure needs")
        total += float(found.group(1)) * list(placed.symbols).count(element)
    return total
