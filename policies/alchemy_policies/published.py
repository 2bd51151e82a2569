"""The published REICO generator (HuGroup-shanghaiTech/REICO, `REICO/randomGS.py`), rule for rule, seeded.

Everything is drawn at random and kept if it happens to fit; otherwise everything is drawn again:

1. each element's number uniform in its range (of the adsorbate kind: drawn once and kept);
2. edges a, b, c uniform in [(r₁ V₀)^0.33, (r₂ V₀)^0.34] until r₁ V₀ < a b c < r₂ V₀, at right angles;
3. positions uniform in the cell;
4. kept if the nearest neighbour of every atom is farther than 1.5 and closer than 3 Å, minimum images only.

Then the vacuum: surfaces and adsorbates get it on both sides along z, clusters on all sides; all stay
flagged periodic. In the adsorbate kind the lowest atoms become the base, the others the adsorbate.

What follows from these rules, and is kept because it is what was published: small cells are accepted far
more often (48 % at 4 atoms, 0.4 % at 20), so the sample is biased towards them; vacuum is added after the
test, so clusters and surfaces hold atoms without a neighbour; an atom's own image is never looked at.
Differs: the original takes its randomness from the operating system, once per number, and stops with an
error at a structure of one atom, which is drawn again here.
"""

from __future__ import annotations

import numpy as np
from ase import Atoms

from .base import PolicyError
from .recipes import Born, Recipe, expand, independent_composition

MOST_TRIALS = 200_000
MOST_PAIRS = 40_000_000  # of all trials together, some seconds: 70 000 trials at 24 atoms, of which 70 fit


def publish(recipe: Recipe, kind: str, rng: np.random.Generator) -> Born:
    """A structure of that kind.

    Raises:
        PolicyError: none of `MOST_TRIALS` fits, or of as many as have `MOST_PAIRS` of atoms.
    """
    split = None
    composition: dict[str, int] | None = None
    if kind == "adsorbate":
        base, on_it = _twice_drawn(recipe, rng)
        composition, split = {**base, **on_it}, sum(base.values())
    pairs = trial = 0
    while trial < MOST_TRIALS and pairs < MOST_PAIRS:
        trial += 1
        drawn = composition or independent_composition(recipe.mix, rng)
        numbers = expand(drawn)
        if not recipe.atoms[0] <= len(numbers) <= recipe.atoms[1]:
            continue
        pairs += len(numbers) ** 2
        edges = _edges(recipe, len(numbers), rng)
        inside = rng.uniform(0, 1, (len(numbers), 3))
        nearest = _nearest(inside, edges)
        if recipe.nearest_A[0] < nearest.min() and nearest.max() < recipe.nearest_A[1]:
            atoms = Atoms(numbers, scaled_positions=inside, cell=edges, pbc=True)
            return Born(_finished(atoms, kind, recipe, split=split, rng=rng), kind, trial, split or 0)
    raise PolicyError(
        f"method reico: none of {trial} random structures of {recipe.mix} has every nearest "
        f"neighbour at {recipe.nearest_A[0]:g} to {recipe.nearest_A[1]:g} Å; it is made for 4 to 20 atoms: "
        "allow fewer, widen nearest_A, or use method grow"
    )


def _twice_drawn(recipe: Recipe, rng: np.random.Generator) -> tuple[dict[str, int], dict[str, int]]:
    for _ in range(1000):
        base = independent_composition(recipe.mix, rng)
        on_it = independent_composition(recipe.adsorbate, rng)
        if recipe.atoms[0] <= sum(base.values()) + sum(on_it.values()) <= recipe.atoms[1]:
            return base, on_it
    raise PolicyError(f"base and adsorbate together hardly ever have {recipe.atoms} atoms; widen 'atoms'")


def _edges(recipe: Recipe, atoms: int, rng: np.random.Generator) -> np.ndarray:
    v0 = recipe.sphere_A3 * atoms
    least, most = recipe.volume_ratio[0] * v0, recipe.volume_ratio[1] * v0
    for _ in range(10_000):
        edges = rng.uniform(least**0.33, most**0.34, 3)
        if least < edges.prod() < most:
            return np.asarray(edges)
    raise PolicyError(
        f"volume_ratio {list(recipe.volume_ratio)} is too narrow for random edges; widen it, "
        "or use method grow"
    )


def _nearest(inside: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Distance [A] to the nearest other atom, minimum images of a box."""
    apart = inside[:, None] - inside[None]
    apart = (apart - apart.round()) * edges
    square = (apart**2).sum(-1)
    np.fill_diagonal(square, np.inf)
    return np.asarray(np.sqrt(square.min(1)))


def _finished(
    atoms: Atoms, kind: str, recipe: Recipe, *, split: int | None, rng: np.random.Generator
) -> Atoms:
    if kind in ("surface", "adsorbate") and recipe.vacuum_A > 0:
        atoms.center(recipe.vacuum_A, axis=2)
    if kind == "cluster":
        atoms.center(recipe.vacuum_A)
    if split is not None:
        order = np.argsort(atoms.positions[:, 2], kind="stable")
        low, high = order[:split], order[split:]
        places = np.concatenate([rng.permutation(low), rng.permutation(high)])
        atoms.positions = atoms.positions[places]
    return atoms
