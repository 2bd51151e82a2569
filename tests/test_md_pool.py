"""Walkers that wait for a place, and walkers whose cells breathe: none knows of the others."""

import dataclasses

import numpy as np
import pytest
from alchemy_policies.base import PolicyError
from alchemy_policies.testing import ToyCommittee
from ase import Atoms, units
from ase.constraints import FixAtoms
from md_scripts import LABEL, NPT, WATER, Scripted, crowd, crystals, explore, options

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


@pytest.mark.parametrize("bath", [{"ensemble": "nve"}, {}, {"thermostat": "bussi"}, {"ramp_to_K": 900.0}])
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


def test_on_a_ramp_atoms_are_as_hot_as_the_bath_of_their_step():
    starts, homes = crowd(40)
    ramp = {"temperatures_K": (100.0,), "ramp_to_K": 900.0, "friction_per_fs": 0.05}
    ramp |= {"time_fs": 800.0, "timestep_fs": 1.0}
    apart = {"guards": {"pair_factor": 1e-3}}  # each atom has a well of its own
    found = explore(options(**ramp | apart, walkers=40, samples=1), starts, Scripted(homes))
    assert [w.outcome for w in found.walkers] == ["finished"] * 40
    assert max(abs(w.drift_eV_per_atom) for w in found.walkers) < 0.02  # what the bath gives is counted
    for step, bath_K in ((400, 500.0), (800, 900.0)):
        frames = [c for c in found.candidates if c.step == step]
        assert {c.temperature_K for c in frames} == {bath_K}
        assert len(frames) == 40
        squares = np.mean([(c.atoms.positions - WATER.positions) ** 2 for c in frames])
        # k<x²> = kT in a well of 2 eV/Å²; 360 coordinates scatter by 7 %, and the bath is ahead by some 5 %
        assert 2.0 * squares / units.kB == pytest.approx(bath_K, rel=0.3)


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
    assert [c.reason for c in found.candidates] == ["failed"]


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (WATER, r"start 0 \(H2O\) is not periodic: ensemble npt needs"),
        (Atoms("Cu", cell=[3, 3, 9], pbc=[1, 1, 0]), r"\(Cu\) is periodic along xy only"),
        (Atoms("Cu", cell=[3, 3, 3], pbc=True, constraint=FixAtoms([0])), "has fixed atoms"),
        (Atoms("Cu", cell=[3, 3, 9], pbc=True), r"\(Cu\) is a slab"),
    ],
)
def test_a_pressure_needs_a_volume(start, says):
    with pytest.raises(PolicyError, match=says):
        explore(options(**NPT), [start], ToyCommittee.around([start]))
