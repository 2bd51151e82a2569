"""Both generators of random structures: acceptance, bias, distances, repeatability, time; JSON lines.

    python tests/bench/reico_generator.py [--smoke] [--count N] [--seed N] [--out FILE]

Sizes are fixed compositions, half metal and half oxygen: `reico` (published rules) at 4 to 20 atoms, `grow`
(ours) at 4 to 48. `compositions` draws Pt 1-12 and O 1-12, the published example, and tests by χ² whether
each element's number is uniform. `kinds` looks at surfaces, adsorbates and clusters after the vacuum was
added. `descent` optimises grown structures with ASE's EMT, as `start: - reico:` does with a cheap labeler,
and gives the force RMS at birth and after (2.498 eV/Å in the published set, by PBE).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from alchemy_policies import Recipe, Reico
from alchemy_policies.calculators import CalculatorSessions
from alchemy_policies.health import health, nearest_neighbours
from ase import Atoms
from ase.calculators.emt import EMT
from scipy.stats import chi2

Record = dict[str, Any]
SIZES = {"reico": (4, 8, 12, 16, 20), "grow": (4, 8, 12, 16, 20, 24, 32, 48)}
EXAMPLE = {"Pt": (1, 12), "O": (1, 12)}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="a few structures of each, seconds")
    parser.add_argument("--count", type=int, default=300, help="structures of each measurement")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write the lines there")
    args = parser.parse_args(argv)
    count = 6 if args.smoke else args.count
    lines = []
    for record in measurements(count, args.seed):
        line = json.dumps({key: _rounded(value) for key, value in record.items()})
        print(line, flush=True)
        lines.append(line)
    if args.out is not None:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def measurements(count: int, seed: int) -> Iterator[Record]:
    for method, sizes in SIZES.items():
        for size in sizes:
            recipe = Recipe(mix={"Pt": (size // 2, size // 2), "O": (size - size // 2, size - size // 2)})
            yield {"bench": "size", "atoms": size, **measured(method, recipe, "bulk", count, seed)}
    for method in SIZES:
        yield {"bench": "compositions", **compositions(method, 4 * count, seed)}
    for method in SIZES:
        for kind in ("bulk", "surface", "adsorbate", "cluster"):
            recipe = Recipe(mix={"Pd": (4, 8)}, adsorbate={"O": (1, 3)} if kind == "adsorbate" else {})
            yield {"bench": "kinds", "kind": kind, **measured(method, recipe, kind, count, seed)}
    yield {"bench": "descent", **descent(max(4, count // 5), seed)}


def made(method: str, recipe: Recipe, kind: str, count: int, seed: int) -> tuple[list[Atoms], int, float]:
    """Structures, trials and CPU seconds."""
    policy = Reico(count=count, recipe=recipe, method=method, kinds={kind: 1.0})
    started = time.process_time()
    born = [structure for structure, _ in policy.make([], np.random.default_rng(seed))]
    return [b.atoms for b in born], sum(b.trials for b in born), time.process_time() - started


def measured(method: str, recipe: Recipe, kind: str, count: int, seed: int) -> Record:
    frames, trials, cpu_s = made(method, recipe, kind, count, seed)
    again, _, _ = made(method, recipe, kind, count, seed)
    nearest = [nearest_neighbours(atoms)[0] for atoms in frames]
    low, high = recipe.nearest_A
    inside = [bool(((near > low - 1e-9) & (near < high + 1e-9)).all()) for near in nearest]
    told = health(frames)
    return {
        "method": method,
        "structures": count,
        "acceptance": count / trials,
        "ms_per_structure": 1e3 * cpu_s / count,
        "within_window": float(np.mean(inside)),
        "structures_with_isolated_atoms": told["structures_with_isolated_atoms"],
        "nearest_mean_A": told["nearest_A"]["mean"],
        "nearest_least_A": told["nearest_A"]["least"],
        "nearest_most_A": told["nearest_A"]["most"],
        "volume_p5_A3_per_atom": (told["volume_A3_per_atom"] or {}).get("p5"),
        "volume_p95_A3_per_atom": (told["volume_A3_per_atom"] or {}).get("p95"),
        "same_bytes": digest(frames) == digest(again),
    }


def compositions(method: str, count: int, seed: int) -> Record:
    frames, trials, _ = made(method, Recipe(mix=EXAMPLE), "bulk", count, seed)
    found: Record = {"method": method, "structures": count, "acceptance": count / trials}
    sizes = np.array([len(a) for a in frames])
    found |= {"mean_atoms": sizes.mean(), "share_13_or_more": float(np.mean(sizes >= 13))}
    for symbol, (low, high) in EXAMPLE.items():
        counted = Counter(int((a.symbols == symbol).sum()) for a in frames)
        expected = count / (high - low + 1)
        statistic = sum((counted[n] - expected) ** 2 / expected for n in range(low, high + 1))
        found[f"chi2_{symbol}"] = statistic
        found[f"p_{symbol}"] = float(chi2.sf(statistic, high - low))
    return found


def descent(count: int, seed: int) -> Record:
    """Forces at birth and along a short optimisation of Pd and Ag, which EMT knows."""
    recipe = Recipe(mix={"Pd": (1, 6), "Ag": (1, 6)})
    policy = Reico(count=count, recipe=recipe, relax_steps=10, frames=10, birth=True)
    started = time.process_time()
    found = policy([], CalculatorSessions(EMT()), None, np.random.default_rng(seed))
    cpu_s = time.process_time() - started
    forces: dict[int, list[np.ndarray]] = {}
    for candidate in found.candidates:
        atoms = candidate.atoms.copy()
        atoms.calc = EMT()
        forces.setdefault(candidate.step, []).append(atoms.get_forces())
    every = np.concatenate([f for step in forces.values() for f in step])
    usual = np.concatenate([f for step in (3, 7, 10) for f in forces[step]])  # offered by default
    return {
        "structures": count,
        "frames": len(found.candidates),
        "outcomes": dict(Counter(w.outcome for w in found.walkers)),
        "rms_by_step_eV_per_A": {step: rms(np.concatenate(forces[step])) for step in sorted(forces)},
        "rms_of_all_eV_per_A": rms(every),
        "rms_of_default_frames_eV_per_A": rms(usual),
        "median_at_birth_eV_per_A": float(np.median(np.linalg.norm(np.concatenate(forces[0]), axis=1))),
        "ms_per_structure": 1e3 * cpu_s / count,
    }


def rms(forces: np.ndarray) -> float:
    return float(np.sqrt((forces**2).mean()))


def digest(frames: Sequence[Atoms]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for atoms in frames:
        found.update(atoms.positions.tobytes() + atoms.cell.array.tobytes() + atoms.numbers.tobytes())
    return found.hexdigest()


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(v) for key, v in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float | np.floating) else value


if __name__ == "__main__":
    main()
