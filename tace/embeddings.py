"""Conditions in the model: invariant inputs, an electric field, magnetic moments (spec §4 and §12).

Everything is bias-free and vanishes with its input: charge 0, temperature 0, no field or no moments leave
the model exactly as it is without them. Units are those of `quantities.INPUTS`; symbols those of
`model.py`, and D for the components of all tensors in a list.

Magnetic moments are axial and change sign under time reversal. All terms here are of even degree in them,
so that E(m) = E(−m) holds exactly. An improper operation takes an axial vector to det(R)·R·m; in a product
of two of them the determinants cancel, so that counting both as polar and keeping to natural-parity tensors
is exact. By the first fundamental theorem of O(3) it loses no scalar either: each is a polynomial of dot
products. Included are Heisenberg m_i·m_j, anisotropic exchange (m_i·r̂)(m_j·r̂), single-ion anisotropy,
and, through the product basis, the Dzyaloshinskii–Moriya term where the environment allows one, as
(r̂×v)·(m_i×m_j) = (r̂·m_i)(v·m_j) − (r̂·m_j)(v·m_i) with a polar vector v of the environment. Not included
are axial features, nor, in one layer, products of the moments of two neighbours; the next layer has them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from .batch import Batch
from .config import InputConfig, TaceConfig
from .errors import DataError, TaceError
from .geometry import Geometry
from .ict import allowed, scaled_coupling
from .initial import radial_network, sum_gain
from .layers import Linear, concatenate, draw, over_atoms, pair_to_slot, rows_of, sender_to_slot
from .quantities import INPUTS

INVARIANTS = ("total_charge", "spin_multiplicity", "electronic_temperature", "charges")
PRESENCE = 4.0  # a term of an atom alone is on by 1 − exp(−4) once the summed envelopes reach one


def presence(density: Tensor) -> Tensor:
    """1 − exp(−4 Σ_j f(r_ij)): takes what is said about one atom smoothly to 0 when its neighbours leave."""
    return -torch.expm1(-PRESENCE * density)


def given(batch: Batch, name: str) -> Tensor:
    """A condition of the batch, float64.

    Raises:
        DataError: the graphs were made without it.
    """
    if name not in batch.inputs:
        found = ", ".join(batch.inputs) or "none"
        raise DataError(
            f"the model reads '{name}', which the graphs do not hold (found: {found}); "
            "make them with inputs=model.config.inputs"
        )
    return batch.inputs[name]


# ---- invariant inputs ----


def invariant_inputs(config: TaceConfig) -> tuple[InputConfig, ...]:
    """The inputs that enter through the invariant features."""
    return tuple(i for i in config.inputs if i.name in INVARIANTS)


def embedded_terms(config: TaceConfig) -> int:
    """Number of embeddings that are added up before the SiLU, that of the fidelity among them."""
    return len(invariant_inputs(config)) + (len(config.fidelities) > 1)


class Discrete(nn.Module):
    """A row of a table for each class."""

    values: Tensor

    def __init__(self, values: Sequence[int], channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.gain = 1.0
        self.register_buffer("values", torch.tensor(values), persistent=False)
        self.table = draw((len(values), channels), 1.0, generator)

    def forward(self, x: Tensor) -> Tensor:
        row = torch.searchsorted(self.values, x.round().long())
        return rows_of(self.table, row, stacked=self.table.ndim == 3)


class _Continuous(nn.Module):
    """Linear → SiLU → Linear of (x, x²/√(1+x²)), x in units of its scale.

    Of x alone, Σ_c v_c·SiLU(w_c x) has no odd part but a multiple of x, as SiLU(x) − SiLU(−x) = x: the
    embeddings of charges ±2 would be tied to those of ±1. The second argument lifts that. It is positive
    wherever x ≠ 0, so that no two points of the curve are opposite and any continuous function with
    φ(0) = 0 can be reached; and it grows like |x|, so that a large charge is as safe as with x alone.
    """

    def __init__(self, scale: float, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.scale = scale
        self.first = Linear(2, channels, generator)
        self.second = Linear(channels, channels, generator, math.sqrt(2.0))  # SiLU halves the variance

    def forward(self, x: Tensor) -> Tensor:
        x = x / self.scale
        arguments = torch.stack([x, x.square() / (1.0 + x.square()).sqrt()], -1)
        return self.second(nn.functional.silu(self.first(arguments.to(self.first.weight.dtype))))


class InvariantEmbedding(nn.Module):
    """Universal invariant embedding (spec §4) before its SiLU: Σ_a φ_a·W_a.

    Sum of linear maps instead of one linear map of the concatenated φ_a: the same numbers, and what holds for
    a whole structure is computed once per structure.
    """

    def __init__(self, config: TaceConfig, generator: torch.Generator) -> None:
        super().__init__()
        c, inputs = config.channels, invariant_inputs(config)
        gain = 1.0 / math.sqrt(max(1, embedded_terms(config)))  # fan-in of the concatenation
        self.channels, self.names = c, tuple(i.name for i in inputs)
        self.embed = nn.ModuleList(
            Discrete(i.values, c, generator) if i.values else _Continuous(i.scale, c, generator)
            for i in inputs
        )
        self.mix = nn.ModuleList(Linear(c, c, generator, gain) for _ in inputs)

    def forward(self, batch: Batch) -> Tensor:
        """[A, C], to be added to the fidelity's term; h0 gets the SiLU of the sum."""
        total: dict[str, Tensor] = {}
        for name, embed, mix in zip(self.names, self.embed, self.mix, strict=True):
            term, scope = mix(embed(given(batch, name))), INPUTS[name].scope
            total[scope] = total[scope] + term if scope in total else term
        if "structure" in total:
            by_atom = total.pop("structure").index_select(0, batch.structure)
            total["atom"] = total["atom"] + by_atom if "atom" in total else by_atom
        return total["atom"]


# ---- electric field ----


class FieldEmbedding(nn.Module):
    """A homogeneous field in A^1: w_el[z]·w_ch[c]·𝓔/scale (FITACE, eq. 5).

    A lone atom in a field is polarised: its energy is E0 only at zero field.
    """

    def __init__(self, config: TaceConfig, scale: float) -> None:
        super().__init__()
        if config.l_max < 1:
            raise TaceError("the input electric_field is a vector and needs l_max of at least 1")
        self.gain, self.scale = 1.0, scale
        self.element = nn.Parameter(torch.ones(len(config.elements), dtype=torch.float64))
        self.channel = nn.Parameter(torch.ones(config.channels, dtype=torch.float64))

    def forward(self, field: Tensor, batch: Batch) -> Tensor:
        """[S,3] float64, V/Å → [A,3,C]."""
        # gathered in float64, so that the dipole of many atoms is summed in it
        vectors = (field / self.scale).index_select(0, batch.structure).to(self.element.dtype)
        by_atom = rows_of(self.element, batch.species, stacked=self.element.ndim == 2)
        scaled = (vectors * by_atom.unsqueeze(1)).unsqueeze(2)
        return scaled * over_atoms(self.channel, scaled)


# ---- magnetic moments ----


def _site_ranks(l_max: int, collinear: bool) -> tuple[int, ...]:
    """Ranks of m_i⊗m_i that are used: |m|² and STF(m⊗m)."""
    return (0, 2) if l_max >= 2 and not collinear else (0,)


def _edge_couplings(l2: int, l_max: int, collinear: bool, norm: str) -> list[tuple[int, np.ndarray]]:
    """Every independent natural-parity map (m_i, m_j, E_l2) → l3 ≤ l_max, as [3, 3, 2l2+1, 2l3+1].

    [m_i⊗m_j]^0 and [m_i⊗m_j]^2 with E, which do not change when the moments are exchanged; and where l3 = l2,
    one that does, [m_i⊗[m_j⊗E]^{l2−1}]^{l2}: for vectors the three span what (m_i×m_j)×r̂ is in, without
    which there would be no Dzyaloshinskii–Moriya term. Collinear: m_i·m_j·E_l2, [1, 1, 2l2+1, 2l2+1].
    """
    if collinear:
        return [(l2, np.eye(2 * l2 + 1)[None, None])]
    found = []
    for lm in (0, 2):
        pair = scaled_coupling(1, 1, lm, norm=norm)
        for l3 in range(l_max + 1):
            if allowed(lm, l2, l3):
                found.append((l3, np.einsum("abm,mez->abez", pair, scaled_coupling(lm, l2, l3, norm=norm))))
    if l2 > 0:
        inner = scaled_coupling(1, l2, l2 - 1, norm=norm)
        found.append((l2, np.einsum("bek,akz->abez", inner, scaled_coupling(1, l2 - 1, l2, norm=norm))))
    return found


class _MomentTensors(nn.Module):
    """Tensors of the moments on edges and sites; no parameters.

    Neither m_i nor m_j has channels, so that an edge couples them with its attribute once for all channels;
    a message then costs what that of an invariant feature does, not that of a vector.
    """

    def __init__(self, config: TaceConfig, scale: float, *, collinear: bool) -> None:
        super().__init__()
        self.scale, norm = scale, config.coupling_norm
        self.edge_ranks: list[list[int]] = []  # of the tensors made with the edge attribute of each rank
        self.site_ranks = _site_ranks(config.l_max, collinear)
        for l2 in range(config.l_max + 1):
            maps = _edge_couplings(l2, config.l_max, collinear, norm)
            flat = np.concatenate([g.reshape(-1, 2 * l3 + 1) for l3, g in maps], 1)
            self.register_buffer(f"edge{l2}", torch.from_numpy(flat), persistent=False)
            self.edge_ranks.append([l3 for l3, _ in maps])
        for l in self.site_ranks:  # noqa: E741
            square = np.ones((1, 1)) if collinear else scaled_coupling(1, 1, l, norm=norm).reshape(9, -1)
            self.register_buffer(f"site{l}", torch.from_numpy(square.copy()), persistent=False)

    def forward(self, moments: Tensor, batch: Batch, geometry: Geometry) -> tuple[list[Tensor], list[Tensor]]:
        """By rank of the edge attribute [A, K, D], and by rank of `site_ranks` [A, 2l+1]."""
        atoms, k = moments.shape[0], batch.slots
        m = (moments / self.scale).to(geometry.density.dtype).view(atoms, -1)
        sent = sender_to_slot(m, batch.slot_sender, batch.slot_reverse).view(atoms, k, 1, -1)
        pairs = (m.view(atoms, 1, -1, 1) * sent).view(atoms * k, -1, 1)
        edges, angular = [], geometry.angular
        for l2 in range(len(self.edge_ranks)):
            outer = (pairs * angular[l2].unsqueeze(1)).flatten(1)
            edges.append((outer @ getattr(self, f"edge{l2}")).view(atoms, k, -1))
        squares = (m.unsqueeze(2) * m.unsqueeze(1)).flatten(1) * presence(geometry.density).unsqueeze(1)
        return edges, [squares @ getattr(self, f"site{l}") for l in self.site_ranks]  # noqa: E741


class MagneticBasis(nn.Module):
    """What the moments add to A of one layer (spec §12.3, option 3).

    A_i^l += 1/n̄ Σ_j w_{l2,c}(r_ij)·(h_j W)_c·T_ij^l, mixed over channels and tensors T, plus
    presence_i·v_{z_i,c} times |m_i|² (l = 0) and STF(m_i⊗m_i) (l = 2): zero for an atom without neighbours.
    One set of C radial functions per edge rank serves all tensors of that rank, which the linear map tells
    apart. Collinear moments are numbers that no rotation touches: exchange without spin–orbit coupling.
    """

    def __init__(
        self, config: TaceConfig, scale: float, generator: torch.Generator, *, collinear: bool
    ) -> None:
        super().__init__()
        c, ranks = config.channels, range(config.l_max + 1)
        self.gain = 1.0  # of `site`
        self.inverse_neighbors = 1.0 / config.avg_neighbors
        self.tensors = _MomentTensors(config, scale, collinear=collinear)
        self.radial = radial_network(config, c * len(ranks), generator)
        self.up = Linear(c, c, generator)
        self.down = nn.ModuleList(
            Linear(
                c * sum(found.count(l3) for found in self.tensors.edge_ranks),
                c,
                generator,
                sum_gain(config, l3),
            )
            for l3 in ranks
        )
        self.site = draw((len(self.tensors.site_ranks), len(config.elements), c), 1.0, generator)

    def forward(self, h: Tensor, moments: Tensor, batch: Batch, geometry: Geometry) -> list[Tensor]:
        """What is added to A, [A, 2l+1, C] for each l ≤ l_max.

        Args:
            h: invariant features of the senders, [A,1,C]; those that enter the layer, so that exchange
                depends on the environment.
            moments: [A,3], or [A] if collinear; float64, µ_B, in the batch's order.
        """
        atoms, k, c = h.shape[0], batch.slots, h.shape[2]
        edges, sites = self.tensors(moments, batch, geometry)
        weights = pair_to_slot(self.radial(geometry.radial), batch.slot_pair, batch.pair_slots)
        by_rank = weights.view(atoms, k, len(edges), c).unbind(2)
        sent = sender_to_slot(self.up(h.squeeze(1)), batch.slot_sender, batch.slot_reverse).view(atoms, k, c)
        collected: list[list[Tensor]] = [[] for _ in self.down]
        for ranks, edge, weight in zip(self.tensors.edge_ranks, edges, by_rank, strict=True):
            sums = torch.bmm(edge.transpose(1, 2), weight * sent)
            for l3, part in zip(ranks, sums.split([2 * l3 + 1 for l3 in ranks], 1), strict=True):
                collected[l3].append(part)
        result = [
            down(concatenate(parts, 2)) * self.inverse_neighbors
            for down, parts in zip(self.down, collected, strict=True)
        ]
        for l, table, square in zip(self.tensors.site_ranks, self.site.unbind(-3), sites, strict=True):  # noqa: E741
            by_atom = rows_of(table, batch.species, stacked=table.ndim == 3)
            result[l] = result[l] + square.unsqueeze(2) * by_atom.unsqueeze(1)
        return result
