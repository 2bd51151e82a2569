"""Structures and options whose rendered inputs are kept in tests/data/inputs, one folder per case.

`python tests/code_cases.py` writes them anew, for a change of a template that is meant; read the diff.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ase import Atoms

from alchemy.labelers.aims import AimsLabeler
from alchemy.labelers.cp2k import Cp2kLabeler
from alchemy.labelers.nwchem import NwchemLabeler
from alchemy.labelers.orca import OrcaLabeler
from alchemy.labelers.programs import ProgramLabeler
from alchemy.labelers.vasp import VaspLabeler
from alchemy.labelers.xtb import XtbLabeler

DATA = Path(__file__).parent / "data"
GOLDEN, POTCARS, SPECIES = DATA / "inputs", DATA / "potcars", DATA / "species"
BASIS = DATA / "cp2k"


def hydroxyl(charge: int = -1) -> Atoms:
    atoms = Atoms("OH", [(0.0, 0.0, 0.0), (0.0, 0.25, 0.93)])
    atoms.info["charge"] = charge
    return atoms


def oxygen() -> Atoms:
    return Atoms("O2", [(0.0, 0.0, 0.0), (0.0, 0.0, 1.21)], info={"multiplicity": 3})


def mixed_crystal() -> Atoms:
    """Elements out of order, a skewed cell."""
    cell = [[3.9, 0.0, 0.0], [0.3, 4.1, 0.0], [0.0, -0.2, 5.2]]
    places = [(0.1, 0.0, 0.0), (1.0, 2.0, 2.4), (2.0, 2.1, 0.2), (1.1, 2.0, 3.55)]
    return Atoms("PdCPdO", places, cell=cell, pbc=True)


def slab() -> Atoms:
    """Two layers without a third cell vector, and what lies on them."""
    cell = [[2.8, 0.0, 0.0], [1.4, 2.42487113, 0.0], [0.0, 0.0, 0.0]]
    places = [(0.0, 0.0, 6.15), (0.0, 0.0, 0.0), (1.4, 0.80829, 2.25), (0.0, 0.0, 5.0)]
    return Atoms("OPdPdC", places, cell=cell, pbc=[True, True, False])


def vasp(**options: object) -> VaspLabeler:
    potcars = {"Pd": "Pd_pv", "C": "C", "O": "O", "H": "H"}
    return VaspLabeler(**{"encut_eV": 400.0, "potcars": potcars, "potcar_dir": str(POTCARS), **options})


def aims(**options: object) -> AimsLabeler:
    species = {"Pd": "light", "C": "light", "O": "light", "H": "own/H_short"}
    return AimsLabeler(**{"species": species, "species_dir": str(SPECIES), **options})


def cp2k(**options: object) -> Cp2kLabeler:
    return Cp2kLabeler(**{"data_dir": str(BASIS), **options})


def cases() -> dict[str, tuple[ProgramLabeler, Atoms]]:
    """By the name of their folder."""
    basis = {"Pd": "DZVP-MOLOPT-SR-GTH", "C": "TZVP-MOLOPT-GTH", "O": "TZVP-MOLOPT-GTH"}
    return {
        "vasp-crystal": (vasp(), mixed_crystal()),
        "vasp-slab": (vasp(spin=True, moments={"Pd": 0.5}, dispersion=12, ncore=4), slab()),
        "vasp-anion": (vasp(kspacing_per_A=None, ismear=0, charged_cells=True), hydroxyl()),
        "vasp-triplet": (vasp(spin=True, ismear=0), oxygen()),
        "aims-crystal": (aims(), mixed_crystal()),
        "aims-slab": (aims(dispersion="vdw_correction_hirshfeld"), slab()),
        "aims-triplet": (aims(spin=True, moments={"O": 1.0}), oxygen()),
        "cp2k-crystal": (cp2k(basis=basis, smearing_temperature_K=500.0), mixed_crystal()),
        "cp2k-slab": (cp2k(basis=basis, kspacing_per_A=None, dispersion="DFTD3(BJ)"), slab()),
        "cp2k-anion": (cp2k(), hydroxyl()),
        "cp2k-triplet": (cp2k(moments={"O": 2.0}), oxygen()),
        "orca-anion": (OrcaLabeler(keywords=["D3BJ", "DefGrid3"], threads=4), hydroxyl()),
        "orca-triplet": (OrcaLabeler(), oxygen()),
        "nwchem-anion": (NwchemLabeler(basis={"H": "6-31g", "O": "6-31+g"}, dispersion="vdw 4"), hydroxyl()),
        "nwchem-triplet": (NwchemLabeler(), oxygen()),
        "xtb-anion": (XtbLabeler(solvent="water"), hydroxyl()),
        "xtb-triplet": (XtbLabeler(method="GFN1-xTB"), oxygen()),
    }


def played_by(folder: Path) -> Callable[..., str]:
    """Puts texts into a folder, and gives the command of a program that will have written them.

    Names of files: `__` is a slash, `_dot_` a dot; see fake_code.py for those that are special.
    """

    def put(**texts: str) -> str:
        for name, text in texts.items():
            path = folder / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return f"{sys.executable} -S {Path(__file__).parent / 'fake_code.py'} {folder}"

    return put


def rendered(labeler: ProgramLabeler, atoms: Atoms) -> dict[str, str]:
    """Input files by name, without machine paths."""
    files = labeler.inputs(atoms, labeler.options())
    return {name: str(text).replace(str(DATA), "DATA") for name, text in files.items()}


def write_fakes() -> None:
    """POTCARs of a TITEL and a ZVAL, species and basis sets of a line: what is licensed stays away."""
    for name, titel, valence in (
        ("Pd_pv", "PAW_PBE Pd_pv 28Jan2005", 16), ("C", "PAW_PBE C 08Apr2002", 4),
        ("O", "PAW_PBE O 08Apr2002", 6), ("H", "PAW_PBE H 15Jun2001", 1),
    ):  # fmt: skip
        path = POTCARS / name / "POTCAR"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"   TITEL  = {titel}\n   POMASS = 1.000; ZVAL   = {valence:.3f}    mass\n")
    for name in ("light/46_Pd_default", "light/06_C_default", "light/08_O_default", "own/H_short"):
        element = {"46": "Pd", "06": "C", "08": "O"}.get(name[6:8], "H")
        (SPECIES / name).parent.mkdir(parents=True, exist_ok=True)
        (SPECIES / name).write_text(f"  species {element}\n    # not the real one: for tests\n")
    BASIS.mkdir(exist_ok=True)
    for name in ("BASIS_MOLOPT", "GTH_POTENTIALS"):
        (BASIS / name).write_text("# not the real one: for tests\n")


if __name__ == "__main__":
    write_fakes()
    for case, (labeler, atoms) in cases().items():
        (GOLDEN / case).mkdir(parents=True, exist_ok=True)
        for name, text in rendered(labeler, atoms).items():
            (GOLDEN / case / name).write_text(text)
    np.testing.assert_equal(sorted(p.name for p in GOLDEN.iterdir()), sorted(cases()))
