"""Sizes and offsets that heads take from their labels."""


from __future__ import annotations

import numpy as np
import pytest
from head_helpers import EXACT
from numpy.testing import assert_allclose

from tace.config import HeadConfig
from tace.errors import DataError
from tace.heads import HeadLabel, head_statistics
from tace.offsets import fit_offsets
from tace.tensors import index_symmetry, rank_of


# ------------------------------------------------------------------ statistics
def planted(rng, head: HeadConfig, shift: np.ndarray, *, noise: float, n: int = 400) -> list[HeadLabel]:
    """Labels of random compositions: offsets [Z, n] of the scalar parts plus noise in every part."""
    blocks = index_symmetry(head.symmetry)
    basis = np.concatenate([m.T for b in blocks for m in b.isometries])
    labels = []
    for _ in range(n):
        species = rng.integers(0, 3, rng.integers(2, 9))
        parts = noise * rng.standard_normal((len(species), len(basis)))
        parts[:, : shift.shape[1]] += shift[species]
        if head.scope == "structure":
            parts = parts.sum(0) if head.reduce == "sum" else parts.mean(0)
        shape = (*parts.shape[:-1], *(3,) * rank_of(head.symmetry))
        labels.append(HeadLabel(species, (parts @ basis).reshape(shape), 0))
    return labels


@pytest.mark.parametrize("settings", [{}, {"reduce": "mean"}, {"scope": "atom"}])
@pytest.mark.parametrize("formula", ["", "ij=ji", "ijkl=jikl=klij"])
def test_statistics_find_planted_offsets(formula, settings, rng):
    head = HeadConfig("t", symmetry=formula, **settings)
    n_scalars = len(index_symmetry(formula)[0].isometries)
    shift = rng.standard_normal((3, n_scalars))
    found = head_statistics(head, planted(rng, head, shift, noise=0.0), n_elements=3, n_fidelities=1)
    assert_allclose(found.shift[0], shift, atol=1e-10)  # least squares on 400 compositions


@pytest.mark.parametrize("settings", [{}, {"scope": "atom"}])
@pytest.mark.parametrize("formula", ["", "i", "ij=ji"])
def test_statistics_find_the_planted_size_per_atom(formula, settings, rng):
    head = HeadConfig("t", symmetry=formula, **settings)
    shift = np.full((3, int(formula != "i")), 5.0)
    found = head_statistics(head, planted(rng, head, shift, noise=0.2), n_elements=3, n_fidelities=1)
    # 400 numbers or more: their rms is known to 1/√800 = 3.5 %; three times that
    assert_allclose(found.scale, [0.2], rtol=0.11)
    assert found.shift.shape == (1, 3, int(formula != "i"))


def test_levels_and_elements_without_labels_take_what_the_others_know(rng):
    head = HeadConfig("t")
    shift = np.array([[1.0], [2.0], [3.0]])
    low = planted(rng, head, shift, noise=0.0)
    high = [HeadLabel(np.array([0] * n), np.array(1.5 * n), 1) for n in (1, 2, 3)]  # element 0 alone
    found = head_statistics(head, [*low, *high], n_elements=3, n_fidelities=3)
    assert_allclose(found.shift[0], shift, atol=1e-10)
    assert_allclose(found.shift[1, 0], 1.5, atol=1e-10)
    assert_allclose(found.shift[1, 1:], found.shift[2, 1:], atol=1e-10)
    assert_allclose(found.shift[2], shift, atol=0.1)  # of all together: three labels of 403 differ
    assert (found.scale > 0).all()


def test_labels_that_are_unknown_are_left_out(rng):
    head = HeadConfig("t", scope="atom")
    labels = [HeadLabel(np.array([0, 1, 2]), np.array([1.0, np.nan, 3.0]), 0)]
    found = head_statistics(head, labels, n_elements=3, n_fidelities=1)
    assert_allclose(found.shift[0, :, 0], [1.0, 0.0, 3.0], atol=EXACT)


def test_labels_that_offsets_explain_fully_still_give_a_size():
    head = HeadConfig("t")
    one = [HeadLabel(np.array([0]), np.array(4.0), 0)]
    assert head_statistics(head, one, n_elements=1, n_fidelities=1).scale == 4.0
    zero = [HeadLabel(np.array([0]), np.zeros(3), 0)]
    assert head_statistics(HeadConfig("t", symmetry="i"), zero, n_elements=1, n_fidelities=1).scale == 1.0


@pytest.mark.parametrize(
    ("settings", "value", "why"),
    [
        ({"symmetry": "i"}, np.zeros((3, 3)), r"label 0 has shape \(3, 3\), expected \(3,\)"),
        ({"symmetry": "i", "scope": "atom"}, np.zeros(3), r"expected \(2, 3\)"),
        ({"symmetry": "ij=ji"}, np.arange(9.0).reshape(3, 3), "do not obey the index symmetry 'ij=ji'"),
        ({"symmetry": "i"}, np.full(3, np.nan), "no structure has a label"),
    ],
)
def test_labels_that_do_not_fit_the_head_are_refused(settings, value, why):
    with pytest.raises(DataError, match=f"head t: .*{why}"):
        head_statistics(
            HeadConfig("t", **settings),
            [HeadLabel(np.array([0, 1]), value, 0)],
            n_elements=2,
            n_fidelities=1,
        )


def test_statistics_of_no_labels_are_refused():
    with pytest.raises(DataError, match="no structure has a label"):
        head_statistics(HeadConfig("t"), [], n_elements=2, n_fidelities=1)


# ---- offsets of elements ----


def test_offsets_that_the_data_determine_are_least_squares(rng):
    counts = rng.integers(0, 5, (40, 3)).astype(float)
    planted = np.array([[1.0], [-2.0], [0.5]])
    assert_allclose(fit_offsets(counts, counts @ planted), planted, atol=1e-10)
    noisy = counts @ planted + 0.01 * rng.normal(size=(40, 1))
    assert_allclose(fit_offsets(counts, noisy), planted, atol=0.02)  # some 0.01/√40 of noise, times three


def test_offsets_of_more_elements_than_rows_do_not_explain_the_noise(rng):
    """Rows that no offset explains: the prediction for other rows is hardly worse than a constant."""
    counts = np.zeros((60, 69))
    for row in counts:
        row[rng.choice(69, 2, replace=False)] = 0.5
    values = 10.0 + rng.normal(size=(60, 1))
    found = fit_offsets(counts[:45], values[:45])
    wrong = np.sqrt(np.mean((counts[45:] @ found - values[45:]) ** 2))
    assert wrong < 1.4  # the noise is 1; least squares of minimum norm is at some 5
    smallest = np.linalg.lstsq(counts[:45], values[:45], rcond=None)[0]
    assert np.sqrt(np.mean((counts[45:] @ smallest - values[45:]) ** 2)) > 2.0
