"""What a set of structures looks like in numbers: distances, densities, forces.

The published REICO set has a force RMS of 2.498 eV/Å (the scale stored in its released model); random
structures optimised for a few steps should come near it, thermal ones lie several times lower.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii

from .guards import Guards, Reference, close_pairs

LOOKED_A = 4.0  # an atom without a neighbour within this counts as having none
ALONE_A = 3.0  # the published window's end: an atom without one here is isolated
PUBLISHED_FORCE_RMS_eV_per_A = 2.498
PERCENTILES = (5, 50, 95)


def nearest_neighbours(atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """Distance [A] to the nearest atom, images included (its own too), and the same / sum of covalent radii.

    Infinity where none is within 4 Å.
    """
    reference = Reference.of(atoms, Guards())
    i, j, distance = close_pairs(reference, atoms.positions, LOOKED_A)
    radii = covalent_radii[atoms.numbers]
    nearest, ratio = np.full(len(atoms), np.inf), np.full(len(atoms), np.inf)
    np.minimum.at(nearest, i, distance)
    np.minimum.at(ratio, i, distance / (radii[i] + radii[j]))
    steps = np.array(np.meshgrid(*[np.arange(-2, 3)] * 3)).reshape(3, -1).T
    steps = steps[(steps[:, ~reference.pbc] == 0).all(1) & steps.any(1)]
    if len(steps):
        own = float(np.linalg.norm(steps @ reference.cell, axis=1).min())
        if own < LOOKED_A:
            nearest = np.minimum(nearest, own)
            ratio = np.minimum(ratio, own / (2 * radii))
    return nearest, ratio


def health(
    frames: Sequence[Atoms], forces_eV_per_A: Sequence[np.ndarray | None] | None = None
) -> dict[str, Any]:
    """A JSON document; None where a number does not exist.

    Args:
        forces_eV_per_A: [A,3] of each frame, None where unknown.
    """
    if not frames:
        return {"structures": 0}
    looked = [nearest_neighbours(atoms) for atoms in frames]
    nearest = np.concatenate([near for near, _ in looked])
    found = np.isfinite(nearest)
    sizes = np.array([len(atoms) for atoms in frames])
    document: dict[str, Any] = {
        "structures": len(frames),
        "atoms": {"least": int(sizes.min()), "mean": float(sizes.mean()), "most": int(sizes.max())},
        "elements": _elements(frames),
        "nearest_A": _distribution(nearest[found]),
        "least_ratio": _finite(min(float(ratio.min()) for _, ratio in looked)),
        "isolated_atoms": float(np.mean(nearest > ALONE_A)),
        "structures_with_isolated_atoms": float(np.mean([(near > ALONE_A).any() for near, _ in looked])),
        "volume_A3_per_atom": _distribution(  # of periodic cells, vacuum included
            np.array([a.get_volume() / len(a) for a in frames if a.pbc.all()])
        ),
    }
    known = [f for f in forces_eV_per_A or () if f is not None and np.isfinite(f).all()]
    if known:
        document["forces"] = _forces(np.concatenate(known))
        document["forces"]["structures"] = len(known)
    return document


def _forces(forces: np.ndarray) -> dict[str, Any]:
    sizes = np.linalg.norm(forces, axis=1)
    return {
        "rms_eV_per_A": float(np.sqrt((forces**2).mean())),
        "largest_eV_per_A": float(sizes.max()),
        "share_above_50_eV_per_A": float(np.mean(sizes > 50.0)),
    }


def _elements(frames: Sequence[Atoms]) -> dict[str, float]:
    """Share of atoms, most frequent first."""
    counted = Counter(int(z) for atoms in frames for z in atoms.numbers)
    total = sum(counted.values())
    order = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    return {chemical_symbols[z]: n / total for z, n in order}


def _distribution(values: np.ndarray) -> dict[str, float] | None:
    if len(values) == 0:
        return None
    percentiles = np.percentile(values, PERCENTILES)
    named = {f"p{p}": float(v) for p, v in zip(PERCENTILES, percentiles, strict=True)}
    return {"least": float(values.min()), **named, "most": float(values.max()), "mean": float(values.mean())}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
