"""Latent Ewald summation: energy of learned charges in molecules, crystals and slabs (spec §11).

`les_energies` chooses by the periodicity of each structure, never by its cell: none → sum over pairs,
all three axes → reciprocal sum, two → the same with the correction of slabs; wires are refused. Above
`mesh_above_atoms` the reciprocal sum is taken on a mesh. The kinds may share a batch. Partitions over
atoms follow from the energy being quadratic in the charges.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .batch import Batch, send
from .config import LesConfig
from .errors import DataError
from .kernel_calls import recording
from .les_born import latent_born_charges
from .les_mesh import mesh_sum
from .les_sums import Sources, lattice_sum, molecule_sum, self_energy, slab_sum

__all__ = [
    "atomic_les_energies",
    "atomic_les_virials",
    "constrain",
    "latent_born_charges",
    "les_energies",
]


def constrain(charges: Tensor, batch: Batch, config: LesConfig) -> Tensor:
    """Charges [A,n_q] whose sums over each structure obey `config.constraint`; the shift is uniform.

    'neutral': every channel sums to zero. 'total_charge': channel 0 sums to `total_charge` of the structure,
    the others to zero. A uniform shift also charges atoms without neighbours.

    Raises:
        DataError: the batch has no total charges although they are asked for.
    """
    if config.constraint == "none":
        return charges
    counts = batch.n_atoms.to(charges.dtype).unsqueeze(1)
    sums = charges.new_zeros(batch.n_structures, charges.shape[1]).index_add(0, batch.structure, charges)
    target = torch.zeros_like(sums)
    if config.constraint == "total_charge":
        if "total_charge" not in batch.inputs:
            raise DataError(
                "les.constraint is total_charge but the structures come without it; give each its "
                "info['total_charge'], or set les.constraint to none or neutral"
            )
        total = batch.inputs["total_charge"].to(charges.dtype).unsqueeze(1)
        target = torch.cat([total, target[:, 1:]], 1)
    return charges + ((target - sums) / counts).index_select(0, batch.structure)


def les_energies(
    charges: Tensor, positions: Tensor, cells: Tensor, batch: Batch, config: LesConfig
) -> Tensor:
    """Energy of each structure [S], eV, float64, differentiable at least twice in all three tensors.

    Args:
        charges: [A,n_q] of any float dtype, sorted like the batch; energies of channels add.
        positions: [A,3] float64, cells [S,3,3] float64: both strained if there is a strain.

    Raises:
        DataError: a structure is periodic along one axis only.
    """
    charges = charges.double()
    if recording():  # which sums there are depends on cells, and a graph has to hold for all
        from .recorded import recorded_les  # it needs the sums below

        return recorded_les(charges, positions, cells, batch, config)
    energies = torch.zeros(batch.n_structures, dtype=torch.float64, device=positions.device)
    layout = _layout(batch)
    for axes in sorted({kind for kind, _ in layout}):
        structures = [n for n, (kind, _) in enumerate(layout) if kind == axes]
        if axes == 1:
            raise DataError(
                f"structure {structures[0]} of the batch is periodic along one axis only, for which "
                "latent charges have no Ewald sum; use pbc along all three axes with a wide vacuum, along "
                "two axes, or along none"
            )
        if axes == 0:
            part = _molecules(charges, positions, structures, batch, config)
            energies = energies.index_add(0, _on(structures, energies), part)
        else:
            energies = _periodic(energies, (charges, positions, cells), structures, batch, config)
    squares = torch.zeros_like(energies).index_add(0, batch.structure, charges.square().sum(1))
    # pairs leave the self term out, reciprocal sums have it in
    present = self_energy(config) * squares
    return energies - torch.where(batch.pbc.any(1), present, 0.0) + (0.0 if config.remove_self else present)


def _layout(batch: Batch) -> Sequence[tuple[int, int]]:
    """Periodic axes and atoms of every structure; of a batch that does not say, its tensors are asked."""
    return batch.layout or list(zip(batch.pbc.sum(1).tolist(), batch.n_atoms.tolist(), strict=True))


def _on(numbers: Sequence[int], like: Tensor) -> Tensor:
    return send(torch.tensor(numbers), like.device)


def _molecules(
    charges: Tensor, positions: Tensor, structures: Sequence[int], batch: Batch, config: LesConfig
) -> Tensor:
    chosen, sizes = batch.original, [n for _, n in _layout(batch)]
    if len(structures) < len(sizes):
        first = list(itertools.accumulate(sizes, initial=0))
        rows = itertools.chain.from_iterable(range(first[n], first[n + 1]) for n in structures)
        chosen = chosen.index_select(0, _on(list(rows), chosen))
        sizes = [sizes[n] for n in structures]
    return molecule_sum(charges.index_select(0, chosen), positions.index_select(0, chosen), sizes, config)


def _periodic(
    energies: Tensor,
    fields: tuple[Tensor, Tensor, Tensor],
    structures: Sequence[int],
    batch: Batch,
    config: LesConfig,
) -> Tensor:
    """`energies` plus those of crystals or slabs; the few too large for a direct sum go one by one."""
    layout, most = _layout(batch), config.mesh_above_atoms or math.inf
    small = [n for n in structures if layout[n][1] <= most]
    groups = [(small, lattice_sum)] if small else []
    groups += [([n], mesh_sum) for n in structures if layout[n][1] > most]
    for numbers, reciprocal in groups:
        chosen = _on(numbers, batch.structure)
        sources = _gather(*fields, batch, chosen, most=max(layout[n][1] for n in numbers))
        if layout[numbers[0]][0] == 3:
            part = reciprocal(sources, config)
        else:
            pbc = batch.pbc.index_select(0, chosen)
            part = slab_sum(sources, pbc, config, reciprocal=reciprocal)
        energies = energies.index_add(0, chosen, part)
    return energies


def _gather(
    charges: Tensor, positions: Tensor, cells: Tensor, batch: Batch, structures: Tensor, *, most: int
) -> Sources:
    """Of some structures, of at most so many atoms."""
    counts = batch.n_atoms.index_select(0, structures)
    start = (batch.n_atoms.cumsum(0) - batch.n_atoms).index_select(0, structures)
    slot = torch.arange(most, device=start.device)
    real = slot < counts.unsqueeze(1)
    place = batch.original[start.unsqueeze(1) + torch.where(real, slot, 0)]
    shape = (*place.shape, -1)
    return Sources(
        charges.index_select(0, place.flatten()).view(shape) * real.unsqueeze(2),
        positions.index_select(0, place.flatten()).view(shape),
        cells.index_select(0, structures),
    )


def atomic_les_energies(
    charges: Tensor, positions: Tensor, cells: Tensor, batch: Batch, config: LesConfig
) -> Tensor:
    """½ q_i φ_i of each atom [A], self energy treated as in `les_energies`, whose values these sum to.

    The energy is quadratic in the charges, so that φ = ∂E/∂q; the correction of slabs is shared the same way.
    """
    keep = _keeps_graph(charges, positions, cells)
    with torch.enable_grad():
        charges = _differentiable(charges)
        energies = les_energies(charges, positions, cells, batch, config)
        (potential,) = torch.autograd.grad(energies.sum(), charges, create_graph=True)
    found = 0.5 * (charges * potential).sum(1)
    return found if keep else found.detach()


def atomic_les_virials(
    charges: Tensor, positions: Tensor, cells: Tensor, batch: Batch, config: LesConfig
) -> Tensor:
    """Share of each atom in −∂E/∂ε at fixed charges: [A,3,3], eV, symmetric; sums to the virial.

    A pair of a molecule gives half to each end; of a reciprocal vector atom i takes the share that it has
    in the energy, ½ q_i ∂(−∂E/∂ε)/∂q_i.

    Raises:
        DataError: a structure is a slab or a wire, for which strain out of the plane has no meaning.
    """
    partial = ~(batch.pbc.all(1) | ~batch.pbc.any(1))
    if bool(partial.any()):
        raise DataError(
            f"structure {int(partial.nonzero()[0])} of the batch is periodic along some axes only; atomic "
            "virials of latent charges need all axes periodic, or none"
        )
    keep = _keeps_graph(charges, positions, cells)
    with torch.enable_grad():
        charges = _differentiable(charges)
        strain = torch.zeros_like(batch.cells).requires_grad_(True)
        symmetric = 0.5 * (strain + strain.transpose(1, 2))
        by_atom = symmetric.index_select(0, batch.structure)
        moved = positions + torch.bmm(positions.unsqueeze(1), by_atom).squeeze(1)
        energies = les_energies(charges, moved, cells + cells @ symmetric, batch, config)
        (slope,) = torch.autograd.grad(energies.sum(), strain, create_graph=True)
        shares = {}
        for a, b in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):
            (part,) = torch.autograd.grad(
                slope[:, a, b].sum(), charges, create_graph=True, materialize_grads=True
            )
            shares[a, b] = shares[b, a] = -0.5 * (charges * part).sum(1)
    virials = torch.stack([shares[a, b] for a in range(3) for b in range(3)], 1).view(-1, 3, 3)
    return virials if keep else virials.detach()


def _keeps_graph(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _differentiable(charges: Tensor) -> Tensor:
    charges = charges.double()
    return charges if charges.requires_grad else charges.detach().clone().requires_grad_(True)
