"""Variants of given structures, which stay as they are: strained, rattled, substituted, with vacancies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers

from .base import PolicyError

# symmetric strain tensors whose largest entry is 1; shears are given as tensor components (half the angle)
STRAINS = {
    "hydrostatic": (np.eye(3),),
    "uniaxial": tuple(np.diag(row) for row in np.eye(3)),
    "shear": tuple(
        np.array([[float({i, j} == {a, b}) for j in range(3)] for i in range(3)])
        for a, b in ((1, 2), (0, 2), (0, 1))
    ),
}


def strained(atoms: Atoms, modes: Sequence[str], *, largest: float, steps: int) -> list[Atoms]:
    """Copies at evenly spaced strains from −largest to +largest of every mode; the unstrained once, first.

    Atoms move with their cell. Only strains along periodic axes are made: a slab is not strained along z.

    Args:
        steps: strains of each mode on either side of zero.

    Raises:
        PolicyError: an unknown mode, a strain of 0.5 or more, or a structure that is not periodic.
    """
    unknown = [mode for mode in modes if mode not in STRAINS]
    if unknown or not modes:
        raise PolicyError(f"strain modes are {', '.join(STRAINS)}, not {', '.join(unknown) or 'none'}")
    if not 0 < largest < 0.5:
        raise PolicyError(f"the largest strain is {largest}; it must be above 0 and below 0.5")
    if not atoms.pbc.any():
        raise PolicyError(f"{atoms.get_chemical_formula()} is not periodic: there is no cell to strain")
    frames = [atoms.copy()]
    amounts = [largest * n / steps for n in range(1, steps + 1)]
    along = np.outer(atoms.pbc, atoms.pbc)
    for mode in modes:
        for tensor in STRAINS[mode]:
            here = tensor * along
            if not here.any() or (mode == "shear" and not (here == tensor).all()):
                continue
            for amount in (sign * amount for sign in (-1, 1) for amount in amounts):
                frame = atoms.copy()
                frame.set_cell(atoms.cell.array @ (np.eye(3) + amount * here), scale_atoms=True)
                frames.append(frame)
    return frames


def rattled(
    atoms: Atoms, rng: np.random.Generator, *, stdev_A: float, strain: float = 0.0
) -> Atoms:
    """A copy with Gaussian displacements and, where it is periodic, a Gaussian symmetric strain."""
    frame = atoms.copy()
    if strain > 0 and frame.pbc.any():
        drawn = rng.normal(0.0, strain, (3, 3))
        deformation = np.eye(3) + 0.5 * (drawn + drawn.T)
        frame.set_cell(np.asarray(frame.cell) @ deformation, scale_atoms=True)
    frame.positions += rng.normal(0.0, stdev_A, frame.positions.shape)
    return frame


def substituted(
    atoms: Atoms,
    rng: np.random.Generator,
    *,
    replaced: str,
    by: Sequence[str],
    fraction: tuple[float, float],
) -> Atoms:
    """A copy in which a random share of one element is another; sites and new elements uniform.

    Args:
        fraction: range of the share; it is drawn uniformly, and at least one atom is replaced.

    Raises:
        PolicyError: the element is not there, or the fraction is outside of 0 to 1.
    """
    sites = _sites(atoms, replaced)
    number = _number(len(sites), fraction, rng)
    frame = atoms.copy()
    chosen = rng.choice(sites, number, replace=False)
    frame.numbers[chosen] = [atomic_numbers[by[n]] for n in rng.integers(len(by), size=number)]
    return frame


def with_vacancies(
    atoms: Atoms,
    rng: np.random.Generator,
    *,
    element: str | None,
    fraction: tuple[float, float],
) -> Atoms:
    """A copy without a random share of its atoms, at least one; atoms remain.

    Args:
        element: only atoms of it are taken out; None: of any.

    Raises:
        PolicyError: the element is not there, nothing would remain, or the fraction is outside of 0 to 1.
    """
    sites = np.arange(len(atoms)) if element is None else _sites(atoms, element)
    number = _number(len(sites), fraction, rng)
    if number >= len(atoms):
        raise PolicyError(
            f"{atoms.get_chemical_formula()}: taking out {number} of {len(atoms)} atoms leaves none; "
            "repeat the cell or lower the fraction"
        )
    frame = atoms.copy()
    del frame[np.sort(rng.choice(sites, number, replace=False))]
    return frame


def _sites(atoms: Atoms, symbol: str) -> np.ndarray:
    sites = np.flatnonzero(atoms.symbols == symbol)
    if len(sites) == 0:
        raise PolicyError(
            f"{atoms.get_chemical_formula()} holds no {symbol}, only {', '.join(sorted(set(atoms.symbols)))}"
        )
    return np.asarray(sites)


def _number(sites: int, fraction: tuple[float, float], rng: np.random.Generator) -> int:
    low, high = fraction
    if not 0 < low <= high <= 1:
        raise PolicyError(f"fraction is [{low}, {high}]; needs 0 < least ≤ most ≤ 1")
    return max(1, round(sites * float(rng.uniform(low, high))))
