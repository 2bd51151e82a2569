"""The tables of the format: which dataclass a row is, and which column each of its fields is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from alchemy.store.rows import (
    EventRow,
    FailureRow,
    LabelRow,
    PredictionRow,
    RegistryRow,
    RetractionRow,
    SplitRow,
    StructureRow,
)


class Column(NamedTuple):
    """How a field of a row dataclass becomes a dataset."""

    field: str
    name: str
    kind: str
    unit: str
    description: str
    dtype: str = "<f8"
    tail: tuple[int, ...] = ()
    since: str = "1.0"  # segments of older formats do not have the column


@dataclass(frozen=True)
class Table:
    """A row dataclass and its columns; the first column is there whenever the table is."""

    row: Any
    columns: tuple[Column, ...]


def _id(field: str, description: str, name: str = "", since: str = "1.0") -> Column:
    return Column(field, name or field, "id", "1", description, since=since)


def _code(name: str, description: str) -> Column:
    return Column(name, name, "code", "1", description)


def _int(name: str, description: str) -> Column:
    return Column(name, name, "plain", "1", description, "<i8")


_STRUCTURE = _id("structure_uid", "identity of the structure")
_TIME = Column("time", "time", "plain", "s", "unix time")

TABLES: dict[str, Table] = {
    "structures": Table(
        StructureRow,
        (
            _id("uid", "blake2b-128 of what labels depend on"),
            Column("n_atoms", "n_atoms", "plain", "1", "number of atoms", "<i4"),
            Column("numbers", "numbers", "atoms", "1", "atomic numbers", "|u1"),
            Column("positions", "positions", "atoms", "Angstrom", "on a 1e-8 grid", "<f8", (3,)),
            Column("cell", "cell", "plain", "Angstrom", "rows are vectors", "<f8", (3, 3)),
            Column("pbc", "pbc", "plain", "1", "periodic along each vector", "|u1", (3,)),
            Column("charge", "charge", "plain", "e", "total charge", "<i2"),
            Column("multiplicity", "multiplicity", "plain", "1", "2S+1, 0 = unset", "<i2"),
            Column("elements", "elements", "plain", "1", "bit Z set if present", "<u8", (2,)),
            _code("formula", "Hill formula"),
            _id("canon_uid", "the same for any order of atoms and any periodic image", since="1.1"),
        ),
    ),
    "labels": Table(
        LabelRow,
        (
            _id("key", "hash of structure, fidelity, physics and replica", "uid"),
            _STRUCTURE,
            _code("fidelity", "level of theory as the campaign names it"),
            _code("fingerprint", "hash of everything that changes the number"),
            _code("status", "ok or the reason of failure"),
            _code("code", "program and version"),
            Column("energy_eV", "energy", "maybe", "eV", "energy of the whole structure"),
            _code("energy_kind", "total or free energy"),
            Column("forces_eV_per_A", "forces", "atoms", "eV/Angstrom", "raw", "<f8", (3,)),
            Column(
                "stress_eV_per_A3",
                "stress",
                "maybe",
                "eV/Angstrom^3",
                "Voigt xx yy zz yz xz xy, tension positive",
                "<f8",
                (6,),
            ),
            Column("wall_s", "wall_s", "plain", "s", "elapsed time"),
            Column("cpu_s", "cpu_s", "plain", "s", "processor time"),
            Column("created", "created", "plain", "s", "unix time"),
            _int("replica", "repetitions of the same calculation"),
            _int("attempt", "which try this is, from 1"),
        ),
    ),
    "predictions": Table(
        PredictionRow,
        (
            _STRUCTURE,
            _code("model_set", "hash of the committee"),
            _code("fidelity", "level of theory predicted"),
            Column("energy_eV", "energy", "plain", "eV", "mean over members"),
            Column("energy_std_eV", "energy_std", "plain", "eV", "standard deviation over members"),
            Column(
                "max_force_std_eV_per_A",
                "max_force_std",
                "plain",
                "eV/Angstrom",
                "largest force_std",
            ),
            Column("force_std_eV_per_A", "force_std", "atoms", "eV/Angstrom", "per atom", "<f4"),
        ),
    ),
    "events": Table(
        EventRow,
        (
            _STRUCTURE,
            _code("kind", "start, candidate, selected, rejected, duplicate"),
            _id("parent_uid", "structure it was made from"),
            _code("sampler", "what made it"),
            _code("reason", "why"),
            _int("round", "round of the campaign, -1 = none"),
            _int("step", "step of the trajectory, -1 = none"),
            Column("temperature_K", "temperature", "plain", "K", "of the trajectory"),
            Column(
                "expected_error_eV_per_A", "expected_error", "plain", "eV/Angstrom", "of the forces"
            ),
            _TIME,
        ),
    ),
    "failures": Table(
        FailureRow,
        (
            _STRUCTURE,
            _code("stage", "stage of the campaign"),
            _code("fidelity", "level of theory"),
            _code("reason", "reason code"),
            Column("message", "message", "text", "1", "what the program said", "|u1"),
            _int("attempt", "which try this was, from 1"),
            _TIME,
        ),
    ),
    "splits": Table(SplitRow, (_STRUCTURE, _code("part", "train, test, ..."), _TIME)),
    "retractions": Table(
        RetractionRow, (_id("target", "label hidden"), _code("reason", "why"), _TIME)
    ),
    "registry": Table(
        RegistryRow,
        (
            _code("key", "hash or name"),
            Column("document", "document", "text", "1", "JSON", "|u1"),
        ),
    ),
}
