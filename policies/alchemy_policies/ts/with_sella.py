"""Saddles by Sella (Hermes et al., JCTC 18, 6974 (2022)), with the model's own Hessian.

Sella brings jax, so it is an extra. The Hessian is the committee's own (`modes`), in place of Sella's
iterative diagonalisation.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
from ase import Atoms

from ..base import PolicyError
from .dimer import Climb, softest
from .fire import largest_force
from .modes import hessians
from .surface import Surface, SurfaceCalculator
from .watch import CONVERGED, NOT_CONVERGED, Watch

MISSING = (
    "Sella is not installed; try: pip install 'tace-alchemy[sella]' (it brings jax), "
    "or choose method neb+dimer"
)


def climb_sella(
    surface: Surface,
    start_A: np.ndarray,
    watch: Watch,
    *,
    fmax_eV_per_A: float,
    max_steps: int,
) -> Climb:
    """Follow the softest mode to a saddle with Sella's restricted-step optimiser, in Cartesians.

    Raises:
        PolicyError: Sella is not installed.
    """
    if find_spec("sella") is None:
        raise PolicyError(MISSING)
    from sella import Sella

    atoms = surface.frame(start_A)
    atoms.set_constraint(surface.atoms.constraints)
    atoms.calc = SurfaceCalculator(surface)
    free = np.repeat(~surface.fixed, 3)

    def hessian(asked: Atoms) -> np.ndarray:
        full = np.zeros((len(free), len(free)))
        full[np.ix_(free, free)] = hessians(surface, asked.positions, members=False).mean
        return full

    optimiser: Any = Sella(
        atoms, order=1, internal=False, logfile=None, hessian_function=hessian, diag_every_n=5
    )
    outcome = NOT_CONVERGED
    watch.begin(start_A[None])
    force, energy = np.zeros_like(start_A), np.nan
    for _ in optimiser.irun(fmax=fmax_eV_per_A, steps=max_steps):
        look = surface(atoms.positions[None], members=watch.due())
        force, energy = look.forces_eV_per_A[0], float(look.energies_eV[0])
        code = watch.judge(atoms.positions[None].copy(), look)
        if code is not None:
            outcome = code
            break
        if largest_force(force) < fmax_eV_per_A:
            outcome = CONVERGED
            break
    x = atoms.positions.copy()
    mode = softest(surface, x) if np.isfinite(x).all() else np.zeros_like(x)
    return Climb(x, energy, mode, outcome, largest_force(force), int(optimiser.nsteps))

