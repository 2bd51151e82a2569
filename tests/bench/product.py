"""The compiled product basis against PyTorch's, interleaved in one process, one JSON line each.

    python tests/bench/product.py --data DIR

DIR holds the folders 3bpa and water_revPBE0-D3. `basis`: the product basis alone, its values, forces (values
and slopes) and what a training step makes of it (and second derivatives). `forces` and `step`: energy and
forces, and training steps, of the whole model; edge sums are compiled in both forms.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ours
import torch
from ase import Atoms
from ase.build import molecule
from edge_sum import small_molecules, systems
from harness import BATCH, E0_3BPA, SIZES, Record, emit, machine, split_3bpa
from torch import Tensor

from tace.config import PRESETS
from tace.paths import product_paths
from tace.product import ProductBasis

FORMS = {"plain": False, "native": True}


def compared(call: Callable[[], object], *, seconds: float) -> Record:
    """Median CPU milliseconds of each form, one after another until the time is over."""
    times: dict[str, list[float]] = {form: [] for form in FORMS}
    own = ProductBasis._native
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < 8 or (time.perf_counter() < end and rounds < 300):
        for form, use in FORMS.items():
            ProductBasis._native = lambda self, a, use=use: use and own(self, a)  # type: ignore[method-assign]
            start = time.process_time()
            call()
            if rounds >= 3:
                times[form].append(1e3 * (time.process_time() - start))
        rounds += 1
    ProductBasis._native = own  # type: ignore[method-assign]
    medians = {form: statistics.median(found) for form, found in times.items()}
    ratio = medians["native"] / medians["plain"]
    return {**{f"{form}_ms": x for form, x in medians.items()}, "native/plain": ratio, "rounds": rounds - 3}


def basis(l_max: int, outputs: tuple[int, ...], atoms: int, channels: int) -> dict[str, Callable[[], object]]:
    """Calls by name."""
    module = ProductBasis(product_paths(l_max, 3, outputs, "minimal"), l_max, outputs, "unit").float()
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).requires_grad_()

    a = [random(atoms, n, channels) for n in module.widths]
    g = [random(atoms, m, n * channels) for m, n in module.shapes.outputs]
    u = [random(atoms, n, channels) for n in module.widths]

    def values() -> list[Tensor]:
        with torch.no_grad():
            return module(a)

    def slopes() -> Any:
        return torch.autograd.grad(module(a), a, g)

    def second() -> Any:
        first = torch.autograd.grad(module(a), a, g, create_graph=True)
        return torch.autograd.grad(first, [*a, *g], u)

    return {"values": values, "forces": slopes, "training": second}


def forces(sizes: dict[str, Any], atoms: Atoms, cutoff: float, seconds: float) -> Record:
    """Energy and forces with weights that need no gradient."""
    elements = sorted({int(z) for z in atoms.numbers})
    settings = {k: v for k, v in sizes.items() if k != "L_max"}
    model = ours.build(
        elements, cutoff=cutoff, L_max=sizes["L_max"], avg_neighbors=20.0,
        e0=dict.fromkeys(elements, 0.0), sizes=settings,
    )  # fmt: skip
    model.requires_grad_(False)
    batch = ours.batch(model, [ours.graph(model, atoms)])
    found = compared(lambda: ours.call(model, batch, training=False), seconds=seconds)
    return {"atoms": len(atoms), **found}


def step(sizes: dict[str, Any], train: list[Atoms], count: int, seconds: float) -> Record:
    build, settings = ours.build, {k: v for k, v in sizes.items() if k != "L_max"}
    ours.build = lambda *a, **k: build(*a, **{**k, "sizes": settings})
    try:
        training = ours.Training(train, sizes["L_max"], E0_3BPA)
        frames = train[:count]
        ready = training.prepared(frames, [ours.graph(training.model, a) for a in frames])
        found = compared(lambda: training.step(*ready), seconds=seconds)
        return {"atoms": sum(map(len, frames)), **found}
    finally:
        ours.build = build


def records(args: argparse.Namespace) -> Iterator[Record]:
    kinds = {"64-2": (3, (0, 1, 2), 64), "64-0": (3, (0,), 64), "nano": (2, (0, 1), 16)}
    for size, (l_max, outputs, channels) in kinds.items():
        for atoms in (8, 27, 135, 576):
            for name, call in basis(l_max, outputs, atoms, channels).items():
                yield {
                    "what": f"basis {name}", "size": size, "atoms": atoms,
                    **compared(call, seconds=args.seconds / 3),
                }  # fmt: skip
    if args.basis:
        return
    for size in args.sizes.split(","):
        sizes = {"L_max": SIZES[size]}
        for name, (frame, cutoff) in systems(args.data).items():
            yield {"what": "forces", "size": size, "system": name,
                   **forces(sizes, frame, cutoff, args.seconds)}  # fmt: skip
        train, _ = split_3bpa(args.data / "3bpa")
        yield {"what": "step", "size": size, "system": "3bpa", **step(sizes, train, BATCH, args.seconds)}
    nano = PRESETS["nano"]
    yield {"what": "forces", "size": "nano", "system": "acetamide",
           **forces(nano, molecule("CH3CONH2"), 5.0, args.seconds)}  # fmt: skip
    for count in (1, BATCH):
        yield {"what": "step", "size": "nano", "system": "acetamide",
               **step(nano, small_molecules(), count, args.seconds)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="directory of 3bpa and water_revPBE0-D3")
    parser.add_argument("--sizes", default="64-0,64-2", help="of " + ", ".join(SIZES))
    parser.add_argument("--basis", action="store_true", help="the product basis alone")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    args = parser.parse_args()
    if not args.basis and args.data is None:
        parser.error("--data is needed, unless --basis is given")
    torch.set_num_threads(1)
    for record in records(args):
        emit({"bench": "product", **record, **machine()})


if __name__ == "__main__":
    main()
