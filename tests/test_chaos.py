"""Thirty random SIGKILLs during a campaign: what `chaos_campaign.py` reports. Minutes."""

from __future__ import annotations

import pytest
from chaos_campaign import calm, disturbed

KILLS = 30
PACE_S = 1.5  # of kills; on a machine that starts a controller in ten seconds, use more


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("overlap", [False, True], ids=["synchronous", "overlapped"])
def test_thirty_random_kills_cost_no_label_and_compute_none_twice(tmp_path, overlap):
    found = disturbed(tmp_path / "killed", kills=KILLS, seed=1, overlap=overlap, pace_s=PACE_S)
    print(f"seed 1: {found}")
    assert found["exit_code"] == 0
    assert found["failed"] == {}
    assert found["finished_twice"] == []
    assert found["orphans"] == []
    assert sum(found["kills"].values()) == KILLS
    if overlap:  # which structures are labelled depends on what arrived when
        assert len(found["labels"]) == 27 + 2 * 6
    else:
        assert found["labels"] == calm(tmp_path / "calm", nap_s=0.0)
