"""Time of energy and forces against size and system, one JSON line each.

    python tests/bench/force_call.py
    python tests/bench/force_call.py --data DIR --peers-bench DIR --peers-venvs DIR

One call of the model with its neighbour list already made; weights do not require gradients.
3BPA needs --data; the Pd cells need nothing. The cutoff is 5 Å.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ours
import torch
from ase import Atoms
from harness import (
    SIZES,
    Record,
    emit,
    frames_3bpa,
    machine,
    options,
    palladium,
    parsed,
    peers,
    ratios,
    timed,
)

from tace.model import n_parameters


def systems(folder: Path | None) -> dict[str, Atoms]:
    """By name; 3BPA only where its file is given."""
    molecule = {"3bpa": frames_3bpa(folder)[0]} if folder else {}
    return {**molecule, "pd32": palladium(2), "pd108": palladium(3)}


def alone(size: str, atoms: Atoms, seconds: float) -> Record:
    """Our model only."""
    elements = {int(z) for z in atoms.numbers}
    # random weights: the neighbour count and the energies only scale the numbers
    model = ours.build(
        sorted(elements),
        cutoff=ours.CUTOFF_A,
        L_max=SIZES[size],
        avg_neighbors=20.0,
        e0=dict.fromkeys(elements, 0.0),
    )
    parameters = n_parameters(model)
    model.requires_grad_(False)
    graph = ours.graph(model, atoms)
    batch = ours.batch(model, [graph])
    times = timed(lambda: ours.call(model, batch, training=False), seconds=seconds)
    return {
        "model": "ours", "atoms": len(atoms), "edges": 2 * len(graph.pairs.i),
        "parameters": parameters, **times,
    }  # fmt: skip


def from_peer(r: Record) -> Record:
    """A line of the peers' harness in our words."""
    names = {
        "system": "system", "error": "error", "n_atoms": "atoms", "n_edges": "edges",
        "params": "parameters", "model_cpu_median_ms": "cpu_ms", "model_cpu_min_ms": "cpu_least_ms",
        "model_median_ms": "wall_ms", "model_reps": "repeats", "model_peak_mib": "peak_MiB",
        "calc_cpu_median_ms": "calculator_cpu_ms", "threads": "threads", "torch": "torch",
    }  # fmt: skip
    found = {new: r[old] for old, new in names.items() if old in r}
    return {"bench": "force_call", "model": r["peer"], "size": r["size"], **found, **machine()}


def main(argv: Sequence[str] | None = None) -> None:
    args = parsed(options(__doc__, seconds=3.0), argv)
    if args.peers_bench is None:
        what = {"threads": args.threads, "torch": torch.__version__, **machine()}
        for size in args.sizes:
            for name, atoms in systems(args.data).items():
                found = alone(size, atoms, args.seconds)
                emit({"bench": "force_call", "size": size, "system": name, **found, **what})
        return
    records = []
    with peers(args) as others:
        extra = ["--systems", "3bpa,pd32,pd108", "--budget-per-point", args.seconds]
        for record in map(from_peer, others.one_by_one("infer", *extra)):
            emit(record)
            records.append(record)
    ratios(records, value="cpu_ms", by=["size", "system"])


if __name__ == "__main__":
    main()
