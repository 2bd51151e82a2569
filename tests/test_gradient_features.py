"""Gradients with respect to the readout: exact where they are kept whole, right on average where not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

from tace.batch import collate, make_graph
from tace.config import TaceConfig
from tace.gradient_features import PROJECTED, batch_gradients, gradient_features
from tace.model import Tace


def model_of(elements, *, fidelities=("only",), readout="shared", seed=1):
    config = TaceConfig(
        elements=elements, fidelities=fidelities, channels=4, l_max=1, L_max=1, cutoff_A=4.0, readout=readout
    )
    model = Tace(config, seed=seed, dtype=torch.float64)
    with torch.no_grad():
        model.scale_eV.copy_(torch.linspace(0.5, 2.0, model.scale_eV.numel()).view_as(model.scale_eV))
    return model


@pytest.fixture
def water():
    return molecule("H2O")


def gradients_by_autograd(model, atoms, level):
    """∂E/∂w of every weight of the readout, by name, per atom."""
    config = model.config
    graph = make_graph(atoms, config.elements, cutoff=config.cutoff_A, fidelity=level)
    batch = collate([graph], len(config.elements))
    geometry = model.geometry(batch, batch.positions, batch.pair_shift, cells=batch.cells)
    energy = model(batch, geometry).energies.sum()
    names = dict(model.energy_readout.named_parameters())
    found = torch.autograd.grad(energy, list(names.values()), allow_unused=True)
    return {n: g / len(atoms) for n, g in zip(names, found, strict=True) if g is not None}


@pytest.mark.parametrize("readout", ["shared", "per_fidelity"])
def test_linear_and_output_weights_have_their_exact_gradients(water, readout):
    model = model_of((1, 8), fidelities=("low", "high"), readout=readout)
    config = model.config
    exact = gradients_by_autograd(model, water, level=1)
    features = gradient_features(model, [water], fidelity="high")[0]
    column = 1 if readout == "per_fidelity" else 0
    linear = torch.cat([exact[f"linear.{t}.weight"][:, column] for t in range(config.n_layers)])
    np.testing.assert_allclose(features[: len(linear)], linear, rtol=1e-10, atol=1e-14)
    output = exact[f"hidden_out.{column}.weight"].reshape(-1)
    rest = features[len(linear) : len(linear) + len(output)]
    np.testing.assert_allclose(rest, output, rtol=1e-10, atol=1e-14)


def test_projected_gradients_of_the_hidden_weights_have_the_right_inner_products(water):
    model = model_of((1, 8))
    far = water.copy()
    far.set_distance(0, 1, 1.5, fix=0)
    many = 200_000  # the error of an inner product falls as 1/√m: 0.7 % of the norms here, with 1 % allowed
    config = model.config
    graphs = [make_graph(a, config.elements, cutoff=config.cutoff_A, fidelity=0) for a in (water, far)]
    rows = batch_gradients(model, collate(graphs, 2), projected=many)[:, -many:]
    exact = torch.stack(
        [gradients_by_autograd(model, a, level=0)["hidden.weight"].reshape(-1) for a in (water, far)]
    )
    norms = exact.norm(dim=1)
    error = (rows @ rows.T - exact @ exact.T) / (norms[:, None] * norms)
    assert error.abs().max() < 0.03


def test_features_do_not_see_the_order_of_atoms_or_a_rotation_or_the_supercell(water):
    model = model_of((1, 8))
    turned = water.copy()
    turned.rotate(50, (1, 1, 0))
    turned = turned[[1, 2, 0]]
    one, other = gradient_features(model, [water, turned])
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
    copper = model_of((29,))
    cell = bulk("Cu", cubic=True)
    small, large = gradient_features(copper, [cell, cell.repeat(2)])
    np.testing.assert_allclose(small, large, rtol=1e-9, atol=1e-12)


def test_a_structure_has_the_same_features_alone_and_among_others(water):
    model = model_of((1, 8))
    peroxide = molecule("H2O2")
    together = gradient_features(model, [water, peroxide])
    alone = np.concatenate([gradient_features(model, [a]) for a in (water, peroxide)])
    np.testing.assert_allclose(together, alone, rtol=1e-9, atol=1e-12)
    config = model.config
    assert together.shape == (2, config.n_layers * config.channels + config.readout_hidden + PROJECTED)
    assert gradient_features(model, []).shape == (0, together.shape[1])
