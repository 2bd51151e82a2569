"""Molecular dynamics: when a walker stops and what it offers then."""

import dataclasses
import math

import numpy as np
import pytest
from alchemy_policies.base import PolicyError
from alchemy_policies.calibration import Calibration
from alchemy_policies.integrators import ACCELERATION
from alchemy_policies.md import MolecularDynamics
from alchemy_policies.testing import ToyCommittee, check_explorer
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixAtoms, FixBondLength

from tace.prediction import CommitteePrediction

WATER = molecule("H2O")
PLAIN = Calibration.uncalibrated()


def options(**changes):
    """Thresholds that nothing reaches, unless a test lowers them."""
    base = {
        "label_above_eV_per_A": 1e3,
        "abort_above_eV_per_A": 1e4,
        "temperatures_K": (300.0,),
        "time_fs": 50.0,
        "grace_fs": 0.0,
    }
    return MolecularDynamics(**(base | changes))


LABEL = {"label_above_eV_per_A": 0.1, "abort_above_eV_per_A": 10.0, "samples": 0}


class Scripted:
    """A weak harmonic well; what walker w shows at its n-th force call is up to `script`.

    script(tag, call) -> dict with any of force, spread, energy. The tag is the atoms' charge, which
    travels with a walker; each session knows its walkers by it.
    """

    def __init__(self, homes, script=lambda tag, call: {}):
        self.homes, self.script = homes, script
        self.calls, self.batches = {}, []

    def __call__(self, frames):
        tags = [atoms.info["charge"] for atoms in frames]
        sizes = np.array([len(atoms) for atoms in frames])
        homes = np.concatenate([self.homes[tag] for tag in tags])

        def session(positions_A, member_forces):
            self.batches.append((tuple(tags), member_forces))
            assert np.isfinite(positions_A).all(), "a broken walker was still propagated"
            mean = -2.0 * (positions_A - homes)
            spread, energies = np.zeros(len(mean)), np.zeros(len(tags))
            for n, (tag, end) in enumerate(zip(tags, np.cumsum(sizes), strict=True)):
                rows = slice(end - sizes[n], end)
                self.calls[tag] = self.calls.get(tag, -1) + 1
                says = self.script(tag, self.calls[tag])
                mean[rows] = says.get("force", mean[rows])
                spread[rows] = says.get("spread", 0.01)
                energies[n] = says.get("energy", 0.0)
            scatter = np.array([1.0, -1.0, 0.0])[:, None, None] * spread[:, None]
            return CommitteePrediction(
                n_atoms=sizes,
                energies=np.tile(energies, (3, 1)),
                mean_forces=mean,
                forces=mean + scatter * np.array([1.0, 0, 0]) if member_forces else None,
            )

        return session


def crowd(count):
    starts = []
    for tag in range(count):
        atoms = WATER.copy()
        atoms.info["charge"] = tag
        starts.append(atoms)
    return starts, dict.fromkeys(range(count), WATER.positions)


def explore(explorer, starts, factory, *, seed=0):
    return explorer(starts, factory, PLAIN, np.random.default_rng(seed))


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
    assert [(c.reason, c.step) for c in offers] == [("last-good", 30)]
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
    assert [(c.reason, c.step) for c in found.candidates] == [("last-good", 30)]


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


# ---- a pool of bounded size


def mixed_starts():
    """Walkers of 3 to 8 atoms, told apart by their charge."""
    rng = np.random.default_rng(5)
    starts = []
    for tag, size in enumerate((3, 8, 5, 4, 6)):
        chain = np.arange(size)[:, None] * [2.0, 0, 0] + 0.1 * rng.standard_normal((size, 3))
        starts.append(Atoms(f"C{size}", chain, info={"charge": tag}))
    return starts, {n: atoms.positions for n, atoms in enumerate(starts)}


def accidents(tag, call):
    """One dies where it starts, one explodes between two checks, one is labelled at a check."""
    if (tag, call) in ((1, 0), (2, 17)):
        return {"force": 1e3}
    return {"spread": 0.2} if tag == 3 and call >= 30 else {"spread": 0.01}


def same(one, other):
    assert one.walkers == other.walkers and one.force_calls == other.force_calls
    facts = [[(c.walker, c.step, c.reason) for c in e.candidates] for e in (one, other)]
    assert facts[0] == facts[1]
    for a, b in zip(one.candidates, other.candidates, strict=True):
        np.testing.assert_array_equal(a.atoms.positions, b.atoms.positions)
        np.testing.assert_array_equal(a.atoms.cell, b.atoms.cell)


@pytest.mark.parametrize("bath", [{"ensemble": "nve"}, {}, {"thermostat": "bussi"}])
def test_results_do_not_depend_on_how_many_walk_side_by_side(bath):
    starts, homes = mixed_starts()
    found, batches = [], []
    for atoms in (1, 9, 14, 1024):
        explorer = options(**LABEL | bath | {"walkers": 5, "samples": 3, "batch_atoms": atoms})
        factory = Scripted(homes, accidents)
        found.append(explore(explorer, starts, factory))
        batches.append([tags for tags, _ in factory.batches])
    sizes = [max(sum(len(starts[t]) for t in tags) for tags in b) for b in batches]
    assert sizes[0] == 8 and max(map(len, batches[0])) == 1  # larger than the bound: alone
    assert sizes[1] <= 9 and sizes[2] <= 14 and sizes[3] == 26
    assert [max(map(len, b)) for b in batches[1:]] == [2, 3, 5]
    outcomes = {w.start_index: w.outcome for w in found[0].walkers}
    assert outcomes == {0: "finished", 1: "force", 2: "force", 3: "label-stop", 4: "finished"}
    assert [w.walker for w in found[0].walkers] == [0, 1, 2, 3, 4]
    for other in found[1:]:
        same(found[0], other)


def test_a_place_is_taken_at_the_next_check_and_member_forces_stay_rare():
    starts, homes = crowd(4)
    order = [w.start_index for w in explore(options(walkers=4), starts, Scripted(homes)).walkers]
    breaks = (order[0], 13)
    factory = Scripted(homes, lambda tag, call: {"force": 1e3} if (tag, call) == breaks else {})
    explore(options(walkers=4, samples=0, batch_atoms=6), starts, factory)
    tags = [set(t) for t, _ in factory.batches]
    # 14 calls of the two that start, 7 of the one left up to the check at 20, then a newcomer's own
    assert [len(t) for t in tags[:14]] == [2] * 14 and [len(t) for t in tags[14:21]] == [1] * 7
    assert len(tags[21]) == 1 and not tags[21] & tags[20]
    assert tags[22] == tags[21] | tags[20]
    asked = [members for _, members in factory.batches]
    # the starts' own calls and one check in ten: nobody is out of step with the others
    assert sum(asked) <= 3 + len(asked) / 10 + 1
    assert max(len(t) for t in tags) == 2


def test_a_broken_start_is_replaced_before_anybody_moves():
    starts, homes = crowd(3)
    factory = Scripted(homes, lambda tag, call: {"force": 1e3} if tag != 2 else {})
    found = explore(options(walkers=3, batch_atoms=3, samples=0), starts, factory)
    outcomes = {w.start_index: (w.outcome, w.steps) for w in found.walkers}
    assert outcomes == {0: ("force", 0), 1: ("force", 0), 2: ("finished", 100)}
    assert found.force_calls == 2 + 101


# ---- constant pressure


def crystals():
    """Two cells of other sizes, each with a volume of its own kind."""
    rng = np.random.default_rng(6)
    copper = bulk("Cu", "fcc", 3.6, cubic=True)
    salt = bulk("NaCl", "rocksalt", 5.6)  # two atoms in a skew cell
    for atoms in (copper, salt):
        atoms.rattle(0.01, rng=rng)
    return [copper, salt]


NPT = {"ensemble": "npt", "barostat_tau_fs": 100.0, "compressibility_per_GPa": 0.0125}


@pytest.mark.parametrize("thermostat", ["bussi", "langevin"])
def test_at_constant_pressure_cells_breathe_and_no_walker_knows_of_the_others(thermostat):
    starts = crystals()
    explorer = options(**NPT | {"thermostat": thermostat, "walkers": 2, "samples": 4})
    toy = ToyCommittee.around(starts)
    together = explore(explorer, starts, toy)
    alone = explore(dataclasses.replace(explorer, batch_atoms=1), starts, toy)
    same(together, alone)
    for found in together.candidates:
        start = starts[together.walkers[found.walker].start_index]
        ratio = found.atoms.cell.volume / start.cell.volume
        assert 0.8 < ratio < 1.25 and ratio != 1
        strain = np.linalg.solve(start.cell.array, found.atoms.cell.array)
        np.testing.assert_allclose(strain, np.cbrt(ratio) * np.eye(3), atol=1e-12)  # isotropic
    # shadow work of 100 steps of 0.5 fs, ω dt = 0.04: far below the 26 meV of kT
    assert all(abs(w.drift_eV_per_atom) < 2e-4 for w in together.walkers)


def test_a_higher_pressure_makes_smaller_cells():
    starts = crystals()
    explorer = options(**NPT | {"time_fs": 1000.0, "samples": 40, "thermostat": "bussi"})
    press = 0.05  # eV/Å³: a tenth of the toy's bulk modulus
    found = explore(
        dataclasses.replace(explorer, pressure_eV_per_A3=press), starts, ToyCommittee.around(starts)
    )
    start = starts[found.walkers[0].start_index]
    late = [c.atoms.cell.volume / start.cell.volume for c in found.candidates if c.time_fs > 400]
    # V = V₀(1 − P/B) and thermal pressures of 3 N kT/V, for copper 0.007: 1.3 %. Scatter per frame
    # √(kT/B V₀) = 3.3 % over some ten relaxation times of 100 fs: 1 %; three of these, and the 1.3 %
    assert np.mean(late) == pytest.approx(1 - press / 0.5, abs=0.045)


def test_a_cell_that_collapses_is_stopped_before_a_force_is_asked_for():
    starts = crystals()[:1]
    explorer = options(**NPT | {"barostat_tau_fs": 5.0, "samples": 0})
    crushed = dataclasses.replace(explorer, pressure_eV_per_A3=5.0)
    asked = []

    def factory(frames):
        session = ToyCommittee.around(starts)(frames)

        def watched(positions_A, member_forces, *, cells_A, stress):
            asked.append(np.linalg.det(cells_A[0]) / starts[0].cell.volume)
            return session(positions_A, member_forces, cells_A=cells_A, stress=stress)

        return watched

    found = explore(crushed, starts, factory)
    report = found.walkers[0]
    assert report.outcome == "volume" and min(asked) >= 1 / 1.8
    assert found.force_calls == len(asked) == report.steps  # the start's, and not the last step's
    assert [c.reason for c in found.candidates] == ["last-good"]


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (WATER, r"start 0 \(H2O\) is not periodic: ensemble npt needs"),
        (Atoms("Cu", cell=[3, 3, 9], pbc=[1, 1, 0]), r"\(Cu\) is periodic along xy only"),
        (Atoms("Cu", cell=[3, 3, 3], pbc=True, constraint=FixAtoms([0])), "has fixed atoms"),
    ],
)
def test_a_pressure_needs_a_volume(start, says):
    with pytest.raises(PolicyError, match=says):
        explore(options(**NPT), [start], ToyCommittee.around([start]))


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
    assert [(c.reason, c.step) for c in found.candidates] == [("last-good", 20), ("crossed", 30)]


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
