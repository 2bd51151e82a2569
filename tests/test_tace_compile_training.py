"""Steps of training as a compiled graph: the same gradients, and who decides that they are worth it."""

from __future__ import annotations

import dataclasses
import json
import logging

import numpy as np
import pytest
import torch
from conftest import _structure
from numpy.testing import assert_allclose
from train_helpers import CONFIG, SHORT, build, frames_of, trainer_of, two_levels

from tace import graphs, training_graphs, training_route
from tace.config import HeadConfig, LesConfig
from tace.data import collate_samples, make_samples
from tace.errors import TaceError
from tace.loss import loss
from tace.model import Tace
from tace.recorded import recordable
from tace.recording import record, weights
from tace.settings import TrainSettings
from tace.train import fit
from tace.training_graphs import (
    TERMS,
    TrainingGraph,
    masked_loss,
    refusal,
    step_dimensions,
    step_tensors,
    trained,
    training,
)
from tace.training_route import Route, too_few
from tace.validation import Plan

KINDS = {"forces": "huber", "energy": "mae", "stress": "l2"}


def batch_of(frames):
    return collate_samples(make_samples(frames, CONFIG), len(CONFIG.elements))


def recorded_step(model, settings, batch):
    """The graph of a step as PyTorch runs it, in the place of the built one."""
    made = recordable(model)
    plan = Plan(forces=True, stress=True, responses=(), hessians=False)
    kinds = {name: settings.loss_kinds.get(name, "mse") for name in TERMS}
    values = [x.detach() for x in weights(made).values()]
    tensors = step_tensors(*batch, settings, progress=0.0)
    graph = record(training(made, [], plan, kinds), values, tensors, step_dimensions(batch[0]))
    return lambda values, tensors: graph(values, tensors)


@pytest.fixture(scope="module")
def frames():
    return two_levels(_structure)


@pytest.fixture(scope="module")
def step(frames):
    """Recorded once, on the first and a periodic frame."""
    model = build(frames, dtype=torch.float64)
    return recorded_step(model, SHORT, batch_of([frames[0], frames[1]]))


def by_pytorch(model, settings, batch, *, progress=0.0):
    plan = Plan(forces=True, stress=True, responses=(), hessians=False)
    parameters = dict(model.named_parameters())
    objective = loss(plan.evaluate(model, *batch, create_graph=True), batch[1], settings, progress=progress)
    grads = torch.autograd.grad(objective, list(parameters.values()), materialize_grads=True)
    return objective, dict(zip(parameters, grads, strict=True))


def test_a_step_recorded_once_gives_loss_and_gradients_for_any_batch(step, frames):
    model = build(frames, dtype=torch.float64, seed=3)
    graph = TrainingGraph(step, model)
    nothing = dataclasses.replace(frames[2], energy_eV=None, stress_eV_per_A3=None)
    for chosen in ([frames[3]], [frames[1], frames[4], frames[0]], [frames[1], nothing]):
        batch = batch_of(chosen)
        settings = dataclasses.replace(SHORT, energy_weight=3.0)
        value, grads = graph(*batch, settings, progress=0.8)
        wanted, exact = by_pytorch(model, settings, batch, progress=0.8)
        assert_allclose(float(value), float(wanted.detach()), rtol=1e-12)  # float64, the same sums
        assert set(grads) == set(exact)
        size = max(float(g.abs().max()) for g in exact.values())
        for name, grad in exact.items():
            assert_allclose(grads[name], grad, rtol=1e-8, atol=1e-11 * size, err_msg=name)


@pytest.mark.parametrize("kinds", [{}, KINDS], ids=["squares", "others"])
def test_masks_give_the_loss_that_picking_rows_gives(frames, kinds, rng):
    settings = dataclasses.replace(SHORT, loss_kinds=kinds)
    gaps = [dataclasses.replace(frames[1], energy_eV=None), frames[0], frames[4]]
    batch, targets = batch_of(gaps)
    model = build(frames, dtype=torch.float64)
    plan = Plan(forces=True, stress=True, responses=(), hessians=False)
    result = plan.evaluate(model, batch, targets, create_graph=False)
    labels = {name: getattr(targets, name) for name in training_graphs.TARGETS}
    own = torch.tensor([settings.weight(name) for name in TERMS], dtype=torch.float64)
    found = masked_loss((result.energies, result.forces, result.stresses), labels, own, kinds=kinds)
    assert_allclose(float(found), float(loss(result, targets, settings)), rtol=1e-12)
    none = {**labels, "energies": labels["energies"] * np.nan}
    assert bool(torch.isfinite(masked_loss((result.energies, None, None), none, own, kinds=kinds)))


def test_training_with_a_graph_ends_at_the_weights_of_training_without(step, frames):
    ends, used = [], []
    for compiled in (False, True):
        trainer = trainer_of(frames, dtype=torch.float64)
        if compiled:
            graph = TrainingGraph(step, trainer.model)
            trainer.route.graph = graph
        losses = [trainer.one_step() for _ in range(4)]
        used.append(trainer.route.graph is not None)
        ends.append((losses, trainer.finish() and [p.detach() for p in trainer.model.parameters()]))
    assert used == [False, True]
    assert_allclose(ends[0][0], ends[1][0], rtol=1e-9)  # round-off, through four steps of Adam
    for a, b in zip(ends[0][1], ends[1][1], strict=True):
        assert_allclose(b, a, rtol=1e-6, atol=1e-8)


def test_a_graph_that_fails_is_given_up_and_training_goes_on(frames, caplog):
    def fail(values, tensors):
        raise RuntimeError("out of something")

    trainer, other = trainer_of(frames), trainer_of(frames)
    trainer.route.graph = TrainingGraph(fail, trainer.model)
    assert trainer.one_step() == other.one_step()
    assert trainer.route.graph is None and "out of something" in caplog.text


# ------------------------------------------------------------------ who decides
class BuildingError(Exception):
    """Raised where a graph would be built."""


@pytest.fixture
def no_cache(monkeypatch):
    """Nothing is built, and nothing has been."""

    def build_step(*arguments, **options):
        raise BuildingError

    monkeypatch.setattr(training_route, "build_step", build_step)
    monkeypatch.setattr(training_graphs, "figures_of", lambda path: None)


def route_of(frames, **settings) -> tuple[Route, list]:
    trainer = trainer_of(frames, dataclasses.replace(SHORT, **settings))
    return trainer.route, trainer.train


def test_few_steps_are_left_to_pytorch_and_many_are_not(frames, no_cache, caplog):
    route, samples = route_of(frames)
    with caplog.at_level(logging.INFO, logger="tace"):
        route.choose(samples, 2000)
    assert route.chosen is False
    assert "would save" in caplog.text and "to build" in caplog.text
    assert too_few(route.model, 2000) and not too_few(route.model, 200_000)
    charged = build(frames, les=LesConfig())  # whose steps a graph makes less faster
    enough = next(n for n in range(1000, 200_000, 1000) if not too_few(route.model, n))
    assert too_few(charged, enough) and not too_few(charged, 2 * enough)
    route, samples = route_of(frames)
    with pytest.raises(BuildingError):
        route.choose(samples, 200_000)


def test_off_builds_nothing_and_on_builds_at_once(frames, no_cache):
    route, samples = route_of(frames, compile="off")
    route.choose(samples, 200_000)
    assert route.chosen is False and route.graph is None
    route, samples = route_of(frames, compile="on")
    with pytest.raises(BuildingError):
        route.choose(samples, 1)


def test_a_graph_that_has_been_built_is_taken_for_any_number_of_steps(frames, no_cache, monkeypatch):
    figures = graphs.Figures("", 60.0, 2.0, 1.0, 0.0, 0.0)
    monkeypatch.setattr(training_graphs, "figures_of", lambda path: figures)
    route, samples = route_of(frames)
    with pytest.raises(BuildingError):
        route.choose(samples, 1)


def test_a_run_that_is_continued_keeps_to_what_it_began_with(frames, no_cache):
    trainer = trainer_of(frames)
    trainer.route.choose(trainer.train, 10)
    trainer.one_step()
    state = trainer.state()
    other = trainer_of(frames, dataclasses.replace(SHORT, compile="auto"))
    other.restore(state)
    other.route.choose(other.train, 200_000)
    assert other.route.chosen is False
    state["compiled"] = True
    third = trainer_of(frames, dataclasses.replace(SHORT, compile="off"))
    third.restore(state)
    with pytest.raises(BuildingError):
        third.route.choose(third.train, 1)


def test_without_a_compiler_training_says_so_and_goes_on(frames, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("TACE_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    model, samples = build(frames), make_samples(frames, CONFIG)
    result = fit(model, samples, [], settings=dataclasses.replace(SHORT, compile="on", steps=2))
    assert result.steps == 2
    assert "no compiled step, PyTorch does it: there is no compiler 'no-such-compiler'" in caplog.text


def test_what_graphs_do_not_hold_is_refused_with_the_reason(frames, caplog, monkeypatch):
    plan = Plan(forces=True, stress=False, responses=("dipole",), hessians=True)
    assert "labels of dipole, hessian" in refusal(build(frames), plan)
    plain = Plan(forces=True, stress=False, responses=(), hessians=False)
    assert refusal(build(frames), plain) == ""
    assert refusal(Tace(dataclasses.replace(CONFIG, les=LesConfig())), plain) == ""
    with_head = Tace(dataclasses.replace(CONFIG, heads=(HeadConfig("dipole"),)))
    assert refusal(with_head, plain) == ""
    monkeypatch.setenv("TACE_GRAPHS", "0")
    trainer = trainer_of(frames, dataclasses.replace(SHORT, compile="on"))
    trainer.route.choose(trainer.train, 10)
    assert "PyTorch does the steps, for TACE_GRAPHS=0" in caplog.text


def test_another_word_for_compile_is_an_error():
    with pytest.raises(TaceError, match="unknown compile 'yes': use auto, on, off"):
        TrainSettings(compile="yes")


def test_frozen_parts_have_no_gradients_in_a_graph(frames):
    model = build(frames)
    model.embedding.requires_grad_(False)
    assert "embedding" not in trained(model) and "embedding" not in trained(recordable(model))
    plan = Plan(forces=True, stress=False, responses=(), hessians=False)
    kind = training_graphs.kind_of(model, plan, SHORT)
    assert "embedding" not in json.loads(kind)[-1]
    assert kind != training_graphs.kind_of(build(frames), plan, SHORT)


@pytest.mark.slow
def test_a_compiled_step_trains_to_the_same_errors_and_is_built_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TACE_CACHE", str(tmp_path))
    monkeypatch.setattr(graphs.Figures, "pays", property(lambda self: True))
    frames = frames_of(_structure, ["ethanol", "crystal", "ethanol", "water"])
    ends = []
    for mode in ("off", "on", "on"):
        model = build(frames, dtype=torch.float64)
        settings = dataclasses.replace(SHORT, compile=mode, steps=6, batch_size=3)
        with caplog.at_level(logging.INFO, logger="tace"):
            fit(model, make_samples(frames, CONFIG), [], settings=settings)
        ends.append([p.detach().clone() for p in model.parameters()])
    assert caplog.text.count("steps are compiled") == 2
    assert len(list(tmp_path.glob("graph-*.pt2"))) == 1
    for plain, first, second in zip(*ends, strict=True):
        assert torch.equal(first, second)
        assert_allclose(first, plain, rtol=1e-6, atol=1e-8)  # round-off, through six steps of Adam
