"""Do forces and stresses belong to the energies? Differences between near frames against the work done.

For two frames of the same atoms the trapezoid rule gives ΔE ≈ −½(F₁+F₂)·Δx + V̄ ½(σ₁+σ₂):ε, which is exact
for a harmonic surface. The slope of ΔE against that work is 1 if signs and units agree; −1, 51.4 or 0.0434
betray which ones do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from .data import Labelled
from .quantities import INPUTS
from .units import conversion

REACH_A = (0.12, 0.3, 0.5, 0.8)  # largest displacement in a pair; the first that gives enough pairs
LEAST_EV = 0.003  # work and energy differences below it are noise
MIN_PAIRS, MIN_RANK = 8, 0.85
TOLERANCE = 1.6  # factor within which a slope counts as 1: pairs are not infinitesimal
_MOST = 2000  # pairs per group of equal frames
_STRAINS = (0.01, 0.05)
_LEAST_STRAIN = 2e-4


@dataclass(frozen=True)
class Slope:
    """Slope through the origin, the weighted median of the ratios, and how strictly the two are in order."""

    pairs: int
    slope: float = float("nan")
    rank: float = float("nan")  # Spearman's, of the pairs and their mirror images
    reach_A: float = float("nan")  # the largest displacement (or strain) of a pair

    @property
    def known(self) -> bool:
        return self.pairs >= MIN_PAIRS and abs(self.rank) >= MIN_RANK

    @property
    def wrong(self) -> bool:
        return self.known and not 1 / TOLERANCE < self.slope < TOLERANCE


def energy_force(frames: Sequence[Labelled]) -> Slope:
    """ΔE against the work of the forces, of frames of one fidelity and equal cells."""
    rows = []
    for group in _groups([f for f in frames if f.energy_eV is not None and f.forces_eV_per_A is not None]):
        pairs = _Pairs(group)
        same = (np.abs(pairs.strain).max((1, 2)) < 1e-6) & (pairs.reach < REACH_A[-1])
        rows.append(np.stack([pairs.work, pairs.delta, pairs.reach, pairs.grain], 1)[same])
    return _slope(np.concatenate(rows) if rows else np.empty((0, 4)), REACH_A)


def energy_stress(frames: Sequence[Labelled]) -> Slope:
    """ΔE less the work of the forces against V σ:ε, of periodic frames whose cells differ a little."""
    rows = []
    useful = [f for f in frames if f.energy_eV is not None and f.stress_eV_per_A3 is not None]
    for group in _groups([f for f in useful if f.atoms.pbc.all()]):
        pairs = _Pairs(group)
        size = np.abs(pairs.strain).max((1, 2))
        forces = all(f.forces_eV_per_A is not None for f in group)
        near = pairs.reach < (REACH_A[1] if forces else 0.02)
        kept = (size > _LEAST_STRAIN) & (size < _STRAINS[-1]) & near
        work = pairs.stress_work(group)
        rows.append(np.stack([work, pairs.delta - pairs.work, size, pairs.grain], 1)[kept])
    return _slope(np.concatenate(rows) if rows else np.empty((0, 4)), _STRAINS)


@dataclass(frozen=True)
class NearPairs:
    """Pairs of near frames of one fidelity; i and j count the frames, arrays are [pairs]."""

    i: np.ndarray
    j: np.ndarray
    work: np.ndarray  # of the forces, eV
    delta: np.ndarray  # E_j − E_i, eV
    reach_A: np.ndarray  # largest displacement of an atom
    bend: np.ndarray  # Σ |F_j − F_i| |Δx| over atoms, eV: how much the surface curves between the two


def near_pairs(frames: Sequence[Labelled], *, reach_A: float = REACH_A[1]) -> NearPairs:
    """Pairs of frames of the same atoms, conditions and cell whose atoms are all nearer than that."""
    table: dict[bytes, list[int]] = {}
    for n, frame in enumerate(frames):
        if frame.energy_eV is not None and frame.forces_eV_per_A is not None:
            table.setdefault(_species(frame), []).append(n)
    rows = [np.empty((0, 6))]
    for members in (np.array(m) for m in table.values() if len(m) > 1):
        pairs = _Pairs([frames[n] for n in members])
        same = (np.abs(pairs.strain).max((1, 2)) < 1e-6) & (pairs.reach < reach_A)
        columns = (members[pairs.i], members[pairs.j], pairs.work, pairs.delta, pairs.reach)
        rows.append(np.stack([*columns, pairs.bend], 1)[same])
    i, j, *rest = np.concatenate(rows).T
    return NearPairs(i.astype(int), j.astype(int), *rest)


def _slope(rows: np.ndarray, limits: Sequence[float]) -> Slope:
    work, delta, reach, grain = rows.T
    kept = np.maximum(np.abs(work), np.abs(delta)) > np.maximum(LEAST_EV, 20 * grain)
    kept &= (work != 0) & (np.abs(delta) > 4 * grain)
    limit = next((x for x in limits if (kept & (reach < x)).sum() >= 2 * MIN_PAIRS), limits[-1])
    kept &= reach < limit
    work, delta = work[kept], delta[kept]
    if len(work) < 2:
        return Slope(len(work))
    ratio, order = delta / work, np.argsort(delta / work)
    weight = np.minimum(np.abs(work), 2 * np.median(np.abs(work)))  # one wild frame must not decide
    total = np.cumsum(weight[order])
    middle = ratio[order][np.searchsorted(total, 0.5 * total[-1])]
    both = [np.concatenate([v, -v]).argsort().argsort().astype(float) for v in (work, delta)]
    rank = float(np.corrcoef(both)[0, 1])
    return Slope(len(work), float(middle), rank, limit)


def _groups(frames: Sequence[Labelled]) -> Iterator[list[Labelled]]:
    """Frames of the same atoms in the same order, under the same conditions; two at least."""
    table: dict[bytes, list[Labelled]] = {}
    for frame in frames:
        table.setdefault(_species(frame), []).append(frame)
    yield from (group for group in table.values() if len(group) > 1)


def _species(frame: Labelled) -> bytes:
    parts = [frame.atoms.numbers.astype(np.int64).tobytes(), frame.atoms.pbc.tobytes()]
    return b"|".join([*parts, conditions(frame)])


def conditions(frame: Labelled) -> bytes:
    """What besides the structure decides the labels, as bytes."""
    atoms = frame.atoms
    values = [atoms.info.get(n) if q.scope == "structure" else atoms.arrays.get(n) for n, q in INPUTS.items()]
    return b"|".join(b"" if v is None else np.asarray(v, dtype=np.float64).tobytes() for v in values)


class _Pairs:
    """Candidate pairs of a group: displacement, strain, work and energy difference of each."""

    def __init__(self, group: list[Labelled]) -> None:
        atoms = [f.atoms for f in group]
        pbc = atoms[0].pbc
        positions = np.stack([a.positions for a in atoms])
        cells = np.stack([a.cell.complete().array for a in atoms])
        energies = np.array([f.energy_eV for f in group], dtype=np.float64)
        forces = np.stack(
            [np.zeros((len(a), 3)) if f.forces_eV_per_A is None else f.forces_eV_per_A
             for f, a in zip(group, atoms, strict=True)]
        )  # fmt: skip
        fractions = positions @ np.linalg.inv(cells)
        features = _ring(fractions) if pbc.any() else _shape(positions)
        self.i, self.j = i, j = _candidates(features)
        self.cell = 0.5 * (cells[i] + cells[j])
        if pbc.any():
            step = fractions[j] - fractions[i]
            step -= np.round(step) * pbc
            moved, later = step @ self.cell, forces[j]
            self.strain = np.linalg.solve(self.cell, cells[j] - cells[i])
        else:
            free = "electric_field" not in atoms[0].info
            turned = _aligned(positions[i], positions[j], forces[j], turn=free)
            moved, later = turned[0] - (positions[i] - positions[i].mean(1, keepdims=True)), turned[1]
            self.strain = np.zeros((len(i), 3, 3))
        self.reach = np.sqrt((moved**2).sum(2)).max(1)
        self.work = -0.5 * ((forces[i] + later) * moved).sum((1, 2))
        turn = np.sqrt(((later - forces[i]) ** 2).sum(2)) * np.sqrt((moved**2).sum(2))
        self.bend = turn.sum(1)
        self.delta = energies[j] - energies[i]
        self.grain = np.full(len(i), _grain(energies))

    def stress_work(self, group: list[Labelled]) -> np.ndarray:
        """V̄ ½(σ₁+σ₂):ε of every pair, eV."""
        stress = np.stack([f.stress_eV_per_A3 for f in group if f.stress_eV_per_A3 is not None])
        mean = 0.5 * (stress[self.i] + stress[self.j])
        e = self.strain
        voigt = np.stack(
            [e[:, 0, 0], e[:, 1, 1], e[:, 2, 2],
             e[:, 1, 2] + e[:, 2, 1], e[:, 0, 2] + e[:, 2, 0], e[:, 0, 1] + e[:, 1, 0]], 1
        )  # fmt: skip
        return np.asarray(np.abs(np.linalg.det(self.cell)) * (mean * voigt).sum(1))


def _ring(fractions: np.ndarray) -> np.ndarray:
    """Smooth functions of wrapped positions, [n, 6A]."""
    angle = 2 * np.pi * fractions.reshape(len(fractions), -1)
    return np.concatenate([np.cos(angle), np.sin(angle)], 1)


def _shape(positions: np.ndarray) -> np.ndarray:
    """Distances that do not change when a molecule is moved or turned, [n, 3A]."""
    centre = positions - positions.mean(1, keepdims=True)
    parts = [np.linalg.norm(centre, axis=2)]
    parts += [np.linalg.norm(positions - np.roll(positions, k, 1), axis=2) for k in (1, 2)]
    return np.concatenate(parts, 1)


def _candidates(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Successive frames, and neighbours in eight random projections of the features."""
    n = len(features)
    noise = np.random.default_rng(0).normal(size=(features.shape[1], 8))
    distance, near = cKDTree(features @ noise).query(features @ noise, k=min(4, n))
    pairs = np.stack([np.repeat(np.arange(n), near.shape[1]), near.ravel()], 1)
    pairs = pairs[np.argsort(distance.ravel(), kind="stable")]
    pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], 1)[: 2 * _MOST]
    successive = np.stack([np.arange(n - 1), np.arange(1, n)], 1)[:_MOST]
    pairs = np.unique(np.concatenate([successive, pairs]), axis=0)
    return pairs[:, 0], pairs[:, 1]


def _aligned(
    first: np.ndarray, second: np.ndarray, vectors: np.ndarray, *, turn: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Centred second positions, and vectors, turned onto the first (Kabsch, Acta Cryst. A 32, 922)."""
    a = first - first.mean(1, keepdims=True)
    b = second - second.mean(1, keepdims=True)
    if not turn:
        return b, vectors
    u, _, vt = np.linalg.svd(np.swapaxes(b, 1, 2) @ a)
    u[:, :, 2] *= np.sign(np.linalg.det(u @ vt))[:, None]
    return b @ (u @ vt), vectors @ (u @ vt)


def _grain(energies: np.ndarray) -> float:
    """Resolution of the energies: that of single precision where all of them are such numbers."""
    with np.errstate(over="ignore"):
        single = energies.astype(np.float32)
    if not (single.astype(np.float64) == energies).all():
        return 0.0
    return float(np.spacing(np.abs(single)).max())


def _forces_in(unit: str) -> float:
    return conversion(unit, "eV/A")


def _stress_in(unit: str) -> float:
    return conversion(unit, "eV/A^3")


_ENERGIES = ("Ha", "Ry", "kcal/mol", "kJ/mol", "meV")
_FORCES = ("Ha/Bohr", "Ry/Bohr", "eV/Bohr", "Ha/A", "kcal/mol/A", "kJ/mol/A", "kJ/mol/nm", "meV/A", "eV/nm")
_STRESSES = ("GPa", "kbar", "bar", "MPa", "Ha/Bohr^3", "Ry/Bohr^3", "kcal/mol/A^3", "kJ/mol/A^3")


def guesses(slope: float, *, what: str, n_atoms: float, volume: float = 0.0) -> list[str]:
    """What would explain a slope, nearest first: `forces in Ha/Bohr`, `the sign of the stress`, …

    Args:
        what: "forces" or "stress".
        n_atoms, volume: typical of the data, for energies per atom and virials.
    """
    table = {f"energies in {u}": 1 / conversion(u, "eV") for u in _ENERGIES}
    if what == "forces":
        table |= {f"forces in {u}": _forces_in(u) for u in _FORCES}
        table["energies in Ha and forces in Ha/Bohr"] = _forces_in("Ha/Bohr") / conversion("Ha", "eV")
    else:
        table |= {f"stress in {u}": _stress_in(u) for u in _STRESSES}
        table |= {"a stress in kbar that was read as GPa": 0.1, "a stress in GPa that was read as kbar": 10.0}
        if volume > 0:
            table["a virial in eV in place of the stress"] = 1 / volume
    if n_atoms > 1:
        table["energies per atom"] = 1 / n_atoms
    off = {name: abs(np.log(abs(slope) / factor)) for name, factor in table.items()}
    near = sorted((d, name) for name, d in off.items() if d < np.log(1.2))
    sign = [f"the opposite sign of the {what}"] if slope < 0 else []
    if sign and 1 / TOLERANCE < -slope < TOLERANCE:
        return sign
    return [" with ".join([name, *sign]) for _, name in near] or sign
