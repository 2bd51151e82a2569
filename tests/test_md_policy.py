"""Molecular dynamics: when a walker stops and what it offers then."""

import math

import numpy as np
import pytest
from alchemy_policies.base import PolicyError
from alchemy_policies.calibration import Calibration
from alchemy_policies.integrators import ACCELERATION
from alchemy_policies.testing import ToyCommittee, check_explorer
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms, FixBondLength
from md_scripts import LABEL, NPT, PLAIN, WATER, Scripted, crowd, crystals, explore, options


def test_an_nve_exploration_keeps_the_total_energy_of_its_walker():
    toy, timestep = ToyCommittee.around([WATER]), 0.25
    path, potential = [], []

    def factory(frames):
        session = toy(frames)

        def watched(positions_A, member_forces):
            said = session(positions_A, member_forces)
            path.append(positions_A.copy())
            potential.append(float(said.mean_energies[0]))
            return said

        return watched

    explore(options(ensemble="nve", time_fs=400.0, timestep_fs=timestep), [WATER], factory)
    x = np.array(path)
    v = (x[2:] - x[:-2]) / (2 * timestep)  # velocity Verlet's own velocity is this difference
    kinetic = 0.5 * ((v**2).sum(2) * WATER.get_masses()).sum(1) / ACCELERATION
    total = kinetic + np.array(potential[1:-1])
    assert np.ptp(kinetic) > 0.5 * kinetic.max()  # it does move
    # the H oscillates with ω dt = 0.035; the energy of velocity Verlet wavers by (ω dt)²/4 = 3e-4
    assert np.ptp(total) < 1e-3 * total.mean()


# ---- independence and bookkeeping


def test_a_path_does_not_depend_on_the_walkers_beside_it():
    starts, homes = crowd(4)
    explorer = options(walkers=4, samples=5)
    together = explore(explorer, starts, Scripted(homes))
    spared = together.walkers[2].start_index

    def all_others_explode(tag, call):
        return {"force": 1e3} if tag != spared and call == 7 + tag else {}

    lonely = explore(explorer, starts, Scripted(homes, all_others_explode))
    assert [w.outcome for w in lonely.walkers] == ["force", "force", "finished", "force"]
    paths = [[c for c in e.candidates if c.walker == 2] for e in (together, lonely)]
    assert len(paths[0]) == len(paths[1]) == 6
    for one, other in zip(*paths, strict=True):
        assert one.step == other.step
        np.testing.assert_array_equal(one.atoms.positions, other.atoms.positions)


def test_a_broken_walker_leaves_the_batch_at_once_and_offers_its_last_good_frame():
    starts, homes = crowd(3)
    factory = Scripted(homes, lambda tag, call: {"force": np.nan} if (tag, call) == (1, 33) else {})
    found = explore(options(walkers=3, samples=0), starts, factory)
    broken = next(w for w in found.walkers if w.start_index == 1)
    assert (broken.outcome, broken.steps, broken.time_fs) == ("not-finite", 33, 16.5)
    offers = [c for c in found.candidates if c.walker == broken.walker]
    assert [(c.reason, c.step) for c in offers] == [("failed", 30)]
    rest = [c for c in found.candidates if c.walker != broken.walker]
    assert [c.reason for c in rest] == ["survivor"] * 2 and {c.step for c in rest} == {100}
    assert [len(tags) for tags, _ in factory.batches] == [3] * 34 + [2] * 67
    assert found.force_calls == 3 * 34 + 2 * 67


@pytest.mark.parametrize(
    ("says", "outcome"),
    [
        ({"force": 60.0}, "force"),
        ({"force": np.inf}, "not-finite"),
        ({"energy": np.nan}, "not-finite"),
        ({"spread": np.nan}, "not-finite"),
        ({"spread": 1e6}, "abort"),
    ],
)
def test_each_accident_has_its_outcome(says, outcome):
    starts, homes = crowd(1)
    factory = Scripted(homes, lambda tag, call: says if call >= 40 else {})
    found = explore(options(samples=0), starts, factory)
    assert found.walkers[0].outcome == outcome
    reason = "last-good" if outcome == "abort" else "failed"  # accidents have a quota of their own
    assert [(c.reason, c.step) for c in found.candidates] == [(reason, 30)]


def test_a_collapse_and_a_departure_are_noticed_on_the_way():
    homes = {0: np.zeros((2, 3)), 1: np.array([[0, 0, 0], [0, 0, 9.0]])}  # together, and apart
    outcomes = []
    for tag in homes:
        pair = Atoms("C2", [[0, 0, 0], [0, 0, 1.5]], info={"charge": tag})
        explorer = options(time_fs=200.0, guards={"fragment_gap_A": 4.0})
        outcomes.append(explore(explorer, [pair], Scripted(homes)).walkers[0].outcome)
    assert outcomes == ["pair-distance", "dissociated"]


def test_a_runaway_temperature_stops_a_walker_only_after_a_while():
    cluster = bulk("Cu", "fcc", 3.6, cubic=True) * (2, 2, 2)
    cluster.pbc = False
    cluster.info["charge"] = 0
    still = cluster.positions.copy()
    pushed = still + np.random.default_rng(0).normal(scale=0.25, size=still.shape)
    homes = {0: still + 4 * (pushed - still)}  # wells an Å away: falling in heats to thousands of K
    explorer = options(
        ensemble="nve", time_fs=600.0, guards={"pair_factor": 0.01, "hot_checks": 10}
    )
    report = explore(explorer, [cluster], Scripted(homes)).walkers[0]
    assert report.outcome == "temperature" and report.steps >= 90


# ---- the label-stop


def above(*calls):
    return lambda tag, call: {"spread": 0.2} if call in calls else {"spread": 0.01}


@pytest.mark.parametrize(
    ("calls", "outcome", "offers"),
    [
        ((30,), "finished", [("survivor", 100)]),  # one check is noise
        ((30, 50), "finished", [("survivor", 100)]),  # not in a row
        ((30, 40), "label-stop", [("last-good", 20), ("crossed", 30)]),
        ((0, 10), "label-stop", [("crossed", 0)]),  # never trusted
        ((100,), "finished", [("survivor", 100)]),
    ],
)
def test_a_label_stop_needs_two_checks_in_a_row(calls, outcome, offers):
    starts, homes = crowd(1)
    found = explore(options(**LABEL), starts, Scripted(homes, above(*calls)))
    assert found.walkers[0].outcome == outcome
    assert [(c.reason, c.step) for c in found.candidates] == offers


def test_an_uncertain_frame_before_an_accident_is_offered_too():
    starts, homes = crowd(1)

    def script(tag, call):
        return {"force": np.nan} if call == 35 else {"spread": 0.2 if call == 30 else 0.01}

    found = explore(options(**LABEL), starts, Scripted(homes, script))
    assert found.walkers[0].outcome == "not-finite"
    assert [(c.reason, c.step) for c in found.candidates] == [("failed", 20), ("crossed", 30)]


def test_no_label_stop_during_the_grace_for_it_would_offer_the_start_again():
    starts, homes = crowd(1)
    explorer = options(**LABEL | {"grace_fs": 20.0})
    found = explore(explorer, starts, Scripted(homes, above(*range(200))))
    assert [(c.reason, c.step) for c in found.candidates] == [("crossed", 40)]
    assert found.walkers[0].steps == 50


def test_the_threshold_acts_on_the_calibrated_error():
    starts, homes = crowd(1)
    spread = {"spread": 0.06}
    session = Scripted(homes, lambda tag, call: spread)([starts[0]])
    seen = session(WATER.positions, True).force_spread[0]
    doubled = Calibration({}, type(PLAIN.pooled)(2.0, 4.0, 9, 3, pooled=True), "")
    explorer = options(**LABEL | {"label_above_eV_per_A": 1.5 * seen})
    for calibration, outcome in ((PLAIN, "finished"), (doubled, "label-stop")):
        factory = Scripted(homes, lambda tag, call: spread)
        found = explorer(starts, factory, calibration, np.random.default_rng(0))
        assert found.walkers[0].outcome == outcome
        ratio = found.walkers[0].max_expected_error_eV_per_A / seen
        assert ratio == pytest.approx(calibration.pooled.expected, rel=1e-12)  # round-off


def test_a_start_that_is_hopeless_is_offered_because_it_is_no_artefact():
    starts, homes = crowd(1)
    factory = Scripted(homes, lambda tag, call: {"spread": 1e6})
    found = explore(options(), starts, factory)
    assert found.walkers[0].outcome == "abort" and found.force_calls == 1
    assert [(c.reason, c.step) for c in found.candidates] == [("crossed", 0)]


def test_member_forces_are_asked_for_at_checks_only():
    starts, homes = crowd(1)
    factory = Scripted(homes)
    explore(options(time_fs=12.5), starts, factory)
    asked = [step for step, (_, members) in enumerate(factory.batches) if members]
    assert asked == [0, 10, 20, 25] and len(factory.batches) == 26


def test_samples_are_spread_evenly_and_each_frame_is_offered_once():
    starts, homes = crowd(2)
    found = explore(options(samples=4, walkers=2), starts, Scripted(homes))
    for walker in range(2):
        mine = [c for c in found.candidates if c.walker == walker]
        assert [(c.step, c.reason) for c in mine] == [
            (20, "sampled"),
            (40, "sampled"),
            (60, "sampled"),
            (80, "sampled"),
            (100, "survivor"),
        ]
    assert {w.start_index for w in found.walkers} == {0, 1}


def test_a_sampled_frame_that_is_also_the_last_good_one_is_offered_once():
    starts, homes = crowd(1)
    explorer = options(**LABEL | {"samples": 4})
    found = explore(explorer, starts, Scripted(homes, above(50, 60)))
    steps = [(c.step, c.reason) for c in found.candidates]
    assert steps == [(20, "sampled"), (40, "sampled"), (50, "crossed"), (60, "sampled")]


# ---- starts


def test_fixed_atoms_stay_and_their_error_stops_nobody():
    slab = bulk("Cu", "fcc", 3.6, cubic=True)
    slab.set_constraint(FixAtoms([0, 2]))
    slab.info = {"charge": 0, "multiplicity": 1, "story": "dropped"}
    slab.set_array("forces", np.ones((4, 3)))
    factory = Scripted(
        {0: slab.positions}, lambda tag, call: {"spread": np.array([9.0, 0.01, 9.0, 0.01])}
    )
    found = explore(options(**LABEL | {"samples": 3}), [slab], factory)
    assert found.walkers[0].outcome == "finished" and len(found.candidates) == 4
    for candidate in found.candidates:
        atoms = candidate.atoms
        np.testing.assert_array_equal(atoms.positions[[0, 2]], slab.positions[[0, 2]])
        assert (np.abs(atoms.positions - slab.positions).max(1)[[1, 3]] > 1e-3).all()
        assert atoms.info == {"charge": 0, "multiplicity": 1}
        assert atoms.pbc.all() and (atoms.cell == slab.cell).all()
        assert not atoms.constraints and not atoms.has("forces") and not atoms.has("momenta")


def test_other_constraints_are_refused_rather_than_ignored():
    atoms = WATER.copy()
    atoms.set_constraint(FixBondLength(0, 1))
    with pytest.raises(PolicyError, match="FixAtoms"):
        explore(options(), [atoms], ToyCommittee.around([atoms]))


def test_a_committee_of_one_is_refused():
    toy = ToyCommittee(ToyCommittee.around([WATER]).homes, members=1)
    with pytest.raises(PolicyError, match="one member"):
        explore(options(), [WATER], toy)


@pytest.mark.parametrize(
    "wrong",
    [
        {"label_above_eV_per_A": 2e4},
        {"ensemble": "npv"},
        {"thermostat": "nose"},
        {"tau_fs": 0.0},
        {"barostat_tau_fs": -1.0},
        {"compressibility_per_GPa": math.nan},
        {"pressure_eV_per_A3": math.inf},
        {"batch_atoms": 0},
        {"guards": {"max_volume_ratio": 1.0}},
        {"temperatures_K": ()},
        {"temperatures_K": (-1,)},
        {"timestep_fs": 0.0},
        {"check_every": 0},
        {"walkers": 0},
        {"samples": -1},
        {"time_fs": math.nan},
        {"guards": {"pair_factor": 0}},
    ],
)
def test_impossible_options_are_refused_with_their_name(wrong):
    with pytest.raises(PolicyError):
        options(**wrong)


def test_it_keeps_the_laws_of_explorers():
    check_explorer(lambda: options(temperatures_K=[200, 500], walkers=2, samples=3))
    check_explorer(lambda: options(label_above_eV_per_A=0.03, ensemble="nve"))
    check_explorer(lambda: options(thermostat="bussi", walkers=3, batch_atoms=5))
    check_explorer(lambda: options(**NPT, walkers=2), starts=crystals())


def test_a_walker_whose_conserved_energy_drifts_is_stopped():
    starts, homes = crowd(1)
    factory = Scripted(homes, lambda tag, call: {"energy": 0.02 * call})  # the forces know nothing of it
    found = explore(options(samples=0), starts, factory)
    assert found.walkers[0].outcome == "energy-drift"
    assert 0.3 < 0.02 * found.walkers[0].steps < 0.5  # 0.1 eV for each of three atoms, at a check
