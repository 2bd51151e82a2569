"""From round to round weights are drawn towards fresh ones: what is kept is exactly the share asked for."""

from __future__ import annotations

import pytest
import torch
from emt_campaign import write_campaign
from model_helpers import build

from alchemy.campaign import run_campaign
from alchemy.config import load_campaign
from alchemy.training import shaken
from tace.io import load_model
from tace.model import Tace


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_weights_are_the_share_of_the_old_and_the_rest_of_the_new(share):
    model = build()
    old = {n: p.detach().clone() for n, p in model.named_parameters()}
    fresh = Tace(model.config, seed=3, dtype=model.dtype)
    references = model.e0_eV.clone(), model.scale_eV.clone(), model.shift_eV.clone()
    shaken(model, share, 3)
    for name, parameter in model.named_parameters():
        wanted = share * old[name] + (1.0 - share) * fresh.get_parameter(name)
        torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-14, atol=1e-15)  # rounding of a sum
    for mine, before in zip((model.e0_eV, model.scale_eV, model.shift_eV), references, strict=True):
        assert torch.equal(mine, before)


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_a_campaign_starts_its_second_training_from_that_share(tmp_path, share, monkeypatch):
    """One step at a rate of nearly nothing leaves the weights where they start."""
    path = write_campaign(tmp_path)
    text = path.read_text().replace(
        "train: {steps: 12, batch: 4}",
        f"train: {{steps: 1, batch: 4, learning_rate: 1.0e-12, warm_share: {share}}}",
    )
    path.write_text(text)
    home = run_campaign(load_campaign(path), tmp_path / "mini", until=2).home
    pairs = zip(home.members(1, 2), home.members(2, 2), strict=True)
    kept = [
        torch.allclose(load_model(a).embedding, load_model(b).embedding, rtol=0, atol=1e-9)
        for a, b in pairs
    ]
    # one member starts anew in every round, whatever the share
    assert sum(kept) == (1 if share == 1.0 else 0)
