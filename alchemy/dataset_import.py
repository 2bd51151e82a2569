"""Labelled structures from files into a store: extended XYZ, ASE databases, outputs of VASP, QE, CP2K, …

Keys and units are those of `tace.readers`. A label that comes from a file has a fingerprint of its level's
name, so that the same file read again brings nothing new.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ase.io.formats import string2index

from alchemy import dataset_outputs, import_checks
from alchemy.conditions import conditions_of
from alchemy.errors import InputError, StructureError
from alchemy.identity import imported_fingerprint, label_key, structure_uid
from alchemy.store import PROPERTIES, EventRow, LabelRow, PropertySpec, SplitRow, Store
from tace.data import Labelled
from tace.errors import TaceError
from tace.keys import Key
from tace.quantities import Quantity
from tace.readers import Source, read_labelled
from tace.wording import count, hint

_AT_ONCE = 2000  # frames of a commit


@dataclass
class Imported:
    """What an import brought."""

    structures: int = 0
    labels: Counter[str] = field(default_factory=Counter)  # new ones, per level
    known: int = 0  # labels that were there already
    unlabelled: int = 0  # frames that brought a structure only
    notes: list[str] = field(default_factory=list)


def import_files(
    store: Store,
    sources: Sequence[Source],
    *,
    part: str | None = None,
    levels: Sequence[str] | None = None,
    extra: Mapping[str, Quantity] | None = None,
    skip_unconverged: bool = False,
    skip_rejected: bool = False,
) -> Imported:
    """Read every source completely, then append; a mistake in one leaves the store as it was.

    Args:
        part: split of the structures (train, test, …); else `info['split']` where a frame has it.
        levels: fidelities that may be named, of a campaign; None allows any.
        extra: labels of heads, by name.
        skip_unconverged: leave out calculations that did not converge, and the last frame of an output
            that is cut off, instead of refusing them.
        skip_rejected: the same for labels that `import_checks` rejects.

    Raises:
        InputError: no level of theory, one that the campaign does not have, a calculation that did not
            converge or end, or a label that is none, with its reason.
        StoreError: rows that do not fit the store.
    """
    result = Imported()
    read: list[tuple[Source, list[Labelled]]] = []
    for source in sources:
        try:
            frames = _frames(source, extra, result, skip=skip_unconverged)
        except TaceError as error:
            raise InputError(str(error)) from error
        for frame in frames:
            _check_level(frame, levels)
        read.append((source, frames))
    rows = [(frame, _row(frame, source)) for source, frames in read for frame in frames]
    rows = _sound(store, rows, result, skip=skip_rejected)
    specs = {n: PropertySpec(q.scope, q.shape, q.unit, q.meaning) for n, q in (extra or {}).items()}
    for start in range(0, len(rows), _AT_ONCE):
        _append(store, rows[start : start + _AT_ONCE], result, part=part, specs=specs)
    return result


def _sound(
    store: Store,
    rows: list[tuple[Labelled, LabelRow | None]],
    result: Imported,
    *,
    skip: bool,
) -> list[tuple[Labelled, LabelRow | None]]:
    """Frames whose labels are some; the others are refused, or left out with a note."""
    known = store.snapshot().labels(keys={row.key for _, row in rows if row is not None})
    found = import_checks.rejected(rows, {row.key: row for row in known})
    if found and not skip:
        raise import_checks.refusal(rows, found)
    if found:
        result.notes.append(import_checks.note(found))
    return [row for number, row in enumerate(rows) if number not in found]


def _frames(
    source: Source, extra: Mapping[str, Quantity] | None, result: Imported, *, skip: bool
) -> list[Labelled]:
    """The labelled frames of a file; those that did not converge are refused, or left out with a note."""
    path, given = Path(source.path), None
    program = dataset_outputs.program_of(path)
    if program == "cp2k":
        atoms, good = dataset_outputs.read_cp2k(path)
        verdicts, given = [good], [(atoms, f"{path}, frame 0")]
    else:
        verdicts = dataset_outputs.converged(path, program)
    cut = not dataset_outputs.finished(path, program)
    if cut and not skip:
        raise dataset_outputs.truncation(path)
    among = verdicts and _chosen(source, len(verdicts))
    bad = {n for n in among if not verdicts[n]}
    if bad and not skip:
        raise dataset_outputs.refusal(path, sorted(bad))
    if bad:
        result.notes.append(f"{path}: left out: {count(len(bad), 'frame')} that did not converge")
    if bad == set(among) and bad:
        return []
    frames, notes = read_labelled(source, extra, frames=given)
    result.notes += notes
    if cut and frames:
        result.notes.append(f"{path}: cut off: its last frame was left out")
        frames = frames[:-1]
    return [frame for frame in frames if frame.name not in {f"{path}, frame {n}" for n in bad}]


def _chosen(source: Source, n: int) -> Sequence[int]:
    """Numbers of the frames that the index takes; `read_labelled` says what is wrong with one."""
    try:
        index = string2index(source.index)
        return range(n)[index] if isinstance(index, slice) else [range(n)[int(index)]]
    except (ValueError, IndexError):
        return []


def _check_level(frame: Labelled, levels: Sequence[str] | None) -> None:
    if not _has_label(frame):
        return
    if frame.fidelity == "default":
        raise InputError(f"{frame.name}: which level of theory is this? Name it: --fidelity pbe")
    if levels is not None and frame.fidelity not in levels:
        listed = hint(frame.fidelity, levels, label="its levels")
        raise InputError(f"{frame.name}: the campaign has no level '{frame.fidelity}'; {listed}")


def _has_label(frame: Labelled) -> bool:
    fixed = (frame.energy_eV, frame.forces_eV_per_A, frame.stress_eV_per_A3)
    return any(value is not None for value in (*fixed, *frame.labels.values()))


def _row(frame: Labelled, source: Source) -> LabelRow | None:
    if not _has_label(frame):
        return None
    atoms = frame.atoms.copy()
    for name in frame.labels:  # one array under a key that both use, 'charges', is the label
        given = atoms.arrays.get(name) if name not in source.inputs else None
        if given is not None and np.array_equal(given, frame.labels[name], equal_nan=True):
            del atoms.arrays[name]
    try:
        conditions = conditions_of(atoms)
    except StructureError as error:
        raise InputError(f"{frame.name}: {error}") from error
    uid, mark = structure_uid(frame.atoms), imported_fingerprint(frame.fidelity)
    how = source.keys.get("energy")
    key = how.key if isinstance(how, Key) else how
    properties = {n: v for n, v in frame.labels.items() if v is not None}
    if frame.weight != 1.0:
        properties["weight"] = np.array(frame.weight)
    return LabelRow(
        key=label_key(uid, frame.fidelity, mark, 0, conditions),
        structure_uid=uid,
        fidelity=frame.fidelity,
        fingerprint=mark,
        status="ok",
        code=f"imported from {Path(source.path).name}",
        energy_eV=frame.energy_eV,
        energy_kind="free" if key == "free_energy" else "total",
        forces_eV_per_A=frame.forces_eV_per_A,
        stress_eV_per_A3=frame.stress_eV_per_A3,
        wall_s=0.0,
        cpu_s=0.0,
        created=time.time(),
        properties=properties,
        conditions=conditions,
    )


def _append(
    store: Store,
    rows: Sequence[tuple[Labelled, LabelRow | None]],
    result: Imported,
    *,
    part: str | None,
    specs: Mapping[str, PropertySpec],
) -> None:
    view = store.snapshot()
    now, splits, new = time.time(), [], {}
    uids = [structure_uid(frame.atoms) for frame, _ in rows]
    known = view.atom_counts(uids)
    for uid, (frame, row) in zip(uids, rows, strict=True):
        if uid not in known:
            new[uid] = EventRow(uid, "start", sampler="import", reason=frame.name, time=now)
        own = part or frame.atoms.info.get("split")
        if own:
            splits.append(SplitRow(uid, str(own), now))
        if row is None:
            result.unlabelled += 1
    labels = {row.key: row for _, row in reversed(rows) if row is not None}  # the first of a key counts
    states = view.label_states(labels)
    doubted = set(view.retracted()) - {key for key, ok in states.items() if ok}
    fresh = [row for row in labels.values() if not states.get(row.key) and row.key not in doubted]
    if kept := sum(key in doubted for key in labels):
        result.notes.append(f"left out: {count(kept, 'label')} that the store has withdrawn or doubts")
    store.append(
        structures=[frame.atoms for frame, _ in rows],
        labels=fresh,
        events=list(new.values()),
        splits=splits,
        quantities={n: spec for n, spec in specs.items() if n not in PROPERTIES},
    )
    result.structures += len(new)
    result.labels.update(row.fidelity for row in fresh)
    result.known += sum(row is not None for _, row in rows) - len(fresh)
