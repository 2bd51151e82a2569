"""The gate: each kind of wrong label has a named reason, and right ones pass."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms

from alchemy.errors import InputError
from alchemy.gate import Gate
from alchemy.labelers.base import LabelResult


def label(forces, energy=-1.0, **more):
    values = {"stress_eV_per_A3": None, "energy_kind": "total", "dipole_eA": None, **more}
    return LabelResult(energy, np.asarray(forces, dtype=float), **values)


def reasons(findings):
    return [reason for reason, _ in findings]


def noise(atoms, scale=1.0):
    forces = scale * np.random.default_rng(0).normal(size=(len(atoms), 3))
    return forces - forces.mean(axis=0)


def test_five_hundred_clean_emt_frames_raise_no_alarm():
    rng = np.random.default_rng(1)
    slab = fcc111("Cu", (1, 2, 3), vacuum=5.0, periodic=True)
    slab.set_constraint(FixAtoms([0, 1]))
    slab.calc = EMT()
    ideal, gate = slab.get_positions(), Gate(net_force_eV_per_A_per_atom=1e-6)
    e0 = {"Cu": EMT().get_potential_energy(Atoms("Cu"))}
    for _ in range(500):
        slab.set_positions(ideal + rng.normal(scale=0.1, size=ideal.shape), apply_constraint=False)
        result = label(slab.get_forces(apply_constraint=False), slab.get_potential_energy())
        assert gate.check_structure(slab) == []
        assert gate.check(slab, result, e0) == []


def test_forces_zeroed_by_a_constraint_are_caught():
    slab = fcc111("Cu", (1, 1, 3), vacuum=5.0, periodic=True)
    slab.rattle(0.1, seed=1)
    slab.set_constraint(FixAtoms([0]))
    slab.calc = EMT()
    assert reasons(Gate().check(slab, label(slab.get_forces()))) == ["constrained-forces"]
    assert Gate().check(slab, label(slab.get_forces(apply_constraint=False))) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"energy": np.nan}, "not-finite"),
        ({"forces": np.full((3, 3), np.inf)}, "not-finite"),
        ({"stress_eV_per_A3": np.full(6, np.nan)}, "not-finite"),
        ({"forces": np.zeros((2, 3))}, "wrong-shape"),
        ({"stress_eV_per_A3": np.zeros((3, 3))}, "wrong-shape"),
        ({"forces": np.zeros((3, 3))}, "all-zero-forces"),
        ({"forces": np.ones((3, 3))}, "net-force"),
        ({"forces": [[200, 0, 0], [-200, 0.1, 0], [0, -0.1, 0]]}, "force-too-large"),
        ({"energy": -2076.0}, "energy-implausible"),
        ({"energy": -14.0 * 23.06}, "energy-implausible"),  # kcal/mol
    ],
)
def test_a_corrupted_label_has_a_named_reason(change, reason):
    atoms, gate = molecule("H2O"), Gate(net_force_eV_per_A_per_atom=1e-3)
    e0 = {"H": 0.0, "O": 0.0}
    clean = {"forces": noise(atoms), "energy": -14.0}
    assert gate.check(atoms, label(**clean), e0) == []
    assert reasons(gate.check(atoms, label(**{**clean, **change}), e0)) == [reason]


def test_energies_are_not_judged_without_all_references():
    atoms = molecule("H2O")
    result = label(noise(atoms), energy=-2076.0)
    assert Gate().check(atoms, result, {"H": -13.6}) == []
    assert Gate().check(atoms, result, None) == []


def test_exact_zeros_by_symmetry_are_a_label():
    crystal = bulk("Cu", cubic=True)
    assert Gate().check(crystal, label(np.zeros((4, 3)))) == []
    assert Gate().check(Atoms("O"), label(np.zeros((1, 3)))) == []
    crystal.positions[0, 0] += 0.01
    assert reasons(Gate().check(crystal, label(np.zeros((4, 3))))) == ["all-zero-forces"]


def test_overlapping_atoms_are_found_also_across_the_cell_boundary():
    pair = Atoms("CH", [[0.1, 0, 0], [9.8, 0, 0]], cell=[10, 10, 10], pbc=True)  # 0.3 Å
    (finding,) = Gate().check_structure(pair)
    assert finding[0] == "overlapping-atoms" and "0.300 Å" in finding[1]
    pair.pbc = False
    assert Gate().check_structure(pair) == []
    # hot but real: H2 at its turning point at 5000 K (0.5 Å); 0.5 × 0.62 Å is the limit
    assert Gate().check_structure(Atoms("H2", [[0, 0, 0], [0, 0, 0.5]])) == []
    assert Gate().check_structure(Atoms("H2", [[0, 0, 0], [0, 0, 0.0]])) != []


@pytest.mark.parametrize(
    ("atoms", "reason"),
    [
        (Atoms(), "no-atoms"),
        (Atoms("H", [[np.nan, 0, 0]]), "not-finite"),
        (Atoms("X"), "unknown-element"),
        (Atoms("Cu", cell=[1, 1, 0], pbc=True), "bad-cell"),
        (Atoms("Cu", cell=[[1, 0, 0], [2, 0, 0], [0, 0, 1]], pbc=True), "bad-cell"),
    ],
)
def test_an_unusable_structure_has_a_named_reason(atoms, reason):
    assert reasons(Gate().check_structure(atoms)) == [reason]


def test_a_limit_must_be_positive():
    with pytest.raises(InputError, match="max_force_eV_per_A is -1"):
        Gate(max_force_eV_per_A=-1.0)


def test_a_solution_of_another_spin_than_asked_for_is_caught_where_the_code_tells_it():
    oxygen = Atoms("O2", [[0, 0, 0], [0, 0, 1.21]])
    oxygen.info["multiplicity"] = 3
    forces = [[0, 0, 1.0], [0, 0, -1.0]]
    assert reasons(Gate().check(oxygen, label(forces, total_moment_muB=0.0))) == ["wrong-spin"]
    for moment in (2.0, -1.9, None):  # either direction; smearing takes a tenth; unknown is not wrong
        assert Gate().check(oxygen, label(forces, total_moment_muB=moment)) == []
    oxygen.info["multiplicity"] = 2
    assert reasons(Gate().check_structure(oxygen)) == ["bad-multiplicity"]
    del oxygen.info["multiplicity"]
    assert Gate().check(oxygen, label(forces, total_moment_muB=0.0)) == [], "nobody asked for a spin"


def test_zeros_without_a_known_constraint_are_caught_unless_symmetry_explains_them():
    slab = fcc111("Cu", (1, 1, 3), vacuum=5.0, periodic=True)
    slab.rattle(0.05, seed=1)
    slab.calc = EMT()
    forces = slab.get_forces()
    zeroed = forces.copy()
    zeroed[0] = 0.0
    assert reasons(Gate().check(slab, label(zeroed))) == ["zeroed-forces"]
    carbon_dioxide = Atoms("OCO", [[-1.16, 0, 0], [0, 0, 0], [1.16, 0, 0]])
    assert Gate().check(carbon_dioxide, label([[1, 0, 0], [0, 0, 0], [-1, 0, 0]])) == []
    far = Atoms("CuCuCu", [[0, 0, 0], [2.5, 0, 0], [9, 0, 0]])  # beyond any bond: no force is right
    assert Gate().check(far, label([[1, 0, 0], [-1, 0, 0], [0, 0, 0]])) == []
