"""What a query can ask for: the fields of each kind of rows and how they are read from columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ase.data import chemical_symbols

from alchemy.errors import QueryError
from alchemy.store.query import Codes
from alchemy.store.rows import CONDITIONS, PROPERTIES
from alchemy.store.schema import id_texts
from alchemy.store.segment import Segment
from alchemy.store.syntax import Z_OF

if TYPE_CHECKING:
    from alchemy.store.snapshot import Snapshot


class Field(NamedTuple):
    """kind: 'number', 'integer', 'bool', 'text', 'formula' or 'elements'; `load` reads a View."""

    kind: str
    meaning: str
    load: Callable[[View], Any]


class View:
    """The rows of one kind in a snapshot; implements `query.Columns`.

    raw: row numbers in the table; positions: of the structure of each row, −1 when not stored.
    """

    def __init__(self, snapshot: Snapshot, rows: str) -> None:
        self.snapshot, self.rows = snapshot, rows
        self.raw = _raw_rows(snapshot, rows)
        self.n = len(self.raw)
        self._loaded: dict[str, Any] = {}
        if rows == "structures":
            self.structures = self
            self.positions = np.arange(self.n)
        else:
            self.structures = View(snapshot, "structures")
            known = _first_rows(self.structures.column("uid"))
            self.positions = _find(known, self.column("structure_uid"))

    def column(self, name: str) -> np.ndarray:
        return self.snapshot.column(self.rows, name)[self.raw]

    def own_codes(self, name: str) -> Codes:
        codes, vocabulary = self.snapshot.codes(self.rows, name)
        return Codes(codes[self.raw], vocabulary)

    def load(self, name: str) -> Any:
        """Values of a field: [n] floats (NaN unset), Codes, or [n,2] element masks."""
        if name not in self._loaded:
            self._loaded[name] = FIELDS[self.rows][name].load(self)
        return self._loaded[name]

    numbers = codes = load

    def elements(self) -> np.ndarray:
        masks: np.ndarray = self.load("elements")
        return masks

    def count(self, symbol: str) -> np.ndarray:
        return self._of_structure(_count(self.structures, symbol))

    def joined(self, name: str) -> Any:
        """A field of the structure of each row."""
        return self._of_structure(self.structures.load(name))

    def _of_structure(self, values: Any) -> Any:
        if isinstance(values, Codes):
            return Codes(_take(values.codes, self.positions, -1), values.vocabulary)
        return _take(values, self.positions, 0 if values.dtype == np.uint64 else np.nan)

    def uids(self, chosen: np.ndarray) -> list[str]:
        """Uid of the structure of some rows."""
        name = "uid" if self.rows == "structures" else "structure_uid"
        return id_texts(self.snapshot.column(self.rows, name)[self.raw[chosen]])


def _first_rows(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(sorted ids, row where each is first); ids are [n,16] bytes."""
    return np.unique(np.ascontiguousarray(ids).view("S16").reshape(-1), return_index=True)


def _find(known: tuple[np.ndarray, np.ndarray], wanted: np.ndarray) -> np.ndarray:
    """The row of each wanted id, −1 where there is none."""
    keys, rows = known
    texts = np.ascontiguousarray(wanted).view("S16").reshape(-1)
    if not len(keys):
        return np.full(len(texts), -1, np.int64)
    place = np.minimum(np.searchsorted(keys, texts), len(keys) - 1)
    found: np.ndarray = np.where(keys[place] == texts, rows[place], -1).astype(np.int64)
    return found


def _raw_rows(snapshot: Snapshot, rows: str) -> np.ndarray:
    if rows == "structures":
        return snapshot.structure_rows
    if rows == "labels":
        return snapshot.label_rows
    if rows == "predictions":
        return snapshot.prediction_rows
    return np.arange(snapshot.raw_count(rows))


def _take(values: np.ndarray, positions: np.ndarray, unset: Any) -> np.ndarray:
    found = np.full((len(positions), *values.shape[1:]), unset, values.dtype)
    there = positions >= 0
    found[there] = values[positions[there]]
    return found


def _count(view: View, symbol: str) -> np.ndarray:
    z = Z_OF[symbol]
    parts = [np.zeros(0)]
    for offset, numbers in view.snapshot.segment_columns("structures", "numbers"):
        before = np.concatenate([[0], np.cumsum(numbers == z)])
        parts.append(np.diff(before[offset]).astype(float))
    return np.concatenate(parts)[view.raw]


def text_codes(texts: Sequence[str]) -> Codes:
    """Codes of texts; '' is unset."""
    vocabulary: dict[str, int] = {}
    codes = [vocabulary.setdefault(t, len(vocabulary)) if t else -1 for t in texts]
    return Codes(np.array(codes, np.int64), vocabulary)


def _own(name: str, unset: float | None = None) -> Callable[[View], np.ndarray]:
    def load(view: View) -> np.ndarray:
        values = view.column(name).astype(float)
        return values if unset is None else np.where(values == unset, np.nan, values)

    return load


def _own_text(name: str) -> Callable[[View], Codes]:
    return lambda view: view.own_codes(name)


def _own_id(name: str) -> Callable[[View], Codes]:
    return lambda view: text_codes(id_texts(view.column(name)))


def _volume(view: View) -> np.ndarray:
    volume = np.abs(np.linalg.det(view.column("cell").reshape(-1, 3, 3)))
    return np.where(view.column("pbc").reshape(-1, 3).all(axis=1), volume, np.nan)


def _periodic(view: View) -> np.ndarray:
    return view.column("pbc").reshape(-1, 3).any(axis=1).astype(float)


def _masks(view: View) -> np.ndarray:
    return view.column("elements").reshape(-1, 2).astype(np.uint64)


def _split(view: View) -> Codes:
    uids = view.snapshot.column("splits", "structure_uid")
    keys, from_end = _first_rows(uids[::-1])  # the last row of a structure counts
    rows = _find((keys, len(uids) - 1 - from_end), view.column("uid"))
    codes, vocabulary = view.snapshot.codes("splits", "part")
    return Codes(_take(codes, rows, -1), vocabulary)


def _births(view: View) -> np.ndarray:
    """Raw row of the first event of each structure, −1 when it has none."""
    return _find(_first_rows(view.snapshot.column("events", "structure_uid")), view.column("uid"))


def _birth_text(name: str) -> Callable[[View], Codes]:
    def load(view: View) -> Codes:
        codes, vocabulary = view.snapshot.codes("events", name)
        return Codes(_take(codes, _births(view), -1), vocabulary)

    return load


def _birth_round(view: View) -> np.ndarray:
    rounds = view.snapshot.column("events", "round").astype(float)
    found = _take(rounds, _births(view), np.nan)
    return np.where(found < 0, np.nan, found)


def _condition(name: str) -> Callable[[View], np.ndarray]:
    def load(view: View) -> np.ndarray:
        values = view.snapshot.named("conditions", name)[view.raw]
        return values if values.ndim == 1 else np.sqrt((values**2).sum(axis=1))

    return load


def _has(field: str, name: str) -> Callable[[View], np.ndarray]:
    return lambda view: view.snapshot.has_named(field, name)[view.raw].astype(float)


def _has_forces(view: View) -> np.ndarray:
    return np.isfinite(_max_force(view)).astype(float)


def _has_stress(view: View) -> np.ndarray:
    return (~np.isnan(view.column("stress").reshape(-1, 6)).all(axis=1)).astype(float)


def _max_force(view: View) -> np.ndarray:
    parts = [np.zeros(0), *view.snapshot.per_segment("labels", _largest_norms)]
    return np.concatenate(parts)[view.raw]


def _largest_norms(segment: Segment) -> np.ndarray:
    offset, forces = segment["/labels/offset"], segment["/labels/atoms/forces"]
    norms = np.append(np.sqrt(np.einsum("ai,ai->a", forces, forces)), 0.0)
    largest = np.maximum.reduceat(norms, offset[:-1]) if len(offset) > 1 else np.zeros(0)
    return np.where(np.diff(offset) > 0, largest, np.nan)


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
            [row.message for row in view.snapshot.decode_raw("failures", view.raw)]
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
