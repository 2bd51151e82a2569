"""The model against its full-Cartesian twin, and the laws of nature it must obey."""

from __future__ import annotations

import dataclasses
import itertools

import cartesian_twin
import numpy as np
import pytest
import torch
from model_helpers import CUTOFF, NAMES, TINY, build, evaluated
from numpy.testing import assert_allclose

from tace import testing
from tace.model import Tace

# ---- the compact form is the Cartesian model ----

ARCHITECTURES = [
    (n_layers, l_max, rank, order, paths)
    for n_layers, l_max, order in itertools.product((1, 2), (2, 3), (1, 2, 3))
    for rank in ((0, 1, 2) if n_layers > 1 else (0,))
    for paths in (("minimal", "official") if order > 1 else ("minimal",))
]


@pytest.mark.parametrize(("n_layers", "l_max", "rank", "order", "paths"), ARCHITECTURES)
def test_model_is_its_full_cartesian_twin(n_layers, l_max, rank, order, paths, structure):
    model = build(n_layers=n_layers, l_max=l_max, L_max=rank, correlation=order, paths=paths)
    frames = [structure("water"), structure("crystal")]
    got = evaluated(model, *frames, fidelity=1)
    at = 0
    for n, atoms in enumerate(frames):
        energy, forces, stress = cartesian_twin.evaluate(model, atoms, fidelity=1)
        assert np.abs(forces).max() > 1e-3, "the test would pass for a model that says nothing"
        # float64 round-off of energies near 2000 eV, and of sums of some 1e4 terms in the forces
        assert_allclose(float(got.energies[n]), energy, rtol=0, atol=1e-10)
        assert_allclose(got.forces[at : at + len(atoms)], forces, rtol=0, atol=1e-10)
        if stress is not None:
            assert_allclose(got.stresses[n], stress, rtol=0, atol=1e-10)
        at += len(atoms)


@pytest.mark.parametrize("fidelity", [0, 1])
@pytest.mark.parametrize("norm", ["cartesian", "unit"])
@pytest.mark.parametrize("name", ["ethanol", "slab", "wire", "carbon", "atom"])
def test_model_is_its_twin_at_every_fidelity_and_periodicity(name, norm, fidelity, structure):
    model, atoms = build(coupling_norm=norm, l_max=3, L_max=2), structure(name)
    energy, forces, stress = cartesian_twin.evaluate(model, atoms, fidelity)
    got = evaluated(model, atoms, fidelity=fidelity)
    scale = 1.0 + np.abs(forces).max()  # 'unit' couplings of random weights can give large forces
    assert_allclose(float(got.energies[0]), energy, rtol=0, atol=1e-10 * scale)
    assert_allclose(got.forces, forces, rtol=0, atol=1e-10 * scale)
    if stress is None:
        assert torch.isnan(got.stresses).all()
    else:
        assert_allclose(got.stresses[0], stress, rtol=0, atol=1e-10 * scale)


def test_model_with_one_fidelity_and_one_element_is_its_twin(structure):
    model = Tace(dataclasses.replace(TINY, elements=(6,), fidelities=("pbe",)), dtype=torch.float64)
    energy, forces, _ = cartesian_twin.evaluate(model, structure("carbon"))
    got = evaluated(model, structure("carbon"))
    assert_allclose(float(got.energies[0]), energy, rtol=0, atol=1e-10)  # as above
    assert_allclose(got.forces, forces, rtol=0, atol=1e-10)


# ---- the invariants of tace.testing ----


@pytest.mark.parametrize(
    ("changes", "fidelity"),
    [({}, 0), ({"n_layers": 1}, 1), ({"l_max": 3, "L_max": 2, "n_layers": 3}, 1)],
)
def test_model_obeys_every_law_in_float64(changes, fidelity, structure):
    potential = testing.from_model(build(**changes), fidelity=fidelity)
    testing.check_potential(potential, [structure(n) for n in NAMES], cutoff_A=CUTOFF)


def test_model_obeys_every_law_in_float32(structure):
    potential = testing.from_model(build(torch.float32))
    frames = [structure(n) for n in NAMES]
    testing.check_potential(potential, frames, cutoff_A=CUTOFF, tolerance=testing.FLOAT32)


def test_float32_is_float64_to_rounding(structure):
    frames = [structure(n) for n in NAMES]
    single, double = evaluated(build(torch.float32), *frames), evaluated(build(), *frames)
    # 6e-8 per operation, through a chain of some ten sums and products
    assert_allclose(single.energies, double.energies, rtol=0, atol=2e-5)
    assert_allclose(single.forces, double.forces, rtol=0, atol=2e-5 * double.forces.abs().max())
    assert single.energies.dtype == single.forces.dtype == torch.float64


def test_float32_does_not_lose_precision_far_from_the_origin(structure):
    model, here = build(torch.float32), structure("ethanol")
    there = structure("ethanol")
    there.positions += 1e5  # a float32 position would be rounded to 8e-3 Å here
    near, far = evaluated(model, here), evaluated(model, there)
    assert_allclose(far.forces, near.forces, atol=1e-5)  # float32 rounding of forces of order one


class Broken:
    """A sound potential, spoiled in one way."""

    def __init__(self, how: str) -> None:
        self.how, self.sound = how, testing.from_model(build())

    def __call__(self, structures):
        answers = []
        for place, (atoms, answer) in enumerate(
            zip(structures, self.sound(structures), strict=True)
        ):
            e, f, s = answer
            x = atoms.positions
            if self.how == "field":
                e, f = e + x[:, 0].sum(), f - np.array([1.0, 0.0, 0.0])
            elif self.how == "sign of forces":
                f = -f
            elif self.how == "sign of stress" and s is not None:
                s = -s
            elif self.how == "anisotropy":
                e = e + (f[:, 0] ** 2).sum()
            elif self.how == "order of atoms":
                e = e + f[0, 0] ** 2 + f[0, 1] ** 2 + f[0, 2] ** 2
            elif self.how == "company":
                e = e + 1e-6 * place
            elif self.how == "extensivity":
                e = e + 1e-4 * len(atoms) ** 2
            elif self.how == "wrapping" and atoms.pbc.any():
                e = e + np.ptp(x, axis=0).sum()
            answers.append(testing.Answer(e, f, s))
        return answers


@pytest.mark.parametrize(
    ("how", "names"),
    [
        ("field", ("water",)),
        ("sign of forces", ("water",)),
        ("sign of stress", ("crystal",)),
        ("anisotropy", ("water",)),
        ("order of atoms", ("water",)),
        ("company", ("water", "atom")),
        ("extensivity", ("crystal",)),
        ("extensivity", ("water",)),
        ("wrapping", ("crystal",)),
    ],
)
def test_checks_notice_a_broken_potential(how, names, structure):
    with pytest.raises(AssertionError):
        testing.check_potential(Broken(how), [structure(n) for n in names], cutoff_A=CUTOFF)


def test_checks_accept_an_ase_calculator():
    from ase.build import bulk
    from ase.calculators.emt import EMT

    copper = bulk("Cu") * (1, 1, 2)
    copper.rattle(0.05, seed=0)
    rng = np.random.default_rng(0)
    potential = testing.from_calculator(EMT())
    # EMT shifts its neighbour lists by round-off: energies of copper to 1e-9 eV
    tolerance = dataclasses.replace(testing.FLOAT64, absolute=1e-8, slope=1e-5)
    testing.check_rotation(potential, copper, rng, tolerance)
    testing.check_supercell(potential, copper, tolerance)
