"""A ladder, a bias and several pressures in campaigns: what is walked when, what is refused and shown."""

import json

import pytest
from emt_campaign import write_campaign

from alchemy.campaign import run_campaign
from alchemy.config import load_campaign
from alchemy.errors import ConfigError
from alchemy.report import write_report
from alchemy.stages.explore import conditions
from alchemy.state import Home
from alchemy.status import render_status, status

MD = "md: {T: [300 K], time: 40 fs, timestep: 2 fs, walkers: 2, check_every: 5}"
LADDER = "md: {T: [300 K, 500 K], ladder: [20 fs, 40 fs], timestep: 2 fs, walkers: 2, check_every: 5}"


def campaign(folder, md, *more):
    path = write_campaign(folder)
    text = path.read_text().replace(MD, md)
    for old, new in more:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


def walked(home, number):
    (ladder,) = json.loads((home.round(number) / "round.json").read_text())["explore"]["ladders"].values()
    return [(c["temperature_K"], c["time_fs"]) for c in ladder]


def test_a_campaign_climbs_a_round_at_a_time_and_is_not_done_before(tmp_path):
    goal = ("stop: {rounds: 2}", "stop: {force_rmse: 100 eV/A, rounds: 5}")  # met by any committee
    far = ("label_above: 2 eV/A", "label_above: 30 eV/A")  # nothing but accidents ends a walk
    path = campaign(tmp_path, LADDER, goal, far, ("per_round: 2", "per_round: 4"))
    outcome = run_campaign(load_campaign(path), tmp_path / "mini")
    assert outcome.stop.rule == "force_rmse" and outcome.exit_code == 0
    home = Home(tmp_path / "mini")
    assert walked(home, 1) == [(300.0, 20.0)]
    assert walked(home, 2) == [(300.0, 40.0), (500.0, 20.0)]
    assert walked(home, 3) == [(300.0, 40.0), (500.0, 40.0)]
    assert outcome.facts["round"] == 4  # the last committee; the goal was met in round 1 already
    summary = status(home.path)
    assert [row["survived"] for row in summary["ladders"]] == [2] * 5
    told = render_status(summary).renderables[1]
    assert "all walkers lived through 0.04 ps at 500 K" in told.plain
    page = write_report(home.path).read_text()
    assert "How far dynamics climbed" in page and "Reached the end" in page


def test_every_temperature_meets_every_pressure(tmp_path):
    md = "md: {T: [300 K, 600 K], pressure: [0 GPa, 1 GPa], ensemble: npt, time: 40 fs}"
    loaded = load_campaign(campaign(tmp_path, md))
    found = conditions(loaded.explore[0], loaded.stop_md)
    assert [(o["temperatures_K"], round(o["pressure_eV_per_A3"] * 160.2177, 6)) for o in found] == [
        ([300.0], 0.0), ([300.0], 1.0), ([600.0], 0.0), ([600.0], 1.0)
    ]  # fmt: skip


def test_a_bias_reaches_the_walks(tmp_path):
    md = "md: {T: [300 K], time: 40 fs, bias: udd, bias_height: 200 meV, bias_width: 5 meV}"
    loaded = load_campaign(campaign(tmp_path, md))
    (options,) = conditions(loaded.explore[0], loaded.stop_md)
    assert (options["bias_height_eV"], options["bias_width_eV"]) == (0.2, 0.005)
    loaded = load_campaign(campaign(tmp_path, MD))
    assert conditions(loaded.explore[0], loaded.stop_md)[0]["bias_height_eV"] == 0.0


@pytest.mark.parametrize(
    ("md", "says"),
    [
        ("md: {T: [300 K]}", "neither time nor ladder"),
        ("md: {T: [300 K], time: 1 ps, ladder: [1 ps]}", "both time and ladder"),
        ("md: {T: [300 K], ladder: [4 ps, 1 ps]}", "from short to long"),
        ("md: {T: [300 K, 300 K], ladder: [1 ps]}", "a value twice"),
        ("md: {T: [300 K], time: 1 ps, survive: 0.5}", "only a ladder looks at it"),
        ("md: {T: [300 K], time: 1 ps, bias_height: 1 eV}", "write bias: udd"),
        ("md: {T: [300 K], ladder: [0.1 fs, 1 ps]}", "less than one step"),
        ("md: {T: [300 K], time: 1 ps, ensemble: npt, pressure: []}", "at least 1"),
        ("md: {T: [300 K], time: 1 ps, pressure: [0 GPa, 1 GPa]}", "only npt has"),
    ],
)
def test_ladders_and_biases_that_make_no_sense_are_named(tmp_path, md, says):
    with pytest.raises(ConfigError, match=says):
        load_campaign(campaign(tmp_path, md))
