"""`alchemy ts --labels`: a saddle and its barriers from few labels of a dear level of theory.

The committee (or a cheap labeler, or repelling atoms) is put right at each label, see
`alchemy_policies.ts.refine`. A label is a record on disk before it is used, and is read from there when the
same command runs again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from alchemy_policies import PolicyError
from alchemy_policies.ts import Label, Reaction, Refinement, TransitionStates, refine_saddle, summary
from alchemy_policies.ts.ends import Learnt
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from alchemy import tasks
from alchemy.identity import label_key, structure_uid
from alchemy.labelers.base import fingerprint, make_labeler
from alchemy.records import FILE_NAME, atoms_to_document, finite_or_none
from alchemy.ts_runs import options_of

PER_TURN = 2  # measured with it: docs/transition-states.md


@dataclass
class Labels:
    """Labels of one level of theory, one after another; what `root` holds already is not computed again."""

    labeler: str
    options: dict[str, Any]
    fingerprint: str
    root: Path
    say: Callable[[str], None]
    asked: int = field(default=0, init=False)

    @classmethod
    def of(cls, labeler: str, settings: Sequence[str], root: Path, say: Callable[[str], None]) -> Labels:
        """
        Raises:
            InputError: no such labeler or option.
        """
        options = options_of(settings)
        mark = fingerprint(make_labeler(labeler, options, base_dir=Path.cwd()))
        return cls(labeler, options, mark, root.resolve(), say)

    def __call__(self, frames: Sequence[Atoms]) -> list[Label | None]:
        return [self._label(atoms) for atoms in frames]

    def _label(self, atoms: Atoms) -> Label | None:
        request = {
            "structure": atoms_to_document(atoms),
            "fidelity": self.labeler,
            "labeler": self.labeler,
            "options": self.options,
            "base_dir": str(Path.cwd()),
            "root": str(self.root),
            "gate": {},
            "e0_eV": None,
        }
        self.asked += 1
        key = label_key(structure_uid(atoms), self.labeler, self.fingerprint)
        kept = (self.root / key / FILE_NAME).is_file()
        record = tasks.read_label(self.root, tasks.label(request)["key"])
        if record.status != "ok" or record.energy_eV is None or record.forces_eV_per_A is None:
            self.say(f"label {self.asked}: failed, {record.reason}: {record.message}")
            return None
        cost = "kept from before" if kept else f"{record.cpu_s:.1f} CPU s"
        self.say(f"label {self.asked}: {record.energy_eV:.4f} eV, {cost}")
        return Label(record.energy_eV, record.forces_eV_per_A)


def refined(
    reaction: Reaction,
    explorer: TransitionStates,
    labels: Labels,
    *,
    first: Learnt | None,
    rng: np.random.Generator,
    most: int,
    most_of_ends: int,
) -> tuple[dict[str, Any], Refinement]:
    """The report of a reaction, and what was found. Without `first` both ends and the middle of the drawn
    path are labelled before the first search; a guess always is.

    Raises:
        PolicyError: there is nothing to begin from; the ends cannot be joined.
    """
    alone = reaction.product is None and not (reaction.is_guess or reaction.guess is not None)
    if first is None and alone:
        raise PolicyError(
            f"reaction '{reaction.name}' has one end alone; --labels without --model or --on needs both "
            "ends, or --guess"
        )
    begin_with_labels = first is None or (reaction.product is None and not alone)
    found = refine_saddle(
        reaction, explorer, label=labels, learn=None, rng=rng, first=first, max_labels=most,
        end_labels=most_of_ends, per_turn=PER_TURN, drawn=int(begin_with_labels),
    )  # fmt: skip
    last = found.attempts[-1]
    row = {
        **summary(found.result),
        "ended": found.outcome,
        "labels": found.labels,
        "end_labels": found.end_labels,
        "labelled_barrier_eV": finite_or_none(found.labelled_barriers_eV[0]),
        "labelled_reverse_barrier_eV": finite_or_none(found.labelled_barriers_eV[1]),
        "ends": [end.state for end in found.ends],
        "model_minus_label_eV": last.energy_difference_eV,
        "largest_labelled_force_eV_per_A": last.largest_labelled_force_eV_per_A,
    }
    return row, found


def labelled_frames(found: Refinement) -> list[Atoms]:
    """One end, the saddle, the other end, with energies (eV) and forces (eV/Å) of their labels; of a reaction
    that did not agree all that was labelled, in order."""
    saddle = found.result.saddle
    if found.top is None or saddle is None:
        return [_with_label(atoms, said, found, saddle=False) for atoms, said in found.labelled]
    top = next(atoms for atoms, said in found.labelled if said is found.top)
    near, far = found.ends
    rows = [(near.atoms, near.label, False), (top, found.top, True), (far.atoms, far.label, False)]
    return [
        _with_label(atoms, said, found, saddle=is_saddle)
        for atoms, said, is_saddle in rows
        if atoms is not None and said is not None
    ]


def _with_label(atoms: Atoms, said: Label, found: Refinement, *, saddle: bool) -> Atoms:
    copy = atoms.copy()
    copy.info.update(reaction=found.result.reaction.name, path="labelled", saddle=saddle)
    copy.calc = SinglePointCalculator(copy, energy=said.energy_eV, forces=said.forces_eV_per_A)
    return copy
