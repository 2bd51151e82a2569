"""A peers' harness in small, for the smoke run of the benchmarks: the names and the shapes of the real one.

The real harness is not in this repository. What `worker.py`, `peer_ours.py` and `harness.Peers` use of it is
here with the same signatures, and does the same work without telemetry.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.io import read
from ase.neighborlist import neighbor_list

Size = namedtuple("Size", "name channels lmax Lmsg layers correlation n_bessel radial_mlp")
SIZES = {f"64-{L}": Size(f"64-{L}", 64, 3, L, 2, 3, 8, (64, 64, 64)) for L in range(3)}
Stats = namedtuple("Stats", "elements cutoff avg_num_neighbors e0 rms_forces shift", defaults=(1.0, 0.0))


class Peer:
    name, version, recommended_dtype = "peer", "?", "float32"
    energy_weight, forces_weight, clip_grad, ema_decay, lr = 1.0, 100.0, 10.0, 0.99, 1e-2

    def __init__(self, args: Any) -> None:
        self.args, self.dtype = args, torch.float32

    def optimizer(self) -> Any:
        return torch.optim.Adam(self.model.parameters(), lr=self.lr)

    def loss(self, E: Any, F: Any, ref: Any) -> Any:
        per_atom = (E - ref["energy"]) / ref["n"]
        return (
            self.energy_weight * per_atom.square().mean()
            + self.forces_weight * (F - ref["forces"]).square().mean()
        )


class EMA:
    def __init__(self, model: Any, decay: float) -> None:
        self.parameters = list(model.parameters())
        self.mean, self.decay = [p.detach().clone() for p in self.parameters], decay

    def update(self) -> None:
        torch._foreach_lerp_(self.mean, [p.detach() for p in self.parameters], 1.0 - self.decay)


def load_3bpa_split() -> tuple[list[Any], list[Any]]:
    frames = read(Path(os.environ["BENCH_DATA"]) / "train_300K.xyz", ":", format="extxyz")
    for atoms in frames:
        atoms.info["REF_energy"] = atoms.get_potential_energy()
        atoms.arrays["REF_forces"] = atoms.get_forces()
        atoms.calc = None
    return frames[50:], frames[:50]


def make_stats(frames: list[Any], cutoff: float, e0: Any = None) -> Stats:
    elements = sorted({int(z) for a in frames for z in a.numbers})
    edges = sum(len(neighbor_list("i", a, cutoff)) for a in frames[:5]) / sum(len(a) for a in frames[:5])
    return Stats(elements, cutoff, edges, {z: float((e0 or {}).get(z, 0.0)) for z in elements})


def _ref(peer: Peer, frames: list[Any]) -> dict[str, Any]:
    return {
        "energy": torch.tensor([a.info["REF_energy"] for a in frames], dtype=peer.dtype),
        "n": torch.tensor([float(len(a)) for a in frames]),
        "forces": torch.tensor(np.concatenate([a.arrays["REF_forces"] for a in frames]), dtype=peer.dtype),
    }


def train_step(peer: Peer, opt: Any, batch: Any, ref: Any, ema: Any = None) -> Any:
    opt.zero_grad(set_to_none=True)
    loss = peer.loss(*peer.forward(batch, training=True), ref)
    loss.backward()
    opt.step()
    if ema is not None:
        ema.update()
    return loss


def _infer(peer: Peer, size: Size) -> dict[str, Any]:
    frames, _ = load_3bpa_split()
    peer.build(size, make_stats(frames[:1], 5.0))
    batch = peer.collate([peer.graph(frames[0], labels=False)])
    start = time.process_time()
    peer.forward(batch, training=False)
    used = time.process_time() - start
    return {"system": "3bpa", "n_atoms": len(frames[0]), "model_cpu_median_ms": 1e3 * used}


def _train(peer: Peer, size: Size) -> dict[str, Any]:
    frames, _ = load_3bpa_split()
    peer.build(size, make_stats(frames, 5.0))
    chosen = frames[:2]
    batch = peer.collate([peer.graph(a, labels=True) for a in chosen])
    start = time.process_time()
    train_step(peer, peer.optimizer(), batch, _ref(peer, chosen), EMA(peer.model, peer.ema_decay))
    used = time.process_time() - start
    return {"cpu_median_ms": 1e3 * used, "used_s": used, "steps": 1, "F_rmse": 1.0}


def main(kind: type[Peer]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("infer", "train-step", "train-budget"))
    parser.add_argument("--size")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--lr-schedule", choices=("const", "linear"))  # refused here if the real one would
    args, _ = parser.parse_known_args()
    found = (_infer if args.what == "infer" else _train)(kind(args), SIZES[args.size])
    args.out.write_text(json.dumps({"what": args.what, "peer": kind.name, "size": args.size, **found}) + "\n")
