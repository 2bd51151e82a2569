"""A committee that says at its labels what they say: each member plus a Gaussian process of what it lacks.

A dozen labels of a new level of theory bend a network only roughly. What a label says beyond a member is a
smooth function of few coordinates, and a Gaussian process through energies and forces takes it as it is, in
milliseconds: Koistinen et al., JCP 147, 152720 (2017), for paths; Denzel & Kästner, JCTC 14, 5777 (2018), for
saddles. Far from all labels a member says again what it said, but for a constant.

Coordinates  inverse distances, which do not see a molecule turn.
Kernel       exp(−|q − q'|²/2ℓ²), times a scale that does not enter the mean; ℓ of greatest likelihood
             (Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006, Eq. 5.8) of a few.
Mean         a constant energy of each member, by generalised least squares (Eq. 2.43 there).
Shapes       n labels, A atoms, d coordinates, S structures, K members. Units Å, eV.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from ase import Atoms
from scipy.linalg import cho_factor, cho_solve

from tace.prediction import CommitteePrediction

from ..base import PolicyError, Session, SessionFactory
from ..walkers import bare_copy
from .surface import fixed_atoms

SCALES_PER_A, LONE_SCALE_PER_A = (0.3, 0.45, 0.7, 1.0, 1.4, 2.0, 3.0), (0.7,)
REACH_A = 6.0
DIFFERENCE_A = 1e-4
# of the process's own width, a few eV: what a converged label scatters by, and float32 members
ENERGY_NOISE, FORCE_NOISE_PER_A = 3e-4, 1e-3


class Said(Protocol):
    """A label."""

    @property
    def energy_eV(self) -> float: ...

    @property
    def forces_eV_per_A(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Coordinates:
    """Inverse distances of all pairs of which one atom may move, summed over periodic images.

    Of periodic structures 1/r goes smoothly to zero at `REACH_A`: (1 − r²/R²)³, so that no image comes or
    goes with a kink in its second derivative.
    """

    free: np.ndarray  # [A], atoms that may move
    first: np.ndarray  # [p], of the pairs
    second: np.ndarray
    shifts_A: np.ndarray  # [m,3], lattice vectors; those that can be within reach of anything
    reach_A: float

    @classmethod
    def of(cls, atoms: Atoms) -> Coordinates:
        free = ~fixed_atoms(atoms)
        i, j = np.triu_indices(len(atoms), 1)
        kept = free[i] | free[j]
        if not atoms.pbc.any():
            return cls(free, i[kept], j[kept], np.zeros((1, 3)), np.inf)
        cell = atoms.cell.complete().array
        heights = 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)
        # positions are not wrapped: pairs lie up to their own extent apart before any shift
        spread = np.ptp(atoms.positions @ np.linalg.inv(cell), axis=0)
        most = np.where(atoms.pbc, np.ceil(REACH_A / heights + spread), 0).astype(int)
        grids = np.meshgrid(*(np.arange(-n, n + 1) for n in most), indexing="ij")
        shifts = np.stack([g.ravel() for g in grids], axis=1) @ cell
        return cls(free, i[kept], j[kept], shifts, REACH_A)

    def __call__(self, positions_A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """q [d], and its slope with respect to the first atom of each pair [d,3]."""
        apart = (positions_A[self.first] - positions_A[self.second])[:, None] + self.shifts_A
        r = np.linalg.norm(apart, axis=-1)
        inside = np.clip(1.0 - (r / self.reach_A) ** 2, 0.0, None)
        slope = -(inside**3) / r**2 - 6.0 * inside**2 / self.reach_A**2
        return (inside**3 / r).sum(1), ((slope / r)[..., None] * apart).sum(1)

    def jacobian(self, pull: np.ndarray) -> np.ndarray:
        """∂q/∂x [3F, d] over the F moving atoms, from the slopes of the pairs."""
        rows, full = np.arange(len(pull)), np.zeros((len(self.free), 3, len(pull)))
        full[self.first, :, rows], full[self.second, :, rows] = pull, -pull
        return full[self.free].reshape(-1, len(pull))

    def back(self, slope: np.ndarray, pull: np.ndarray) -> np.ndarray:
        """∂E/∂x [K,A,3] from ∂E/∂q [K,d], without a Jacobian."""
        share = slope[..., None] * pull
        found = np.zeros((len(slope), len(self.free), 3))
        for of_one, rows in zip(found, share, strict=True):
            np.add.at(of_one, self.first, rows)
            np.subtract.at(of_one, self.second, rows)
        return found


@dataclass(frozen=True)
class Process:
    """The posterior mean: energies and forces of what K members lack."""

    scale: float  # ℓ
    points: np.ndarray  # [n, d]
    of_energies: np.ndarray  # [K, n]
    of_slopes: np.ndarray  # [K, n, d], weights of ∂k/∂q'
    constants_eV: np.ndarray  # [K]
    coordinates: Coordinates

    def __call__(self, positions_A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energies [K] and forces [K,A,3] of one structure."""
        q, pull = self.coordinates(positions_A)
        apart, square = q - self.points, self.scale**2
        k = np.exp(-0.5 * (apart**2).sum(1) / square)
        along = np.einsum("nd,Knd->Kn", apart, self.of_slopes)
        share = self.of_energies + along / square
        energies = self.constants_eV + share @ k
        slope = np.einsum("n,Knd->Kd", k, self.of_slopes) - (share * k) @ apart
        return energies, -self.coordinates.back(slope / square, pull)


def fitted(
    coordinates: Coordinates, places_A: Sequence[np.ndarray], lacking: tuple[np.ndarray, np.ndarray]
) -> Process:
    """The process through what K members lack at n places.

    Args:
        lacking: label − member, energies [K,n] and forces [K,n,A,3].
    """
    described = [coordinates(x) for x in places_A]
    points = np.array([q for q, _ in described])
    jacobians = np.array([coordinates.jacobian(pull) for _, pull in described])
    energies, forces = lacking
    members, count = energies.shape
    slopes = -forces[:, :, coordinates.free].reshape(members, count, -1)
    wanted = np.concatenate([energies, slopes.reshape(members, -1)], axis=1).T
    level = np.zeros(len(wanted))
    level[:count] = 1.0
    scales = SCALES_PER_A if count > 1 else LONE_SCALE_PER_A  # one label does not tell a length
    tried = [_solved(_covariance(points, jacobians, scale), wanted, level) for scale in scales]
    best = int(np.argmax([likelihood for likelihood, _, _ in tried]))
    _, weights, constants = tried[best]
    of_slopes = weights[count:].T.reshape(members, count, -1)
    return Process(
        scales[best], points, weights[:count].T, np.einsum("nad,Kna->Knd", jacobians, of_slopes), constants,
        coordinates,
    )  # fmt: skip


def _covariance(points: np.ndarray, jacobians: np.ndarray, scale: float) -> np.ndarray:
    """Of energies and of slopes with respect to positions, noise included, [n(1+3F), n(1+3F)]."""
    count, size, square = len(points), jacobians.shape[1], scale**2
    apart = points[:, None] - points[None]
    k = np.exp(-0.5 * (apart**2).sum(-1) / square)
    theirs = np.einsum("ijd,jad->ija", apart, jacobians)
    mine = np.einsum("ijd,iad->ija", apart, jacobians)
    energy_slope = k[..., None] * theirs / square  # E_i with ∂E_j
    flat = jacobians.reshape(count * size, -1)
    both = (flat @ flat.T / square).reshape(count, size, count, size).swapaxes(1, 2)
    both = k[..., None, None] * (both - mine[..., :, None] * theirs[..., None, :] / square**2)
    matrix = np.empty((count * (1 + size),) * 2)
    matrix[:count, :count] = k
    matrix[:count, count:] = energy_slope.reshape(count, -1)
    matrix[count:, :count] = matrix[:count, count:].T
    matrix[count:, count:] = both.swapaxes(1, 2).reshape(count * size, -1)
    noise = np.full(len(matrix), FORCE_NOISE_PER_A**2)
    noise[:count] = ENERGY_NOISE**2
    return matrix + np.diag(noise)


def _solved(
    matrix: np.ndarray, wanted: np.ndarray, level: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Log likelihood of the members' mean (its width by maximum too), weights [n(1+3F), K], constants [K]."""
    factor = cho_factor(matrix, lower=True)
    flat = cho_solve(factor, level)
    constants = flat @ wanted / (flat @ level)
    rest = wanted - level[:, None] * constants
    weights = cho_solve(factor, rest)
    mean = rest.mean(1)
    variance = max(float(mean @ weights.mean(1)) / len(mean), 1e-12)
    half_log_det = np.log(np.diag(factor[0])).sum()
    return -0.5 * len(mean) * np.log(variance) - float(half_log_det), weights, constants


class Corrected:
    """A session factory whose members are right at the labels.

    Args:
        labelled: structures of one reaction, all with the atoms of `atoms`, in its frame of reference where
            atoms are fixed or the cell is periodic.
    """

    def __init__(
        self, factory: SessionFactory, atoms: Atoms, labelled: Sequence[tuple[Atoms, Said]]
    ) -> None:
        self.factory, self.process = factory, None
        if not labelled:
            return
        frames = [bare_copy(atoms, a.positions, atoms.cell.array) for a, _ in labelled]
        said = factory(frames)(np.concatenate([a.positions for a in frames]), True)
        assert said.forces is not None
        forces = said.forces.reshape(len(said.forces), len(frames), len(atoms), 3)
        lacking = (
            np.array([x.energy_eV for _, x in labelled]) - said.energies,
            np.array([x.forces_eV_per_A for _, x in labelled]) - forces,
        )
        good = np.isfinite(lacking[0]).all(0) & np.isfinite(lacking[1]).all((0, 2, 3))
        if good.any():
            places = [a.positions for a, keep in zip(frames, good, strict=True) if keep]
            kept = lacking[0][:, good], lacking[1][:, good]
            self.process = fitted(Coordinates.of(atoms), places, kept)

    def __call__(self, frames: Sequence[Atoms]) -> Session:
        session = self.factory(frames)
        if self.process is None:
            return session
        exact = hasattr(session, "hessians")
        return (_ExactSession if exact else _Session)(session, self.process)


@dataclass(frozen=True)
class _Session:
    session: Session
    process: Process

    def __call__(
        self,
        positions_A: np.ndarray,
        member_forces: bool,
        *,
        cells_A: np.ndarray | None = None,
        stress: bool = False,
    ) -> CommitteePrediction:
        if cells_A is not None or stress:
            raise PolicyError("a corrected committee keeps its cells and gives no stress")
        said = self.session(positions_A, member_forces)
        more = [self.process(x) for x in np.split(positions_A, np.cumsum(said.n_atoms)[:-1])]
        energies = np.array([e for e, _ in more]).T
        forces = np.concatenate([f for _, f in more], axis=1)
        return replace(
            said,
            energies=said.energies + energies,
            mean_forces=said.mean_forces + forces.mean(0),
            forces=None if said.forces is None else said.forces + forces,
        )


class _ExactSession(_Session):
    """Of members that have second derivatives of their own."""

    def hessians(self, positions_A: np.ndarray, of: Sequence[int]) -> np.ndarray:
        """[K,3F,3F]; the process's by differences of its forces, which are in double precision."""
        place = np.asarray(of, dtype=int)
        rows = []
        for atom in place:
            for axis in range(3):
                push = np.zeros_like(positions_A)
                push[atom, axis] = DIFFERENCE_A
                apart = self.process(positions_A - push)[1] - self.process(positions_A + push)[1]
                rows.append(apart[:, place].reshape(len(apart), -1) / (2 * DIFFERENCE_A))
        own = np.stack(rows, axis=1)
        exact: np.ndarray = self.session.hessians(positions_A, of)  # type: ignore[attr-defined]
        return exact + (own + own.swapaxes(1, 2)) / 2
