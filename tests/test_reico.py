"""Random structures: both generators keep their rules, ours without bias; their explorer keeps the laws."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from alchemy_policies import BasinHopping, Calibration, PolicyError, Recipe, Reico
from alchemy_policies.grow import grow
from alchemy_policies.guards import Guards
from alchemy_policies.health import health, nearest_neighbours
from alchemy_policies.published import publish
from alchemy_policies.recipes import draw_composition, shares
from alchemy_policies.testing import check_explorer
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.constraints import FixAtoms, FixedPlane
from ase.neighborlist import neighbor_list
from scipy.stats import chi2

from tace.prediction import CommitteePrediction

PT_O = Recipe(mix={"Pt": (1, 6), "O": (0, 5)})
ALL = Recipe(mix={"Cu": (2, 8), "O": (0, 4)}, adsorbate={"H": (1, 3), "C": (0, 2)})
KINDS = {"bulk": 1.0, "surface": 1.0, "adsorbate": 1.0, "cluster": 1.0}


def by_brute_force(atoms: Atoms) -> np.ndarray:
    """Nearest neighbours through ASE's list, images of the atom itself included."""
    i, distance = neighbor_list("id", atoms, 5.0)
    return np.array([distance[i == n].min(initial=np.inf) for n in range(len(atoms))])


def improbable(observed: Counter, expected: dict) -> bool:
    """Whether χ² would be exceeded once in a thousand; seeds are fixed, so the answer is too."""
    statistic = sum((observed.get(k, 0) - e) ** 2 / e for k, e in expected.items())
    return bool(statistic > chi2.isf(1e-3, len(expected) - 1))


# ---- compositions


def test_every_composition_is_as_likely_as_any_other():
    rng, number = np.random.default_rng(1), 3000
    drawn = Counter(
        tuple(sorted(draw_composition(PT_O.mix, rng, atoms=(4, 6)).items())) for _ in range(number)
    )
    allowed = [(p, o) for p in range(1, 7) for o in range(6) if 4 <= p + o <= 6]
    keys = [tuple(sorted({k: n for k, n in (("Pt", p), ("O", o)) if n}.items())) for p, o in allowed]
    assert not improbable(drawn, {key: number / len(keys) for key in keys})
    assert set(drawn) <= set(keys)


def test_grown_structures_have_uniform_compositions_and_published_ones_have_not():
    """The published rule draws the composition again with every trial: small cells win."""
    recipe, number = Recipe(mix={"Pt": (1, 6), "O": (1, 6)}), 600
    expected = dict.fromkeys(range(1, 7), number / 6)
    for make, skewed in ((grow, False), (publish, True)):
        rng = np.random.default_rng(5)
        frames = [make(recipe, "bulk", rng).atoms for _ in range(number)]
        for symbol in ("Pt", "O"):
            counts = Counter(int((a.symbols == symbol).sum()) for a in frames)
            assert improbable(counts, expected) is skewed, (make.__name__, symbol, counts)


def test_shares_are_exact_and_follow_the_weights():
    assert shares({"a": 3, "b": 1}, 8) == {"a": 6, "b": 2}
    assert shares({"a": 1, "b": 1, "c": 1}, 4) == {"a": 2, "b": 1, "c": 1}
    assert sum(shares({"a": 0.3, "b": 2.2, "c": 0.7}, 101).values()) == 101


# ---- geometry


@pytest.mark.parametrize("kind", KINDS)
def test_every_grown_atom_has_its_nearest_neighbour_within_the_window(kind):
    """Through all periodic images, its own too, and beside a vacuum: nobody is alone."""
    rng = np.random.default_rng(2)
    for _ in range(40):
        born = grow(ALL, kind, rng)
        nearest = by_brute_force(born.atoms)
        assert nearest.min() > ALL.nearest_A[0] - 1e-9  # wrapping rounds
        assert nearest.max() < ALL.nearest_A[1] + 1e-9
        assert born.trials == 1


def test_a_narrow_total_of_slab_and_adsorbate_is_always_met():
    recipe = Recipe(mix={"Pd": (4, 16)}, adsorbate={"O": (1, 8)}, atoms=(9, 10))
    rng = np.random.default_rng(12)
    assert {len(grow(recipe, "adsorbate", rng).atoms) for _ in range(40)} == {9, 10}


@pytest.mark.parametrize("atoms", [4, 20, 48])
def test_growing_accepts_every_structure_up_to_48_atoms(atoms):
    recipe = Recipe(mix={"Pd": (0, atoms), "H": (0, atoms)}, atoms=(atoms, atoms))
    rng = np.random.default_rng(3)
    born = [grow(recipe, kind, rng) for kind in ("bulk", "surface", "cluster") for _ in range(4)]
    assert [b.trials for b in born] == [1] * 12
    assert {len(b.atoms) for b in born} == {atoms}
    sphere = recipe.sphere_A3
    for b in born[:4]:
        assert 1.2 * sphere <= b.atoms.get_volume() / atoms <= 5 * sphere


def test_large_atoms_are_born_farther_apart_than_the_gate_would_refuse():
    rng = np.random.default_rng(4)
    recipe = Recipe(mix={"Cs": (2, 6)})
    frames = [grow(recipe, "bulk", rng).atoms for _ in range(20)]
    assert min(nearest_neighbours(a)[1].min() for a in frames) >= 0.5 - 1e-9


def test_published_structures_keep_the_published_rules():
    rng = np.random.default_rng(6)
    recipe = Recipe(mix={"Pt": (1, 6), "O": (1, 6)})
    for _ in range(40):
        atoms = publish(recipe, "bulk", rng).atoms
        edges, angles = atoms.cell.lengths(), atoms.cell.angles()
        v0 = recipe.sphere_A3 * len(atoms)
        assert angles == pytest.approx(90)
        assert (edges >= (1.2 * v0) ** 0.33).all() and (edges <= (5 * v0) ** 0.34).all()
        assert 1.2 * v0 < atoms.get_volume() < 5 * v0
        apart = atoms.get_all_distances(mic=True) + 9 * np.eye(len(atoms))
        assert apart.min() > 1.5 and apart.min(1).max() < 3.0
    cluster = publish(recipe, "cluster", rng).atoms
    assert cluster.pbc.all()  # as published
    assert np.ptp(cluster.positions, axis=0) + 16 == pytest.approx(cluster.cell.lengths())


def test_the_published_adsorbate_lies_above_its_base():
    rng = np.random.default_rng(7)
    recipe = Recipe(mix={"Pd": (2, 5)}, adsorbate={"O": (1, 3)})
    for _ in range(10):
        born = publish(recipe, "adsorbate", rng)
        z = born.atoms.positions[:, 2]
        assert set(born.atoms.symbols[: born.base]) == {"Pd"}
        assert set(born.atoms.symbols[born.base :]) == {"O"}
        assert z[: born.base].max() <= z[born.base :].min()


def test_a_grown_adsorbate_lies_above_its_slab_and_the_slab_stays():
    slab = fcc111("Pd", (2, 2, 2), vacuum=6)
    slab.set_constraint(FixAtoms(range(4)))
    rng = np.random.default_rng(8)
    for _ in range(10):
        born = grow(ALL, "adsorbate", rng, base=slab)
        kept = born.atoms[: len(slab)]
        assert born.base == len(slab)
        assert (kept.positions == slab.positions).all()
        assert (born.atoms.positions[len(slab) :, 2] > slab.positions[:, 2].max()).all()
        assert born.atoms.constraints[0].index.tolist() == [0, 1, 2, 3]
        assert (born.atoms.cell[:2] == slab.cell[:2]).all()


def test_a_slab_of_a_periodic_cell_keeps_its_vacuum_under_what_is_put_on_it():
    slab = fcc111("Pd", (2, 2, 2), vacuum=5, periodic=True)
    tall = Recipe(mix={}, adsorbate={"O": (12, 12)}, vacuum_A=5.0, atoms=(2, 60))
    atoms = grow(tall, "adsorbate", np.random.default_rng(9), base=slab).atoms
    gap = atoms.cell[2, 2] - np.ptp(atoms.positions[:, 2])
    assert gap == pytest.approx(10.0)  # 5 Å on each side, as before


# ---- the explorer


@pytest.mark.parametrize("method", ["grow", "reico"])
def test_the_explorer_keeps_the_laws(method):
    check_explorer(lambda: Reico(count=8, recipe=ALL, method=method, kinds=KINDS))


def test_the_explorer_keeps_the_laws_on_start_structures():
    check_explorer(lambda: Reico(count=4, recipe=ALL, kinds={"adsorbate": 1}, on_starts=True))


def test_basin_hopping_keeps_the_laws():
    check_explorer(lambda: BasinHopping(hops=3, walkers=3, swap=0.3))
    check_explorer(lambda: BasinHopping(hops=3, walkers=2, abort_above_eV_per_A=1e-3))


@pytest.mark.parametrize("method", ["grow", "reico"])
def test_the_same_seed_gives_the_same_bytes_and_more_structures_change_none(method):
    def made(count: int) -> list[bytes]:
        policy = Reico(count=count, recipe=ALL, method=method, kinds={"adsorbate": 1})
        frames = [born.atoms for born, _ in policy.make([], np.random.default_rng(11))]
        return [a.positions.tobytes() + a.cell.array.tobytes() + bytes(a.numbers) for a in frames]

    assert made(6) == made(6) == made(9)[:6]


class Waves:
    """Forces that depend on the place alone, −∇Σ(1 − cos x): a session factory without a memory."""

    def __init__(self, disagreement: float = 0.1) -> None:
        self.factors = 1 + disagreement * np.array([-1.0, 0.0, 1.0])

    def __call__(self, frames):
        sizes = np.array([len(a) for a in frames])

        def session(positions, member_forces):
            forces = -np.sin(positions)
            energy = np.add.reduceat((1 - np.cos(positions)).sum(1), np.cumsum([0, *sizes[:-1]]))
            return CommitteePrediction(
                sizes,
                np.tile(energy, (3, 1)),
                forces,
                self.factors[:, None, None] * forces if member_forces else None,
            )

        return session


ANYTHING = Guards(pair_factor=1e-3, max_force_eV_per_A=1e3)


def explore(policy, starts=(), *, toy=None, seed=0):
    toy = toy or Waves()
    return policy(list(starts), toy, Calibration.uncalibrated(), np.random.default_rng(seed))


def test_frames_along_the_way_down_are_offered_and_births_on_request():
    options = {"count": 5, "recipe": PT_O, "relax_steps": 6, "frames": 2, "fmax_eV_per_A": 1e-6}
    without = explore(Reico(**options))
    found = explore(Reico(**options, birth=True))
    for walker in range(5):
        assert [c.step for c in without.candidates if c.walker == walker] == [3, 6]
        assert [c.step for c in found.candidates if c.walker == walker] == [0, 3, 6]
    assert {c.reason for c in found.candidates} == {"born", "along"}
    assert found.force_calls == 5 * 7
    born = [c.atoms for c in found.candidates if c.step == 0]
    last = [c.atoms for c in found.candidates if c.step == 6]
    session = Waves()(born)
    energies = [
        session(np.concatenate([a.positions for a in frames]), False).mean_energies
        for frames in (born, last)
    ]
    assert (energies[1] < energies[0]).all()


def test_without_steps_only_what_is_born_is_offered():
    found = explore(Reico(count=4, recipe=PT_O, relax_steps=0, frames=1))
    assert [c.reason for c in found.candidates] == ["born"] * 4


def test_a_way_down_ends_where_the_committee_does_not_know():
    toy = Waves(disagreement=5.0)
    found = explore(Reico(count=4, recipe=PT_O, abort_above_eV_per_A=0.1), toy=toy)
    assert {w.outcome for w in found.walkers} == {"abort"}
    assert [c.reason for c in found.candidates] == ["born"] * 4
    assert all(c.expected_error_eV_per_A > 0.1 for c in found.candidates)


def test_fixed_atoms_and_a_held_base_do_not_move():
    slab = fcc111("Cu", (2, 2, 2), vacuum=6)
    add_adsorbate(slab, molecule("CO"), 1.8, "ontop")
    slab.set_constraint(FixAtoms(range(4)))
    options = {"count": 4, "recipe": ALL, "kinds": {"adsorbate": 1}, "on_starts": True, "guards": ANYTHING}
    for hold, held in ((False, 4), (True, len(slab))):
        found = explore(Reico(**options, hold_base=hold), [slab])
        last = [c for c in found.candidates if c.step > 0]
        assert last
        for c in last:
            moved = np.abs(c.atoms.positions[: len(slab)] - slab.positions).max(1) > 0
            assert not moved[:held].any()
            assert moved[held:].all()
    hopping = explore(BasinHopping(hops=3, guards=ANYTHING), [slab])
    for c in hopping.candidates:
        assert (c.atoms.positions[:4] == slab.positions[:4]).all()
        assert (c.atoms.positions[4:] != slab.positions[4:]).any()


def test_a_batch_changes_no_structures_way():
    policy = {"count": 6, "recipe": ALL, "kinds": KINDS}
    together, alone = (explore(Reico(**policy, batch_atoms=n)) for n in (4000, 1))
    assert together.force_calls == alone.force_calls
    for one, other in zip(together.candidates, alone.candidates, strict=True):
        # sums over another batch may round differently
        assert one.atoms.positions == pytest.approx(other.atoms.positions, abs=1e-9)


def test_basin_hopping_finds_the_lower_of_two_minima():
    """A double well in x: from the upper one hops reach the lower one, and its energy is the lower."""
    def factory(frames):
        def session(positions, member_forces):
            x = positions[:, 0]
            energies = (x**2 - 1) ** 2 + 0.3 * x
            forces = np.zeros_like(positions)
            forces[:, 0] = -(4 * x * (x**2 - 1) + 0.3)
            forces[:, 1:] = -positions[:, 1:]
            energy = energies + 0.5 * (positions[:, 1:] ** 2).sum(1)
            members = np.stack([forces, forces])
            return CommitteePrediction(np.ones(len(frames), int), np.stack([energy] * 2), forces, members)

        return session

    start = Atoms("H", positions=[[0.95, 0.0, 0.0]])
    found = explore_with(BasinHopping(hops=20, step_A=1.5, fmax_eV_per_A=0.01), [start], factory)
    ends = [c.atoms.positions[0, 0] for c in found.candidates if c.reason == "minimum"]
    assert ends[0] == pytest.approx(0.96, abs=0.02)
    assert min(ends) == pytest.approx(-1.035, abs=0.02)  # the roots of 4x³ − 4x + 0.3


def explore_with(policy, starts, factory):
    return policy(starts, factory, Calibration.uncalibrated(), np.random.default_rng(1))


# ---- health


def test_health_sees_an_atom_alone_and_its_own_image():
    apart = Atoms("H2", positions=[[0, 0, 0], [0, 0, 3.5]])
    tight = Atoms("Cu", cell=[2.0, 9, 9], pbc=True)
    assert health([apart])["isolated_atoms"] == 1.0
    assert health([tight])["nearest_A"]["least"] == pytest.approx(2.0)
    assert health([tight])["least_ratio"] == pytest.approx(2.0 / 2.64)
    copper = bulk("Cu", a=3.6)
    assert health([copper])["nearest_A"]["mean"] == pytest.approx(3.6 / np.sqrt(2))
    forces = [np.full((1, 3), 2.0), None]
    known = health([tight, copper], forces)["forces"]
    assert known["rms_eV_per_A"] == 2.0 and known["structures"] == 1
    assert health([]) == {"structures": 0}


# ---- what cannot be


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mix": {}}, "mix is empty"),
        ({"mix": {"Xx": (1, 2)}}, "'Xx' is no element"),
        ({"mix": {"Pd": (3, 1)}}, r"mix\.Pd is \[3, 1\]"),
        ({"mix": {"Pd": (0, 0)}}, "allows no atom"),
        ({"mix": {"Pd": (2, 4)}, "atoms": (1, 9)}, "one atom has no neighbour"),
        ({"mix": {"Pd": (2, 4)}, "nearest_A": (3.0, 3.0)}, "empty window"),
        ({"mix": {"Pd": (2, 4)}, "nearest_A": (2.6, 3.0)}, "raise volume_ratio to"),
        ({"mix": {"Pd": (2, 4)}, "volume_ratio": (2.0, 1.0)}, "least ≤ most"),
        ({"mix": {"Pd": (2, 4)}, "angles_deg": (10.0, 170.0)}, "45° to 135°"),
    ],
)
def test_impossible_recipes_say_what_would_do(settings, said):
    with pytest.raises(PolicyError, match=said):
        Recipe(**settings)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "random"}, "'grow' or 'reico'"),
        ({"kinds": {"slab": 1}}, "names 'slab'; kinds are bulk"),
        ({"kinds": {"bulk": 0}}, "weight above 0"),
        ({"kinds": {"adsorbate": 1}}, "needs 'adsorbate'"),
        ({"on_starts": True}, "on_starts needs"),
        ({"count": 0}, "count is 0"),
        ({"recipe": {"mix": {"Pd": (1, 4)}, "atoms": (8, 9)}}, "1 to 4 atoms, and atoms asks for 8 to 9"),
        (
            {"recipe": {"mix": {}, "adsorbate": {"H": (1, 4)}}, "kinds": {"adsorbate": 1}},
            "mix gives 0 to 0 atoms",
        ),
        ({"recipe": {"mix": {"Cu": (2, 3)}, "adsorbate": {"H": (1, 1)}}}, "has no effect"),
        (
            {"recipe": {"mix": {"O": (2, 3)}, "adsorbate": {"O": (1, 1)}}, "method": "reico",
             "kinds": {"adsorbate": 1}},
            "mixes up",
        ),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused(options, said):
    with pytest.raises(PolicyError, match=said):
        Reico(**{"count": 2, "recipe": PT_O, **options})


def test_what_the_published_rules_cannot_make_is_said_with_a_way_out(monkeypatch):
    monkeypatch.setattr("alchemy_policies.published.MOST_TRIALS", 200)
    with pytest.raises(PolicyError, match=r"none of 200 .* use method grow"):
        publish(Recipe(mix={"Pd": (40, 40)}), "bulk", np.random.default_rng(0))
    monkeypatch.setattr("alchemy_policies.published.MOST_PAIRS", 100 * 40**2)
    with pytest.raises(PolicyError, match="none of 100 random"):
        publish(Recipe(mix={"Pd": (40, 40)}), "bulk", np.random.default_rng(0))


def test_starts_that_are_no_slabs_and_strange_constraints_are_refused():
    policy = Reico(count=2, recipe=ALL, kinds={"adsorbate": 1}, on_starts=True)
    for starts in ([], [molecule("H2O")], [bulk("Cu", cubic=True)]):
        with pytest.raises(PolicyError, match="is a slab"):
            policy.make(starts, np.random.default_rng(0))
    water = molecule("H2O")
    water.set_constraint(FixedPlane(0, (0, 0, 1)))
    with pytest.raises(PolicyError, match="FixedPlane"):
        explore(BasinHopping(hops=1), [water])
    with pytest.raises(PolicyError, match="at least one start"):
        explore(BasinHopping(hops=1), [])
    with pytest.raises(PolicyError, match="share of hops"):
        BasinHopping(swap=2.0)
    assert Guards(pair_factor=0.5) == BasinHopping(guards={"pair_factor": 0.5}).guards
