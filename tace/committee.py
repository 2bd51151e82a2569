"""Several members on one graph: per-member energies and forces, their mean and spread.

Few atoms are evaluated by all members in one pass (`stacked.py`), many by one member after another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from .batch import Batch, Graph, collate, copies, make_graph, moved_copies
from .data import fidelity_index
from .derivatives import Leaves, differentiate, evaluate, gradient, make_leaves, strained_geometry, voigt
from .errors import TaceError
from .geometry import Geometry
from .graph_calls import Graphs
from .io import load_model
from .memory import keep_freed_memory
from .model import Tace
from .prediction import CommitteePrediction
from .radial_tables import has_tables
from .session import Session
from .stacked import can_stack, read_all, shares_trunk, stack

MAX_ATOMS_PER_BATCH = 1024
# in all copies: beyond, nothing is gained, and memory grows with the members
MAX_STACKED_ATOMS = 1024
MAX_STACKED_TRUNK_ATOMS = 128  # the same where the trunk is shared and passed once otherwise


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
            if has_tables(member) != has_tables(members[0]):
                raise TaceError("only some members have radial tables: use 'tace compile' on all")
        self.members = tuple(members)
        keep_freed_memory()
        for member in self.members:
            member.eval().requires_grad_(False)
        self.graphs = Graphs.of(self.members)
        self._stacked = None
        if len(self.members) == 1:
            self._stacked = self.members[0]
        elif can_stack(self.members):
            self._stacked = stack(self.members)
        self._one_trunk = len(self.members) > 1 and shares_trunk(self.members)
        self._copies: tuple[Tensor, Batch] | None = None  # of the last batch, by its slots

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
        if self.graphs is not None and self.graphs.takes(batch):
            found = self.graphs.prediction(
                batch, member_forces=member_forces, stress=stress, features=features
            )
            if found is not None:
                return found
        copied = len(self.members) * len(batch.species)
        if self._one_trunk and not (member_forces and copied <= MAX_STACKED_TRUNK_ATOMS):
            return self._of_one_trunk(batch, member_forces=member_forces, stress=stress, features=features)
        if self._stacked is None or copied > MAX_STACKED_ATOMS:
            return self._one_by_one(batch, member_forces=member_forces, stress=stress, features=features)
        k, atoms = len(self.members), len(batch.species)
        out = evaluate(self._stacked, self._copied(batch), stress=stress)
        assert out.forces is not None
        forces = out.forces.view(k, atoms, 3).cpu().numpy()
        stresses = None
        if out.stresses is not None:
            stresses = voigt(out.stresses).view(k, -1, 6).cpu().numpy()
            stresses = stresses if member_forces else stresses.mean(0, keepdims=True)
        return CommitteePrediction(
            n_atoms=batch.n_atoms.cpu().numpy(),
            energies=out.energies.view(k, -1).cpu().numpy(),
            mean_forces=forces.mean(0),
            forces=forces if member_forces else None,
            stresses=stresses,
            features=out.features[:atoms].double().cpu().numpy() if features else None,
        )

    def _copied(self, batch: Batch) -> Batch:
        """One copy for each member; of the same atoms and pairs elsewhere only what has changed is made."""
        number = len(self.members)
        if self._copies is None or self._copies[0] is not batch.slot_pair:
            self._copies = batch.slot_pair, copies(batch, number)
            return self._copies[1]
        return batch if number == 1 else moved_copies(self._copies[1], batch)

    def _of_one_trunk(
        self, batch: Batch, *, member_forces: bool, stress: bool, features: bool
    ) -> CommitteePrediction:
        """One pass of the trunk; one backward pass for the mean of the members, or for each."""
        assert self._stacked is not None
        leaves = make_leaves(batch, stress=stress)
        geometry, _ = strained_geometry(self.members[0], batch, leaves)
        by_layer = self.members[0].describe(batch, geometry)
        energies = read_all(self._stacked, by_layer, self._copied(batch), geometry)
        pulled = list(energies) if member_forces else [energies.mean(0)]
        found = [differentiate(e, batch, leaves, keep=e is not pulled[-1]) for e in pulled]
        described = None
        if features:
            scalars = torch.cat([x[0].squeeze(1) for x in by_layer], 1)
            described = scalars.index_select(0, batch.original)
        return _prediction(batch, energies, found, described, member_forces=member_forces)

    def _one_by_one(
        self, batch: Batch, *, member_forces: bool, stress: bool, features: bool
    ) -> CommitteePrediction:
        """Members one after another on one geometry: for many atoms, which fill the machine by themselves.

        Without member forces the slopes at the geometry are averaged and pulled through it once.
        """
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
        found = [
            _pull(geometry, slope, batch, leaves, keep=slope is not pulls[-1]) for slope in pulls
        ]
        return _prediction(batch, torch.stack(energies), found, described, member_forces=member_forces)

    def session(
        self, frames: Sequence[Atoms], *, fidelity: str | None = None, skin_A: float = 0.6
    ) -> Session:
        """Repeated evaluation of the same structures at new positions (molecular dynamics)."""
        level = fidelity_index(fidelity or self.fidelities[-1], self.fidelities)
        return Session(self, frames, level, skin_A)


def _prediction(
    batch: Batch,
    energies: Tensor,
    found: Sequence[tuple[Tensor, Tensor | None]],
    features: Tensor | None,
    *,
    member_forces: bool,
) -> CommitteePrediction:
    """From energies [M,S] and the forces and stresses of each member, or of their mean."""
    forces = torch.stack([f for f, _ in found]).cpu().numpy()
    stresses = [voigt(s) for _, s in found if s is not None]
    return CommitteePrediction(
        n_atoms=batch.n_atoms.cpu().numpy(),
        energies=energies.detach().cpu().numpy(),
        mean_forces=forces.mean(0),
        forces=forces if member_forces else None,
        stresses=torch.stack(stresses).cpu().numpy() if stresses else None,
        features=None if features is None else features.detach().double().cpu().numpy(),
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
