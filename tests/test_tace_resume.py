"""A training can be repeated to the bit, stopped and continued; another one is refused."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from train_helpers import CONFIG, SHORT, build, same, trainer_of, two_levels, weights

from tace.data import Labelled, make_samples
from tace.errors import TaceError, TrainingError
from tace.io import read_archive, save_model, write_archive
from tace.model import Tace
from tace.settings import TrainSettings
from tace.train import Trainer, fit


@pytest.fixture
def frames(structure) -> list[Labelled]:
    return two_levels(structure)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_seed_gives_the_same_weights_to_the_bit_and_another_seed_others(dtype, frames):
    samples = make_samples(frames, CONFIG)

    def trained(seed: int) -> Tace:
        model = build(frames, dtype=dtype)
        settings = dataclasses.replace(SHORT, seed=seed)
        result = fit(model, samples[1:], samples[:1], settings=settings)
        assert math.isfinite(result.last_force_rmse_eV_per_A)
        assert model.dtype == dtype
        assert model.shift_eV.dtype == torch.float64
        return model

    first, again, other = weights(trained(1)), weights(trained(1)), weights(trained(2))
    assert same(first, again)
    assert not same(first, other)


def test_float32_training_follows_float64_at_first(frames):
    single, double = trainer_of(frames), trainer_of(frames, dtype=torch.float64)
    for _ in range(3):
        # float32 forces are right to 1e-5 or so, and so are the steps that follow from them
        assert single.one_step() == pytest.approx(double.one_step(), rel=1e-3)


@pytest.mark.parametrize("same_object", [False, True])
@pytest.mark.parametrize(("schedule", "stop"), [("cosine", 5), ("constant", 6), ("linear", 1)])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(
    schedule, stop, same_object, frames, tmp_path
):
    samples = make_samples(frames, CONFIG)
    settings = dataclasses.replace(SHORT, schedule=schedule)
    whole, part = build(frames), build(frames)
    expected = fit(whole, samples[2:], samples[:2], settings=settings)

    file = tmp_path / "x.checkpoint"

    def stopping(step: int, _: float) -> bool:
        return step < stop

    halves = {"settings": settings, "checkpoint": file}
    fit(part, samples[2:], samples[:2], on_step=stopping, **halves)
    assert read_archive(file)["step"] == stop
    again = part if same_object else build(frames, seed=5)  # its weights come from the checkpoint
    result = fit(again, samples[2:], samples[:2], **halves)
    assert same(weights(again), weights(whole))
    assert result == expected


def test_a_resumed_run_remembers_the_plateau(frames, tmp_path, monkeypatch):
    found = {"force_rmse_eV_per_A": 1.0}
    monkeypatch.setattr(Trainer, "validate", lambda trainer: found)  # never better than at first
    samples = make_samples(frames, CONFIG)
    settings = TrainSettings(steps=16, batch_size=1, validate_every=1, schedule="plateau")
    whole, file = build(frames), tmp_path / "x.checkpoint"
    trainers = []
    monkeypatch.setattr(Trainer, "finish", lambda trainer: trainers.append(trainer))
    fit(whole, samples[1:], samples[:1], settings=settings)
    for stop in (7, 13, 99):  # the rate falls after step 11
        model = build(frames)
        fit(
            model,
            samples[1:],
            samples[:1],
            settings=settings,
            checkpoint=file,
            on_step=lambda step, _, stop=stop: step < stop,
        )
    assert trainers[0].rate_factor == trainers[-1].rate_factor == 0.8
    assert trainers[0].since_best == trainers[-1].since_best
    assert same(weights(model), weights(whole))
    assert same(trainers[-1].average, trainers[0].average)


def test_checkpoints_are_written_every_so_many_steps(frames, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(
        "tace.train.write_archive", lambda path, state: written.append(state["step"])
    )
    samples = make_samples(frames, CONFIG)
    file = tmp_path / "x"
    fit(build(frames), samples, [], settings=SHORT, checkpoint=file, checkpoint_every=4)
    assert written == [4, 8]


def checkpoint_of(trainer: Trainer, path) -> dict:
    write_archive(path, trainer.state())
    return read_archive(path)


@pytest.mark.parametrize("what", ["settings", "config", "dtype", "samples"])
def test_a_checkpoint_of_another_training_is_refused(what, frames, tmp_path):
    state = checkpoint_of(trainer_of(frames), tmp_path / "x")
    samples, model, settings = make_samples(frames, CONFIG), build(frames), SHORT
    if what == "settings":
        settings = dataclasses.replace(SHORT, forces_weight=11.0)
    elif what == "config":
        model = Tace(dataclasses.replace(CONFIG, avg_neighbors=5.0))
    elif what == "dtype":
        model = build(frames, dtype=torch.float64)
    else:
        samples = samples[1:]
    before = weights(model)
    with pytest.raises(TrainingError, match=f"another training: {what}"):
        Trainer(model, samples, [], settings).restore(state)
    assert same(weights(model), before)


def test_a_model_file_is_no_checkpoint(frames, tmp_path):
    save_model(tmp_path / "m.pt", build(frames))
    samples = make_samples(frames, CONFIG)
    with pytest.raises(TrainingError, match="format"):
        fit(build(frames), samples, [], settings=SHORT, checkpoint=tmp_path / "m.pt")


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": "step"},
        {"steps": 0},
        {"batch_size": -1},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"clip_norm": 0.0},
        {"validate_every": 0},
    ],
)
def test_impossible_settings_are_refused_by_name(changes):
    with pytest.raises(TaceError, match=next(iter(changes))):
        TrainSettings(**changes)


def test_an_empty_training_set_is_refused(frames):
    with pytest.raises(TrainingError, match="empty"):
        fit(build(frames), [], [], settings=SHORT)
