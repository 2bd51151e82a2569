"""Our model in the harness that times the peers: `common` must be importable.

    PYTHONPATH=<harness> python peer_ours.py infer --size 64-0,64-2 --threads 1 --systems 3bpa

The other scripts of this directory start it; see docs/benchmarks.md.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import ours
from ase import Atoms
from common import Peer, Size, Stats, main  # the harness: sets the threads before torch starts


class Ours(Peer):
    """Settings of the training step as the published 3BPA recipe has them."""

    name = "ours"
    version = version("tace-alchemy")
    recommended_dtype = "float32"
    energy_weight, forces_weight = 1.0, 10.0
    lr, ema_decay, clip_grad = 1e-2, 0.99, None  # ClippedAdam clips, at CLIP
    CLIP = 10.0

    def build(self, size: Size, stats: Stats, seed: int = 0) -> None:
        self.model = ours.build(
            stats.elements,
            cutoff=stats.cutoff,
            L_max=size.Lmsg,
            avg_neighbors=stats.avg_num_neighbors,
            e0=stats.e0,
            rms_forces=stats.rms_forces,
            shift=stats.shift,
            seed=seed,
            dtype=self.dtype,
            sizes={
                "channels": size.channels,
                "l_max": size.lmax,
                "n_layers": size.layers,
                "correlation": size.correlation,
                "n_radial": size.n_bessel,
                "radial_hidden": tuple(size.radial_mlp),
            },
        )

    def graph(self, atoms: Atoms, labels: bool) -> Any:
        return ours.graph(self.model, atoms)

    def collate(self, graphs: list[Any]) -> Any:
        return ours.batch(self.model, graphs)

    def forward(self, batch: Any, training: bool) -> Any:
        return ours.call(self.model, batch, training=training)

    def optimizer(self) -> Any:
        return ours.ClippedAdam(self.model, lr=self.lr, clip=self.CLIP)

    def calculator(self, models: list[Any] | None = None) -> Any:
        from tace.calculator import TaceCalculator
        from tace.committee import Committee

        return TaceCalculator(Committee(models or [self.model]))


if __name__ == "__main__":
    main(Ours)
