"""Do the forces of one label belong to its structure? A pair force fitted to all labels is the witness.

F_i = Σ_j f_ZZ'(r_ij) r̂_ij with f a sum of sin(kπr/rc)/r (1 − r/rc)², least squares over forces, no energies.
It is a poor potential and a good witness: forces of the other sign, in another unit, of other atoms or of
another structure are far from what it says of that frame, while it is about equally wrong for all right ones.
Where it explains little of a set it judges nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tace.data import Labelled
from tace.neighbors import find_pairs

CUTOFF_A, TERMS = 5.0, 10
FEWEST, FITTED = 30, 300  # frames that a fit needs, and takes
LARGEST = 30_000_000  # numbers in the matrices of a fit: 240 MB
# Of the typical force of the set. Near a minimum the witness is wrong by as much as there is of a force, so
# that a frame is judged where the fit, and for its direction the label too, have at least this much.
STILL, SMALL = 0.6, 0.3
EXPLAINED = 0.5  # cosine that all but 5 % of a set exceed; published sets that do go down to 0.24 at least
STRANGE = 1 / 6  # of it: forces of another sign, of other atoms or of another structure are below
FACTOR, DEVIATIONS, SPREAD = 3.0, 6.0, 0.15  # of |F| over the fit's; robust deviations of its logarithm
VANISHED = 20.0  # how much smaller than the fit's: relaxed frames are smaller, Ha/Bohr for eV/Å is 51 times


@dataclass(frozen=True)
class Witness:
    """Per frame: cosine of its forces with the fit's, ln of the ratio of their sizes; NaN: not judged.

    `small` marks frames with forces far below those of the set.
    """

    cosine: np.ndarray
    size: np.ndarray
    small: np.ndarray

    @property
    def explained(self) -> float:
        """The cosine that 95 % of the frames exceed; NaN: too few to say."""
        known = self.cosine[np.isfinite(self.cosine)]
        return float(np.quantile(known, 0.05)) if len(known) >= FEWEST else float("nan")

    def wild(self) -> dict[int, str]:
        """Frames whose forces are not those of their structure, and how they are not."""
        if not self.explained > EXPLAINED:
            return {}
        middle = float(np.nanmedian(self.size))
        spread = max(1.4826 * float(np.nanmedian(np.abs(self.size - middle))), SPREAD)
        off = self.size - middle
        found = {}
        for n in np.flatnonzero(np.isfinite(self.cosine)).tolist():
            if self.cosine[n] < STRANGE * self.explained and not self.small[n]:
                usual = f"{self.explained:.2f} to 1"
                found[n] = f"they point elsewhere (cosine {self.cosine[n]:.2f}, usual {usual})"
            elif off[n] > max(DEVIATIONS * spread, np.log(FACTOR)) or off[n] < -np.log(VANISHED):
                found[n] = f"they are {np.exp(off[n]):.3g} times as large"
        return found


def witness(frames: Sequence[Labelled]) -> list[tuple[np.ndarray, Witness]]:
    """(numbers of frames, what a fit to them says of each), for every set of elements with enough of them."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for n, frame in enumerate(frames):
        if frame.forces_eV_per_A is not None and len(frame.atoms) > 1:
            groups[np.unique(frame.atoms.numbers).tobytes()].append(n)
    return [
        (np.array(members), _fitted([frames[n] for n in members]))
        for members in groups.values()
        if len(members) >= FEWEST
    ]


def _fitted(frames: Sequence[Labelled]) -> Witness:
    kinds = np.unique(frames[0].atoms.numbers)
    columns = TERMS * len(kinds) * (len(kinds) + 1) // 2
    size = columns * 3 * int(np.median([len(f.atoms) for f in frames]))
    take = max(FEWEST, min(FITTED, LARGEST // size))
    chosen = np.unique(np.linspace(0, len(frames) - 1, take).round().astype(int)).tolist()
    forces = [np.asarray(f.forces_eV_per_A, float).ravel() for f in frames]
    typical = float(np.median([_rms(f) for f in forces]))
    matrices = {n: _matrix(frames[n], kinds) for n in chosen}
    scale = {n: max(_rms(forces[n]), SMALL * typical, 1e-9) for n in chosen}
    doubt = dict.fromkeys(chosen, 1.0)
    solution: np.ndarray = np.zeros(columns)
    for _ in range(4):  # frames that do not fit count less each time
        square, right = np.zeros((columns, columns)), np.zeros(columns)
        for n, matrix in matrices.items():
            weight = doubt[n] / scale[n] ** 2
            square += weight * (matrix.T @ matrix)
            right += weight * (matrix.T @ forces[n])
        ridge = max(1e-7 * float(np.trace(square)) / columns, 1e-12)
        solution = np.linalg.solve(square + ridge * np.eye(columns), right)
        left = {n: _rms(forces[n] - m @ solution) / scale[n] for n, m in matrices.items()}
        usual = max(float(np.median([*left.values()])), 1e-3)
        doubt = {n: 1.0 / (1.0 + (x / (2 * usual)) ** 4) for n, x in left.items()}
    rows = []
    for n, (frame, given) in enumerate(zip(frames, forces, strict=True)):
        said = (matrices[n] if n in matrices else _matrix(frame, kinds)) @ solution
        rows.append(_compared(given, said) if _rms(said) > STILL * typical else (np.nan, np.nan))
    cosine, ratio = np.array(rows).T
    return Witness(cosine, ratio, np.array([_rms(f) < SMALL * typical for f in forces]))


def _compared(given: np.ndarray, said: np.ndarray) -> tuple[float, float]:
    sizes = _rms(given), _rms(said)
    if sizes[0] == 0:
        return 0.0, float(np.log(1e-6))
    return float((given * said).mean() / (sizes[0] * sizes[1])), float(np.log(sizes[0] / sizes[1]))


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean()))


def _matrix(frame: Labelled, kinds: np.ndarray) -> np.ndarray:
    """d force / d coefficient, [3A, columns]."""
    atoms = frame.atoms
    n, species = len(atoms), len(kinds)
    found = np.zeros((n, species * (species + 1) // 2, 3, TERMS))
    pairs = find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, cutoff=CUTOFF_A)
    step = atoms.positions[pairs.j] + pairs.shift @ atoms.cell.array - atoms.positions[pairs.i]
    distance = np.sqrt((step**2).sum(1))
    which = np.searchsorted(kinds, atoms.numbers)
    low, high = np.sort(np.stack([which[pairs.i], which[pairs.j]]), axis=0)
    kind = low * species - low * (low - 1) // 2 + (high - low)
    waves = np.sin(np.arange(1, TERMS + 1) * np.pi * distance[:, None] / CUTOFF_A) / distance[:, None]
    waves *= ((1 - distance / CUTOFF_A) ** 2)[:, None]
    push = (step / distance[:, None])[:, :, None] * waves[:, None, :]
    flat = found.reshape(-1, 3, TERMS)
    np.add.at(flat, pairs.i * found.shape[1] + kind, push)
    np.add.at(flat, pairs.j * found.shape[1] + kind, -push)  # pairs come once
    return np.asarray(np.swapaxes(found, 1, 2).reshape(3 * n, -1))
