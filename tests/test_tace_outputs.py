"""Results per atom, fidelities, and derivatives of derivatives."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from model_helpers import CUTOFF, NAMES, TINY, batch_of, build, evaluated
from numpy.testing import assert_allclose
from slopes import slope_and_difference

from tace.batch import collate, make_graph
from tace.derivatives import evaluate, make_leaves, strained_geometry, voigt


def test_energies_of_atoms_add_up_and_come_in_the_order_of_the_input(structure):
    model = build()
    frames = [structure(n) for n in NAMES]
    answer = evaluated(model, *frames, responses=("atomic_energies",))
    sizes = [len(a) for a in frames]
    parts = answer.outputs["atomic_energies"].split(sizes)
    # the same numbers in another order
    assert_allclose(torch.stack([part.sum() for part in parts]), answer.energies, rtol=1e-14)
    for atoms, part in zip(frames, parts, strict=True):
        backwards = evaluated(model, atoms[::-1], responses=("atomic_energies",))
        assert_allclose(backwards.outputs["atomic_energies"].flip(0), part, rtol=1e-12)
    assert answer.features.shape == (sum(sizes), TINY.n_layers * TINY.channels)


def test_features_do_not_turn_with_the_structure(structure, rotation):
    model = build()
    for name, improper in itertools.product(NAMES, (False, True)):
        atoms, turned, q = structure(name), structure(name), rotation(improper)
        turned.set_cell(turned.cell[:] @ q.T)
        turned.positions = turned.positions @ q.T
        here, there = evaluated(model, atoms).features, evaluated(model, turned).features
        assert_allclose(there, here, atol=1e-11)  # float64 round-off


def test_switching_the_fidelity_switches_reference_scale_shift_and_embedding(structure):
    model, atoms = build(), structure("ethanol")
    low, high = (evaluated(model, atoms, fidelity=f) for f in (0, 1))
    assert float((low.energies - high.energies).abs()) > 100.0  # E0 differs by thousands of eV
    assert float((low.forces - high.forces).abs().max()) > 1e-3
    assert float((low.features - high.features).abs().max()) > 1e-3


def test_energy_is_reference_plus_scaled_readout_plus_shift(structure):
    model, atoms = build(), structure("ethanol")
    numbers = atoms.get_atomic_numbers().tolist()

    def energy(e0: float, scale: float, shift: float) -> float:
        flat = {name: dict.fromkeys(model.config.elements, e0) for name in model.config.fidelities}
        names = model.config.fidelities
        model.set_reference(flat, dict.fromkeys(names, scale), dict.fromkeys(names, shift))
        return float(evaluated(model, atoms).energies[0])

    readout = energy(0.0, 1.0, 0.0)
    assert energy(-5.0, 1.0, 0.0) == pytest.approx(readout - 5.0 * len(numbers), rel=1e-13)
    assert energy(0.0, 2.5, 0.0) == pytest.approx(2.5 * readout, rel=1e-13)
    full = energy(0.0, 0.0, 1.0)
    # every atom of ethanol has a neighbour nearer than half the cutoff: the shift is all but on
    assert (1 - np.exp(-3.0)) * len(numbers) < full <= len(numbers)
    assert energy(-5.0, 2.5, 0.2) == pytest.approx(
        2.5 * readout - 5.0 * len(numbers) + 0.2 * full, rel=1e-13
    )


def test_a_change_of_one_fidelity_leaves_the_other_alone(structure):
    model, atoms = build(), structure("water")
    before = evaluated(model, atoms, fidelity=0)
    with torch.no_grad():
        model.fidelity_table[1] += 0.5
        model.e0_eV[1] += 1.0
        model.scale_eV[1] *= 2.0
    after = evaluated(model, atoms, fidelity=0)
    assert torch.equal(before.energies, after.energies)
    assert torch.equal(before.forces, after.forces)


def test_fidelities_mix_in_one_batch(structure):
    model, atoms = build(), structure("water")
    graphs = [make_graph(atoms, TINY.elements, cutoff=CUTOFF, fidelity=f) for f in (1, 0, 1)]
    mixed = evaluate(model, collate(graphs, 3)).energies
    alone = [float(evaluated(model, atoms, fidelity=f).energies[0]) for f in (1, 0, 1)]
    assert_allclose(mixed, alone, rtol=1e-14)  # other summation orders only


@pytest.mark.parametrize("stress", [False, True])
def test_gradient_of_a_force_and_stress_loss_is_its_slope(stress, structure):
    model = build(l_max=3, L_max=2)
    batch = batch_of(model, *(structure(n) for n in NAMES if n != "ethanol"))

    def loss() -> torch.Tensor:
        r = evaluate(model, batch, stress=stress, create_graph=True)
        total = (r.forces**2).sum() + (r.energies / batch.n_atoms).square().sum() * 1e-6
        return total + (r.stresses[batch.periodic] ** 2).sum() if stress else total

    slope, difference = slope_and_difference(loss, model.parameters())
    # O(h²) of the difference and 1e-16/h of round-off, relative to losses of order one
    assert slope == pytest.approx(difference, rel=2e-5)


def test_no_graph_is_kept_unless_asked_for(structure):
    model = build()
    result = evaluated(model, structure("crystal"))
    tensors = [t for t in result if isinstance(t, torch.Tensor)]
    assert not any(t.requires_grad for t in (*tensors, *result.outputs.values()))
    energies = evaluate(model, batch_of(model, structure("water")), forces=False)
    assert energies.forces is None
    assert energies.stresses is None


def test_geometry_can_be_shared_by_several_models(structure):
    first, second = build(), build()
    with torch.no_grad():
        second.embedding *= 1.5
    batch = batch_of(first, structure("crystal"))
    shared, _ = strained_geometry(first, batch, make_leaves(batch, stress=False))
    for model in (first, second):
        assert_allclose(
            model(batch, shared).energies.detach(), evaluate(model, batch).energies, rtol=1e-14
        )


def test_voigt_order_is_xx_yy_zz_yz_xz_xy():
    m = torch.tensor([[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]])
    assert voigt(m).tolist() == [1, 2, 3, 4, 5, 6]


def test_compression_has_negative_stress_as_in_ase(structure):
    """ASE's sign: stress = +dE/dε/V; a crystal that wants to expand has a negative trace."""
    atoms, model = structure("carbon"), build()
    stress = evaluated(model, atoms).stresses[0]
    larger = atoms.copy()
    larger.set_cell(atoms.cell[:] * 1.0001, scale_atoms=True)
    rises = float(evaluated(model, larger).energies[0] - evaluated(model, atoms).energies[0]) > 0
    assert (float(stress.trace()) > 0) == rises
