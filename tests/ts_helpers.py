"""Surfaces with known saddles, and the searches that tests of transition states share."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from alchemy_policies.calculators import CalculatorSessions
from alchemy_policies.calibration import Calibration
from alchemy_policies.ts import Label, Reaction, Surface, TransitionStates, Watch
from ase import Atoms
from ase.build import add_adsorbate, fcc100, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.constraints import FixAtoms

# K. Müller & L. D. Brown, Theor. Chim. Acta 53, 75 (1979); energies in hundredths of their unit, as eV
_A = np.array([-2.0, -1.0, -1.7, 0.15])
_a = np.array([-1.0, -1.0, -6.5, 0.7])
_b = np.array([0.0, 0.0, 11.0, 0.6])
_c = np.array([-10.0, -10.0, -6.5, 0.7])
_x0, _y0 = np.array([1.0, 0.0, -0.5, -1.0]), np.array([0.0, 0.5, 1.5, 1.0])
LEFT, MIDDLE, RIGHT = (-0.5582, 1.4417), (-0.0500, 0.4667), (0.6235, 0.0280)  # minima
HIGH, LOW = (-0.8220, 0.6243), (0.2125, 0.2930)  # saddles: left-middle, middle-right
HIGH_BARRIER = -0.40665 + 1.46700  # eV, from LEFT


def muller_brown(x, y):
    """Energy and its slopes."""
    dx, dy = x - _x0, y - _y0
    terms = _A * np.exp(_a * dx**2 + _b * dx * dy + _c * dy**2)
    return terms.sum(), (terms * (2 * _a * dx + _b * dy)).sum(), (terms * (_b * dx + 2 * _c * dy)).sum()


class MullerBrown(Calculator):
    """Of the second atom's x and y, with a spring along z; the first atom is an anchor."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]

    def __init__(self, *, scale: float = 1.0, spring: float = 5.0, slope: float = 0.0) -> None:
        super().__init__()
        self.scale, self.spring, self.slope = scale, spring, slope

    def calculate(self, atoms=None, properties=("energy",), system_changes=tuple(all_changes)) -> None:
        super().calculate(atoms, properties, system_changes)
        x, y, z = self.atoms.positions[1]
        energy, ex, ey = muller_brown(x, y)
        forces = np.zeros((2, 3))
        forces[1] = [-self.scale * ex - self.slope, -self.scale * ey, -self.spring * z]
        energy = self.scale * energy + 0.5 * self.spring * z**2 + self.slope * x
        self.results = {"energy": float(energy), "forces": forces}


class Triangle(Calculator):
    """An atom between two others: a double well of r01 − r02, springs on r01 + r02 and on r12. Its saddle is
    at r01 = r02, 1 eV above two wells, ±0.6 Å away; `stiff` and `shift` make another level of theory."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]

    def __init__(self, *, stiff: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.stiff, self.shift = stiff, shift

    def calculate(self, atoms=None, properties=("energy",), system_changes=tuple(all_changes)) -> None:
        super().calculate(atoms, properties, system_changes)
        x = self.atoms.positions
        pairs = ((0, 1), (0, 2), (1, 2))
        far = {p: x[p[0]] - x[p[1]] for p in pairs}
        r = {p: np.linalg.norm(v) for p, v in far.items()}
        u = r[0, 1] - r[0, 2] - self.shift
        v = r[0, 1] + r[0, 2] - 2.6 - self.shift**2
        w = r[1, 2] - 2.2 + 0.5 * self.shift
        well = 0.6**2
        energy = self.stiff * (u**2 - well) ** 2 / well**2 + 10.0 * self.stiff * v**2 + 8.0 * w**2
        slope_u = 4.0 * self.stiff * u * (u**2 - well) / well**2
        slope_v, slope_w = 20.0 * self.stiff * v, 16.0 * w
        slopes = {(0, 1): slope_v + slope_u, (0, 2): slope_v - slope_u, (1, 2): slope_w}
        pull = np.zeros((3, 3))
        for (i, j), slope in slopes.items():
            pull[i] -= slope * far[i, j] / r[i, j]
            pull[j] += slope * far[i, j] / r[i, j]
        self.results = {"energy": float(energy), "forces": pull}


class Pushing(Calculator):
    """A constant force on the second atom: whatever follows it runs away."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]

    def calculate(self, atoms=None, properties=("energy",), system_changes=tuple(all_changes)) -> None:
        super().calculate(atoms, properties, system_changes)
        forces = np.zeros((len(self.atoms), 3))
        forces[1] = [0.0, 0.0, 2.0]
        self.results = {"energy": float(-2.0 * self.atoms.positions[1, 2]), "forces": forces}


def at(point) -> Atoms:
    """An atom at a point of the Müller–Brown plane, and its fixed anchor out of reach."""
    atoms = Atoms("HeH", [[-6.0, 2.0, 0.0], [*point, 0.0]])
    atoms.set_constraint(FixAtoms([0]))
    return atoms


def surface_of(atoms: Atoms, *calculators: Calculator) -> Surface:
    return Surface(atoms, CalculatorSessions(list(calculators)), Calibration.uncalibrated())


def watch(surface: Surface, **limits) -> Watch:
    return Watch(surface, TransitionStates(**limits).limits)


def explore(starts, *calculators, seed=0, **options):
    explorer = TransitionStates(**options)
    factory = CalculatorSessions(list(calculators))
    return explorer(starts, factory, Calibration.uncalibrated(), np.random.default_rng(seed))


def outcomes(found) -> list[str]:
    return [report.outcome for report in found.walkers]


def adatom(shift: float = 0.0, *, wrapped: bool = False) -> Atoms:
    """Al on a small Al(100) slab with a fixed lowest layer, `shift` hollow sites along x."""
    slab = fcc100("Al", size=(2, 2, 2))
    add_adsorbate(slab, "Al", 1.7, "hollow")
    slab.center(axis=2, vacuum=4.0)
    slab.positions[-1, 0] += shift * slab.cell[0, 0] / 2
    if wrapped:
        slab.wrap()
    slab.set_constraint(FixAtoms(mask=[atom.tag > 1 for atom in slab]))
    return slab


def turned_methyl(degrees: float) -> Atoms:
    """Ethane, staggered at 0, with one methyl turned."""
    atoms = molecule("C2H6")
    one, two = (int(i) for i in np.flatnonzero(atoms.numbers == 6))
    group = [i for i in range(8) if atoms.numbers[i] == 1 and atoms.get_distance(i, two) < 1.3]
    part = atoms[group]
    part.rotate(degrees, atoms.positions[two] - atoms.positions[one], center=atoms.positions[two])
    atoms.positions[group] = part.positions
    return atoms


HCN = Atoms("HCN", [[-1.07, 0, 0], [0, 0, 0], [1.15, 0, 0]])
HNC = Atoms("HCN", [[2.17, 0, 0], [0, 0, 0], [1.17, 0, 0]])
HOP = Reaction("hop", at(LEFT), at(MIDDLE))


def labelled(frames, calculator) -> list[Label]:
    """What a calculator says of each, forces on fixed atoms included."""
    found = []
    for atoms in frames:
        work = atoms.copy()
        work.calc = calculator
        found.append(Label(work.get_potential_energy(), work.get_forces(apply_constraint=False)))
    return found
