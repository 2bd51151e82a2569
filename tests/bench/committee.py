"""A committee of four on one graph beside four calls of single models, interleaved; one JSON line each.

    python tests/bench/committee.py --data DIR
    python tests/bench/committee.py --data DIR --kinds heads,gate,field,tables

Both get the graph ready-made and give energies and forces of every member; the committee also their mean and
spread. `nano` on acetamide and on 3BPA, 64-2 on 3BPA and on Pd-108. DIR holds the folder 3bpa. Kinds are
models with more to them: heads of charges and dipoles at two levels, a gate, a field, radial tables of
`tace compile` (without its graph); `in turns` is the committee that goes through its members one by one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ours
import torch
from ase import Atoms
from ase.build import molecule
from harness import Record, described, emit, frames_3bpa, machine, palladium
from turns import in_turns, quartiles, ratio

from tace.committee import Committee
from tace.config import PRESETS, HeadConfig, InputConfig
from tace.prediction import force_spread
from tace.radial_tables import with_tables

MEMBERS = 4
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "heads": {
        "fidelities": ("cheap", "dear"), "readout": "per_fidelity",
        "heads": (
            HeadConfig("charges", scope="atom", charges="qeq"),
            HeadConfig("dipole", symmetry="i", with_charges=True),
        ),
    },
    "gate": {"gate": "norm"},
    "field": {"inputs": (InputConfig("electric_field"),)},
    "tables": {},
}  # fmt: skip
CASES = {  # system → size of the model
    "acetamide": "nano", "3bpa nano": "nano", "3bpa": "64-2", "pd108": "64-2",
}  # fmt: skip


def structure(name: str, data: Path | None) -> Atoms:
    if name.startswith("3bpa"):
        return frames_3bpa(data / "3bpa" if data else None)[0]
    return palladium(3) if name == "pd108" else molecule("CH3CONH2")


def calls(atoms: Atoms, size: str, kind: str = "plain") -> dict[str, Callable[[], object]]:
    """The committee and the single models, on one graph."""
    atoms.info["electric_field"] = [0.0, 0.0, 0.01]
    elements = sorted({int(z) for z in atoms.numbers})
    sizes: dict[str, Any] = {"L_max": 2} if size == "64-2" else dict(PRESETS[size])
    models = [
        ours.build(
            elements, cutoff=ours.CUTOFF_A, L_max=sizes["L_max"], avg_neighbors=20.0, seed=seed,
            e0=dict.fromkeys(elements, 0.0),
            sizes={k: v for k, v in sizes.items() if k != "L_max"} | KINDS[kind],
        )
        for seed in range(MEMBERS)
    ]  # fmt: skip
    if kind == "tables":
        models = [with_tables(model, [])[0] for model in models]
    committee, before = Committee(models), Committee(models)
    assert committee._stacked is not None
    before._stacked = None
    batch = ours.batch(models[0], [ours.graph(models[0], atoms)])

    def together() -> object:
        found = committee.evaluate_batch(batch, member_forces=True)
        assert found.forces is not None
        return found.energy_spread, force_spread(found.forces)

    def alone() -> object:
        return [ours.call(model, batch, training=False) for model in models]

    def one() -> object:
        return ours.call(models[0], batch, training=False)

    def in_turn() -> object:
        found = before.evaluate_batch(batch, member_forces=True)
        assert found.forces is not None
        return found.energy_spread, force_spread(found.forces)

    return {"committee": together, "four calls": alone, "one call": one, "in turns": in_turn}


def main(argv: Sequence[str] | None = None) -> None:
    parser = described(__doc__)
    parser.add_argument("--data", type=Path, help="directory of the folder 3bpa")
    parser.add_argument("--systems", default=",".join(CASES))
    parser.add_argument("--kinds", default="plain", help="of " + ", ".join(KINDS))
    parser.add_argument("--seconds", type=float, default=15.0, help="of each system")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    for name, kind in itertools.product(args.systems.split(","), args.kinds.split(",")):
        times = in_turns(calls(structure(name, args.data), CASES[name], kind), seconds=args.seconds)
        what: Record = {
            "bench": "committee", "system": name, "size": CASES[name], "kind": kind, "members": MEMBERS,
            "threads": args.threads, "torch": torch.__version__,
        }  # fmt: skip
        for form, found in times.items():
            emit({**what, "what": form, **quartiles("cpu_ms", found), "rounds": len(found), **machine()})
        for other in ("four calls", "one call", "in turns"):
            emit({**what, "what": "ratio of CPU times", **ratio(times, "committee", other)})


if __name__ == "__main__":
    main()
