"""Bond graphs: which atoms are bonded, whether two structures are the same molecule, what MD broke.

Two atoms are bonded when they are closer than `BONDED` × the sum of their covalent radii (Cordero et
al. 2008, as ASE has them), through any periodic image. Graphs are compared in two ways: with the
atoms' numbers (`bonds`), as along one path, and without (`isomorphic`), as between molecules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from ..guards import Guards, Reference, close_pairs

BONDED = 1.25  # C-C 1.9 Å, C-H 1.3, O-H 1.2, H-H 0.78, Al-Al 3.0
MOST_TRIES = 100_000
FORMED, BROKEN = 1.2, 1.6  # in MD: a stretched bond that swings back has not reacted

Bonds = frozenset[tuple[int, int]]


def bonds(atoms: Atoms, factor: float = BONDED) -> Bonds:
    """Pairs (i, j), i < j, of bonded atoms; one pair however many images are bonded."""
    ratios = _ratios(atoms, factor)
    return frozenset(pair for pair, ratio in ratios.items() if ratio < factor)


def same_bonds(one: Atoms, other: Atoms) -> bool:
    """Whether no bond of one is broken in the other; what is neither in one of them counts as either."""
    here, there = _ratios(one, BROKEN), _ratios(other, BROKEN)
    lost = [pair for pair, ratio in here.items() if ratio < FORMED and pair not in there]
    lost += [pair for pair, ratio in there.items() if ratio < FORMED and pair not in here]
    return not lost


def _ratios(atoms: Atoms, reach: float) -> dict[tuple[int, int], float]:
    """Shortest distance in units of the sum of covalent radii, of all pairs within `reach`."""
    radii = covalent_radii[atoms.numbers]
    if len(radii) < 2:
        return {}
    reference = Reference.of(atoms, Guards())
    i, j, distance = close_pairs(reference, atoms.positions, 2 * reach * float(radii.max()))
    found: dict[tuple[int, int], float] = {}
    ratios = distance / (radii[i] + radii[j])
    for a, b, ratio in zip(i.tolist(), j.tolist(), ratios.tolist(), strict=True):
        if a < b and ratio < found.get((a, b), reach):
            found[a, b] = ratio
    return found


def fragments(count: int, edges: Bonds) -> np.ndarray:
    """Number of the molecule that each of `count` atoms belongs to, [A]."""
    rows = [a for a, _ in edges]
    columns = [b for _, b in edges]
    graph = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1])


def isomorphic(one: Atoms, other: Atoms) -> bool:
    """Whether the two are the same molecules, whatever the order of their atoms.

    Colours of atoms are refined by those of their neighbours (Weisfeiler & Leman 1968); what the
    colours leave open is searched by backtracking, for `MOST_TRIES` steps: then they count as different,
    which only large and highly symmetric graphs that are not the same come to. Mirror images are the same.
    """
    if sorted(one.numbers) != sorted(other.numbers):
        return False
    near = [_neighbours(len(a), bonds(a)) for a in (one, other)]
    colours = _refined([list(one.numbers), list(other.numbers)], near)
    if sorted(colours[0]) != sorted(colours[1]):
        return False
    # rare colours first: they leave the least to try
    order = sorted(range(len(one)), key=lambda i: (colours[0].count(colours[0][i]), colours[0][i], i))
    return _match(order, {}, colours, near)


def _neighbours(count: int, edges: Bonds) -> list[set[int]]:
    near: list[set[int]] = [set() for _ in range(count)]
    for a, b in edges:
        near[a].add(b)
        near[b].add(a)
    return near


def _refined(colours: list[list[int]], near: Sequence[Sequence[set[int]]]) -> list[list[int]]:
    """Colours that both graphs understand, until they tell no more atoms apart."""
    kinds = -1
    while True:
        rich = [
            [(own[i], tuple(sorted(own[j] for j in around[i]))) for i in range(len(own))]
            for own, around in zip(colours, near, strict=True)
        ]
        names = {colour: n for n, colour in enumerate(sorted(set(rich[0]) | set(rich[1])))}
        colours = [[names[c] for c in own] for own in rich]
        if len(names) == kinds:
            return colours
        kinds = len(names)


def _match(
    order: Sequence[int],
    chosen: dict[int, int],
    colours: Sequence[Sequence[int]],
    near: Sequence[Sequence[set[int]]],
) -> bool:
    stack = [iter(_options(order[0], chosen, colours, near))] if order else []
    for _ in range(MOST_TRIES):
        if not stack:
            break
        depth = len(stack) - 1
        chosen.pop(order[depth], None)
        partner = next(stack[-1], None)
        if partner is None:
            stack.pop()
            continue
        chosen[order[depth]] = partner
        if depth + 1 == len(order):
            return True
        stack.append(iter(_options(order[depth + 1], chosen, colours, near)))
    return not order


def _options(
    i: int,
    chosen: Mapping[int, int],
    colours: Sequence[Sequence[int]],
    near: Sequence[Sequence[set[int]]],
) -> list[int]:
    used = set(chosen.values())
    wanted = {chosen[k] for k in near[0][i] if k in chosen}
    return [
        j
        for j, colour in enumerate(colours[1])
        if colour == colours[0][i] and j not in used and (near[1][j] & used) == wanted
    ]


@dataclass(frozen=True)
class BondChange:
    """A reaction that was seen: a frame before and one after, and which bonds it made and broke."""

    before: int
    after: int
    formed: Bonds
    broken: Bonds


def bond_changes(frames: Sequence[Atoms], *, hold: int = 3) -> list[BondChange]:
    """Bond changes along frames of one trajectory, each that lasts for `hold` frames.

    A bond forms below `FORMED` and breaks above `BROKEN` × the sum of the radii; in between it is what
    it was. `before` and `after` are frames of the old and the new state, `hold` frames from the change: those
    beside it lie near the ridge, where a relaxation may fall to the wrong side.
    """
    if not frames:
        return []
    state = bonds(frames[0], (FORMED + BROKEN) / 2)
    states = []
    for atoms in frames:
        ratios = _ratios(atoms, BROKEN)
        formed = {pair for pair, ratio in ratios.items() if ratio < FORMED}
        state = frozenset(formed | {pair for pair in state if pair in ratios})
        states.append(state)
    return _lasting(states, hold)


def _lasting(states: Sequence[Bonds], hold: int) -> list[BondChange]:
    changes: list[BondChange] = []
    known, held = states[0], list[int]()
    for n, state in enumerate(states):
        if state == known:
            held.append(n)
        elif n + hold <= len(states) and all(s == state for s in states[n : n + hold]):
            before = held[max(-hold, -len(held))]
            changes.append(BondChange(before, n + hold - 1, state - known, known - state))
            known, held = state, [n]
    return changes
