"""Outputs of electronic-structure programs: what ASE does not read, and which calculations did not converge.

A force of an SCF that was stopped looks like any other; programs say so elsewhere in their output.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.formats import open_with_compression
from ase.stress import full_3x3_to_voigt_6_stress

from alchemy.errors import InputError
from tace.units import conversion

_HEAD = 1 << 16
_ENDS = {
    "espresso": "JOB DONE",
    "outcar": "General timing and accounting",
    "vasprun": "</modeling>",
}
_LAST_LINES = 400  # of timings and statistics behind the last numbers
_SCF_STOPPED = "its self-consistent field stopped before it had converged"


def program_of(path: Path) -> str:
    """'cp2k', 'vasprun', 'outcar', 'espresso', or '' for a file of no such program."""
    try:
        with open_with_compression(str(path), "rb") as file:
            head = file.read(_HEAD)
    except (OSError, EOFError):
        return ""
    marks = {
        "cp2k": rb"^ *CP2K\| version",
        "vasprun": rb"<modeling>",
        "espresso": rb"Program PWSCF",
        "outcar": rb"^ *vasp\.\d",
    }
    found = (name for name, mark in marks.items() if re.search(mark, head, re.MULTILINE))
    return next(found, "")


def converged(path: Path, program: str) -> list[bool]:
    """Of each calculation in an output whether it converged; empty where that is not told."""
    verdicts = {"vasprun": _vasprun, "outcar": _outcar, "espresso": _espresso}
    if program not in verdicts:
        return []
    with open_with_compression(str(path), "rt") as file:
        return list(verdicts[program](file))


def finished(path: Path, program: str) -> bool:
    """Whether an output goes on to its program's last words; True where these are not known."""
    if program not in _ENDS:
        return True
    with open_with_compression(str(path), "rt") as file:
        return any(_ENDS[program] in line for line in deque(file, _LAST_LINES))


def truncation(path: Path) -> InputError:
    """What to say of an output that ends too early."""
    return InputError(
        f"{path}: truncated-output: it ends before its program did, so that its last numbers are of a "
        "calculation under way; run it again, or take those before with --skip-unconverged"
    )


def refusal(path: Path, numbers: Sequence[int]) -> InputError:
    """What to say of frames that did not converge."""
    listed = ", ".join(map(str, numbers[:8])) + (", …" if len(numbers) > 8 else "")
    return InputError(
        f"{path}, frame {listed}: scf-not-converged: {_SCF_STOPPED}, so its numbers are no labels; "
        "converge it, or leave such frames out with --skip-unconverged"
    )


def _vasprun(lines: Iterator[str]) -> Iterator[bool]:
    """As many electronic steps as are allowed: VASP went on without convergence."""
    allowed, steps = 0, -1
    for line in lines:
        if 'name="NELM"' in line and (number := re.search(r">\s*(\d+)", line)):
            allowed = int(number[1])
        if "<calculation>" in line:
            steps = 0
        steps += line.count("<scstep>")
        if "</calculation>" in line:
            yield not 0 < allowed <= steps


def _outcar(lines: Iterator[str]) -> Iterator[bool]:
    for line in lines:
        if "aborting loop" in line:
            yield "EDIFF was not reached" not in line


def _espresso(lines: Iterator[str]) -> Iterator[bool]:
    for line in lines:
        if "convergence has been achieved" in line:
            yield True
        if "convergence NOT achieved" in line:
            yield False


def read_cp2k(path: Path) -> tuple[Atoms, bool]:
    """(the structure of a CP2K output with energy, forces and stress, whether its SCF converged).

    pymatgen's reader wants the input beside the output and never returns where the coordinates are not
    printed; ASE has none. The output has no later positions, so a single calculation is read, and angles of
    the cell to 0.001 only, so the cell has to be orthorhombic. CP2K's stress is positive under compression.

    Raises:
        InputError: not finished, several geometries, another cell, or no coordinates in the output.
    """
    with open_with_compression(str(path), "rt") as file:
        text = file.read()
    energies = re.findall(r"ENERGY\| Total FORCE_EVAL .*?(-?\d+\.\d+)\s*$", text, re.MULTILINE)
    if not energies or "PROGRAM ENDED AT" not in text:
        raise InputError(f"{path}: this run of CP2K did not finish, or printed no energy")
    by_hand = "make an extended XYZ of -pos-1.xyz and -frc-1.xyz and give keys and units"
    if len(energies) > 1:
        raise InputError(f"{path}: {len(energies)} energies, but an output has no later positions; {by_hand}")
    lengths = re.findall(r"^ CELL\| Vector [abc] \[angstrom\]:.*=\s+(\S+)\s*$", text, re.MULTILINE)
    if len(lengths) < 3 or not re.search(r"CELL\| Numerically orthorhombic:\s+YES", text):
        raise InputError(f"{path}: CP2K prints cells that are not orthorhombic too roughly; {by_hand}")
    rows = _table(text, r"ATOMIC COORDINATES IN ANGSTROM", 7)
    if not rows:
        raise InputError(f"{path}: CP2K printed no coordinates; use PRINT_LEVEL MEDIUM")
    periodic = re.search(r"CELL\| Periodicity +(\w+)", text)
    atoms = Atoms(
        [row[2] for row in rows],
        np.array([row[4:7] for row in rows], float),
        cell=np.array(lengths[:3], float),
        pbc=[axis in (periodic[1] if periodic else "XYZ") for axis in "XYZ"],  # NONE has none of them
    )
    results: dict[str, Any] = {"energy": float(energies[0]) * conversion("Ha", "eV")}
    if forces := _table(text, r"ATOMIC FORCES in \[a\.u\.\]", 6):
        results["forces"] = np.array([row[3:6] for row in forces], float) * conversion("Ha/Bohr", "eV/A")
    stress = re.findall(r"^ STRESS\|\s+[xyz]\s+(\S+)\s+(\S+)\s+(\S+)\s*$", text, re.MULTILINE)
    if stress and "stress tensor [GPa]" in text:
        tensor = -np.array(stress[:3], float) * conversion("GPa", "eV/A^3")
        results["stress"] = full_3x3_to_voigt_6_stress(tensor)
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms, "SCF run converged" in text and "SCF run NOT converged" not in text


def _table(text: str, title: str, width: int) -> list[list[str]]:
    """Rows that begin with 1, 2, … below a title, of at least so many words."""
    found: list[list[str]] = []
    match = re.search(title, text)
    for line in text[match.end() :].splitlines() if match else ():
        words = line.split()
        if len(words) >= width and words[0] == str(len(found) + 1):
            found.append(words)
        elif found:
            break
    return found
