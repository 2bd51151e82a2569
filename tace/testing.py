"""The laws that every interatomic potential must obey, as checks that anyone can call.

    check_potential(from_model(model), structures, cutoff_A=5.0)
    check_potential(from_calculator(calculator), structures, cutoff_A=5.0)

A potential here is a function from structures to answers. Each check raises AssertionError that
names the law, the structure and the deviation. Units: eV, eV/Å, eV/Å³ (ASE sign).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms

from .batch import collate, make_graph
from .derivatives import evaluate
from .model import Tace


class Answer(NamedTuple):
    """What a potential says about one structure; stress is None where it has no meaning."""

    energy: float
    forces: np.ndarray  # [A,3], in the order of the structure
    stress: np.ndarray | None  # [3,3]


Potential = Callable[[Sequence[Atoms]], Sequence[Answer]]


@dataclass(frozen=True)
class Tolerance:
    """Allowed deviation is `absolute` (eV, eV/Å, eV/Å³) plus `relative` times the largest value."""

    absolute: float
    relative: float
    step: float | None  # of finite differences, Å or strain; None where round-off would drown them
    slope: float = 1e-6  # of finite differences, eV/Å or eV


# float64: sums of 1e2 to 1e5 terms of order one, each rounded at 1e-16
FLOAT64 = Tolerance(absolute=1e-11, relative=1e-11, step=1e-4)
# float32: rounding 6e-8, grown by some ten sums and powers in a row; no finite differences of it
FLOAT32 = Tolerance(absolute=2e-6, relative=2e-5, step=None)


def from_model(model: Tace, *, fidelity: int = 0) -> Potential:
    """One batch per call."""

    def potential(structures: Sequence[Atoms]) -> list[Answer]:
        elements, cutoff = model.config.elements, model.config.cutoff_A
        graphs = [
            make_graph(a, elements, cutoff=cutoff, fidelity=fidelity, inputs=model.config.inputs)
            for a in structures
        ]
        result = evaluate(model, collate(graphs, len(elements)), stress=True)
        assert result.forces is not None
        assert result.stresses is not None
        forces = np.split(result.forces.cpu().numpy(), np.cumsum([len(a) for a in structures])[:-1])
        return [
            Answer(float(e), f, s if a.pbc.all() else None)
            for a, e, f, s in zip(
                structures, result.energies, forces, result.stresses.cpu().numpy(), strict=True
            )
        ]

    return potential


def from_calculator(calculator: Any) -> Potential:
    """One structure after another through an ASE calculator."""

    def potential(structures: Sequence[Atoms]) -> list[Answer]:
        answers = []
        for atoms in structures:
            copy = atoms.copy()
            copy.calc = calculator
            stress = copy.get_stress(voigt=False) if copy.pbc.all() else None
            answers.append(Answer(copy.get_potential_energy(), copy.get_forces(), stress))
        return answers

    return potential


def check_potential(
    potential: Potential,
    structures: Sequence[Atoms],
    *,
    cutoff_A: float,
    tolerance: Tolerance = FLOAT64,
    seed: int = 0,
    long_range: bool = False,
) -> None:
    """All checks on all structures.

    Args:
        long_range: groups of atoms feel each other at any distance; that they do not is not checked.
        cutoff_A: distance beyond which two groups of atoms do not feel each other; messages do not
            cross a gap of one cutoff, however many layers there are.
    """
    rng = np.random.default_rng(seed)
    for atoms in structures:
        check_inputs_are_left_alone(potential, atoms)
        check_rotation(potential, atoms, rng, tolerance)
        check_translation(potential, atoms, rng, tolerance)
        check_atom_order(potential, atoms, rng, tolerance)
        check_cell_choice(potential, atoms, tolerance)
        check_supercell(potential, atoms, tolerance)
        check_slopes(potential, atoms, rng, tolerance)
    check_batch(potential, structures, tolerance)
    if not long_range:
        check_separation(potential, structures, cutoff_A=cutoff_A, tolerance=tolerance)


def check_inputs_are_left_alone(potential: Potential, atoms: Atoms) -> None:
    """A potential does not move what it looks at."""
    before = atoms.copy()
    potential([atoms])
    same = (before.positions == atoms.positions).all() and (before.cell[:] == atoms.cell[:]).all()
    if not (same and (before.numbers == atoms.numbers).all() and (before.pbc == atoms.pbc).all()):
        raise AssertionError(f"inputs are left alone: {_name(atoms)} was changed")


def check_rotation(
    potential: Potential, atoms: Atoms, rng: np.random.Generator, tolerance: Tolerance = FLOAT64
) -> None:
    """Turning or mirroring a structure keeps its energy and turns its forces and stress."""
    here = potential([atoms])[0]
    q, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    for law, matrix in (("rotation", q * np.linalg.det(q)), ("mirror", -q * np.linalg.det(q))):
        turned = _turned(atoms, matrix)
        there = potential([turned])[0]
        stress = None if here.stress is None else matrix @ here.stress @ matrix.T
        expected = Answer(here.energy, here.forces @ matrix.T, stress)
        _same(law, atoms, there, expected, tolerance)


def check_translation(
    potential: Potential, atoms: Atoms, rng: np.random.Generator, tolerance: Tolerance = FLOAT64
) -> None:
    """Neither a shift of all atoms, nor of one atom by a lattice vector, changes anything."""
    here = potential([atoms])[0]
    shifted = _moved(atoms, atoms.positions + rng.uniform(-5, 5, 3), atoms.cell[:])
    _same("translation", atoms, potential([shifted])[0], here, tolerance)
    total = np.abs(here.forces.sum(0)).max()
    if total > _allowed(here.forces, tolerance) * len(atoms):
        raise AssertionError(f"translation: forces on {_name(atoms)} add up to {total:.2e} eV/Å")
    if atoms.pbc.any():
        lattice = rng.integers(-3, 4, (len(atoms), 3)) * atoms.pbc
        wrapped = _moved(atoms, atoms.positions + lattice @ atoms.cell[:], atoms.cell[:])
        _same("wrapping", atoms, potential([wrapped])[0], here, tolerance)


def check_atom_order(
    potential: Potential, atoms: Atoms, rng: np.random.Generator, tolerance: Tolerance = FLOAT64
) -> None:
    """The order of atoms has no meaning."""
    here, order = potential([atoms])[0], rng.permutation(len(atoms))
    expected = Answer(here.energy, here.forces[order], here.stress)
    _same("order of atoms", atoms, potential([atoms[order]])[0], expected, tolerance)


def check_cell_choice(potential: Potential, atoms: Atoms, tolerance: Tolerance = FLOAT64) -> None:
    """Any cell of the same lattice, left-handed ones included, describes the same crystal."""
    if not atoms.pbc.all():
        return
    here = potential([atoms])[0]
    for choice in (
        [[1, 1, 0], [0, 1, 0], [0, 0, 1]],
        [[1, 0, 0], [2, 1, 0], [-1, 1, 1]],
        [[0, 1, 0], [1, 0, 0], [0, 0, 1]],  # determinant −1
        [[-1, 0, 0], [0, -1, 0], [0, 0, -1]],
    ):
        other = _moved(atoms, atoms.positions, np.array(choice) @ atoms.cell[:])
        _same(f"cell choice {choice}", atoms, potential([other])[0], here, tolerance)


def check_supercell(potential: Potential, atoms: Atoms, tolerance: Tolerance = FLOAT64) -> None:
    """Two cells hold twice the energy, the same forces and the same stress."""
    here = potential([atoms])[0]
    for axis in np.flatnonzero(atoms.pbc):
        repeats = np.where(np.arange(3) == axis, 2, 1)
        double = atoms.repeat(tuple(int(n) for n in repeats))
        expected = Answer(2 * here.energy, np.tile(here.forces, (2, 1)), here.stress)
        _same(f"supercell along axis {axis}", atoms, potential([double])[0], expected, tolerance)


def check_slopes(
    potential: Potential, atoms: Atoms, rng: np.random.Generator, tolerance: Tolerance = FLOAT64
) -> None:
    """Forces and stress are slopes of the energy: central differences along random directions."""
    if tolerance.step is None:
        return
    h, here = tolerance.step, potential([atoms])[0]
    for _ in range(2):
        d = rng.standard_normal((len(atoms), 3))

        def moved(s: float, d: np.ndarray = d) -> float:
            return potential([_moved(atoms, atoms.positions + s * d, atoms.cell[:])])[0].energy

        slope = difference_slope(moved, h)
        _near("forces are slopes", atoms, -(here.forces * d).sum(), slope, tolerance)
    if here.stress is None:
        return
    if np.abs(here.stress - here.stress.T).max() > _allowed(here.stress, tolerance):
        raise AssertionError(f"stress is symmetric: not that of {_name(atoms)}")
    for _ in range(2):
        d = rng.standard_normal((3, 3)) / 3
        d = d + d.T

        def strained(s: float, d: np.ndarray = d) -> float:
            m = np.eye(3) + s * d  # a symmetric strain
            return potential([_moved(atoms, atoms.positions @ m, atoms.cell[:] @ m)])[0].energy

        work = atoms.get_volume() * (here.stress * d).sum()
        _near("stress is a slope", atoms, work, difference_slope(strained, h), tolerance)


def difference_slope(function: Callable[[float], Any], h: float) -> Any:
    """Slope at zero by five points: the error is h⁴/30 of the fifth derivative, and round-off over h."""
    near = function(h) - function(-h)
    far = function(2 * h) - function(-2 * h)
    return (8.0 * near - far) / (12.0 * h)


def check_batch(
    potential: Potential, structures: Sequence[Atoms], tolerance: Tolerance = FLOAT64
) -> None:
    """What is said about a structure depends neither on its company nor on its place in it."""
    alone = [potential([atoms])[0] for atoms in structures]
    together = potential(structures)
    backwards = potential(structures[::-1])[::-1]
    for atoms, a, b, c in zip(structures, alone, together, backwards, strict=True):
        _same("batch", atoms, b, a, tolerance)
        _same("order of structures", atoms, c, a, tolerance)


def check_separation(
    potential: Potential,
    structures: Sequence[Atoms],
    *,
    cutoff_A: float,
    tolerance: Tolerance = FLOAT64,
) -> None:
    """Fragments further apart than the cutoff do not feel each other; nor do free atoms."""
    free = [atoms for atoms in structures if not atoms.pbc.any()]
    for a, b in itertools.combinations_with_replacement(free, 2):
        gap = np.array([np.ptp(a.positions[:, 0]) + 1.01 * cutoff_A, 0, 0])
        shift = gap + a.positions.min(0) - b.positions.min(0)
        pair = a + _moved(b, b.positions + shift, b.cell[:])
        ea, eb = potential([a])[0], potential([b])[0]
        expected = Answer(ea.energy + eb.energy, np.concatenate([ea.forces, eb.forces]), None)
        _same("separated fragments add up", pair, potential([pair])[0], expected, tolerance)
    for atoms in free:
        numbers = atoms.numbers
        where = np.arange(len(atoms))[:, None] * np.array([1.01 * cutoff_A, 0.0, 0.0])
        atomized = potential([Atoms(numbers, positions=where)])[0]
        singles = potential([Atoms([z], positions=[[0, 0, 0]]) for z in numbers])
        expected = Answer(sum(s.energy for s in singles), np.zeros((len(atoms), 3)), None)
        _same("a dissociated molecule is free atoms", atoms, atomized, expected, tolerance)


def _turned(atoms: Atoms, matrix: np.ndarray) -> Atoms:
    """Everything that has a direction is turned; an axial vector does not follow a mirror."""
    turned = _moved(atoms, atoms.positions @ matrix.T, atoms.cell[:] @ matrix.T)
    if "electric_field" in atoms.info:
        turned.info["electric_field"] = matrix @ np.asarray(atoms.info["electric_field"])
    if "magnetic_moments" in atoms.arrays:
        axial = atoms.arrays["magnetic_moments"] @ matrix.T * np.linalg.det(matrix)
        turned.arrays["magnetic_moments"] = axial
    return turned


def _moved(atoms: Atoms, positions: np.ndarray, cell: np.ndarray) -> Atoms:
    moved = atoms.copy()  # conditions that are not vectors stay as they are
    moved.set_cell(cell)
    moved.positions = positions
    return moved


def _name(atoms: Atoms) -> str:
    return f"{atoms.get_chemical_formula()} (pbc {''.join('FT'[int(p)] for p in atoms.pbc)})"


def _allowed(values: Any, tolerance: Tolerance) -> float:
    return tolerance.absolute + tolerance.relative * float(np.abs(values).max(initial=0.0))


def _same(law: str, atoms: Atoms, got: Answer, want: Answer, tolerance: Tolerance) -> None:
    for what, value, expected in zip(Answer._fields, got, want, strict=True):
        if value is None or expected is None:
            continue
        deviation = np.abs(np.asarray(value) - expected).max(initial=0.0)
        if not deviation <= _allowed(expected, tolerance):  # NaN fails
            raise AssertionError(f"{law}: {what} of {_name(atoms)} deviates by {deviation:.2e}")


def _near(law: str, atoms: Atoms, slope: float, difference: float, tolerance: Tolerance) -> None:
    if not abs(slope - difference) <= tolerance.slope * (1.0 + abs(difference)):
        raise AssertionError(
            f"{law}: {slope:.8f} against {difference:.8f} by differences for {_name(atoms)}"
        )
