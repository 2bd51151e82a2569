"""Second derivatives of a committee, corrected or not, against differences of its forces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from alchemy_policies.calculators import CalculatorSessions
from alchemy_policies.calibration import Calibration
from alchemy_policies.ts import Corrected, Label, Surface
from alchemy_policies.ts.modes import NotFiniteError, hessians
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms

from tace.committee import Committee
from tace.config import preset
from tace.errors import DataError
from tace.model import Tace


def committee() -> Committee:
    """Two members in double precision: what differs from the differences is their own error."""
    config = preset("nano", elements=(1, 6, 8), cutoff_A=4.0, les=None)
    return Committee([Tace(config, seed=seed, dtype=torch.float64) for seed in (1, 2)])


def methanol(*fixed: int) -> Atoms:
    atoms = molecule("CH3OH")
    atoms.positions += np.random.default_rng(3).normal(0.0, 0.05, atoms.positions.shape)
    atoms.set_constraint(FixAtoms(list(fixed)))
    return atoms


def label_of(atoms: Atoms) -> tuple[Atoms, Label]:
    work = atoms.copy()
    work.calc = EMT()
    return atoms, Label(work.get_potential_energy(), work.get_forces(apply_constraint=False))


class Plain:
    """The same sessions without second derivatives of their own."""

    def __init__(self, factory) -> None:
        self.factory = factory

    def __call__(self, frames):
        session = self.factory(frames)
        return lambda positions, members, **rest: session(positions, members, **rest)


@pytest.mark.parametrize("fixed", [(), (0, 1)], ids=["free", "held"])
@pytest.mark.parametrize("corrected", [False, True])
def test_a_committees_own_hessian_is_the_slope_of_its_forces(fixed, corrected):
    models, atoms = committee(), methanol(*fixed)
    factory = models.session
    if corrected:
        factory = Corrected(models.session, atoms, [label_of(methanol(*fixed)), label_of(molecule("CH3OH"))])
    exact = Surface(atoms, factory, Calibration.uncalibrated())
    differenced = Surface(atoms, Plain(factory), Calibration.uncalibrated())
    found = hessians(exact, atoms.positions)
    wanted = hessians(differenced, atoms.positions, step_A=1e-4)
    assert found.members.shape == (2, 3 * (6 - len(fixed)), 3 * (6 - len(fixed)))
    # h² = 1e-8 Å² times fourth derivatives, here up to 1e4 of the second ones in units of Å
    size = np.abs(wanted.members).max()
    assert found.members == pytest.approx(wanted.members, abs=1e-4 * size)
    assert found.mean == pytest.approx(found.members.mean(0), abs=1e-12 * size)
    assert found.members == pytest.approx(found.members.swapaxes(1, 2), abs=1e-9 * size)
    assert exact.calls == found.members.shape[1]
    assert differenced.calls == 2 * found.members.shape[1]


def test_a_calculator_is_differenced_and_nothing_is_asked_at_a_place_that_is_nowhere():
    atoms = methanol()
    surface = Surface(atoms, CalculatorSessions(EMT()), Calibration.uncalibrated())
    assert surface.exact_hessians(atoms.positions) is None
    assert surface.calls == 0
    assert hessians(surface, atoms.positions).mean.shape == (18, 18)
    with pytest.raises(NotFiniteError, match="position"):
        hessians(surface, np.full_like(atoms.positions, np.nan))


def test_a_session_of_two_structures_has_no_hessian():
    session = committee().session([methanol(), methanol()])
    with pytest.raises(DataError, match="one structure"):
        session.hessians(methanol().positions)
