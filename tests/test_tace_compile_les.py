"""Steps of training of models with latent charges as a graph: the sums over charges are operators of it."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch
from conftest import _structure
from numpy.testing import assert_allclose
from test_tace_compile_training import batch_of, by_pytorch, recorded_step
from train_helpers import CONFIG, SHORT, build, frames_of

from tace import graphs
from tace.config import LesConfig
from tace.data import make_samples
from tace.opaque import operators
from tace.recorded import recorded_les
from tace.train import Trainer, fit
from tace.training_graphs import TrainingGraph

LES = LesConfig(n_charges=2, constraint="neutral")  # two, so that nothing is right by chance
KINDS = ["water", "crystal", "slab", "ethanol"]


def charged(frames, *, seed=0):
    """Charges of a size that matters: a new model has small ones."""
    model = build(frames, dtype=torch.float64, seed=seed, les=LES)
    with torch.no_grad():
        for p in model.charge_readout.parameters():
            p *= 30.0
    return model


@pytest.fixture(scope="module")
def frames():
    return frames_of(_structure, KINDS)


@pytest.fixture(scope="module")
def step(frames):
    """Recorded once, on a molecule and a crystal."""
    return recorded_step(charged(frames), SHORT, batch_of([frames[0], frames[1]]))


def test_loss_and_gradients_are_those_of_pytorch_for_any_mixture_of_structures(step, frames):
    model = charged(frames, seed=3)
    graph = TrainingGraph(step, model)
    for chosen in ([frames[2]], [frames[1], frames[3], frames[2]], [frames[3], frames[0]]):
        batch = batch_of(chosen)
        value, grads = graph(*batch, SHORT, progress=0.5)
        wanted, exact = by_pytorch(model, SHORT, batch, progress=0.5)
        assert_allclose(float(value), float(wanted.detach()), rtol=1e-12)  # float64, the same sums
        size = max(float(g.abs().max()) for g in exact.values())
        assert max(float(g.abs().max()) for n, g in exact.items() if "charge_readout" in n) > 1e-3 * size
        for name, grad in exact.items():
            assert_allclose(grads[name], grad, rtol=1e-8, atol=1e-11 * size, err_msg=name)


def test_training_with_a_graph_ends_at_the_weights_of_training_without(step, frames):
    ends = []
    for compiled in (False, True):
        trainer = Trainer(charged(frames), make_samples(frames, CONFIG), [], SHORT)
        if compiled:
            trainer.route.graph = TrainingGraph(step, trainer.model)
        losses = [trainer.one_step() for _ in range(4)]
        assert (trainer.route.graph is not None) == compiled, "the graph has not been given up"
        ends.append((losses, [p.detach().clone() for p in trainer.model.parameters()]))
    assert_allclose(ends[0][0], ends[1][0], rtol=1e-9)  # round-off, through four steps of Adam
    for a, b in zip(ends[0][1], ends[1][1], strict=True):
        assert_allclose(b, a, rtol=1e-6, atol=1e-8)


@pytest.mark.filterwarnings("ignore:Backwards compatibility")
@pytest.mark.parametrize("form", ["coulomb", "dispersion"])
def test_the_operator_has_the_derivatives_of_finite_differences(frames, form):
    """To the second order, along charges, positions and cells, with and without some of them."""
    batch, _ = batch_of([frames[0], frames[2]])
    operators()
    config = dataclasses.replace(LES, form=form, n_charges=1, dl_A=3.0)
    generator = torch.Generator().manual_seed(0)
    charges = torch.randn(len(batch.species), 1, generator=generator, dtype=torch.float64)

    def energies(*inputs):
        return recorded_les(*inputs, batch, config)

    inputs = [x.detach().clone().requires_grad_() for x in (charges, batch.positions, batch.cells)]
    assert torch.autograd.gradcheck(energies, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(energies, inputs, fast_mode=True)
    for n in range(3):
        some = [x if m == n else x.detach() for m, x in enumerate(inputs)]
        assert torch.autograd.gradgradcheck(energies, some, fast_mode=True)


@pytest.mark.slow
def test_a_compiled_step_trains_to_the_weights_of_one_that_is_not(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TACE_CACHE", str(tmp_path))
    monkeypatch.setattr(graphs.Figures, "pays", property(lambda self: True))
    frames = frames_of(_structure, ["ethanol", "crystal", "slab", "water"])
    ends = []
    for mode in ("off", "on"):
        settings = dataclasses.replace(SHORT, compile=mode, steps=6, batch_size=3)
        model = charged(frames)
        with caplog.at_level(logging.INFO, logger="tace"):
            fit(model, make_samples(frames, CONFIG), [], settings=settings)
        ends.append([p.detach().clone() for p in model.parameters()])
    assert caplog.text.count("steps are compiled") == 1
    assert "fails" not in caplog.text
    for plain, made in zip(*ends, strict=True):
        assert_allclose(made, plain, rtol=1e-6, atol=1e-8)  # round-off, through six steps of Adam
