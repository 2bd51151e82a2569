"""Saddles by active learning against the direct search: JSON lines, one per case and part.

    python tests/bench/transition_states.py --smoke                    # EMT, small: does it run?
    python tests/bench/transition_states.py --cases emt,hcn
    python tests/bench/transition_states.py --cases emt,hcn,vinyl,baker --baker DIR_OF_BAKER_TS

For each case: (1) `direct`, the search on the target level itself; (2) `pretrain`, a committee trained on
the cheap level, whose structures come from its own search and copies of them, displaced; (3) `active`,
that committee with a new level for the target, which buys labels until model and label agree
(`refine_saddle`). The last line counts successes: a checked saddle at which the target's energy is within
30 meV of the direct one's, after at most 12 labels; `ended` says whether the loop saw that it agreed. Then
labels relax the ends: `end_labels`, `ends` (at-rest or why not), `barriers_off_meV` against the direct ones.
Cheap level: GFN2-xTB; the metal starts from nothing: both ends and the middle of the drawn path are its first
labels. `--surface cheap`: the loop corrects the cheap level itself; with `nothing` it starts as the metal.
Target: EMT, and PySCF HF/3-21G unless --method and --basis say otherwise. CPU s: this process, one thread.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import io
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from alchemy_policies.calculators import CalculatorSessions
from alchemy_policies.calibration import Calibration
from alchemy_policies.ts import (
    Label,
    Reaction,
    Refinement,
    Surface,
    TransitionStates,
    checked,
    refine_saddle,
    search,
    summary,
)
from ase import Atoms
from ase.build import add_adsorbate, fcc100
from ase.calculators.calculator import CalculationFailed, Calculator, SCFError
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.io import read
from ase.units import Hartree
from harness import Record, machine
from harness import emit_own as emit

from alchemy.labelers.base import make_labeler
from alchemy.labelers.calculator import LabelerCalculator
from tace.committee import Committee
from tace.config import preset
from tace.data import Labelled, make_samples
from tace.finetune import extend_fidelities, fit_new_level
from tace.model import Tace
from tace.reference import mean_neighbors, set_statistics, statistics
from tace.settings import TrainSettings
from tace.train import fit

CHEAP, TARGET = "cheap", "target"
WITHIN_eV, MOST_LABELS = 0.030, 12
BAKER = ("01_hcn", "03_h2co", "12_ethane_h2_abstraction", "24_h2cnh", "25_hcnh2")  # singlets, ≤ 10 atoms


@dataclass(frozen=True)
class Case:
    """A reaction and its two levels of theory."""

    name: str
    reaction: Reaction
    cheap: Calculator | None  # None: nothing is known but the labels
    target: Calculator
    method: str = "neb+dimer"
    drawn: int = 0  # images labelled first: where there is no cheap level


class Recorder:
    """Sessions that remember what they were asked, with energies and forces."""

    def __init__(self, calculator: Calculator) -> None:
        self.factory = CalculatorSessions(calculator)
        self.frames: list[Labelled] = []

    def __call__(self, frames: Sequence[Atoms]) -> Any:
        session, kept = self.factory(frames), [a.copy() for a in frames]

        def evaluate(positions: np.ndarray, member_forces: bool, **rest: Any) -> Any:
            said = session(positions, member_forces, **rest)
            parts = zip(
                kept, said.per_structure(positions), said.per_structure(said.mean_forces),
                said.mean_energies, strict=True,
            )  # fmt: skip
            for atoms, x, forces, energy in parts:
                bare = Atoms(atoms.numbers, x.copy(), cell=atoms.cell, pbc=atoms.pbc)
                if np.isfinite(forces).all() and np.abs(forces).max() < 30.0:
                    self.frames.append(Labelled(bare, CHEAP, float(energy), forces.copy()))
            return said

        return evaluate


def emt_case() -> Case:
    slab = fcc100("Al", size=(2, 2, 2))
    add_adsorbate(slab, "Al", 1.7, "hollow")
    slab.center(axis=2, vacuum=4.0)
    slab.info.clear()
    slab.set_constraint(FixAtoms(mask=[atom.tag > 1 for atom in slab]))
    over = slab.copy()
    over.positions[-1, 0] += slab.cell[0, 0] / 2
    return Case("Al/EMT hop", Reaction("hop", slab, over), None, EMT(), drawn=1)


def molecule_case(name: str, reaction: Reaction, args: argparse.Namespace, scratch: Path) -> Case:
    cheap = make_labeler("tblite", {"method": "GFN2-xTB"}, base_dir=scratch)
    level = {"method": args.method, "basis": args.basis}
    target = make_labeler("pyscf", level, base_dir=scratch)
    calculators = [LabelerCalculator(x, scratch / f"{name}-{x.name}") for x in (cheap, target)]
    # from Baker's guess of HCN the dimer runs into atoms on GFN2-xTB
    how = "sella" if reaction.is_guess else "neb+dimer"
    return Case(name, reaction, calculators[0], calculators[1], how, drawn=int(reaction.is_guess))


def hcn() -> Reaction:
    start = Atoms("HCN", [[-1.07, 0, 0], [0, 0, 0], [1.15, 0, 0]])
    end = Atoms("HCN", [[2.17, 0, 0], [0, 0, 0], [1.17, 0, 0]])
    return Reaction("hcn", start, end)


def vinyl_alcohol() -> Reaction:
    """CH2=CH-OH (syn) → CH3-CHO; the hydrogen of the hydroxyl, atom 6, moves to the far carbon, atom 0."""
    start = Atoms("CCOHHHH", [
        [1.20, -0.16, 0.0], [0.0, 0.43, 0.0], [-1.19, -0.20, 0.0], [2.10, 0.43, 0.0],
        [1.32, -1.24, 0.0], [-0.09, 1.51, 0.0], [-1.07, -1.16, 0.0],
    ])  # fmt: skip
    end = Atoms("CCOHHHH", [
        [1.17, -0.15, 0.0], [-0.23, 0.40, 0.0], [-1.23, -0.28, 0.0], [1.71, 0.22, 0.88],
        [1.71, 0.22, -0.88], [-0.30, 1.51, 0.0], [1.15, -1.24, 0.0],
    ])  # fmt: skip
    return Reaction("vinyl", start, end)


def baker(folder: Path) -> Iterator[Reaction]:
    text = gzip.decompress((folder / "ts_guess_25.extxyz.gz").read_bytes()).decode()
    for atoms in read(io.StringIO(text), ":", format="extxyz"):
        name, info = atoms.info["name"], atoms.info
        if name in BAKER:
            state = {"charge": round(info["total_charge"]), "multiplicity": int(info["multiplicity"])}
            if "TS_energy_HF_321G_Ha" in info:  # not of 03_h2co
                state["published_eV"] = info["TS_energy_HF_321G_Ha"] * Hartree
            bare = Atoms(atoms.numbers, atoms.positions, info=state)
            yield Reaction(name, bare, is_guess=True)


def cases(args: argparse.Namespace, scratch: Path) -> Iterator[Case]:
    wanted = args.cases.split(",")
    if "emt" in wanted:
        yield emt_case()
    for name, make in (("hcn", hcn), ("vinyl", vinyl_alcohol)):
        if name in wanted:
            yield molecule_case(name, make(), args, scratch)
    if args.baker is not None:
        for reaction in baker(args.baker):
            if "baker" not in wanted and reaction.name not in wanted:
                continue
            yield molecule_case(reaction.name, reaction, args, scratch)


def explorer(case: Case) -> TransitionStates:
    options = {"method": case.method, "images": 5}
    return TransitionStates(label_above_eV_per_A=2.0, abort_above_eV_per_A=20.0, search=options)


def run_search(case: Case, factory: Any, seed: int) -> tuple[Any, float]:
    """The result, and the CPU seconds that it took."""
    started = time.process_time()
    ready, plan = checked(case.reaction), explorer(case)
    surface = Surface(ready.reactant, factory, Calibration.uncalibrated())
    rng = np.random.default_rng(seed)
    result = search(surface, ready, options=plan.search, limits=plan.limits, rng=rng)
    return result, time.process_time() - started


def direct(case: Case, seed: int) -> tuple[Record, Any]:
    result, cpu = run_search(case, CalculatorSessions(case.target), seed)
    saddle = result.saddle
    exact = None if saddle is None else f"{saddle.energy_eV:.6f}"  # emit keeps four digits of numbers
    published = case.reaction.reactant.info.get("published_eV")
    off = None if saddle is None or published is None else 1e3 * (saddle.energy_eV - published)
    record = {"what": "direct", **summary(result), "saddle_eV": exact, "published_off_meV": off}
    return {**record, "cpu_s": cpu}, saddle


def pretraining_set(case: Case, args: argparse.Namespace) -> tuple[list[Labelled], Record]:
    """Structures of the cheap level's own search that are unlike each other, and displaced copies of them."""
    rng, recorder, started = np.random.default_rng(args.seed), Recorder(case.cheap), time.process_time()
    result, _ = run_search(case, recorder, args.seed)
    seen = recorder.frames
    chosen = unlike([f for f in seen if np.abs(f.forces_eV_per_A).max() < 15.0], args.frames // 3)
    own = len(chosen)
    for _ in range(args.frames - own):
        atoms = chosen[int(rng.integers(own))].atoms.copy()
        # near the path, and where a search on a model that is not right yet may come
        atoms.positions += rng.normal(0.0, rng.choice([0.04, 0.08, 0.16]), atoms.positions.shape)
        atoms.calc = case.cheap
        try:
            label = Labelled(atoms, CHEAP, atoms.get_potential_energy(), atoms.get_forces())
        except (CalculationFailed, SCFError):
            continue
        atoms.calc = None
        if np.abs(label.forces_eV_per_A).max() < 30.0:
            chosen.append(label)
    record = {
        "what": "cheap", "outcome": result.outcome, "barrier_eV": summary(result).get("barrier_eV"),
        "cheap_calls": result.force_calls + args.frames - own, "frames": len(chosen),
        "cpu_s": time.process_time() - started,
    }  # fmt: skip
    return chosen, record


def unlike(frames: list[Labelled], count: int) -> list[Labelled]:
    """The frames that are farthest from each other in their inverse distances; Hessians have many twins."""
    i, j = np.triu_indices(len(frames[0].atoms), 1)
    rows = np.array([1.0 / f.atoms.get_all_distances(mic=bool(f.atoms.pbc.any()))[i, j] for f in frames])
    chosen, far = [0], np.linalg.norm(rows - rows[0], axis=1)
    while len(chosen) < count and far.max() > 1e-3:
        chosen.append(int(np.argmax(far)))
        far = np.minimum(far, np.linalg.norm(rows - rows[chosen[-1]], axis=1))
    return [frames[n] for n in chosen]


class Students:
    """A committee of the cheap level, and what target labels make of it."""

    def __init__(self, frames: list[Labelled], args: argparse.Namespace) -> None:
        self.frames, self.args = frames, args
        elements = tuple(sorted({int(z) for f in frames for z in f.atoms.numbers}))
        config = preset("nano", elements=elements, fidelities=(CHEAP,), cutoff_A=4.0, les=None)
        config = replace(config, avg_neighbors=mean_neighbors(frames, config))
        held = max(1, len(frames) // 10)
        samples = make_samples(frames, config)
        self.base: list[Tace] = []
        self.force_rmse: list[float] = []
        for k in range(args.committee):
            model = Tace(config, seed=args.seed + k, dtype=torch.float32)
            set_statistics(model, statistics(frames, config))
            settings = TrainSettings(steps=args.steps, seed=args.seed + k, validate_every=args.steps)
            done = fit(model, samples[held:], samples[:held], settings=settings)
            self.force_rmse.append(float(done.last_force_rmse_eV_per_A))
            self.base.append(model)

    def learn(self, labels: Sequence[tuple[Atoms, Label]]) -> Any:
        """The new level from its labels; the cheap ones are replayed so that they are not forgotten."""
        frames = [Labelled(a.copy(), TARGET, x.energy_eV, x.forces_eV_per_A) for a, x in labels]
        members = []
        for k, base in enumerate(self.base):
            model = extend_fidelities(copy.deepcopy(base), [TARGET])
            if frames:
                fit_new_level(model, frames, TARGET)
                order = np.random.default_rng(self.args.seed + k).permutation(len(self.frames))
                old = [self.frames[i] for i in order[: self.args.replay]]
                settings = TrainSettings(
                    steps=self.args.tune, learning_rate=5e-3, seed=self.args.seed + k, fidelity_balance=0.8
                )
                samples = make_samples([*frames, *old], model.config)
                fit(model.requires_grad_(True).train(), samples, [], settings=settings)
            members.append(model)
        committee = Committee(members)
        calibration = Calibration.uncalibrated(len(members))
        return (lambda wanted: committee.session(wanted, fidelity=TARGET)), calibration


def labels_of(case: Case, frames: Sequence[Atoms]) -> list[Label | None]:
    labels: list[Label | None] = []
    for atoms in frames:
        work = atoms.copy()
        work.calc = case.target
        try:
            forces = work.get_forces(apply_constraint=False)
            results = case.target.results
            labels.append(Label(float(results.get("free_energy", results["energy"])), forces.copy()))
        except (CalculationFailed, SCFError):
            labels.append(None)
    return labels


def active(case: Case, args: argparse.Namespace, wanted_eV: Sequence[float]) -> Iterator[Record]:
    """Pretraining and the loop of labels; `wanted_eV` of the direct search, its saddle and both barriers."""
    students: Students | None = None
    if case.cheap is not None and args.surface == "committee":
        frames, record = pretraining_set(case, args)
        yield record
        started = time.process_time()
        students = Students(frames, args)
        yield {
            "what": "pretrain", "frames": len(frames), "members": args.committee, "steps": args.steps,
            "valid_force_rmse_eV_per_A": float(np.mean(students.force_rmse)),
            "cpu_s": time.process_time() - started,
        }  # fmt: skip
    first = None if students is None else students.learn([])
    if case.cheap is not None and args.surface == "cheap":
        first = CalculatorSessions(case.cheap), Calibration.uncalibrated()
    started = time.process_time()
    done = refine_saddle(
        case.reaction, explorer(case), label=lambda wanted: labels_of(case, wanted),
        learn=students.learn if students is not None and args.tune else None,
        rng=np.random.default_rng(args.seed),
        first=first, max_labels=MOST_LABELS, per_turn=args.per_turn, drawn=case.drawn or int(first is None),
    )  # fmt: skip
    cpu = time.process_time() - started
    saddle, off = done.result.saddle, None
    if saddle is not None and wanted_eV:  # judged, not learnt from: not one of the labels
        (said,) = labels_of(case, [_frame(case, saddle)])
        off = None if said is None else said.energy_eV - wanted_eV[0]
    close = done.result.found and off is not None and abs(off) <= WITHIN_eV
    yield {
        "what": "active", **summary(done.result), "ended": done.outcome, "target_labels": done.labels,
        "saddle_off_meV": None if off is None else 1e3 * off, "success": bool(close),
        "end_labels": done.end_labels, "ends": [end.state for end in done.ends],
        "labelled_barriers_eV": [None if np.isnan(x) else x for x in done.labelled_barriers_eV],
        "barriers_off_meV": barriers_off_meV(case, done, wanted_eV[1:]),
        "turns": [_turn(attempt) for attempt in done.attempts], "cpu_s": cpu,
    }  # fmt: skip


def barriers_off_meV(case: Case, done: Refinement, wanted_eV: Sequence[float]) -> list[float | None]:
    """Of the barriers that are known; the ends of a guess have no order: that which fits better."""
    orders = [wanted_eV] if case.reaction.product is not None else [wanted_eV, wanted_eV[::-1]]
    off = [[1e3 * (x - y) for x, y in zip(done.labelled_barriers_eV, o, strict=False)] for o in orders]
    return [None if np.isnan(x) else x for x in min(off, key=lambda row: np.nansum(np.abs(row)))]


def _turn(attempt: Any) -> str:
    """Outcome, labels so far, and where there is a label of the saddle: model − label, largest force."""
    text = f"{attempt.outcome} {attempt.labels}"
    if attempt.energy_difference_eV is None:
        return text
    off, force = 1e3 * attempt.energy_difference_eV, 1e3 * attempt.largest_labelled_force_eV_per_A
    return f"{text} {off:.0f} meV {force:.0f} meV/A"


def _frame(case: Case, saddle: Any) -> Atoms:
    atoms = case.reaction.reactant.copy()
    atoms.set_constraint()
    atoms.positions = saddle.positions_A
    return atoms


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default="emt,hcn", help="of emt, hcn, vinyl, baker, or as 03_h2co")
    parser.add_argument("--baker", type=Path, help="folder of ts_guess_25.extxyz.gz")
    parser.add_argument("--method", default="HF")
    parser.add_argument("--basis", default="3-21g")
    parser.add_argument("--committee", type=int, default=3)
    parser.add_argument("--frames", type=int, default=300, help="of the cheap level")
    parser.add_argument("--steps", type=int, default=600, help="of the pretraining of a member")
    parser.add_argument("--tune", type=int, default=0, help="steps of a member after each turn; 0: none")
    parser.add_argument("--replay", type=int, default=60, help="cheap frames among the target's")
    parser.add_argument("--surface", choices=("committee", "cheap", "nothing"), default="committee")
    parser.add_argument("--per-turn", type=int, default=2, help="labels of a turn")
    parser.add_argument("--seed", type=int, default=0)
    known = "energy of the direct saddle[,barrier,reverse barrier]: not searched then"
    parser.add_argument("--direct-eV", type=lambda text: [float(x) for x in text.split(",")], help=known)
    parser.add_argument("--direct-only", action="store_true", help="search on the target, learn nothing")
    parser.add_argument("--smoke", action="store_true", help="EMT alone, trained for a moment: does it run?")
    args = parser.parse_args(argv)
    if args.smoke:
        args.cases, args.frames, args.steps, args.tune, args.committee = "emt", 20, 10, 5, 2
    if args.baker is None and {"baker", *BAKER} & set(args.cases.split(",")):
        parser.error("Baker's systems need --baker DIR")
    torch.set_num_threads(1)
    emit({"bench": "transition_states", "what": "machine", **machine()})
    won: list[bool] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(args, Path(folder)):
            head = {"bench": "transition_states", "case": case.name, "seed": args.seed}
            wanted = args.direct_eV
            if wanted is None:
                record, saddle = direct(case, args.seed)
                emit({**head, **record})
                wanted = [] if saddle is None else [saddle.energy_eV, *saddle.barriers_eV]
            if args.direct_only:
                continue
            for record in active(case, args, wanted):
                emit({**head, **record})
            won.append(bool(record["success"]))
    emit({"bench": "transition_states", "what": "total", "cases": len(won), "successes": sum(won)})


if __name__ == "__main__":
    main()
