"""Paths between two structures: interpolation, the band, and what ends a search."""

from __future__ import annotations

import numpy as np
import pytest
from alchemy_policies import PolicyError
from alchemy_policies.calculators import CalculatorSessions
from alchemy_policies.guards import Guards, Reference, is_too_close
from alchemy_policies.ts import Reaction, checked
from alchemy_policies.ts.band import is_folded, tangents
from alchemy_policies.ts.modes import hessians, vibrations
from alchemy_policies.ts.neb import Band, relax_band
from alchemy_policies.ts.path import first_path
from alchemy_policies.ts.saddles import imaginary_modes
from ase import Atoms
from ase.calculators.calculator import CalculationFailed
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ts_helpers import (
    HCN,
    HIGH,
    HIGH_BARRIER,
    HNC,
    HOP,
    LEFT,
    MIDDLE,
    MullerBrown,
    Pushing,
    adatom,
    at,
    explore,
    outcomes,
    surface_of,
    watch,
)  # fmt: skip

PAIR = Guards().pair_factor


def band_of(images: int, fmax: float = 0.01, **changes) -> Band:
    surface = surface_of(at(LEFT), MullerBrown())
    path = first_path(checked(HOP), images, np.random.default_rng(0), pair_factor=PAIR)
    return relax_band(surface, path, watch(surface), fmax_eV_per_A=fmax, max_steps=400, **changes)


def test_on_a_converged_band_no_force_points_away_from_the_path():
    band, fmax = band_of(7), 0.01
    assert band.outcome == "converged"
    surface = surface_of(at(LEFT), MullerBrown())
    force = surface(band.positions_A[1:-1]).forces_eV_per_A
    tau = tangents(band.positions_A, band.energies_eV)
    across = force - (force * tau).sum((1, 2))[:, None, None] * tau
    assert np.linalg.norm(across, axis=2).max() < fmax  # springs push along the path only
    # and on the climbing image none at all
    assert np.linalg.norm(force[band.top - 1], axis=1).max() < fmax


def test_the_climbing_image_is_the_saddle_and_bends_down_in_one_direction():
    band = band_of(7)
    x = band.positions_A[band.top]
    # 0.01 eV/Å of force over the softest curvature, 3 eV/Å², leave 3 mÅ
    assert x[1, :2] == pytest.approx(HIGH, abs=0.005)
    surface = surface_of(at(LEFT), MullerBrown())
    assert imaginary_modes(vibrations(surface, x, hessians(surface, x).mean)) == 1


@pytest.mark.parametrize("images", [3, 6, 11])
def test_the_barrier_does_not_depend_on_the_number_of_images(images):
    # force² / (2 curvature) = 1e-4 / 6 eV: far below a meV, whatever the images
    assert band_of(images).barrier_eV == pytest.approx(HIGH_BARRIER, abs=1e-3)


def test_all_images_are_one_batch(monkeypatch):
    surface = surface_of(at(LEFT), MullerBrown())
    sizes = []
    call = surface._evaluate
    monkeypatch.setattr(surface, "_evaluate", lambda x, **k: sizes.append(len(x)) or call(x, **k))
    path = first_path(checked(HOP), 7, np.random.default_rng(0), pair_factor=PAIR)
    band = relax_band(surface, path, watch(surface), fmax_eV_per_A=0.05, max_steps=400)
    assert sizes == [2] + [7] * (band.steps + 1)  # the ends once
    assert surface.calls == sum(sizes)


def test_an_atom_that_leaves_through_the_cell_s_face_takes_the_short_way():
    # in the file, the product's adatom was wrapped to the other side of the cell
    start, wrapped = adatom(1.0), adatom(2.0, wrapped=True)
    assert abs(wrapped.positions[-1, 0] - start.positions[-1, 0]) < 3.0
    ready = checked(Reaction("hop", adatom(1.5), wrapped))
    path = first_path(ready, 5, np.random.default_rng(0), pair_factor=PAIR)
    hop = start.cell[0, 0] / 4
    assert np.linalg.norm(path[-1] - path[0], axis=1).max() == pytest.approx(hop, abs=1e-9)
    assert not is_folded(path)
    assert (path[:, :4] == path[0, :4]).all()  # the fixed layer stays


def test_an_atom_goes_around_the_others_the_same_way_for_the_same_seed():
    # on a straight line H would pass through C and N
    ready = checked(Reaction("flip", HCN, HNC))
    paths = [first_path(ready, 7, np.random.default_rng(s), pair_factor=PAIR) for s in (0, 0, 1)]
    assert (paths[0] == paths[1]).all()
    assert (paths[0] != paths[2]).any()
    reference = Reference.of(HCN, Guards())
    for path in paths:
        assert not any(is_too_close(reference, x, PAIR) for x in path)
        assert (path[0] == HCN.positions).all()


def test_a_guess_becomes_an_image_of_the_path():
    guess = at((-0.9, 0.7))
    ready = checked(Reaction("hop", at(LEFT), at(MIDDLE), guess))
    path = first_path(ready, 5, np.random.default_rng(0), pair_factor=PAIR)
    assert len(path) == 7
    assert np.abs(path - guess.positions).max((1, 2)).min() < 1e-12


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (Atoms("HCO", HNC.positions), "keeps all its atoms"),
        (HNC[[1, 0, 2]], "atom 0 is C, in the reactant H"),
        (Atoms("HCN", HNC.positions, cell=[9, 9, 9], pbc=True), "another cell"),
        (HCN.copy(), "the same structure"),
        (Atoms("HCN", HNC.positions, info={"charge": 1}), "charge 1"),
    ],
)
def test_ends_that_no_path_can_join_are_told_apart_and_the_other_reactions_go_on(other, what):
    start = HCN.copy()
    start.info["charge"] = 0
    with pytest.raises(PolicyError, match=what):
        checked(Reaction("broken", start, other))
    ends = {"broken": (0, 1), "hop": (2, 3)}
    reactions = tuple({"name": name, "reactant": a, "product": b} for name, (a, b) in ends.items())
    found = explore([start, other, at(LEFT), at(MIDDLE)], MullerBrown(), reactions=reactions)
    assert outcomes(found) == ["disconnected", "saddle"]
    assert what in found.facts["reactions"][0]["message"]


def test_a_fixed_atom_that_moves_is_refused():
    moved = adatom(1.0)
    moved.set_constraint()
    moved.positions[0] += 0.3
    with pytest.raises(PolicyError, match="fixed atom"):
        checked(Reaction("hop", adatom(), moved))


def test_a_band_that_is_folded_and_stays_so_is_given_up():
    # on flat ground springs act along the path alone, so nothing unfolds it
    class Flat(MullerBrown):
        def calculate(self, *args, **kwargs) -> None:
            super().calculate(*args, **kwargs)
            self.results = {"energy": 0.0, "forces": np.zeros((2, 3))}

    surface = surface_of(at(LEFT), Flat())
    points = [(0, 0), (1, 0), (2, 0.15), (1, 0.3), (0, 0.3)]
    path = np.array([at(point).positions for point in points])
    band = relax_band(surface, path, watch(surface), fmax_eV_per_A=0.01, max_steps=200)
    assert band.outcome == "folded"
    assert not is_folded(path[:3])


def test_an_optimiser_that_runs_away_is_stopped_and_says_so():
    options = {"travel_A": 1.5, "search": {"method": "neb", "relax_ends": False}}
    found = explore([at(LEFT), at(MIDDLE)], Pushing(), **options)
    assert outcomes(found) == ["runaway"]
    ends = explore([at(LEFT), at(MIDDLE)], Pushing(), travel_A=1.5)
    assert outcomes(ends) == ["runaway"]


def test_a_code_that_gives_up_ends_one_search_only():
    class Failing(MullerBrown):
        def calculate(self, atoms=None, *args) -> None:
            if atoms.positions[1, 1] < 1.2:  # everything but the reactant
                raise CalculationFailed("SCF not converged")
            super().calculate(atoms, *args)

    found = explore([at(LEFT), at(MIDDLE)], Failing())
    assert outcomes(found) == ["not-finite"]
    assert all(np.isfinite(c.atoms.positions).all() for c in found.candidates)


def test_a_code_that_gives_up_beside_the_saddle_proves_nothing():
    class Edge(MullerBrown):
        def calculate(self, atoms=None, *args) -> None:
            if abs(atoms.positions[1, 2]) > 0.005:  # only a Hessian leaves the plane
                raise CalculationFailed("SCF not converged")
            super().calculate(atoms, *args)

    assert outcomes(explore([at(LEFT), at(MIDDLE)], Edge())) == ["not-finite"]


def test_where_every_atom_is_fixed_nothing_reacts():
    still = at(LEFT)
    still.set_constraint(FixAtoms([0, 1]))
    with pytest.raises(PolicyError, match="every atom is fixed"):
        checked(Reaction("none", still, at(MIDDLE)))


def test_ends_that_relax_into_one_minimum_are_no_reaction():
    found = explore([at(LEFT), at((-0.7, 1.3))], MullerBrown())
    assert outcomes(found) == ["ends-collapse"]


def test_the_committee_s_error_ends_a_search_and_what_it_ended_at_is_offered():
    members = [MullerBrown(scale=s) for s in (0.6, 1.4)]
    found = explore(
        [at(LEFT), at(MIDDLE)], *members, label_above_eV_per_A=0.2, search={"relax_ends": False},
        check_every=2, debounce=2, grace_checks=0,
    )  # fmt: skip
    assert outcomes(found) == ["label-stop"]
    reasons = [c.reason for c in found.candidates]
    assert reasons[0] == "crossed"
    assert found.candidates[0].expected_error_eV_per_A > 0.2
    assert found.walkers[0].max_expected_error_eV_per_A > 0.2
    trusting = explore([at(LEFT), at(MIDDLE)], *members, label_above_eV_per_A=50.0, abort_above_eV_per_A=99.0)
    assert outcomes(trusting) == ["saddle"]
    aborted = explore(
        [at(LEFT), at(MIDDLE)], *members, label_above_eV_per_A=0.01, abort_above_eV_per_A=0.02,
        grace_checks=0, search={"relax_ends": False},
    )  # fmt: skip
    assert outcomes(aborted) == ["abort"]


def test_sessions_of_calculators_keep_their_cells():
    session = CalculatorSessions(EMT())([adatom()])
    with pytest.raises(PolicyError, match="no stress"):
        session(adatom().positions, False, stress=True)
