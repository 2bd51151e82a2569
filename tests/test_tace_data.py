"""What a model takes from its training set, and how labels become targets."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from numpy.testing import assert_allclose

from alchemy.datasets import split_validation
from tace.config import preset
from tace.data import Labelled, collate_samples, fidelity_index, make_samples
from tace.errors import DataError, UnknownElementError, UnknownFidelityError
from tace.reference import mean_neighbors, statistics

E0 = {1: -13.6, 6: -1029.0, 8: -2041.5}
CONFIG = preset(
    "nano", elements=(1, 6, 8), fidelities=("cheap", "dear"), cutoff_A=3.4, channels=4
)
ONE = dataclasses.replace(CONFIG, fidelities=("cheap",))


def free_energy(atoms: Atoms) -> float:
    return sum(E0[int(z)] for z in atoms.numbers)


def made_of(*names: str, excess: float = 0.0, fidelity: str = "cheap") -> list[Labelled]:
    """Molecules whose energy is that of their atoms and `excess` per atom."""
    frames = [molecule(name) for name in names]
    return [Labelled(a, fidelity, free_energy(a) + excess * len(a)) for a in frames]


# ---- atomic energies ----


def test_least_squares_recovers_the_energies_of_the_atoms():
    found = statistics(made_of("H2O", "CH4", "CO2", "CH3OH"), ONE)
    for z, energy in E0.items():
        assert found.e0_eV["cheap"][z] == pytest.approx(energy, rel=1e-10)  # round-off of the solver
    assert found.shift_eV_per_atom["cheap"] == pytest.approx(0.0, abs=1e-9)
    assert found.notes == ()


def test_each_fidelity_has_its_own_atomic_energies():
    frames = made_of("H2O", "CH4", "CO2")
    dear = [
        Labelled(f.atoms, "dear", 2.0 * f.energy_eV) for f in made_of("H2O", "CH4", "CO2", "O2")
    ]
    found = statistics([*frames, *dear], CONFIG).e0_eV
    for z, energy in E0.items():
        assert found["cheap"][z] == pytest.approx(energy, rel=1e-10)
        assert found["dear"][z] == pytest.approx(2.0 * energy, rel=1e-10)


def test_compositions_that_cannot_tell_atoms_apart_are_solved_and_noted():
    frames = made_of("H2O", "H2O", "CO2")  # two equations for three energies
    found = statistics(frames, ONE)
    assert len(found.notes) == 1
    assert "rank 2 of 3" in found.notes[0]
    assert "'cheap'" in found.notes[0]
    e0 = found.e0_eV["cheap"]
    for f in frames:
        assert sum(e0[int(z)] for z in f.atoms.numbers) == pytest.approx(f.energy_eV, rel=1e-10)
    # the smallest solution: orthogonal to what the compositions leave open (2H + O, C + 2O → 0)
    open_direction = np.array([1.0, 4.0, -2.0])
    assert open_direction @ [e0[1], e0[6], e0[8]] == pytest.approx(0.0, abs=1e-8)


def test_given_atomic_energies_are_kept_and_the_rest_is_shift():
    frames = made_of("H2O", "CH4", excess=-2.5)
    found = statistics(frames, ONE, {"cheap": {**E0, 79: 1.0}})
    assert found.e0_eV["cheap"] == E0
    assert found.shift_eV_per_atom["cheap"] == pytest.approx(-2.5, abs=1e-9)  # round-off of 2e3 eV


def test_the_shift_is_a_mean_over_structures_of_the_energy_per_atom():
    frames = [*made_of("H2O", excess=-1.0), *made_of("CH3CH2OH", excess=-2.0)]
    found = statistics(frames, ONE, {"cheap": E0})
    assert found.shift_eV_per_atom["cheap"] == pytest.approx(-1.5, abs=1e-9)


@pytest.mark.parametrize("given", [None, {"cheap": {1: -13.6, 8: -2041.5}}])
def test_an_element_without_any_energy_is_refused_by_name(given):
    with pytest.raises(DataError, match=r"'cheap': no isolated-atom energy for C"):
        statistics(made_of("H2O", "O2", "H2"), ONE, given)


def test_an_element_in_structures_without_energy_is_refused_too():
    bare = Labelled(molecule("CH4"), "cheap", None, np.zeros((5, 3)))
    with pytest.raises(DataError, match=r"for C and no labelled structure"):
        statistics([*made_of("H2O", "O2"), bare], ONE)


def test_a_fidelity_without_labels_needs_given_atomic_energies():
    frames = made_of("H2O", "CH4", "CO2")
    with pytest.raises(DataError, match="'dear' has neither"):
        statistics(frames, CONFIG)
    forces = np.full((3, 3), 2.0)
    frames[0] = dataclasses.replace(frames[0], forces_eV_per_A=forces)
    found = statistics(frames, CONFIG, {"dear": E0})
    assert found.shift_eV_per_atom["dear"] == 0.0
    # it borrows the scale of the others
    assert found.scale_eV_per_A["dear"] == found.scale_eV_per_A["cheap"] == math.sqrt(12.0)


# ---- scale, neighbours ----


def test_the_scale_is_the_rms_of_the_length_of_the_force(rng):
    frames, forces = made_of("H2O", "CH3CH2OH", "CO2"), []
    for n, f in enumerate(frames):
        forces.append(rng.standard_normal((len(f.atoms), 3)))
        frames[n] = dataclasses.replace(f, forces_eV_per_A=forces[-1])
    frames += made_of("CH4")  # without forces: does not count as zero
    lengths = np.linalg.norm(np.concatenate(forces), axis=1)
    found = statistics(frames, ONE, {"cheap": E0}).scale_eV_per_A["cheap"]
    assert found == pytest.approx(np.sqrt((lengths**2).mean()), rel=1e-12)


def test_each_fidelity_has_its_own_scale_and_without_forces_it_is_one():
    cheap = [
        dataclasses.replace(f, forces_eV_per_A=np.eye(3)) for f in made_of("H2O", excess=1.0)
    ]
    dear = [
        dataclasses.replace(f, forces_eV_per_A=5 * np.eye(3))
        for f in made_of("H2O", fidelity="dear")
    ]
    both = {"cheap": E0, "dear": E0}
    found = statistics([*cheap, *dear], CONFIG, both)
    assert found.scale_eV_per_A == pytest.approx({"cheap": 1.0, "dear": 5.0})
    none = statistics(made_of("H2O"), CONFIG, both)
    assert none.scale_eV_per_A == {"cheap": 1.0, "dear": 1.0}


def test_neighbours_are_directed_edges_per_atom():
    copper = dataclasses.replace(ONE, elements=(29,), cutoff_A=3.0)
    crystal = [Labelled(bulk("Cu", a=3.6), "cheap", 0.0)]
    assert mean_neighbors(crystal, copper) == 12.0
    dimer = Labelled(Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 2.5]]), "cheap", 0.0)
    assert mean_neighbors([*crystal, dimer], copper) == pytest.approx((12 + 2) / 3)
    alone = Labelled(Atoms("Cu"), "cheap", 0.0)
    assert mean_neighbors([alone], copper) == 1.0  # it divides a sum: never zero


# ---- samples and targets ----


def test_labels_become_targets_in_the_order_of_the_input(structure):
    crystal = structure("crystal")
    frames = [
        Labelled(structure("ethanol"), "dear", -3.0, np.full((9, 3), 0.5), weight=2.0),
        Labelled(crystal, "cheap", None, np.arange(12.0).reshape(4, 3), np.arange(6.0)),
        Labelled(structure("water"), "cheap", 7, None),
    ]
    samples = make_samples(frames, CONFIG)
    batch, targets = collate_samples(samples, 3, weights=[1.0, 3.0, 0.5])
    assert batch.n_atoms.tolist() == targets.n_atoms.tolist() == [9, 4, 3]
    assert batch.fidelity.tolist() == [1, 0, 0]
    assert_allclose(targets.energies, [-3.0, np.nan, 7.0])
    expected = np.concatenate([np.full((9, 3), 0.5), np.arange(12.0).reshape(4, 3)])
    assert_allclose(targets.forces[:13], expected)
    assert torch.isnan(targets.forces[13:]).all()
    assert torch.isnan(targets.stresses[[0, 2]]).all()
    assert targets.stresses[1].tolist() == [0, 1, 2, 3, 4, 5]
    assert targets.weights.tolist() == [2.0, 3.0, 0.5]
    assert targets.atom_weights.tolist() == [2.0] * 9 + [3.0] * 4 + [0.5] * 3
    assert_allclose(targets.volumes, [0.0, crystal.get_volume(), 0.0], rtol=1e-12)
    for name, value in vars(targets).items():
        if isinstance(value, torch.Tensor) and name != "rows":
            assert value.dtype == torch.float64, name


def test_labels_are_copied_as_numbers_and_not_changed(structure):
    forces = np.ones((3, 3), dtype=np.float32)
    (sample,) = make_samples([Labelled(structure("water"), "cheap", 1.0, forces)], CONFIG)
    assert sample.forces.dtype == np.float64
    assert np.isnan(sample.stress).all()


def test_a_name_of_another_fidelity_or_element_is_refused(structure):
    assert fidelity_index("dear", CONFIG.fidelities) == 1
    with pytest.raises(UnknownFidelityError, match=r"'ccsd' is unknown .* cheap, dear"):
        make_samples([Labelled(structure("water"), "ccsd", 0.0)], CONFIG)
    with pytest.raises(UnknownElementError, match="N"):
        make_samples([Labelled(molecule("NH3"), "cheap", 0.0)], CONFIG)


# ---- the split ----


def test_all_labels_of_a_structure_fall_on_the_same_side():
    uids = ["a", "b", "c", "a", "d", "e", "b", "a", "f", "g", "h", "i", "j"]
    for seed in range(5):
        train, valid = split_validation(uids, fraction=0.3, seed=seed)
        assert sorted([*train, *valid]) == list(range(len(uids)))
        assert not {uids[n] for n in train} & {uids[n] for n in valid}
        assert len({uids[n] for n in valid}) == 3
    assert split_validation(uids, fraction=0.3, seed=0) == split_validation(uids, fraction=0.3, seed=0)


def test_the_split_depends_on_the_set_of_structures_and_not_on_their_order():
    uids = list("abcdefghij")
    _, valid = split_validation(uids, fraction=0.2, seed=1)
    _, other = split_validation(uids[::-1], fraction=0.2, seed=1)
    assert {uids[n] for n in valid} == {uids[::-1][n] for n in other}


@pytest.mark.parametrize(
    ("count", "fraction", "held"), [(2, 0.5, 0), (3, 0.01, 1), (10, 0.0, 0), (10, 0.2, 2)]
)
def test_at_least_one_structure_of_three_is_held_out(count, fraction, held):
    train, valid = split_validation([str(n) for n in range(count)], fraction=fraction, seed=0)
    assert (len(train), len(valid)) == (count - held, held)
