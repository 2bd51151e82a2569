"""What depends on positions and cells alone: shared by layers and by the members of a committee."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .batch import Batch
from .config import TaceConfig
from .ict import angular_norm, scaled_coupling
from .layers import pair_to_slot
from .radial import envelope, radial_basis
from .repulsion import check_cutoff, zbl_energies


class Geometry(NamedTuple):
    """Attributes of pairs and slots, and the coordinates that they were made of."""

    radial: Tensor  # [P+1, n], enveloped; with radial tables the lengths [P+1, 1]
    attributes: Tensor  # [A·K, (l_max+1)²], angular, rank after rank; zero in padding slots
    density: Tensor  # [A] Σ_j f(r_ij)
    positions: Tensor  # [A,3] float64, strained
    cells: Tensor  # [S,3,3] float64, strained
    repulsion: Tensor | None  # [A] float64, eV: screened nuclear repulsion

    @property
    def angular(self) -> list[Tensor]:
        """`attributes` of each rank l, [A·K, 2l+1]."""
        l_max = round(self.attributes.shape[1] ** 0.5) - 1
        return list(self.attributes.split([2 * l + 1 for l in range(l_max + 1)], 1))  # noqa: E741


class EdgeBasis(nn.Module):
    """Radial and angular attributes (eqs. 6 to 8) from pair vectors formed in float64."""

    numbers: Tensor  # [Z]

    def __init__(self, config: TaceConfig) -> None:
        super().__init__()
        self.config = config
        self.tables: dict[str, Any] | None = None  # what is known of `radial_tables`, which read lengths
        for l in range(2, config.l_max + 1):  # noqa: E741
            matrix = torch.from_numpy(scaled_coupling(l - 1, 1, l).reshape(-1, 2 * l + 1).copy())
            ratio = angular_norm(l) / angular_norm(l - 1)
            self.register_buffer(f"raise{l}", matrix * ratio, persistent=False)
        if config.zbl:
            check_cutoff(config.elements, config.cutoff_A)
            self.register_buffer("numbers", torch.tensor(config.elements), persistent=False)

    def forward(
        self, batch: Batch, positions: Tensor, cells: Tensor, vectors: Tensor, *, dtype: torch.dtype
    ) -> Geometry:
        """
        Args:
            positions: [A,3] float64, possibly strained.
            cells: [S,3,3] float64, strained alike.
            vectors: [P,3] float64, x_i − x_j − S·h of every pair.
        """
        cutoff = self.config.cutoff_A
        vectors = self._with_dummies(vectors, batch.n_copies)
        lengths = vectors.square().sum(1, keepdim=True).sqrt()
        unit = (vectors / lengths).to(dtype)
        r = lengths.to(dtype)
        f = envelope(r, cutoff, self.config.envelope_p)
        radial = self._radial(r) * f if self.tables is None else r
        slot_f = pair_to_slot(f, batch.slot_pair, batch.pair_slots).view(-1, batch.slots)
        repulsion = None
        if self.config.zbl:
            repulsion = self._repulsion(lengths.view(batch.n_copies, -1)[:, :-1].reshape(-1), batch)
        return Geometry(
            radial, self._angular(unit, batch), slot_f.sum(1), positions, cells, repulsion
        )

    def _with_dummies(self, vectors: Tensor, number: int) -> Tensor:
        """[P+1,3], or [M·(P+1),3] of M copies: the dummy pair of each comes last."""
        # filled where it is: to send numbers to a GPU is to wait for it
        dummy = nn.functional.pad(vectors.new_full((1, 1), 2.0 * self.config.cutoff_A), (0, 2))
        if number == 1:
            return torch.cat([vectors, dummy])
        by_copy = vectors.view(number, len(vectors) // number, 3)
        return torch.cat([by_copy, dummy.expand(number, 1, 3)], 1).view(-1, 3)

    def _radial(self, r: Tensor) -> Tensor:
        config = self.config
        return radial_basis(r, config.cutoff_A, config.n_radial, orders=config.radial_orders)

    def _repulsion(self, lengths: Tensor, batch: Batch) -> Tensor:
        first, second = (batch.species.index_select(0, k) for k in (batch.pair_i, batch.pair_j))
        half = 0.5 * zbl_energies(lengths, first, second, self.numbers, p=self.config.envelope_p)
        start = torch.zeros(batch.species.shape[0], dtype=half.dtype, device=half.device)
        return start.index_add(0, batch.pair_i, half).index_add(0, batch.pair_j, half)

    def _angular(self, unit: Tensor, batch: Batch) -> Tensor:
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
        return flat * signs


def pair_vectors(batch: Batch, positions: Tensor, shift: Tensor) -> Tensor:
    """[P,3], from j to i: x_i − x_j − shift."""
    return (
        positions.index_select(0, batch.pair_i) - positions.index_select(0, batch.pair_j) - shift
    )
