"""Checks of labels: silent on clean data, and each planted mistake is found and named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms

from tace.checks import TOP, check_labels, summary
from tace.consistency import energy_force, energy_stress, guesses
from tace.data import Labelled
from tace.units import conversion


def labelled(atoms: Atoms, name: str, *, stress: bool = False) -> Labelled:
    """EMT labels: smooth energies with exact forces and stresses."""
    bare = atoms.copy()
    atoms = atoms.copy()
    atoms.calc = EMT()
    return Labelled(
        bare,
        energy_eV=atoms.get_potential_energy(),
        forces_eV_per_A=atoms.get_forces(apply_constraint=False),
        stress_eV_per_A3=atoms.get_stress() if stress else None,
        name=name,
    )


def walk(atoms: Atoms, steps: int, size: float, seed: int, name: str = "walk") -> list[Labelled]:
    """A random walk of small steps: successive frames are near, distant ones are not."""
    rng = np.random.default_rng(seed)
    atoms = atoms.copy()
    atoms.rattle(0.1, rng=rng)
    frames = []
    for n in range(steps):
        atoms.positions += rng.normal(scale=size, size=atoms.positions.shape)
        frames.append(labelled(atoms, f"{name}, frame {n}"))
    return frames


def strained(steps: int = 24, *, shear: float = 0.003) -> list[Labelled]:
    """Copper under random strains of a third of a percent, or mostly sheared."""
    rng = np.random.default_rng(3)
    frames = []
    for n in range(steps):
        atoms = bulk("Cu", cubic=True)
        strain = rng.normal(size=(3, 3)) * np.where(np.eye(3), 0.003 if shear <= 0.003 else 0.0, shear)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.5 * (strain + strain.T)), scale_atoms=True)
        atoms.rattle(0.005, rng=rng)
        frames.append(labelled(atoms, f"strained, frame {n}", stress=True))
    return frames


@pytest.fixture(scope="module")
def crystal() -> list[Labelled]:
    return walk(bulk("Cu", cubic=True).repeat((2, 1, 1)), 40, 0.03, 1)


@pytest.fixture(scope="module")
def gas() -> list[Labelled]:
    """A molecule that also turns as it moves: near frames are near after an alignment only."""
    frames = walk(molecule("CH3CH2OH"), 40, 0.02, 2)
    rng = np.random.default_rng(5)
    turned = []
    for frame in frames:
        q, r = np.linalg.qr(rng.normal(size=(3, 3)))
        q *= np.sign(np.diag(r))
        q *= np.linalg.det(q)
        atoms = frame.atoms.copy()
        atoms.positions = atoms.positions @ q + rng.normal(scale=5, size=3)
        turned.append(replace(frame, atoms=atoms, forces_eV_per_A=frame.forces_eV_per_A @ q))
    return turned


@pytest.fixture(scope="module")
def cells() -> list[Labelled]:
    return strained()


def kinds(frames) -> set[str]:
    return {f.kind for f in check_labels(frames)}


def found(frames, kind: str):
    hits = [f for f in check_labels(frames) if f.kind == kind]
    assert len(hits) == 1, summary(check_labels(frames))
    return hits[0]


def test_clean_data_give_no_finding(crystal, gas, cells):
    assert check_labels([*crystal, *gas]) == []
    assert check_labels(cells) == []
    assert summary([]) == "labels: nothing wrong was found"


def test_slopes_are_one_where_forces_and_stresses_belong_to_the_energy(crystal, gas, cells):
    """To the error of the trapezoid rule, below 5 % for steps of 0.03 Å and strains of half a percent."""
    for slope in (energy_force(crystal), energy_force(gas), energy_stress(cells)):
        assert slope.known
        assert slope.slope == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("unit", ["Ha/Bohr", "Ry/Bohr", "eV/Bohr", "kcal/mol/A", "kJ/mol/nm", "meV/A"])
@pytest.mark.parametrize("sign", [1, -1])
def test_forces_in_another_unit_are_found_and_the_unit_is_named(crystal, gas, unit, sign):
    for frames in (crystal, gas):
        factor = sign / conversion(unit, "eV/A")
        wrong = [replace(f, forces_eV_per_A=f.forces_eV_per_A * factor) for f in frames]
        finding = found(wrong, "energy_force")
        assert finding.severity == "error"
        assert f"forces in {unit}" in finding.message
        assert ("opposite sign" in finding.message) == (sign < 0)


@pytest.mark.parametrize("unit", ["Ha", "Ry", "kcal/mol", "kJ/mol", "meV"])
def test_energies_in_another_unit_are_found_and_the_unit_is_named(crystal, unit):
    wrong = [replace(f, energy_eV=f.energy_eV / conversion(unit, "eV")) for f in crystal]
    assert f"energies in {unit}" in found(wrong, "energy_force").message


def test_the_opposite_sign_and_energies_per_atom_are_named(crystal):
    wrong = [replace(f, forces_eV_per_A=-f.forces_eV_per_A) for f in crystal]
    assert "most likely the opposite sign of the forces" in found(wrong, "energy_force").message
    wrong = [replace(f, energy_eV=f.energy_eV / len(f.atoms)) for f in crystal]
    assert "energies per atom" in found(wrong, "energy_force").message


def test_forces_of_other_frames_do_not_belong_to_the_energies(crystal):
    wrong = [replace(f, forces_eV_per_A=crystal[n // 2].forces_eV_per_A) for n, f in enumerate(crystal)]
    wrong = [replace(f, forces_eV_per_A=np.roll(f.forces_eV_per_A, 3, axis=0)) for f in wrong]
    finding = found(wrong, "energy_force")
    assert finding.severity == "warning"
    assert "do not belong together" in finding.message


def test_too_few_near_frames_are_said_to_be_too_few():
    rng = np.random.default_rng(0)
    frames = []
    for n in range(40):  # melts without anything in common
        atoms = bulk("Cu", cubic=True).repeat(2)
        atoms.rattle(0.6, rng=rng)
        frames.append(labelled(atoms, f"melt, frame {n}"))
    finding = found(frames, "energy_force")
    assert finding.severity == "note"
    assert "not tested" in finding.message


@pytest.mark.parametrize("unit", ["GPa", "kbar", "bar"])
@pytest.mark.parametrize("sign", [1, -1])
def test_stresses_in_another_unit_or_sign_are_found(cells, unit, sign):
    factor = sign / conversion(unit, "eV/A^3")
    wrong = [replace(f, stress_eV_per_A3=f.stress_eV_per_A3 * factor) for f in cells]
    finding = found(wrong, "energy_stress")
    assert f"stress in {unit}" in finding.message
    assert ("opposite sign" in finding.message) == (sign < 0)


def test_a_virial_in_place_of_a_stress_is_found(cells):
    wrong = [replace(f, stress_eV_per_A3=-f.stress_eV_per_A3 * f.atoms.cell.volume) for f in cells]
    assert "a virial in eV in place of the stress with the opposite" in found(wrong, "energy_stress").message
    wrong = [replace(f, stress_eV_per_A3=-f.stress_eV_per_A3) for f in cells]
    assert "most likely the opposite sign of the stress" in found(wrong, "energy_stress").message
    wrong = [replace(f, stress_eV_per_A3=f.stress_eV_per_A3 * 10) for f in cells]
    assert "a stress in kbar that was read as GPa" in found(wrong, "energy_stress").message
    assert guesses(1e6, what="stress", n_atoms=4) == [], "nothing explains such a slope"


def test_shear_stresses_in_the_order_of_vasp_are_found():
    """xx yy zz xy yz zx taken for xx yy zz yz xz xy."""
    cells = strained(shear=0.02)
    assert check_labels(cells) == []
    wrong = [replace(f, stress_eV_per_A3=f.stress_eV_per_A3[[0, 1, 2, 5, 3, 4]]) for f in cells]
    finding = found(wrong, "energy_stress")
    assert finding.severity == "error"
    assert "in VASP's order" in finding.message


def test_what_cannot_be_trained_on_is_an_error_of_its_frame(crystal):
    bad = list(crystal[:6])
    energy = replace(bad[0], energy_eV=np.nan)
    forces = replace(bad[1], forces_eV_per_A=bad[1].forces_eV_per_A[1:])
    twice = bad[2].atoms.copy()
    twice.positions[1] = twice.positions[0] + 0.05
    flat = bad[3].atoms.copy()
    flat.cell[2] = 0
    label = replace(bad[4], labels={"dipole": np.array([np.inf, 0, 0]), "charges": np.full(8, np.nan)})
    hole = replace(bad[5], labels={"charges": np.array([np.nan, *np.zeros(7)])})  # allowed: of some atoms
    frames = [
        energy, forces, replace(bad[2], atoms=twice), replace(bad[3], atoms=flat), label, hole,
    ]  # fmt: skip
    errors = {f.kind: f.frames for f in check_labels(frames) if f.severity == "error"}
    assert errors == {
        "not_finite": (bad[0].name, bad[4].name),
        "shape": (bad[1].name,),
        "overlap": (bad[2].name,),
        "cell": (bad[3].name,),
    }


def test_a_stress_without_a_periodic_volume_is_an_error():
    frame = replace(labelled(molecule("H2O"), "water"), stress_eV_per_A3=np.zeros(6))
    assert found([frame], "cell").severity == "error"


def test_atoms_that_are_too_close_are_named_with_their_distance(crystal):
    atoms = crystal[0].atoms.copy()
    atoms.positions[0] = atoms.positions[1] + [0.4, 0, 0]  # 0.3 of 2 × 1.32 Å
    finding = found([replace(crystal[0], atoms=atoms)], "close")
    assert finding.severity == "warning"
    assert finding.frames == (f"{crystal[0].name}: 0.40 Å",)


def test_missing_labels_are_counted_per_fidelity(crystal):
    frames = [replace(f, fidelity="low" if n < 10 else "high") for n, f in enumerate(crystal)]
    frames[:3] = [replace(f, forces_eV_per_A=None) for f in frames[:3]]
    frames[20] = replace(frames[20], labels={"dipole": np.zeros(3)})
    messages = [f.message for f in check_labels(frames) if f.kind == "missing"]
    assert messages == [
        "low: missing labels: dipole in 10 of 10, forces in 3 of 10",
        "high: missing labels: dipole in 29 of 30",
    ]


def test_a_mistake_is_blamed_on_its_fidelity(crystal):
    wrong = [replace(f, fidelity="pbe", forces_eV_per_A=-f.forces_eV_per_A) for f in crystal]
    assert found([*crystal, *wrong], "energy_force").message.startswith("pbe: ")


def test_sizes_that_no_physics_has_are_warned_of(crystal):
    zeros = [replace(f, forces_eV_per_A=np.zeros_like(f.forces_eV_per_A)) for f in crystal]
    assert "zeros, or another unit" in found(zeros, "force_size").message
    same = [replace(f, energy_eV=-1.0, forces_eV_per_A=None) for f in crystal]
    assert found(same, "energy_size").message == "all 40 energies are -1.0 eV"
    mixed = [replace(f, energy_eV=f.energy_eV - 1000.0 * (n % 2), forces_eV_per_A=None)
             for n, f in enumerate(crystal)]  # fmt: skip
    assert "mixed levels or units" in found(mixed, "energy_size").message


def test_a_pressure_of_a_star_is_warned_of(cells):
    one = [replace(f, stress_eV_per_A3=f.stress_eV_per_A3 + 10.0) for f in cells[:1]]
    assert "1603 GPa" in found(one, "stress_size").message


@pytest.mark.parametrize("unit", ["Ha", "kcal/mol", "kJ/mol"])
def test_total_energies_of_light_elements_tell_their_unit(gas, unit):
    """−155.0 hartree is the energy of ethanol with all its electrons (HF to CCSD: −154.1 to −155.0)."""
    total = -155.0 * conversion("Ha", unit)
    frames = [replace(f, energy_eV=total + 1e-3 * n, forces_eV_per_A=None) for n, f in enumerate(gas)]
    assert f"all electrons in {unit}" in found(frames, "energy_unit").message
    total = -155.0 * 27.2114
    frames = [replace(f, energy_eV=total + 1e-3 * n, forces_eV_per_A=None) for n, f in enumerate(gas)]
    assert check_labels(frames) == []


def test_forces_of_fixed_atoms_that_were_written_as_zero_are_found():
    slab = fcc111("Cu", (2, 2, 3), vacuum=8.0)
    raw = walk(slab, 12, 0.03, 4, name="slab")
    fixed = np.flatnonzero(slab.get_tags() == 3)
    zeroed = []
    for frame in raw:
        forces = frame.forces_eV_per_A.copy()
        forces[fixed] = 0.0
        zeroed.append(replace(frame, forces_eV_per_A=forces))
    finding = found(zeroed, "zero_forces")
    assert finding.severity == "warning"
    assert finding.frames[0] == "slab, frame 0: 4 of 12 atoms"
    assert "zero_forces" not in kinds(raw)


def test_zero_forces_by_symmetry_are_not_blamed_unless_the_atoms_are_fixed():
    atoms = Atoms("Cu3", [[0, 0, 0], [2.6, 0, 0], [-2.6, 0, 0]])
    frame = labelled(atoms, "rod")
    forces = np.where(np.abs(frame.forces_eV_per_A) < 1e-9, 0.0, frame.forces_eV_per_A)
    frame = replace(frame, forces_eV_per_A=forces)
    assert np.abs(frame.forces_eV_per_A[0]).max() == 0
    assert np.abs(frame.forces_eV_per_A[1]).max() > 0.1
    assert kinds([frame]) == set()
    atoms.set_constraint(FixAtoms([0]))
    assert kinds([replace(frame, atoms=atoms)]) == {"zero_forces"}


def test_a_single_atom_feels_no_force():
    frame = Labelled(Atoms("Cu"), energy_eV=1.0, forces_eV_per_A=np.array([[0.0, 0.0, 0.3]]), name="atom")
    assert found([frame], "single_atom").frames == ("atom: 0.3 eV/Å",)
    atoms = Atoms("Cu")
    atoms.info["electric_field"] = np.array([0.0, 0.0, 0.3])
    assert kinds([replace(frame, atoms=atoms)]) == set()


def test_a_net_force_is_noted(crystal):
    pushed = [replace(f, forces_eV_per_A=f.forces_eV_per_A + np.eye(3)[0]) for f in crystal]
    assert found(pushed, "net_force").severity == "note"


def test_copies_are_noted_and_copies_that_disagree_are_label_noise(crystal):
    again = replace(crystal[3], name="again", energy_eV=crystal[3].energy_eV + 1e-7)
    assert found([*crystal, again], "duplicate").frames == ("again = walk, frame 3",)
    other = replace(again, energy_eV=again.energy_eV + 0.5)
    finding = found([*crystal, other], "label_noise")
    assert "by up to 0.5 eV" in finding.message
    warm, cold = other.atoms.copy(), crystal[3].atoms.copy()
    warm.info["electronic_temperature"], cold.info["electronic_temperature"] = 0.5, 0.1
    two = [replace(other, atoms=warm), replace(crystal[3], atoms=cold)]
    assert kinds(two) == set(), "under another condition it is another structure"


def test_copies_of_other_labels_are_compared_too(crystal):
    a = replace(crystal[0], labels={"dipole": np.array([0.0, 0.0, 1.0])})
    b = replace(a, name="other", labels={"dipole": np.array([0.0, 0.2, 1.0])})
    assert "0.2 of dipole" in found([a, b], "label_noise").message


def test_outliers_are_named_worst_first(crystal):
    frames = list(crystal)
    frames[7] = replace(frames[7], energy_eV=frames[7].energy_eV + 40.0)
    frames[9] = replace(frames[9], energy_eV=frames[9].energy_eV - 80.0)
    finding = found(frames, "energy_outlier")
    assert [name.split(":")[0] for name in finding.frames] == ["walk, frame 9", "walk, frame 7"]
    forces = crystal[5].forces_eV_per_A * 1000
    frames = [*crystal[:5], replace(crystal[5], forces_eV_per_A=forces), *crystal[6:]]
    assert found(frames, "force_outlier").frames[0].startswith("walk, frame 5: largest force")


def test_a_summary_names_the_first_frames_and_counts_the_rest(crystal):
    zeros = [replace(f, energy_eV=np.nan) for f in crystal]
    text = summary(check_labels(zeros))
    assert text.startswith("error: positions or labels are not finite in 40 frames\n    walk, frame 0\n")
    assert text.endswith(f"    and {40 - TOP} more")
    assert len(text.splitlines()) == TOP + 2
