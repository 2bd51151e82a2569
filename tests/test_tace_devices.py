"""What runs on a GPU neither mixes devices nor waits: shown on tensors without data, which can do neither.

On the device `meta` shapes are known and numbers are not: a tensor of the CPU among those of the model is an
error of most operators, and so is every question (`bool`, `item`, `tolist`, picking rows by a mask) for whose
answer a host would have to wait.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from train_helpers import CONFIG, SHORT, build, frames_of

from tace.batch import copies
from tace.config import HeadConfig, InputConfig, LesConfig
from tace.data import collate_samples, make_samples
from tace.derivatives import evaluate
from tace.loss import loss
from tace.model import Tace
from tace.stacked import stack

MODELS = {
    "plain": {},
    "latent charges": {"les": LesConfig(n_charges=2, constraint="neutral")},
    "gates and repulsion": {"gate": "norm", "zbl": True, "residual": True, "L_max": 2},
    "uncoupled": {"mixing": "uncoupled", "readout": "per_fidelity"},
    "lower weights": {"weights": "all"},
    "heads": {
        "heads": (HeadConfig("charges", scope="atom", charges="qeq"), HeadConfig("dipole", symmetry="i")),
    },
    "a condition": {"inputs": (InputConfig("total_charge"),)},
    "a field": {"inputs": (InputConfig("electric_field"),)},
}


def without_data(structure, changes, kinds):
    """Batch, targets and configuration; the first two on `meta`."""
    frames = frames_of(structure, kinds)
    for frame in frames:
        frame.atoms.info |= {"total_charge": 1.0, "electric_field": [0.0, 0.0, 0.1]}
    config = dataclasses.replace(CONFIG, **changes)
    batch, targets = collate_samples(make_samples(frames, config), len(config.elements))
    return batch.to("meta"), targets.to("meta"), config


@pytest.mark.parametrize("name", MODELS)
def test_a_step_of_training_asks_nothing_of_the_device(name, structure):
    batch, targets, config = without_data(structure, MODELS[name], ["ethanol", "water"])
    model = Tace(config).to("meta")
    result = evaluate(model, batch, stress=True, create_graph=True)
    loss(result, targets, SHORT).backward()
    assert result.forces is not None and result.forces.device.type == "meta"
    assert all(p.grad.device.type == "meta" for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["latent charges", "lower weights", "a field"])
def test_members_in_one_pass_ask_nothing_of_the_device(name, structure):
    batch, _, config = without_data(structure, MODELS[name], ["ethanol", "water"])
    stacked = stack([Tace(config, seed=n) for n in range(2)]).to("meta")
    result = evaluate(stacked, copies(batch, 2), stress=True)
    assert result.energies.shape == (4,)


def test_latent_charges_of_crystals_ask_once_how_many_waves_there_are(structure, monkeypatch):
    """All that is asked for is the size of the grid of reciprocal vectors, which depends on the cells."""
    batch, _, config = without_data(structure, MODELS["latent charges"], ["crystal", "water"])
    model, asked = Tace(config).to("meta"), []
    with pytest.raises(NotImplementedError):
        evaluate(model, batch)
    monkeypatch.setattr("tace.les_sums.grid_sizes", lambda lengths, config: asked.append(1) or [2, 2, 2])
    evaluate(model, batch, stress=True)
    assert asked == [1]


def test_what_the_host_knows_of_labels_changes_no_number(structure):
    """The same loss whether rows are picked by what is known or by looking."""
    frames = frames_of(structure, ["ethanol", "crystal", "water"])
    frames[2] = dataclasses.replace(frames[2], energy_eV=None)
    model = build(frames, dtype=torch.float64)
    for chosen in (frames, frames[:2], frames[1:2], frames[2:]):
        batch, targets = collate_samples(make_samples(chosen, CONFIG), len(CONFIG.elements))
        result = evaluate(model, batch, stress=True)
        looked = loss(result, dataclasses.replace(targets, labelled={}), SHORT)
        assert float(loss(result, targets, SHORT)) == float(looked)
