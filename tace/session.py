"""Repeated evaluation of the same structures at new positions, with neighbours that last for many steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from .batch import Batch, collate, make_graph
from .errors import DataError
from .hessian import hessian
from .prediction import CommitteePrediction

if TYPE_CHECKING:
    from .committee import Committee


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

    def hessians(self, positions_A: np.ndarray, of: Sequence[int] | None = None) -> np.ndarray:
        """Second derivatives by every member of a session of one structure, [K, 3F, 3F], eV/Å².

        Args:
            positions_A: [A,3], finite.
            of: the F atoms whose block is wanted; None is all.

        Raises:
            DataError: the session has more than one structure.
        """
        if len(self._frames) != 1:
            raise DataError(f"a Hessian is of one structure, this session has {len(self._frames)}")
        atoms = self._frames[0].copy()
        atoms.set_constraint()
        atoms.positions = positions_A
        members = self.committee.members
        return np.array([hessian(m, atoms, fidelity=self._level, of=of) for m in members])

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
