"""The parameters of a model at its start, and the settings it is built from."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from model_helpers import CUTOFF, TINY, evaluated

from tace.config import PRESETS, TaceConfig, preset
from tace.errors import TaceError
from tace.initial import READOUT_START
from tace.layers import gains
from tace.model import Tace, n_parameters


def test_weights_do_not_depend_on_the_dtype_and_do_on_the_seed():
    double, single = Tace(TINY, seed=1, dtype=torch.float64), Tace(TINY, seed=1)
    for a, b in zip(double.parameters(), single.parameters(), strict=True):
        assert torch.equal(a.float(), b)
    assert not torch.equal(Tace(TINY, seed=2).embedding, single.embedding)


def test_every_parameter_is_drawn_at_the_scale_of_its_gain():
    model = Tace(preset("nano", elements=(1, 6, 8), fidelities=("a", "b"), avg_neighbors=10.0))
    table = gains(model)
    for name, parameter in model.named_parameters():
        assert parameter.abs().max() <= table[name] * 3**0.5 * (1 + 1e-6)
        if parameter.numel() > 500:  # then the sample deviation scatters by some 2 %
            assert float(parameter.detach().std()) == pytest.approx(table[name], rel=0.1), name


def test_the_gain_of_each_parameter_is_that_of_its_initialisation():
    model, wide = Tace(TINY, seed=0), Tace(dataclasses.replace(TINY, channels=12), seed=0)
    for name in ("embedding", "fidelity_table", "layers.0.mix.0.weight", "energy_readout.linear.0.weight"):
        for m in (model, wide):
            largest = float(m.get_parameter(name).detach().abs().max())
            start = READOUT_START if "readout" in name else 1.0
            bound = gains(m)[name] * 3**0.5 * start
            assert 0.3 * bound < largest <= bound * (1 + 1e-6), name


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_builds_and_survives_json(name, structure):
    config = preset(name, elements=(1, 6, 8), cutoff_A=CUTOFF, avg_neighbors=10.0)
    assert TaceConfig.from_json(config.to_json()) == config
    model = Tace(config)
    assert n_parameters(model) > 1000
    assert torch.isfinite(evaluated(model, structure("water")).energies).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"elements": (8, 1)},
        {"fidelities": ()},
        {"L_max": 3},
        {"correlation": 5},
        {"paths": "some"},
        {"avg_neighbors": 0.0},
    ],
)
def test_impossible_settings_are_refused_by_name(changes):
    with pytest.raises(TaceError, match=next(iter(changes))):
        dataclasses.replace(TINY, **changes)


def test_unknown_settings_and_presets_come_with_a_suggestion():
    with pytest.raises(TaceError, match="did you mean 'correlation'"):
        TaceConfig.from_json({"elements": [1], "corelation": 3})
    with pytest.raises(TaceError, match="did you mean 'small'"):
        preset("smal", elements=(1,))
