"""Transition states in a campaign: the block, the rounds, agreement, and the files of reactions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from alchemy_policies import Candidate, Exploration, WalkerReport
from alchemy_policies.calculators import CalculatorSessions
from alchemy_policies.calibration import Calibration
from alchemy_policies.ts import Reaction, Surface, verified
from ase.calculators.emt import EMT
from ase.io import write
from test_ts_saddles import swap
from ts_helpers import HCN, HNC, adatom

import alchemy.campaign
import alchemy.plugins
from alchemy.campaign import run_campaign
from alchemy.cli_check import examine
from alchemy.config import load_campaign, load_campaign_text
from alchemy.config_explain import explain
from alchemy.errors import ConfigError, InputError
from alchemy.reactions import from_trajectory, load, reactions_of, read_network
from alchemy.state import Home, RoundState
from alchemy.store import Store

CAMPAIGN = """\
alchemy: 1
name: hop
elements: [Al]
seed: 3
fidelities:
  emt: {labeler: emt, target: true}
e0: compute
model:
  preset: nano
  committee: 2
  cutoff: 3.5 A
  les: false
  overrides: {channels: 4, radial_mlp: [8]}
  train: {steps: 4, batch: 4}
start:
  - files: {paths: [a.extxyz, b.extxyz]}
    label: {emt: all}
  - rattle: {structures: a.extxyz, count: 2, stdev: 0.08 A}
    label: {emt: all}
explore:
  - ts: {TS}
stop_md: {label_above: 2 eV/A, abort_above: 40 eV/A}
select: {per_round: 2, random: 0, threshold: 0.1 meV/A, dedup: 0}
stop: {rounds: 3}
run: {where: inline}
"""
ENDS = "{reactant: a.extxyz, product: b.extxyz, images: 3, fixed: [0, 1, 2, 3]}"


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Reports have tests of their own, and cost most of a round as short as these."""
    monkeypatch.setattr(alchemy.campaign, "write_report", lambda home: None)


def campaign_of(folder: Path, ts: str = ENDS) -> Path:
    for name, shift in (("a", 0.0), ("b", 1.0)):
        atoms = adatom(shift)
        atoms.info.clear()
        atoms.set_constraint()
        write(folder / f"{name}.extxyz", atoms)
    path = folder / "campaign.yaml"
    path.write_text(CAMPAIGN.replace("{TS}", ts), encoding="utf-8")
    return path


def test_a_round_searches_labels_and_records_what_it_found(tmp_path):
    done = run_campaign(load_campaign(campaign_of(tmp_path)), tmp_path / "run", until=1)
    facts = done.facts
    (searched,) = facts["explore"]["reactions"]
    assert searched["name"] == "a-b"
    assert searched["outcome"]  # four steps of training: nothing is promised but a reason
    (row,) = facts["saddles"]
    assert row["labels"] == len(facts["select"]["picked"]) <= 2
    assert row["settled"] is None
    snapshot = Store(tmp_path / "run" / "store.h5").snapshot()
    events = list(snapshot.events(kind="candidate", round=1))
    assert {e.sampler for e in events} == {"ts"}
    slab = adatom()
    for event in events:
        moved = snapshot.structure(event.structure_uid)
        assert np.allclose(moved.positions[:4], slab.positions[:4], atol=1e-8)  # the grid of identity


def true_saddle():
    atoms = adatom()
    atoms.positions[-1, 0] += atoms.cell[0, 0] / 4
    surface = Surface(atoms, CalculatorSessions(EMT()), Calibration.uncalibrated())
    from alchemy_policies.ts.dimer import climb_dimer
    from ts_helpers import watch

    end = climb_dimer(surface, atoms.positions, watch(surface), fmax_eV_per_A=0.005, max_steps=100)
    return verified(surface, Reaction("hop", adatom(), adatom(1.0)), end.positions_A)


class Knowing:
    """An explorer that knows the true saddle, and tells its energy wrong by `off` in its first rounds."""

    off: tuple[float, ...] = (0.1, 0.0)
    told = 0
    ends = False  # whether it offers them too

    def __init__(self, **options) -> None:
        self.options = options

    def __call__(self, starts, session_factory, calibration, rng):
        saddle, kind = true_saddle(), type(self)
        off = kind.off[min(kind.told, len(kind.off) - 1)]
        kind.told += 1
        atoms = starts[0].copy()
        # not twice the same structure: a label that is known is not bought again
        atoms.positions = saddle.positions_A + 1e-6 * kind.told
        offers = [Candidate(atoms, "ts", "saddle", 0, 0, 0.0, 0.0, 0.1)]
        if kind.ends:  # the reactant, then the product
            offers += [Candidate(a.copy(), "ts", "end", 0, 0, 0.0, 0.0, 0.1) for a in starts[:2]]
        report = {"name": "a-b", "outcome": saddle.verdict, "energy_eV": saddle.energy_eV + off,
                  "barrier_eV": 0.23, "lowest_frequencies_per_cm": [-65.0]}  # fmt: skip
        walker = WalkerReport(0, 0, 0.0, 1, saddle.verdict, 0.0, 0.1)
        return Exploration(tuple(offers), (walker,), 1, {"reactions": [report]})


@pytest.fixture
def knowing(monkeypatch):
    real = alchemy.plugins.find
    made = type("Fresh", (Knowing,), {"told": 0})
    monkeypatch.setattr(
        alchemy.plugins, "find", lambda kind, name: made if name == "ts" else real(kind, name)
    )
    return made


def test_a_campaign_ends_when_model_and_label_agree_at_the_saddle(tmp_path, knowing):
    done = run_campaign(load_campaign(campaign_of(tmp_path)), tmp_path / "run")
    assert done.stop.rule == "transition-states"
    assert (done.exit_code, done.stop.message) == (0, "model and label agree at all 1 saddles")
    rounds = [RoundState(Home(tmp_path / "run"), n).facts for n in (1, 2)]
    first, second = (facts["saddles"][0] for facts in rounds)
    # the label is EMT's own energy there, to round-off and 1e-6 Å
    assert first["model_minus_label_eV"] == pytest.approx(0.1, abs=1e-5)
    assert (first["settled"], second["settled"]) == (None, "agreed")
    assert second["largest_labelled_force_eV_per_A"] < 0.05
    assert rounds[0]["select"]["picked"][0]["why"] == "saddle"
    assert second["labels"] == 2


def test_the_barrier_is_compared_with_that_of_the_labels(tmp_path, knowing):
    """EMT's barrier of the hop is what the stand-in says but for the relaxation of the reactant."""
    knowing.ends = True
    text = ENDS.replace("}", ", max_labels: 9}")
    run_campaign(load_campaign(campaign_of(tmp_path, text)), tmp_path / "run", until=1)
    facts = RoundState(Home(tmp_path / "run"), 1).facts
    start, saddle = adatom(0.0), adatom(0.0)
    saddle.positions = true_saddle().positions_A + 1e-6
    energies = []
    for atoms in (start, saddle):
        atoms.calc = EMT()
        energies.append(atoms.get_potential_energy())
    barrier = energies[1] - energies[0]
    assert facts["saddles"][0]["labelled_barrier_eV"] == pytest.approx(barrier, abs=1e-6)
    assert facts["barriers"] == {"mae_eV": pytest.approx(abs(0.23 - barrier), abs=1e-6), "count": 1}


def test_labels_of_a_reaction_are_capped_and_the_campaign_says_so(tmp_path, knowing):
    knowing.off = (0.1,)
    text = ENDS.replace("}", ", max_labels: 1}")
    done = run_campaign(load_campaign(campaign_of(tmp_path, text)), tmp_path / "run")
    assert done.exit_code == 5
    assert "a-b (label-cap)" in done.stop.message


# files --------------------------------------------------------------------------------------------


def network(folder: Path, text: str) -> Path:
    write(folder / "hcn.xyz", HCN)
    write(folder / "both.extxyz", [HCN, HNC])
    path = folder / "reactions.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_network_file_names_files_and_frames(tmp_path):
    path = network(
        tmp_path,
        "reactions:\n- {name: flip, reactant: hcn.xyz, product: both.extxyz@1}\n"
        "- {name: No, guess: hcn.xyz}\n",
    )
    flip, alone = (load(entry, tmp_path) for entry in read_network(path))
    assert flip.product.positions == pytest.approx(HNC.positions)
    assert (alone.name, alone.is_guess) == ("No", True)
    with pytest.raises(InputError, match="holds 2 structures"):
        load(type(read_network(path)[0])("x", "both.extxyz"), tmp_path)
    with pytest.raises(InputError, match="no such structure file"):
        load(type(read_network(path)[0])("x", "gone.xyz"), tmp_path)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("reactions: 3\n", "write a list"),
        ("reaction: []\n", "did you mean 'reactions'"),
        ("reactions:\n- {name: a}\n", "neither 'reactant' nor 'guess'"),
        ("reactions:\n- {name: a, product: b.xyz, guess: c.xyz}\n", "without 'reactant'"),
        ("reactions:\n- {reactnt: a.xyz}\n", "did you mean 'reactant'"),
        ("reactions:\n- {name: a, guess: x}\n- {name: a, guess: x}\n", "stands twice"),
        ("reactions:\n- [a, b]\n", "write '- {name"),
        ("", "empty"),
    ],
)
def test_mistakes_in_a_network_file_are_told_by_line(tmp_path, text, what):
    with pytest.raises(InputError, match=what):
        read_network(network(tmp_path, text))
    with pytest.raises(InputError, match="cannot be read"):
        read_network(tmp_path / "gone.yaml")


def test_a_trajectory_in_which_nothing_reacts_is_refused(tmp_path):
    write(tmp_path / "md.extxyz", swap())
    (reaction,) = from_trajectory(tmp_path / "md.extxyz")
    assert reaction.name.startswith("md-")
    write(tmp_path / "still.extxyz", [HCN] * 5)
    with pytest.raises(InputError, match="no bond formed or broke"):
        from_trajectory(tmp_path / "still.extxyz")


@pytest.mark.parametrize(
    ("block", "what"),
    [
        ("{method: neb}", "found none of network"),
        ("{network: a.extxyz, guess: b.extxyz}", "network and guess"),
        ("{product: b.extxyz, guess: a.extxyz}", "'product' without 'reactant'"),
        ("{reactant: gone.xyz, product: b.extxyz}", "gone.xyz"),
        ("{reactant: a.extxyz, product: b.extxyz, images: 0}", "images"),
        ("{reactant: a.extxyz, product: b.extxyz, fmax: 3}", "fmax"),
        ("", "found nothing under 'ts'"),
    ],
)
def test_mistakes_in_the_block_are_told_with_their_key(tmp_path, block, what):
    with pytest.raises(ConfigError, match=what):
        load_campaign(campaign_of(tmp_path, block))


def test_the_block_is_explained_and_reads_back(tmp_path):
    campaign = load_campaign(campaign_of(tmp_path))
    text = explain(campaign)
    assert load_campaign_text(text, "x", tmp_path) == campaign
    for said in ("agree_energy: 0.03 eV", "max_labels: 12", "Labels of the target level for a reaction"):
        assert said in text
    assert [r.name for r in reactions_of(campaign, 0)] == ["a-b"]


def test_check_finds_ends_that_cannot_be_joined(tmp_path):
    path = campaign_of(tmp_path)
    assert examine(load_campaign(path)).problems == []
    fewer = adatom(1.0)[:-1]
    fewer.info.clear()
    write(tmp_path / "b.extxyz", fewer)
    problems = examine(load_campaign(path)).problems
    assert any("a path keeps all its atoms" in p for p in problems)
    far = campaign_of(tmp_path, ENDS.replace("3]", "99]"))
    assert any("no atom 99 to fix" in p for p in examine(load_campaign(far)).problems)
