"""The rows of the store as Python values. Å, eV, e, μ_B, s; stress in eV/Å³, ASE sign, Voigt order.

Uids and keys are 32 hex digits. An empty string in a text field and NaN in a float mean "unset".
"""



from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NAN = float("nan")


@dataclass(frozen=True)
class PropertySpec:
    """One quantity a label may carry besides energy, forces and stress."""

    scope: str  # 'frame': one tensor per structure; 'atom': one per atom, first axis A
    tail: tuple[int, ...]
    unit: str
    description: str


PROPERTIES: Mapping[str, PropertySpec] = {
    "dipole": PropertySpec("frame", (3,), "e*Angstrom", "electric dipole moment"),
    "polarizability": PropertySpec("frame", (3, 3), "e*Angstrom^2/V", "d dipole / d field"),
    "magmom": PropertySpec("frame", (), "mu_B", "total magnetic moment"),
    "charges": PropertySpec("atom", (), "e", "partial charges of the atoms"),
    "magmoms": PropertySpec("atom", (), "mu_B", "magnetic moments of the atoms"),
    "born_charges": PropertySpec("atom", (3, 3), "e", "Born effective charges, [field, force]"),
    "magnetic_forces": PropertySpec("atom", (3,), "eV/mu_B", "minus d energy / d moment"),
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
    energy_eV: float
    energy_kind: str  # 'total' | 'free'
    forces_eV_per_A: np.ndarray | None  # [A,3]
    stress_eV_per_A3: np.ndarray | None  # [6]
    wall_s: float
    cpu_s: float
    created: float  # unix time, s
    replica: int = 0
    attempt: int = 1
    properties: Mapping[str, np.ndarray] = field(default_factory=dict)  # names of PROPERTIES


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
    """A structure as stored: on the identity grid, without constraints, tags or moments."""

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


@dataclass(frozen=True)
class RegistryRow:
    """The JSON document behind a hash or a name; the last row of a key wins."""

    key: str
    document: str


@dataclass(frozen=True)
class Batch:
    """Everything one commit writes, by table."""

    structures: list[StructureRow] = field(default_factory=list)
    labels: list[LabelRow] = field(default_factory=list)
    predictions: list[PredictionRow] = field(default_factory=list)
    events: list[EventRow] = field(default_factory=list)
    failures: list[FailureRow] = field(default_factory=list)
    splits: list[SplitRow] = field(default_factory=list)
    retractions: list[RetractionRow] = field(default_factory=list)
    registry: list[RegistryRow] = field(default_factory=list)

    def tables(self) -> dict[str, list[Any]]:
        """Rows by table name, tables without rows left out."""
        return {name: rows for name, rows in vars(self).items() if rows}
