"""Which labels of files are no labels: what `alchemy data import` rejects, frame by frame, with a reason.

Cheap checks that need one frame, or the label of the same structure that was there before; what needs the
whole set (units, signs, outliers) is `alchemy data audit`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from alchemy.errors import InputError
from alchemy.gate import Finding, impossible_spin, zero_forces
from alchemy.store import LabelRow
from tace.data import Labelled
from tace.wording import count

LISTED = 8
# two converged calculations of one structure: beyond it is the noise of another setting or machine
SAME_ENERGY_EV_PER_ATOM, SAME_FORCE_EV_PER_A = 1e-3, 0.02


def defects(frame: Labelled) -> list[Finding]:
    """What is wrong with a frame by itself: not-finite, bad-multiplicity, …-forces."""
    parts = {
        "energy": frame.energy_eV,
        "forces": frame.forces_eV_per_A,
        "stress": frame.stress_eV_per_A3,
    }
    bad = [name for name, x in parts.items() if x is not None and not np.isfinite(x).all()]
    if bad:
        return [("not-finite", f"NaN or infinity in {', '.join(bad)}")]
    found = list(impossible_spin(frame.atoms))
    if frame.forces_eV_per_A is not None:
        found += zero_forces(frame.atoms, frame.forces_eV_per_A)
    return found


def contradicts(row: LabelRow, other: LabelRow) -> str:
    """How two labels of one structure and level differ beyond convergence; '' where they do not."""
    if row.forces_eV_per_A is not None and other.forces_eV_per_A is not None:
        gap = float(np.abs(row.forces_eV_per_A - other.forces_eV_per_A).max())
        if gap > SAME_FORCE_EV_PER_A:
            return f"forces differ by up to {gap:.3g} eV/Å"
    if row.energy_eV is not None and other.energy_eV is not None:
        atoms = 1 if row.forces_eV_per_A is None else len(row.forces_eV_per_A)
        gap = abs(row.energy_eV - other.energy_eV)
        if gap > SAME_ENERGY_EV_PER_ATOM * atoms:
            return f"energies differ by {gap:.3g} eV"
    return ""


def rejected(
    frames: Sequence[tuple[Labelled, LabelRow | None]], known: Mapping[str, LabelRow]
) -> dict[int, Finding]:
    """(reason, message) of the frames that are not to be imported, by number.

    Args:
        frames: with their rows; None where a frame has no label.
        known: good labels that the store has, by key.
    """
    found: dict[int, Finding] = {}
    first = dict(known)
    for number, (frame, row) in enumerate(frames):
        if row is None:
            continue
        wrong = defects(frame)
        if wrong:
            found[number] = wrong[0]
            continue
        other = first.setdefault(row.key, row)
        how = contradicts(row, other) if other is not row else ""
        if how:
            where = "the store has" if row.key in known else "these files have"
            found[number] = ("duplicate-disagrees", f"{where} the structure with another label: {how}")
    return found


def refusal(frames: Sequence[tuple[Labelled, LabelRow | None]], found: Mapping[int, Finding]) -> InputError:
    """What to say where nothing was asked to be left out."""
    lines = [f"{frames[n][0].name}: {reason}: {text}" for n, (reason, text) in found.items()]
    more = [f"and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    remedy = "nothing was imported; correct the files, or leave such frames out with --skip-rejected"
    return InputError("\n".join([*lines[:LISTED], *more, remedy]))


def note(found: Mapping[int, Finding]) -> str:
    """What was left out, by reason."""
    reasons = Counter(reason for reason, _ in found.values())
    listed = ", ".join(f"{reason} {n}" for reason, n in sorted(reasons.items()))
    return f"left out: {count(len(found), 'frame')} that were rejected ({listed})"
