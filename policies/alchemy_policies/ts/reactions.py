"""Reactions: what a search is to connect, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.geometry import find_mic

from ..base import PolicyError
from .bonds import Bonds, bond_changes
from .surface import fixed_atoms

SAME_CELL_A = 1e-3  # cells of two files differ in their last digits
FIXED_MOVED_A = 0.05


@dataclass(frozen=True)
class Reaction:
    """Two end structures, or one structure from which (or near which) a saddle is looked for.

    With `product`, the path from `reactant` to it is searched, through `guess` if there is one.
    Without, `reactant` is near the saddle already when `is_guess`, and a minimum to leave otherwise.
    """

    name: str
    reactant: Atoms
    product: Atoms | None = None
    guess: Atoms | None = None
    is_guess: bool = False


def checked(reaction: Reaction) -> Reaction:
    """The reaction with its product next to its reactant: whole molecules turned onto it, periodic
    ones by the nearest images.

    Raises:
        PolicyError: ends that no path can join: other atoms, another order, cell or charge.
    """
    start = reaction.reactant
    if len(start) == 0 or not np.isfinite(start.positions).all():
        raise PolicyError(f"reaction '{reaction.name}': the reactant has no atoms, or no finite positions")
    fixed = fixed_atoms(start)
    if fixed.all():
        raise PolicyError(f"reaction '{reaction.name}': every atom is fixed, nothing can react")
    others = {"product": reaction.product, "guess": reaction.guess}
    moved = {}
    for what, other in others.items():
        if other is not None:
            _refuse_other_atoms(reaction.name, start, other, what)
            moved[what] = _beside(start, other, fixed, f"reaction '{reaction.name}': the {what}")
    product = moved.get("product")
    if product is not None and np.linalg.norm(product.positions - start.positions, axis=1).max() < 0.05:
        raise PolicyError(
            f"reaction '{reaction.name}': reactant and product are the same structure; give two minima"
        )
    return Reaction(reaction.name, start.copy(), product, moved.get("guess"), reaction.is_guess)


def _refuse_other_atoms(name: str, start: Atoms, other: Atoms, what: str) -> None:
    """Composition, order, cell and electronic state must be those of the reactant."""
    here = f"reaction '{name}': the {what}"
    if sorted(start.numbers) != sorted(other.numbers):
        raise PolicyError(
            f"{here} is {other.get_chemical_formula()}, the reactant "
            f"{start.get_chemical_formula()}; a path keeps all its atoms"
        )
    if (start.numbers != other.numbers).any():
        first = int(np.flatnonzero(start.numbers != other.numbers)[0])
        raise PolicyError(
            f"{here} lists its atoms in another order (atom {first} is {other.symbols[first]}, in the "
            f"reactant {start.symbols[first]}); renumber one so that each atom keeps its place"
        )
    if (start.pbc != other.pbc).any() or not np.allclose(start.cell, other.cell, atol=SAME_CELL_A):
        raise PolicyError(f"{here} has another cell or periodicity than the reactant; use the same")
    for key in ("charge", "multiplicity"):
        mine, theirs = start.info.get(key), other.info.get(key)
        if mine is not None and theirs is not None and mine != theirs:
            raise PolicyError(f"{here} has {key} {theirs}, the reactant {mine}; a path keeps it")


def _beside(start: Atoms, other: Atoms, fixed: np.ndarray, what: str) -> Atoms:
    near = start.copy()
    if start.pbc.any():
        step, _ = find_mic(other.positions - start.positions, start.cell, start.pbc)
        near.positions = start.positions + step
    else:
        near.positions = other.positions.copy()
        if not fixed.any() and len(start) > 1:
            # by mass: heavy atoms stay and a migrating hydrogen moves, not the other way round
            x = superposed(near.positions, start.positions, start.get_masses())
            near.set_constraint()
            near.positions = x
            near.set_constraint(start.constraints)
    gone = np.linalg.norm(near.positions - start.positions, axis=1)[fixed].max(initial=0.0)
    if gone > FIXED_MOVED_A:
        raise PolicyError(
            f"{what} has a fixed atom {gone:.2f} Å from where the reactant has it; fixed atoms do not move"
        )
    x = near.positions.copy()
    x[fixed] = start.positions[fixed]
    near.set_constraint()
    near.positions = x
    near.set_constraint(start.constraints)
    return near


def reactions_from_frames(frames: Sequence[Atoms], *, hold: int = 3, name: str = "md") -> list[Reaction]:
    """A reaction for every lasting bond change along the frames of one trajectory.

    The same change of the same atoms is taken once, forwards or backwards. The ends are frames of the
    trajectory; a search relaxes them first.
    """
    seen: set[frozenset[Bonds]] = set()
    found = []
    for change in bond_changes(frames, hold=hold):
        key = frozenset((change.formed, change.broken))
        if key in seen:
            continue
        seen.add(key)
        ends = frames[change.before], frames[change.after]
        found.append(Reaction(f"{name}-{change.before}-{change.after}", *(_plain(a) for a in ends)))
    return found


def _plain(atoms: Atoms) -> Atoms:
    copy = atoms.copy()
    copy.calc = None
    if "momenta" in copy.arrays:
        copy.set_momenta(None)
    return copy


def distance_between(one: Atoms, other: Atoms) -> float:
    """Largest distance of any atom from its namesake, Å, after the best superposition."""
    if one.pbc.any():
        step, _ = find_mic(one.positions - other.positions, one.cell, one.pbc)
        if not (fixed_atoms(one).any() or fixed_atoms(other).any()):
            step = step - step.mean(0)
        return float(np.linalg.norm(step, axis=1).max(initial=0.0))
    x = superposed(one.positions, other.positions, np.ones(len(one)))
    return float(np.linalg.norm(x - other.positions, axis=1).max(initial=0.0))


def superposed(moved_A: np.ndarray, onto_A: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The first [A,3], turned and shifted onto the second; Kabsch, Acta Cryst. A 32, 922 (1976)."""
    share = (weights / weights.sum())[:, None]
    here, there = (share * moved_A).sum(0), (share * onto_A).sum(0)
    u, _, vt = np.linalg.svd((moved_A - here).T @ (share * (onto_A - there)))
    proper = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    return np.asarray((moved_A - here) @ (u @ proper @ vt) + there)
