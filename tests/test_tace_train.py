"""Training: which sample comes when, and what a step does."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from train_helpers import CONFIG, SHORT, build, same, trainer_of, two_levels, weights

from tace.data import Labelled, make_samples
from tace.errors import TrainingError
from tace.layers import Linear, gains
from tace.train import Trainer, draw_order, fit


@pytest.fixture
def frames(structure) -> list[Labelled]:
    return two_levels(structure)


# ---- which sample when ----


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("counts", [(5, 5), (300, 10), (1, 40, 200), (7,)])
def test_draws_are_shared_by_count_to_the_power_of_one_minus_balance(counts, balance):
    fidelities = np.repeat(np.arange(len(counts)), counts)
    share = np.array(counts, float) ** (1 - balance)
    share /= share.sum()
    for draws in (50, 1000):
        order = draw_order(fidelities, draws, balance=balance, seed=1)
        got = np.bincount(fidelities[order], minlength=len(counts))
        # multiples of the golden ratio fill any interval to within log(draws)/2 places or so
        assert np.abs(got - share * draws).max() < 1 + 0.5 * math.log(draws)


def test_shares_are_kept_all_through_the_run():
    fidelities = np.repeat([0, 1], [90, 10])
    order = draw_order(fidelities, 2000, balance=0.5, seed=0)
    rare = fidelities[order] == 1
    windows = rare.reshape(-1, 40).sum(1)  # 25 % of 40 are ten
    assert windows.min() >= 8
    assert windows.max() <= 12


def test_every_sample_is_drawn_once_before_any_is_drawn_twice():
    fidelities = np.array([0, 1, 0, 1, 0, 2, 0, 0, 1])
    order = draw_order(fidelities, 200, balance=0.3, seed=4)
    for level in range(3):
        own = np.flatnonzero(fidelities == level)
        seen = [n for n in order if fidelities[n] == level]
        assert len(seen) > 2 * len(own)
        for start in range(0, len(seen) - len(own) + 1, len(own)):
            assert sorted(seen[start : start + len(own)]) == own.tolist()


def test_the_order_follows_from_the_seed():
    fidelities = np.repeat([0, 1], [20, 5])
    first, again, other = (draw_order(fidelities, 99, balance=0.5, seed=s) for s in (3, 3, 4))
    assert (first == again).all()
    assert (first != other).any()


def test_no_sample_is_twice_in_a_batch(frames):
    trainer = trainer_of(frames, dataclasses.replace(SHORT, batch_size=64, steps=3))
    for step in range(3):
        assert sorted(trainer.batch_indices(step)) == list(range(len(frames)))


# ---- what a step does ----


def test_averaged_weights_follow_the_moving_average_with_a_short_memory_at_first(frames):
    trainer = trainer_of(frames, dataclasses.replace(SHORT, ema_decay=0.3), dtype=torch.float64)
    average = [p.detach().clone() for p in trainer.parameters]
    for n in range(1, 7):
        trainer.one_step()
        decay = min(0.3, (1 + n) / (10 + n))
        average = [
            decay * a + (1 - decay) * p.detach()
            for a, p in zip(average, trainer.parameters, strict=True)
        ]
    for mine, expected in zip(trainer.average, average, strict=True):
        assert_allclose(mine, expected, rtol=0, atol=1e-14)  # float64 round-off of weights below 2


def test_without_decay_the_average_is_the_last_step(frames):
    trainer = trainer_of(frames, dataclasses.replace(SHORT, ema_decay=0.0))
    trainer.one_step()
    assert same(trainer.average, [p.detach() for p in trainer.parameters])


def unit_norm(trainer: Trainer) -> float:
    """Norm of the gradient with respect to unit-variance parameters w/gain."""
    square = sum(
        float((p.grad * g).square().sum())
        for p, g in zip(trainer.parameters, trainer.gains, strict=True)
        if p.grad is not None
    )
    return math.sqrt(square)


def test_clipping_bounds_the_gradient_and_keeps_its_direction(frames):
    free = trainer_of(frames, dataclasses.replace(SHORT, clip_norm=1e9), dtype=torch.float64)
    tight = trainer_of(frames, dataclasses.replace(SHORT, clip_norm=1e-2), dtype=torch.float64)
    for trainer in (free, tight):
        trainer.one_step()
    assert unit_norm(free) > 0.1
    assert unit_norm(tight) == pytest.approx(1e-2, rel=1e-12)  # float64 round-off
    factor = 1e-2 / unit_norm(free)
    for a, b in zip(free.parameters, tight.parameters, strict=True):
        if a.grad is not None:
            assert_allclose(b.grad, factor * a.grad, rtol=1e-12, atol=1e-20)


def test_a_step_is_no_longer_than_the_rate_times_the_gain(frames):
    trainer = trainer_of(frames, dtype=torch.float64)
    before = [p.detach().clone() for p in trainer.parameters]
    trainer.one_step()
    for p, old, gain in zip(trainer.parameters, before, trainer.gains, strict=True):
        # Adam's first step is rate·g/(|g| + ε)
        assert float((p.detach() - old).abs().max()) <= SHORT.learning_rate * gain * (1 + 1e-9)
    assert len({round(g, 9) for g in trainer.gains}) > 2


def test_a_rate_times_the_gain_is_a_unit_variance_parametrisation():
    """Adam on W at rate·gain takes the steps of Adam on U at rate, where W = gain·U."""
    generator = torch.Generator().manual_seed(0)
    layer = Linear(8, 3, generator, gain=0.3).double()
    gain = gains(layer)["weight"]
    unit = torch.nn.Parameter(layer.weight.detach() / gain)
    assert float(unit.detach().abs().max()) <= math.sqrt(3)
    x = torch.randn(20, 8, generator=generator, dtype=torch.float64)
    y = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    ours = torch.optim.Adam([{"params": [layer.weight], "lr": 0.05 * gain}], amsgrad=True)
    plain = torch.optim.Adam([unit], lr=0.05, amsgrad=True)
    start = layer.weight.detach().clone()
    for _ in range(30):
        for optimizer, y_hat in ((ours, lambda: layer(x)), (plain, lambda: x @ (gain * unit))):
            optimizer.zero_grad()
            (y_hat() - y).square().mean().backward()
            optimizer.step()
    # the ε = 1e-8 of Adam is compared with gradients that differ by the gain: 1e-7 at most
    assert_allclose(layer.weight.detach(), gain * unit.detach(), rtol=0, atol=1e-6)
    assert float((layer.weight.detach() - start).abs().max()) > 0.05


def test_every_parameter_is_trained_at_the_rate_times_its_gain(frames):
    trainer = trainer_of(frames)
    trainer.one_step()
    rate = {id(p): g["lr"] for g in trainer.optimizer.param_groups for p in g["params"]}
    table = gains(trainer.model)
    for name, parameter in trainer.model.named_parameters():
        assert rate[id(parameter)] == pytest.approx(SHORT.learning_rate * table[name], rel=1e-12)


@pytest.mark.parametrize("changes", [{"learning_rate": 1e12}, {"learning_rate": 1e30}])
def test_a_diverging_training_names_the_frames_and_the_step(changes, frames):
    samples, settings = make_samples(frames, CONFIG), dataclasses.replace(SHORT, **changes)
    with pytest.raises(TrainingError, match=r"diverged at step \d+ .*(water|carbon)-(cheap|dear)"):
        fit(build(frames), samples, [], settings=settings)


def test_an_absurd_label_stops_the_training_and_is_named(frames):
    frames[0] = dataclasses.replace(frames[0], energy_eV=1e30)
    samples = make_samples(frames[:1], CONFIG)
    with pytest.raises(TrainingError, match="water-cheap-0"):
        fit(build(frames[1:]), samples, [], settings=SHORT)


def test_structures_without_neighbours_can_be_among_the_samples(frames, structure):
    free = Labelled(structure("atom"), "cheap", -3.0, np.zeros((1, 3)), name="free")
    model = build(frames)
    before = weights(model)
    fit(model, make_samples([free], CONFIG), [], settings=SHORT)
    # it is right from the start, with no weight to blame: nothing may move, the shift included
    assert same(weights(model), before)
    trainer = trainer_of([free, *frames], dataclasses.replace(SHORT, batch_size=8))
    assert math.isfinite(trainer.one_step())
