"""A committee is its members; what it shares between them must not change what they say."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from ase import Atoms
from numpy.testing import assert_allclose

from tace.batch import collate, make_graph
from tace.committee import Committee
from tace.comparison import errors
from tace.config import preset
from tace.data import Labelled
from tace.derivatives import evaluate, voigt
from tace.errors import DataError, TaceError, UnknownElementError, UnknownFidelityError
from tace.model import Tace
from tace.prediction import force_spread, small_sample_factor

CONFIG = preset(
    "nano",
    elements=(1, 6, 8),
    fidelities=("gfn2", "pbe"),
    cutoff_A=3.4,
    channels=4,
    radial_hidden=(8,),
    avg_neighbors=3.0,
)
NAMES = ("water", "crystal", "ethanol", "slab", "atom", "carbon")


def build(seed: int, dtype: torch.dtype = torch.float64, **changes: object) -> Tace:
    model = Tace(dataclasses.replace(CONFIG, **changes), seed=seed, dtype=dtype)
    names = model.config.fidelities
    e0 = {n: {z: -10.0 * z for z in model.config.elements} for n in names}
    scale = {n: 8.0 + 4.0 * k for k, n in enumerate(names)}  # forces of some eV/Å on molecules
    model.set_reference(e0, scale, dict.fromkeys(names, -0.2))
    return model


@pytest.fixture
def committee() -> Committee:
    return Committee([build(seed) for seed in range(3)])


@pytest.fixture
def frames(structure) -> list[Atoms]:
    return [structure(name) for name in NAMES]


def alone(model: Tace, atoms: Atoms, level: int):
    graph = make_graph(atoms, CONFIG.elements, cutoff=CONFIG.cutoff_A, fidelity=level)
    return evaluate(model, collate([graph], 3), stress=True)


# ---- members, mean, spread ----


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("fidelity", ["gfn2", "pbe", None])
def test_each_member_says_what_it_says_alone(dtype, fidelity, frames):
    committee = Committee([build(seed, dtype) for seed in range(3)])
    said = committee(frames, fidelity=fidelity, stress=True)
    level = 0 if fidelity == "gfn2" else 1  # None is the last
    for k, member in enumerate(committee.members):
        forces = said.per_structure(said.forces[k])
        for s, atoms in enumerate(frames):
            one = alone(member, atoms, level)
            # float64: sums in another order; float32: its rounding, through some ten operations
            tolerance = 1e-10 if dtype == torch.float64 else 1e-5
            scale = 1.0 + float(one.forces.abs().max())
            assert_allclose(said.energies[k, s], float(one.energies[0]), rtol=0, atol=tolerance * scale)
            assert_allclose(forces[s], one.forces, rtol=0, atol=tolerance * scale)
            expected = voigt(one.stresses[0])
            assert_allclose(said.stresses[k, s], expected, rtol=0, atol=tolerance * scale)
            assert np.isnan(said.stresses[k, s]).all() == (not atoms.pbc.all())


def test_means_are_the_means_of_the_members(committee, frames):
    said = committee(frames)
    assert_allclose(said.mean_energies, said.energies.mean(0), rtol=1e-15)
    assert_allclose(said.mean_forces, said.forces.mean(0), rtol=0, atol=1e-15)
    assert said.forces.shape == (3, sum(map(len, frames)), 3)
    assert said.n_atoms.tolist() == [len(a) for a in frames]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_forces_of_the_mean_are_the_mean_of_the_forces(dtype, frames):
    committee = Committee([build(seed, dtype) for seed in range(3)])
    full = committee(frames, stress=True)
    short = committee(frames, member_forces=False, stress=True)
    tolerance = 1e-11 if dtype == torch.float64 else 1e-5  # rounding of forces of order one
    assert short.forces is None
    assert_allclose(short.energies, full.energies, rtol=1e-15)
    assert_allclose(short.mean_forces, full.mean_forces, rtol=0, atol=tolerance * 10)
    assert_allclose(short.stresses.mean(0), full.stresses.mean(0), rtol=0, atol=tolerance * 10)
    with pytest.raises(ValueError, match="member_forces=True"):
        _ = short.force_spread


def test_spread_of_identical_members_is_zero(frames):
    said = Committee([build(1), build(1), build(1)])(frames)
    # the mean of three equal numbers may be off in the last digit
    assert_allclose(said.force_spread, 0.0, atol=1e-14)
    assert_allclose(said.energy_spread, 0.0, atol=1e-12)


def test_spread_of_one_member_is_unknown(frames):
    said = Committee([build(1)])(frames)
    assert np.isnan(said.force_spread).all()
    assert np.isnan(said.energy_spread).all()
    assert said.force_spread.shape == (sum(map(len, frames)),)
    assert np.isfinite(said.mean_forces).all()


@pytest.mark.parametrize("members", [2, 3, 8])
def test_spreads_are_unbiased_for_members_that_scatter_normally(members, rng):
    draws = 40_000
    forces = 0.7 * rng.standard_normal((members, draws, 3)) + rng.standard_normal((1, draws, 3))
    # relative scatter of a mean of 40 000 spreads: below 0.76/√40000 = 0.4 % at two members
    assert force_spread(forces).mean() == pytest.approx(math.sqrt(3) * 0.7, rel=0.015)
    sample = rng.standard_normal((members, draws)).std(0, ddof=1).mean()
    assert sample == pytest.approx(small_sample_factor(members), rel=0.015)


def test_mean_stress_is_the_slope_of_the_mean_energy_under_strain(committee, structure):
    atoms, h = structure("crystal"), 1e-5
    stress = committee([atoms], stress=True).stresses.mean(0)[0]
    for n, (i, j) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):
        sides = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[i, j] += 0.5 * sign * h
            strain[j, i] += 0.5 * sign * h
            bent = atoms.copy()
            bent.set_cell(atoms.cell[:] @ strain, scale_atoms=True)
            sides.append(committee([bent]).mean_energies[0])
        slope = (sides[0] - sides[1]) / (2 * h) / atoms.get_volume()
        # O(h²) of the difference, and 1e-13 eV of round-off over 2h and the volume
        assert stress[n] == pytest.approx(slope, abs=1e-7)


def test_forces_are_the_slope_of_the_mean_energy(committee, structure, rng):
    atoms, h = structure("ethanol"), 1e-5
    direction = rng.standard_normal(atoms.positions.shape)
    sides = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions += sign * h * direction
        sides.append(committee([moved]).mean_energies[0])
    slope = -(sides[0] - sides[1]) / (2 * h)
    forces = committee([atoms], member_forces=False).mean_forces
    assert (forces * direction).sum() == pytest.approx(slope, abs=1e-6)  # 1e-13 eV/2h and O(h²)


def test_features_are_those_of_the_first_member(committee, frames):
    said = committee(frames, features=True, member_forces=False)
    atoms = sum(map(len, frames))
    assert said.features.shape == (atoms, CONFIG.n_layers * CONFIG.channels)
    first = Committee(committee.members[:1])(frames, features=True)
    assert_allclose(said.features, first.features, rtol=0, atol=1e-12)
    expected = alone(committee.members[0], frames[0], 1).features
    assert_allclose(said.features[: len(frames[0])], expected, rtol=0, atol=1e-12)  # summation order
    assert committee(frames).features is None


# ---- batches ----


@pytest.mark.parametrize("limit", [1, 5, 12])
def test_the_size_of_batches_changes_nothing(limit, committee, frames, monkeypatch):
    options = {"stress": True, "features": True}
    whole = committee(frames * 3, **options)
    monkeypatch.setattr("tace.committee.MAX_ATOMS_PER_BATCH", limit)
    cut = committee(frames * 3, **options)
    for name in ("n_atoms", "energies", "mean_forces", "forces", "stresses", "features"):
        # sums in another order
        assert_allclose(getattr(cut, name), getattr(whole, name), rtol=1e-12, atol=1e-11)
    short = committee(frames * 3, member_forces=False)
    assert short.forces is short.stresses is short.features is None
    assert_allclose(short.mean_forces, whole.mean_forces, rtol=0, atol=1e-11)


@pytest.mark.parametrize("member_forces", [True, False])
def test_no_structures_give_an_empty_prediction_of_the_usual_shape(member_forces, committee, frames):
    options = {"member_forces": member_forces, "stress": True, "features": True}
    none, some = committee([], **options), committee(frames[:1], **options)
    for name in ("n_atoms", "energies", "mean_forces", "forces", "stresses", "features"):
        empty, full = getattr(none, name), getattr(some, name)
        assert (empty is None) == (full is None), name
        if empty is not None:
            assert empty.size == 0
            assert empty.ndim == full.ndim
            assert empty.dtype == full.dtype
    assert none.mean_energies.shape == (0,)


def test_errors_on_no_structures_are_unknown(committee):
    found = errors([], committee([]))
    assert found.frames == 0
    assert math.isnan(found.force_rmse_eV_per_A)
    assert found.to_json()["energy_rmse_eV_per_atom"] is None


def test_errors_compare_the_labels_that_are_there(committee, frames):
    said = committee(frames, stress=True)
    forces = said.per_structure(said.mean_forces)
    labelled = [
        Labelled(frames[0], "pbe", said.mean_energies[0] + 0.3, forces[0] + 0.1),
        Labelled(frames[1], "pbe", None, forces[1], said.stresses.mean(0)[1] - 0.02),
        Labelled(frames[2], "pbe", said.mean_energies[2] - 0.9, None),
        *(Labelled(a, "pbe", None, f) for a, f in zip(frames[3:], forces[3:], strict=True)),
    ]
    found = errors(labelled, said)
    n = sum(len(a) for k, a in enumerate(frames) if k != 2)
    assert found.energy_rmse_eV_per_atom == pytest.approx(0.1 * math.sqrt((1 + 1) / 2), rel=1e-9)
    assert found.energy_mae_eV_per_atom == pytest.approx(0.1, rel=1e-9)
    assert found.force_rmse_eV_per_A == pytest.approx(0.1 * math.sqrt(3 / n), rel=1e-9)
    assert found.force_mae_eV_per_A == pytest.approx(0.1 * 3 / n, rel=1e-9)
    assert found.stress_rmse_eV_per_A3 == pytest.approx(0.02, rel=1e-9)
    by_element = found.force_rmse_by_element_eV_per_A
    assert set(by_element) == {"H", "C", "O"}
    assert by_element["C"] == 0.0


# ---- sessions ----


def moved(frames: list[Atoms], shift: np.ndarray) -> list[Atoms]:
    result, at = [], 0
    for atoms in frames:
        result.append(atoms.copy())
        result[-1].positions += shift[at : at + len(atoms)]
        at += len(atoms)
    return result


def steps_of(rng, atoms: int, length: float) -> np.ndarray:
    """Random directions, every atom moved by the same length."""
    step = rng.standard_normal((atoms, 3))
    return length * step / np.linalg.norm(step, axis=1, keepdims=True)


@pytest.mark.parametrize("member_forces", [True, False])
def test_a_session_says_what_a_fresh_evaluation_says(member_forces, committee, frames, rng):
    session = committee.session(frames, skin_A=0.6)
    positions = np.concatenate([a.positions for a in frames])
    for length, rebuilds in ((0.0, 1), (0.299, 1), (0.301, 2), (2.5, 3)):
        shift = steps_of(rng, len(positions), length)
        got = session(positions + shift, member_forces)
        fresh = committee(moved(frames, shift), member_forces=member_forces)
        scale = 1.0 + np.abs(fresh.mean_forces).max()  # atoms may come close
        assert_allclose(got.energies, fresh.energies, rtol=0, atol=1e-11 * scale)
        assert_allclose(got.mean_forces, fresh.mean_forces, rtol=0, atol=1e-11 * scale)
        if member_forces:
            assert_allclose(got.forces, fresh.forces, rtol=0, atol=1e-11 * scale)
        assert session.rebuilds == rebuilds
    assert [len(a) for a in frames] == got.n_atoms.tolist()


def test_moves_are_counted_from_the_last_rebuild_not_the_last_step(committee, structure):
    atoms = structure("crystal")
    session = committee.session([atoms], skin_A=0.6)
    for n in range(8):
        session(atoms.positions + np.array([0.1 * n, 0.0, 0.0]))
    # 0.0 first; 0.3 is half the skin, and so on every third step
    assert session.rebuilds == 3


def test_no_pair_is_missed_when_atoms_approach_from_beyond_the_cutoff(committee):
    """Each moves just less than half the skin: the pair was outside the cutoff, inside the skin."""
    start = Atoms("HO", positions=[[0, 0, 0], [3.4 + 0.55, 0, 0]])
    session = committee.session([start], skin_A=0.6)
    free = session(start.positions)
    assert (free.mean_forces == 0).all()
    close = start.positions + np.array([[0.299, 0, 0], [-0.299, 0, 0]])
    got = session(close)
    assert session.rebuilds == 1
    fresh = committee([Atoms("HO", positions=close)])
    assert np.abs(fresh.mean_forces).max() > 0
    assert_allclose(got.mean_forces, fresh.mean_forces, rtol=1e-9)


def test_a_session_leaves_the_structures_it_was_given_alone(committee, structure):
    atoms = structure("water")
    session = committee.session([atoms])
    session(atoms.positions + 5.0)
    assert (atoms.positions == structure("water").positions).all()


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_positions_that_are_lost_spoil_their_own_structure_only(bad, first, committee, structure):
    frames = [structure("water"), structure("crystal"), structure("atom")]
    session = committee.session(frames)
    positions = np.concatenate([a.positions for a in frames])
    well = committee(frames)
    if not first:
        session(positions)
    broken = positions.copy()
    broken[4, 1] = bad  # in the crystal
    got = session(broken)
    assert np.isnan(got.energies[:, 1]).all()
    assert np.isnan(got.mean_forces[3:7]).all()
    assert np.isnan(got.forces[:, 3:7]).all()
    assert_allclose(got.energies[:, [0, 2]], well.energies[:, [0, 2]], rtol=1e-13)
    assert_allclose(got.mean_forces[:3], well.mean_forces[:3], rtol=0, atol=1e-11)
    again = session(positions, False)
    assert_allclose(again.mean_forces, well.mean_forces, rtol=0, atol=1e-11)
    assert np.isfinite(again.energies).all()


# ---- what is refused ----


@pytest.mark.parametrize(
    "changes",
    [{"elements": (1, 8)}, {"fidelities": ("pbe",)}, {"cutoff_A": 3.0}, {"l_max": 3}],
)
def test_members_that_cannot_share_a_geometry_are_refused_by_the_setting(changes):
    with pytest.raises(TaceError, match=f"differ in {next(iter(changes))}"):
        Committee([build(0), build(1, **changes)])


def test_members_of_two_precisions_are_refused():
    with pytest.raises(TaceError, match="differ in dtype"):
        Committee([build(0), build(1, torch.float32)])


def test_members_may_differ_in_what_they_do_not_share(frames):
    wide = build(1, channels=6, n_layers=1, correlation=2)
    said = Committee([build(0), wide])(frames)
    assert_allclose(said.energies[1], Committee([wide])(frames).energies[0], rtol=1e-14)


def test_a_committee_without_members_is_refused():
    with pytest.raises(TaceError, match="at least one member"):
        Committee([])


def test_unknown_elements_fidelities_and_impossible_structures_are_refused(committee, structure):
    with pytest.raises(UnknownElementError, match=r"does not know N, S; it was built for H, C, O"):
        committee([structure("water"), Atoms("SNH", positions=np.eye(3))])
    for ask in (committee, committee.session):
        with pytest.raises(UnknownFidelityError, match=r"'ccsd' .* gfn2, pbe"):
            ask([structure("water")], fidelity="ccsd")
    with pytest.raises(DataError, match="without atoms"):
        committee([Atoms()])
    with pytest.raises(DataError, match="not finite"):
        committee([Atoms("H", positions=[[np.nan, 0, 0]])])
