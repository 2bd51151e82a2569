"""What random structures are made of: ranges of compositions, windows of distances and densities.

The numbers are those of the published REICO generator (HuGroup-shanghaiTech/REICO, Nat. Catal. 8, 891,
2025, doi 10.1038/s41929-025-01398-3): every atom counts as a sphere of 1.3 Å, whose volumes add up to V₀; a
cell has 1.2 to 5 V₀ (11 to 46 Å³ per atom), and each atom its nearest neighbour at 1.5 to 3 Å.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii

from .base import PolicyError

KINDS = ("bulk", "surface", "adsorbate", "cluster")
METHODS = ("grow", "reico")
DENSEST = 0.3  # of the cell in spheres that may not overlap; random placing one by one jams at 0.38

Ranges = Mapping[str, tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Which structures may come; both ends of every range are included."""

    mix: Ranges  # element -> fewest and most atoms; of the adsorbate kind: of the base
    adsorbate: Ranges = field(default_factory=dict)  # likewise, of what lies on the base
    atoms: tuple[int, int] = (2, 200)  # in all
    nearest_A: tuple[float, float] = (1.5, 3.0)  # window of each atom's nearest neighbour
    volume_ratio: tuple[float, float] = (1.2, 5.0)  # volume of the cell / V₀
    radius_A: float = 1.3  # of the spheres of V₀
    vacuum_A: float = 8.0  # on each side, where there is one
    angles_deg: tuple[float, float] = (60.0, 120.0)  # method grow; the published one has 90°
    # method grow: no pair below this × the sum of covalent radii either. Matters from K-K on; the gate
    # of a campaign refuses what is closer.
    pair_factor: float = 0.5

    def __post_init__(self) -> None:
        for name in ("mix", "adsorbate"):
            ranges = {k: (int(v[0]), int(v[1])) for k, v in getattr(self, name).items()}
            object.__setattr__(self, name, ranges)
            _check_ranges(name, ranges)
        for name in ("atoms", "nearest_A", "volume_ratio", "angles_deg"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise PolicyError(f"{name} is [{low}, {high}]: needs 0 < least ≤ most")
        if not self.nearest_A[0] < self.nearest_A[1]:
            raise PolicyError(f"nearest_A is {list(self.nearest_A)}: an empty window of distances")
        if not self.mix and not self.adsorbate:
            raise PolicyError("mix is empty; name elements with their fewest and most atoms: {Pd: [0, 6]}")
        for name, least in (("radius_A", 0.0), ("vacuum_A", 0.0), ("pair_factor", -1.0)):
            if not getattr(self, name) > least:
                raise PolicyError(f"{name} is {getattr(self, name)}, must be above 0")
        if not (self.angles_deg[0] >= 45 and self.angles_deg[1] <= 135):
            raise PolicyError(f"angles_deg is {list(self.angles_deg)}: cells need 45° to 135°")
        if self.atoms[0] < 2:
            raise PolicyError(
                f"atoms is {list(self.atoms)}: one atom has no neighbour; ask for two or more"
            )
        self._check_density()

    def _check_density(self) -> None:
        per_atom = self.volume_ratio[0] * self.sphere_A3
        closest = self.nearest_A[0]
        filled = math.pi / 6 * closest**3 / per_atom
        if filled > DENSEST:
            needed = math.pi / 6 * closest**3 / DENSEST / self.sphere_A3
            raise PolicyError(
                f"atoms at least {closest:g} Å apart fill {filled:.0%} of a cell of {per_atom:.3g} Å³ per "
                f"atom, and random placing ends at {DENSEST:.0%}; raise volume_ratio to {needed:.2g} "
                "or more, or lower the shortest distance"
            )

    @property
    def sphere_A3(self) -> float:
        """Volume that counts for one atom."""
        return 4 / 3 * math.pi * self.radius_A**3

    def closest_A(self, numbers: np.ndarray, other: int) -> np.ndarray:
        """Least distance [A] of an atom `other` to atoms of `numbers`, for the method grow."""
        radii = covalent_radii[numbers] + covalent_radii[other]
        return np.maximum(self.nearest_A[0], self.pair_factor * radii)


@dataclass(frozen=True)
class Born:
    """A random structure."""

    atoms: Atoms
    kind: str
    trials: int  # structures begun (grow) or drawn (reico) until this one was accepted
    base: int  # atoms, which come first, of the slab under an adsorbate; 0 otherwise


def _check_ranges(name: str, ranges: Ranges) -> None:
    for symbol, (low, high) in ranges.items():
        if symbol not in atomic_numbers or atomic_numbers[symbol] == 0:
            raise PolicyError(f"{name}: '{symbol}' is no element; write symbols such as Pd or O")
        if not 0 <= low <= high:
            raise PolicyError(f"{name}.{symbol} is [{low}, {high}]: needs 0 ≤ fewest ≤ most")
    if ranges and sums(ranges)[1] == 0:
        raise PolicyError(f"{name} allows no atom at all; raise the upper end of an element")


def sums(ranges: Ranges) -> tuple[int, int]:
    """Fewest and most atoms of all elements together."""
    return sum(low for low, _ in ranges.values()), sum(high for _, high in ranges.values())


def draw_composition(
    ranges: Ranges, rng: np.random.Generator, *, atoms: tuple[int, int]
) -> dict[str, int]:
    """One of the allowed compositions, each as likely as any other.

    Element by element, with the number of ways to complete a total as weight: nothing is rejected,
    however narrow `atoms` is. Without that limit each element's number is uniform.

    Raises:
        PolicyError: no composition has a total within `atoms`.
    """
    bounds = list(ranges.values())
    ways = [np.zeros(sums(ranges)[1] + 1) for _ in range(len(bounds) + 1)]
    ways[-1][0] = 1.0  # ways[k][t]: of elements k, k+1, … to make t atoms
    for k in range(len(bounds) - 1, -1, -1):
        low, high = bounds[k]
        for n in range(low, high + 1):
            ways[k][n:] += ways[k + 1][: len(ways[k]) - n]
    totals = ways[0].copy()
    totals[: atoms[0]] = 0
    totals[atoms[1] + 1 :] = 0
    if not totals.sum() > 0:
        raise PolicyError(
            f"no composition of {_text(ranges)} has {atoms[0]} to {atoms[1]} atoms; widen a range"
        )
    left = int(rng.choice(len(totals), p=totals / totals.sum()))
    found = {}
    for k, symbol in enumerate(ranges):
        low, high = bounds[k]
        options = np.arange(low, min(high, left) + 1)
        weights = ways[k + 1][left - options]
        number = int(rng.choice(options, p=weights / weights.sum()))
        left -= number
        if number:
            found[symbol] = number
    return found


def independent_composition(ranges: Ranges, rng: np.random.Generator) -> dict[str, int]:
    """Each element's number uniform in its range, whatever the total: the published rule."""
    drawn = {symbol: int(rng.integers(low, high + 1)) for symbol, (low, high) in ranges.items()}
    return {symbol: number for symbol, number in drawn.items() if number}


def shares(weights: Mapping[str, float], count: int) -> dict[str, int]:
    """`count` divided by weight, exactly: largest remainders, earlier names first."""
    total = sum(weights.values())
    exact = {name: count * weight / total for name, weight in weights.items()}
    found = {name: int(share) for name, share in exact.items()}
    order = sorted(exact, key=lambda name: -(exact[name] - found[name]))
    for name in order[: count - sum(found.values())]:
        found[name] += 1
    return found


def expand(composition: Mapping[str, int]) -> np.ndarray:
    """Atomic numbers [A], element by element."""
    return np.array([atomic_numbers[s] for s, n in composition.items() for _ in range(n)], dtype=int)


def check_kinds(
    kinds: Mapping[str, float], recipe: Recipe, method: str, *, on_starts: bool = False
) -> None:
    """Kinds, method and recipe fit together.

    Args:
        on_starts: adsorbates lie on structures that are there; nothing of `mix` is below them.

    Raises:
        PolicyError: what does not, and what would.
    """
    if method not in METHODS:
        raise PolicyError(f"method is 'grow' or 'reico', not {method!r}")
    unknown: Sequence[str] = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise PolicyError(f"kinds names {unknown[0]!r}; kinds are {', '.join(KINDS)}")
    if not kinds or not all(weight >= 0 for weight in kinds.values()) or not sum(kinds.values()) > 0:
        raise PolicyError(f"kinds is {dict(kinds)}: give one or more a weight above 0")
    wanted = kinds.get("adsorbate", 0) > 0
    if wanted and not recipe.adsorbate:
        raise PolicyError("the kind adsorbate needs 'adsorbate': elements with their fewest and most atoms")
    if recipe.adsorbate and not wanted:
        raise PolicyError("'adsorbate' has no effect: no kind is adsorbate; add it to kinds, or leave it out")
    if any(weight > 0 for kind, weight in kinds.items() if kind != "adsorbate"):
        _check_numbers("mix", [recipe.mix], recipe.atoms)
    if wanted and not on_starts:
        _check_numbers("mix", [recipe.mix], (1, recipe.atoms[1]))
        _check_numbers("mix with adsorbate", [recipe.mix, recipe.adsorbate], recipe.atoms)
    both = sorted(set(recipe.mix) & set(recipe.adsorbate))
    if wanted and method == "reico" and both:
        raise PolicyError(
            f"{', '.join(both)} is in mix and in adsorbate, which the published generator mixes up; "
            "use method grow, or other elements"
        )


def _check_numbers(what: str, ranges: Sequence[Ranges], atoms: tuple[int, int]) -> None:
    low, high = (sum(end) for end in zip(*(sums(r) for r in ranges), strict=True))
    if high < atoms[0] or low > atoms[1]:
        raise PolicyError(
            f"{what} gives {low} to {high} atoms, and atoms asks for {atoms[0]} to {atoms[1]}: "
            "impossible; widen one"
        )


def _text(ranges: Ranges) -> str:
    return ", ".join(f"{symbol} {low}-{high}" for symbol, (low, high) in ranges.items())
