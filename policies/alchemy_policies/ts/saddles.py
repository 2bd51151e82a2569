"""What counts as a saddle: one imaginary mode, seen by every member, whose IRC joins the named ends.

Verdicts, in the order in which they are looked for:

`no-imaginary-mode`       a minimum, or a shoulder; see `imaginary_modes` for what is too little to count
`several-imaginary-modes` a saddle of higher order
`members-disagree`        a member curves up along the mode, or its own softest mode points elsewhere
`irc-failed`              a branch reached no minimum in the steps that it had
`rotation-only`           both branches reach the same molecule and the mode turns a group (methyl)
`same-ends`               both branches reach the same state in another way
`other-ends`              a sound saddle, of another reaction than the named one
`duplicate`               found before
`saddle`                  all of it holds
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from ase import Atoms

from .bonds import bonds, isomorphic
from .irc import Descent, descend
from .modes import Hessians, Vibrations, agreement, hessians, rotation_share, vibrations
from .reactions import Reaction, distance_between
from .surface import Surface
from .watch import CONVERGED

SADDLE = "saddle"
LEAST_PER_CM = 50.0  # below, finite differences and float32 decide the sign
LEAST_CURVATURE = 0.05  # eV/Å²: heavy adatoms hop over saddles of 25 cm⁻¹, which are no noise all the same
LEAST_OVERLAP = 0.7  # 45° between a member's softest mode and the mean's
TURNS = 0.8  # share of a mode that turns groups, from which on it is called a rotation
SAME_A = 0.3  # an end is the named one if no atom is farther from its place
TWIN_A, TWIN_EV = 0.1, 0.02


@dataclass(frozen=True)
class Saddle:
    """A stationary point and what the checks found. Energies of the committee's mean."""

    reaction: str
    positions_A: np.ndarray  # [A,3]
    energy_eV: float
    verdict: str
    mode: np.ndarray  # [A,3], unit length
    frequencies_per_cm: np.ndarray  # softest first, imaginary negative
    imaginary: int  # modes that count as such
    curvatures_eV_per_A2: np.ndarray  # [K]
    overlaps: np.ndarray  # [K]
    turning: float  # share of the mode that turns groups
    expected_error_eV_per_A: float
    ends_A: tuple[np.ndarray, np.ndarray] | None = None  # reactant's side first where it is known
    ends_eV: tuple[float, float] | None = None
    surplus_modes: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 3)), repr=False)  # [m-1,A,3]
    path_A: np.ndarray | None = field(default=None, repr=False)  # IRC, from end to end
    path_eV: np.ndarray | None = field(default=None, repr=False)

    @property
    def barriers_eV(self) -> tuple[float, float]:
        """Above the two ends of the IRC; NaN where it was not followed."""
        if self.ends_eV is None:
            return math.nan, math.nan
        return self.energy_eV - self.ends_eV[0], self.energy_eV - self.ends_eV[1]


def verified(
    surface: Surface,
    reaction: Reaction,
    positions_A: np.ndarray,
    *,
    known: Sequence[Saddle] = (),
    irc_fmax_eV_per_A: float = 0.05,
    irc_steps: int = 400,
) -> Saddle:
    """Judge a stationary point; the dear checks are left out once a cheap one has failed.

    Args:
        known: saddles that were found before, of the same atoms in the same order.
    """
    found = hessians(surface, positions_A)
    modes = vibrations(surface, positions_A, found.mean)
    look = surface(positions_A[None], members=True)
    said = agreement(surface, positions_A, found)
    error = math.nan if look.errors_eV_per_A is None else float(look.errors_eV_per_A[0])
    saddle = Saddle(
        reaction=reaction.name,
        positions_A=positions_A.copy(),
        energy_eV=float(look.energies_eV[0]),
        verdict=SADDLE,
        mode=modes.displacements[0],
        frequencies_per_cm=modes.frequencies_per_cm,
        imaginary=imaginary_modes(modes),
        curvatures_eV_per_A2=said.curvatures_eV_per_A2,
        overlaps=said.overlaps,
        turning=rotation_share(surface, positions_A, modes.weighted[0]),
        expected_error_eV_per_A=error,
        surplus_modes=modes.displacements[1 : imaginary_modes(modes)],
    )
    verdict = _by_modes(saddle, found)
    if verdict is None and any(is_duplicate(surface, saddle, other) for other in known):
        verdict = "duplicate"
    if verdict is not None:
        return replace(saddle, verdict=verdict)
    descent = descend(
        surface, positions_A, saddle.mode, fmax_eV_per_A=irc_fmax_eV_per_A, max_steps=irc_steps
    )
    return _by_ends(surface, reaction, saddle, descent)


def imaginary_modes(modes: Vibrations) -> int:
    """Modes along which the surface bends down beyond doubt."""
    bent = modes.curvatures_eV_per_A2 < -LEAST_CURVATURE
    return int((bent | (modes.frequencies_per_cm < -LEAST_PER_CM)).sum())


def _by_modes(saddle: Saddle, found: Hessians) -> str | None:
    if saddle.imaginary == 0:
        return "no-imaginary-mode"
    if saddle.imaginary > 1:
        return "several-imaginary-modes"
    if len(found.members) > 1:
        disagree = saddle.curvatures_eV_per_A2.max() >= 0 or saddle.overlaps.min() < LEAST_OVERLAP
        return "members-disagree" if disagree else None
    return None


def _by_ends(surface: Surface, reaction: Reaction, saddle: Saddle, descent: Descent) -> Saddle:
    paths, heights = descent.paths_A, descent.energies_eV
    ends = [surface.frame(path[-1]) for path in paths]
    if descent.outcome != CONVERGED:
        verdict, order = "irc-failed", (0, 1)
    else:
        verdict, order = judge_ends(reaction, ends, turning=saddle.turning)
    a, b = order
    path = np.concatenate([paths[a][::-1], paths[b][1:]])
    energies = np.concatenate([heights[a][::-1], heights[b][1:]])
    energies[len(paths[a]) - 1] = saddle.energy_eV
    return replace(
        saddle,
        verdict=verdict,
        ends_A=(paths[a][-1], paths[b][-1]),
        ends_eV=(float(heights[a][-1]), float(heights[b][-1])),
        path_A=path,
        path_eV=energies,
    )


def judge_ends(
    reaction: Reaction, ends: Sequence[Atoms], *, turning: float = 0.0
) -> tuple[str, tuple[int, int]]:
    """The verdict on two relaxed ends, and which of them belongs to the reactant."""
    here, there = ends
    if reaction.product is None:
        if distance_between(here, there) <= SAME_A:
            return "same-ends", (0, 1)
        turned = turning >= TURNS and _alike(here, there)
        return ("rotation-only" if turned else SADDLE), (0, 1)  # an inversion has equal ends too
    named = reaction.reactant, reaction.product
    same_graph = bonds(named[0]) == bonds(named[1])
    for order in ((0, 1), (1, 0)):
        pairs = [(ends[order[n]], named[n]) for n in range(2)]
        if all(_is(one, other, by_bonds=not same_graph) for one, other in pairs):
            return SADDLE, order
    # the same reaction of other, equivalent atoms; on a lattice that would be another hop
    if not here.pbc.any() and not isomorphic(*named):
        for order in ((0, 1), (1, 0)):
            if all(isomorphic(ends[order[n]], named[n]) for n in range(2)):
                return SADDLE, order
    if distance_between(here, there) <= SAME_A:
        return "same-ends", (0, 1)
    if _alike(here, there):
        return ("rotation-only" if turning >= TURNS else "same-ends"), (0, 1)
    return "other-ends", (0, 1)


def _is(one: Atoms, other: Atoms, *, by_bonds: bool) -> bool:
    """Bonds tell the ends of a reaction apart, unless it breaks none: then places must."""
    if by_bonds and bonds(one) == bonds(other):
        return True
    return distance_between(one, other) <= SAME_A


def _alike(one: Atoms, other: Atoms) -> bool:
    """The same molecule in the same shape, but for the names of equal atoms."""
    if one.pbc.any() or bonds(one) != bonds(other):
        return False
    return bool(np.abs(_fingerprint(one) - _fingerprint(other)).max(initial=0.0) < SAME_A)


def is_duplicate(surface: Surface, one: Saddle, other: Saddle) -> bool:
    """The same energy and the same sorted distances between every two elements.

    That leaves out permutations of equal atoms, rotations and mirror images.
    """
    if one.positions_A.shape != other.positions_A.shape:
        return False
    if abs(one.energy_eV - other.energy_eV) > TWIN_EV:
        return False
    frames = [surface.frame(saddle.positions_A) for saddle in (one, other)]
    gaps = _fingerprint(frames[0]) - _fingerprint(frames[1])
    return bool(np.abs(gaps).max(initial=0.0) < TWIN_A)


def _fingerprint(atoms: Atoms) -> np.ndarray:
    """All distances, Å, sorted within each pair of elements."""
    distances = atoms.get_all_distances(mic=bool(atoms.pbc.any()))
    i, j = np.triu_indices(len(atoms), 1)
    low = np.minimum(atoms.numbers[i], atoms.numbers[j])
    high = np.maximum(atoms.numbers[i], atoms.numbers[j])
    return np.asarray(distances[i, j][np.lexsort((distances[i, j], high, low))])
