"""Training and test sets as the store holds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tace.data import Labelled

from .conditions import with_conditions
from .store import LabelRow, Snapshot, Store

TRAIN, TEST, ISOLATED = "train", "test", "isolated"
CHECK = "check"  # displaced copies whose labels test the forces of others; never trained on


def open_snapshot(path: Path, as_of: int) -> Snapshot:
    """The store as it was after commit `as_of`."""
    return Store(path).snapshot(as_of)


def labelled(snapshot: Snapshot, rows: Iterable[LabelRow]) -> list[Labelled]:
    """Rows as the model package takes them, with all labels, and conditions on the atoms."""
    rows = list(rows)
    structures = snapshot.structures([row.structure_uid for row in rows])  # one by one takes a hundred times
    return [
        Labelled(
            atoms=with_conditions(atoms, row.conditions),
            fidelity=row.fidelity,
            energy_eV=row.energy_eV,
            forces_eV_per_A=row.forces_eV_per_A,
            stress_eV_per_A3=row.stress_eV_per_A3,
            weight=float(row.properties.get("weight", 1.0)),
            labels={name: value for name, value in row.properties.items() if name != "weight"},
            name=f"{row.structure_uid[:8]} at {row.fidelity}",
        )
        for row, atoms in zip(rows, structures, strict=True)
    ]


def rows_of(snapshot: Snapshot, part: str, fidelities: Sequence[str]) -> list[LabelRow]:
    """Good labels of the structures of one part, sorted by (structure uid, fidelity); replicas left out."""
    parts = snapshot.part_of()
    return [
        row
        for name in fidelities
        for row in snapshot.labels(fidelity=name)
        if parts.get(row.structure_uid) == part and row.replica == 0
    ]


def isolated_energies(
    snapshot: Snapshot, fidelities: Sequence[str]
) -> dict[str, dict[int, float]]:
    """Energies of isolated atoms (eV) by fidelity and atomic number, as far as they were computed."""
    table: dict[str, dict[int, float]] = {}
    for row in rows_of(snapshot, ISOLATED, fidelities):
        if row.energy_eV is None:
            continue
        number = int(snapshot.structure(row.structure_uid).numbers[0])
        table.setdefault(row.fidelity, {})[number] = row.energy_eV
    return table


def split_validation(
    uids: Sequence[str], *, fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Indices to train on and to validate on; all labels of a structure go to the same side.

    At least one structure is held out when the fraction is positive and there are three or more.
    """
    unique = sorted(set(uids))
    held = 0
    if fraction > 0 and len(unique) >= 3:
        held = max(1, round(fraction * len(unique)))
    order = np.random.default_rng(seed).permutation(len(unique))
    out = {unique[n] for n in order[:held]}
    train = [n for n, uid in enumerate(uids) if uid not in out]
    valid = [n for n, uid in enumerate(uids) if uid in out]
    return train, valid


def counts(snapshot: Snapshot, fidelities: Sequence[str]) -> dict[str, dict[str, int]]:
    """Good labels per fidelity and part; repeats of one are one."""
    parts = snapshot.part_of()
    out: dict[str, dict[str, int]] = {}
    for name in fidelities:
        own: dict[str, int] = {}
        for row in snapshot.labels(fidelity=name):
            if row.replica:
                continue
            part = parts.get(row.structure_uid, TRAIN)
            own[part] = own.get(part, 0) + 1
        out[name] = own
    return out


def total_labels(table: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Labels per fidelity that count against a budget: all but isolated atoms and checks."""
    return {
        name: sum(n for part, n in own.items() if part not in (ISOLATED, CHECK))
        for name, own in table.items()
    }
