"""Quantities read directly off the features: numbers and tensors with index symmetries (spec §9).

A tensor is a sum of irreducible parts (`tensors.index_symmetry`); each part is a number of
components of one weight w, read linearly from the features of rank w of every layer. Two kinds of parts
have no features of their own and are products of two features of the last layer: weights above l_max, and
pseudo-tensors, as the antisymmetric part of a shielding tensor.

Units are those of the labels. Sums over atoms, scales and offsets are float64, whatever the model is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .batch import Batch
from .config import HeadConfig, TaceConfig
from .errors import DataError, TaceError
from .ict import allowed, coupling
from .initial import READOUT_START
from .layers import Linear, References
from .offsets import fit_offsets
from .tensors import Block, index_symmetry, pseudo_allowed, pseudo_coupling, rank_of

Features = Sequence[Mapping[int, Tensor]]  # of every layer, by rank: [A, 2l+1, C]
FOREIGN_SHARE = 0.1  # largest part of labels that may break the index symmetry of their head


# ------------------------------------------------------------------ which features a head reads
def products_for(block: Block, l_max: int, *, where: str = "head") -> tuple[tuple[int, ...], ...]:
    """Ranks (a, b) whose products give a part that no feature has; for a pseudo-scalar (a, b, c).

    Of a natural part a + b = w. Of a pseudo-tensor all a ≤ b ≤ w + 1: one pair would leave sites blind,
    as (1, 1) does with those that have a centre of inversion, where vectors vanish. A pseudo-scalar needs
    three natural tensors.

    Raises:
        TaceError: l_max is too small.
    """
    w = block.weight
    found: list[tuple[int, ...]]
    if block.natural:
        found = [(a, w - a) for a in range(1, w // 2 + 1) if w - a <= l_max]
    elif w:
        ranks = range(1, min(l_max, w + 1) + 1)
        found = [(a, b) for a in ranks for b in ranks if a <= b and pseudo_allowed(a, b, w)]
    else:
        found = [t for t in ((1, 1, 1), (1, 2, 2)) if max(t) <= l_max]
    if not found:
        kind = "" if block.natural else "pseudo-"
        raise TaceError(f"{where} needs a {kind}tensor of weight {w}, which l_max = {l_max} does not reach")
    return tuple(found)


def _direct(block: Block, l_max: int) -> bool:
    return block.natural and block.weight <= l_max


def needed_ranks(heads: Iterable[HeadConfig], l_max: int) -> set[int]:
    """Ranks of features that the last layer has to give for these heads.

    Raises:
        TaceError: an index symmetry that cannot be read, or one that needs a larger l_max.
    """
    ranks: set[int] = set()
    for head in heads:
        for block in index_symmetry(head.symmetry):
            if _direct(block, l_max):
                ranks.add(block.weight)
            else:
                ranks.update(*products_for(block, l_max, where=f"head {head.name}"))
        if head.hidden:
            ranks.add(0)
    return ranks


# ------------------------------------------------------------------ readouts
class Readout(nn.Module):
    """Features of one rank → n_out of it [A, 2l+1, n_out]: a linear map of each layer that has them.

    With `hidden`, the last layer also goes through W·(SiLU(U h_0)·V h_l), of scalars W·SiLU(U h_0).
    Without biases: features of zero give zero.
    """

    def __init__(
        self,
        rank: int,
        n_out: int,
        layer_ranks: Sequence[Sequence[int]],
        *,
        channels: int,
        hidden: int,
        generator: torch.Generator,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.rank = rank
        self.sources = [t for t, ranks in enumerate(layer_ranks) if rank in ranks]
        if not self.sources:
            raise ValueError(f"no layer gives features of rank {rank}")
        self.linear = nn.ModuleList(
            Linear(channels, n_out, generator, gain, start=READOUT_START) for _ in self.sources
        )
        self.gate = Linear(channels, hidden, generator) if hidden else None
        self.values = Linear(channels, hidden, generator) if hidden and rank else None
        self.out = Linear(hidden, n_out, generator, gain, start=READOUT_START) if hidden else None

    def forward(self, features: Features) -> Tensor:
        parts = [linear(features[t][self.rank]) for t, linear in zip(self.sources, self.linear, strict=True)]
        if self.gate is not None and self.out is not None:
            last = features[-1]
            hidden = nn.functional.silu(self.gate(last[0]))
            if self.values is not None:
                hidden = hidden * self.values(last[self.rank])
            parts.append(self.out(hidden))
        return torch.stack(parts).sum(0)


class ProductReadout(nn.Module):
    """Products of features of the last layer → n_out of a part that no feature has, [A, 2w+1, n_out].

    The channels of both factors are mixed first, by maps of their own: the pseudo-tensor of two equal
    factors of one rank is zero.
    """

    def __init__(
        self, block: Block, n_out: int, config: TaceConfig, *, where: str, generator: torch.Generator
    ) -> None:
        super().__init__()
        c = config.channels
        self.products = products_for(block, config.l_max, where=where)
        self.factors = nn.ModuleList(
            nn.ModuleList(Linear(c, c, generator) for _ in ranks) for ranks in self.products
        )
        for n, (a, b, *third) in enumerate(self.products):
            to = third[0] if third else block.weight
            g = coupling(a, b, to) if allowed(a, b, to) else pseudo_coupling(a, b, to)
            # factors of unit variance give products of unit variance (spec §1.4)
            unit = (1 if third else 2 * to + 1) / float((g**2).sum())
            matrix = torch.from_numpy(g.reshape(-1, 2 * to + 1).T * math.sqrt(unit))
            self.register_buffer(f"coupling{n}", matrix, persistent=False)
        self.out = Linear(c * len(self.products), n_out, generator, start=READOUT_START)

    def forward(self, features: Features) -> Tensor:
        last = features[-1]
        parts = []
        for n, (ranks, maps) in enumerate(zip(self.products, self.factors, strict=True)):
            assert isinstance(maps, nn.ModuleList)  # for mypy: a ModuleList holds modules of any kind
            x, y, *third = (mix(last[l]) for mix, l in zip(maps, ranks, strict=True))  # noqa: E741
            outer = (x.unsqueeze(2) * y.unsqueeze(1)).flatten(1, 2)
            z = torch.matmul(getattr(self, f"coupling{n}"), outer)
            parts.append((z * third[0]).sum(1, keepdim=True) if third else z)
        return self.out(torch.cat(parts, 2))


def of_level(x: Tensor, level: Tensor, n_levels: int) -> Tensor:
    """[A, m, n·F] → [A, m, n]: the columns of each atom's fidelity.

    A product with zeros and ones: the derivative with respect to the other columns is exactly zero, and
    its own derivative is not a scatter.
    """
    chosen = nn.functional.one_hot(level, n_levels).to(x.dtype)
    return (x.unflatten(2, (-1, n_levels)) * chosen[:, None, None, :]).sum(3)


def structure_sum(x: Tensor, structure: Tensor, n_structures: int) -> Tensor:
    """[A, ...] → [S, ...] by the owner of each atom."""
    return x.new_zeros((n_structures, *x.shape[1:])).index_add(0, structure, x)


# ------------------------------------------------------------------ what labels say
class HeadLabel(NamedTuple):
    """A label of one structure: [3, …, 3] or [] of a structure, [A, 3, …, 3] or [A] of atoms.

    Values of a structure or an atom that are not finite are unknown and left out.
    """

    species: np.ndarray  # [A] indices into the model's elements, in the order of the label
    value: np.ndarray
    fidelity: int


class HeadStatistics(NamedTuple):
    """Sizes and offsets that a head takes from its labels."""

    scale: np.ndarray  # [F] typical size of one component of one atom's irreducible parts
    shift: np.ndarray  # [F, Z, n] offset of the n natural scalar parts, per atom


def head_statistics(
    head: HeadConfig, labels: Iterable[HeadLabel], *, n_elements: int, n_fidelities: int
) -> HeadStatistics:
    """Offsets by `fit_offsets` on compositions (per-element means for atoms), scales from what is left.

    All levels are fitted together, then each is fitted by the smallest deviation from that, so that
    elements and levels without labels take what is known of the others.

    Raises:
        DataError: no labels, a wrong shape, or labels that break the index symmetry.
    """
    blocks = index_symmetry(head.symmetry)
    basis = _basis(blocks)
    counts, parts, levels, sizes = _rows(head, list(labels), basis, n_elements)
    n = _n_scalars(blocks)
    # the sum of N independent atoms deviates as √N: rows of equal variance
    weight = 1.0 / np.sqrt(sizes)[:, None] if head.scope == "structure" and head.reduce == "sum" else 1.0
    counts, parts = counts * weight, parts * weight
    shift = np.tile(fit_offsets(counts, parts[:, :n]), (n_fidelities, 1, 1))
    rest = parts.copy()
    for f in range(n_fidelities):
        own = levels == f
        if own.any():
            rest[own, :n] -= counts[own] @ shift[f]
            more = fit_offsets(counts[own], rest[own, :n])
            shift[f] += more
            rest[own, :n] -= counts[own] @ more
    masks = [levels == f for f in range(n_fidelities)]
    scale = [_rms(rest[own], parts[own]) if own.any() else _rms(rest, parts) for own in masks]
    return HeadStatistics(np.array(scale), shift)


def _rms(rest: np.ndarray, parts: np.ndarray) -> float:
    """Size of what the offsets leave; of all if they leave nothing, which says nothing; 1 of zeros."""
    left, all_of_it = (float(np.sqrt((x**2).mean())) for x in (rest, parts))
    return left if left > 1e-6 * all_of_it else all_of_it or 1.0


def _rows(
    head: HeadConfig, labels: Sequence[HeadLabel], basis: np.ndarray, n_elements: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of every known value: composition [R, Z], irreducible components [R, d], level [R], atoms [R]."""
    of_atoms = head.scope == "atom"
    tensor = (3,) * rank_of(head.symmetry)
    counts, values, levels, sizes = [], [], [], []
    for n, label in enumerate(labels):
        value = np.asarray(label.value, dtype=np.float64)
        atoms = len(label.species)
        expected = (atoms, *tensor) if of_atoms else tensor
        if value.shape != expected:
            raise DataError(
                f"head {head.name}: label {n} has shape {value.shape}, expected {expected} for "
                f"symmetry '{head.symmetry}' of {'atoms' if of_atoms else 'a structure'}"
            )
        one_hot = np.eye(n_elements)[label.species]
        mean = head.reduce == "mean"
        counts.append(one_hot if of_atoms else (one_hot.mean(0) if mean else one_hot.sum(0))[None])
        values.append(value.reshape(atoms if of_atoms else 1, -1))
        levels.append(np.full(len(values[-1]), label.fidelity))
        sizes.append(np.full(len(values[-1]), atoms))
    known = np.isfinite(np.concatenate(values)).all(1) if values else np.zeros(0, bool)
    if not known.any():
        raise DataError(f"head {head.name}: no structure has a label for it")
    value = np.concatenate(values)[known]
    parts = value @ basis.T
    share = np.linalg.norm(value - parts @ basis) / max(float(np.linalg.norm(value)), 1e-300)
    if share > FOREIGN_SHARE:
        raise DataError(
            f"head {head.name}: {share:.0%} of its labels (root mean square) do not obey the index "
            f"symmetry '{head.symmetry}'; correct the labels or choose another symmetry"
        )
    return np.concatenate(counts)[known], parts, np.concatenate(levels)[known], np.concatenate(sizes)[known]


def _basis(blocks: Sequence[Block]) -> np.ndarray:
    """[d, 3^n]: the isometries of all blocks, one after the other."""
    return np.concatenate([m.T for block in blocks for m in block.isometries])


def _n_scalars(blocks: Sequence[Block]) -> int:
    """Natural parts of weight 0, which come first; only they can be non-zero in a lone atom."""
    return len(blocks[0].isometries) if blocks[0].weight == 0 and blocks[0].natural else 0


# ------------------------------------------------------------------ tensors
class TensorHead(nn.Module):
    """A tensor per atom, or its sum or mean over a structure.

    T_i = Σ_p M_p (scale_f·t_ip + shift_{f,z_i,p}), with the offsets of natural scalar parts only.

    Raises:
        TaceError: an index symmetry that cannot be read, or one that needs a larger l_max.
    """

    def __init__(
        self,
        head: HeadConfig,
        config: TaceConfig,
        layer_ranks: Sequence[Sequence[int]],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.head = head
        self.rank = rank_of(head.symmetry)
        blocks = index_symmetry(head.symmetry)
        levels, z = len(config.fidelities), len(config.elements)
        self.n_levels = levels if config.readout == "per_fidelity" else 1
        self.parts = nn.ModuleList()
        for block in blocks:
            n_out = len(block.isometries) * self.n_levels
            self.parts.append(
                Readout(
                    block.weight,
                    n_out,
                    layer_ranks,
                    channels=config.channels,
                    hidden=head.hidden,
                    generator=generator,
                )
                if _direct(block, config.l_max)
                else ProductReadout(block, n_out, config, where=f"head {head.name}", generator=generator)
            )
        self.n_scalars = _n_scalars(blocks)
        self.reference = References(
            {"scale": torch.ones(levels), "shift": torch.zeros(levels, z, self.n_scalars)},
            {"basis": torch.from_numpy(_basis(blocks))},
        )

    def set_statistics(self, statistics: HeadStatistics) -> None:
        """Take sizes and offsets from `head_statistics`."""
        self.reference.set("scale", statistics.scale)
        self.reference.set("shift", statistics.shift)

    def forward(self, features: Features, batch: Batch) -> Tensor:
        """float64 [A, 3, …, 3] in the order of the batch (sorted atoms), or [S, 3, …, 3]."""
        reference = self.reference
        level = batch.fidelity.index_select(0, batch.structure)
        components = []
        for part in self.parts:
            x = part(features)
            if self.n_levels > 1:
                x = of_level(x, level, self.n_levels)
            components.append(x.transpose(1, 2).flatten(1))
        t = torch.cat(components, 1).double()
        t = t * reference.scale.index_select(0, level).unsqueeze(1)
        if self.n_scalars:
            shift = reference.shift[level, batch.species]
            t = t + nn.functional.pad(shift, (0, t.shape[1] - self.n_scalars))
        if self.head.scope == "structure":
            t = structure_sum(t, batch.structure, batch.n_structures)
            if self.head.reduce == "mean":
                t = t / batch.n_atoms.unsqueeze(1)
        return (t @ reference.basis).reshape(-1, *(3,) * self.rank)
