"""Lower weights of A: what the option adds, and that it reduces to the highest weights without them."""

# ruff: noqa: E741  (l is the rank of a tensor)
from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from layer_variants import batch_of, features, geometry_of, model_of, rms, rotations, turned
from numpy.testing import assert_allclose
from path_helpers import columns, misfit

from tace.derivatives import evaluate
from tace.ict import allowed, coupling, stf_basis
from tace.paths import (
    InteractionPath,
    Levels,
    components,
    contraction,
    count_by_rank,
    parts,
    product_coupling,
    product_paths,
)
from tace.product import ProductBasis

TRIADS = [p for p in itertools.product(range(4), repeat=3) if allowed(*p)]
LEVI_CIVITA = np.zeros((3, 3, 3))
for _p in itertools.permutations(range(3)):
    LEVI_CIVITA[_p] = np.linalg.det(np.eye(3)[list(_p)])


def lower_weights_off(model) -> None:
    """Zero radial weights of all parts but the highest."""
    for layer in model.layers:
        interaction, c = layer.interaction, model.config.channels
        last = interaction.radial.layers[-1].weight.data
        for n, (rank, path, _) in enumerate(interaction.parts):
            if path[-1] < rank:
                last[:, n * c : (n + 1) * c] = 0


# ---- parts and contractions ----


@pytest.mark.parametrize("triad", TRIADS)
def test_contractions_of_symmetric_traceless_tensors_are_the_couplings(triad):
    path = InteractionPath(*triad)
    have = contraction(path, *(stf_basis(l) for l in triad[:2]), onto=stf_basis(triad[2]))
    assert np.array_equal(have, coupling(*triad))


def test_features_reach_all_parts_but_the_pseudo_scalar():
    """1, 1, 3 and 7 irreducible parts; a polar feature and a polar edge make no pseudo-scalar."""
    for l_in in (1, 2, 3):
        assert [len(parts(rank, l_in, 3)) for rank in range(4)] == [1, 1, 3, 6]
        assert (0, 1, 1, 0) not in {path for path, _ in parts(3, l_in, 3)}


def test_scalars_reach_only_the_highest_weights():
    for rank in range(4):
        [(path, basis)] = parts(rank, 0, 3)
        assert path == tuple(range(rank + 1))
        assert np.array_equal(basis, stf_basis(rank))


def test_components_are_orthonormal_with_the_highest_weight_first():
    for rank, n in enumerate((1, 3, 9, 26)):
        u = components(rank, 1, 3)
        assert u.shape == (3**rank, n)
        assert_allclose(u.T @ u, np.eye(n), atol=1e-13)  # round-off
        assert np.array_equal(u[:, : 2 * rank + 1], stf_basis(rank))


# ---- the product basis ----


def values(levels: Levels, a: list[np.ndarray], l_in: int) -> list[list[np.ndarray]]:
    """[samples, 2l+1] of every path of every order."""
    out = [list(a)]
    for order, level in enumerate(levels[1:], start=2):
        out.append(
            [
                np.einsum(
                    "sa,sb,abm->sm",
                    out[-1][p.parent],
                    a[p.l2],
                    product_coupling(InteractionPath(*p[1:]), l_in, len(a) - 1, first=order == 2),
                )
                for p in level
            ]
        )
    return out


def whole_tensors(l_in: int, l_max: int, rng: np.random.Generator) -> list[np.ndarray]:
    return [
        rng.standard_normal((60, components(l, l_in, l_max).shape[1])) for l in range(l_max + 1)
    ]


@pytest.mark.parametrize(("l_max", "order"), [(2, 2), (2, 3), (3, 2), (3, 3)])
def test_minimal_products_of_whole_tensors_span_the_official_ones_and_no_less(l_max, order, rng):
    outputs = tuple(range(l_max + 1))
    a = whole_tensors(1, l_max, rng)
    official, minimal = (
        product_paths(l_max, order, outputs, kind, l_in=1) for kind in ("official", "minimal")
    )
    of, mi = values(official, a, 1)[-1], values(minimal, a, 1)[-1]
    for l in outputs:
        want, have = columns(of, official[-1], l), columns(mi, minimal[-1], l)
        assert misfit(want, have) < 1e-12  # round-off of a least-squares fit of well-conditioned columns
        scaled = have / np.linalg.norm(have, axis=0)
        assert np.linalg.matrix_rank(scaled, tol=1e-8) == have.shape[1]


def test_whole_tensors_have_more_independent_products():
    """Lower parts can be told apart: 17 scalars of third order where symmetric traceless tensors have 8."""
    outputs = (0, 1, 2, 3)
    for order, many, few in ((2, [4, 5, 6, 4], [4, 3, 5, 3]), (3, [17, 27, 30, 25], [8, 12, 14, 15])):
        whole, traceless = (product_paths(3, order, outputs, "minimal", l_in=l) for l in (1, 0))
        assert count_by_rank(whole[-1], 3) == many
        assert count_by_rank(traceless[-1], 3) == few


@pytest.mark.parametrize(("kind", "order"), [("minimal", 2), ("minimal", 3), ("official", 3), ("minimal", 4)])
def test_the_product_basis_evaluates_its_paths_one_by_one(kind, order, rng):
    l_max, outputs = 3 if order < 4 else 2, (0, 1, 2)
    levels = product_paths(l_max, order, outputs, kind, l_in=1)
    basis = ProductBasis(levels, l_max, outputs, "cartesian", l_in=1).double()
    a = whole_tensors(1, l_max, rng)
    got = basis([torch.from_numpy(x).unsqueeze(2) for x in a])
    each = values(levels, a, 1)
    for l in outputs:
        want = [a[l][:, : 2 * l + 1]]
        scale = [1.0]
        for at in range(1, order):
            for place, p in enumerate(levels[at]):
                if p.l3 == l:
                    want.append(each[at][place])
                    scale.append(_scale(levels, at, place))
        want_scaled = np.stack(want, 2) * np.array(scale)
        assert_allclose(got[l], want_scaled, atol=1e-11 * (1 + np.abs(want_scaled).max()))  # round-off


def _scale(levels: Levels, at: int, place: int) -> float:
    """Product of the 3^{−k/2} along the parents of a path."""
    factor = 1.0
    while at > 0:
        p = levels[at][place]
        factor *= 3.0 ** (-((p.l1 + p.l2 - p.l3) // 2) / 2)
        at, place = at - 1, p.parent
    return factor


def test_products_without_lower_parts_are_those_of_the_highest_weights(rng):
    levels = product_paths(3, 3, (0, 1, 2), "minimal", l_in=2)
    whole = ProductBasis(levels, 3, (0, 1, 2), "unit", l_in=2).double()
    highest = ProductBasis(levels, 3, (0, 1, 2), "unit").double()
    a = features(range(4), 5, rng)
    padded = [
        torch.cat([x, torch.zeros(5, components(l, 2, 3).shape[1] - x.shape[1], 3, dtype=x.dtype)], 1)
        for l, x in enumerate(a)
    ]
    for want, have in zip(highest(a), whole(padded), strict=True):
        assert_allclose(have, want, rtol=0, atol=1e-12 * (1 + rms(want)))  # round-off


# ---- the interaction ----


def test_without_lower_radial_weights_it_is_the_interaction_of_highest_weights(structure, rng):
    """A radial weight that channels share may act before the channel map or after it."""
    settings = {"l_max": 3, "L_max": 2}
    highest, whole = (model_of(**settings, weights=w).layers[1].interaction for w in ("max", "all"))
    model = model_of(**settings)
    c = model.config.channels
    whole.load_state_dict(
        {k: v for k, v in highest.state_dict().items() if "radial.layers.2" not in k}, strict=False
    )
    per_rank = torch.from_numpy(rng.standard_normal((8, 4)))
    whole.radial.layers[-1].weight.data.zero_()
    for n, (rank, path, _) in enumerate(whole.parts):
        if path[-1] == rank:
            whole.radial.layers[-1].weight.data[:, n * c : (n + 1) * c] = per_rank[:, rank : rank + 1]
    for n, p in enumerate(highest.paths):
        highest.radial.layers[-1].weight.data[:, n * c : (n + 1) * c] = per_rank[:, p.l3 : p.l3 + 1]
    batch = batch_of(model, structure("crystal"))
    geometry, h = geometry_of(model, batch), features((0, 1, 2), 4, rng)
    for l, (want, have) in enumerate(
        zip(highest(h, batch, geometry), whole(h, batch, geometry), strict=True)
    ):
        assert rms(want) > 1e-3
        assert_allclose(have[:, : 2 * l + 1].detach(), want.detach(), rtol=0, atol=1e-12)  # round-off
        assert (have[:, 2 * l + 1 :] == 0).all()


def test_a_message_of_rank_two_holds_an_axial_vector(structure, rotation, rng):
    """ε_ijk A_jk is not zero, turns like a vector, and keeps its sign under inversion."""
    model, atoms = model_of(weights="all"), structure("water")
    interaction = model.layers[1].interaction
    u = torch.from_numpy(components(2, 1, 2).reshape(3, 3, 9))
    epsilon = torch.from_numpy(LEVI_CIVITA)

    def axial(h: list[torch.Tensor], atoms) -> torch.Tensor:
        batch = batch_of(model, atoms)
        a = interaction(h, batch, geometry_of(model, batch))[2].detach()
        return torch.einsum("ijk,jkn,anc->aic", epsilon, u, a)

    h = features((0, 1), 3, rng)
    here = axial(h, atoms)
    assert rms(here) > 1e-2
    for matrix in rotations(rotation):
        other = atoms.copy()
        other.positions = atoms.positions @ matrix.T
        there = axial(turned(h, matrix), other)
        want = np.linalg.det(matrix) * torch.einsum("ij,ajc->aic", torch.from_numpy(matrix), here)
        assert_allclose(there, want, rtol=0, atol=1e-13 * 100)  # round-off of sums of some hundred terms


@pytest.mark.parametrize("settings", [{}, {"l_max": 3, "L_max": 2}])
def test_lower_weights_change_features_and_energies(settings, structure, rng):
    model = model_of(weights="all", **settings)
    batch = batch_of(model, structure("ethanol"))
    geometry, layer = geometry_of(model, batch), model.layers[1]
    h = features(range(model.config.L_max + 1), 9, rng)
    energy, [scalars] = evaluate(model, batch).energies, layer(h, batch, geometry)
    lower_weights_off(model)
    [without] = layer(h, batch, geometry)
    assert rms(scalars - without) > 0.01 * rms(scalars)
    # a random model has small features, of which the products are smaller; yet far above round-off
    assert (evaluate(model, batch).energies - energy).abs().max() > 1e-7


def test_the_first_layer_has_the_products_of_highest_weights():
    """Its features are scalars, whose messages are symmetric and traceless: nothing is kept for zeros."""
    whole, highest = (model_of(weights=w).layers[0] for w in ("all", "max"))
    assert whole.product.levels == highest.product.levels
    assert [len(path) - 1 for _, path, _ in whole.interaction.parts] == [0, 1, 2]


@pytest.mark.parametrize("settings", [{}, {"l_max": 3, "L_max": 2}])
def test_the_radial_weights_of_every_part_have_a_say(settings, structure):
    model = model_of(weights="all", **settings)
    batch = batch_of(model, structure("ethanol"), structure("crystal"))
    model(batch, geometry_of(model, batch)).energies.square().sum().backward()
    for layer in model.layers:
        slope = layer.interaction.radial.layers[-1].weight.grad
        by_part = slope.reshape(slope.shape[0], -1, model.config.channels).abs().amax((0, 2))
        assert by_part.shape == (len(layer.interaction.parts),)
        assert (by_part > 1e-12 * by_part.max()).all()


def test_models_of_lower_weights_are_saved_and_read(structure, tmp_path):
    from tace.io import load_model, save_model

    model = model_of(weights="all", gate="norm")
    save_model(tmp_path / "model.pt", model)
    batch = batch_of(model, structure("water"))
    assert torch.equal(
        evaluate(model, batch).energies, evaluate(load_model(tmp_path / "model.pt"), batch).energies
    )
