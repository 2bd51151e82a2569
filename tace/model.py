"""The TACE model: Batch → energy (TACE, arXiv:2509.14961; spec of the compact form in tace/README.md).

Symbols: A atoms, P pairs, K slots per atom, C channels, S structures, l ranks, F fidelities, Z elements.
Node features of rank l are [A, 2l+1, C]. Everything is bias-free, so that an atom without neighbours has
exactly zero features and its energy is exactly E0; a dissociated molecule reaches the sum of E0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .batch import Batch
from .charges import ChargeHead, charge_dipole
from .config import TaceConfig
from .embeddings import (
    FieldEmbedding,
    InvariantEmbedding,
    MagneticBasis,
    embedded_terms,
    given,
    invariant_inputs,
    presence,
)
from .errors import TaceError
from .geometry import EdgeBasis, Geometry, pair_vectors
from .heads import TensorHead, needed_ranks
from .interaction import Layer
from .layers import Linear, References, draw
from .les import constrain, les_energies
from .readout import ScalarReadout

LATENT_GAIN = 0.1  # of the charge readout: small charges keep the early loss sane (spec §11.1)


class OutputTerms(NamedTuple):
    """Result of a forward pass; atoms in the batch's (sorted) order."""

    energies: Tensor  # [S] float64, eV
    node_energies: Tensor  # [A] float64, eV; sums to `energies` less the long-range energy
    features: Tensor  # [A, n_layers·C] invariant features of every layer
    charges: Tensor | None  # [A, n] float64, e: latent charges
    outputs: dict[str, Tensor]  # of the heads, float64: [A, ...] or [S, ...]


class Tace(nn.Module):
    """Energies and direct properties of structures at a fidelity; derivatives are in `derivatives.py`.

    E = Σ_i E0[f,z_i] + scale[f]·Σ_t ε_i^{(t)} + shift[f]·(1 − exp(−4 Σ_j f(r_ij))) + E_ZBL + E_LES,
    eqs. 13, 14 and 16 to 18. The smooth factor of the shift is ours: it lets an atom that leaves reach E0.
    In a field 𝓔 an atom also has −½ α[f,z_i]·𝓔², ours too.
    """

    def __init__(self, config: TaceConfig, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.config = config
        c, z, f = config.channels, len(config.elements), len(config.fidelities)
        self.gain = 1.0  # of the parameters held here
        self.embedding = draw((z, c), 1.0, generator)
        self.fidelity_table = draw((f, c), 1.0, generator) if f > 1 else None
        share = 1.0 / math.sqrt(max(1, embedded_terms(config)))  # of the terms that are summed
        self.fidelity_mix = Linear(c, c, generator, share) if f > 1 else None
        last = config.n_layers - 1
        middle = tuple(range(config.L_max + 1))
        final = tuple(sorted({0} | needed_ranks(config.heads, config.l_max)))
        ranks = [middle] * last + [final]
        self.layers = nn.ModuleList(
            Layer(
                config,
                (0 if t == 0 else config.L_max, ranks[t]),
                t > 0 or last == 0,
                generator,
            )
            for t in range(config.n_layers)
        )
        levels = f if config.readout == "per_fidelity" else 1
        sizes = (c, config.n_layers, config.readout_hidden)
        self.energy_readout = ScalarReadout(sizes, generator, levels=levels)
        self.edges = EdgeBasis(config)
        self._add_inputs(config, generator)
        self.charge_readout = None
        if config.les is not None:
            self.charge_readout = ScalarReadout(
                sizes,
                generator,
                n_out=config.les.n_charges,
                levels=levels,
                gain=LATENT_GAIN,
                start=1.0,
            )
        self.heads = nn.ModuleDict(  # a prefix, because a module may not be called 'keys'
            {
                f"to_{head.name}": ChargeHead(head, config, ranks, generator)
                if head.charges
                else TensorHead(head, config, ranks, generator)
                for head in config.heads
            }
        )
        zero = torch.zeros(f, z)
        constants = {"e0_eV": zero, "scale_eV": zero + 1.0, "shift_eV": zero}
        if len(self.fields):
            constants["polarizability"] = zero  # e·Å²/V of isolated atoms
        self.reference = References(constants, {})
        self.to(dtype)

    def _add_inputs(self, config: TaceConfig, generator: torch.Generator) -> None:
        by_name = {i.name: i for i in config.inputs}
        self.conditions = (
            InvariantEmbedding(config, generator) if invariant_inputs(config) else None
        )
        self.fields = nn.ModuleList()
        if "electric_field" in by_name:
            scale = by_name["electric_field"].scale
            self.fields.extend(
                FieldEmbedding(config, scale) for _ in range(config.n_layers)
            )
        self.magnetic = nn.ModuleDict()
        for name in ("magnetic_moments", "collinear_moments"):
            if name in by_name:
                self.magnetic[name] = nn.ModuleList(
                    MagneticBasis(
                        config, by_name[name].scale, generator, collinear=name[0] == "c"
                    )
                    for _ in range(config.n_layers)
                )

    @property
    def e0_eV(self) -> Tensor:
        """[F, Z], energies of isolated atoms."""
        return self.reference.get_buffer("e0_eV")

    @property
    def scale_eV(self) -> Tensor:
        """[F, Z], eV for a readout of one."""
        return self.reference.get_buffer("scale_eV")

    @property
    def shift_eV(self) -> Tensor:
        """[F, Z], added to every atom with neighbours."""
        return self.reference.get_buffer("shift_eV")

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

    def geometry(
        self, batch: Batch, positions: Tensor, shift: Tensor, *, cells: Tensor, vectors: Tensor | None = None
    ) -> Geometry:
        """Attributes of pairs, see `EdgeBasis`.

        Args:
            shift: [P,3] float64, S·h of every pair, strained as positions and cells are.
            vectors: of the pairs, where they are to be differentiated by themselves.
        """
        if vectors is None:
            vectors = pair_vectors(batch, positions, shift)
        return self.edges(batch, positions, cells, vectors, dtype=self.dtype)

    def forward(self, batch: Batch, geometry: Geometry) -> OutputTerms:
        """Energies from a geometry; differentiate them with respect to what the geometry was made of."""
        return self.read(self.describe(batch, geometry), batch, geometry)

    def describe(self, batch: Batch, geometry: Geometry) -> list[dict[int, Tensor]]:
        """Features of every layer by rank, [A, 2l+1, C]: all that readouts and heads see."""
        h = [self._initial(batch).unsqueeze(1)]
        by_layer: list[dict[int, Tensor]] = []
        for t, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            h = layer(h, batch, geometry, self._added(t, h[0], batch, geometry))
            by_layer.append(dict(zip(layer.outputs, h, strict=True)))
        return by_layer

    def read(self, by_layer: list[dict[int, Tensor]], batch: Batch, geometry: Geometry) -> OutputTerms:
        """Energies and outputs from the features; of the geometry, no pairs are read."""
        scalars = [features[0].squeeze(1) for features in by_layer]
        readout = self.energy_readout(scalars, batch)
        node = self._assemble(readout.squeeze(1).double(), batch, geometry.density.double())
        if len(self.fields):
            field = given(batch, "electric_field").index_select(0, batch.structure)
            alpha = self._of_atoms("polarizability", batch)
            node = node - 0.5 * alpha * field.square().sum(1)
        if geometry.repulsion is not None:
            node = node + geometry.repulsion
        energies = torch.zeros(batch.n_structures, dtype=torch.float64, device=node.device)
        energies = energies.index_add(0, batch.structure, node)
        charges = None
        if self.charge_readout is not None and self.config.les is not None:
            charges = self.charge_readout(scalars, batch).double()
            charges = constrain(charges, batch, self.config.les)
            energies = energies + les_energies(
                charges, geometry.positions, geometry.cells, batch, self.config.les
            )
        outputs = self._outputs(by_layer, batch, geometry)
        return OutputTerms(energies, node, torch.cat(scalars, 1), charges, outputs)

    def _initial(self, batch: Batch) -> Tensor:
        """h^(0) [A, C]: element, plus the universal invariant embedding (spec §4)."""
        h0 = self.embedding.index_select(0, _row(batch.species, len(self.config.elements), batch))
        if self.conditions is None:
            if self.fidelity_table is None or self.fidelity_mix is None:
                return h0
            table = nn.functional.silu(self.fidelity_mix(self.fidelity_table))
            return h0 + table.index_select(0, self._level(batch))
        inner = self.conditions(batch)
        if self.fidelity_table is not None and self.fidelity_mix is not None:
            inner = inner + self.fidelity_mix(self.fidelity_table).index_select(0, self._level(batch))
        return h0 + nn.functional.silu(inner)

    def _added(self, t: int, h: Tensor, batch: Batch, geometry: Geometry) -> list[Tensor | None]:
        """What conditions add to A of layer t, by rank."""
        added: list[Tensor | None] = [None] * (self.config.l_max + 1)
        if len(self.fields):
            added[1] = self.fields[t](given(batch, "electric_field"), batch)
        for name, bases in self.magnetic.items():
            terms = bases[t](h, given(batch, name), batch, geometry)  # type: ignore[index]
            added = [
                new if old is None else old + new for old, new in zip(added, terms, strict=True)
            ]
        return added

    def _outputs(
        self, by_layer: list[dict[int, Tensor]], batch: Batch, geometry: Geometry
    ) -> dict[str, Tensor]:
        outputs = {name.removeprefix("to_"): head(by_layer, batch) for name, head in self.heads.items()}
        for head in self.config.heads:
            if head.with_charges:
                charges = next(outputs[h.name] for h in self.config.heads if h.charges)
                dipole = charge_dipole(charges, geometry.positions, batch)
                outputs[head.name] = outputs[head.name] + dipole
        return outputs

    def _assemble(self, readout: Tensor, batch: Batch, density: Tensor) -> Tensor:
        e0, scale, shift = (self._of_atoms(n, batch) for n in ("e0_eV", "scale_eV", "shift_eV"))
        return e0 + scale * readout + shift * presence(density)

    def _of_atoms(self, name: str, batch: Batch) -> Tensor:
        """[A], a constant [F, Z] of the reference."""
        index = self._level(batch) * len(self.config.elements) + batch.species
        return self.reference.get_buffer(name).reshape(-1).index_select(0, index)


    def _level(self, batch: Batch) -> Tensor:
        """[A], the row of tables that hold something of each fidelity."""
        level = batch.fidelity.index_select(0, batch.structure)
        return _row(level, len(self.config.fidelities), batch)


def _row(index: Tensor, size: int, batch: Batch) -> Tensor:
    """Row of a table that has `size` rows for each copy of the batch, or just these."""
    return index if batch.copy is None else index + size * batch.copy


def n_parameters(model: nn.Module) -> int:
    """Number of trainable numbers."""
    return sum(p.numel() for p in model.parameters())
