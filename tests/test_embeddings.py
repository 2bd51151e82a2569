"""What conditions add to a model: invariant inputs, a field, and moments that obey time reversal and parity.

The energies here are a sum of invariants of A, up to third order, with A made of the neighbours' elements
and directions plus the embedding under test; float64. A deviation below 1e-12 of energies of order one to a
hundred is round-off of some 1e3 terms; a term that is there changes them by more than 1e-3.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from ase import Atoms
from numpy.testing import assert_allclose
from torch import nn

from tace import embeddings
from tace.batch import Batch, collate, make_graph
from tace.config import InputConfig, TaceConfig
from tace.embeddings import FieldEmbedding, InvariantEmbedding, MagneticBasis, presence
from tace.errors import DataError, TaceError
from tace.geometry import EdgeBasis, Geometry, pair_vectors
from tace.ict import coupling, stf_basis
from tace.layers import gains, pair_to_slot, sender_to_slot

CUTOFF = 3.4
TINY = TaceConfig(
    elements=(1, 6, 8),
    cutoff_A=CUTOFF,
    channels=3,
    l_max=3,
    L_max=0,
    n_radial=4,
    radial_hidden=(6,),
    avg_neighbors=2.0,
)
KINDS = pytest.mark.parametrize("collinear", [False, True], ids=["vectors", "collinear"])


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch_of(*frames: Atoms, inputs: tuple[InputConfig, ...] = ()) -> Batch:
    graphs = [make_graph(a, TINY.elements, cutoff=CUTOFF, inputs=inputs) for a in frames]
    return collate(graphs, len(TINY.elements))


def geometry_of(config: TaceConfig, batch: Batch, positions: torch.Tensor, dtype=torch.float64) -> Geometry:
    vectors = pair_vectors(batch, positions, batch.pair_shift)
    return EdgeBasis(config).to(dtype)(batch, positions, batch.cells, vectors, dtype=dtype)


def basis(collinear: bool, dtype=torch.float64, *, scale: float = 1.5, **changes) -> MagneticBasis:
    config = dataclasses.replace(TINY, **changes)
    return MagneticBasis(config, scale, generator(), collinear=collinear).to(dtype)


def table(config: TaceConfig) -> torch.Tensor:
    return torch.randn(3, config.channels, generator=generator(1), dtype=torch.float64)


def surroundings(config: TaceConfig, batch: Batch, geometry: Geometry) -> list[torch.Tensor]:
    """A of a model without conditions: radial functions times directions times the neighbours' elements."""
    mix = torch.randn(config.n_radial, config.channels, generator=generator(2), dtype=torch.float64)
    radial = pair_to_slot(geometry.radial @ mix, batch.slot_pair, batch.pair_slots)
    sent = sender_to_slot(table(config)[batch.species], batch.slot_sender, batch.slot_reverse)
    shape = (len(batch.species), batch.slots, -1)
    message = (radial * sent).view(shape)
    return [torch.einsum("akm,akc->amc", e.view(shape), message) for e in geometry.angular]


def sum_of_invariants(a: list[torch.Tensor], batch: Batch) -> torch.Tensor:
    """[S]: every rank and pair of ranks is in it."""
    weight = torch.randn(a[0].shape[2], generator=generator(3), dtype=torch.float64)
    atoms = (a[0] + sum(x.square().sum(1, keepdim=True) for x in a)).squeeze(1)
    for l1, l2, l3 in ((1, 1, 2), (1, 2, 3), (1, 1, 0)):
        if l3 < len(a) and l1 < len(a):
            g = torch.from_numpy(coupling(l1, l2, l3).copy())
            atoms = atoms + torch.einsum("xyz,axc,ayc,azc->ac", g, a[l1], a[l2], a[l3])
    return torch.zeros(batch.n_structures, dtype=torch.float64).index_add(0, batch.structure, atoms @ weight)


def in_order(values: np.ndarray | torch.Tensor, batch: Batch) -> torch.Tensor:
    """Values in the order of the input to the order of the batch."""
    result = torch.empty_like(torch.as_tensor(values))
    return result.index_copy(0, batch.original, torch.as_tensor(values))


def magnetic_energy(module: MagneticBasis, frames: list[Atoms], moments: list[np.ndarray], **changes):
    config = dataclasses.replace(TINY, **changes)
    batch = batch_of(*frames)
    geometry = geometry_of(config, batch, batch.positions)
    h = table(config)[batch.species].unsqueeze(1)
    added = module(h, in_order(np.concatenate(moments), batch), batch, geometry)
    a = [x + y for x, y in zip(surroundings(config, batch, geometry), added, strict=True)]
    return sum_of_invariants(a, batch).detach().numpy()


def moments_of(atoms: Atoms, collinear: bool, seed: int = 0) -> np.ndarray:
    shape = (len(atoms),) if collinear else (len(atoms), 3)
    return np.random.default_rng([17, seed]).standard_normal(shape) * 1.5


def added_to(module: MagneticBasis, atoms: Atoms, moments: np.ndarray) -> list[np.ndarray]:
    """What a module adds to A, in the order of the input."""
    batch = batch_of(atoms)
    h = table(TINY)[batch.species].unsqueeze(1)
    config = dataclasses.replace(TINY, l_max=len(module.down) - 1)
    geometry = geometry_of(config, batch, batch.positions)
    added = module(h, in_order(moments, batch), batch, geometry)
    return [x.detach()[batch.original].numpy() for x in added]


# ---- magnetic moments: symmetries ----


@KINDS
@pytest.mark.parametrize("name", ["ethanol", "crystal", "wire"])
def test_energy_does_not_change_when_all_moments_are_reversed(name, collinear, structure):
    module, atoms = basis(collinear), structure(name)
    m = moments_of(atoms, collinear)
    there, back = (magnetic_energy(module, [atoms], [x])[0] for x in (m, -m))
    assert back == pytest.approx(there, rel=1e-12)
    assert abs(there - magnetic_energy(module, [atoms], [0 * m])[0]) > 1e-3


@pytest.mark.parametrize("improper", [False, True], ids=["proper", "improper"])
@pytest.mark.parametrize("name", ["ethanol", "crystal"])
def test_axial_moments_turn_with_the_structure(name, improper, structure, rotation):
    module, atoms, matrix = basis(False), structure(name), rotation(improper)
    m = moments_of(atoms, False)
    turned = atoms.copy()
    turned.set_cell(atoms.cell[:] @ matrix.T)
    turned.positions = atoms.positions @ matrix.T
    axial = np.linalg.det(matrix) * m @ matrix.T
    here = magnetic_energy(module, [atoms], [m])[0]
    assert magnetic_energy(module, [turned], [axial])[0] == pytest.approx(here, rel=1e-12)


@pytest.mark.parametrize("improper", [False, True], ids=["proper", "improper"])
def test_collinear_moments_are_numbers_that_no_rotation_touches(improper, structure, rotation):
    module, atoms = basis(True), structure("ethanol")
    m, turned = moments_of(atoms, True), structure("ethanol")
    turned.positions = atoms.positions @ rotation(improper).T
    here = magnetic_energy(module, [atoms], [m])[0]
    assert magnetic_energy(module, [turned], [m])[0] == pytest.approx(here, rel=1e-12)


def test_contributions_to_a_turn_as_tensors_of_their_rank(structure, rotation):
    module, atoms, matrix = basis(False), structure("ethanol"), rotation(True)
    m = moments_of(atoms, False)
    turned = structure("ethanol")
    turned.positions = atoms.positions @ matrix.T
    here = added_to(module, atoms, m)
    there = added_to(module, turned, -m @ matrix.T)  # determinant −1
    assert_allclose(there[0], here[0], atol=1e-12)
    assert_allclose(there[1], np.einsum("xy,ayc->axc", matrix, here[1]), atol=1e-12)
    assert all(np.abs(x).max() > 1e-2 for x in here)
    assert_allclose(np.linalg.norm(there[3], axis=1), np.linalg.norm(here[3], axis=1), rtol=1e-12)


@KINDS
def test_reversing_one_moment_changes_the_energy(collinear, structure):
    module, atoms = basis(collinear), structure("ethanol")
    m = moments_of(atoms, collinear)
    one = m.copy()
    one[0] *= -1
    there, here = (magnetic_energy(module, [atoms], [x])[0] for x in (one, m))
    assert abs(there - here) > 1e-3


def test_turning_all_moments_against_the_lattice_changes_the_energy(structure, rotation):
    atoms = structure("crystal")
    m, matrix = moments_of(atoms, False), rotation(False)
    there, here = (magnetic_energy(basis(False), [atoms], [x])[0] for x in (m @ matrix.T, m))
    assert abs(there - here) > 1e-3


def test_a_single_moment_feels_the_axes_of_its_site(structure):
    atoms = structure("water")
    energies = []
    for axis in np.eye(3):
        m = np.zeros((3, 3))
        m[0] = 2.0 * axis
        energies.append(magnetic_energy(basis(False), [atoms], [m])[0])
    assert min(np.abs(np.subtract(energies, np.roll(energies, 1)))) > 1e-3


def test_without_edge_directions_only_heisenberg_exchange_is_left(structure, rotation):
    module, atoms = basis(False, l_max=0), structure("ethanol")
    m, matrix = moments_of(atoms, False), rotation(False)
    here, turned = (magnetic_energy(module, [atoms], [x], l_max=0)[0] for x in (m, m @ matrix.T))
    assert turned == pytest.approx(here, rel=1e-12)
    one = m.copy()
    one[0] *= -1
    assert abs(magnetic_energy(module, [atoms], [one], l_max=0)[0] - here) > 1e-3


def test_isotropic_exchange_of_a_dimer_goes_as_the_cosine_of_the_angle():
    module, dimer = basis(False, l_max=0), Atoms("O2", positions=[[0, 0, 0], [1.2, 0.3, 0.4]])

    def scalar(angle: float) -> np.ndarray:
        second = [2 * np.cos(angle), 2 * np.sin(angle), 0.0]
        return added_to(module, dimer, np.array([[2.0, 0.0, 0.0], second]))[0]

    at_right_angle = scalar(np.pi / 2)  # what a moment does on its own site
    parallel = scalar(0.0) - at_right_angle
    assert np.abs(parallel).max() > 1e-2
    assert_allclose(scalar(np.pi / 3) - at_right_angle, 0.5 * parallel, atol=1e-14)


def exchange_tensor(atoms: Atoms, i: int, j: int) -> np.ndarray:
    """∂²E/∂m_i∂m_j [3,3] at zero moments."""
    module, batch = basis(False), batch_of(atoms)
    geometry = geometry_of(TINY, batch, batch.positions)
    h = table(TINY)[batch.species].unsqueeze(1)
    a = surroundings(TINY, batch, geometry)

    def energy(m: torch.Tensor) -> torch.Tensor:
        added = module(h, m.index_select(0, torch.argsort(batch.original)), batch, geometry)
        return sum_of_invariants([x + y for x, y in zip(a, added, strict=True)], batch).sum()

    m = torch.zeros(len(atoms), 3, dtype=torch.float64)
    return torch.autograd.functional.hessian(energy, m)[i, :, j].numpy()


def test_dzyaloshinskii_moriya_exchange_appears_only_where_symmetry_allows_it():
    """Moriya's rules: D is zero across a centre of inversion, normal to a mirror plane through both atoms."""
    bent = Atoms("C2O", positions=[[0, 0, 0], [2.0, 0, 0], [0.8, 0.9, 0]])
    straight = Atoms("C2O", positions=[[0, 0, 0], [2.0, 0, 0], [1.0, 0, 0]])
    exchange = [exchange_tensor(atoms, 0, 1) for atoms in (bent, straight)]
    antisymmetric = [x - x.T for x in exchange]
    assert np.abs(antisymmetric[1]).max() < 1e-12
    assert abs(antisymmetric[0][0, 1]) > 0.05 * np.abs(exchange[0]).max()
    assert np.abs(antisymmetric[0][2]).max() < 1e-12


@pytest.mark.parametrize("l2", range(4))
def test_couplings_of_two_moments_with_an_edge_are_complete_and_independent(l2):
    """As many as ways to couple ranks 1, 1 and l2 to l3 with l2 + l3 even, counted by angular momentum."""
    maps = embeddings._edge_couplings(l2, 5, False, "cartesian")
    for l3 in range(6):
        ways = sum(abs(lm - l2) <= l3 <= lm + l2 for lm in range(3)) * ((l2 + l3) % 2 == 0)
        rows = [g.ravel() for rank, g in maps if rank == l3]
        assert len(rows) == ways
        assert not rows or np.linalg.matrix_rank(np.stack(rows), tol=1e-3) == ways


# ---- magnetic moments: locality, limits, derivatives ----


@KINDS
def test_zero_moments_add_exactly_nothing(collinear, structure):
    atoms = structure("crystal")
    for x in added_to(basis(collinear), atoms, 0 * moments_of(atoms, collinear)):
        assert (x == 0).all()


@KINDS
def test_an_atom_without_neighbours_gets_exactly_nothing(collinear):
    atoms = Atoms("OHO", positions=[[0, 0, 0], [1.0, 0, 0], [1.0 + CUTOFF + 1e-6, 0, 0]])
    for x in added_to(basis(collinear), atoms, moments_of(atoms, collinear)):
        assert (x[2] == 0).all()
        assert (x[:2] != 0).any()


@KINDS
def test_contributions_fade_as_the_cube_of_the_distance_to_the_cutoff(collinear):
    sizes = []
    for gap in (0.02, 0.01):
        dimer = Atoms("HC", positions=[[0, 0, 0], [CUTOFF - gap, 0.0, 0.0]])
        sizes.append(np.abs(added_to(basis(collinear), dimer, moments_of(dimer, collinear))[0]).max())
    assert sizes[0] / sizes[1] == pytest.approx(8.0, rel=0.1)  # 10 % for the next order


def test_presence_is_zero_without_neighbours_and_one_among_many():
    values = presence(torch.tensor([0.0, 1.0, 20.0], dtype=torch.float64))
    assert_allclose(values, [0.0, 1 - np.exp(-4), 1.0], atol=1e-15)


@KINDS
def test_order_of_atoms_and_company_do_not_matter(collinear, structure, rng):
    module, frames = basis(collinear), [structure(n) for n in ("ethanol", "crystal", "slab")]
    moments = [moments_of(a, collinear, seed=n) for n, a in enumerate(frames)]
    alone = [magnetic_energy(module, [a], [m])[0] for a, m in zip(frames, moments, strict=True)]
    assert_allclose(magnetic_energy(module, frames, moments), alone, rtol=1e-12)
    order = rng.permutation(len(frames[0]))
    again = magnetic_energy(module, [frames[0][order]], [moments[0][order]])[0]
    assert again == pytest.approx(alone[0], rel=1e-12)


def test_the_only_moment_adds_its_square_and_its_tensor_by_element(structure):
    """|m|²/√3 to l = 0 and STF(m⊗m) to l = 2, the scaled couplings of spec §1.4; edges need two moments."""
    module, atoms = basis(False, scale=1.0), structure("ethanol")
    batch = batch_of(atoms)
    on = presence(geometry_of(TINY, batch, batch.positions).density)[batch.original].numpy()
    for n in range(len(atoms)):
        m = np.zeros((len(atoms), 3))
        m[n] = [0.5, -1.0, 2.0]
        tensor = np.outer(m[n], m[n]) - np.eye(3) * (m[n] @ m[n]) / 3
        expected = [m[n : n + 1] @ m[n] / np.sqrt(3), None, stf_basis(2).T @ tensor.ravel(), None]
        element = TINY.elements.index(atoms.numbers[n])
        for l, added in enumerate(added_to(module, atoms, m)):  # noqa: E741
            assert (np.delete(added, n, 0) == 0).all()
            if expected[l] is None:
                assert (added == 0).all()
            else:
                weights = module.site[l // 2, element].detach().numpy()
                assert_allclose(added[n], on[n] * np.outer(expected[l], weights), atol=1e-13)


def test_moments_are_measured_in_their_scale(structure):
    atoms = structure("water")
    m = moments_of(atoms, False)
    here, there = added_to(basis(False, scale=1.5), atoms, m), added_to(basis(False, scale=3.0), atoms, 2 * m)
    for x, y in zip(here, there, strict=True):
        assert_allclose(x, y, rtol=1e-14)


def test_sums_over_neighbours_are_divided_by_their_mean_number(structure):
    atoms = structure("ethanol")
    m = moments_of(atoms, False)
    modules = [basis(False, avg_neighbors=n) for n in (2.0, 8.0)]
    modules[1].load_state_dict(modules[0].state_dict())
    few, many = (added_to(module, atoms, m) for module in modules)
    for l in (1, 3):  # the other ranks hold what a moment does on its own site, too  # noqa: E741
        assert_allclose(many[l], few[l] / 4, rtol=1e-12)


@KINDS
def test_energy_with_moments_can_be_differentiated_twice(collinear):
    """With respect to positions, moments and the senders' features, as training on forces needs."""
    small = {"l_max": 2, "channels": 2, "n_radial": 2, "radial_hidden": (3,)}
    config, module = dataclasses.replace(TINY, **small), basis(collinear, **small)
    atoms = Atoms("OHH", positions=[[0, 0, 0], [0.9, 0.2, 0.1], [-0.3, 1.0, 0.2]])
    batch = batch_of(atoms)

    def energy(positions, moments, h):
        geometry = geometry_of(config, batch, positions)
        a = surroundings(config, batch, geometry)
        added = module(h, moments, batch, geometry)
        return sum_of_invariants([x + y for x, y in zip(a, added, strict=True)], batch)

    h = table(config)[batch.species].unsqueeze(1)
    leaves = [batch.positions.clone(), torch.from_numpy(moments_of(atoms, collinear)), h]
    leaves = [x.requires_grad_() for x in leaves]
    assert torch.autograd.gradcheck(energy, leaves)
    assert torch.autograd.gradgradcheck(energy, leaves)


@KINDS
def test_single_precision_agrees_to_rounding(collinear, structure):
    atoms = structure("ethanol")
    batch = batch_of(atoms)
    m = in_order(moments_of(atoms, collinear), batch)
    results = []
    for dtype in (torch.float32, torch.float64):
        geometry = geometry_of(TINY, batch, batch.positions, dtype)
        h = table(TINY)[batch.species].unsqueeze(1).to(dtype)
        results.append(basis(collinear, dtype)(h, m, batch, geometry))
    for single, double in zip(*results, strict=True):
        assert single.dtype == torch.float32
        # 6e-8 per operation, through a chain of some ten sums and products
        assert_allclose(single.detach(), double.detach(), atol=2e-6 * float(double.detach().abs().max()))


# ---- electric field ----


def field_embedding(**changes) -> FieldEmbedding:
    """With weights that are not all alike."""
    module = FieldEmbedding(dataclasses.replace(TINY, **changes), 0.5, generator())
    with torch.no_grad():
        module.element.copy_(torch.tensor([1.0, 1.5, -0.7]))
        module.channel.copy_(torch.linspace(0.5, 2.0, len(module.channel)))
    return module


def test_field_is_added_by_element_and_channel_to_the_atoms_of_its_structure(structure):
    frames = [structure("water"), structure("crystal")]
    batch = batch_of(*frames)
    field = torch.tensor([[0.1, -0.2, 0.3], [1.0, 0.0, -1.0]], dtype=torch.float64)
    module = field_embedding()
    got = module(field, batch).detach().numpy()
    by_element, by_channel = module.element.detach(), module.channel.detach()
    for n in range(len(batch.species)):
        element, owner = float(by_element[batch.species[n]]), int(batch.structure[n])
        expected = np.outer(field[owner], by_channel) * element / 0.5
        assert_allclose(got[n], expected, rtol=1e-14)


def test_field_starts_with_equal_weights_and_reaches_all_channels_alike(structure):
    batch = batch_of(structure("water"))
    field = torch.tensor([[0.1, -0.2, 0.3]], dtype=torch.float64)
    got = FieldEmbedding(TINY, 2.0, generator())(field, batch).detach()
    assert_allclose(got, (field / 2.0)[:, :, None].expand(3, 3, 3), rtol=1e-15)


def test_no_field_adds_exactly_nothing(structure):
    batch = batch_of(structure("water"))
    assert (field_embedding()(torch.zeros(1, 3, dtype=torch.float64), batch) == 0).all()


def enthalpy(module: nn.Module, batch: Batch, positions: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    a = surroundings(TINY, batch, geometry_of(TINY, batch, positions))
    a[1] = a[1] + module(field, batch)
    return sum_of_invariants(a, batch)


@pytest.mark.parametrize("improper", [False, True], ids=["proper", "improper"])
def test_polar_field_turns_with_the_structure(improper, structure, rotation):
    batch, module = batch_of(structure("ethanol")), field_embedding()
    matrix = torch.from_numpy(rotation(improper))
    field = torch.tensor([[0.3, -0.4, 0.5]], dtype=torch.float64)
    here = enthalpy(module, batch, batch.positions, field).item()
    there = enthalpy(module, batch, batch.positions @ matrix.T, field @ matrix.T).item()
    assert there == pytest.approx(here, rel=1e-12)
    assert abs(enthalpy(module, batch, batch.positions, -field).item() - here) > 1e-3  # there is a dipole


def test_enthalpy_can_be_differentiated_twice_with_respect_to_field_and_positions():
    batch = batch_of(Atoms("OH", positions=[[0, 0, 0], [0.9, 0.2, 0.1]]))
    module = field_embedding()
    leaves = [batch.positions.clone(), torch.tensor([[0.3, -0.4, 0.5]], dtype=torch.float64)]
    leaves = [x.requires_grad_() for x in leaves]

    def energy(positions, field):
        return enthalpy(module, batch, positions, field)

    assert torch.autograd.gradcheck(energy, leaves)
    assert torch.autograd.gradgradcheck(energy, leaves)


def test_a_field_needs_features_of_rank_one():
    with pytest.raises(TaceError, match="l_max"):
        field_embedding(l_max=0)


# ---- invariant inputs ----

CHARGE, SPIN = InputConfig("total_charge"), InputConfig("spin_multiplicity", values=(1, 3, 6))
HEAT, PARTIAL = InputConfig("electronic_temperature", scale=0.1), InputConfig("charges", scale=0.5)


def invariants(*inputs: InputConfig, **changes) -> InvariantEmbedding:
    config = dataclasses.replace(TINY, inputs=inputs, **changes)
    return InvariantEmbedding(config, generator()).double()


def embedded(module: InvariantEmbedding, inputs: tuple[InputConfig, ...], *conditions: dict) -> np.ndarray:
    """Rows of single oxygen atoms under conditions."""
    frames = []
    for condition in conditions:
        atoms = Atoms("O")
        for name, value in condition.items():
            place = atoms.arrays if name == "charges" else atoms.info
            place[name] = np.atleast_1d(value) if name == "charges" else value
        frames.append(atoms)
    return module(batch_of(*frames, inputs=inputs)).detach().numpy()


@pytest.mark.parametrize("config", [CHARGE, HEAT, PARTIAL], ids=lambda c: c.name)
def test_a_continuous_input_of_zero_adds_exactly_nothing(config):
    zero, one = embedded(invariants(config), (config,), {config.name: 0.0}, {config.name: 0.1})
    assert (zero == 0).all()
    assert np.abs(one).max() > 1e-3


def test_each_spin_multiplicity_has_its_own_row_of_the_table():
    module = invariants(SPIN)
    rows = embedded(module, (SPIN,), *({"spin_multiplicity": s} for s in (6, 1, 3, 1)))
    expected = (module.embed[0].table @ module.mix[0].weight).detach().numpy()
    assert_allclose(rows, expected[[2, 0, 1, 0]], rtol=1e-14)


def test_continuous_inputs_are_measured_in_their_scale():
    coarse = InputConfig("total_charge", scale=4.0)
    here = embedded(invariants(CHARGE), (CHARGE,), {"total_charge": 0.5})
    assert_allclose(embedded(invariants(coarse), (coarse,), {"total_charge": 2.0}), here, rtol=1e-14)


def test_charges_of_both_signs_and_sizes_are_embedded_independently():
    """With x alone as argument of SiLU, the odd part is linear and the last singular value is zero."""
    module = invariants(CHARGE, channels=32)
    rows = embedded(module, (CHARGE,), *({"total_charge": q} for q in (-2, -1, 1, 2)))
    values = np.linalg.svd(rows, compute_uv=False)
    assert values[3] > 0.01 * values[0]  # a learned map need not grow by more than a hundred


def test_two_electronic_temperatures_are_told_apart():
    module = invariants(HEAT, channels=32)
    rows = embedded(module, (HEAT,), {"electronic_temperature": 0.05}, {"electronic_temperature": 0.2})
    values = np.linalg.svd(rows, compute_uv=False)
    assert values[1] > 0.01 * values[0]  # as above


def test_inputs_of_structures_reach_their_atoms_and_inputs_of_atoms_theirs(structure):
    inputs = (CHARGE, PARTIAL)
    frames = [structure("water"), structure("ethanol")]
    for n, atoms in enumerate(frames):
        atoms.info["total_charge"] = 1.0 - 2 * n
        atoms.arrays["charges"] = np.linspace(-0.5, 0.4, len(atoms))
    module = invariants(*inputs)
    batch = batch_of(*frames, inputs=inputs)
    rows = module(batch).detach().numpy()[batch.original]
    singles = [
        {"total_charge": atoms.info["total_charge"], "charges": q}
        for atoms in frames
        for q in atoms.arrays["charges"]
    ]
    assert_allclose(rows, embedded(module, inputs, *singles), rtol=1e-12)


def test_sum_of_linear_maps_is_the_linear_map_of_the_concatenation():
    inputs = (CHARGE, SPIN)
    module = invariants(*inputs, fidelities=("a", "b"))
    batch = batch_of(Atoms("O", info={"total_charge": -1.0, "spin_multiplicity": 3}), inputs=inputs)
    parts = [embed(batch.inputs[name]) for name, embed in zip(module.names, module.embed, strict=True)]
    weight = torch.cat([mix.weight for mix in module.mix])
    assert_allclose(module(batch).detach(), (torch.cat(parts, 1) @ weight).detach(), rtol=1e-12)
    # the gain of one map from the concatenation of three, of which the model adds the fidelity's
    assert [mix.gain for mix in module.mix] == pytest.approx([1 / np.sqrt(3 * TINY.channels)] * 2)


def test_embedding_can_be_differentiated_twice_with_respect_to_the_charge():
    batch = batch_of(Atoms("O"), Atoms("OH", positions=[[0, 0, 0], [1, 0, 0]]), inputs=(CHARGE,))
    module = invariants(CHARGE)

    def embed(charge):
        return module(dataclasses.replace(batch, inputs={"total_charge": charge}))

    charge = torch.tensor([0.7, -1.2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(embed, charge)
    assert torch.autograd.gradgradcheck(embed, charge)


def test_embedding_has_the_dtype_of_its_weights():
    batch = batch_of(Atoms("O", info={"total_charge": 1.0, "spin_multiplicity": 3}), inputs=(CHARGE, SPIN))
    assert invariants(CHARGE, SPIN).float()(batch).dtype == torch.float32


def test_graphs_made_without_a_condition_are_refused_by_its_name():
    with pytest.raises(DataError, match=r"'total_charge'.*config\.inputs"):
        invariants(CHARGE)(batch_of(Atoms("O")))


# ---- parameters ----


def test_every_parameter_declares_the_gain_it_was_drawn_with():
    changes = {"channels": 64, "n_radial": 8, "radial_hidden": (16,), "inputs": (CHARGE, SPIN, HEAT)}
    wide = dataclasses.replace(TINY, **changes)
    for module in (
        InvariantEmbedding(wide, generator()),
        FieldEmbedding(wide, 1.0, generator()),
        MagneticBasis(wide, 1.0, generator(), collinear=False),
        MagneticBasis(wide, 1.0, generator(), collinear=True),
    ):
        declared = gains(module)
        for name, parameter in module.named_parameters():
            owner = module.get_submodule(name.rpartition(".")[0])
            assert "gain" in vars(owner), f"{name} has the gain 1 by default only"
            # root mean square of at least 128 uniform numbers: 4 standard deviations are 0.16
            size = parameter.detach().square().mean().sqrt()
            assert float(size) == pytest.approx(declared[name], rel=0.16), name


def test_all_parameters_are_used(structure):
    """A parameter without a gradient would be an option that does nothing."""
    atoms = structure("ethanol")
    batch = batch_of(atoms)
    for collinear in (False, True):
        module = basis(collinear)
        geometry = geometry_of(TINY, batch, batch.positions)
        h = table(TINY)[batch.species].unsqueeze(1)
        added = module(h, in_order(moments_of(atoms, collinear), batch), batch, geometry)
        sum(x.square().sum() for x in added).backward()
        assert all((p.grad != 0).any() for p in module.parameters())
