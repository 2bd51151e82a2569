"""Options of a layer: gates, uncoupled mixing, residuals, plain message passing, lower weights."""

# ruff: noqa: E741  (l is the rank of a tensor)
from __future__ import annotations

import dataclasses
import math

import cartesian_twin
import numpy as np
import pytest
import torch
from layer_variants import (
    MESSAGE_PASSING,
    SMALL,
    VARIANTS,
    batch_of,
    disturb,
    features,
    geometry_of,
    model_of,
    rms,
    rotations,
    through,
    turned,
)
from numpy.testing import assert_allclose

from tace import testing
from tace.config import TaceConfig
from tace.derivatives import evaluate
from tace.errors import TaceError
from tace.gates import NormGate, ScalarGate
from tace.initial import READOUT_START
from tace.interaction import Layer
from tace.layers import gains
from tace.model import Tace
from tace.product import PathMix

each_variant = pytest.mark.parametrize("name", VARIANTS)


@each_variant
def test_a_model_with_any_option_is_its_full_cartesian_twin(name, structure):
    model = disturb(model_of(**VARIANTS[name]))
    frames = [structure("water"), structure("crystal"), structure("slab")]
    got = evaluate(model, batch_of(model, *frames), stress=True)
    assert got.forces is not None
    assert got.stresses is not None
    at = 0
    for n, atoms in enumerate(frames):
        energy, forces, stress = cartesian_twin.evaluate(model, atoms)
        assert np.abs(forces).max() > 1e-4, "the test would pass for a model that says nothing"
        # float64 round-off of energies of some 100 eV, and of sums of some 1e4 terms in the forces
        assert_allclose(float(got.energies[n]), energy, rtol=1e-12, atol=1e-10)
        largest = max(1.0, np.abs(forces).max())
        assert_allclose(got.forces[at : at + len(atoms)], forces, rtol=0, atol=1e-10 * largest)
        if stress is not None:
            assert_allclose(got.stresses[n], stress, rtol=0, atol=1e-10 * largest)
        at += len(atoms)


@pytest.mark.parametrize("name", ["TMP, scalar gate", "all, rank 3", "all, norm gate", "residual"])
def test_a_model_with_options_obeys_every_law(name, structure):
    model = model_of(**VARIANTS[name])
    frames = [structure(n) for n in ("water", "crystal", "slab", "atom")]
    testing.check_potential(testing.from_model(model), frames, cutoff_A=model.config.cutoff_A)


@each_variant
def test_layers_turn_with_what_they_are_given(name, structure, rotation, rng):
    """h, what conditions add and the structure are turned, mirrors included: the result turns with them."""
    model, atoms = model_of(**VARIANTS[name]), structure("crystal")
    config, layer = model.config, model.layers[1]
    h = features(range(config.L_max + 1), len(atoms), rng)
    added = features(range(config.l_max + 1), len(atoms), rng)
    batch = batch_of(model, atoms)
    here = layer(h, batch, geometry_of(model, batch), added)
    for matrix in rotations(rotation):
        other = atoms.copy()
        other.set_cell(atoms.cell[:] @ matrix.T)
        other.positions = atoms.positions @ matrix.T
        batch = batch_of(model, other)
        there = layer(turned(h, matrix), batch, geometry_of(model, batch), turned(added, matrix))
        for want, have in zip(turned(here, matrix), there, strict=True):
            assert rms(want) > 1e-3
            assert_allclose(have.detach(), want.detach(), rtol=0, atol=1e-11 * (1 + rms(want)))  # round-off


@each_variant
def test_an_atom_without_neighbours_has_no_features_and_its_own_energy(name, structure):
    model = model_of(**VARIANTS[name])
    far = structure("water")
    far += structure("atom")
    far.positions[-1] += 50.0
    batch = batch_of(model, structure("atom"), far)
    lonely = batch.original[[0, 4]]
    for layer in through(model, batch, geometry_of(model, batch)):
        assert all((x[lonely] == 0).all() for x in layer)
        assert any(rms(x) > 0 for x in layer)
    result = evaluate(model, batch)
    assert float(result.energies[0]) == -110.2
    assert result.forces is not None
    assert (result.forces[[0, 4]] == 0).all()
    assert torch.isfinite(result.forces).all()


@each_variant
def test_layers_can_be_differentiated_twice(name, structure, rng):
    model, atoms = model_of(**VARIANTS[name]), structure("water")
    model.requires_grad_(False)
    layer, batch = model.layers[1], batch_of(model, atoms)
    h = [x.requires_grad_(True) for x in features(range(model.config.L_max + 1), len(atoms), rng)]

    def energy(positions: torch.Tensor, *h: torch.Tensor) -> torch.Tensor:
        return sum(x.sum() for x in layer(h, batch, geometry_of(model, batch, positions)))

    inputs = (batch.positions.clone().requires_grad_(True), *h)
    # finite differences of float64 with a step of 1e-6 are good to some 1e-7 of the curvature
    assert torch.autograd.gradgradcheck(energy, inputs, fast_mode=True, rtol=1e-4, atol=1e-5)


@each_variant
def test_every_parameter_has_a_say_in_the_energy(name, structure):
    """No weight is carried along that nothing reads: parts that stay zero, ranks that no one asks for."""
    model = model_of(**VARIANTS[name])
    batch = batch_of(model, structure("water"), structure("ethanol"), structure("crystal"))
    model(batch, geometry_of(model, batch)).energies.square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key


@each_variant
def test_drawn_weights_fill_the_range_that_their_gain_declares(name):
    model = Tace(TaceConfig(**{**SMALL, **VARIANTS[name]}), seed=11, dtype=torch.float64)
    declared = gains(model)
    for key, parameter in model.named_parameters():
        if (parameter == parameter.flatten()[0]).all():  # slopes, offsets and path scales are not drawn
            assert float(parameter.flatten()[0].detach()) in (0.0, 1.0), key
            assert declared[key] == 1.0, key
            continue
        start = READOUT_START if key.startswith("energy_readout.") and ".hidden." not in key else 1.0
        largest = float(parameter.detach().abs().max()) / (math.sqrt(3) * declared[key] * start)
        # uniform numbers stay in the range and, among n ≥ 3, miss its upper two thirds with 3⁻ⁿ
        assert (1 / 3 if parameter.numel() >= 12 else 0) < largest <= 1 + 1e-12, key


class Fixed(torch.nn.Module):
    """An interaction that has been evaluated already."""

    def __init__(self, a: list[torch.Tensor]) -> None:
        super().__init__()
        self.a = a

    def forward(self, *_: object) -> list[torch.Tensor]:
        return list(self.a)


@pytest.mark.parametrize("name", ["norm gate", "all, rank 3", "residual"])
def test_what_conditions_add_goes_to_the_symmetric_traceless_part_of_a(name, structure, rng):
    model = model_of(**VARIANTS[name])
    layer, batch, l_max = model.layers[1], batch_of(model, structure("water")), model.config.l_max
    geometry, h = geometry_of(model, batch), features(range(model.config.L_max + 1), 3, rng)
    added = [None, *features(range(1, l_max + 1), 3, rng)]
    got = layer(h, batch, geometry, added)
    a = [x.detach().clone() for x in layer.interaction(h, batch, geometry)]
    for x, extra in zip(a[1:], added[1:], strict=True):
        x[:, : extra.shape[1]] += extra
    layer.interaction = Fixed(a)
    for want, have in zip(layer(h, batch, geometry), got, strict=True):
        assert torch.equal(want, have)


# ---- plain message passing ----


@pytest.mark.parametrize("gate", ["none", "norm", "scalar"])
@pytest.mark.parametrize(("l_max", "L_max"), [(0, 0), (1, 1), (2, 0), (3, 1), (4, 4)])
def test_message_passing_works_at_every_rank(l_max, L_max, gate, structure):
    model = model_of(**{**MESSAGE_PASSING, "n_layers": 3, "l_max": l_max, "L_max": L_max, "gate": gate})
    atoms = structure("ethanol")
    energy, forces, _ = cartesian_twin.evaluate(model, atoms)
    got = evaluate(model, batch_of(model, atoms))
    assert np.abs(forces).max() > 1e-4
    assert_allclose(float(got.energies[0]), energy, rtol=0, atol=1e-10)  # round-off, as above
    assert_allclose(got.forces, forces, rtol=0, atol=1e-10)


def test_message_passing_computes_no_rank_that_is_not_read():
    model = model_of(**MESSAGE_PASSING, n_layers=3, l_max=3, L_max=2)
    highest = [max(p.l3 for p in layer.interaction.paths) for layer in model.layers]
    assert highest == [2, 2, 0]
    assert all(len(layer.product.levels) == 1 for layer in model.layers)


@pytest.mark.parametrize("changes", [{}, MESSAGE_PASSING, {"weights": "all", "gate": "norm"}])
@pytest.mark.parametrize("outputs", [(0,), (0, 2), (0, 1, 2)])
def test_a_layer_gives_the_ranks_that_it_is_asked_for(changes, outputs, structure, rotation, rng):
    config = TaceConfig(**{**SMALL, **changes})
    generator = torch.Generator().manual_seed(1)
    layer = Layer(config, (1, outputs), True, generator).double()
    model, atoms = model_of(), structure("water")
    h = features((0, 1), len(atoms), rng)
    batch = batch_of(model, atoms)
    here = layer(h, batch, geometry_of(model, batch))
    assert [x.shape for x in here] == [(3, 2 * l + 1, 3) for l in outputs]
    matrix = rotation(True)
    atoms.positions = atoms.positions @ matrix.T
    batch = batch_of(model, atoms)
    there = layer(turned(h, matrix), batch, geometry_of(model, batch))
    for want, have in zip(turned(here, matrix), there, strict=True):
        assert rms(want) > 1e-3
        assert_allclose(have.detach(), want.detach(), rtol=0, atol=1e-12 * (1 + rms(want)))  # round-off


# ---- residual ----


def test_the_residual_is_what_came_in_and_never_the_elements(structure, rng):
    plain, residual = (model_of(n_layers=3, L_max=2, residual=on) for on in (False, True))
    batch = batch_of(plain, structure("water"))
    geometry = geometry_of(plain, batch)
    h = features((0, 1, 2), 3, rng)
    for t, (a, b) in enumerate(zip(plain.layers, residual.layers, strict=True)):
        into = h[:1] if t == 0 else h
        pairs = zip(a(into, batch, geometry), b(into, batch, geometry), strict=True)
        for without, with_it, x in zip(*zip(*pairs, strict=True), into if t else h, strict=False):
            want = x if t else torch.zeros_like(x)  # round-off of a sum and a difference of numbers near 1
            assert_allclose((with_it - without).detach(), want, rtol=0, atol=1e-13)


def test_one_layer_has_nothing_to_add():
    with pytest.raises(TaceError, match="residual needs n_layers"):
        model_of(n_layers=1, residual=True)


# ---- gates ----


@pytest.mark.parametrize("kind", [NormGate, ScalarGate])
def test_gates_are_smooth_at_zero(kind):
    """‖t‖ would give NaN: atoms without neighbours are exactly there."""
    gate = kind(3, 2, torch.Generator().manual_seed(0)).double()
    a = [torch.zeros(2, 2 * l + 1, 3, dtype=torch.float64, requires_grad=True) for l in range(3)]
    out = gate(a)
    assert all((x == 0).all() for x in out)

    def scalar(*a: torch.Tensor) -> torch.Tensor:
        return sum((x * (n + 1.0)).sum() for n, x in enumerate(gate(a)))

    # central differences of functions of size one around zero
    assert torch.autograd.gradcheck(scalar, a, atol=1e-7)
    assert torch.autograd.gradgradcheck(scalar, a, atol=1e-6)


@pytest.mark.parametrize("kind", [NormGate, ScalarGate])
def test_gates_are_not_linear(kind, rng):
    gate = kind(3, 2, torch.Generator().manual_seed(0)).double()
    a = [0.5 * x for x in features((0, 1, 2), 4, rng)]  # the norm gate is open, and linear, for large ones
    for once, twice in zip(gate(a), gate([2 * x for x in a]), strict=True):
        assert rms(twice - 2 * once) > 0.1 * rms(once)


# ---- mixing ----


def test_uncoupled_mixing_keeps_channels_apart(rng):
    mix = PathMix(2, 4, 3, torch.Generator().manual_seed(0)).double()
    assert mix.gain == 0.5  # of four paths: variances add
    x = torch.from_numpy(rng.standard_normal((5, 3, 4, 3)))
    x[..., 1:] = 0
    out = mix(x.flatten(2), (2, 3))
    assert out.shape == (5, 3, 3)
    assert rms(out[..., 0]) > 0.1
    assert (out[..., 1:] == 0).all()


def test_uncoupled_mixing_takes_the_weights_of_each_element(rng):
    mix = PathMix(3, 4, 2, torch.Generator().manual_seed(0)).double()
    x = torch.from_numpy(rng.standard_normal((5, 3, 4, 2)))
    species = [0, 0, 2, 2, 2]  # none of element 1
    want = np.einsum("ampc,apc->amc", x, mix.weight.detach()[species])
    assert_allclose(mix(x.flatten(2), (2, 0, 3)).detach(), want, atol=1e-14)  # sums of four


def test_uncoupled_mixing_has_fewer_weights_by_the_number_of_channels():
    def weights(mixing: str) -> int:
        return sum(p.numel() for layer in model_of(mixing=mixing).layers for p in layer.mix.parameters())

    assert weights("coupled") == weights("uncoupled") * SMALL["channels"]


def test_options_do_not_disturb_the_weights_of_a_model_without_them():
    """Options draw nothing where they are off: the same seed gives the published function."""
    default = dataclasses.asdict(TaceConfig(elements=(1,)))
    assert (default["mixing"], default["weights"], default["gate"], default["residual"]) == (
        "coupled", "max", "none", False,
    )  # fmt: skip
    for layer in model_of().layers:
        assert {key.split(".")[0] for key, _ in layer.named_parameters()} <= {
            "interaction", "mix", "out", "self_connection",
        }  # fmt: skip
