"""Many rows at once, column by column: of a thousand structures each step then costs as much as of one.

`StructureColumns` and `LabelColumns` are what `Store.append` takes beside atoms and rows; a `Block` is what
becomes of them, and of atoms, on the way to `schema.encode`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from alchemy.store.rows import NAN


@dataclass(frozen=True, eq=False)
class StructureColumns:
    """S structures with A atoms in all, one after another; what `Store.append(structures=…)` takes.

    `part` is the part of the data (train, test, …) of all of them, '' leaves that open.
    """

    sizes: np.ndarray  # [S] numbers of atoms
    numbers: np.ndarray  # [A] atomic numbers
    positions_A: np.ndarray  # [A,3]
    cells_A: np.ndarray | None = None  # [S,3,3], rows are vectors; None: no cells
    pbc: np.ndarray | None = None  # [S,3]; None: not periodic
    charges_e: np.ndarray | None = None  # [S]; None: 0
    multiplicities: np.ndarray | None = None  # [S] 2S+1; 0, and None, are unset
    part: str = ""

    def __len__(self) -> int:
        return len(self.sizes)


@dataclass(frozen=True, eq=False)
class LabelColumns:
    """One ok label of each of S structures at one level of theory; what `Store.append(labels=…)` takes.

    structure_uids: None stands for the structures of the same append, in their order. Keys follow from
    the rest. NaN: that structure has no energy, no stress, or none of a property; without forces a
    structure has no label here. Properties and conditions are [S,…], those of atoms [A,…].
    """

    fidelity: str
    fingerprint: str
    code: str
    energies_eV: np.ndarray  # [S]
    forces_eV_per_A: np.ndarray | None = None  # [A,3]; None: no forces
    stresses_eV_per_A3: np.ndarray | None = None  # [S,6] Voigt xx yy zz yz xz xy; None: no stresses
    structure_uids: Sequence[str] | None = None
    energy_kind: str = "total"
    wall_s: float = NAN
    cpu_s: float = NAN
    created: float = NAN  # unix time, s
    replica: int = 0
    properties: Mapping[str, np.ndarray] = field(default_factory=dict)
    conditions: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.energies_eV)


class Ragged(NamedTuple):
    """Values of all rows one after another, and how many each row has."""

    lengths: np.ndarray
    values: np.ndarray

    def take(self, rows: np.ndarray) -> Ragged:
        """Some of the rows, ascending."""
        chosen = np.zeros(len(self.lengths), bool)
        chosen[rows] = True
        return Ragged(self.lengths[rows], self.values[np.repeat(chosen, self.lengths)])


class Block:
    """Rows of one table by field of its row: arrays [n,…], Ragged, lists of texts, or one text for all.

    `named`: the mappings that rows have beside their columns (`schema.NAMED`), where any row has one.
    """

    def __init__(
        self, n: int, columns: Mapping[str, Any], named: Mapping[str, Sequence[Mapping[str, Any]]]
    ) -> None:
        self.n, self.columns, self.named = n, columns, named

    def __len__(self) -> int:
        return self.n

    def take(self, rows: np.ndarray) -> Block:
        """Some of the rows, ascending."""
        if len(rows) == self.n:
            return self
        named = {field: [own[i] for i in rows.tolist()] for field, own in self.named.items()}
        return Block(len(rows), {name: _take(column, rows) for name, column in self.columns.items()}, named)


def _take(column: Any, rows: np.ndarray) -> Any:
    if isinstance(column, str):
        return column
    if isinstance(column, list):
        return [column[i] for i in rows.tolist()]
    return column.take(rows) if isinstance(column, Ragged) else column[rows]
