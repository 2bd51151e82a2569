"""A committee whose members share their layers beside one of whole members: errors, spread, cost. JSON lines.

    python tests/bench/shared_trunk.py --data DIR --frames 50 --steps 400

Nano models on 3BPA at 300 K. The first member is the same in both; the others are trained whole, each
without a tenth of the frames, or as readouts on the layers of the first, for a quarter of the steps on a bag
of frames drawn with replacement. Judged on other frames at 300 K and, where DIR has them, at 1200 K: the rank
correlation of the spread of an atom's force with its error says what selection can rely on. DIR holds the
folder 3bpa.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import ours  # noqa: F401 (sets the memory that is kept)
import torch
from ase import Atoms
from ase.io import read
from harness import Record, emit, frames_3bpa, machine
from scipy.stats import spearmanr

from alchemy.stages.model import READOUT_SHARE
from tace.committee import Committee
from tace.config import LesConfig, preset
from tace.data import Labelled, Sample, make_samples
from tace.finetune import new_readouts
from tace.model import Tace
from tace.reference import mean_neighbors, set_statistics, statistics
from tace.train import TrainSettings, fit

MEMBERS = 4


def trained(model: Tace, samples: Sequence[Sample], steps: int, seed: int) -> float:
    """CPU seconds of the training."""
    start = time.process_time()
    settings = TrainSettings(steps=steps, batch_size=8, validate_every=steps, seed=seed)
    fit(model, samples, [], settings=settings)
    return time.process_time() - start


def committees(frames: Sequence[Atoms], steps: int) -> tuple[dict[str, Committee], dict[str, float]]:
    """Of whole members and of one trunk, and the CPU seconds that each took."""
    labels = [Labelled(a, energy_eV=a.get_potential_energy(), forces_eV_per_A=a.get_forces()) for a in frames]
    elements = tuple(sorted({int(z) for a in frames for z in a.numbers}))
    config = preset("nano", elements=elements, cutoff_A=5.0, start="small", les=LesConfig())
    config = replace(config, avg_neighbors=mean_neighbors(labels, config))
    samples, facts = make_samples(labels, config), statistics(labels, config, {})
    whole, cost = [], []
    for k in range(MEMBERS):
        model, rng = Tace(config, seed=k), np.random.default_rng(k)
        set_statistics(model, facts)
        bag = rng.permutation(len(samples))[: max(1, round(0.9 * len(samples)))]
        cost.append(trained(model, [samples[n] for n in bag], steps, k))
        whole.append(model)
    one, readouts = [copy.deepcopy(whole[0])], 0.0
    for k in range(1, MEMBERS):
        model, rng = copy.deepcopy(whole[0]).train().requires_grad_(True), np.random.default_rng(k)
        new_readouts(model, 100 + k)
        bag = rng.choice(len(samples), len(samples))
        readouts += trained(model, [samples[n] for n in bag], max(1, steps // READOUT_SHARE), k)
        one.append(model)
    return (
        {"own": Committee(whole), "shared": Committee(one)},
        {"own": sum(cost), "shared": cost[0] + readouts},
    )


def judged(committee: Committee, frames: Sequence[Atoms]) -> tuple[Record, np.ndarray]:
    """Errors and how the spread ranks them; the spread [A]."""
    bare = [Atoms(a.numbers, positions=a.positions) for a in frames]
    reference = np.concatenate([a.get_forces() for a in frames])
    said = committee(bare)
    wrong = said.mean_forces - reference
    spread = said.force_spread
    start = time.process_time()
    committee(bare, member_forces=False)
    return {
        "F_rmse_meV_per_A": 1e3 * float(np.sqrt((wrong**2).mean())),
        "spread_meV_per_A": 1e3 * float(spread.mean()),
        "rank_correlation_spread_error": float(spearmanr(spread, np.linalg.norm(wrong, axis=1))[0]),
        "mean_force_call_cpu_s": time.process_time() - start,
    }, spread


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="directory that holds the folder 3bpa")
    parser.add_argument("--frames", type=int, default=50, help="to train on")
    parser.add_argument("--test-frames", type=int, default=40, help="at each temperature")
    parser.add_argument("--steps", type=int, default=400, help="of a whole member")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    folder = args.data / "3bpa"
    frames = frames_3bpa(folder)
    parts = {"300 K": frames[-args.test_frames :]}
    hot = sorted(folder.glob("*1200K.*xyz*"))
    if hot:
        parts["1200 K"] = [_labelled(a) for a in read(hot[0], f":{args.test_frames}", format="extxyz")]
    made, cost = committees(frames[: args.frames], args.steps)
    for part, chosen in parts.items():
        found = {name: judged(committee, chosen) for name, committee in made.items()}
        agreement = float(spearmanr(found["own"][1], found["shared"][1])[0])
        for name, (record, _) in found.items():
            emit({
                "bench": "shared_trunk", "trunk": name, "frames": args.frames, "steps": args.steps,
                "part": part, **record, "rank_correlation_of_the_two_spreads": agreement,
                "training_cpu_s": cost[name], **machine(),
            })  # fmt: skip


def _labelled(atoms: Atoms) -> Atoms:
    from ase.calculators.singlepoint import SinglePointCalculator

    bare = Atoms(atoms.numbers, positions=atoms.positions)
    forces = atoms.arrays["REF_forces"] if "REF_forces" in atoms.arrays else atoms.get_forces()
    bare.calc = SinglePointCalculator(bare, energy=0.0, forces=forces)
    return bare


if __name__ == "__main__":
    main()
