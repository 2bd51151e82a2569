"""Which couplings are evaluated: counts against character theory, span against the full set."""

# ruff: noqa: E741  (l is the rank of a tensor)
from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from path_helpers import columns, misfit

from tace.ict import allowed, coupling
from tace.paths import Levels, count_by_rank, interaction_paths, product_paths
from tace.product import ProductBasis


def independent_covariants(l_max: int, order: int) -> list[int]:
    """Multiplicity of each natural-parity rank ≤ l_max in Sym^ν(0 ⊕ 1 ⊕ … ⊕ l_max).

    Monomials of degree ν in the components of A are graded by the sum of their magnetic numbers and
    by parity; there are as many irreps of rank l as monomials at m = l less those at m = l + 1.
    """
    components = [(m, l % 2) for l in range(l_max + 1) for m in range(-l, l + 1)]
    table = {(0, 0, 0): 1}  # (degree, m, parity) -> number of monomials
    for m, parity in components:
        grown: dict[tuple[int, int, int], int] = {}
        for (degree, total, sign), count in table.items():
            for power in range(order - degree + 1):
                key = (degree + power, total + power * m, (sign + power * parity) % 2)
                grown[key] = grown.get(key, 0) + count
        table = grown
    return [
        table.get((order, l, l % 2), 0) - table.get((order, l + 1, l % 2), 0)
        for l in range(l_max + 1)
    ]


def values(levels: Levels, a: list[np.ndarray]) -> list[list[np.ndarray]]:
    """[samples, 2l+1] of every path of every order."""
    out = [list(a)]
    for level in levels[1:]:
        out.append(
            [
                np.einsum("sa,sb,abm->sm", out[-1][p.parent], a[p.l2], coupling(p.l1, p.l2, p.l3))
                for p in level
            ]
        )
    return out


@pytest.mark.parametrize(("l_in", "counts"), [(0, [1, 1, 1, 1]), (2, [3, 5, 5, 4])])
def test_interaction_has_the_counted_paths(l_in, counts):
    paths = interaction_paths(l_in, 3)
    assert [sum(p.l3 == l for p in paths) for l in range(4)] == counts
    assert all(allowed(*p) for p in paths)
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize(
    ("l_max", "order", "kind", "counts"),
    [
        (3, 2, "official", [4, 6, 7, 6]),
        (3, 2, "minimal", [4, 3, 5, 3]),
        (3, 3, "official", [23, 36, 42, 36]),
        (3, 3, "minimal", [8, 12, 14, 15]),
        (2, 2, "minimal", [3, 2, 3]),
        (2, 3, "minimal", [5, 5, 6]),
        (2, 4, "minimal", [9, 9, 13]),
    ],
)
def test_numbers_of_paths_are_those_of_the_table(l_max, order, kind, counts):
    levels = product_paths(l_max, order, tuple(range(l_max + 1)), kind)
    assert count_by_rank(levels[-1], l_max) == counts


@pytest.mark.parametrize(
    ("l_max", "order"), [(1, 2), (1, 4), (2, 2), (2, 3), (3, 2), (3, 3), (4, 3)]
)
def test_minimal_paths_are_as_many_as_there_are_independent_covariants(l_max, order):
    levels = product_paths(l_max, order, tuple(range(l_max + 1)), "minimal")
    assert count_by_rank(levels[-1], l_max) == independent_covariants(l_max, order)


@pytest.mark.parametrize(("l_max", "order"), [(2, 2), (2, 3), (3, 2), (3, 3)])
def test_every_official_feature_is_a_linear_combination_of_minimal_ones(l_max, order, rng):
    outputs = tuple(range(l_max + 1))
    a = [
        rng.standard_normal((60, 2 * l + 1)) for l in outputs
    ]  # other samples than the choice used
    official, minimal = (
        product_paths(l_max, order, outputs, kind) for kind in ("official", "minimal")
    )
    of, mi = values(official, a)[-1], values(minimal, a)[-1]
    for l in outputs:
        want, have = columns(of, official[-1], l), columns(mi, minimal[-1], l)
        assert misfit(want, have) < 1e-12  # round-off of a least-squares fit of well-conditioned columns


@pytest.mark.parametrize("kind", ["minimal", "official"])
@pytest.mark.parametrize("outputs", [(0,), (0, 1), (0, 1, 2)])
def test_no_path_is_computed_in_vain_and_every_parent_exists(kind, outputs):
    levels = product_paths(3, 3, outputs, kind)
    assert {p.l3 for p in levels[-1]} == set(outputs)
    for below, level in itertools.pairwise(levels):
        assert all(below[p.parent].l3 == p.l1 and allowed(p.l1, p.l2, p.l3) for p in level)
    fed = {p.parent for p in levels[2]}
    assert all(n in fed or p.l3 in outputs for n, p in enumerate(levels[1]))


@pytest.mark.parametrize(("outputs", "parents"), [((0, 1, 2), 11), ((0,), 8)])
def test_as_many_second_order_paths_feed_the_third_as_the_specification_counts(outputs, parents):
    levels = product_paths(3, 3, outputs, "minimal")
    assert len({p.parent for p in levels[2]}) == parents


@pytest.mark.parametrize(("kind", "weights"), [("minimal", 200_704), ("official", 495_616)])
def test_minimal_paths_need_the_counted_number_of_weights(kind, weights):
    basis = ProductBasis(product_paths(3, 3, (0, 1, 2), kind), 3, (0, 1, 2), "cartesian")
    assert sum(basis.features_per_rank().values()) * 64 * 64 == weights


def test_order_one_is_the_atomic_basis_itself():
    levels = product_paths(2, 1, (0,), "minimal")
    assert [p.l3 for p in levels[0]] == [0, 1, 2]
    assert len(levels) == 1


@pytest.mark.parametrize(
    ("kind", "order"),
    [*((k, n) for k in ("minimal", "official") for n in (1, 2, 3)), ("minimal", 4)],
)
def test_product_basis_evaluates_its_paths_one_by_one(kind, order, rng):
    l_max, outputs = 2, (0, 1, 2)
    levels = product_paths(l_max, order, outputs, kind)
    basis = ProductBasis(levels, l_max, outputs, "unit").double()
    a = [
        rng.standard_normal((5, 2 * l + 1, 2)) for l in range(l_max + 1)
    ]  # atoms, components, channels
    got = basis([torch.from_numpy(x) for x in a])
    for channel in range(2):
        each = _unit_values(levels, [x[:, :, channel] for x in a])
        for l in outputs:
            want = [v for order_ in each for rank, v in order_ if rank == l]
            have = got[l].reshape(5, 2 * l + 1, len(want), 2)[..., channel]
            np.testing.assert_allclose(have, np.stack(want, 2), atol=1e-12)  # float64 round-off


def _unit_values(levels: Levels, a: list[np.ndarray]) -> list[list[tuple[int, np.ndarray]]]:
    out = [list(enumerate(a))]
    for level in levels[1:]:
        below = [v for _, v in out[-1]]
        grown = []
        for p in level:
            g = coupling(p.l1, p.l2, p.l3)
            g = g * np.sqrt((2 * p.l3 + 1) / (g**2).sum())
            grown.append((p.l3, np.einsum("sa,sb,abm->sm", below[p.parent], a[p.l2], g)))
        out.append(grown)
    return out


def test_unknown_kinds_of_paths_are_refused():
    with pytest.raises(ValueError, match="'minimal' or 'official'"):
        product_paths(2, 2, (0,), "maximal")


def test_the_choice_is_the_same_in_every_process():
    chosen = product_paths.__wrapped__(2, 3, (0, 1), "minimal")
    assert chosen == product_paths(2, 3, (0, 1), "minimal")


@pytest.mark.parametrize(
    ("name", "one", "four"),
    [
        ("nano", 19008, 39792),
        ("small", 103024, 235216),
        ("medium", 334032, 862608),
        ("large", 1699216, 4796176),
    ],
)
def test_presets_have_the_documented_numbers_of_parameters(name, one, four):
    from tace.config import preset
    from tace.model import Tace, n_parameters

    assert n_parameters(Tace(preset(name, elements=(1,)))) == one
    assert n_parameters(Tace(preset(name, elements=(1, 6, 7, 8)))) == four
