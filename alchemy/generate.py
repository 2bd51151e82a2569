"""Structures for the time before there is a model: read, rattled, built, or from a labeler's dynamics."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from alchemy_policies.calculators import CalculatorSessions
from alchemy_policies.integrators import maxwell_boltzmann
from alchemy_policies.variants import rattled
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed, Calculator
from ase.io import read
from ase.md.langevin import Langevin
from ase.optimize import FIRE

from tace.quantities import INPUTS

from .builders.build import BUILDERS, Material, build
from .conditions import conditions_of
from .errors import StructureError
from .gate import Gate
from .labelers.base import make_labeler
from .labelers.calculator import LabelerCalculator

RELAXED_EV_PER_A = 0.02
RELAX_STEPS = 300
_GROUP = "alchemy_group"


def make_structures(request: dict[str, Any]) -> list[Atoms]:
    """Structures of one `start` or `test` item.

    Args:
        request: kind (a key of `Sample`), source (the item's settings), base_dir, elements,
            labelers (name and options by fidelity), seed, scratch.

    Raises:
        StructureError: a file that cannot be read, an element that the campaign does not list, atoms on
            top of each other, or dynamics that fail.
    """
    source, base = request["source"], Path(request["base_dir"])
    rng = np.random.default_rng(request["seed"])
    if request["kind"] == "files":
        return [
            _in_group(a, str(path))
            for path in source["paths"]
            for a in read_structures(base / path, source["index"], request["elements"])
        ]
    scratch = _scratch(request)
    try:
        if request["kind"] in BUILDERS:
            return _built(request, scratch, rng=rng)
        starts = read_structures(base / source["structures"], ":", request["elements"])
        if request["kind"] == "rattle":
            relaxing = source["relax_with"]
            calculator = _labeler(request, relaxing, scratch) if relaxing else None
            return _rattled(starts, source, calculator, rng=rng)
        calculator = _labeler(request, source["fidelity"], scratch)
        return _dynamics(starts, source, calculator, rng=rng)
    except CalculationFailed as error:
        raise StructureError(f"making start structures failed: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _built(request: dict[str, Any], scratch: Path, *, rng: np.random.Generator) -> list[Atoms]:
    base = Path(request["base_dir"])

    def read_file(path: str) -> list[Atoms]:
        return read_structures(base / path, ":", request["elements"])

    def forces(fidelity: str) -> CalculatorSessions:
        return CalculatorSessions(_labeler(request, fidelity, scratch))

    return build(
        request["kind"], Material(request["source"], rng, read_file, forces), request["elements"]
    )


def group_of(atoms: Atoms) -> dict[str, str]:
    """What a frame must not be parted from when a test set is held out: its trajectory, its reaction.

    The info keys of these names say it; else the file, the structure that was rattled, or the walk.
    """
    info = atoms.info
    return {k: str(info[k]) for k in ("trajectory", "reaction") if k in info} | {
        k: str(info[_GROUP]) for k in ("trajectory",) if k not in info and _GROUP in info
    }


def _in_group(atoms: Atoms, group: str) -> Atoms:
    atoms.info[_GROUP] = group
    return atoms


def read_structures(path: Path, index: str, elements: Sequence[str]) -> list[Atoms]:
    """Frames of a file, checked against the campaign's elements; names file and frame in errors."""
    try:
        found = read(path, index=index if ":" in index else f"{index}:{int(index) + 1 or ''}")
    except FileNotFoundError:
        raise StructureError(f"{path}: no such structure file") from None
    except Exception as error:
        raise StructureError(f"{path}: cannot be read as structures ({error})") from error
    frames = found if isinstance(found, list) else [found]
    if not frames:
        raise StructureError(f"{path}: no structure at index {index}")
    for n, atoms in enumerate(frames):
        atoms.calc = None
        strange = sorted(set(atoms.get_chemical_symbols()) - set(elements))
        if strange:
            raise StructureError(
                f"{path}, frame {n} ({atoms.get_chemical_formula()}): {', '.join(strange)} is not among "
                f"the campaign's elements ({', '.join(elements)})"
            )
        problems = Gate().check_structure(atoms)
        if problems:
            raise StructureError(f"{path}, frame {n}: {problems[0][1]}")
        _refuse_conditions(atoms, f"{path}, frame {n}")
    return frames


def _refuse_conditions(atoms: Atoms, where: str) -> None:
    """A campaign labels under its templates' conditions: one that a file names would be lost in silence."""
    names = [name for name, quantity in INPUTS.items() if quantity.scope == "structure"]
    bare = Atoms(atoms.numbers)
    bare.info |= {n: atoms.info[n] for n in (*names, "charge", "multiplicity") if n in atoms.info}
    try:
        found = {name: value for name, value in conditions_of(bare).items() if value.any()}
    except StructureError as error:
        raise StructureError(f"{where}: {error}") from None
    if found:
        name, value = next(iter(found.items()))
        raise StructureError(
            f"{where}: {name} is {value.tolist()}, but labels of a campaign do not follow it: write total "
            "charge and spin as 'charge' and 'multiplicity', set a field or an electronic temperature in the "
            "template of the labeler, and remove it here"
        )


def _scratch(request: dict[str, Any]) -> Path:
    """Where thousands of small files are written and thrown away: in memory where that exists."""
    memory = Path("/dev/shm")  # noqa: S108 - a private directory is made in it
    parent = memory if os.access(memory, os.W_OK) else Path(request["scratch"]).parent
    return Path(tempfile.mkdtemp(prefix="alchemy-", dir=parent))


def _labeler(request: dict[str, Any], fidelity: str, scratch: Path) -> LabelerCalculator:
    chosen = request["labelers"][fidelity]
    labeler = make_labeler(
        chosen["labeler"], chosen["options"], base_dir=Path(request["base_dir"])
    )
    return LabelerCalculator(labeler, scratch)


def _relaxed(atoms: Atoms, calculator: Calculator) -> Atoms:
    atoms = atoms.copy()
    atoms.calc = calculator
    FIRE(atoms, logfile=None).run(fmax=RELAXED_EV_PER_A, steps=RELAX_STEPS)
    atoms.calc = None
    return atoms


def _rattled(
    starts: list[Atoms],
    source: dict[str, Any],
    calculator: Calculator | None,
    *,
    rng: np.random.Generator,
) -> list[Atoms]:
    if calculator is not None:
        starts = [_relaxed(a, calculator) for a in starts]
    return [
        _in_group(
            rattled(starts[n % len(starts)], rng, stdev_A=source["stdev_A"], strain=source["strain"]),
            f"{source['structures']} {n % len(starts)}",
        )
        for n in range(source["count"])
    ]


def _dynamics(
    starts: list[Atoms], source: dict[str, Any], calculator: Calculator, *, rng: np.random.Generator
) -> list[Atoms]:
    """Langevin trajectories of every start at every temperature; frames evenly spaced in their later part.

    The first fifth of each trajectory is left out: it still remembers the minimum.
    """
    if source["relax_first"]:
        starts = [_relaxed(a, calculator) for a in starts]
    runs = [(a, t) for t in source["T_K"] for a in starts]
    share = np.diff(np.linspace(0, source["count"], len(runs) + 1).round().astype(int))
    steps = round(source["time_fs"] / source["timestep_fs"])
    frames = []
    for walk, ((start, temperature), count) in enumerate(zip(runs, share, strict=True)):
        if not count:
            continue
        atoms = start.copy()
        masses = atoms.get_masses()
        velocities = maxwell_boltzmann(1.0 / masses, temperature, rng)
        atoms.set_velocities(velocities / units.fs)
        atoms.calc = calculator
        dynamics = Langevin(
            atoms,
            timestep=source["timestep_fs"] * units.fs,
            temperature_K=temperature,
            friction=source["friction_per_fs"] / units.fs,
            fixcm=False,
            rng=rng,
        )
        done = 0
        for stop in np.linspace(steps / 5, steps, count + 1).round().astype(int)[1:]:
            dynamics.run(int(stop) - done)
            done = int(stop)
            frame = atoms.copy()
            frame.calc = None
            frame.set_momenta(None) if "momenta" in frame.arrays else None
            frames.append(_in_group(frame, f"{source['structures']} walk {walk}"))
    return frames
