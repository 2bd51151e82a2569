"""The card of a model: where it comes from, what it can do, how well, and a test of itself.

A card is a mapping of plain values in the `extra` of the model file. Its self-test is one structure with
energy and forces in exact hexadecimal text, so that another machine can tell whether it gets the same.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols

from .data import Labelled
from .errors import ModelFileError
from .inputs import read_inputs
from .io import model_from_document, read_archive
from .model import Tace, n_parameters
from .properties import predict
from .quantities import INPUTS
from .responses import available

CARD = "card"
# of the energy per atom (eV) and of forces (eV/Å), each for a scale of 1 eV/Å: two orders above rounding,
# which other instruction sets and thread counts change, and far below the errors of any model
TOLERANCE = {"float64": (1e-11, 1e-10), "float32": (2e-5, 2e-4)}


def make_card(
    model: Tace,
    *,
    example: Labelled | None = None,
    counts: Sequence[Mapping[str, Any]] = (),
    errors: Sequence[Mapping[str, Any]] = (),
    settings: Mapping[str, Any] | None = None,
    data_hash: str = "",
    training: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All that is said of a model, as plain values.

    Args:
        example: the structure of the self-test.
        counts: rows of frames and labels per fidelity.
        errors: rows of errors per set, fidelity and quantity.
        settings: of the run, as they were written.
        training: steps, times and where it started from.
    """
    card = {
        **facts(model),
        "data_hash": data_hash,
        "labels": [dict(row) for row in counts],
        "errors": [dict(row) for row in errors],
        "settings": dict(settings or {}),
        "training": dict(training or {}),
        "versions": versions(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "self_test": None if example is None else self_test(model, example.atoms, example.fidelity),
    }
    return dict(json.loads(json.dumps(card)))  # numbers and text only: nothing else can be read back


def facts(model: Tace) -> dict[str, Any]:
    """What the model itself tells, without a card."""
    config = model.config
    e0 = model.e0_eV.cpu().numpy()
    symbols = [chemical_symbols[z] for z in config.elements]
    return {
        "elements": symbols,
        "fidelities": list(config.fidelities),
        "cutoff_A": config.cutoff_A,
        "parameters": n_parameters(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "predicts": list(available(config)),
        "reads": list(config.input_names),
        "e0_eV": {
            level: dict(zip(symbols, map(float, row), strict=True))
            for level, row in zip(config.fidelities, e0, strict=True)
        },
        "config": config.to_json(),
        "radial_tables": model.edges.tables,
    }


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("tace-alchemy")
    except PackageNotFoundError:  # run from a folder that was never installed
        own = "unknown"
    return {
        "tace": own,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def read_card(path: Path) -> dict[str, Any]:
    """The card of a model file; of one without, what the model itself tells.

    Raises:
        ModelFileError: missing, damaged, or not a model.
    """
    return load_with_card(path)[1]


def load_with_card(path: Path) -> tuple[Tace, dict[str, Any]]:
    """A model on the CPU and its card."""
    document = read_archive(Path(path))
    model = model_from_document(document, where=str(path)).eval().requires_grad_(False)
    stored = (document.get("extra") or {}).get(CARD)
    if stored is not None and not isinstance(stored, dict):
        raise ModelFileError(f"{path}: its card is not a mapping")
    return model, {**(stored or {}), **facts(model)}


def _hex(values: np.ndarray) -> list[str]:
    return [float(x).hex() for x in np.asarray(values, dtype=np.float64).ravel()]


def _unhex(text: Sequence[str]) -> np.ndarray:
    return np.array([float.fromhex(x) for x in text])


def self_test(model: Tace, atoms: Atoms, fidelity: str) -> dict[str, Any]:
    """One structure with energy (eV) and forces (eV/Å) as the model gives them now."""
    found = predict([model], [atoms], [fidelity])[0]
    inputs = read_inputs(atoms, model.config.inputs)
    return {
        "numbers": [int(z) for z in atoms.numbers],
        "positions_A": _hex(atoms.positions),
        "cell_A": _hex(atoms.cell.array),
        "pbc": [bool(x) for x in atoms.pbc],
        "inputs": {name: _hex(value) for name, value in inputs.items()},
        "fidelity": fidelity,
        "dtype": str(model.dtype).removeprefix("torch."),
        "energy_eV": float(found["energy"]).hex(),
        "forces_eV_per_A": _hex(found["forces"]),
    }


def card_atoms(test: Mapping[str, Any]) -> Atoms:
    """The structure of a self-test, with its conditions."""
    atoms = Atoms(
        test["numbers"],
        positions=_unhex(test["positions_A"]).reshape(-1, 3),
        cell=_unhex(test["cell_A"]).reshape(3, 3),
        pbc=test["pbc"],
    )
    for name, text in test["inputs"].items():
        of_atoms = INPUTS[name].scope == "atom"
        lead = (len(atoms),) if of_atoms else ()
        value = _unhex(text).reshape((*lead, *INPUTS[name].shape))
        (atoms.arrays if of_atoms else atoms.info)[name] = value
    return atoms


def check(model: Tace, card: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Recompute the self-test.

    Returns:
        `passed`, the largest deviations, and the tolerances they were held against.

    Raises:
        ModelFileError: there is no self-test in the card, or it cannot be read.
    """
    test = card.get("self_test")
    if not test:
        raise ModelFileError(f"{where}: the card has no self-test; models written by 'tace train' have one")
    try:
        atoms = card_atoms(test)
        energy = float.fromhex(test["energy_eV"])
        forces = _unhex(test["forces_eV_per_A"]).reshape(-1, 3)
        level, dtype = test["fidelity"], test["dtype"]
        size = max(1.0, float(model.scale_eV.max()))
        per_atom, of_forces = (x * size for x in TOLERANCE[dtype])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelFileError(f"{where}: the self-test in the card cannot be read ({error})") from None
    found = predict([model], [atoms], [level])[0]
    if found["forces"].shape != forces.shape:
        raise ModelFileError(f"{where}: the self-test in the card has forces of another structure")
    off = abs(float(found["energy"]) - energy) / len(atoms)
    off_forces = float(np.abs(found["forces"] - forces).max())
    # the sum of energies of atoms is rounded too: 4 units in the last place of a float64
    per_atom += 4.0 * np.finfo(np.float64).eps * abs(energy)
    passed = math.isfinite(off + off_forces) and off <= per_atom and off_forces <= of_forces
    return {
        "passed": passed,
        "dtype": dtype,
        "energy_off_eV_per_atom": off,
        "energy_tolerance_eV_per_atom": per_atom,
        "forces_off_eV_per_A": off_forces,
        "forces_tolerance_eV_per_A": of_forces,
    }


def example_of(frames: Sequence[Labelled]) -> Labelled | None:
    """The smallest frame with at least two atoms, for the self-test."""
    several = [f for f in frames if len(f.atoms) > 1] or list(frames)
    return min(several, key=lambda f: len(f.atoms), default=None)
