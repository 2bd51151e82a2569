"""From structures to the tensors of one forward pass.

`Graph` is one structure with its pairs (numpy, built once); `Batch` is several graphs laid out for speed:
atoms sorted by element so that element-dependent maps are plain matrix products on slices, the directed
edges of each receiver in K padded slots so that aggregation is a batched matrix product without scatter.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from .config import InputConfig
from .errors import DataError, UnknownElementError
from .inputs import read_inputs
from .neighbors import Pairs, find_pairs
from .quantities import INPUTS

COINCIDENT_A = 1e-4


@dataclass(frozen=True)
class Graph:
    """One structure: species are indices into the model's elements, fidelity into its fidelities."""

    positions: np.ndarray  # [A,3] Å
    species: np.ndarray  # [A]
    cell: np.ndarray  # [3,3] rows
    pbc: np.ndarray  # [3]
    pairs: Pairs
    fidelity: int = 0
    inputs: Mapping[str, np.ndarray] = field(default_factory=dict)  # conditions, by their names


@dataclass(frozen=True)
class Batch:
    """Tensors of S structures with A atoms; P pairs plus one dummy (of each copy); K slots per atom.

    The dummy pair has a constant length beyond the cutoff: padding slots point to it and contribute an
    exact zero to values and derivatives.
    """

    positions: Tensor  # [A,3] float64, sorted by element
    cells: Tensor  # [S,3,3] float64
    periodic: Tensor  # [S] bool: all three axes
    pbc: Tensor  # [S,3] bool
    structure: Tensor  # [A] owner of each atom
    species: Tensor  # [A]
    species_counts: tuple[int, ...]  # atoms of each element, a partition of the sorted axis
    fidelity: Tensor  # [S]
    original: Tensor  # [A] sorted position of the atom that came n-th in the input
    pair_i: Tensor  # [P]
    pair_j: Tensor  # [P]
    pair_shift: Tensor  # [P,3] float64
    pair_structure: Tensor  # [P]
    slots: int  # K
    slot_sender: Tensor  # [A·K]
    slot_reverse: Tensor  # [A·K] the slot of the opposite edge; a padding slot is its own
    slot_pair: Tensor  # [A·K] P for padding
    slot_sign: Tensor  # [A·K] +1 where the receiver is the pair's i, −1 where it is j, 0 for padding
    pair_slots: Tensor  # [2, P+1] the two slots of each pair; the dummy's are arbitrary
    n_atoms: Tensor  # [S]
    inputs: Mapping[str, Tensor]  # [S, ...] or [A, ...] (sorted) float64, by the names of `quantities.INPUTS`
    padding: float = 1.0  # slots per real edge, for diagnosis
    copy: Tensor | None = None  # [A] number of the copy that an atom belongs to, see `copies`
    # periodic axes and atoms of every structure, for whoever would have to ask a GPU for them and wait
    layout: tuple[tuple[int, int], ...] = ()

    @property
    def n_structures(self) -> int:
        return self.cells.shape[0]

    @property
    def n_copies(self) -> int:
        """See `copies`."""
        return 1 if self.copy is None else len(self.species) // sum(self.species_counts)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        sent = functools.partial(send, device=device)
        moved: dict[str, Any] = {k: sent(v) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved, inputs={k: sent(v) for k, v in self.inputs.items()})


def send(x: Tensor, device: torch.device | str) -> Tensor:
    """On a device; without waiting for it where that is safe, which is on the way to a GPU."""
    return x.to(device, non_blocking=torch.device(device).type == "cuda")


def species_index(numbers: np.ndarray, elements: Sequence[int]) -> np.ndarray:
    """Map atomic numbers to positions in `elements` (sorted).

    Raises:
        UnknownElementError: names the elements that are missing.
    """
    table = np.full(120, -1, dtype=np.int64)
    table[list(elements)] = np.arange(len(elements))
    species = table[numbers]
    if (species < 0).any():
        from ase.data import chemical_symbols

        missing = sorted({chemical_symbols[z] for z in np.asarray(numbers)[species < 0]})
        known = ", ".join(chemical_symbols[z] for z in elements)
        raise UnknownElementError(f"the model does not know {', '.join(missing)}; it was built for {known}")
    return np.asarray(species)


def make_graph(
    atoms: Atoms,
    elements: Sequence[int],
    *,
    cutoff: float,
    fidelity: int = 0,
    inputs: Sequence[InputConfig] = (),
) -> Graph:
    """Species, pairs and conditions of one structure.

    Raises:
        UnknownElementError: an element outside `elements`.
        DataError: no atoms, non-finite coordinates, an impossible cell, or a condition that is missing.
    """
    if len(atoms) == 0:
        raise DataError("a structure without atoms cannot be evaluated")
    positions = np.asarray(atoms.positions, dtype=np.float64)
    cell = np.asarray(atoms.cell, dtype=np.float64)
    if not (np.isfinite(positions).all() and np.isfinite(cell).all()):
        raise DataError(f"{atoms.get_chemical_formula()}: positions or cell are not finite")
    pbc = np.asarray(atoms.pbc, dtype=bool)
    try:
        pairs = find_pairs(positions, cell, pbc, cutoff=cutoff)
    except ValueError as error:
        raise DataError(f"{atoms.get_chemical_formula()}: {error}") from error
    _refuse_coincidence(atoms, positions, cell, pairs)
    species = species_index(atoms.numbers, elements)
    return Graph(positions, species, cell, pbc, pairs, fidelity, read_inputs(atoms, inputs))


def _refuse_coincidence(atoms: Atoms, positions: np.ndarray, cell: np.ndarray, pairs: Pairs) -> None:
    """Two atoms in one place have no direction between them: their forces would be NaN."""
    vectors = positions[pairs.i] - positions[pairs.j] - pairs.shift @ cell
    square = np.einsum("px,px->p", vectors, vectors)
    if len(square) and square.min() < COINCIDENT_A**2:
        n = int(square.argmin())
        raise DataError(
            f"{atoms.get_chemical_formula()}: atoms {pairs.i[n]} and {pairs.j[n]} are in the same place "
            f"({square[n] ** 0.5:.1e} Å apart); one of them is a duplicate"
        )


def collate(graphs: Sequence[Graph], n_species: int) -> Batch:
    """Lay out several graphs as one batch; their pairs may reach beyond the model's cutoff (a skin)."""
    counts = np.array([len(g.species) for g in graphs])
    start = np.concatenate([[0], np.cumsum(counts)])
    species = np.concatenate([g.species for g in graphs])
    order = np.argsort(species, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    structure = np.repeat(np.arange(len(graphs)), counts)

    i = place[np.concatenate([g.pairs.i + o for g, o in zip(graphs, start, strict=False)])]
    j = place[np.concatenate([g.pairs.j + o for g, o in zip(graphs, start, strict=False)])]
    shift = np.concatenate([g.pairs.shift @ g.cell for g in graphs])
    owner = np.repeat(np.arange(len(graphs)), [len(g.pairs.i) for g in graphs])
    slots = _slots(i, j, len(species))
    as_tensor = torch.from_numpy
    positions = np.concatenate([g.positions for g in graphs])[order]
    return Batch(
        positions=as_tensor(np.ascontiguousarray(positions)),
        cells=as_tensor(np.stack([g.cell for g in graphs])),
        periodic=as_tensor(np.array([bool(g.pbc.all()) for g in graphs])),
        structure=as_tensor(structure[order]),
        species=as_tensor(species[order]),
        species_counts=tuple(np.bincount(species, minlength=n_species).tolist()),
        pbc=as_tensor(np.stack([g.pbc for g in graphs])),
        fidelity=as_tensor(np.array([g.fidelity for g in graphs], dtype=np.int64)),
        original=as_tensor(place),
        pair_i=as_tensor(i),
        pair_j=as_tensor(j),
        pair_shift=as_tensor(shift),
        pair_structure=as_tensor(owner),
        n_atoms=as_tensor(counts),
        inputs=_inputs(graphs, order),
        layout=tuple((int(g.pbc.sum()), len(g.species)) for g in graphs),
        **slots,
    )


def copies(batch: Batch, number: int) -> Batch:
    """The batch several times, one copy after another: structures, atoms and pairs alike.

    Atoms are sorted by element within each copy, and `species_counts` are those of one copy. Each has a dummy
    pair, so that rows of pairs are [M·(P+1)].
    """
    if number == 1:
        return batch
    atoms, structures, pairs = len(batch.species), batch.n_structures, len(batch.pair_i)

    def again(x: Tensor, step: int = 0) -> Tensor:
        if not step:
            return _again(x, number)
        return _again(x, number) + torch.arange(number, device=x.device).repeat_interleave(len(x)) * step

    slots = batch.slots * atoms
    pair_slots = again(batch.pair_slots.T.contiguous())
    step = torch.arange(number, device=pair_slots.device).repeat_interleave(pairs + 1) * slots
    return replace(
        batch,
        positions=again(batch.positions),
        cells=again(batch.cells),
        pair_shift=again(batch.pair_shift),
        periodic=again(batch.periodic),
        pbc=again(batch.pbc),
        structure=again(batch.structure, structures),
        species=again(batch.species),
        fidelity=again(batch.fidelity),
        original=again(batch.original, atoms),
        pair_i=again(batch.pair_i, atoms),
        pair_j=again(batch.pair_j, atoms),
        pair_structure=again(batch.pair_structure, structures),
        slot_sender=again(batch.slot_sender, atoms),
        slot_reverse=again(batch.slot_reverse, slots),
        slot_pair=again(batch.slot_pair, pairs + 1),
        slot_sign=again(batch.slot_sign),
        pair_slots=(pair_slots + step.unsqueeze(1)).T.contiguous(),
        n_atoms=again(batch.n_atoms),
        inputs={name: again(x) for name, x in batch.inputs.items()},
        layout=batch.layout * number,
        copy=torch.arange(number, device=batch.species.device).repeat_interleave(atoms),
    )


def moved_copies(made: Batch, batch: Batch) -> Batch:
    """`copies` of a batch of which those of the same atoms and pairs, elsewhere, are there already."""
    number = made.n_copies
    return replace(
        made,
        positions=_again(batch.positions, number),
        cells=_again(batch.cells, number),
        pair_shift=_again(batch.pair_shift, number),
    )


def _again(x: Tensor, number: int) -> Tensor:
    return x.repeat(number, *[1] * (x.ndim - 1))


def _inputs(graphs: Sequence[Graph], order: np.ndarray) -> dict[str, Tensor]:
    found = {}
    for name in graphs[0].inputs:
        values = [g.inputs[name] for g in graphs]
        if INPUTS[name].scope == "structure":
            found[name] = torch.from_numpy(np.stack(values))
        else:
            found[name] = torch.from_numpy(np.concatenate(values)[order])
    return found


def _slots(i: np.ndarray, j: np.ndarray, n_atoms: int) -> dict[str, Any]:
    """Give each directed edge a slot at its receiver."""
    pairs = len(i)
    receiver = np.concatenate([i, j])
    degree = np.bincount(receiver, minlength=n_atoms)
    width = max(1, int(degree.max(initial=0)))
    by_receiver = np.argsort(receiver, kind="stable")
    first = np.concatenate([[0], np.cumsum(degree)[:-1]])
    rank = np.empty(2 * pairs, dtype=np.int64)
    rank[by_receiver] = np.arange(2 * pairs) - first[receiver[by_receiver]]
    slot = receiver * width + rank
    total = n_atoms * width
    sender = np.repeat(np.arange(n_atoms), width)
    sender[slot] = np.concatenate([j, i])
    reverse = np.arange(total)
    reverse[slot] = np.concatenate([slot[pairs:], slot[:pairs]])
    pair = np.full(total, pairs)
    pair[slot] = np.concatenate([np.arange(pairs), np.arange(pairs)])
    sign = np.zeros(total)
    sign[slot[:pairs]], sign[slot[pairs:]] = 1.0, -1.0
    return {
        "slots": width,
        "slot_sender": torch.from_numpy(sender),
        "slot_reverse": torch.from_numpy(reverse),
        "slot_pair": torch.from_numpy(pair),
        "slot_sign": torch.from_numpy(sign),
        # the dummy pair only ever multiplies zeros, so that its slots may be any
        "pair_slots": torch.from_numpy(np.pad(slot.reshape(2, pairs), ((0, 0), (0, 1)))),
        "padding": total / max(1, 2 * pairs),
    }
