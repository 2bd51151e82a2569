"""Random structures that grow atom by atom: ours, with the distances and densities of the published ones.

The composition is drawn once, uniformly, and never drawn again; then a cell; then each atom goes to a random
distance (within the window) and direction from a random atom that is there, if nothing is too close, all
periodic images and its own included. So every structure is accepted, every atom has its nearest neighbour
within the window, also beside a vacuum, and no composition is favoured. Species are placed in random order.

Where the published generator has right angles and periodic clusters, here cells are skewed and clusters are
not periodic.
"""

from __future__ import annotations

import itertools

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from ase.geometry import cellpar_to_cell

from .base import PolicyError
from .recipes import Born, Recipe, draw_composition, expand, sums

MOST_RESTARTS = 50  # hardly ever one is needed; see the check of densities in `Recipe`
BATCH, BATCHES = 16, 60  # places tried at once, and how often, before the structure starts anew
SHAPE = 0.7  # least ratio of two edges before they are scaled to the volume


class _StuckError(Exception):
    """No place was found for an atom."""


def grow(
    recipe: Recipe, kind: str, rng: np.random.Generator, *, base: Atoms | None = None
) -> Born:
    """A structure of that kind.

    Args:
        base: the slab under an adsorbate; None grows one. Its atoms come first and stay in place.

    Raises:
        PolicyError: no structure of these densities and distances could be finished.
    """
    on_it, under = _compositions(recipe, kind, rng, on_base=base is not None)
    for begun in range(1, MOST_RESTARTS + 1):
        try:
            if base is not None and kind == "adsorbate":
                return Born(_covered(base, expand(on_it), recipe, rng), kind, begun, len(base))
            assert under is not None
            atoms = _grown(recipe, kind, expand(under), rng)
            below = len(atoms) if on_it else 0
            if on_it:
                atoms = _covered(atoms, expand(on_it), recipe, rng)
            return Born(_with_vacuum(atoms, kind, recipe), kind, begun, below)
        except _StuckError:
            continue
    raise PolicyError(
        f"no structure of {recipe.mix} could be finished in {MOST_RESTARTS} attempts: atoms at least "
        f"{recipe.nearest_A[0]:g} Å apart do not fit; raise volume_ratio or lower pair_factor"
    )


def _compositions(
    recipe: Recipe, kind: str, rng: np.random.Generator, *, on_base: bool
) -> tuple[dict[str, int], dict[str, int] | None]:
    """What lies above (nothing but for adsorbates), and what is grown below (None: the base is given)."""
    least, most = recipe.atoms
    if kind != "adsorbate":
        return {}, draw_composition(recipe.mix, rng, atoms=recipe.atoms)
    if on_base:
        return draw_composition(recipe.adsorbate, rng, atoms=(1, most)), None
    low, high = sums(recipe.mix)
    low = max(1, low)
    above = draw_composition(recipe.adsorbate, rng, atoms=(max(1, least - high), most - low))
    there = sum(above.values())
    return above, draw_composition(recipe.mix, rng, atoms=(max(low, least - there), most - there))


def _grown(recipe: Recipe, kind: str, numbers: np.ndarray, rng: np.random.Generator) -> Atoms:
    periodic = {"bulk": (1, 1, 1), "cluster": (0, 0, 0)}.get(kind, (1, 1, 0))
    pbc = np.array(periodic, dtype=bool)
    cell = _cell(recipe, numbers, pbc, rng)
    order = rng.permutation(len(numbers))
    positions = np.empty((len(numbers), 3))
    first = rng.uniform(size=3) if pbc.any() else np.full(3, 0.5)
    positions[0] = first @ cell
    for n in range(1, len(order)):
        placed = numbers[order[:n]]
        lower = recipe.closest_A(placed, int(numbers[order[n]]))
        positions[n] = _place(
            positions[:n], lower, recipe.nearest_A[1], cell=cell, pbc=pbc, rng=rng, floor_A=None
        )
    where = np.empty_like(positions)
    where[order] = positions
    return Atoms(numbers, positions=where, cell=cell, pbc=pbc)


def _covered(base: Atoms, numbers: np.ndarray, recipe: Recipe, rng: np.random.Generator) -> Atoms:
    """The base with atoms above all of its own, along z; its cell grows where the vacuum got too thin."""
    cell, positions = base.cell.array.copy(), base.positions.copy()
    there = base.numbers
    pbc = np.array([base.pbc[0], base.pbc[1], False])
    top, gap = positions[:, 2].max(), cell[2, 2] - np.ptp(positions[:, 2])
    for n in rng.permutation(len(numbers)):
        lower = recipe.closest_A(there, int(numbers[n]))
        new = _place(
            positions, lower, recipe.nearest_A[1], cell=cell, pbc=pbc, rng=rng, floor_A=float(top)
        )
        positions, there = np.vstack([positions, new]), np.append(there, numbers[n])
    kept = len(base)
    by_element = kept + np.argsort([list(numbers).index(z) for z in there[kept:]], kind="stable")
    atoms = base.copy()
    atoms += Atoms(there[by_element], positions=positions[by_element])
    if base.pbc[2]:
        needed = min(gap, 2 * recipe.vacuum_A) + np.ptp(positions[:, 2])
        cell[2] *= max(1.0, needed / cell[2, 2])
        atoms.set_cell(cell)
    return atoms


def _place(
    placed: np.ndarray,
    lower: np.ndarray,
    upper: float,
    *,
    cell: np.ndarray,
    pbc: np.ndarray,
    rng: np.random.Generator,
    floor_A: float | None,
) -> np.ndarray:
    """A place [3] within `upper` of an atom that is there and beyond `lower` [A] of each of them.

    Args:
        floor_A: the place is above this z, and may be as high as it likes; None: inside the cell.
    """
    inverse = np.linalg.inv(cell)
    shifts = _shifts(cell, pbc, float(lower.max())) @ cell
    parents = np.arange(len(placed))
    if floor_A is not None:
        parents = np.flatnonzero(placed[:, 2] > floor_A - upper)
    for _ in range(BATCHES):
        near = rng.choice(parents, BATCH)
        direction = rng.normal(size=(BATCH, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        # uniform in the shell between the least distance and the window's end
        cubes = lower[near] ** 3
        radius = np.cbrt(cubes + (upper**3 - cubes) * rng.uniform(size=BATCH))
        places = placed[near] + radius[:, None] * direction
        inside = places @ inverse
        if floor_A is None:
            fits = ((inside[:, ~pbc] >= 0) & (inside[:, ~pbc] <= 1)).all(1)
        else:
            fits = places[:, 2] > floor_A
        inside = np.where(pbc, inside % 1.0, inside)
        places = inside @ cell
        apart = inside[:, None] - (placed @ inverse)[None]
        apart = np.where(pbc, apart - apart.round(), apart) @ cell
        square = ((apart[:, :, None] + shifts) ** 2).sum(-1).min(2)
        fits &= (square > lower**2).all(1)
        if fits.any():
            return np.asarray(places[np.argmax(fits)])
    raise _StuckError


def _shifts(cell: np.ndarray, pbc: np.ndarray, reach: float) -> np.ndarray:
    """Lattice shifts [n,3], in cells, that can bring a pair of wrapped atoms within `reach`.

    Wrapped differences are within half a cell along each axis, so an image m cells away is at least
    (m − ½) heights off.
    """
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    most = np.where(pbc, np.floor(reach / heights + 0.5), 0).astype(int)
    return np.array(list(itertools.product(*(range(-n, n + 1) for n in most))), dtype=float)


def _cell(
    recipe: Recipe, numbers: np.ndarray, pbc: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """A cell [3,3] of a uniformly drawn volume in which no atom is too close to its own images."""
    v0 = recipe.sphere_A3 * len(numbers)
    present = {*numbers.tolist(), *(atomic_numbers[symbol] for symbol in recipe.adsorbate)}
    own = max(float(recipe.closest_A(np.array([z]), z)[0]) for z in present)
    low, high = recipe.angles_deg
    for _ in range(1000):
        volume = v0 * rng.uniform(*recipe.volume_ratio)
        lengths = rng.uniform(SHAPE, 1, 3)
        angles = rng.uniform(low, high, 3) if pbc.all() else np.array([90.0, 90.0, rng.uniform(low, high)])
        if not pbc.any():
            angles[:] = 90.0
        shape = cellpar_to_cell([*lengths, *angles])
        size = abs(np.linalg.det(shape))
        if not size > 0.3 * lengths.prod():  # also NaN: three angles that close no cell
            continue
        cell = np.asarray(shape * (volume / size) ** (1 / 3))
        steps = np.array([s for s in itertools.product((-2, -1, 0, 1, 2), repeat=3) if any(s)])
        steps = steps[(steps[:, ~pbc] == 0).all(1)]
        if not len(steps) or np.linalg.norm(steps @ cell, axis=1).min() > own:
            return cell
    raise _StuckError


def _with_vacuum(atoms: Atoms, kind: str, recipe: Recipe) -> Atoms:
    if kind == "cluster":
        atoms.center(recipe.vacuum_A)
    elif kind in ("surface", "adsorbate"):
        atoms.pbc = True  # as plane-wave codes want it
        atoms.center(recipe.vacuum_A, axis=2)
    return atoms
