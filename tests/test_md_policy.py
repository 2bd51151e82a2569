"""Molecular dynamics: the ensembles it samples, when a walker stops and what it offers then."""

import math

import numpy as np
import pytest
from alchemy_policies.base import PolicyError
from alchemy_policies.calibration import Calibration
from alchemy_policies.guards import (
    Guards,
    Reference,
    close_pairs,
    count_fragments,
    guard_frame,
    hot_limit,
)
from alchemy_policies.integrators import (
    ACCELERATION,
    Motion,
    kinetic_temperature,
    last_kick,
    maxwell_boltzmann,
    to_new_positions,
)
from alchemy_policies.md import MolecularDynamics
from alchemy_policies.testing import ToyCommittee, check_explorer
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.constraints import FixAtoms, FixBondLength
from ase.neighborlist import neighbor_list

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


# ---- ensembles


def harmonic(motion, stiffness, *, steps, temperature_K, rng, burn=0):
    """Independent oscillators about 0; (sum of v², sum of x²) per step after the burn-in."""
    inverse_mass = motion.inverse_mass[:, 0]
    x = np.zeros((len(inverse_mass), 3))
    v = maxwell_boltzmann(inverse_mass, temperature_K, rng)
    f = -stiffness * x
    seen = []
    for step in range(steps):
        noise = rng.standard_normal(x.shape) if motion.decay < 1 else None
        x, v = to_new_positions(motion, (x, v, f), noise)
        f = -stiffness * x
        v = last_kick(motion, v, f)
        if step >= burn:
            seen.append(((v**2).mean(), (x**2).mean()))
    return np.array(seen)


def test_langevin_oscillators_have_the_temperature_of_the_bath():
    temperature, stiffness, mass = 500.0, 5.0, 12.0
    inverse_mass = np.full(2000, 1 / mass)
    motion = Motion.of(
        inverse_mass, np.full(2000, temperature), timestep_fs=0.5, friction_per_fs=0.02
    )
    rng = np.random.default_rng(0)
    seen = harmonic(motion, stiffness, steps=1500, temperature_K=temperature, rng=rng, burn=500)
    kinetic = seen[:, 0].mean() * mass / ACCELERATION / units.kB
    potential = seen[:, 1].mean() * stiffness / units.kB
    # 6000 oscillators over ≥ 5 relaxation times (50 fs): √(2/(6000·5)) = 0.8 %; four of these.
    # The time-step error of BAOAB is 0 for x and (ω dt)²/4 = 0.03 % for v.
    assert kinetic == pytest.approx(temperature, rel=0.033)
    assert potential == pytest.approx(temperature, rel=0.033)


def test_a_large_time_step_biases_no_position_in_a_harmonic_well():
    temperature, stiffness = 300.0, 40.0
    inverse_mass = np.full(3000, 1.0)
    motion = Motion.of(
        inverse_mass, np.full(3000, temperature), timestep_fs=1.6, friction_per_fs=0.05
    )
    omega_dt = math.sqrt(stiffness * ACCELERATION) * 1.6
    assert omega_dt > 0.9  # a third of the way to instability
    rng = np.random.default_rng(1)
    seen = harmonic(motion, stiffness, steps=400, temperature_K=temperature, rng=rng, burn=100)
    # 9000 oscillators × ≥ 10 relaxation times: 0.5 %; velocity Verlet is off by (ωdt)²/4 = 20 %
    assert seen[:, 1].mean() * stiffness / units.kB == pytest.approx(temperature, rel=0.02)


def test_velocity_verlet_keeps_the_energy_and_its_error_falls_with_the_square_of_the_step():
    from ase.calculators.lj import LennardJones

    atoms = bulk("Ar", "fcc", 5.3, cubic=True)
    atoms.calc = LennardJones(sigma=3.4, epsilon=0.0104, rc=8.0, smooth=True, ro=6.0)
    inverse_mass = 1 / atoms.get_masses()
    start = atoms.positions.copy()

    def drift(timestep, steps):
        rng = np.random.default_rng(2)
        v = maxwell_boltzmann(inverse_mass, 60.0, rng)
        motion = Motion.of(inverse_mass, np.full(4, 60.0), timestep_fs=timestep, friction_per_fs=0)
        atoms.positions = x = start.copy()
        f = atoms.get_forces()
        total = []
        for _ in range(steps):
            x, v = to_new_positions(motion, (x, v, f), None)
            atoms.positions = x
            f = atoms.get_forces()
            v = last_kick(motion, v, f)
            kinetic = 0.5 * ((v**2).sum(1) / inverse_mass).sum() / ACCELERATION
            total.append(atoms.get_potential_energy() + kinetic)
        return np.ptp(total)

    coarse, fine = drift(10.0, 80), drift(5.0, 160)
    assert coarse < 0.01 * 1.5 * 4 * units.kB * 60  # 1 % of the kinetic energy
    assert coarse / fine == pytest.approx(4.0, rel=0.25)  # second order; next order at these steps


def test_a_start_is_thermal_and_stands_still_as_a_whole():
    inverse_mass = 1 / np.tile([1.0, 16.0, 64.0], 2000)
    v = maxwell_boltzmann(inverse_mass, 400.0, np.random.default_rng(3))
    np.testing.assert_allclose((v / inverse_mass[:, None]).sum(0), 0, atol=1e-9)  # round-off
    # √(2/18000) = 1.05 %; four of these
    assert kinetic_temperature(v, inverse_mass, 3 * 6000 - 3) == pytest.approx(400, rel=0.042)


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


# ---- the label-stop


def above(*calls):
    return lambda tag, call: {"spread": 0.2} if call in calls else {"spread": 0.01}


LABEL = {"label_above_eV_per_A": 0.1, "abort_above_eV_per_A": 10.0, "samples": 0}


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
        {"ensemble": "npt"},
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


# ---- guards


def reference(atoms, **limits):
    guards = Guards(**limits)
    return guards, Reference.of(atoms, guards)


def fires(atoms, positions=None, *, forces=None, hot=0, **limits):
    guards, fixed = reference(atoms, **limits)
    forces = np.zeros((len(atoms), 3)) if forces is None else forces
    where = atoms.positions if positions is None else positions
    return guard_frame(guards, fixed, where, forces_eV_per_A=forces, hot_checks=hot)


def test_each_guard_fires_with_its_code_and_a_sound_frame_passes():
    pair = Atoms("N2", [[0, 0, 0], [0, 0, 1.1]])
    assert fires(pair) is None
    assert fires(pair, np.full((2, 3), np.nan)) == "not-finite"
    assert fires(pair, forces=np.array([[0, 0, np.inf], [0, 0, 0]])) == "not-finite"
    assert fires(pair, forces=np.array([[0, 40.0, 40.0], [0, 0, 0]])) == "force"  # the norm counts
    assert fires(pair, forces=np.array([[0, 30.0, 30.0], [0, 0, 0]])) is None
    assert fires(pair, np.array([[0, 0, 0], [0, 0, 0.8]])) == "pair-distance"
    assert fires(pair, np.zeros((2, 3))) == "pair-distance"  # on top of each other
    assert fires(pair, hot=20) == "temperature" and fires(pair, hot=19) is None
    apart = np.array([[0, 0, 0], [0, 0, 6.0]])
    assert fires(pair, apart) is None
    assert fires(pair, apart, fragment_gap_A=5.0) == "dissociated"
    gas = Atoms("N2", apart)
    assert fires(gas, fragment_gap_A=5.0) is None  # apart from the start


def test_atoms_that_meet_through_a_periodic_face_are_too_close():
    cell = [[4.0, 0, 0], [2.0, 3.5, 0], [0.3, 0.4, 6.0]]
    atoms = Atoms("C2", [[0.1, 0.1, 0.1], [0, 0, 3.0]], cell=cell, pbc=True)
    beyond = atoms.positions.copy()
    beyond[1] = beyond[0] + np.array(cell).sum(0) * 3 + [0.3, 0, -0.2]
    assert fires(atoms) is None and fires(atoms, beyond) == "pair-distance"
    atoms.pbc = [True, True, False]
    assert fires(atoms, beyond) is None  # no image along the third axis


@pytest.mark.parametrize("pbc", [(0, 0, 0), (1, 1, 0), (1, 1, 1)])
@pytest.mark.parametrize("cutoff", [1.5, 4.0])
def test_close_pairs_agree_with_ases_neighbour_list(pbc, cutoff):
    rng = np.random.default_rng(sum(pbc))
    cell = np.diag([2.0, 3.0, 7.0]) + rng.uniform(-0.8, 0.8, (3, 3))  # smaller than the cutoff
    atoms = Atoms("C8", rng.uniform(-5, 9, (8, 3)), cell=cell, pbc=pbc)
    theirs = neighbor_list("ijd", atoms, cutoff)
    i, j, d = close_pairs(reference(atoms)[1], atoms.positions, cutoff)
    other = i != j  # an atom's own images never move relative to it
    mine = sorted(zip(i[other], j[other], d[other].round(9), strict=True))
    keep = theirs[0] != theirs[1]
    assert mine == sorted(
        zip(theirs[0][keep], theirs[1][keep], theirs[2][keep].round(9), strict=True)
    )


def test_fragments_are_counted_through_the_periodic_faces():
    atoms = Atoms("Cu2", [[0, 0, 0.2], [0, 0, 9.8]], cell=[3, 3, 10], pbc=True)
    _, fixed = reference(atoms)
    assert count_fragments(fixed, atoms.positions, 2.0) == 1
    _, open_face = reference(Atoms("Cu2", atoms.positions, cell=atoms.cell, pbc=[1, 1, 0]))
    assert count_fragments(open_face, atoms.positions, 2.0) == 2


STIFF = {  # Morse: equilibrium distance Å, depth eV, range 1/Å (Huber & Herzberg's D_e, r_e, ω_e)
    "N2": (1.098, 9.91, 2.70),
    "CO": (1.128, 11.2, 2.30),
    "H2": (0.741, 4.75, 1.94),
    "OH": (0.970, 4.62, 2.29),
}


@pytest.mark.parametrize("formula", STIFF)
@pytest.mark.parametrize("temperature", [600.0, 2000.0])
def test_a_hot_vibration_does_not_trip_the_pair_distance(formula, temperature):
    r0, depth, width = STIFF[formula]
    atoms = Atoms(formula)
    grid = np.linspace(0.5 * r0, 1.5 * r0, 401)
    energy = depth * (1 - np.exp(-width * (grid - r0))) ** 2
    tripped = [
        fires(atoms, np.array([[0, 0, 0], [0, 0, r]]), forces=None) is not None for r in grid
    ]
    barrier = energy[np.array(tripped) & (grid < r0)].min()
    # e^-25 = 1e-11 per look: never in a campaign; 0.7 would let N2 pass at 6 kT
    assert barrier > 25 * units.kB * temperature


@pytest.mark.parametrize("name", ["H2O", "CH4", "C2H2", "CO2", "SO2", "LiF", "SiH4", "C6H6"])
def test_molecules_at_rest_trip_nothing(name):
    assert fires(molecule(name), fragment_gap_A=4.0) is None


def test_a_metal_oxo_bond_is_no_collision():
    uranyl = Atoms("OUO", [[0, 0, -1.77], [0, 0, 0], [0, 0, 1.77]])
    assert fires(uranyl) is None and fires(uranyl, pair_factor=0.7) == "pair-distance"


def test_few_atoms_may_fluctuate_further_before_they_count_as_hot():
    assert hot_limit(300, 3000, ratio=3) == 900
    for freedom in (3, 6, 9):
        draws = np.random.default_rng(freedom).chisquare(freedom, 200_000) / freedom * 300
        limit = hot_limit(300, freedom, ratio=3)
        assert limit > 900 and (draws > limit).sum() <= 4  # one in a million: 0.2 expected
        assert (draws > 900).sum() > 20  # the plain rule would fire
    assert hot_limit(300, 0, ratio=3) == math.inf
