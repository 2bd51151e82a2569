"""Several members on one graph: per-member energies and forces, their mean and spread.

Neighbour lists and edge attributes are computed once. Without member forces, the gradients of all
members are added at the geometry and pulled through it once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from .batch import Batch, Graph, collate, make_graph
from .data import fidelity_index
from .derivatives import Leaves, differentiate, gradient, make_leaves, strained_geometry, voigt
from .errors import DataError, TaceError
from .geometry import Geometry
from .io import load_model
from .memory import keep_freed_memory
from .model import Tace
from .prediction import CommitteePrediction

MAX_ATOMS_PER_BATCH = 1024


class Committee:
    """K models of one configuration; K = 1 is a single model whose spread is unknown (NaN)."""

    def __init__(self, members: Sequence[Tace]) -> None:
        if not members:
            raise TaceError("a committee needs at least one member")
        shared = (
            "elements", "fidelities", "cutoff_A", "l_max", "n_radial", "radial_orders", "envelope_p",
            "inputs", "zbl",
        )  # fmt: skip
        for member in members[1:]:
            for name in shared:
                mine, other = getattr(members[0].config, name), getattr(member.config, name)
                if mine != other:
                    raise TaceError(f"members differ in {name}: {mine} and {other}")
            if member.dtype != members[0].dtype:
                raise TaceError(f"members differ in dtype: {members[0].dtype} and {member.dtype}")
        self.members = tuple(members)
        keep_freed_memory()
        for member in self.members:
            member.eval().requires_grad_(False)

    @classmethod
    def load(cls, paths: Sequence[Path], *, device: str = "cpu") -> Committee:
        """Read one model file per member."""
        return cls([load_model(Path(path), device=device) for path in paths])

    @property
    def elements(self) -> tuple[int, ...]:
        return self.members[0].config.elements

    @property
    def fidelities(self) -> tuple[str, ...]:
        return self.members[0].config.fidelities

    @property
    def cutoff_A(self) -> float:
        return self.members[0].config.cutoff_A

    def __call__(
        self,
        frames: Sequence[Atoms],
        *,
        fidelity: str | None = None,
        member_forces: bool = True,
        stress: bool = False,
        features: bool = False,
    ) -> CommitteePrediction:
        """Evaluate structures in batches; `fidelity` None is the last, the dearest by convention.

        Raises:
            UnknownElementError, UnknownFidelityError, DataError: see `make_graph`.
        """
        level = fidelity_index(fidelity or self.fidelities[-1], self.fidelities)
        graphs = [
            make_graph(
                a,
                self.elements,
                cutoff=self.cutoff_A,
                fidelity=level,
                inputs=self.members[0].config.inputs,
            )
            for a in frames
        ]
        parts = [
            self.evaluate_batch(
                collate(chunk, len(self.elements)).to(self.members[0].device),
                member_forces=member_forces,
                stress=stress,
                features=features,
            )
            for chunk in chunks(graphs)
        ]
        if not parts:
            return self._nothing(member_forces=member_forces, stress=stress, features=features)
        return _join(parts, stress=stress, features=features)

    def _nothing(self, *, member_forces: bool, stress: bool, features: bool) -> CommitteePrediction:
        """The prediction for no structures."""
        k, config = len(self.members), self.members[0].config
        return CommitteePrediction(
            n_atoms=np.zeros(0, dtype=np.int64),
            energies=np.zeros((k, 0)),
            mean_forces=np.zeros((0, 3)),
            forces=np.zeros((k, 0, 3)) if member_forces else None,
            stresses=np.zeros((k if member_forces else 1, 0, 6)) if stress else None,
            features=np.zeros((0, config.n_layers * config.channels)) if features else None,
        )

    def evaluate_batch(
        self, batch: Batch, *, member_forces: bool, stress: bool = False, features: bool = False
    ) -> CommitteePrediction:
        """One batch; see `__call__`."""
        leaves = make_leaves(batch, stress=stress)
        geometry, _ = strained_geometry(self.members[0], batch, leaves)
        cut = _cut(geometry)
        energies, described, slopes = [], None, []
        for member in self.members:
            terms = member(batch, cut)
            energies.append(terms.energies.detach())
            if features and described is None:
                described = terms.features.detach().index_select(0, batch.original)
            slopes.append(gradient(terms.energies, _parts(cut)))
        pulls = slopes if member_forces else [_mean(slopes)]
        forces, stresses = [], []
        for n, slope in enumerate(pulls):
            f, s = _pull(geometry, slope, batch, leaves, keep=n < len(pulls) - 1)
            forces.append(f)
            if s is not None:
                stresses.append(voigt(s))
        stacked = torch.stack(forces).detach().cpu().numpy()
        return CommitteePrediction(
            n_atoms=batch.n_atoms.cpu().numpy(),
            energies=torch.stack(energies).cpu().numpy(),
            mean_forces=stacked.mean(0),
            forces=stacked if member_forces else None,
            stresses=torch.stack(stresses).cpu().numpy() if stresses else None,
            features=None if described is None else described.double().cpu().numpy(),
        )

    def session(
        self, frames: Sequence[Atoms], *, fidelity: str | None = None, skin_A: float = 0.6
    ) -> Session:
        """Repeated evaluation of the same structures at new positions (molecular dynamics)."""
        level = fidelity_index(fidelity or self.fidelities[-1], self.fidelities)
        return Session(self, frames, level, skin_A)


class Session:
    """Fixed species; pairs within cutoff + skin are found anew before one could be missed.

    With x₀, h₀ of the last search, F = h₀⁻¹ h and u = x − x₀ F, a pair vector is d = d₀ F + u_i − u_j, hence
    |d| ≥ s |d₀| − |u_i| − |u_j| with s the smallest singular value of F. A pair that was not found has
    |d₀| ≥ cutoff + skin, and stays beyond the cutoff while 2 max|u| < s (cutoff + skin) − cutoff: in a fixed
    cell, while no atom moves by half the skin.
    """

    def __init__(
        self, committee: Committee, frames: Sequence[Atoms], level: int, skin_A: float
    ) -> None:
        self.committee, self.skin_A = committee, skin_A
        self._frames = [a.copy() for a in frames]
        self._cells = np.array([a.cell.array for a in frames]).reshape(-1, 3, 3)
        self._level = level
        sizes = [len(a) for a in frames]
        self._ends = np.cumsum(sizes)[:-1]
        self._owner = np.repeat(np.arange(len(frames)), sizes)
        self._reference: tuple[np.ndarray, np.ndarray] | None = None  # x₀ [A,3], h₀ [S,3,3]
        self._batch: Batch | None = None
        self._shift: Tensor | None = None  # [P,3], integers
        self.rebuilds = 0

    def _rebuild(self, positions: np.ndarray, cells: np.ndarray) -> Batch:
        cutoff = self.committee.cutoff_A + self.skin_A
        graphs = []
        parts = np.split(positions, self._ends)
        for atoms, x, cell in zip(self._frames, parts, cells, strict=True):
            atoms.positions, atoms.cell[:] = x, cell
            graphs.append(
                make_graph(
                    atoms,
                    self.committee.elements,
                    cutoff=cutoff,
                    fidelity=self._level,
                    inputs=self.committee.members[0].config.inputs,
                )
            )
        self._reference = positions.copy(), cells.copy()
        self.rebuilds += 1
        batch = collate(graphs, len(self.committee.elements))
        shift = np.concatenate([g.pairs.shift for g in graphs]).astype(np.float64)
        device = self.committee.members[0].device
        self._shift = torch.from_numpy(shift).to(device)
        return batch.to(device)

    def _misses_none(self, positions: np.ndarray, cells: np.ndarray) -> bool:
        """Every pair within the cutoff is still in the list; NaN is not."""
        if self._reference is None:
            return False
        x0, h0 = self._reference
        least = np.ones(len(cells))
        strained = np.flatnonzero((cells != h0).any((1, 2)))
        if len(strained):
            strain = np.broadcast_to(np.eye(3), cells.shape).copy()
            strain[strained] = np.linalg.solve(h0[strained], cells[strained])
            least[strained] = np.linalg.svd(strain[strained], compute_uv=False)[:, -1]
            x0 = np.matmul(x0[:, None, :], strain[self._owner])[:, 0]
        farthest = np.zeros(len(cells))
        np.maximum.at(farthest, self._owner, np.sqrt(((positions - x0) ** 2).sum(1)))
        cutoff = self.committee.cutoff_A
        return bool((2 * farthest < least * (cutoff + self.skin_A) - cutoff).all())

    def _refuse_open_cells(self, cells: np.ndarray) -> None:
        for n in np.flatnonzero((cells != self._cells).any((1, 2))):
            atoms = self._frames[n]
            if not (atoms.pbc.all() and np.linalg.det(cells[n]) != 0):
                raise DataError(
                    f"structure {n} ({atoms.get_chemical_formula()}): its cell may only change if it is "
                    "periodic along all three axes and keeps a volume"
                )

    def __call__(
        self,
        positions_A: np.ndarray,
        member_forces: bool = True,
        *,
        cells_A: np.ndarray | None = None,
        stress: bool = False,
    ) -> CommitteePrediction:
        """Evaluate at positions [A,3] of all structures, one after another.

        Positions or cells that are not finite give NaN energy and forces for the structure they are in.

        Args:
            cells_A: [S,3,3]; None for the cells that the structures came with.

        Raises:
            DataError: another cell for a structure that is not periodic along all three axes.
        """
        positions = np.asarray(positions_A, dtype=np.float64)
        cells = self._cells if cells_A is None else np.asarray(cells_A, dtype=np.float64)
        broken = ~np.isfinite(cells).all((1, 2))
        broken[self._owner[~np.isfinite(positions).all(1)]] = True
        lost = broken[self._owner]
        if broken.any():  # evaluated where it was last well, so that the others need not suffer
            last = np.concatenate([a.positions for a in self._frames])
            positions = np.where(lost[:, None], last, positions)
            well = np.array([a.cell.array for a in self._frames])
            cells = np.where(broken[:, None, None], well, cells)
        if cells_A is not None:
            self._refuse_open_cells(cells)
        if self._batch is None or not self._misses_none(positions, cells):
            self._batch = self._rebuild(positions, cells)
        result = self.committee.evaluate_batch(
            self._moved(self._batch, positions, cells), member_forces=member_forces, stress=stress
        )
        if broken.any():
            result.energies[:, broken] = np.nan
            result.mean_forces[lost] = np.nan
            if result.forces is not None:
                result.forces[:, lost] = np.nan
            if result.stresses is not None:
                result.stresses[:, broken] = np.nan
        return result

    def _moved(self, batch: Batch, positions: np.ndarray, cells: np.ndarray) -> Batch:
        """The batch elsewhere, with the pairs that it has."""
        assert self._reference is not None
        assert self._shift is not None
        device = batch.positions.device
        sorted_positions = torch.empty_like(batch.positions)
        sorted_positions[batch.original] = torch.from_numpy(positions).to(device)
        if (cells == self._reference[1]).all():
            return replace(batch, positions=sorted_positions)
        lattice = torch.from_numpy(np.ascontiguousarray(cells)).to(device)
        by_pair = lattice.index_select(0, batch.pair_structure)
        return replace(
            batch,
            positions=sorted_positions,
            cells=lattice,
            pair_shift=torch.bmm(self._shift.unsqueeze(1), by_pair).squeeze(1),
        )


def _cut(geometry: Geometry) -> Geometry:
    """The same values as leaves, wherever they carry a gradient."""

    def leaf(x: Tensor) -> Tensor:
        return x.detach().requires_grad_(x.requires_grad)

    return Geometry(
        radial=leaf(geometry.radial),
        attributes=leaf(geometry.attributes),
        density=leaf(geometry.density),
        positions=leaf(geometry.positions),
        cells=leaf(geometry.cells),
        repulsion=None if geometry.repulsion is None else leaf(geometry.repulsion),
    )


def _parts(geometry: Geometry) -> list[Tensor]:
    """What energies depend on positions and strain through."""
    rest = [geometry.density, geometry.positions, geometry.cells]
    rest += [] if geometry.repulsion is None else [geometry.repulsion]
    return [x for x in (geometry.radial, geometry.attributes, *rest) if x.requires_grad]


def _mean(slopes: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.stack(list(parts)).mean(0) for parts in zip(*slopes, strict=True)]


def _pull(
    geometry: Geometry, slopes: Sequence[Tensor], batch: Batch, leaves: Leaves, *, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """Forces and stresses from gradients with respect to the geometry."""
    energy = sum((o * g).sum() for o, g in zip(_parts(geometry), slopes, strict=True))
    assert isinstance(energy, Tensor)
    return differentiate(energy, batch, leaves, keep=keep)


def chunks(graphs: Sequence[Graph]) -> Iterator[list[Graph]]:
    """Structures in parts of at most MAX_ATOMS_PER_BATCH atoms, in order."""
    chunk: list[Graph] = []
    atoms = 0
    for graph in graphs:
        if chunk and atoms + len(graph.species) > MAX_ATOMS_PER_BATCH:
            yield chunk
            chunk, atoms = [], 0
        chunk.append(graph)
        atoms += len(graph.species)
    if chunk:
        yield chunk


def _join(
    parts: Sequence[CommitteePrediction], *, stress: bool, features: bool
) -> CommitteePrediction:
    if len(parts) == 1:
        return parts[0]

    def cat(name: str, axis: int) -> np.ndarray:
        return np.concatenate([getattr(p, name) for p in parts], axis=axis)

    return CommitteePrediction(
        n_atoms=cat("n_atoms", 0),
        energies=cat("energies", 1),
        mean_forces=cat("mean_forces", 0),
        forces=None if parts[0].forces is None else cat("forces", 1),
        stresses=cat("stresses", 1) if stress else None,
        features=cat("features", 0) if features else None,
    )
