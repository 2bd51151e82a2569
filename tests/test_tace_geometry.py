"""Neighbour lists against brute force, the layout of a batch and its gathers, radial functions."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from ase import Atoms
from cartesian_twin import directed_edges
from numpy.testing import assert_allclose

from tace.batch import collate, make_graph, species_index
from tace.errors import DataError, UnknownElementError
from tace.layers import concatenate, pair_to_slot, sender_to_slot
from tace.neighbors import find_pairs
from tace.radial import bessel, envelope

ELEMENTS = (1, 6, 8)
PERIODIC = ("crystal", "slab", "wire")


def pairs_of(atoms: Atoms, cutoff: float):
    return find_pairs(atoms.positions, np.array(atoms.cell), atoms.pbc, cutoff=cutoff)


def both_directions(atoms: Atoms, cutoff: float) -> list[tuple[int, ...]]:
    """(i, j, S) of every directed edge: the pairs and their reverses."""
    pairs = pairs_of(atoms, cutoff)
    forth = np.column_stack([pairs.i, pairs.j, pairs.shift])
    back = np.column_stack([pairs.j, pairs.i, -pairs.shift])
    return sorted(map(tuple, np.concatenate([forth, back]).tolist()))


def brute_force(atoms: Atoms, cutoff: float) -> list[tuple[int, ...]]:
    return sorted(map(tuple, np.column_stack(directed_edges(atoms, cutoff)).tolist()))


@pytest.mark.parametrize("cutoff", [1.5, 3.0, 6.5])
@pytest.mark.parametrize("name", ["water", "ethanol", "atom", "carbon", *PERIODIC])
def test_pairs_are_every_bond_once(name, cutoff, structure):
    atoms = structure(name)
    edges = both_directions(atoms, cutoff)
    assert len(set(edges)) == len(edges)
    assert edges == brute_force(atoms, cutoff)


@pytest.mark.parametrize("name", ["water", *PERIODIC])
def test_pairs_are_found_for_atoms_far_outside_the_cell(name, structure, rng):
    atoms = structure(name)
    atoms.positions += 40.0 * rng.standard_normal(3)
    atoms.positions += (rng.integers(-4, 5, (len(atoms), 3)) * atoms.pbc) @ atoms.cell[:]
    assert both_directions(atoms, 4.0) == brute_force(atoms, 4.0)


@pytest.mark.parametrize(
    "choice", [[[1, 0, 0], [3, 1, 0], [-2, 4, 1]], [[0, 1, 0], [1, 0, 0], [0, 0, 1]], -np.eye(3)]
)
def test_pairs_are_found_in_skewed_and_left_handed_cells(choice, structure):
    atoms = structure("crystal")
    atoms.set_cell(np.array(choice) @ atoms.cell[:])
    assert both_directions(atoms, 4.5) == brute_force(atoms, 4.5)


@pytest.mark.parametrize("direction", np.eye(3))
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_wire_may_run_along_any_direction_as_any_lattice_vector(axis, direction, structure):
    atoms = structure("wire")
    cell = np.zeros((3, 3))
    cell[axis] = 3.3 * direction
    atoms = Atoms(atoms.numbers, positions=atoms.positions, cell=cell, pbc=np.eye(3)[axis])
    assert both_directions(atoms, 4.0) == brute_force(atoms, 4.0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_what_stands_in_the_lattice_vector_of_an_open_axis_does_not_matter(axis, structure):
    atoms = structure("crystal")
    atoms.pbc[axis] = False
    expected = brute_force(atoms, 4.0)
    assert both_directions(atoms, 4.0) == expected
    for vector in ([0.0, 0.0, 0.0], [0.1, 0.0, 0.2], atoms.cell[(axis + 1) % 3]):
        atoms.cell[axis] = vector
        assert both_directions(atoms, 4.0) == expected


def test_lattice_vectors_of_two_open_axes_may_lie_along_the_wire(structure):
    atoms = structure("wire")
    atoms.set_cell([atoms.cell[0], 2 * atoms.cell[0], -atoms.cell[0]])
    assert both_directions(atoms, 4.0) == brute_force(atoms, 4.0)


@pytest.mark.parametrize("seed", range(8))
def test_pairs_are_every_bond_once_in_random_cells(seed):
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(2.0, 7.0, 3)) + rng.uniform(-1.2, 1.2, (3, 3))
    n = int(rng.integers(1, 7))
    positions = rng.uniform(-3.0, 9.0, (n, 3))
    atoms = Atoms(["C"] * n, positions=positions, cell=cell, pbc=rng.random(3) < 0.7)
    assert both_directions(atoms, 4.0) == brute_force(atoms, 4.0)


def test_large_molecules_have_the_pairs_of_the_small_recipe(rng):
    positions = (
        rng.uniform(0.0, 22.0, (450, 3)) - 300.0
    )  # above the switch to cell lists at 400 atoms
    atoms = Atoms(["C"] * 450, positions=positions)
    assert both_directions(atoms, 3.0) == brute_force(atoms, 3.0)


def test_two_atoms_in_line_are_a_pair_below_the_cutoff_only():
    for distance, count in ((3.999, 1), (4.001, 0)):
        atoms = Atoms("CO", positions=[[0, 0, 0], [distance, 0, 0]])
        assert len(pairs_of(atoms, 4.0).i) == count


def test_impossible_structures_are_refused_by_name():
    flat = Atoms(
        "C2", positions=[[0, 0, 0], [1, 1, 0]], cell=[[3, 0, 0], [6, 0, 0], [0, 0, 3]], pbc=True
    )
    with pytest.raises(DataError, match=r"C2.*independent lattice vectors"):
        make_graph(flat, ELEMENTS, cutoff=3.0)
    nothing = Atoms("C2", positions=[[0, 0, 0], [1, 1, 0]], pbc=[True, False, False])
    with pytest.raises(DataError, match=r"C2.*independent lattice vectors"):
        make_graph(nothing, ELEMENTS, cutoff=3.0)
    with pytest.raises(DataError, match="without atoms"):
        make_graph(Atoms(), ELEMENTS, cutoff=3.0)
    with pytest.raises(DataError, match="not finite"):
        make_graph(Atoms("C", positions=[[math.nan, 0, 0]]), ELEMENTS, cutoff=3.0)
    with pytest.raises(UnknownElementError, match="does not know Au, N; it was built for H, C, O"):
        make_graph(Atoms("AuCN", positions=np.eye(3)), ELEMENTS, cutoff=3.0)


def test_species_count_from_zero_in_the_order_of_the_elements():
    assert species_index(np.array([8, 1, 6, 1]), ELEMENTS).tolist() == [2, 0, 1, 0]


@pytest.fixture
def mixed(structure):
    """Molecule, crystal with self-images, free atom, slab and wire in one batch."""
    names = ("water", "crystal", "atom", "slab", "wire")
    frames = [structure(n) for n in names]
    graphs = [make_graph(a, ELEMENTS, cutoff=4.0, fidelity=n) for n, a in enumerate(frames)]
    return frames, graphs, collate(graphs, len(ELEMENTS))


def test_a_batch_is_sorted_by_element_and_remembers_the_input_order(mixed):
    frames, graphs, batch = mixed
    assert (batch.species.diff() >= 0).all()
    assert batch.species.bincount(minlength=3).tolist() == list(batch.species_counts)
    positions = batch.positions[batch.original]
    assert_allclose(positions, np.concatenate([a.positions for a in frames]))
    assert (
        batch.species[batch.original].tolist()
        == np.concatenate([g.species for g in graphs]).tolist()
    )
    owner = np.repeat(np.arange(len(frames)), [len(a) for a in frames])
    assert batch.structure[batch.original].tolist() == owner.tolist()
    assert batch.n_atoms.tolist() == [len(a) for a in frames]
    assert batch.fidelity.tolist() == [0, 1, 2, 3, 4]
    assert batch.periodic.tolist() == [False, True, False, False, False]


def test_every_directed_edge_has_one_slot_at_its_receiver(mixed):
    _, graphs, batch = mixed
    real = (batch.slot_pair < len(batch.pair_i)).numpy()
    receiver = np.repeat(np.arange(len(batch.species)), batch.slots)
    pair, sign = batch.slot_pair.numpy()[real], batch.slot_sign.numpy()
    i, j = batch.pair_i.numpy()[pair], batch.pair_j.numpy()[pair]
    forth = sign[real] > 0
    assert real.sum() == 2 * sum(len(g.pairs.i) for g in graphs)
    assert (receiver[real] == np.where(forth, i, j)).all()
    assert (batch.slot_sender.numpy()[real] == np.where(forth, j, i)).all()
    assert (sign[~real] == 0).all()
    assert batch.padding == pytest.approx(len(real) / real.sum())


def test_the_reverse_of_a_slot_is_the_opposite_edge_of_the_same_pair(mixed):
    batch = mixed[2]
    reverse = batch.slot_reverse
    assert (reverse[reverse] == torch.arange(len(reverse))).all()
    assert (batch.slot_pair[reverse] == batch.slot_pair).all()
    assert (batch.slot_sign[reverse] == -batch.slot_sign).all()
    receiver = torch.arange(len(batch.species)).repeat_interleave(batch.slots)
    assert (receiver[reverse] == batch.slot_sender).all()
    pairs = len(batch.pair_i)
    assert (batch.slot_pair[batch.pair_slots[:, :pairs]] == torch.arange(pairs)).all()
    assert (batch.slot_sign[batch.pair_slots[0, :pairs]] == 1).all()


@pytest.mark.parametrize("names", [("atom",), ("atom", "atom"), ("water",), ("carbon", "atom")])
def test_batches_without_edges_or_of_one_element_are_laid_out(names, structure):
    graphs = [make_graph(structure(n), ELEMENTS, cutoff=4.0) for n in names]
    batch = collate(graphs, len(ELEMENTS))
    assert batch.slots >= 1
    assert len(batch.slot_pair) == batch.slots * len(batch.species)


def test_moving_a_batch_to_a_device_keeps_every_field(mixed):
    batch = mixed[2]
    moved = batch.to("cpu")
    for field in dataclasses.fields(batch):
        a, b = getattr(batch, field.name), getattr(moved, field.name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_gathers_have_exact_first_and_second_derivatives(mixed):
    batch = mixed[2]
    atoms, pairs = len(batch.species), len(batch.pair_i)
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(atoms * batch.slots, 1, generator=generator, dtype=torch.float64)
    weight = (
        weight * batch.slot_sign.abs()[:, None]
    )  # as angular attributes are: zero in padding slots

    def to_slots(x):  # the dummy's row is a constant zero in the model
        padded = torch.cat([x, x.new_zeros(1, 1)])
        return weight * pair_to_slot(padded, batch.slot_pair, batch.pair_slots) ** 2

    def from_senders(x):
        return weight * sender_to_slot(x, batch.slot_sender, batch.slot_reverse) ** 2

    def joined(x, y):
        return concatenate([x**2, x * y, y], 0)

    def leaf(n):
        return torch.rand(n, 1, generator=generator, dtype=torch.float64, requires_grad=True)

    for function, leaves in ((to_slots, [leaf(pairs)]), (from_senders, [leaf(atoms)])):
        assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(joined, [leaf(3), leaf(3)])


@pytest.mark.parametrize(
    ("r", "golden"),
    [(2.0, [0.27180144, 0.16798253, -0.16798253]), (4.5, [0.00111581, -0.00212239, 0.00292122])],
)
def test_radial_functions_have_the_golden_values(r, golden):
    x = torch.tensor([[r]], dtype=torch.float64)
    value = bessel(x, 5.0, 3) * envelope(x, 5.0, 5)
    assert_allclose(value[0], golden, atol=5e-9)  # printed to eight decimals


def test_envelope_has_the_golden_value_and_ends():
    u = torch.tensor([0.0, 0.4, 1.0, 1.7, 30.0], dtype=torch.float64)
    f = envelope(5.0 * u, 5.0, 5)
    assert f[0] == 1.0
    assert_allclose(f[1], 0.903744, atol=1e-12)
    assert (f[2:] == 0.0).all()  # exactly: padding slots rely on it
    assert (envelope(5.0 * u.float(), 5.0, 5)[2:] == 0.0).all()


@pytest.mark.parametrize("p", [3, 5, 6, 8])
def test_envelope_falls_and_meets_the_cutoff_with_two_vanishing_derivatives(p):
    r = torch.linspace(0.01, 5.0, 400, dtype=torch.float64, requires_grad=True)
    f = envelope(r, 5.0, p)
    first = torch.autograd.grad(f.sum(), r, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), r)[0]
    assert (first.detach()[:-1] < 0).all()
    assert abs(float(first[-1].detach())) < 1e-11  # cancellation of terms of size p²
    assert abs(float(second[-1])) < 1e-10
    outside = torch.tensor([5.0001], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(envelope(outside, 5.0, p).sum(), outside)[0] == 0.0


def test_bessel_functions_are_orthonormal_with_weight_r_squared():
    nodes, weights = np.polynomial.legendre.leggauss(80)
    r, w = 2.5 * (nodes + 1.0), 2.5 * weights
    value = bessel(torch.from_numpy(r)[:, None], 5.0, 8).numpy()
    gram = np.einsum("r,rn,rm->nm", w * r**2, value, value)
    assert_allclose(gram, np.eye(8), atol=1e-12)  # Gauss–Legendre is exact to round-off here
