"""Explorers that fail: what a campaign says, and that it goes on with the others."""

import json

import pytest
from alchemy_policies.base import Candidate, Exploration, PolicyError, WalkerReport
from ase.build import bulk
from emt_campaign import write_campaign

import alchemy.plugins
from alchemy.campaign import run_campaign
from alchemy.config import load_campaign
from alchemy.errors import EnvironmentProblemError
from alchemy.state import Home
from alchemy.tasks import found_document

MD = "  - md: {T: [300 K], time: 40 fs, timestep: 2 fs, walkers: 2, check_every: 5}\n"


def failing(error):
    class Broken:
        def __call__(self, starts, session_factory, calibration, rng):
            raise error

    return Broken


@pytest.fixture
def campaign(tmp_path, monkeypatch):
    def make(error, explore):
        real = alchemy.plugins.find

        def find(kind, name):
            return failing(error) if name == "broken" else real(kind, name)

        monkeypatch.setattr(alchemy.plugins, "find", find)
        monkeypatch.setattr("alchemy.config_samples.installed", lambda kind: ["broken"])
        path = write_campaign(tmp_path)
        text = path.read_text()
        assert MD in text
        path.write_text(text.replace(MD, explore).replace("rounds: 2", "rounds: 1"))
        return load_campaign(path)

    return make


def test_a_plug_in_that_raises_costs_its_candidates_and_the_campaign_goes_on(campaign, tmp_path):
    outcome = run_campaign(campaign(ZeroDivisionError("by zero"), "  - broken:\n" + MD), tmp_path / "mini")
    assert outcome.exit_code == 0
    facts = json.loads((Home(tmp_path / "mini").round(1) / "round.json").read_text())["explore"]
    assert facts["broken"] == [{"explorer": "broken", "message": "ZeroDivisionError: by zero"}]
    assert facts["candidates"] > 0


@pytest.mark.parametrize(
    ("error", "raised", "says"),
    [
        (ZeroDivisionError("by 0"), EnvironmentProblemError, "explorer 'broken' failed: ZeroDivisionE"),
        (PolicyError("needs a slab"), PolicyError, "needs a slab"),
    ],
)
def test_where_nobody_else_explores_the_campaign_stops_with_the_reason(
    campaign, tmp_path, error, raised, says
):
    with pytest.raises(raised, match=says):
        run_campaign(campaign(error, "  - broken:\n"), tmp_path / "mini")
    done = json.loads((Home(tmp_path / "mini").round(1) / "state.json").read_text())
    assert "explore" not in done["stages"]  # the same command tries it again


def explored(atoms, *, walker):
    """Of two walkers, which report under names of their own."""
    reports = tuple(WalkerReport(name, n, 0.0, 0, "finished", 0.0, 0.1) for n, name in enumerate((7, 3)))
    found = Candidate(atoms, "broken", "sampled", walker, 0, 0.0, 0.0, 0.1)
    return Exploration((found,), reports, 0)


def test_the_names_of_walkers_are_the_explorers_own():
    found = found_document(explored(bulk("Cu"), walker=3), [29])
    assert found["walkers"][found["candidates"][0]["walker"]]["start"] == 1


@pytest.mark.parametrize(
    ("outcome", "says"),
    [
        (explored(bulk("Al"), walker=3), "holds Al; the committee was built for Cu"),
        (explored(bulk("Cu"), walker=1), "names walker 1, which has no WalkerReport"),
    ],
)
def test_a_candidate_that_cannot_be_judged_is_the_explorers_fault(outcome, says):
    """It is refused where it is offered: kept, it would stop every later try of the round."""
    with pytest.raises(PolicyError, match=says):
        found_document(outcome, [29])
