"""Derivatives of any model that maps a batch and a geometry to energies (spec §12, §13).

The strain acts on positions and lattice alike; F = −∂E/∂x, σ = (1/V) ∂E/∂ε with ε symmetrised (ASE sign).
A field is held fixed under strain. With a field E is the enthalpy U − P·𝓔 (FITACE eqs. 22 to 24).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .batch import Batch
from .geometry import Geometry, pair_vectors
from .les import atomic_les_energies, atomic_les_virials
from .les_born import latent_born_charges
from .model import OutputTerms, Tace

FIELD = "electric_field"
MOMENTS = {"magnetic_forces": "magnetic_moments", "collinear_forces": "collinear_moments"}
ALWAYS_THERE = ("latent_charges",)  # outputs that cost nothing more
_OF_FIELD = ("dipole", "polarization", "polarizability", "born_charges")


class Evaluation(NamedTuple):
    """Atoms in the order of the input structures; None where not asked for."""

    energies: Tensor  # [S] float64
    forces: Tensor | None  # [A,3] float64
    stresses: Tensor | None  # [S,3,3] float64; NaN for a structure that is not periodic in 3D
    features: Tensor  # [A, D]
    outputs: dict[str, Tensor]  # heads, latent charges and responses by name


class Leaves(NamedTuple):
    """What energies are differentiated with respect to."""

    positions: Tensor
    strain: Tensor | None
    inputs: Mapping[str, Tensor]


def make_leaves(batch: Batch, *, stress: bool, inputs: Collection[str] = ()) -> Leaves:
    """Fresh leaves for one evaluation; `inputs` names conditions among them."""
    strain = None
    if stress:
        strain = torch.zeros_like(batch.cells).requires_grad_(True)
    conditions = {n: batch.inputs[n].detach().clone().requires_grad_(True) for n in inputs}
    return Leaves(batch.positions.detach().clone().requires_grad_(True), strain, conditions)


def strained_geometry(
    model: Tace, batch: Batch, leaves: Leaves, *, free_vectors: bool = False
) -> tuple[Geometry, Tensor | None]:
    """Geometry of the batch under the leaves' strain: x ← x(1+ε), h ← h(1+ε).

    Args:
        free_vectors: the pair vectors are returned too, cut from the positions, for atomic virials.
    """
    positions, shift, cells = leaves.positions, batch.pair_shift, batch.cells
    if leaves.strain is not None:
        symmetric = 0.5 * (leaves.strain + leaves.strain.transpose(1, 2))
        by_atom = symmetric.index_select(0, batch.structure)
        by_pair = symmetric.index_select(0, batch.pair_structure)
        positions = positions + torch.bmm(positions.unsqueeze(1), by_atom).squeeze(1)
        shift = shift + torch.bmm(shift.unsqueeze(1), by_pair).squeeze(1)
        cells = cells + torch.bmm(cells, symmetric)
    vectors = None
    if free_vectors:
        vectors = pair_vectors(batch, positions, shift).detach().requires_grad_(True)
    return model.geometry(batch, positions, shift, cells=cells, vectors=vectors), vectors


def differentiate(
    energies: Tensor, batch: Batch, leaves: Leaves, *, create_graph: bool = False, keep: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Forces [A,3] in input order, and stresses [S,3,3] if the leaves hold a strain.

    Args:
        create_graph: forces can be differentiated again (training).
        keep: the graph is needed once more (next member of a committee).
    """
    inputs = [leaves.positions] if leaves.strain is None else [leaves.positions, leaves.strain]
    grads = gradient(energies, inputs, create_graph=create_graph, keep=keep)
    forces = -grads[0].index_select(0, batch.original)
    if leaves.strain is None:
        return forces, None
    return forces, stresses_of(grads[1], batch)


def gradient(
    values: Tensor, inputs: list[Tensor], *, create_graph: bool = False, keep: bool = False
) -> list[Tensor]:
    """∂ Σ values / ∂ inputs; zeros where a value depends on nothing (a batch of isolated atoms)."""
    if not values.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    return list(
        torch.autograd.grad(
            values.sum(),
            inputs,
            create_graph=create_graph,
            retain_graph=create_graph or keep,
            materialize_grads=True,
        )
    )


def stresses_of(slope: Tensor, batch: Batch) -> Tensor:
    """[S,3,3] from the slope ∂E/∂ε of each structure; NaN where it is not periodic along all three axes."""
    volume = torch.where(batch.periodic, torch.linalg.det(batch.cells).abs(), 1.0)
    # NaN is put in last: a division by NaN would turn the zero gradient of a masked loss into NaN
    return (slope / volume[:, None, None]).where(batch.periodic[:, None, None], torch.nan)


def evaluate(
    model: Tace,
    batch: Batch,
    *,
    forces: bool = True,
    stress: bool = False,
    create_graph: bool = False,
    responses: Collection[str] = (),
    hessian_rows: Tensor | None = None,
) -> Evaluation:
    """Energies and what is asked for; without `create_graph` nothing of the graph is kept.

    Args:
        responses: names of `responses.available(config)` that are derivatives: they are added to
            `outputs`, where the values of heads and the latent charges always are.
        hessian_rows: [k, S], a component (atom · 3 + axis) of each structure; its k rows of the Hessian
            [k, A, 3] are put into `outputs`.
    """
    wanted = set(responses) - {head.name for head in model.config.heads}
    field = bool(wanted & set(_OF_FIELD)) and FIELD in batch.inputs
    asked = [FIELD] if field else []
    asked += [MOMENTS[name] for name in MOMENTS if name in wanted]
    leaves = make_leaves(batch, stress=stress, inputs=asked)
    batch = replace(batch, inputs={**batch.inputs, **leaves.inputs})
    first = forces or stress or bool(asked) or hessian_rows is not None
    second = hessian_rows is not None or bool(wanted & {"polarizability", "born_charges"})
    with torch.set_grad_enabled(first or create_graph or bool(wanted)):
        geometry, _ = strained_geometry(model, batch, leaves)
        terms: OutputTerms = model(batch, geometry)
        found, f, s = {}, None, None
        if first:
            sources = [leaves.positions, *leaves.inputs.values()]
            sources += [] if leaves.strain is None else [leaves.strain]
            keep = bool(wanted) or second
            slopes = gradient(terms.energies, sources, create_graph=create_graph or second, keep=keep)
            f = -slopes[0].index_select(0, batch.original)
            s = None if leaves.strain is None else stresses_of(slopes[-1], batch)
            found = _of_inputs(slopes, wanted, batch, leaves, create_graph=create_graph)
            if hessian_rows is not None:
                found["hessian_rows"] = _hessian_rows(
                    slopes[0], hessian_rows, batch, leaves, create_graph=create_graph
                )
        if "born_charges" in wanted and not field:
            assert model.config.les is not None
            assert terms.charges is not None
            born = latent_born_charges(
                terms.charges, leaves.positions, batch, model.config.les, create_graph=create_graph
            )
            found["born_charges"] = born.index_select(0, batch.original)
    found |= _of_atoms(model, batch, wanted)
    result = Evaluation(
        terms.energies,
        f if forces else None,
        s,
        terms.features.index_select(0, batch.original).detach(),
        {**_in_order(model, terms, batch), **found},
    )
    return result if create_graph else _detached(result)


def _detached(result: Evaluation) -> Evaluation:
    return Evaluation(
        result.energies.detach(),
        None if result.forces is None else result.forces.detach(),
        None if result.stresses is None else result.stresses.detach(),
        result.features,
        {name: value.detach() for name, value in result.outputs.items()},
    )


def _of_inputs(
    slopes: list[Tensor], wanted: set[str], batch: Batch, leaves: Leaves, *, create_graph: bool
) -> dict[str, Tensor]:
    """Responses to conditions from the slopes of the energy with respect to positions and conditions."""
    of = dict(zip(leaves.inputs, slopes[1:], strict=False))
    found = {
        name: -of[source].index_select(0, batch.original)
        for name, source in MOMENTS.items()
        if name in wanted
    }
    if FIELD in of:
        found |= _of_field(-of[FIELD], wanted, batch, leaves, create_graph=create_graph)
    return found


def _in_order(model: Tace, terms: OutputTerms, batch: Batch) -> dict[str, Tensor]:
    found = {
        head.name: terms.outputs[head.name].index_select(0, batch.original)
        if head.scope == "atom"
        else terms.outputs[head.name]
        for head in model.config.heads
    }
    if terms.charges is not None:
        found["latent_charges"] = terms.charges.index_select(0, batch.original)
    return found


def _of_field(
    moment: Tensor, wanted: set[str], batch: Batch, leaves: Leaves, *, create_graph: bool
) -> dict[str, Tensor]:
    """P = −∂E/∂𝓔 [S,3] and its derivatives Z*_ab = ∂P_a/∂x_b, α_ab = ∂P_a/∂𝓔_b."""
    found = dict.fromkeys(wanted & {"dipole", "polarization"}, moment)
    if not wanted & {"polarizability", "born_charges"}:
        return found
    rows = [
        gradient(
            moment[:, a],
            [leaves.positions, leaves.inputs[FIELD]],
            create_graph=create_graph,
            keep=True,
        )
        for a in range(3)
    ]
    if "born_charges" in wanted:
        found["born_charges"] = torch.stack([r[0] for r in rows], 1).index_select(0, batch.original)
    if "polarizability" in wanted:
        found["polarizability"] = torch.stack([r[1] for r in rows], 1)
    return found


def _hessian_rows(
    slope: Tensor, rows: Tensor, batch: Batch, leaves: Leaves, *, create_graph: bool
) -> Tensor:
    """∂²E/∂x_r∂x [k, A, 3] in input order, from the slope ∂E/∂x in sorted order."""
    first = torch.cumsum(batch.n_atoms, 0) - batch.n_atoms
    found = []
    for row in rows:
        atoms = batch.original.index_select(0, first + row // 3)
        chosen = slope[atoms, row % 3]
        second = gradient(chosen, [leaves.positions], create_graph=create_graph, keep=True)[0]
        found.append(second.index_select(0, batch.original))
    return torch.stack(found)


def _of_atoms(model: Tace, batch: Batch, wanted: set[str]) -> dict[str, Tensor]:
    """Partitions over atoms, from a second forward pass; for inspection, not for training."""
    found: dict[str, Tensor] = {}
    if not wanted & {"atomic_energies", "atomic_virials"}:
        return found
    les = model.config.les
    leaves = make_leaves(batch, stress=False)
    with torch.enable_grad():
        geometry, vectors = strained_geometry(model, batch, leaves, free_vectors=True)
        assert vectors is not None
        terms = model(batch, geometry)
        slope = gradient(terms.energies, [vectors], keep=False)[0]
    charges = None if terms.charges is None else terms.charges.detach()
    place = (batch.positions, batch.cells, batch)
    if "atomic_energies" in wanted:
        node = terms.node_energies.detach()
        if les is not None and charges is not None:
            node = node + atomic_les_energies(charges, *place, les)
        found["atomic_energies"] = node.index_select(0, batch.original)
    if "atomic_virials" in wanted:
        outer = slope.unsqueeze(2) * vectors.detach().unsqueeze(1)
        half = -0.25 * (outer + outer.transpose(1, 2))
        virials = torch.zeros(len(batch.species), 3, 3, dtype=half.dtype, device=half.device)
        virials = virials.index_add(0, batch.pair_i, half).index_add(0, batch.pair_j, half)
        if les is not None and charges is not None:
            virials = virials + atomic_les_virials(charges, *place, les)
        found["atomic_virials"] = virials.index_select(0, batch.original)
    return found


def voigt(stress: Tensor) -> Tensor:
    """[..., 3, 3] → [..., 6] in the order xx yy zz yz xz xy."""
    rows, columns = [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]
    return stress[..., rows, columns]
