"""Pools that are labelled once, for replayed campaigns: problems, their walks and their fixed test parts.

    3bpa    27 atoms; walks at 300, 600 and 1200 K, GFN2-xTB labels; test parts of those temperatures
    pdag    clusters of Pd and Ag with C, H and O on them, GFN1-xTB
    urea    walks at 300 to 1000 K; HF/STO-3G and PBE/def2-SVP of PySCF, the second is the target
    3bpa-rare, pdag-rare, urea-rare  the same systems as exploration mostly meets them: 85 % of the frames
            at 300 K, 10 % at 600 K and 5 % at 1200 or 1000 K
    alloy-20, alloy-200  Cu/Au/Pd, bulk and slabs, each frame a composition, strain and short walk of its own
            at 300, 800 or 1300 K, EMT; they differ in the size of the cell alone

A pool is kept in a folder as extended XYZ, so that a replay costs no label.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import bulk, fcc111, molecule
from ase.calculators.calculator import CalculationFailed, Calculator
from ase.calculators.emt import EMT
from ase.cluster import Octahedron
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.optimize import FIRE

from alchemy.labelers.base import make_labeler
from alchemy.labelers.calculator import LabelerCalculator
from tace.data import Labelled

LABELERS = {
    "gfn2": ("tblite", {"method": "GFN2-xTB"}),
    "gfn1": ("tblite", {"method": "GFN1-xTB"}),
    "hf": ("pyscf", {"method": "HF", "basis": "sto-3g"}),
    "pbe": ("pyscf", {"method": "PBE", "basis": "def2-svp"}),
}


@dataclass(frozen=True)
class Problem:
    """Frames with labels of every level; `steps` is when in its walk a frame was met."""

    name: str
    levels: tuple[str, ...]  # cheap to dear
    pool: Mapping[str, Sequence[Labelled]]
    tests: Mapping[str, Sequence[Labelled]]  # at the target, by part
    hard: str  # the part that counts, chosen beforehand
    steps: np.ndarray
    cpu_s: Mapping[str, float]  # per label


def calculator(level: str, folder: Path) -> Calculator:
    """A level of theory as ASE calculator."""
    if level == "emt":
        return EMT()  # a label costs milliseconds, the files of a labeler would cost as much again
    labeler, options = LABELERS[level]
    return LabelerCalculator(make_labeler(labeler, options, base_dir=folder), folder)


def walk(
    start: Atoms, level: str, T_K: float, *, frames: int, every: int, seed: int, timestep_fs: float = 1.0
) -> list[Atoms]:
    """Langevin dynamics from a relaxed or given start; the frames carry `step` and `T`."""
    rng = np.random.default_rng(seed)
    atoms = start.copy()
    with tempfile.TemporaryDirectory() as scratch:
        atoms.calc = calculator(level, Path(scratch))
        masses = atoms.get_masses()[:, None]
        atoms.set_momenta(masses * rng.normal(size=(len(atoms), 3)) * np.sqrt(units.kB * T_K / masses))
        dynamics = Langevin(
            atoms, timestep_fs * units.fs, temperature_K=T_K, friction=0.02 / units.fs, rng=rng, fixcm=False
        )
        found = []
        for n in range(frames):
            try:
                dynamics.run(every)
            except CalculationFailed as failure:  # a cluster whose SCF fails ends its walk, not the pool
                print(f"{start.get_chemical_formula()} at {T_K} K: {failure}", file=sys.stderr)
                break
            frame = _bare(atoms)
            frame.info.update(atoms.info)
            frame.info.update(step=(n + 1) * every, T=T_K)
            found.append(frame)
    return found


def label(frames: Sequence[Atoms], level: str, *, skip: bool = True) -> tuple[list[Atoms], float]:
    """Copies with REF_energy and REF_forces of the level, and CPU s per label.

    Args:
        skip: leave out what does not converge; otherwise the failure is raised.
    """
    out, cpu = [], time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        calc = calculator(level, Path(scratch))
        for frame in frames:
            atoms = frame.copy()
            atoms.calc = calc
            try:
                atoms.arrays["REF_forces"] = atoms.get_forces()
            except CalculationFailed as failure:
                if not skip:
                    raise
                print(f"{frame.get_chemical_formula()}: {failure}", file=sys.stderr)
                continue
            atoms.info["REF_energy"] = atoms.get_potential_energy()
            atoms.calc = None
            out.append(atoms)
    return out, (time.process_time() - cpu) / max(1, len(frames))


def _3bpa(data: Path | None, scale: float) -> tuple[list[Atoms], dict[str, list[Atoms]]]:
    cold = _published(data, max(10, round(400 * scale)))
    count = max(2, round(20 * scale))
    hot = [
        frame
        for T in (600.0, 1200.0)
        for seed in range(5)
        for frame in walk(cold[7 * seed % len(cold)], "gfn2", T, frames=count, every=20, seed=seed + int(T))
    ]
    return cold + hot, _3bpa_tests(data, scale)


def _3bpa_rare(data: Path | None, scale: float) -> tuple[list[Atoms], dict[str, list[Atoms]]]:
    cold = _published(data, max(10, round(500 * scale)))
    more = [
        frame
        for T, frames in ((300, 70), (600, 20), (1200, 10))
        for seed in range(5)
        for frame in rare_walk(cold[7 * seed % len(cold)], "gfn2", T, frames=frames * scale, seed=seed + T)
    ]
    return cold + more, _3bpa_tests(data, scale)


def _published(data: Path | None, count: int) -> list[Atoms]:
    if data is None:
        raise SystemExit("3bpa needs --data: the directory of train_300K and ood_piece_* files")
    frames = [_bare(a) for a in read(data / "train_300K.extxyz.gz", f":{count}")]
    for n, atoms in enumerate(frames):
        atoms.info.update(step=n, T=300.0)
    return frames


def _3bpa_tests(data: Path | None, scale: float) -> dict[str, list[Atoms]]:
    assert data is not None
    limit = max(4, round(30 * min(1.0, 2 * scale)))
    return {
        f"{T}K": [_bare(a) for a in read(data / f"ood_piece_{T}K.extxyz.gz", f":{limit}")]
        for T in (300, 600, 1200)
    }


RARE_EVERY = {300: 20, 600: 50, 1000: 100, 1200: 100}
"""Steps between frames of the rare pools: the fewer frames, the farther apart."""


def rare_walk(
    start: Atoms, level: str, T_K: int, *, frames: float, seed: int, timestep_fs: float = 1.0
) -> list[Atoms]:
    """A walk of a rare pool; `frames` is rounded, at least one."""
    count = max(1, round(frames))
    return walk(start, level, T_K, frames=count, every=RARE_EVERY[T_K], seed=seed, timestep_fs=timestep_fs)


def _bare(atoms: Atoms) -> Atoms:
    return Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def _clusters() -> list[Atoms]:
    """Octahedra of six metal atoms in three compositions, each with one of four adsorbates on a face."""
    starts = []
    for silver in (0, 2, 4):
        metal = Octahedron("Pd", 2, latticeconstant=3.95)
        metal.symbols[:silver] = "Ag"
        for name in ("CO", "H2O", "C2H2", "H2"):
            guest = molecule(name)
            guest.positions[:, 2] += metal.positions[:, 2].max() - guest.positions[:, 2].min() + 1.9
            both = metal + guest
            starts.append(Atoms(both.numbers, positions=both.positions))
    return starts


def _pdag(data: Path | None, scale: float) -> tuple[list[Atoms], dict[str, list[Atoms]]]:
    frames, count = [], max(1, round(12 * scale))
    for n, start in enumerate(_clusters()):
        for T in (300, 600, 1000):
            frames += walk(start, "gfn1", T, frames=count, every=20, seed=100 * n + T, timestep_fs=0.5)
    return frames, _pdag_tests(max(1, count // 4))


def _pdag_rare(data: Path | None, scale: float) -> tuple[list[Atoms], dict[str, list[Atoms]]]:
    frames = []
    for n, start in enumerate(_clusters()):
        for T, some in ((300, 51), (600, 6), (1000, 3)):
            frames += rare_walk(start, "gfn1", T, frames=some * scale, seed=100 * n + T, timestep_fs=0.5)
    return frames, _pdag_tests(max(1, round(3 * scale)))


def _pdag_tests(count: int) -> dict[str, list[Atoms]]:
    tests: dict[str, list[Atoms]] = {"500K": [], "1000K": []}
    for n, start in enumerate(_clusters()):
        for T in (500, 1000):
            seed = 7000 + n + T
            tests[f"{T}K"] += walk(start, "gfn1", T, frames=count, every=80, seed=seed, timestep_fs=0.5)
    return tests


def _relaxed_urea() -> Atoms:
    urea = [  # planar, NH2 groups on both sides of CO; the relaxation does the rest
        ("C", 0.0, 0.0), ("O", 0.0, 1.22), ("N", 1.16, -0.7), ("N", -1.16, -0.7),
        ("H", 2.03, -0.2), ("H", 1.16, -1.71), ("H", -2.03, -0.2), ("H", -1.16, -1.71),
    ]  # fmt: skip
    start = Atoms([s for s, _, _ in urea], positions=[(x, y, 0.02 * n) for n, (_, x, y) in enumerate(urea)])
    with tempfile.TemporaryDirectory() as scratch:
        start.calc = calculator("gfn2", Path(scratch))
        FIRE(start, logfile=None).run(fmax=0.05, steps=200)
    return _bare(start)


def _urea(data: Path | None, scale: float) -> tuple[list[Atoms], dict[str, list[Atoms]]]:
    start, count = _relaxed_urea(), max(2, round(20 * scale))
    frames = [
        frame
        for T in (300, 600, 1000)
        for seed in range(4)
        for frame in walk(start, "gfn2", T, frames=count, every=20, seed=seed + T, timestep_fs=0.5)
    ]
    return frames, _urea_tests(start, count, count)


def _urea_rare(data: Path | None, scale: float) -> tuple[list[Atoms], dict[str, list[Atoms]]]:
    start = _relaxed_urea()
    frames = [
        frame
        for T, some in ((300, 51), (600, 6), (1000, 3))
        for seed in range(4)
        for frame in rare_walk(start, "gfn2", T, frames=some * scale, seed=seed + T, timestep_fs=0.5)
    ]
    return frames, _urea_tests(start, max(2, round(12 * scale)), max(2, round(24 * scale)))


def _urea_tests(start: Atoms, cold: int, hot: int) -> dict[str, list[Atoms]]:
    return {
        f"{T}K": walk(start, "gfn2", T, frames=count, every=60, seed=900 + T, timestep_fs=0.5)
        for T, count in ((300, cold), (1000, hot))
    }


LATTICE_A = {"Cu": 3.61, "Pd": 3.89, "Au": 4.08}


def _alloy(atoms: int, scale: float) -> tuple[list[Atoms], dict[str, list[Atoms]]]:
    """Half bulk, half slabs of 20 or 200 atoms, random mixtures with at least two atoms of each metal."""
    blocks, layer = {20: ((1, 1, 5), (2, 2, 5)), 200: ((5, 5, 2), (5, 8, 5))}[atoms]
    frames: list[Atoms] = []
    for n in range(max(12, round(260 * scale))):
        rng = np.random.default_rng([atoms, n])
        share = rng.dirichlet(np.ones(3))
        names = np.array([*list(LATTICE_A) * 2, *rng.choice(list(LATTICE_A), size=atoms - 6, p=share)])
        lattice_A = float(np.mean([LATTICE_A[name] for name in names]))
        if n % 2:
            start = fcc111("Cu", layer, a=lattice_A, vacuum=6.0, periodic=True)
        else:
            start = bulk("Cu", "fcc", a=lattice_A, cubic=True) * blocks
        start.symbols[:] = rng.permutation(names)
        strain = rng.normal(scale=0.015, size=(3, 3))
        start.set_cell(start.cell @ (np.eye(3) + 0.5 * (strain + strain.T)), scale_atoms=True)
        T_K = (300, 800, 1300)[n % 3]
        frames += walk(_bare(start), "emt", T_K, frames=1, every=20, seed=n, timestep_fs=5.0)
    for n, frame in enumerate(frames):
        frame.info["step"] = n
    count = max(2, round(20 * scale))  # one after another they are independent, and of every kind
    return frames[count:], {"mixed": frames[:count]}


PROBLEMS = {
    "3bpa": (_3bpa, ("gfn2",), "1200K"),
    "3bpa-levels": (_3bpa, ("gfn1", "gfn2"), "1200K"),
    "pdag": (_pdag, ("gfn1",), "1000K"),
    "urea": (_urea, ("hf", "pbe"), "1000K"),
    "3bpa-rare": (_3bpa_rare, ("gfn2",), "1200K"),
    "pdag-rare": (_pdag_rare, ("gfn1",), "1000K"),
    "urea-rare": (_urea_rare, ("pbe",), "1000K"),
    "alloy-20": (lambda data, scale: _alloy(20, scale), ("emt",), "mixed"),
    "alloy-200": (lambda data, scale: _alloy(200, scale), ("emt",), "mixed"),
}


def problem(name: str, *, folder: Path, data: Path | None, scale: float) -> Problem:
    """Read the labelled pool of `folder`, or make it there; `scale` 1 is the size of the study."""
    make, levels, hard = PROBLEMS[name]
    home = folder / f"{name}-{scale:g}"
    if not (home / "cost.txt").exists():
        home.mkdir(parents=True, exist_ok=True)
        frames, tests = make(data, scale)
        costs = []
        for level in levels:
            done, cpu_s = label(frames, level, skip=len(levels) == 1)  # pairs must stay side by side
            write(home / f"pool-{level}.extxyz", done)
            costs.append(f"{level} {cpu_s:.6g}")
        for part, some in tests.items():
            write(home / f"test-{part}.extxyz", label(some, levels[-1])[0])
        (home / "cost.txt").write_text("\n".join(costs), encoding="utf-8")
    pool = {level: read(home / f"pool-{level}.extxyz", ":") for level in levels}
    cost = dict(line.split() for line in (home / "cost.txt").read_text(encoding="utf-8").splitlines())
    return Problem(
        name,
        levels,
        {level: [_labelled(a, level) for a in frames] for level, frames in pool.items()},
        {p.stem[5:]: [_labelled(a, levels[-1]) for a in read(p, ":")] for p in sorted(home.glob("test-*"))},
        hard,
        np.array([a.info["step"] for a in pool[levels[-1]]]),
        {level: float(seconds) for level, seconds in cost.items()},
    )


def _labelled(atoms: Atoms, level: str) -> Labelled:
    return Labelled(
        atoms=_bare(atoms),
        fidelity=level,
        energy_eV=float(atoms.info["REF_energy"]),
        forces_eV_per_A=np.asarray(atoms.arrays["REF_forces"]),
    )
