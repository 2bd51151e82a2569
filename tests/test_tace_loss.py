"""What the loss means, and which labels it takes."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from slopes import slope_and_difference
from train_helpers import CONFIG, SHORT, build, frames_of, two_levels

from tace.committee import Committee
from tace.comparison import errors
from tace.data import Labelled, collate_samples, make_samples
from tace.derivatives import evaluate, voigt
from tace.errors import DataError
from tace.loss import loss
from tace.settings import TrainSettings
from tace.train import fit


@pytest.fixture
def frames(structure) -> list[Labelled]:
    return two_levels(structure)


def test_training_learns_a_handful_of_structures_by_heart(structure):
    frames = frames_of(structure, ["water", "carbon", "water", "carbon"])
    samples = make_samples(frames, CONFIG)
    model = build(frames, start="small")

    def found():
        said = Committee([model])([f.atoms for f in frames], fidelity="cheap", stress=True)
        model.requires_grad_(True)
        return errors(frames, said)

    before = found()
    settings = TrainSettings(steps=300, batch_size=4, learning_rate=0.03, energy_weight=30.0)
    fit(model, samples, [], settings=settings)
    after = found()
    # a model that only learned means and scales would stay near its start; four structures have
    # some 30 force components, far fewer than there are weights, so that most of the error must go;
    # stresses are small from the start and weigh little
    assert after.force_rmse_eV_per_A < 0.1 * before.force_rmse_eV_per_A
    assert after.energy_rmse_eV_per_atom < 0.15 * before.energy_rmse_eV_per_atom
    assert after.stress_rmse_eV_per_A3 < 0.6 * before.stress_rmse_eV_per_A3


def test_gradient_of_the_loss_is_its_slope_with_labels_missing(frames):
    frames[0] = dataclasses.replace(frames[0], energy_eV=None)
    frames[1] = dataclasses.replace(frames[1], forces_eV_per_A=None)
    frames[4] = dataclasses.replace(frames[4], stress_eV_per_A3=None, weight=2.5)
    model = build(frames, dtype=torch.float64)
    batch, targets = collate_samples(make_samples(frames, CONFIG), 3)

    def objective() -> torch.Tensor:
        result = evaluate(model, batch, stress=True, create_graph=True)
        return loss(result, targets, SHORT)

    slope, difference = slope_and_difference(objective, model.parameters())
    # O(h²) of the difference and 1e-16/h of round-off, relative to losses of order one
    assert slope == pytest.approx(difference, rel=1e-5)


def by_hand(frames, result, settings) -> float:
    """The loss in the words of `TrainSettings`, structure by structure."""
    energy, force, virial = [], [], []
    at = 0
    for n, f in enumerate(frames):
        count, w = len(f.atoms), f.weight
        if f.energy_eV is not None:
            energy.append((w, ((float(result.energies[n].detach()) - f.energy_eV) / count) ** 2))
        if f.forces_eV_per_A is not None:
            square = (result.forces[at : at + count].detach().numpy() - f.forces_eV_per_A) ** 2
            force += [(w, x) for x in square.ravel()]
        if f.stress_eV_per_A3 is not None:
            d = voigt(result.stresses[n].detach()).numpy() - f.stress_eV_per_A3
            d = d[[0, 5, 4, 5, 1, 3, 4, 3, 2]] * f.atoms.get_volume() / count
            virial.append((w, (d**2).mean()))
        at += count
    s = settings
    total = 0.0
    for factor, terms in (
        (s.energy_weight, energy),
        (s.forces_weight, force),
        (s.stress_weight, virial),
    ):
        if terms:
            total += factor * sum(w * x for w, x in terms) / sum(w for w, _ in terms)
    return total


@pytest.mark.parametrize(
    "missing",
    [
        {},
        {0: "energy_eV"},
        {0: "forces_eV_per_A", 4: "forces_eV_per_A"},
        {1: "stress_eV_per_A3"},
        {1: "stress_eV_per_A3", 4: "stress_eV_per_A3"},
        dict.fromkeys(range(5), "energy_eV"),
        dict.fromkeys(range(5), "forces_eV_per_A"),
    ],
)
def test_each_part_of_the_loss_is_the_mean_over_the_labels_that_are_there(missing, frames):
    for n, name in missing.items():
        frames[n] = dataclasses.replace(frames[n], **{name: None})
    frames[2] = dataclasses.replace(frames[2], weight=3.0)
    settings = TrainSettings(energy_weight=1.5, forces_weight=7.0, stress_weight=0.3)
    model = build(frames, dtype=torch.float64)
    batch, targets = collate_samples(make_samples(frames, CONFIG), 3)
    result = evaluate(model, batch, stress=True, create_graph=True)
    value = loss(result, targets, settings)
    assert float(value.detach()) == pytest.approx(by_hand(frames, result, settings), rel=1e-12)
    value.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_weight_of_two_is_the_structure_twice(frames):
    model = build(frames, dtype=torch.float64)

    def value(chosen: list[Labelled]) -> float:
        batch, targets = collate_samples(make_samples(chosen, CONFIG), 3)
        return float(loss(evaluate(model, batch, stress=True), targets, SHORT))

    heavy = [dataclasses.replace(frames[1], weight=2.0), frames[2], frames[4]]
    # float64 round-off of sums in another order
    assert value(heavy) == pytest.approx(value([frames[1], *frames[1:3], frames[4]]), rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"energy_eV": None, "forces_eV_per_A": None}, "has none of energy, forces"),
        ({"energy_eV": math.nan}, "energy is not finite"),
        ({"forces_eV_per_A": np.full((3, 3), np.inf)}, "forces is not finite"),
        ({"forces_eV_per_A": np.zeros((2, 3))}, r"forces has shape \(2, 3\)"),
        ({"stress_eV_per_A3": np.zeros(6)}, "not periodic"),
        ({"weight": 0.0}, "weight"),
        ({"weight": math.nan}, "weight"),
    ],
)
def test_impossible_labels_are_refused_with_the_name_of_the_frame(changes, says, frames):
    with pytest.raises(DataError, match=says) as caught:
        make_samples([frames[1], dataclasses.replace(frames[0], **changes)], CONFIG)
    assert "water-cheap-0" in str(caught.value)


def test_a_frame_without_a_name_is_called_by_its_place_and_formula(structure):
    with pytest.raises(DataError, match=r"frame 0 \(H2O\)"):
        make_samples([Labelled(structure("water"), "cheap")], CONFIG)
