"""What a query can ask for: the fields of each kind of rows and how they are read from columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ase.data import chemical_symbols

from alchemy.errors import QueryError
from alchemy.store.ids import id_texts
from alchemy.store.query import Codes, Ids
from alchemy.store.raw import RawRows
from alchemy.store.rows import CONDITIONS, PROPERTIES
from alchemy.store.syntax import Z_OF

if TYPE_CHECKING:
    from alchemy.store.snapshot import Snapshot


_ROWS_AT_ONCE = 1 << 16


class Field(NamedTuple):
    """kind: 'number', 'integer', 'bool', 'text', 'formula' or 'elements'; `load` reads a View."""

    kind: str
    meaning: str
    load: Callable[[View], Any]


class View:
    """Rows of one kind in a snapshot; implements `query.Columns`.

    raw: row numbers in the table; None: those that are current.
    """

    def __init__(self, snapshot: Snapshot, rows: str, raw: np.ndarray | None = None) -> None:
        self.snapshot, self.rows = snapshot, rows
        self.raw = _current(snapshot.raw, rows) if raw is None else raw
        self.n = len(self.raw)
        # Columns of all rows in their order need not be copied.
        self._whole = self.n == snapshot.raw.count(rows) and bool((np.diff(self.raw) == 1).all())
        self._loaded: dict[str, Any] = {}

    def at(self, chosen: np.ndarray) -> View:
        """Some of these rows: what is shown is read for them only."""
        return View(self.snapshot, self.rows, self.raw[chosen])

    def pick(self, values: np.ndarray) -> np.ndarray:
        """Of values by raw row number those of these rows."""
        return values if self._whole else values[self.raw]

    def column(self, name: str) -> np.ndarray:
        return self.pick(self.snapshot.raw.column(self.rows, name))

    def own_codes(self, name: str) -> Codes:
        if self._whole:
            return self.snapshot.raw.codes(self.rows, name)
        return self.snapshot.raw.codes_at(self.rows, name, self.raw)

    def load(self, name: str) -> Any:
        """Values of a field: [n] floats (NaN unset), Codes, Ids, or [n,2] element masks."""
        if name not in self._loaded:
            self._loaded[name] = FIELDS[self.rows][name].load(self)
        return self._loaded[name]

    numbers = codes = load

    def elements(self) -> np.ndarray:
        masks: np.ndarray = self.load("elements")
        return masks

    def count(self, symbol: str) -> np.ndarray:
        """Atoms of an element, NaN where the structure is not stored."""
        if self.rows == "structures":
            return _count(self, symbol)
        counts: np.ndarray = self._of_structure(_count(self.structures, symbol))
        return counts

    @cached_property
    def _structure_rows(self) -> np.ndarray:
        return self.pick(self.snapshot.raw.structure_of(self.rows))

    @cached_property
    def structures(self) -> View:
        """The structure of each row that has one."""
        rows = self._structure_rows
        return View(self.snapshot, "structures", rows if (rows >= 0).all() else rows[rows >= 0])

    def joined(self, name: str) -> Any:
        """A field of the structure of each row."""
        return self._of_structure(self.structures.load(name))

    def _of_structure(self, values: Any) -> Any:
        there = self._structure_rows >= 0
        if self.structures.n == self.n:
            return values
        if isinstance(values, Codes):
            return Codes(_spread(values.codes, there, -1), values.vocabulary)
        if isinstance(values, Ids):
            return Ids(_spread(values.ids, there, 0))
        return _spread(values, there, 0 if values.dtype == np.uint64 else np.nan)

    def uids(self) -> list[str]:
        """Uid of the structure of each row."""
        return id_texts(self.column("uid" if self.rows == "structures" else "structure_uid"))


def _current(raw: RawRows, rows: str) -> np.ndarray:
    if rows == "structures":
        return raw.structure_rows
    if rows == "labels":
        return raw.label_rows
    if rows == "predictions":
        return raw.prediction_rows
    return np.arange(raw.count(rows))


def _spread(values: np.ndarray, there: np.ndarray, unset: Any) -> np.ndarray:
    found = np.full((len(there), *values.shape[1:]), unset, values.dtype)
    found[there] = values
    return found


def _count(view: View, symbol: str) -> np.ndarray:
    z = Z_OF[symbol]
    parts = [np.zeros(0)]
    for offset, numbers in view.snapshot.raw.segment_columns("structures", "numbers"):
        for start in range(0, len(offset) - 1, _ROWS_AT_ONCE):
            cuts = offset[start : start + _ROWS_AT_ONCE + 1]
            atoms = numbers[int(cuts[0]) : int(cuts[-1])] == z  # no structure is without atoms
            parts.append(np.add.reduceat(atoms, cuts[:-1] - cuts[0], dtype=np.int64).astype(float))
    return view.pick(np.concatenate(parts))


def text_codes(texts: Sequence[str]) -> Codes:
    """Codes of texts; '' is unset."""
    vocabulary: dict[str, int] = {}
    codes = [vocabulary.setdefault(t, len(vocabulary)) if t else -1 for t in texts]
    return Codes(np.array(codes, np.int64), vocabulary)


def _own(name: str, unset: float | None = None) -> Callable[[View], np.ndarray]:
    def load(view: View) -> np.ndarray:
        values = view.column(name).astype(float, copy=False)
        return values if unset is None else np.where(values == unset, np.nan, values)

    return load


def _own_text(name: str) -> Callable[[View], Codes]:
    return lambda view: view.own_codes(name)


def _own_id(name: str) -> Callable[[View], Ids]:
    return lambda view: Ids(view.column(name))


def _volume(view: View) -> np.ndarray:
    cells, periodic = view.column("cell"), view.column("pbc").all(axis=1)
    found = np.full(view.n, np.nan)
    for start in range(0, view.n, _ROWS_AT_ONCE):  # a million cells are copied by and by
        among = slice(start, start + _ROWS_AT_ONCE)
        found[among] = np.abs(np.linalg.det(cells[among]))
    return np.where(periodic, found, np.nan)


def _periodic(view: View) -> np.ndarray:
    return view.column("pbc").any(axis=1).astype(float)


def _masks(view: View) -> np.ndarray:
    return view.column("elements").astype(np.uint64, copy=False)


def _split(view: View) -> Codes:
    codes, vocabulary = view.snapshot.raw.parts
    return Codes(view.pick(codes), vocabulary)


def _birth_text(name: str) -> Callable[[View], Codes]:
    def load(view: View) -> Codes:
        births = view.pick(view.snapshot.raw.births)
        codes, vocabulary = view.snapshot.raw.codes("events", name)
        return Codes(np.append(codes, np.int32(-1))[births], vocabulary)  # the last one is for −1

    return load


def _birth_round(view: View) -> np.ndarray:
    rounds = np.append(view.snapshot.raw.column("events", "round").astype(float), np.nan)
    found = rounds[view.pick(view.snapshot.raw.births)]
    return np.where(found < 0, np.nan, found)


def _condition(name: str) -> Callable[[View], np.ndarray]:
    def load(view: View) -> np.ndarray:
        values = view.pick(view.snapshot.raw.named("conditions", name))
        return values if values.ndim == 1 else np.sqrt((values**2).sum(axis=1))

    return load


def _has(field: str, name: str) -> Callable[[View], np.ndarray]:
    return lambda view: view.pick(view.snapshot.raw.has_named(field, name)).astype(float)


def _has_forces(view: View) -> np.ndarray:
    return np.isfinite(_max_force(view)).astype(float)


def _has_stress(view: View) -> np.ndarray:
    return (~np.isnan(view.column("stress")).all(axis=1)).astype(float)


def _max_force(view: View) -> np.ndarray:
    return view.pick(view.snapshot.raw.max_forces)


def _energy_per_atom(view: View) -> np.ndarray:
    per_atom: np.ndarray = view.load("energy") / view.joined("n_atoms")
    return per_atom


STRUCTURE_FIELDS: dict[str, Field] = {
    "uid": Field("text", "identity of the structure, 32 hex digits", _own_id("uid")),
    "n_atoms": Field("integer", "number of atoms (alias natoms)", _own("n_atoms")),
    "formula": Field("formula", "chemical formula, elements in any order", _own_text("formula")),
    "elements": Field("elements", "set of elements: 'Pd' in elements", _masks),
    "canon": Field("text", "the same for any order of atoms and periodic image", _own_id("canon_uid")),
    "charge": Field("integer", "total charge, e", _own("charge")),
    "multiplicity": Field("integer", "2S+1; unset when 0", _own("multiplicity", 0)),
    "volume": Field("number", "cell volume, Å³; unset unless periodic in 3 directions", _volume),
    "periodic": Field("bool", "periodic in at least one direction", _periodic),
    "split": Field("text", "part of the data: train, test, …", _split),
    "sampler": Field("text", "what made the structure (its first event)", _birth_text("sampler")),
    "round": Field("integer", "round of its first event", _birth_round),
    "reason": Field("text", "reason of its first event", _birth_text("reason")),
}
_STRUCTURE_UID = Field("text", "identity of the structure, 32 hex digits", _own_id("structure_uid"))
LABEL_FIELDS: dict[str, Field] = {
    "key": Field("text", "identity of the label, 32 hex digits", _own_id("uid")),
    "fidelity": Field("text", "level of theory", _own_text("fidelity")),
    "fingerprint": Field("text", "hash of the physics settings", _own_text("fingerprint")),
    "status": Field("text", "ok, or why it failed", _own_text("status")),
    "code": Field("text", "program and version", _own_text("code")),
    "energy": Field("number", "energy, eV", _own("energy")),
    "energy_per_atom": Field("number", "energy / n_atoms, eV", _energy_per_atom),
    "energy_kind": Field("text", "total or free energy", _own_text("energy_kind")),
    "max_force": Field("number", "largest force on an atom, eV/Å (alias fmax)", _max_force),
    "has_forces": Field("bool", "forces were computed", _has_forces),
    "has_stress": Field("bool", "stress was computed", _has_stress),
    "wall_s": Field("number", "elapsed time, s", _own("wall_s")),
    "cpu_s": Field("number", "processor time, s", _own("cpu_s")),
    "created": Field("number", "when, unix time, s", _own("created")),
    "replica": Field("integer", "number of the repetition, from 0", _own("replica")),
    "attempt": Field("integer", "number of the try, from 1", _own("attempt")),
    **{
        name: Field("number", f"condition: {spec.description}, {spec.unit or '1'}", _condition(name))
        for name, spec in CONDITIONS.items()
        if spec.scope == "structure"
    },
    **{
        f"has_{name}": Field("bool", f"{spec.description} was computed", _has("properties", name))
        for name, spec in PROPERTIES.items()
    },
}
PREDICTION_FIELDS: dict[str, Field] = {
    "model_set": Field("text", "hash of the committee", _own_text("model_set")),
    "fidelity": Field("text", "level of theory predicted", _own_text("fidelity")),
    "energy": Field("number", "mean predicted energy, eV", _own("energy")),
    "energy_std": Field("number", "its standard deviation, eV", _own("energy_std")),
    "max_force_std": Field("number", "largest force spread, eV/Å", _own("max_force_std")),
}
EVENT_FIELDS: dict[str, Field] = {
    "kind": Field("text", "start, candidate, selected, rejected, …", _own_text("kind")),
    "parent": Field("text", "uid of the structure it was made from", _own_id("parent_uid")),
    "sampler": Field("text", "what made it", _own_text("sampler")),
    "reason": Field("text", "why", _own_text("reason")),
    "round": Field("integer", "round of the campaign", _own("round", -1)),
    "step": Field("integer", "step of the trajectory", _own("step", -1)),
    "temperature": Field("number", "temperature of the trajectory, K", _own("temperature")),
    "expected_error": Field("number", "expected force error, eV/Å", _own("expected_error")),
    "time": Field("number", "when, unix time, s", _own("time")),
}
FAILURE_FIELDS: dict[str, Field] = {
    "stage": Field("text", "stage of the campaign", _own_text("stage")),
    "fidelity": Field("text", "level of theory", _own_text("fidelity")),
    "reason": Field("text", "reason code", _own_text("reason")),
    "message": Field(
        "text",
        "what the program said",
        lambda view: text_codes(
            [row.message for row in view.snapshot.raw.decode("failures", view.raw)]
        ),
    ),
    "attempt": Field("integer", "number of the try, from 1", _own("attempt")),
    "time": Field("number", "when, unix time, s", _own("time")),
}


def _with_structure(own: dict[str, Field]) -> dict[str, Field]:
    def join(name: str) -> Callable[[View], Any]:
        return lambda view: view.joined(name)

    shared = {name: f._replace(load=join(name)) for name, f in STRUCTURE_FIELDS.items()}
    return {**shared, "uid": _STRUCTURE_UID, **own}


FIELDS: dict[str, dict[str, Field]] = {
    "structures": STRUCTURE_FIELDS,
    "labels": _with_structure(LABEL_FIELDS),
    "predictions": _with_structure(PREDICTION_FIELDS),
    "events": _with_structure(EVENT_FIELDS),
    "failures": _with_structure(FAILURE_FIELDS),
}


def fields_of(rows: str) -> dict[str, Field]:
    """Fields of a kind of rows; 'auto' has those of labels. Raises QueryError."""
    if rows != "auto" and rows not in FIELDS:
        raise QueryError(f"rows {rows!r}: use auto, {', '.join(FIELDS)}")
    return FIELDS["labels" if rows == "auto" else rows]


def kinds_of(rows: str) -> dict[str, str]:
    """Field kinds as the query language distinguishes them."""
    fields = fields_of(rows)
    return {n: "number" if f.kind == "integer" else f.kind for n, f in fields.items()}


def symbols(mask: np.ndarray) -> list[str]:
    """Chemical symbols of a [2] u8 element mask, by atomic number."""
    low, high = mask.tolist()
    bits = low | high << 64
    return [symbol for z, symbol in enumerate(chemical_symbols) if bits >> z & 1]
