"""The compiled product basis against PyTorch's, interleaved in one process, one JSON line each.

    python tests/bench/product.py --data DIR

DIR holds the folders 3bpa and water_revPBE0-D3. `basis`: the product basis alone, its values, forces (values
and slopes) and what a training step makes of it (and second derivatives). `forces` and `step`: energy and
forces, and training steps, of the whole model; edge sums are compiled in both forms.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from edge_sum import Rules, compared, whole_model
from harness import SIZES, Record, emit, machine
from torch import Tensor

from tace.paths import product_paths
from tace.product import ProductBasis

FORMS: Rules = {"plain": lambda module, a: False, "native": ProductBasis._native}


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


def records(args: argparse.Namespace) -> Iterator[Record]:
    def measure(call: Callable[[], object]) -> Record:
        return compared(call, ProductBasis, FORMS, seconds=args.seconds)

    kinds = {"64-2": (3, (0, 1, 2), 64), "64-0": (3, (0,), 64), "nano": (2, (0, 1), 16)}
    for size, (l_max, outputs, channels) in kinds.items():
        for atoms in map(int, args.atoms.split(",")):
            for name, call in basis(l_max, outputs, atoms, channels).items():
                yield {
                    "what": f"basis {name}", "size": size, "atoms": atoms,
                    **compared(call, ProductBasis, FORMS, seconds=args.seconds / 3),
                }  # fmt: skip
    if not args.basis:
        yield from whole_model(args, measure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="directory of 3bpa and water_revPBE0-D3")
    parser.add_argument("--sizes", default="64-0,64-2", help="of " + ", ".join(SIZES))
    parser.add_argument("--atoms", default="8,27,135,576", help="of the basis alone")
    parser.add_argument("--basis", action="store_true", help="the product basis alone")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    args = parser.parse_args(argv)
    if not args.basis and args.data is None:
        parser.error("--data is needed, unless --basis is given")
    torch.set_num_threads(1)
    for record in records(args):
        emit({"bench": "product", **record, **machine()})


if __name__ == "__main__":
    main()
