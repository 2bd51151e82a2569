"""REICO: random exploration by imaginary chemicals optimisation, as an explorer.

Small random cells of all elements together ("imaginary chemicals") are optimised for a few steps, and
frames along the way are offered. No bond shorter than 1.5 Å exists at birth: C-H, O-H, H-H and C≡O come
from the optimisation, which is what samples the chemistry (Nat. Catal. 8, 891, 2025). How many steps, with
which optimiser, and how frames were chosen is not published; ours is FIRE with the committee's mean force,
and evenly spaced frames. Births are left out unless `birth` asks for them: pairs of large atoms at 1.5 Å give
them ten times the force RMS of the published set (2.5 eV/Å); a few steps bring it there.

`method` says who makes the cells: `grow` (ours) or `reico` (the published rules). Start structures are looked
at only where `on_starts` wants them as slabs under adsorbates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms

from .base import Candidate, Exploration, PolicyError, SessionFactory, WalkerReport
from .calibration import Calibration
from .descent import CONVERGED, Moment, Terms, Way, batches, descend, with_last
from .grow import grow
from .guards import Guards
from .published import publish
from .recipes import KINDS, Born, Recipe, check_kinds, shares
from .walkers import bare_copy

BORN, ALONG, RELAXED = "born", "along", "relaxed"


@dataclass(frozen=True, kw_only=True)
class Reico:
    """Random structures of all elements together, and what they become on a short way downhill."""

    grows: ClassVar[bool] = True  # candidates are new structures, or a start with atoms added

    count: int  # random structures
    recipe: Recipe
    method: str = "grow"
    kinds: Mapping[str, float] = field(default_factory=lambda: {"bulk": 1.0})  # kind -> weight
    relax_steps: int = 10
    frames: int = 3  # offered of each structure, along its way
    birth: bool = False  # offer what is born too; without steps, and where the way ends there, it always is
    on_starts: bool = False  # kind adsorbate: on the start structures, in place of random slabs
    hold_base: bool = False  # kind adsorbate: what lies below does not move
    fmax_eV_per_A: float = 0.05
    abort_above_eV_per_A: float = 5.0  # twice the usual force: then a step means nothing
    # Two atoms of Pt may be born at 1.5 Å, 0.55 of their radii, and be pushed apart with 100 eV/Å: that is
    # what is to be learnt, and no collapse as it would be in dynamics.
    guards: Guards = field(default_factory=lambda: Guards(pair_factor=0.5, max_force_eV_per_A=200.0))
    batch_atoms: int = 1024  # atoms in one session call; a larger structure runs alone

    def __post_init__(self) -> None:
        recipe: Any = self.recipe  # a campaign gives mappings
        guards: Any = self.guards
        if isinstance(recipe, Mapping):
            object.__setattr__(self, "recipe", Recipe(**recipe))
        if isinstance(guards, Mapping):
            object.__setattr__(self, "guards", Guards(**guards))
        for name, least in (("count", 1), ("relax_steps", 0), ("frames", 1), ("batch_atoms", 1)):
            if not getattr(self, name) >= least:
                raise PolicyError(f"{name} is {getattr(self, name)}, must be at least {least}")
        for name in ("fmax_eV_per_A", "abort_above_eV_per_A"):
            if not getattr(self, name) > 0:
                raise PolicyError(f"{name} is {getattr(self, name)}, must be positive")
        check_kinds(self.kinds, self.recipe, self.method, on_starts=self.on_starts)
        if self.on_starts and (self.method != "grow" or not self.kinds.get("adsorbate")):
            raise PolicyError("on_starts needs method grow and the kind adsorbate: it puts atoms on slabs")

    def __call__(
        self,
        starts: Sequence[Atoms],
        session_factory: SessionFactory,
        calibration: Calibration | None,
        rng: np.random.Generator,
    ) -> Exploration:
        """As every explorer; calibration None: the forces are true, nothing is judged."""
        born = self.make(starts, rng)
        terms = Terms.of(self, calibration)
        ways, calls = self.relax([structure for structure, _ in born], session_factory, terms)
        offers, reports = [], []
        for n, ((structure, start), way) in enumerate(zip(born, ways, strict=True)):
            offers += [_offer(n, structure.atoms, moment, way) for moment in with_last(way)]
            reports.append(_report(n, start, way))
        return Exploration(tuple(offers), tuple(reports), calls)

    def make(self, starts: Sequence[Atoms], rng: np.random.Generator) -> list[tuple[Born, int]]:
        """The structures at birth, and the start below each (−1: none).

        Each has a random stream of its own, so that `count` changes none of them.

        Raises:
            PolicyError: a recipe that gives no structure, or no start that could be a slab.
        """
        slabs = [(n, atoms) for n, atoms in enumerate(starts) if _is_slab(atoms)]
        if self.on_starts and not slabs:
            raise PolicyError(
                f"none of {len(starts)} start structures is a slab: periodic along x and y, its third cell "
                "vector perpendicular to them, and free above"
            )
        numbers = shares({k: self.kinds[k] for k in KINDS if self.kinds.get(k)}, self.count)
        kinds = [kind for kind, number in numbers.items() for _ in range(number)]
        found = []
        for kind, stream in zip(kinds, rng.spawn(self.count), strict=True):
            start, base = -1, None
            if self.on_starts and kind == "adsorbate":
                start, base = slabs[int(stream.integers(len(slabs)))]
            born = self._born(kind, stream, base)
            if self.hold_base and born.base:
                born.atoms.set_constraint(FixAtoms(range(born.base)))
            found.append((born, start))
        return found

    def _born(self, kind: str, rng: np.random.Generator, base: Atoms | None) -> Born:
        if self.method == "grow":
            return grow(self.recipe, kind, rng, base=base)
        return publish(self.recipe, kind, rng)

    def relax(
        self, born: Sequence[Born], session_factory: SessionFactory, terms: Terms
    ) -> tuple[list[Way], int]:
        """Ways down, in batches; and the number of structures evaluated."""
        spaced = np.linspace(0, self.relax_steps, self.frames + 1).round().astype(int)
        keep = set(spaced.tolist() if self.birth or self.relax_steps == 0 else spaced[1:].tolist())
        ways: list[Way] = []
        calls = 0
        frames = [structure.atoms for structure in born]
        for batch in batches(frames, self.batch_atoms):
            more, evaluated = descend([frames[n] for n in batch], session_factory, terms, keep=keep)
            ways += more
            calls += evaluated
        return ways, calls


def _is_slab(atoms: Atoms) -> bool:
    """Whether there is a free side above it, seen along z."""
    if not (atoms.pbc[0] and atoms.pbc[1]):
        return False
    cell = atoms.cell.array
    upright = abs(cell[:2, 2]).max() < 1e-6 and abs(cell[2, :2]).max() < 1e-6 and cell[2, 2] > 0
    free = not atoms.pbc[2] or cell[2, 2] - np.ptp(atoms.positions[:, 2]) > 5.0  # Å, beyond any bond
    return bool(upright and free)


def _offer(walker: int, atoms: Atoms, moment: Moment, way: Way) -> Candidate:
    reason = BORN if moment.step == 0 else ALONG
    if way.outcome == CONVERGED and moment.step == way.steps and moment.step > 0:
        reason = RELAXED
    return Candidate(
        atoms=bare_copy(atoms, moment.positions_A, atoms.cell.array),
        source="reico",
        reason=reason,
        walker=walker,
        step=moment.step,
        time_fs=0.0,
        temperature_K=0.0,
        expected_error_eV_per_A=moment.expected_error_eV_per_A,
    )


def _report(walker: int, start: int, way: Way) -> WalkerReport:
    errors = [m.expected_error_eV_per_A for m in with_last(way)]
    known = [error for error in errors if error == error]
    return WalkerReport(
        walker=walker,
        start_index=start,
        temperature_K=0.0,
        steps=way.steps,
        outcome=way.outcome,
        time_fs=0.0,
        max_expected_error_eV_per_A=max(known, default=float("nan")),
    )
