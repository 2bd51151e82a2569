"""The rows of the store as Python values. Å, eV, e, μ_B, s; stress in eV/Å³, ASE sign, Voigt order.

Uids and keys are 32 hex digits. An empty string in a text field and NaN in a float mean "unset".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tace.quantities import INPUTS, LABELS, Quantity

if TYPE_CHECKING:
    from alchemy.store.bulk import Block

NAN = float("nan")


@dataclass(frozen=True)
class PropertySpec:
    """A named quantity beside the fixed columns."""

    scope: str  # 'structure': one tensor; 'atom': one per atom, first axis A; 'pair': [3A, 3A]
    tail: tuple[int, ...]  # shape of one structure or one atom
    unit: str  # '' is a pure number
    description: str


def _specs(quantities: Mapping[str, Quantity]) -> dict[str, PropertySpec]:
    return {
        name: PropertySpec("pair" if name == "hessian" else q.scope, q.shape, q.unit, q.meaning)
        for name, q in quantities.items()
    }


PROPERTIES: Mapping[str, PropertySpec] = {
    **{n: spec for n, spec in _specs(LABELS).items() if n not in ("energy", "forces", "stress")},
    "weight": PropertySpec("structure", (), "", "weight in a loss, 1 where there is none"),
    "magmom": PropertySpec("structure", (), "mu_B", "total magnetic moment"),
    "magmoms": PropertySpec("atom", (), "mu_B", "magnetic moments of the atoms"),
}
CONDITIONS: Mapping[str, PropertySpec] = _specs(INPUTS)
EXTRA: Mapping[str, PropertySpec] = {
    "tags": PropertySpec("atom", (), "", "ASE's tags"),
    "fixed": PropertySpec("atom", (), "", "1 for an atom held by FixAtoms"),
    "initial_charges": PropertySpec("atom", (), "e", "starting charges"),
    "initial_magmoms": PropertySpec("atom", (), "mu_B", "starting moments"),
    "initial_magmoms_xyz": PropertySpec("atom", (3,), "mu_B", "starting moments, non-collinear"),
}
KNOWN: Mapping[str, Mapping[str, PropertySpec]] = {
    "properties": PROPERTIES,
    "conditions": CONDITIONS,
    "extra": EXTRA,
}


@dataclass(frozen=True, eq=False)
class LabelRow:
    """One finished or failed calculation: a structure at one level of theory."""

    key: str
    structure_uid: str
    fidelity: str
    fingerprint: str
    status: str  # 'ok' or why not; only 'ok' promises finite numbers
    code: str
    energy_eV: float | None
    energy_kind: str  # 'total' | 'free'
    forces_eV_per_A: np.ndarray | None  # [A,3]
    stress_eV_per_A3: np.ndarray | None  # [6]
    wall_s: float
    cpu_s: float
    created: float  # unix time, s
    replica: int = 0
    attempt: int = 1
    properties: Mapping[str, np.ndarray] = field(default_factory=dict)  # PROPERTIES, or declared
    conditions: Mapping[str, np.ndarray] = field(default_factory=dict)  # names of CONDITIONS


@dataclass(frozen=True)
class EventRow:
    """One sighting of a structure. The first event of a structure is its birth."""

    structure_uid: str
    kind: str  # 'start' | 'candidate' | 'selected' | 'rejected' | 'duplicate' | …
    parent_uid: str | None = None
    sampler: str = ""
    reason: str = ""
    round: int = -1
    step: int = -1
    temperature_K: float = NAN
    expected_error_eV_per_A: float = NAN
    time: float = field(kw_only=True)


@dataclass(frozen=True)
class FailureRow:
    """Something that did not work; structure_uid may be empty or of a structure not kept."""

    structure_uid: str
    stage: str
    fidelity: str
    reason: str
    message: str
    attempt: int
    time: float


@dataclass(frozen=True, eq=False)
class PredictionRow:
    """What a committee said about a structure; standard deviations are over its members."""

    structure_uid: str
    model_set: str
    fidelity: str
    energy_eV: float
    energy_std_eV: float
    max_force_std_eV_per_A: float
    force_std_eV_per_A: np.ndarray  # [A], stored as float32


@dataclass(frozen=True)
class SplitRow:
    """Which part of the data a structure belongs to; the last row of a structure wins."""

    structure_uid: str
    part: str  # 'train' | 'test' | …
    time: float


@dataclass(frozen=True)
class RetractionRow:
    """Hides the label `target` of earlier commits; the row itself stays in its file."""

    target: str
    reason: str
    time: float


@dataclass(frozen=True, eq=False)
class StructureRow:
    """A structure as stored, on the identity grid. What is in `extra` describes it and is not part of
    its identity: of two writers the first one's is kept.
    """

    uid: str
    n_atoms: int
    numbers: np.ndarray  # [A] u1
    positions: np.ndarray  # [A,3]
    cell: np.ndarray  # [3,3]
    pbc: np.ndarray  # [3]
    charge: int
    multiplicity: int
    elements: np.ndarray  # [2] u8, bit Z set when the element is there
    formula: str
    canon_uid: str = ""
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)  # names of EXTRA


@dataclass(frozen=True)
class RegistryRow:
    """The JSON document behind a hash or a name; the last row of a key wins."""

    key: str
    document: str


@dataclass(frozen=True)
class Batch:
    """Everything one commit writes, by table."""

    structures: Sequence[StructureRow] | Block = ()
    labels: Sequence[LabelRow] | Block = ()
    predictions: list[PredictionRow] = field(default_factory=list)
    events: list[EventRow] = field(default_factory=list)
    failures: list[FailureRow] = field(default_factory=list)
    splits: Sequence[SplitRow] | Block = ()
    retractions: list[RetractionRow] = field(default_factory=list)
    registry: list[RegistryRow] = field(default_factory=list)
    declared: Mapping[str, PropertySpec] = field(default_factory=dict)  # properties beyond PROPERTIES

    def tables(self) -> dict[str, Sequence[Any] | Block]:
        """Rows by table name, tables without rows left out."""
        return {name: rows for name, rows in vars(self).items() if len(rows) and name != "declared"}
