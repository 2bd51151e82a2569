"""Labelled structures from files of any kind that ASE reads, from ASE databases, and from plug-ins.

A plug-in stands in the entry-point group `tace.readers`: a callable `(path, **options)` that returns a
`Dataset`, or None where the path is not of its kind. It is asked about folders and about files whose
suffix says nothing to ASE.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from .data import Labelled
from .errors import DataError
from .frames import numbered
from .keys import Key, described, find_all, known_labels, stored_keys, stress_of, with_inputs
from .quantities import INPUTS, Quantity
from .wording import count, hint

PLUGINS = "tace.readers"
_OWN_FIELDS = ("energy", "forces", "stress", "virial")
_NOT_FOR_ASE = ("", ".yaml", ".yml", ".h5", ".hdf5", ".d", ".lmdb")


@dataclass(frozen=True)
class Source:
    """A file, or whatever a plug-in reads, and where its labels stand.

    Attributes:
        keys: places and units of labels, by name of `quantities.LABELS`, "virial", or of a head.
        inputs: the same of conditions, by name of `quantities.INPUTS`.
        fidelity: the level of every frame; None reads `info[fidelity_key]`.
        fidelity_key: None is "fidelity" where any frame has it, else all frames are of one level.
        index: frames to take, as ASE writes it: ":", "-1", "::10".
        weight: of every frame in the loss.
        options: for a plug-in.
    """

    path: Path | str
    keys: Mapping[str, str | Key] = field(default_factory=dict)
    inputs: Mapping[str, str | Key] = field(default_factory=dict)
    fidelity: str | None = None
    fidelity_key: str | None = None
    index: str = ":"
    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Dataset:
    """What to train on; `notes` say what was found and left out."""

    frames: list[Labelled]
    fidelities: tuple[str, ...]  # the last is the target
    elements: tuple[int, ...]
    e0_eV: dict[str, dict[int, float]] = field(default_factory=dict)
    test: list[Labelled] = field(default_factory=list)
    cutoff_A: float | None = None  # where the source suggests one
    notes: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, dict[str, int]]:
        """Frames and labels of every quantity present in the data, per fidelity."""
        table: dict[str, dict[str, int]] = {}
        names = sorted({name for frame in self.frames for name in frame.labels})
        for fidelity in self.fidelities:
            own = [f for f in self.frames if f.fidelity == fidelity]
            table[fidelity] = {
                "frames": len(own),
                "energy": sum(f.energy_eV is not None for f in own),
                "forces": sum(f.forces_eV_per_A is not None for f in own),
                "stress": sum(f.stress_eV_per_A3 is not None for f in own),
                **{name: sum(name in f.labels for f in own) for name in names},
            }
        return table

    def table(self) -> list[dict[str, Any]]:
        """Rows of `counts`; what is missing shows in the difference to the frames."""
        return [{"fidelity": name, **row} for name, row in self.counts().items()]


def read_frames(path: Path | str, index: str = ":") -> list[Atoms]:
    """Frames of a file, with what it says of them in `info`, `arrays` or a calculator.

    Raises:
        DataError: no such file, nothing in it, or a structure that cannot be used.
    """
    return [atoms for atoms, _ in numbered(Path(path), index)]


def read_dataset(
    sources: Sequence[Source | Path | str],
    *,
    fidelities: Sequence[str] = (),
    extra: Mapping[str, Quantity] | None = None,
    need: Sequence[str] = (),
) -> Dataset:
    """Read all sources into one data set.

    Single atoms without periodicity become reference energies of their fidelity where every element of
    the data has one; frames whose info says split=test are set aside.

    Args:
        fidelities: restricts and orders the levels; the last is the target.
        extra: labels of heads that the user named, see `keys.quantity_of_head`.
        need: a frame without any of these labels is left out; by default one without any label.

    Raises:
        DataError: a file, key, mask, fidelity or value that is not there or not usable; it is named.
        UnitError: a unit that does not fit its quantity.
    """
    if not sources:
        raise DataError("no data: give at least one file")
    given = [s if isinstance(s, Source) else Source(s) for s in sources]
    parts, files = [], []
    for source in given:
        part = _from_plugin(source)
        if part is not None:
            parts.append(part)
        else:
            files.append((source, numbered(Path(source.path), source.index)))
    if files:
        parts.append(_from_files(files, extra or {}, need))
    return _merged(parts, fidelities)


def read_labelled(
    source: Source,
    extra: Mapping[str, Quantity] | None = None,
    *,
    frames: Sequence[tuple[Atoms, str]] | None = None,
) -> tuple[list[Labelled], list[str]]:
    """Every frame of one file, single atoms, test frames and unlabelled ones too; notes. Raises DataError.

    frames: with their names, of a file that ASE does not read.
    """
    frames, notes = list(frames or numbered(Path(source.path), source.index)), list[str]()
    keyed = source.fidelity is None and any("fidelity" in atoms.info for atoms, _ in frames)
    return _from_file(source, frames, extra or {}, notes, keyed=keyed), notes


def _from_plugin(source: Source) -> Dataset | None:
    path = Path(source.path)
    if not path.is_dir() and path.suffix not in _NOT_FOR_ASE:
        return None
    names = []
    for point in sorted(entry_points(group=PLUGINS), key=lambda p: p.name):
        names.append(point.name)
        try:
            reader = point.load()
        except (ImportError, AttributeError) as error:
            raise DataError(f"the reader '{point.name}' ({point.value}) cannot be loaded: {error}") from error
        found = reader(path, **source.options)
        if found is None:
            continue
        if not isinstance(found, Dataset):
            raise DataError(f"the reader '{point.name}' returned {type(found).__name__}, not a Dataset")
        if stray := {f.fidelity for f in (*found.frames, *found.test)} - set(found.fidelities):
            level = f"'{min(stray)}', which it does not list"
            raise DataError(f"the reader '{point.name}' returned frames of level {level}")
        if source != Source(source.path, weight=source.weight, options=source.options):
            raise DataError(f"{path} is read by '{point.name}': keys, fidelities and indices are for files")
        found.frames = [replace(f, weight=f.weight * source.weight) for f in found.frames]
        return found
    if path.is_dir():
        raise DataError(f"{path} is a folder that no reader knows; installed: {', '.join(names) or 'none'}")
    return None


def _from_files(
    files: Sequence[tuple[Source, list[tuple[Atoms, str]]]],
    extra: Mapping[str, Quantity],
    need: Sequence[str],
) -> Dataset:
    labelled: list[Labelled] = []
    notes: list[str] = []
    keyed = any("fidelity" in a.info for s, frames in files for a, _ in frames if s.fidelity is None)
    for source, frames in files:
        labelled += _from_file(source, frames, extra, notes, keyed=keyed)
    good = [f for f in labelled if any(has(f, name) for name in need or (*_OWN_FIELDS[:3], *f.labels))]
    if not good:
        keys = ", ".join(sorted({k for _, frames in files for k in stored_keys(a for a, _ in frames)}))
        wanted = " or ".join(need) or "any label"
        raise DataError(
            f"{files[0][0].path}: no frame has {wanted}; name them: data.keys in a run file, --key of "
            f"'tace eval', --energy-key of 'alchemy train'; found: {keys or 'nothing'}"
        )
    if len(good) < len(labelled):
        lost = count(len(labelled) - len(good), "frame")
        notes.append(f"left out: {lost} with " + ("neither label" if len(need) == 2 else "no label"))
    test = [f for f in good if f.atoms.info.get("split") == "test"]
    if test:
        notes.append(f"{count(len(test), 'frame')} with split=test to test with, not to train on")
    kept = [f for f in good if f.atoms.info.get("split") != "test"]
    return Dataset(kept, tuple(dict.fromkeys(f.fidelity for f in good)), (), test=test, notes=notes)


def _from_file(
    source: Source,
    frames: list[tuple[Atoms, str]],
    extra: Mapping[str, Quantity],
    notes: list[str],
    *,
    keyed: bool,
) -> list[Labelled]:
    path, all_atoms = str(source.path), [atoms for atoms, _ in frames]
    labels = find_all(all_atoms, source.keys, known_labels(extra), where=path)
    inputs = find_all(all_atoms, source.inputs, INPUTS, where=path)
    if "stress" in labels and "virial" in labels:
        labels.pop("stress" if "virial" in source.keys and "stress" not in source.keys else "virial")
    out, lost = [], 0
    for atoms, name in frames:
        read = {label: found(atoms, name) for label, found in labels.items()}
        values = {label: value for label, value in read.items() if value is not None}
        stress = stress_of(values, atoms)
        lost += stress is None and ("stress" in values or "virial" in values)
        out.append(
            Labelled(
                atoms=with_inputs(atoms, inputs, name),
                fidelity=_level(atoms, name, source, keyed=keyed),
                energy_eV=float(values["energy"]) if "energy" in values else None,
                forces_eV_per_A=values.get("forces"),
                stress_eV_per_A3=stress,
                weight=source.weight,
                name=name,
                labels={k: v for k, v in values.items() if k not in _OWN_FIELDS},
            )
        )
    used = described({**labels, **inputs})
    notes.append(f"{path}: {count(len(frames), 'frame')}" + (f"; {used}" if used else ""))
    read_keys = {f.key for f in (*labels.values(), *inputs.values())}
    unread = sorted(k for k in stored_keys(all_atoms) if k.startswith("REF_") and k not in read_keys)
    if unread:
        notes.append(f"{path}: not read: {', '.join(unread)}")
    if lost:
        notes.append(f"{path}: left out: the stress of {count(lost, 'frame')} without a periodic volume")
    for label in labels:
        name = "stress" if label == "virial" else label
        missing = sum(not has(f, name) for f in out)
        if missing and label in source.keys:
            notes.append(f"{path}: {label} is missing in {missing} of {count(len(out), 'frame')}")
    return out


def has(frame: Labelled, name: str) -> bool:
    """Whether a frame has the label of a quantity."""
    own = {"energy": frame.energy_eV, "forces": frame.forces_eV_per_A, "stress": frame.stress_eV_per_A3}
    return own[name] is not None if name in own else name in frame.labels


def _level(atoms: Atoms, name: str, source: Source, *, keyed: bool) -> str:
    if source.fidelity is not None:
        return source.fidelity
    key = source.fidelity_key or "fidelity"
    level = atoms.info.get(key)
    if level is not None:
        return str(level)
    if source.fidelity_key or keyed:
        listed = hint(key, atoms.info, label="its info holds")
        raise DataError(f"{name} does not say its level of theory: info['{key}'] is missing; {listed}")
    return "default"


def _merged(parts: Sequence[Dataset], wanted: Sequence[str]) -> Dataset:
    known = tuple(dict.fromkeys(name for part in parts for name in part.fidelities))
    levels = choose(known, wanted)
    notes = [note for part in parts for note in part.notes]
    frames = [f for part in parts for f in part.frames if f.fidelity in levels]
    test = [f for part in parts for f in part.test if f.fidelity in levels]
    elements = {int(z) for f in (*frames, *test) for z in f.atoms.numbers}
    elements |= {z for part in parts for z in part.elements}
    e0 = {n: own for part in parts for n, own in part.e0_eV.items() if n in levels}
    kept = _isolated(frames, sorted(elements), levels, e0, notes)
    if not kept:
        raise DataError("there is nothing to train on: no labelled frame but single atoms or test")
    cutoff = next((part.cutoff_A for part in parts if part.cutoff_A is not None), None)
    return Dataset(kept, levels, tuple(sorted(elements)), e0_eV=e0, test=test, cutoff_A=cutoff, notes=notes)


def choose(known: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """The fidelities that are wanted, in that order; all of them if none is named."""
    for name in wanted:
        if name not in known:
            raise DataError(f"no level '{name}' in the data; {hint(name, known, label='levels')}")
    return tuple(dict.fromkeys(wanted or known))


def _isolated(
    frames: Sequence[Labelled],
    elements: Sequence[int],
    levels: Sequence[str],
    e0_eV: dict[str, dict[int, float]],
    notes: list[str],
) -> list[Labelled]:
    """Move single atoms in vacuum into `e0_eV` where every element has one; the frames that remain."""
    table: dict[str, dict[int, float]] = {}
    for frame in frames:
        if is_isolated(frame) and frame.energy_eV is not None:
            table.setdefault(frame.fidelity, {})[int(frame.atoms.numbers[0])] = frame.energy_eV
    for name in levels:
        if name in e0_eV:
            continue
        own = table.get(name, {})
        if set(elements) <= own.keys():
            e0_eV[name] = own
            notes.append(f"{name}: energies of isolated atoms from single atoms in the data")
            continue
        lacking = [chemical_symbols[z] for z in elements if z not in own]
        listed = ", ".join(lacking) if len(lacking) <= 8 else f"{', '.join(lacking[:6])}, … ({len(lacking)})"
        if any(f.energy_eV is not None for f in frames if f.fidelity == name):
            notes.append(f"{name}: energies of isolated atoms are fitted (no single {listed} atom)")
    return [f for f in frames if not (is_isolated(f) and f.fidelity in e0_eV)]


def is_isolated(frame: Labelled) -> bool:
    return len(frame.atoms) == 1 and not bool(frame.atoms.pbc.any())


def data_hash(frames: Iterable[Labelled]) -> str:
    """64 hex digits that change when, and only when, the data do; the order of frames does not matter.

    Covers species, positions, cell, periodicity, conditions, fidelity, weight and all labels, bit by bit.
    """
    each = sorted(_frame_hash(frame) for frame in frames)
    return hashlib.sha256(b"tace-data-1" + b"".join(each)).hexdigest()


def _frame_hash(frame: Labelled) -> bytes:
    atoms, digest = frame.atoms, hashlib.sha256()
    conditions = {n: {**atoms.info, **atoms.arrays}.get(n) for n in sorted(INPUTS)}
    content = {
        "numbers": atoms.numbers, "positions": atoms.positions, "cell": atoms.cell.array, "pbc": atoms.pbc,
        "weight": frame.weight, "energy": frame.energy_eV, "forces": frame.forces_eV_per_A,
        "stress": frame.stress_eV_per_A3, **{f"input {n}": v for n, v in conditions.items()},
        **{f"label {n}": frame.labels[n] for n in sorted(frame.labels)},
    }  # fmt: skip
    digest.update(frame.fidelity.encode())
    for name, value in content.items():
        if value is None:
            continue
        array = np.asarray(value, dtype="<f8") + 0.0  # −0 becomes 0
        digest.update(f"|{name} {array.shape}|".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()
