"""Compiled edge sums against PyTorch's, interleaved in one process, one JSON line each.

    python tests/bench/edge_sum.py --data DIR

DIR holds the folders 3bpa and water_revPBE0-D3. Energy and forces of 3BPA, Pd-108 and water-192 (6 Å);
training steps of 3BPA (5 frames) and of a molecule of 9 atoms with the preset nano. Forms: `plain` (PyTorch),
`native` (compiled in every layer), `upper` (compiled where features have ranks above 0).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ours
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read
from harness import BATCH, E0_3BPA, SIZES, Record, emit, frames_3bpa, machine, palladium, split_3bpa

from tace.config import PRESETS
from tace.edge_sum import EdgeSum

Rules = dict[str, Callable[..., bool]]  # of each form, what decides whether the kernel is used
Measure = Callable[[Callable[[], object]], Record]

FORMS: Rules = {
    "plain": lambda module, *tensors: False,
    "native": lambda module, *tensors: True,
    "upper": lambda module, *tensors: module.plan.n_in > 1,
}


def compared(call: Callable[[], object], operator: Any, forms: Rules, *, seconds: float) -> Record:
    """Median CPU milliseconds of each form of the operator, one after another until the time is over."""
    times: dict[str, list[float]] = {form: [] for form in forms}
    own = operator._native
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < 8 or (time.perf_counter() < end and rounds < 300):
        for form, rule in forms.items():
            operator._native = rule
            start = time.process_time()
            call()
            if rounds >= 3:
                times[form].append(1e3 * (time.process_time() - start))
        rounds += 1
    operator._native = own
    medians = {form: statistics.median(found) for form, found in times.items()}
    ratios = {f"{form}/plain": medians[form] / medians["plain"] for form in forms if form != "plain"}
    return {**{f"{form}_ms": x for form, x in medians.items()}, **ratios, "rounds": rounds - 3}


def systems(folder: Path) -> dict[str, tuple[Atoms, float]]:
    """Structure and cutoff by name."""
    water = read(folder / "water_revPBE0-D3" / "dev_80.extxyz.gz", "0")
    return {
        "3bpa": (frames_3bpa(folder / "3bpa")[0], ours.CUTOFF_A),
        "pd108": (palladium(3), ours.CUTOFF_A),
        "water192": (water, 6.0),
    }


def forces(sizes: dict[str, Any], atoms: Atoms, cutoff: float, measure: Measure) -> Record:
    """Energy and forces with weights that need no gradient.

    Args:
        sizes: L_max, and what differs from the sizes of the other benchmarks.
    """
    elements = sorted({int(z) for z in atoms.numbers})
    model = ours.build(
        elements, cutoff=cutoff, L_max=sizes["L_max"], avg_neighbors=20.0,
        e0=dict.fromkeys(elements, 0.0), sizes={k: v for k, v in sizes.items() if k != "L_max"},
    )  # fmt: skip
    model.requires_grad_(False)
    batch = ours.batch(model, [ours.graph(model, atoms)])
    found = measure(lambda: ours.call(model, batch, training=False))
    return {"atoms": len(atoms), "edges": 2 * len(batch.pair_i), **found}


def step(sizes: dict[str, Any], train: list[Atoms], count: int, measure: Measure) -> Record:
    """A training step on the first frames; `sizes` as for `forces`."""
    build, settings = ours.build, {k: v for k, v in sizes.items() if k != "L_max"}
    ours.build = lambda *a, **k: build(*a, **{**k, "sizes": settings})
    try:
        training = ours.Training(train, sizes["L_max"], E0_3BPA)
        frames = train[:count]
        ready = training.prepared(frames, [ours.graph(training.model, a) for a in frames])
        found = measure(lambda: training.step(*ready))
        return {"atoms": sum(map(len, frames)), **found}
    finally:
        ours.build = build


def small_molecules() -> list[Atoms]:
    """Rattled acetamide, 9 atoms, with labels of no meaning."""
    rng, frames = np.random.default_rng(0), []
    for _ in range(8):
        atoms = molecule("CH3CONH2")
        atoms.rattle(0.05, rng=rng)
        energy = sum(E0_3BPA[int(z)] for z in atoms.numbers) + rng.normal()
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=rng.normal(size=(len(atoms), 3)))
        frames.append(atoms)
    return frames


def whole_model(args: argparse.Namespace, measure: Measure) -> Iterator[Record]:
    """Force calls and training steps of every size, and those of a small molecule with the preset nano."""
    for size in args.sizes.split(","):
        sizes = {"L_max": SIZES[size]}
        for name, (atoms, cutoff) in systems(args.data).items():
            yield {"what": "forces", "size": size, "system": name, **forces(sizes, atoms, cutoff, measure)}
        train, _ = split_3bpa(args.data / "3bpa")
        yield {"what": "step", "size": size, "system": "3bpa", **step(sizes, train, BATCH, measure)}
    nano, frames = PRESETS["nano"], small_molecules()
    found = forces(nano, molecule("CH3CONH2"), ours.CUTOFF_A, measure)
    yield {"what": "forces", "size": "nano", "system": "acetamide", **found}
    for count in (1, BATCH):
        found = step(nano, frames, count, measure)
        yield {"what": "step", "size": "nano", "system": "acetamide", **found}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="directory of 3bpa and water_revPBE0-D3")
    parser.add_argument("--sizes", default="64-0,64-2", help="of " + ", ".join(SIZES))
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    for record in whole_model(args, lambda call: compared(call, EdgeSum, FORMS, seconds=args.seconds)):
        emit({"bench": "edge_sum", **record, **machine()})


if __name__ == "__main__":
    main()
