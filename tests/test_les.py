"""Latent Ewald sums of molecules and crystals against published numbers, brute force and differences."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from ase import Atoms
from les_reference import (
    K_E,
    batch_of,
    charges_of,
    energy,
    images,
    pair_sum,
    place,
    random_atoms,
    slopes,
    strain_slopes,
)
from numpy.testing import assert_allclose
from scipy.special import erf, erfc

from tace import les_sums
from tace.config import LesConfig
from tace.errors import DataError
from tace.les import atomic_les_energies, atomic_les_virials, constrain, les_energies
from tace.les_sums import pair_energy, self_energy

MADELUNG = 1.7475645946  # of NaCl, for the distance of nearest neighbours
TRICLINIC = np.array([[9.0, 0, 0], [2, 8, 0], [-1, 1.5, 10]])
THREE = np.array([[0.0, 0, 0], [1, 2, 3], [4, 1, -2]])
Q3 = np.array([0.5, -0.3, -0.2])
FORMS = ("coulomb", "dispersion")
KINDS = {"molecule": False, "slab": [True, True, False], "crystal": True}


def triclinic(pbc: object = True) -> Atoms:
    return Atoms("OH2", positions=THREE, cell=TRICLINIC, pbc=pbc)


def rocksalt(kind: str, a: float = 5.64) -> tuple[Atoms, np.ndarray]:
    if kind == "conventional":
        corners = np.array(list(np.ndindex(2, 2, 2)))
        atoms = Atoms("O8", scaled_positions=corners / 2, cell=[a] * 3, pbc=True)
        return atoms, 1.0 - 2.0 * (corners.sum(1) % 2)
    cell = a / 2 * (1.0 - np.eye(3)) * (-1 if kind == "left-handed" else 1)
    return Atoms("OH", scaled_positions=[[0] * 3, [0.5] * 3], cell=cell, pbc=True), np.array([1.0, -1.0])


@pytest.mark.parametrize("sigma", [0.8, 1.0, 1.3])
@pytest.mark.parametrize("kind", ["conventional", "primitive", "left-handed"])
def test_with_the_short_range_rest_the_madelung_constant_comes_out(kind, sigma):
    atoms, q = rocksalt(kind)
    # exp(−σ²k_c²/2) = e^(−44) at dl = 0.67σ; erfc(11/√2) = 4e-28 at 11σ
    latent = energy(atoms, q, LesConfig(sigma_A=sigma, dl_A=0.67 * sigma))
    rest = pair_sum(
        atoms.positions,
        q,
        images(atoms.cell[:], 11 * sigma + 10.0),
        lambda r: K_E * erfc(r / (math.sqrt(2) * sigma)) / r,
    )
    assert_allclose(-(latent + rest) / (len(atoms) / 2) * 2.82 / K_E, MADELUNG, rtol=1e-8, atol=0)


@pytest.mark.parametrize(("dl", "expected"), [(2.0, -8.794700), (1.5, -8.779306), (1.0, -8.779244)])
def test_rocksalt_has_the_published_energy_at_each_resolution(dl, expected):
    atoms, q = rocksalt("conventional")
    assert_allclose(energy(atoms, q, LesConfig(dl_A=dl)) / 4, expected, atol=5.1e-7)  # digits given


@pytest.mark.parametrize(
    ("pbc", "dl", "expected"),
    [
        (True, 2.0, -0.8394422379),
        (True, 1.2, -0.8356052883),
        (True, 0.8, -0.8356049401),
        (False, 1.2, -0.7453500622),
    ],
)
def test_three_charges_in_a_triclinic_cell_have_the_published_energies(pbc, dl, expected):
    assert_allclose(energy(triclinic(pbc), Q3, LesConfig(dl_A=dl)), expected, atol=1e-10)  # digits given


def test_a_dimer_is_an_error_function_and_a_charge_has_its_self_energy():
    dimer = Atoms("H2", positions=[[0, 0, 0], [0, 0, 3.1]])
    assert_allclose(energy(dimer, np.array([0.7, -0.4])), -1.298096185080, atol=1e-12)
    assert_allclose(self_energy(LesConfig()), 5.744627, atol=5.1e-7)
    assert_allclose(energy(Atoms("H"), np.ones(1), LesConfig(remove_self=False)), 5.744627, atol=5.1e-7)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_self_energy_is_all_that_remove_self_changes(kind, form):
    atoms = triclinic(KINDS[kind])
    kept, removed = (
        energy(atoms, Q3, LesConfig(form=form, remove_self=remove)) for remove in (False, True)
    )
    assert_allclose(kept - removed, self_energy(LesConfig(form=form)) * (Q3**2).sum(), rtol=1e-10)


def test_a_neutral_molecule_in_a_growing_box_becomes_a_free_one():
    free, moment = energy(triclinic(False), Q3), Q3 @ THREE
    for box in (20.0, 30.0, 40.0):
        boxed = Atoms("OH2", positions=THREE, cell=[box] * 3, pbc=True)
        # a dipole in a cubic lattice under tinfoil; the rest falls as L⁻⁵ (quadrupole and octupole)
        images = -2 * math.pi * K_E * (moment @ moment) / (3 * box**3)
        rest = energy(boxed, Q3, LesConfig(dl_A=1.0)) - free - images
        assert abs(rest) < 0.1 * abs(images) * (20.0 / box) ** 2


def crowd(rng: np.random.Generator) -> tuple[Atoms, np.ndarray]:
    """24 charges of unit variance in a 9 Å box, the case of spec §11.4."""
    q = rng.standard_normal(24)
    return random_atoms(rng, np.eye(3) * 9.0, True, 24), q - q.mean()


def test_the_resolution_converges_and_the_default_is_fine_enough(rng):
    atoms, q = crowd(rng)
    exact = energy(atoms, q, LesConfig(dl_A=0.7))
    errors = {dl: abs(energy(atoms, q, LesConfig(dl_A=dl)) - exact) for dl in (2.0, 1.5, 1.2, 1.0)}
    assert errors[1.0] < 1e-6
    assert errors[1.2] < 5e-5  # 24 charges of 1 e; the error goes with q²
    assert errors[1.5] < 1e-2
    assert errors[2.0] > 5e-2  # the test can tell


def worst_kink(atoms: Atoms, q: np.ndarray, config: LesConfig) -> float:
    """Largest second difference in a scan of ±5 % strain: a jump shows up whole, a curve as E''·h²."""
    values = []
    for strain in np.linspace(-0.05, 0.05, 151):
        moved = atoms.copy()
        moved.set_cell(atoms.cell[:] * (1 + strain), scale_atoms=True)
        values.append(energy(moved, q, config))
    return float(np.abs(np.diff(values, 2)).max())


def test_a_taper_removes_the_jumps_under_strain_and_the_default_makes_them_small(rng):
    atoms, q = crowd(rng)
    curve = worst_kink(atoms, q, LesConfig(dl_A=0.7))  # no jump left at this resolution
    assert worst_kink(atoms, q, LesConfig(dl_A=2.0)) > 1e-2
    assert worst_kink(atoms, q, LesConfig(dl_A=2.0, smooth=True)) < 1.2 * curve
    assert worst_kink(atoms, q, LesConfig()) < curve + 2e-5  # found: 1e-5 for charges of 1 e


def test_a_mixed_batch_is_a_loop_over_its_structures(rng):
    kinds = [
        (True, TRICLINIC),
        (False, TRICLINIC),
        ([1, 1, 0], TRICLINIC),
        (True, 4.1 * np.eye(3)),
        (False, 0.3 * TRICLINIC),
        ([0, 1, 1], 0.7 * TRICLINIC),
        (True, np.diag([3.0, 5.0, 14.0])),
    ]
    structures = [random_atoms(rng, cell, pbc, 3 + n) for n, (pbc, cell) in enumerate(kinds)]
    structures[1].set_cell(None)
    charges = [rng.standard_normal((len(atoms), 2)) for atoms in structures]
    batch = batch_of(*structures)
    for form in FORMS:
        config = LesConfig(form=form, n_charges=2)
        q = charges_of(batch, *charges)
        together = les_energies(q, batch.positions, batch.cells, batch, config)
        alone = [energy(a, q, config) for a, q in zip(structures, charges, strict=True)]
        # the grid is that of the largest structure: vectors beyond k_c add exact zeros
        assert_allclose(together, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_energies_of_charge_channels_add(kind, form, rng):
    atoms, q = triclinic(KINDS[kind]), rng.standard_normal((3, 3))
    config = LesConfig(form=form, n_charges=3)
    assert_allclose(energy(atoms, q, config), sum(energy(atoms, c, config) for c in q.T), rtol=1e-12)


@pytest.mark.parametrize(
    "choice", [[[1, 0, 0], [3, 1, 0], [-2, 4, 1]], [[0, 1, 0], [1, 0, 0], [0, 0, 1]], -np.eye(3)]
)
@pytest.mark.parametrize("form", FORMS)
def test_the_choice_of_the_cell_does_not_matter(choice, form, rng):
    atoms, q = random_atoms(rng, TRICLINIC / 2, True), rng.standard_normal(6)
    other = atoms.copy()
    other.set_cell(np.array(choice) @ atoms.cell[:])
    other.positions += rng.integers(-3, 4, (6, 3)) @ atoms.cell[:] + rng.standard_normal(3)
    config = LesConfig(form=form)
    assert_allclose(energy(other, q, config), energy(atoms, q, config), rtol=1e-11)


@pytest.mark.parametrize("form", FORMS)
def test_a_supercell_has_the_energy_of_its_cells(form, rng):
    atoms, q = random_atoms(rng, TRICLINIC / 2, True), rng.standard_normal(6)
    config = LesConfig(form=form)
    many = atoms.repeat((2, 1, 3))
    assert_allclose(energy(many, np.tile(q, 6), config), 6 * energy(atoms, q, config), rtol=1e-11)


def test_a_dispersion_crystal_is_the_sum_over_its_images(rng):
    atoms, q = random_atoms(rng, TRICLINIC / 2, True, 3), np.array([0.8, 1.1, 0.9])

    def damped(r: np.ndarray) -> np.ndarray:
        u = r * r / 2
        return -(1 - np.exp(-u) * (1 + u + u * u / 2)) / r**6

    reach = 60.0
    near = pair_sum(atoms.positions, q, images(atoms.cell[:], reach), damped)
    beyond = -2 * math.pi / 3 * q.sum() ** 2 / atoms.get_volume() / reach**3  # ½ ∫ 4πr² r⁻⁶ (Σq)²/V
    latent = energy(atoms, q, LesConfig(form="dispersion", dl_A=0.8))
    assert_allclose(latent, near + beyond, rtol=2e-6)  # the ragged edge at 60 Å, 1e-2 of the tail 2e-5


@pytest.mark.parametrize("form", FORMS)
def test_pair_energies_are_smooth_where_the_series_takes_over(form):
    config = LesConfig(form=form, sigma_A=0.9)
    edge = les_sums.SERIES_BELOW

    def derivatives(u0: float) -> list[float]:
        u = torch.tensor(u0, dtype=torch.float64, requires_grad=True)
        values = [pair_energy(u, config)]
        for _ in range(2):
            values.append(torch.autograd.grad(values[-1], u, create_graph=True)[0])
        return [v.item() for v in values]

    # rounding of the closed form grows as 1e-16/u² in the second derivative
    assert_allclose(derivatives(edge * (1 - 1e-13)), derivatives(edge * (1 + 1e-13)), rtol=1e-9)
    assert np.isfinite(derivatives(0.0)).all()
    r = 31.0
    far = pair_energy(torch.tensor(r * r / 2 / 0.81, dtype=torch.float64), config).item()
    assert_allclose(far, K_E / r if form == "coulomb" else -(r**-6.0), rtol=1e-14)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_forces_and_stress_are_differences_of_energies(kind, form, rng):
    cell = TRICLINIC[[1, 0, 2]] * 0.6  # left-handed
    atoms, q = random_atoms(rng, cell, KINDS[kind], 4), rng.standard_normal(4)
    config = LesConfig(form=form, smooth=True)  # no vector enters or leaves
    batch, x, h = place(atoms)
    strain = torch.zeros(1, 3, 3, dtype=torch.float64, requires_grad=True)
    one = torch.eye(3, dtype=torch.float64) + 0.5 * (strain + strain.mT)
    value = les_energies(charges_of(batch, q), x @ one[0], h @ one, batch, config)
    along, deformed = torch.autograd.grad(value.sum(), [x, strain])
    # error of the differences: h² E'''/6 with derivatives of order 10 eV/Å³
    assert_allclose(along[batch.original], slopes(atoms, q, config), atol=1e-6)
    assert_allclose(deformed[0], strain_slopes(atoms, q, config), atol=1e-5)


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives_are_right_also_when_memory_is_bounded(kind, form, chunk, rng, monkeypatch):
    if chunk:
        monkeypatch.setattr(les_sums, "CHUNK", chunk)
    atoms = random_atoms(rng, np.diag([3.1, 3.4, 3.3]), KINDS[kind], 3)
    batch, x, h = place(atoms)
    q = charges_of(batch, rng.standard_normal(3)).requires_grad_()
    config = LesConfig(form=form, dl_A=1.6)

    def total(q, x, h):
        return les_energies(q, x, h, batch, config)

    assert torch.autograd.gradgradcheck(total, (q, x, h), atol=1e-5, rtol=1e-4, fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_sums_in_chunks_are_the_same_sums(kind, rng, monkeypatch):
    atoms, q = random_atoms(rng, TRICLINIC, KINDS[kind], 9), rng.standard_normal((9, 2))
    config = LesConfig(n_charges=2)
    whole = energy(atoms, q, config)
    monkeypatch.setattr(les_sums, "CHUNK", 30)
    assert_allclose(energy(atoms, q, config), whole, rtol=1e-12)


@pytest.mark.parametrize("remove_self", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_atomic_energies_sum_to_those_of_structures(form, remove_self, rng):
    structures = [triclinic(pbc) for pbc in KINDS.values()]
    batch = batch_of(*structures)
    q = charges_of(batch, *rng.standard_normal((3, 3, 2)))
    config = LesConfig(form=form, remove_self=remove_self, n_charges=2)
    atomic = atomic_les_energies(q, batch.positions, batch.cells, batch, config)
    sums = torch.zeros(3, dtype=torch.float64).index_add(0, batch.structure, atomic)
    expected = les_energies(q, batch.positions, batch.cells, batch, config)
    assert_allclose(sums, expected, rtol=1e-10)


def test_the_energy_of_an_atom_is_half_its_charge_times_the_potential_of_the_others():
    atoms = triclinic(False)
    batch = batch_of(atoms)
    q = charges_of(batch, Q3)
    with torch.no_grad():
        atomic = atomic_les_energies(q, batch.positions, batch.cells, batch, LesConfig())
    r = atoms.get_all_distances() + np.eye(3)
    potential = (K_E * erf(r / math.sqrt(2)) / r * (1 - np.eye(3))) @ Q3
    assert_allclose(atomic[batch.original], 0.5 * Q3 * potential, rtol=1e-12)
    assert not atomic.requires_grad


@pytest.mark.parametrize("form", FORMS)
def test_atomic_virials_sum_to_minus_the_strain_derivative(form, rng):
    structures = [random_atoms(rng, TRICLINIC / 2, pbc, 4) for pbc in (True, False)]
    charges = rng.standard_normal((2, 4))
    batch, config = batch_of(*structures), LesConfig(form=form, smooth=True)
    virials = atomic_les_virials(charges_of(batch, *charges), batch.positions, batch.cells, batch, config)
    assert_allclose(virials, virials.mT, atol=1e-12)
    sums = torch.zeros(2, 3, 3, dtype=torch.float64).index_add(0, batch.structure, virials)
    for found, atoms, q in zip(sums, structures, charges, strict=True):
        assert_allclose(found, -strain_slopes(atoms, q, config), atol=1e-5)


def test_the_virial_of_a_pair_is_shared_equally():
    dimer = Atoms("OH", positions=[[0, 0, 0], [0.5, 1.0, 1.5]])
    batch, x, h = place(dimer)
    q = charges_of(batch, np.array([0.7, -0.4]))
    virials = atomic_les_virials(q, x, h, batch, LesConfig())
    (slope,) = torch.autograd.grad(les_energies(q, x, h, batch, LesConfig()).sum(), x)
    pair = -torch.outer(x[0] - x[1], slope[0])
    assert_allclose(virials.detach(), torch.stack([pair / 2, pair / 2]).detach(), rtol=1e-12)


def test_an_atom_without_charge_has_no_energy_and_no_virial(rng):
    atoms, q = random_atoms(rng, TRICLINIC, True, 4), np.array([0.4, 0.0, -0.7, 0.2])
    batch = batch_of(atoms)
    arguments = (charges_of(batch, q), batch.positions, batch.cells, batch, LesConfig())
    assert atomic_les_energies(*arguments)[batch.original][1] == 0.0
    assert (atomic_les_virials(*arguments)[batch.original][1] == 0.0).all()


def test_constraints_fix_the_sums_of_each_structure(rng):
    structures = [triclinic(), Atoms("H"), triclinic(False)]
    total = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)
    batch = dataclasses.replace(batch_of(*structures), inputs={"total_charge": total})
    q = torch.from_numpy(rng.standard_normal((7, 2)))

    def sums(constraint: str) -> torch.Tensor:
        moved = constrain(q, batch, LesConfig(constraint=constraint, n_charges=2))
        return torch.zeros(3, 2, dtype=torch.float64).index_add(0, batch.structure, moved)

    # sums of three numbers of order one
    assert_allclose(sums("neutral"), 0.0, atol=1e-14)
    assert_allclose(sums("total_charge"), torch.stack([total, 0 * total], 1), atol=1e-14)
    assert constrain(q, batch, LesConfig()) is q


def test_a_missing_total_charge_is_named():
    with pytest.raises(DataError, match="total_charge"):
        constrain(torch.zeros(3, 1), batch_of(triclinic()), LesConfig(constraint="total_charge"))


def test_wires_are_refused_and_slabs_have_no_atomic_virials():
    batch = batch_of(triclinic(), triclinic([False, True, False]))
    arguments = (torch.zeros(6, 1), batch.positions, batch.cells, batch, LesConfig())
    with pytest.raises(DataError, match=r"structure 1 .* one axis only"):
        les_energies(*arguments)
    with pytest.raises(DataError, match=r"structure 1 .* some axes only"):
        atomic_les_virials(*arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_charges_in_single_precision_lose_only_their_own_digits(kind):
    batch = batch_of(triclinic(KINDS[kind]))
    q = charges_of(batch, Q3)
    config = LesConfig()
    single = les_energies(q.float(), batch.positions, batch.cells, batch, config)
    assert single.dtype == torch.float64
    assert_allclose(single, les_energies(q, batch.positions, batch.cells, batch, config), rtol=2e-7)


def test_coincident_and_single_atoms_have_finite_derivatives():
    batch = batch_of(Atoms("H"), Atoms("H2", positions=[[0.0, 0, 0], [0, 0, 1]]))
    x = torch.zeros_like(batch.positions).requires_grad_()  # graphs of such atoms are refused
    value = les_energies(torch.ones(3, 1), x, batch.cells, batch, LesConfig())
    assert_allclose(value.detach(), [0.0, 2 * self_energy(LesConfig())], rtol=1e-12)
    (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), x)
    assert (slope == 0).all()
    assert torch.isfinite(second).all()
