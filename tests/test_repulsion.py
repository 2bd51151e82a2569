"""Screened nuclear repulsion: its printed value, its shape, its smooth end and its derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list
from numpy.testing import assert_allclose

from tace.config import preset
from tace.errors import TaceError
from tace.model import Tace
from tace.repulsion import check_cutoff, zbl_energies
from tace.testing import check_potential, from_model
from tace.units import COULOMB

NUMBERS = torch.tensor([1, 6, 8, 79])
PAIRS = [(0, 0), (0, 1), (1, 2), (2, 2), (3, 1), (3, 3)]


def energies(lengths, pair: tuple[int, int], p: int = 5) -> torch.Tensor:
    r = torch.as_tensor(lengths, dtype=torch.float64)
    kinds = [torch.full((len(r),), z) for z in pair]
    return zbl_energies(r, *kinds, NUMBERS, p=p)


def bond(pair: tuple[int, int]) -> float:
    return float(sum(covalent_radii[int(NUMBERS[z])] for z in pair))


def test_carbon_monoxide_at_short_range_has_the_golden_energy():
    # spec §25: the sum over both directed edges, that is the whole pair; CODATA 2018 there, 2014 in ASE: 1e-8
    assert float(energies([0.8], (1, 2))) == pytest.approx(2.76555542, rel=2e-8)


def test_bare_nuclei_meet_at_the_origin():
    r = 1e-9
    # φ(x) = Σ c_k − x·Σ c_k b_k, x = r/a of 1e-8
    screening = 0.1818 + 0.5099 + 0.2802 + 0.02817
    assert float(energies([r], (1, 2))) == pytest.approx(COULOMB * 48 / r * screening, rel=1e-6)


@pytest.mark.parametrize("pair", PAIRS)
def test_energy_falls_all_the_way_and_the_order_of_a_pair_does_not_matter(pair):
    r = np.concatenate([np.geomspace(1e-6, 0.1, 50), np.linspace(0.11, bond(pair) - 0.01, 300)])
    e = energies(r, pair)
    assert torch.isfinite(e).all()
    assert (torch.diff(e) < 0).all()
    assert (e > 0).all()
    # the sum of two powers in either order: one rounding
    assert_allclose(e, energies(r, pair[::-1]), rtol=1e-14)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("p", [3, 5, 8])
def test_energy_ends_at_the_covalent_bond_with_two_vanishing_derivatives(pair, p):
    end = bond(pair)
    r = torch.tensor([end - 1e-4, end, end + 1e-9, end + 3.0], dtype=torch.float64, requires_grad=True)
    value = energies(r, pair, p)
    (slope,) = torch.autograd.grad(value.sum(), r, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), r)
    scale = float(energies([0.5 * end], pair, p))
    # the third derivative of f is −p(p+1)(p+2)/r_max³: value h³, slope h², curvature h of it, h = 1e-4 Å
    for term, power in ((value, 3), (slope, 2), (curvature, 1)):
        assert abs(float(term[0].detach())) < scale * p * (p + 1) * (p + 2) / end**3 * 1e-4**power
        assert abs(float(term[0].detach())) > 0
        assert term[1].abs() < 1e-10 * scale  # round-off of f at u = 1
        assert (term[2:] == 0.0).all()


def test_first_and_second_derivatives_are_the_slopes_of_finite_differences():
    for pair in PAIRS:
        r = torch.linspace(0.3, bond(pair) + 0.2, 12, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x, pair=pair: energies(x, pair), (r,), rtol=1e-5)
        assert torch.autograd.gradgradcheck(lambda x, pair=pair: energies(x, pair), (r,), rtol=1e-4)


def test_a_cutoff_shorter_than_the_widest_bond_is_refused_by_its_name():
    check_cutoff((1, 6, 8), 1.52)  # C–C, exactly
    with pytest.raises(TaceError, match=r"C–C reaches .* 1\.52 Å, beyond cutoff_A = 1\.51; raise cutoff_A"):
        check_cutoff((1, 6, 8), 1.51)
    with pytest.raises(TaceError, match="Cs–Cs"):
        check_cutoff((8, 55), 4.5)


def test_an_element_without_a_covalent_radius_is_refused():
    with pytest.raises(TaceError, match=r"Bk \(97\)"):
        check_cutoff((1, 97), 5.0)


# ---- in the model ----


def build(**settings) -> Tace:
    config = preset(
        "nano",
        elements=(1, 6, 8),
        cutoff_A=3.4,
        channels=4,
        radial_hidden=(8,),
        avg_neighbors=4.0,
        **settings,
    )
    return Tace(config, dtype=torch.float64)


def test_the_model_adds_the_repulsion_of_every_bond_once(structure):
    atoms = structure("crystal")
    atoms.set_distance(0, 2, 0.8, fix=0)
    i, j, d = neighbor_list("ijd", atoms, 3.4)  # both directions
    kinds = [torch.from_numpy(np.searchsorted(NUMBERS.numpy(), atoms.numbers[n])) for n in (i, j)]
    expected = 0.5 * zbl_energies(torch.from_numpy(d), *kinds, NUMBERS, p=5)
    said = [from_model(build(zbl=zbl))([atoms])[0].energy for zbl in (True, False)]
    assert float(expected.sum()) > 0.5
    # float64 sums of energies of some 10 eV
    assert said[0] - said[1] == pytest.approx(float(expected.sum()), abs=1e-12)


def test_a_model_with_repulsion_and_several_radial_orders_obeys_the_laws(structure):
    """Invariances, and forces and stress against finite differences, with atoms within the repulsion."""
    close = structure("crystal")
    close.set_distance(0, 2, 0.8, fix=0)
    potential = from_model(build(zbl=True, radial_orders=(0, 1, 3)))
    check_potential(potential, [structure("ethanol"), close, structure("slab")], cutoff_A=3.4)


def test_a_model_whose_cutoff_cuts_the_repulsion_cannot_be_built():
    with pytest.raises(TaceError, match="C–C"):
        Tace(preset("nano", elements=(1, 6), cutoff_A=1.4, zbl=True))
