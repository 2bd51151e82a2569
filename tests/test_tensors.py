"""Laws of the decomposition of tensors of any rank, of index symmetries and of pseudo-tensors."""

# ruff: noqa: E741  (l is the rank of a tensor)
from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from tace.errors import TaceError
from tace.ict import stf_basis
from tace.tensors import decompositions, index_symmetry, pseudo_allowed, pseudo_coupling, rank_of

EXACT = 1e-12  # sums of at most 3^5 products of numbers below one, in float64
RANKS = range(6)
MULTIPLICITIES = {
    0: [1],
    1: [0, 1],
    2: [1, 1, 1],
    3: [1, 3, 2, 1],
    4: [3, 6, 6, 3, 1],
    5: [6, 15, 15, 10, 4, 1],
}
PARTS = {  # weight: copies, by hand or from the literature (elastic tensor: 2 + 2·5 + 9 = 21)
    "": {0: 1},
    "i": {1: 1},
    "ij": {0: 1, 1: 1, 2: 1},
    "ij=ji": {0: 1, 2: 1},
    "ij=-ji": {1: 1},
    "ijk=jik": {1: 2, 2: 1, 3: 1},
    "ijk=jik=kji": {1: 1, 3: 1},
    "ijk=-jik": {0: 1, 1: 1, 2: 1},
    "ijk=-jik=-ikj": {0: 1},
    "ijkl=jikl=klij": {0: 2, 2: 2, 4: 1},
    "ijkl=jikl=ijlk": {0: 2, 1: 1, 2: 3, 3: 1, 4: 1},
    "ijkl=-jikl=-ijlk=klij": {0: 1, 2: 1},  # of a Riemann tensor in three dimensions: 6
}
PSEUDO = [t for t in itertools.product(range(4), repeat=3) if pseudo_allowed(*t)]


def turn(q: np.ndarray, tensor: np.ndarray, rank: int) -> np.ndarray:
    """q on each of the first `rank` indices of tensor [3^n, ...]."""
    out = tensor.reshape(*[3] * rank, -1)
    for axis in range(rank):
        out = np.moveaxis(np.tensordot(q, out, (1, axis)), 0, axis)
    return out.reshape(tensor.shape)


def wigner(l: int, q: np.ndarray) -> np.ndarray:
    """D_l(q) [2l+1, 2l+1], also for improper q, where it has the natural parity."""
    return stf_basis(l).T @ turn(q, stf_basis(l), l)


@pytest.mark.parametrize("rank", RANKS)
def test_decompositions_are_orthonormal_complete_and_as_many_as_the_paths(rank):
    found = decompositions(rank)
    weights = [path[-1] for path, _ in found]
    assert [weights.count(w) for w in range(rank + 1)] == MULTIPLICITIES[rank]
    matrix = np.concatenate([m for _, m in found], 1)
    assert_allclose(matrix.T @ matrix, np.eye(3**rank), atol=EXACT)
    assert_allclose(sum(m @ m.T for _, m in found), np.eye(3**rank), atol=EXACT)


@pytest.mark.parametrize("rank", RANKS)
def test_the_straight_path_is_the_symmetric_traceless_basis(rank):
    by_path = dict(decompositions(rank))
    assert_allclose(by_path[tuple(range(rank + 1))], stf_basis(rank), atol=EXACT)


@pytest.mark.parametrize("improper", [False, True])
@pytest.mark.parametrize("rank", RANKS)
def test_every_part_turns_like_a_tensor_of_its_weight(rank, improper, rotation):
    q = rotation(improper)
    for path, m in decompositions(rank):
        w = path[-1]
        parity = np.linalg.det(q) ** (rank - w)  # a pseudo-tensor where n − w is odd
        assert_allclose(turn(q, m, rank), parity * m @ wigner(w, q), atol=EXACT)


def test_parts_of_a_matrix_are_trace_antisymmetric_and_deviator(rng):
    matrix = rng.standard_normal((3, 3))
    trace, axial, deviator = (m @ m.T @ matrix.ravel() for _, m in decompositions(2))
    assert_allclose(trace.reshape(3, 3), np.trace(matrix) / 3 * np.eye(3), atol=EXACT)
    assert_allclose(axial.reshape(3, 3), (matrix - matrix.T) / 2, atol=EXACT)
    assert_allclose((trace + axial + deviator).reshape(3, 3), matrix, atol=EXACT)


def test_ranks_that_are_too_high_are_refused():
    with pytest.raises(TaceError, match="rank 7"):
        decompositions(7)


@pytest.mark.parametrize("formula", PARTS)
def test_index_symmetries_have_the_known_parts(formula):
    blocks = index_symmetry(formula)
    expected = {w: n for w, n in PARTS[formula].items() if n}
    assert {b.weight: len(b.isometries) for b in blocks} == expected
    assert [b.weight for b in blocks] == sorted(expected)
    assert all(b.natural == ((b.weight - rank_of(formula)) % 2 == 0) for b in blocks)


@pytest.mark.parametrize("formula", PARTS)
def test_parts_span_exactly_the_tensors_that_obey_the_formula(formula):
    """Against the null space of 'T minus its permuted self', which knows no irreducible parts."""
    first, *others = formula.split("=")
    rank = len(first)
    identity = np.eye(3**rank)
    conditions = [np.zeros((1, 3**rank))]
    for term in others:
        sign, letters = (-1, term[1:]) if term[0] == "-" else (1, term)
        permuted = np.einsum(identity.reshape(*[3] * rank, -1), [*map(ord_of, letters), 50],
                             [*map(ord_of, first), 50])  # fmt: skip
        conditions.append(identity - sign * permuted.reshape(3**rank, -1))
    _, values, rows = np.linalg.svd(np.concatenate(conditions))
    free = rows[np.count_nonzero(values > 1e-9) :]
    isometries = [m for b in index_symmetry(formula) for m in b.isometries]
    stack = np.concatenate(isometries, 1)
    assert_allclose(stack.T @ stack, np.eye(stack.shape[1]), atol=EXACT)
    assert_allclose(stack @ stack.T, free.T @ free, atol=EXACT)


def ord_of(letter: str) -> int:
    return ord(letter) - ord("a")


@pytest.mark.parametrize("formula", ["ijk=jik", "ijkl=jikl=klij"])
def test_copies_of_one_weight_turn_alike(formula, rotation):
    q, rank = rotation(False), rank_of(formula)
    for block in index_symmetry(formula):
        for m in block.isometries:
            assert_allclose(turn(q, m, rank), m @ wigner(block.weight, q), atol=EXACT)


@pytest.mark.parametrize("triad", PSEUDO)
@pytest.mark.parametrize("improper", [False, True])
def test_pseudo_couplings_turn_and_change_sign_under_inversion(triad, improper, rotation):
    q, g = rotation(improper), pseudo_coupling(*triad)
    d1, d2, d3 = (wigner(l, q) for l in triad)
    turned = np.einsum("mnp,mi,nj->ijp", g, d1, d2)  # of the turned x and y
    assert_allclose(turned, np.linalg.det(q) * np.einsum("ijp,kp->ijk", g, d3), atol=EXACT)


@pytest.mark.parametrize("triad", PSEUDO)
def test_pseudo_couplings_are_isotropic_and_not_zero(triad):
    g = pseudo_coupling(*triad)
    square = np.einsum("mnp,mnq->pq", g, g)
    assert_allclose(square, np.trace(square) / len(square) * np.eye(len(square)), atol=EXACT)
    assert np.trace(square) > 1.0


def test_pseudo_coupling_of_vectors_is_the_cross_product(rng):
    x, y = rng.standard_normal((2, 3))
    assert_allclose(np.einsum("mnp,m,n->p", pseudo_coupling(1, 1, 1), x, y), np.cross(x, y), atol=EXACT)


def test_pseudo_coupling_of_matrices_is_the_vector_of_their_commutator(rng):
    b = stf_basis(2)
    x, y = rng.standard_normal((2, 5))
    X, Y = (b @ x).reshape(3, 3), (b @ y).reshape(3, 3)
    C = (X @ Y - Y @ X) / 2
    found = np.einsum("mnp,m,n->p", pseudo_coupling(2, 2, 1), x, y)
    assert_allclose(found, 2 * np.array([C[1, 2], C[2, 0], C[0, 1]]), atol=EXACT)


@pytest.mark.parametrize("l", [1, 2, 3])
def test_equal_factors_have_no_pseudo_vector(l, rng):
    x = rng.standard_normal(2 * l + 1)
    assert_allclose(np.einsum("mnp,m,n->p", pseudo_coupling(l, l, 1), x, x), 0.0, atol=EXACT)


@pytest.mark.parametrize("triad", [(1, 1, 2), (1, 3, 1), (1, 2, 0)])
def test_pseudo_couplings_that_cannot_be_are_refused(triad):
    with pytest.raises(ValueError, match="no pseudo-tensor"):
        pseudo_coupling(*triad)


@pytest.mark.parametrize(
    ("formula", "why"),
    [
        ("ij=jk", "does not have the letters"),
        ("ii", "stands twice"),
        ("ij=", "small letters"),
        ("I", "small letters"),
        ("i j=j,i", "small letters"),
        ("-ij=ji", "no sign"),
        ("abcdefg", "more than 6"),
    ],
)
def test_formulas_that_cannot_be_read_are_refused_with_an_example(formula, why):
    with pytest.raises(TaceError, match=f"{why}.*ijkl=jikl=klij"):
        index_symmetry(formula)


@pytest.mark.parametrize("formula", ["ij=-ij", "ij=ji=-ji", "ijkl=-jikl=jikl", "ijkl=-jikl=-ikjl=-ijlk"])
def test_formulas_that_only_zero_obeys_are_refused(formula):
    with pytest.raises(TaceError, match="only a tensor of zeros"):
        index_symmetry(formula)


def test_parts_of_an_isotropic_elastic_tensor_are_two_scalars(rng):
    """λ δδ + μ (δδ + δδ): bulk and shear modulus are the two copies of weight 0, in any basis of them."""
    lame, shear = rng.standard_normal(2)
    d = np.eye(3)
    tensor = lame * np.einsum("ij,kl->ijkl", d, d) + shear * (
        np.einsum("ik,jl->ijkl", d, d) + np.einsum("il,jk->ijkl", d, d)
    )
    blocks = {b.weight: b for b in index_symmetry("ijkl=jikl=klij")}
    scalars = [float((m.T @ tensor.ravel())[0]) for m in blocks[0].isometries]
    assert math.isclose(np.linalg.norm(scalars), np.linalg.norm(tensor), rel_tol=EXACT)
