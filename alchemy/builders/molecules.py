"""Conformers of molecules from SMILES, by RDKit.

Method: ETKDG (Riniker & Landrum, J. Chem. Inf. Model. 55, 2562, 2015), then a force field.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from ase import Atoms

from ..errors import EnvironmentProblemError, StructureError

OPTIMISER_STEPS = 500


def conformers(
    smiles: str, rng: np.random.Generator, *, most: int, optimize: str, apart_A: float
) -> list[Atoms]:
    """Up to `most` different conformers with hydrogens; total charge and multiplicity come from the SMILES.

    Args:
        optimize: 'mmff', 'uff' or 'none'. UFF takes the place of MMFF where that has no parameters.
        apart_A: conformers whose heavy atoms are closer than this (RMS) count as one.

    Raises:
        EnvironmentProblemError: RDKit is not installed.
        StructureError: no molecule, or one that RDKit cannot put into space.
    """
    chem = _rdkit()
    with _quiet(chem) as said:
        molecule = chem.MolFromSmiles(smiles)
    if molecule is None or molecule.GetNumAtoms() == 0:
        raise StructureError(
            f"smiles: '{smiles}' is no molecule{_why(said)}; check brackets, rings and valences, such as in "
            "CCO or C[N+](C)(C)C"
        )
    if any(atom.GetAtomicNum() == 0 for atom in molecule.GetAtoms()):
        raise StructureError(f"smiles: '{smiles}' holds a '*', which is no element; write the atom")
    if "." in smiles:
        raise StructureError(
            f"smiles: '{smiles}' holds several molecules, which RDKit puts on top of each other; write each "
            "on its own, or give a structure file"
        )
    molecule = chem.AddHs(molecule)
    ids = _embedded(chem, molecule, rng, most=most, apart_A=apart_A)
    if not ids:
        raise StructureError(
            f"smiles: RDKit finds no conformer of '{smiles}'; give a structure file for it in its place"
        )
    if optimize != "none":
        with _quiet(chem):
            _optimize(molecule, optimize)
    return [_atoms(molecule, i) for i in ids]


def _rdkit() -> Any:
    try:
        from rdkit import Chem
    except ImportError as error:
        raise EnvironmentProblemError(
            f"structures from SMILES need RDKit ({error}); install it with: "
            "pip install 'tace-alchemy[smiles]'"
        ) from None
    return Chem


@contextmanager
def _quiet(chem: Any) -> Iterator[list[str]]:
    """RDKit's complaints, kept from the terminal."""
    import logging

    from rdkit import rdBase

    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("rdkit")
    before, propagated = logger.handlers, logger.propagate
    rdBase.LogToPythonLogger()
    logger.handlers, logger.propagate = [handler], False
    try:
        yield said
    finally:
        logger.handlers, logger.propagate = before, propagated
        rdBase.LogToCppStreams()


def _why(said: list[str]) -> str:
    words = " ".join(said[0].split()) if said else ""
    words = words.partition("] ")[2] if words.startswith("[") else words
    return f" ({words[:120]})" if words else ""


def _embedded(
    chem: Any, molecule: Any, rng: np.random.Generator, *, most: int, apart_A: float
) -> list[int]:
    from rdkit.Chem import rdDistGeom

    settings = rdDistGeom.ETKDGv3()
    settings.randomSeed = int(rng.integers(1, 2**31 - 1))
    settings.pruneRmsThresh = apart_A if apart_A > 0 else -1.0
    with _quiet(chem):
        ids = list(rdDistGeom.EmbedMultipleConfs(molecule, most, settings))
        if not ids:  # for strained rings and cages: from random places, slower
            settings.useRandomCoords = True
            ids = list(rdDistGeom.EmbedMultipleConfs(molecule, most, settings))
    return ids


def _optimize(molecule: Any, field: str) -> None:
    from rdkit.Chem import rdForceFieldHelpers

    if field == "mmff" and rdForceFieldHelpers.MMFFHasAllMoleculeParams(molecule):
        rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(molecule, maxIters=OPTIMISER_STEPS)
    elif rdForceFieldHelpers.UFFHasAllMoleculeParams(molecule):
        rdForceFieldHelpers.UFFOptimizeMoleculeConfs(molecule, maxIters=OPTIMISER_STEPS)


def _atoms(molecule: Any, conformer: int) -> Atoms:
    symbols = [atom.GetSymbol() for atom in molecule.GetAtoms()]
    atoms = Atoms(symbols, positions=molecule.GetConformer(conformer).GetPositions())
    charge = sum(atom.GetFormalCharge() for atom in molecule.GetAtoms())
    unpaired = sum(atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms())
    if charge:
        atoms.info["charge"] = charge
    if unpaired:  # high spin, Hund's rule
        atoms.info["multiplicity"] = unpaired + 1
    return atoms
