"""The TACE model: Batch → energy (TACE, arXiv:2509.14961; spec of the compact form in tace/README.md).

Symbols: A atoms, P pairs, K slots per atom, C channels, S structures, l ranks, F fidelities, Z elements.
Node features of rank l are [A, 2l+1, C]. Everything is bias-free, so that an atom without neighbours has
exactly zero features and its energy is exactly E0; a dissociated molecule reaches the sum of E0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .batch import Batch
from .config import TaceConfig
from .errors import TaceError
from .ict import angular_norm, scaled_coupling
from .layers import (
    ElementLinear,
    Linear,
    RadialNetwork,
    concatenate,
    draw,
    pair_to_slot,
    sender_to_slot,
)
from .paths import interaction_paths, product_paths
from .product import ProductBasis
from .radial import bessel, envelope

SHIFT_SHARPNESS = 4.0  # the per-atom shift is on by 1 − exp(−4) once the summed envelopes reach one


class Geometry(NamedTuple):
    """What depends on positions alone: shared by layers and by the members of a committee."""

    radial: Tensor  # [P+1, n_radial], enveloped
    angular: list[Tensor]  # rank l: [A·K, 2l+1]; zero in padding slots
    density: Tensor  # [A] Σ_j f(r_ij)


class OutputTerms(NamedTuple):
    """Result of a forward pass; atoms in the batch's (sorted) order."""

    energies: Tensor  # [S] float64, eV
    node_energies: Tensor  # [A] float64, eV; sums to `energies`
    features: Tensor  # [A, n_layers·C] invariant features of every layer


class Interaction(nn.Module):
    """One-particle basis and atomic basis A (eqs. 9 and 10)."""

    def __init__(self, config: TaceConfig, l_in: int, generator: torch.Generator) -> None:
        super().__init__()
        c, self.l_max = config.channels, config.l_max
        self.paths = interaction_paths(l_in, config.l_max)
        self.inverse_neighbors = 1.0 / config.avg_neighbors
        self.radial = RadialNetwork(
            config.n_radial, config.radial_hidden, c * len(self.paths), generator
        )
        self.up = nn.ModuleList(Linear(c, c, generator) for _ in range(l_in + 1))
        self.down = nn.ModuleList(
            Linear(c * sum(p.l3 == l for p in self.paths), c, generator)
            for l in range(config.l_max + 1)  # noqa: E741
        )
        for n, p in enumerate(self.paths):
            g = torch.from_numpy(scaled_coupling(p.l1, p.l2, p.l3, norm=config.coupling_norm).copy())
            # [2l2+1, (2l1+1)(2l3+1)]: turns an edge attribute into the matrix that acts on the sender
            matrix = g.permute(1, 0, 2).reshape(2 * p.l2 + 1, -1)
            self.register_buffer(f"coupling{n}", matrix, persistent=False)

    def forward(self, h: Sequence[Tensor], batch: Batch, geometry: Geometry) -> list[Tensor]:
        atoms, k, c = h[0].shape[0], batch.slots, h[0].shape[2]
        weights = self.radial(geometry.radial)
        weights = pair_to_slot(weights, batch.slot_pair, batch.pair_slots)
        by_path = weights.view(atoms, k, len(self.paths), 1, c).unbind(2)
        sent = [
            sender_to_slot(
                up(x).reshape(atoms, -1), batch.slot_sender, batch.slot_reverse
            ).view(atoms, k, x.shape[1], c)
            for up, x in zip(self.up, h, strict=True)
        ]
        collected: list[list[Tensor]] = [[] for _ in range(self.l_max + 1)]
        for n, p in enumerate(self.paths):
            operator = geometry.angular[p.l2] @ getattr(self, f"coupling{n}")
            operator = operator.view(atoms, k * (2 * p.l1 + 1), 2 * p.l3 + 1)
            message = (by_path[n] * sent[p.l1]).view(atoms, k * (2 * p.l1 + 1), c)
            collected[p.l3].append(torch.bmm(operator.transpose(1, 2), message))
        return [
            down(concatenate(parts, 2)) * self.inverse_neighbors
            for down, parts in zip(self.down, collected, strict=True)
        ]


class Layer(nn.Module):
    """Interaction, product basis, element-dependent mixing and self-connection (eqs. 9 to 12)."""

    def __init__(
        self,
        config: TaceConfig,
        ranks: tuple[int, Sequence[int]],
        connect: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        l_in, outputs = ranks
        c, z = config.channels, len(config.elements)
        self.outputs = tuple(outputs)
        self.interaction = Interaction(config, l_in, generator)
        levels = product_paths(config.l_max, config.correlation, self.outputs, config.paths)
        self.product = ProductBasis(levels, config.l_max, self.outputs, config.coupling_norm)
        per_rank = self.product.features_per_rank()
        self.mix = nn.ModuleList(
            ElementLinear(z, c * per_rank[l], c, generator)
            for l in self.outputs  # noqa: E741
        )
        self.out = nn.ModuleList(Linear(c, c, generator) for _ in self.outputs)
        self.self_connection = nn.ModuleList(
            ElementLinear(z, c, c, generator) for _ in (self.outputs if connect else ())
        )

    def forward(self, h: Sequence[Tensor], batch: Batch, geometry: Geometry) -> list[Tensor]:
        a = self.interaction(h, batch, geometry)
        products = self.product(a)
        result = [
            out(mix(x, batch.species_counts))
            for mix, out, x in zip(self.mix, self.out, products, strict=True)
        ]
        if len(self.self_connection):
            result = [
                x + connect(a[l], batch.species_counts)
                for x, connect, l in zip(result, self.self_connection, self.outputs, strict=True)  # noqa: E741
            ]
        return result


class Tace(nn.Module):
    """Energies of structures at a fidelity; derivatives are in `derivatives.py`.

    E = Σ_i E0[f,z_i] + scale[f]·Σ_t ε_i^{(t)} + shift[f]·(1 − exp(−4 Σ_j f(r_ij))), eqs. 13 and 14. The
    smooth factor of the shift is ours: it lets an atom that leaves reach E0.
    """

    e0_eV: Tensor  # [F, Z]
    scale_eV: Tensor  # [F, Z]
    shift_eV: Tensor  # [F, Z]

    def __init__(self, config: TaceConfig, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.config = config
        c, z, f = config.channels, len(config.elements), len(config.fidelities)
        self.gain = 1.0  # of the parameters held here
        self.embedding = draw((z, c), 1.0 / math.sqrt(z), generator)
        self.fidelity_table = draw((f, c), 1.0, generator) if f > 1 else None
        self.fidelity_mix = Linear(c, c, generator) if f > 1 else None
        last = config.n_layers - 1
        self.layers = nn.ModuleList(
            Layer(
                config,
                (0 if t == 0 else config.L_max, range(config.L_max + 1) if t < last else (0,)),
                t > 0 or last == 0,
                generator,
            )
            for t in range(config.n_layers)
        )
        self.readouts = nn.ModuleList(Linear(c, 1, generator) for _ in range(config.n_layers))
        self.hidden = Linear(c, config.readout_hidden, generator)
        self.hidden_out = Linear(config.readout_hidden, 1, generator)
        for l in range(2, config.l_max + 1):  # noqa: E741
            matrix = torch.from_numpy(scaled_coupling(l - 1, 1, l).reshape(-1, 2 * l + 1).copy())
            ratio = angular_norm(l) / angular_norm(l - 1)
            self.register_buffer(f"raise{l}", matrix * ratio, persistent=False)
        self.to(dtype)
        table = torch.zeros(f, z, dtype=torch.float64)
        for name, value in (("e0", table), ("scale", table + 1.0), ("shift", table)):
            self.register_buffer(f"{name}_eV", value.clone())

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    def set_reference(
        self, e0_eV: Mapping[str, Mapping[int, float]], scale: Mapping[str, float], shift: Mapping[str, float]
    ) -> None:
        """Set isolated-atom energies (eV), scale (eV) and shift (eV per atom) of every fidelity.

        Raises:
            TaceError: a fidelity or an element is missing.
        """
        for f, name in enumerate(self.config.fidelities):
            for z, number in enumerate(self.config.elements):
                if name not in e0_eV or number not in e0_eV[name]:
                    raise TaceError(f"no isolated-atom energy for element {number} at '{name}'")
                self.e0_eV[f, z] = e0_eV[name][number]
            self.scale_eV[f] = scale[name]
            self.shift_eV[f] = shift[name]

    def geometry(self, batch: Batch, positions: Tensor, cells_shift: Tensor) -> Geometry:
        """Radial and angular attributes from pair vectors formed in float64.

        Args:
            positions: [A,3] float64, possibly strained.
            cells_shift: [P,3] float64, S·h of every pair, strained alike.
        """
        cutoff, dtype = self.config.cutoff_A, self.dtype
        vectors = (
            positions.index_select(0, batch.pair_i)
            - positions.index_select(0, batch.pair_j)
            - cells_shift
        )
        dummy = torch.tensor([[2.0 * cutoff, 0.0, 0.0]], dtype=vectors.dtype, device=vectors.device)
        vectors = torch.cat([vectors, dummy])
        lengths = vectors.square().sum(1, keepdim=True).sqrt()
        unit = (vectors / lengths).to(dtype)
        r = lengths.to(dtype)
        f = envelope(r, cutoff, self.config.envelope_p)
        radial = bessel(r, cutoff, self.config.n_radial) * f
        slot_f = pair_to_slot(f, batch.slot_pair, batch.pair_slots).view(-1, batch.slots)
        return Geometry(radial, self._angular(unit, batch), slot_f.sum(1))

    def _angular(self, unit: Tensor, batch: Batch) -> list[Tensor]:
        """E_l = c_l·STF(r̂^l) in every slot (eq. 8), by raising the rank once a step on pairs."""
        attributes = [torch.ones_like(unit[:, :1]), unit]
        for l in range(2, self.config.l_max + 1):  # noqa: E741
            outer = (attributes[-1].unsqueeze(2) * unit.unsqueeze(1)).flatten(1)
            attributes.append(outer @ getattr(self, f"raise{l}"))
        attributes = attributes[: self.config.l_max + 1]
        flat = pair_to_slot(torch.cat(attributes, 1), batch.slot_pair, batch.pair_slots)
        sign = batch.slot_sign.to(flat.dtype).unsqueeze(1)
        sizes = [2 * l + 1 for l in range(len(attributes))]  # noqa: E741
        signs = torch.cat([(sign if l % 2 else sign.abs()).expand(-1, n) for l, n in enumerate(sizes)], 1)  # noqa: E741
        return list((flat * signs).split(sizes, 1))

    def forward(self, batch: Batch, geometry: Geometry) -> OutputTerms:
        """Energies from a geometry; differentiate them with respect to what the geometry was made of."""
        h0 = self.embedding.index_select(0, batch.species)
        if self.fidelity_table is not None and self.fidelity_mix is not None:
            table = nn.functional.silu(self.fidelity_mix(self.fidelity_table))
            h0 = h0 + table.index_select(0, batch.fidelity.index_select(0, batch.structure))
        h = [h0.unsqueeze(1)]
        readout = torch.zeros_like(h0[:, :1])
        scalars = []
        for layer, linear in zip(self.layers, self.readouts, strict=True):
            h = layer(h, batch, geometry)
            scalar = h[0].squeeze(1)
            scalars.append(scalar)
            readout = readout + linear(scalar)
        readout = readout + self.hidden_out(nn.functional.silu(self.hidden(scalars[-1])))
        node = self._assemble(readout.squeeze(1).double(), batch, geometry.density.double())
        energies = torch.zeros(batch.n_structures, dtype=torch.float64, device=node.device)
        return OutputTerms(
            energies.index_add(0, batch.structure, node), node, torch.cat(scalars, 1)
        )

    def _assemble(self, readout: Tensor, batch: Batch, density: Tensor) -> Tensor:
        index = batch.fidelity.index_select(0, batch.structure) * len(self.config.elements) + batch.species
        e0, scale, shift = (
            t.reshape(-1).index_select(0, index) for t in (self.e0_eV, self.scale_eV, self.shift_eV)
        )
        return e0 + scale * readout - shift * torch.expm1(-SHIFT_SHARPNESS * density)


def n_parameters(model: nn.Module) -> int:
    """Number of trainable numbers."""
    return sum(p.numel() for p in model.parameters())
