"""A committee of four on one graph beside four calls of single models, interleaved; one JSON line each.

    python tests/bench/committee.py --data DIR

Both get the graph ready-made and give energies and forces of every member; the committee also their mean and
spread. `nano` on acetamide and on 3BPA, 64-2 on 3BPA and on Pd-108. DIR holds the folder 3bpa.
"""

from __future__ import annotations

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
from tace.config import PRESETS
from tace.prediction import force_spread

MEMBERS = 4
CASES = {  # system → size of the model
    "acetamide": "nano", "3bpa nano": "nano", "3bpa": "64-2", "pd108": "64-2",
}  # fmt: skip


def structure(name: str, data: Path | None) -> Atoms:
    if name.startswith("3bpa"):
        return frames_3bpa(data / "3bpa" if data else None)[0]
    return palladium(3) if name == "pd108" else molecule("CH3CONH2")


def calls(atoms: Atoms, size: str) -> dict[str, Callable[[], object]]:
    """The committee and the single models, on one graph."""
    elements = sorted({int(z) for z in atoms.numbers})
    sizes: dict[str, Any] = {"L_max": 2} if size == "64-2" else dict(PRESETS[size])
    models = [
        ours.build(
            elements, cutoff=ours.CUTOFF_A, L_max=sizes["L_max"], avg_neighbors=20.0, seed=seed,
            e0=dict.fromkeys(elements, 0.0), sizes={k: v for k, v in sizes.items() if k != "L_max"},
        )
        for seed in range(MEMBERS)
    ]  # fmt: skip
    committee = Committee(models)
    batch = ours.batch(models[0], [ours.graph(models[0], atoms)])

    def together() -> object:
        found = committee.evaluate_batch(batch, member_forces=True)
        assert found.forces is not None
        return found.energy_spread, force_spread(found.forces)

    def alone() -> object:
        return [ours.call(model, batch, training=False) for model in models]

    def one() -> object:
        return ours.call(models[0], batch, training=False)

    return {"committee": together, "four calls": alone, "one call": one}


def main(argv: Sequence[str] | None = None) -> None:
    parser = described(__doc__)
    parser.add_argument("--data", type=Path, help="directory of the folder 3bpa")
    parser.add_argument("--systems", default=",".join(CASES))
    parser.add_argument("--seconds", type=float, default=15.0, help="of each system")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    for name in args.systems.split(","):
        times = in_turns(calls(structure(name, args.data), CASES[name]), seconds=args.seconds)
        what: Record = {
            "bench": "committee", "system": name, "size": CASES[name], "members": MEMBERS,
            "threads": args.threads, "torch": torch.__version__,
        }  # fmt: skip
        for kind, found in times.items():
            emit({**what, "what": kind, **quartiles("cpu_ms", found), "rounds": len(found), **machine()})
        for other in ("four calls", "one call"):
            emit({**what, "what": "ratio of CPU times", **ratio(times, "committee", other)})


if __name__ == "__main__":
    main()
