"""The data of a run: files read with their keys and units, split, checked, and counted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from .config import HeadConfig
from .data import Labelled
from .errors import DataError
from .keys import Key, quantity_of_head
from .quantities import INPUTS, LABELS, Quantity
from .readers import Dataset, Source, data_hash, has, is_isolated, read_dataset
from .runfile import RunFile
from .wording import hint

FIT = "fit"
PARTS = ("train", "valid", "test")


@dataclass
class RunData:
    """What a run trains on, validates with and tests with; `e0_eV` of the fidelities that have one."""

    train: list[Labelled]
    valid: list[Labelled]
    test: list[Labelled]
    fidelities: tuple[str, ...]  # the last is the target
    elements: tuple[int, ...]
    e0_eV: dict[str, dict[int, float]]
    notes: list[str] = field(default_factory=list)
    labels: tuple[str, ...] = ()  # further quantities to train on

    def part(self, name: str) -> list[Labelled]:
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]

    def hash(self) -> str:
        """Of all that training sees."""
        e0 = repr(sorted((f, sorted(own.items())) for f, own in self.e0_eV.items()))
        parts = [data_hash(self.train), data_hash(self.valid), e0]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()

    def counts(self) -> list[dict[str, Any]]:
        """Rows: part, fidelity, frames, and the labels of each quantity."""
        rows = []
        names = ("energy", "forces", "stress", *self.labels)
        for part in PARTS:
            for level in self.fidelities:
                own = [f for f in self.part(part) if f.fidelity == level]
                if own:
                    found = {name: sum(has(f, name) for f in own) for name in names}
                    rows.append({"set": part, "fidelity": level, "frames": len(own), **found})
        return rows


def read_run_data(
    run: RunFile, heads: Sequence[HeadConfig], *, inputs: Sequence[str], predicts: Sequence[str] | None = None
) -> RunData:
    """Read, split and merge everything that the `data` block names.

    Args:
        heads: of the model; their labels are trained on.
        inputs: conditions that the model reads.
        predicts: what a model that exists predicts; None: what the run's model block makes is checked later.

    Raises:
        DataError: a file, key or value that is not there or not usable; it is named.
    """
    block = run.block("data")
    labels = tuple(dict.fromkeys([*block.get("labels", ()), *(h.name for h in heads)]))
    known = extra_quantities(heads)
    _check_names(labels, [*LABELS, *known, *(predicts or ())])
    reader = Reader(run, labels, known, tuple(inputs))
    levels = tuple(block.get("fidelities", ()))
    e0_source, written = _energies(run)
    main = reader.read(block["train"], levels, more=e0_source)
    for source in e0_source:
        _must_be_complete(main, Path(source.path), source.fidelity)
    valid, test = reader.more(block.get("valid", 0.1)), [*main.test, *reader.more(block.get("test"))]
    train = capped(main.frames, block.get("force_cap_eV_per_A"))
    notes = list(main.notes)
    if isinstance(block.get("valid", 0.1), int | float):
        seed = block.get("split_seed", run.value("seed"))
        train, valid = split(train, float(block.get("valid", 0.1)), seed=seed)
    outside = {f.fidelity for f in (*valid, *test)} - set(main.fidelities)
    if outside:
        notes.append(f"left out: frames of {', '.join(sorted(outside))}, which nothing is trained on")
        valid, test = ([f for f in part if f.fidelity not in outside] for part in (valid, test))
    for name in labels:
        if not any(has(f, name) for f in train):
            raise DataError(
                f"{run.name}: no training frame has '{name}'; give its key under data.keys, such as "
                f"{name}: REF_{name}"
            )
    table = {**main.e0_eV, **_at_levels(written, main.fidelities)} if block.get("e0_eV") != FIT else {}
    table = {name: own for name, own in table.items() if own}
    unused = sorted({name for f in train for name in f.labels} - set(labels))
    if unused:
        notes.append(f"labels that are not trained on: {', '.join(unused)} (a head of that name would)")
    return RunData(train, valid, test, main.fidelities, main.elements, table, notes, labels)


def extra_quantities(heads: Iterable[HeadConfig]) -> dict[str, Quantity]:
    """Labels of heads that the user named, which no table knows."""
    return {
        h.name: quantity_of_head(h.name, h.scope, len(h.symmetry.split("=")[0]))
        for h in heads
        if h.name not in LABELS
    }


def _check_names(labels: Sequence[str], known: Sequence[str]) -> None:
    for name in labels:
        if name not in known:
            raise DataError(f"data.labels: there is no quantity '{name}'; {hint(name, known)}")


@dataclass
class Reader:
    run: RunFile
    labels: tuple[str, ...]
    extra: dict[str, Quantity]
    inputs: tuple[str, ...]

    def read(self, given: Any, levels: Sequence[str] = (), more: Sequence[Source] = ()) -> Dataset:
        sources = [self.source(one) for one in (given if isinstance(given, list) else [given])]
        return read_dataset(
            [*sources, *more],
            fidelities=levels,
            extra=self.extra,
            need=("energy", "forces", *self.labels),
        )

    def more(self, given: Any) -> list[Labelled]:
        """Frames of `valid` or `test`; single atoms among them are left out, as in training."""
        if not given or isinstance(given, int | float):
            return []
        dataset = self.read(given)
        return [f for f in (*dataset.frames, *dataset.test) if not is_isolated(f)]

    def source(self, given: Any) -> Source:
        own: dict[str, Any] = {"file": given} if isinstance(given, str) else dict(given)
        block = self.run.block("data")
        places = {**block.get("keys", {}), **own.get("keys", {})}
        keys: dict[str, Key] = {}
        inputs: dict[str, Key] = {}
        for name in dict.fromkeys([*places, *own.get("units", {})]):
            place = places.get(name, {})
            how: dict[str, Any] = {"key": place} if isinstance(place, str) else dict(place)
            how.setdefault("unit", own.get("units", {}).get(name))
            (inputs if self._is_input(name) else keys)[name] = Key(**how)
        return Source(
            path=self.run.path(own["file"]),
            keys=keys,
            inputs=inputs,
            fidelity=own.get("fidelity"),
            fidelity_key=own.get("fidelity_key", block.get("fidelity_key")),
            index=own.get("index", ":"),
            weight=float(own.get("weight", 1.0)),
            options=own.get("options", {}),
        )

    def _is_input(self, name: str) -> bool:
        """'charges' may be both: a condition where the model reads them."""
        return name in self.inputs or (name in INPUTS and name not in LABELS)


# ------------------------------------------------------------------ energies of isolated atoms
_ONLY = ""  # stands for the only level, where energies are written without one


def _energies(run: RunFile) -> tuple[list[Source], dict[str, dict[int, float]]]:
    """Files to read single atoms from, and energies that stand in the run file; empty ones are fitted."""
    given = run.block("data").get("e0_eV")
    if given is None or given == FIT:
        return [], {}
    places = run.block("data").get("keys", {})
    how = places.get("energy")
    keys = {} if how is None else {"energy": how if isinstance(how, str) else Key(**how)}
    if isinstance(given, str):
        return [Source(path=run.path(given), keys=keys)], {}
    if all(not isinstance(v, dict | str) for v in given.values()):
        given = {_ONLY: given}
    files: list[Source] = []
    table: dict[str, dict[int, float]] = {}
    for level, own in given.items():
        if own == FIT:
            table[level] = {}
        elif isinstance(own, str):
            files.append(Source(path=run.path(own), keys=keys, fidelity=level))
        elif isinstance(own, dict):
            table[level] = {_element(symbol, level): float(e) for symbol, e in own.items()}
        else:
            raise DataError(f"data.e0_eV.{level}: found {own}; give energies such as {{H: -13.6}}")
    return files, table


def _at_levels(
    written: Mapping[str, dict[int, float]], levels: Sequence[str]
) -> dict[str, dict[int, float]]:
    """Energies by levels of the data.

    Raises:
        DataError: a level that the data do not have, or none named where there are several.
    """
    for level in written:
        if level == _ONLY and len(levels) > 1:
            raise DataError(f"data.e0_eV: say of which level: {{{levels[-1]}: {{H: -13.6}}}}")
        if level != _ONLY and level not in levels:
            raise DataError(f"data.e0_eV: no level '{level}' in the data; {hint(level, levels)}")
    return {level or levels[0]: own for level, own in written.items()}


def _element(symbol: str, level: str) -> int:
    if symbol not in atomic_numbers or symbol == "X":
        raise DataError(f"data.e0_eV{'.' if level else ''}{level}: '{symbol}' is not an element")
    return int(atomic_numbers[symbol])


def _must_be_complete(data: Dataset, path: Path, level: str | None) -> None:
    for name in (level,) if level else data.fidelities:
        if name not in data.e0_eV:
            symbols = ", ".join(chemical_symbols[z] for z in data.elements)
            raise DataError(
                f"{path}: not every element has a single atom with an energy at '{name}'; needed: {symbols}, "
                "each alone in a structure without periodicity"
            )


# ------------------------------------------------------------------ split and weights
def geometry_key(frame: Labelled) -> str:
    """The same for all labels of one structure under one set of conditions."""
    atoms = frame.atoms
    places = {"structure": atoms.info, "atom": atoms.arrays}
    given = [places[q.scope][name] for name, q in INPUTS.items() if name in places[q.scope]]
    digest = hashlib.sha256()
    for part in (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, *given):
        digest.update(np.ascontiguousarray(np.asarray(part, dtype="<f8") + 0.0).tobytes())
    return digest.hexdigest()


def split(
    frames: Sequence[Labelled], fraction: float, *, seed: int
) -> tuple[list[Labelled], list[Labelled]]:
    """Training and validation frames; all labels of one structure go to the same side.

    At least one structure is held out when the fraction is positive and there are three or more.
    """
    keys = [geometry_key(f) for f in frames]
    unique = sorted(set(keys))
    held = max(1, round(fraction * len(unique))) if fraction > 0 and len(unique) >= 3 else 0
    order = np.random.default_rng(seed).permutation(len(unique))
    outside = {unique[n] for n in order[:held]}
    inside = [f for f, key in zip(frames, keys, strict=True) if key not in outside]
    return inside, [f for f, key in zip(frames, keys, strict=True) if key in outside]


def capped(frames: Sequence[Labelled], cap_eV_per_A: float | None) -> list[Labelled]:
    """Frames whose largest force exceeds the cap weigh (cap/|F|)²: no squared error outgrows the others'.

    They are not left out, because they hold what is known of short distances.
    """
    if cap_eV_per_A is None:
        return list(frames)
    found = []
    for frame in frames:
        largest = max_force(frame)
        factor = min(1.0, cap_eV_per_A / largest) ** 2 if largest > 0 else 1.0
        found.append(frame if factor == 1.0 else replace(frame, weight=frame.weight * factor))
    return found


def max_force(frame: Labelled) -> float:
    """Largest |F_i| of a frame, eV/Å; 0 without forces."""
    forces = frame.forces_eV_per_A
    return 0.0 if forces is None or not len(forces) else float(np.sqrt((forces**2).sum(1)).max())
