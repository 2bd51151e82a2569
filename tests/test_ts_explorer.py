"""Transition states as an explorer, and the loop of labels around one saddle."""

from __future__ import annotations

import numpy as np
import pytest
from alchemy_policies import PolicyError, TransitionStates
from alchemy_policies.calculators import CalculatorSessions
from alchemy_policies.calibration import Calibration
from alchemy_policies.testing import check_explorer
from alchemy_policies.ts import refine_saddle
from alchemy_policies.ts.refine import agrees
from ts_helpers import (
    HCN,
    HIGH,
    HIGH_BARRIER,
    HOP,
    LEFT,
    MIDDLE,
    MullerBrown,
    at,
    explore,
    labelled,
    outcomes,
)

QUICK = {"climb_steps": 20, "neb_steps": 20, "images": 3}


@pytest.mark.parametrize("method", ["neb", "neb+dimer", "dimer"])
def test_the_explorer_keeps_the_laws(method):
    # the low threshold makes the walker stop and offer where the toy's members part
    check_explorer(lambda: TransitionStates(label_above_eV_per_A=0.05, search={**QUICK, "method": method}))


def test_the_laws_hold_for_pairs_too():
    starts = [HCN.copy(), HCN.copy()]
    starts[1].positions[0] = [0.5, 1.5, 0.0]
    pair = ({"name": "a", "reactant": 0, "product": 1},)
    # the toy knows one home for each number of atoms: give it a start of another size to begin with
    from alchemy_policies.testing import ToyCommittee

    toy = ToyCommittee.around(starts[:1])
    explorer = TransitionStates(reactions=pair, search={**QUICK, "relax_ends": False})
    found = explorer(starts, toy, Calibration.uncalibrated(), np.random.default_rng(0))
    again = explorer(starts, toy, Calibration.uncalibrated(), np.random.default_rng(0))
    assert [c.atoms for c in found.candidates] == [c.atoms for c in again.candidates]
    assert found.force_calls == again.force_calls > 0


def test_a_report_says_what_was_found_in_plain_values():
    import json

    found = explore([at(LEFT), at(MIDDLE)], *[MullerBrown(scale=s) for s in (0.95, 1.05)])
    (report,) = json.loads(json.dumps(found.facts, allow_nan=False))["reactions"]
    assert report["outcome"] == "saddle"
    # force² / (2 curvature) at 0.02 eV/Å and the ends at 0.05
    assert report["barrier_eV"] == pytest.approx(HIGH_BARRIER, abs=2e-3)
    assert report["members"] == 2
    assert report["force_calls"] == found.force_calls
    by_reason = {c.reason: c.atoms.positions for c in found.candidates}
    assert {"end", "path", "saddle", "along-mode"} <= set(by_reason)
    assert by_reason["saddle"][1, :2] == pytest.approx(HIGH, abs=0.01)
    beside = [c.atoms.positions for c in found.candidates if c.reason == "along-mode"]
    for x in beside:  # 0.1 Å from the saddle, on both sides
        assert np.linalg.norm(x - by_reason["saddle"]) == pytest.approx(0.1, abs=1e-9)
    assert np.mean(beside, axis=0) == pytest.approx(by_reason["saddle"], abs=1e-9)


def test_the_order_of_reactions_does_not_change_what_each_finds():
    forward = {"name": "f", "reactant": 0, "product": 1}
    options = {"reactions": (forward, {"name": "b", "reactant": 1, "product": 0})}
    found = explore([at(LEFT), at(MIDDLE)], MullerBrown(), **options)
    alone = explore([at(LEFT), at(MIDDLE)], MullerBrown(), reactions=(forward,))
    own = [c.atoms for c in found.candidates if c.walker == 0]
    assert own == [c.atoms for c in alone.candidates]
    assert outcomes(found) == ["saddle", "duplicate"]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"search": {"method": "nebb"}}, "must be one of neb"),
        ({"search": {"images": 0}}, "at least 1"),
        ({"search": {"fmax_eV_per_A": 0.0}}, "must be positive"),
        ({"label_above_eV_per_A": 9.0}, "label_above < abort_above"),
        ({"check_every": 0}, "at least 1"),
        ({"travel_A": -1.0}, "must be positive"),
    ],
)
def test_options_that_cannot_work_are_refused(options, what):
    with pytest.raises(PolicyError, match=what):
        TransitionStates(**options)


@pytest.mark.parametrize(
    "reaction", [{"reactant": 5}, {"product": 0}, {"reactant": 0, "products": 1}, {"reactant": "0"}]
)
def test_reactions_that_name_no_structure_are_refused(reaction):
    with pytest.raises(PolicyError, match="react"):
        explore([at(LEFT)], MullerBrown(), reactions=(reaction,))


def test_constraints_that_would_be_ignored_are_refused():
    from ase.constraints import FixBondLength

    bound = at(LEFT)
    bound.set_constraint(FixBondLength(0, 1))
    found = explore([bound, at(MIDDLE), at(LEFT)], MullerBrown(), reactions=({"reactant": 0, "product": 1},))
    assert outcomes(found) == ["disconnected"]
    assert "FixBondLength" in found.facts["reactions"][0]["message"]


# the loop of labels --------------------------------------------------------------------------------

def truth(frames):
    return labelled(frames, MullerBrown())


def student(labels: int):
    """Members whose flaw, a tilt of the plane, fades as labels come in."""
    tilt = 0.4 / (1 + labels) ** 1.5
    members = [MullerBrown(slope=tilt * s) for s in (0.5, 1.5)]
    return CalculatorSessions(members), Calibration.uncalibrated()


def refined(label=truth, **settings):
    return refine_saddle(
        HOP, TransitionStates(), label=label, learn=lambda known: student(len(known)), first=student(0),
        rng=np.random.default_rng(0), **settings,
    )  # fmt: skip


def test_the_loop_ends_when_model_and_label_agree_at_the_saddle():
    done = refined()
    assert done.outcome == "agreed"
    last = done.attempts[-1]
    assert agrees(last.energy_difference_eV, last.largest_labelled_force_eV_per_A)
    assert not agrees(done.attempts[0].energy_difference_eV, done.attempts[0].largest_labelled_force_eV_per_A)
    assert done.labels + done.end_labels == len(done.labelled)
    assert done.labels <= 12
    # 50 meV/Å of labelled force on a saddle of 10 eV/Å²: 5 mÅ and a tenth of a meV
    assert done.result.saddle.positions_A[1, :2] == pytest.approx(HIGH, abs=0.02)
    assert [a.labels for a in done.attempts] == sorted(a.labels for a in done.attempts)
    # the ends' own distance from the minima costs half a force², 0.05 eV/Å, over 5 eV/Å² and more
    assert done.labelled_barriers_eV[0] == pytest.approx(HIGH_BARRIER, abs=2e-3)
    again = refined()
    assert again.attempts == done.attempts


def test_the_loop_ends_at_the_cap_and_with_labels_that_fail():
    capped = refined(max_labels=1)
    assert (capped.outcome, capped.labels) == ("label-cap", 1)
    assert np.isnan(capped.labelled_barriers_eV).all()
    failing = refined(label=lambda frames: [None] * len(frames))
    assert failing.outcome == "labels-failed"
    assert failing.labelled == ()
    with pytest.raises(PolicyError, match="at least 1"):
        refined(max_labels=0)


def test_agreement_needs_energy_and_force():
    assert agrees(-0.029, 0.049)
    assert not agrees(0.031, 0.0)
    assert not agrees(0.0, 0.051)
    assert not agrees(None, None)
