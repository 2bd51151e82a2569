"""Partial charges predicted off the features (spec §10, eq. 15), in e. They do not enter the energy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .batch import Batch
from .config import HeadConfig, TaceConfig
from .errors import DataError
from .heads import Features, HeadStatistics, Readout, of_level, structure_sum
from .layers import References

SMALLEST_HARDNESS = 1e-6  # spec §10: keeps η̂ positive
HARDNESS_GAIN = 0.1  # η starts near one: charges diverge where it crosses zero


def equilibrate(chi: Tensor, eta: Tensor, total: Tensor, structure: Tensor) -> Tensor:
    """The q [A] that minimise Σ χ_i q_i + ½ η̂_i q_i² at Σ q_i = Q; χ_i + η̂_i q_i is then the same for all.

    Args:
        chi, eta: [A] electronegativity and hardness; η̂ = hypot(η, 1e-6).
        total: [S] charge of each structure.
        structure: [A] owner of each atom.
    """
    softness = 1.0 / torch.hypot(eta, torch.full_like(eta, SMALLEST_HARDNESS))
    sums = structure_sum(torch.stack([chi * softness, softness], 1), structure, len(total))
    potential = (total + sums[:, 0]) / sums[:, 1]
    return (potential.index_select(0, structure) - chi) * softness


def spread_evenly(raw: Tensor, total: Tensor, structure: Tensor) -> Tensor:
    """raw [A] minus the same excess charge for all atoms of a structure, so that Σ q_i = Q.

    The published code adds the excess instead and does not conserve charge (spec §10).
    """
    sums = structure_sum(torch.stack([raw, torch.ones_like(raw)], 1), structure, len(total))
    return raw - ((sums[:, 0] - total) / sums[:, 1]).index_select(0, structure)


class ChargeHead(nn.Module):
    """Charges of atoms: 'qeq' and 'uniform' conserve the total charge, 'free' does not.

    Electronegativities (or charges) are scale_f·readout + offset[f, z], hardnesses readout + offset[f, z]:
    an atom without neighbours, whose features are zero, keeps the offsets.
    """

    def __init__(
        self,
        head: HeadConfig,
        config: TaceConfig,
        layer_ranks: Sequence[Sequence[int]],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if not head.charges:
            raise ValueError(f"head {head.name} is not one of charges")
        self.head = head
        self.gain = 1.0  # of the tables held here
        levels, z = len(config.fidelities), len(config.elements)
        self.n_levels = levels if config.readout == "per_fidelity" else 1

        def readout(gain: float) -> Readout:
            return Readout(
                0,
                self.n_levels,
                layer_ranks,
                channels=config.channels,
                hidden=head.hidden,
                generator=generator,
                gain=gain,
            )

        self.readout = readout(1.0)
        self.offset = nn.Parameter(torch.zeros(levels, z, dtype=torch.float64))
        self.hardness: Readout | None = None
        if head.charges == "qeq":
            self.hardness = readout(HARDNESS_GAIN)
            self.hardness_offset = nn.Parameter(torch.ones(levels, z, dtype=torch.float64))
        self.reference = References({"scale": torch.ones(levels)}, {})

    def set_statistics(self, statistics: HeadStatistics) -> None:
        """Start from the mean charge of every element; see `heads.head_statistics`."""
        self.reference.set("scale", statistics.scale)
        # at hardness one, q = λ − χ
        sign = -1.0 if self.head.charges == "qeq" else 1.0
        with torch.no_grad():
            self.offset.copy_(torch.from_numpy(sign * statistics.shift[:, :, 0]))

    def forward(self, features: Features, batch: Batch) -> Tensor:
        """[A] float64, sorted atoms; the total charge is the input 'total_charge', or 0 without it."""
        level = batch.fidelity.index_select(0, batch.structure)
        raw = self._column(self.readout, features, level)
        raw = raw * self.reference.scale.index_select(0, level) + self._table(self.offset, batch, level)
        if self.head.charges == "free":
            return raw
        total = batch.inputs.get("total_charge")
        if total is None:
            total = raw.new_zeros(batch.n_structures)
        if self.hardness is None:
            return spread_evenly(raw, total, batch.structure)
        eta = self._column(self.hardness, features, level)
        eta = eta + self._table(self.hardness_offset, batch, level)
        return equilibrate(raw, eta, total, batch.structure)

    def _column(self, readout: Readout, features: Features, level: Tensor) -> Tensor:
        x = readout(features)
        if self.n_levels > 1:
            x = of_level(x, level, self.n_levels)
        return x.flatten().double()

    def _table(self, table: Tensor, batch: Batch, level: Tensor) -> Tensor:
        return table.flatten().index_select(0, level * table.shape[1] + batch.species).double()


def charge_dipole(charges: Tensor, positions: Tensor, batch: Batch) -> Tensor:
    """Σ q_i x_i [S,3] in e·Å about the origin, on which it depends if the total charge is not zero.

    Raises:
        DataError: a periodic structure, whose dipole is not a sum over atoms.
    """
    if bool(batch.pbc.any()):
        number = int(batch.pbc.any(1).nonzero()[0])
        raise DataError(
            f"structure {number} of the batch is periodic, but a dipole of charges is only defined for "
            "finite ones; set pbc = False, or train a dipole head without with_charges"
        )
    return structure_sum(charges.unsqueeze(1) * positions, batch.structure, batch.n_structures)
