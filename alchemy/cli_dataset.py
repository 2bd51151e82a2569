"""Labelled structures for `alchemy train`: from extended XYZ files or from a campaign's store.

ASE puts `energy`, `forces` and `stress` of a file into a calculator and everything else into
`info` and `arrays`; forces are taken from there raw, because asking the atoms for them applies
constraints.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress

from alchemy.cli_paths import count, find_campaign, find_home, find_store, is_home
from alchemy.cli_structures import read_frames
from alchemy.errors import InputError
from alchemy.identity import content_hash, structure_uid
from alchemy.plugins import hint
from tace.data import Labelled

DEFAULT_CUTOFF_A = 5.0
KINDS = ("energy", "forces", "stress")


@dataclass
class Dataset:
    """What to train on; `notes` say what was found and left out."""

    frames: list[Labelled]
    uids: list[str]
    fidelities: tuple[str, ...]  # the last is the target
    elements: tuple[int, ...]
    e0_eV: dict[str, dict[int, float]] = field(default_factory=dict)
    test: list[Labelled] = field(default_factory=list)
    cutoff_A: float = DEFAULT_CUTOFF_A
    notes: list[str] = field(default_factory=list)

    def table(self) -> list[dict[str, Any]]:
        """Labels per level; what is missing shows in the difference to the frames."""
        rows = []
        for name in self.fidelities:
            own = [f for f in self.frames if f.fidelity == name]
            rows.append(
                {
                    "fidelity": name,
                    "frames": len(own),
                    "energies": sum(f.energy_eV is not None for f in own),
                    "forces": sum(f.forces_eV_per_A is not None for f in own),
                    "stresses": sum(f.stress_eV_per_A3 is not None for f in own),
                }
            )
        return rows


def digest(frames: Iterable[Labelled]) -> str:
    """Changes when the data do: a checkpoint of other data is not continued."""
    return content_hash(
        [
            [
                structure_uid(f.atoms),
                f.fidelity,
                f.energy_eV,
                None if f.forces_eV_per_A is None else float((f.forces_eV_per_A**2).sum()),
            ]
            for f in frames
        ]
    )


def read_dataset(
    sources: Sequence[Path], keys: Mapping[str, str | None], fidelities: Sequence[str]
) -> Dataset:
    """Read files, or one campaign; `fidelities` restricts and orders the levels."""
    campaigns = [p for p in sources if p.is_dir() or p.suffix in (".yaml", ".yml")]
    if campaigns and len(sources) > 1:
        raise InputError("--data takes files, or one campaign; export the campaign to combine them")
    if campaigns:
        if any(keys.values()):
            raise InputError("the keys of labels are for files; a campaign's store needs none")
        return _from_campaign(campaigns[0], fidelities)
    return _from_files(sources, keys, fidelities)


def _from_campaign(path: Path, wanted: Sequence[str]) -> Dataset:
    from alchemy.datasets import isolated_energies, labelled, rows_of
    from alchemy.store import Store

    store = find_store(path)
    given = find_campaign(path if is_home(path) else find_home(path))
    names = _chosen(given.used or given.campaign.fidelity_names, wanted)
    if not wanted:
        names = (*(n for n in names if n != given.campaign.target), given.campaign.target)
    snapshot = Store(store).snapshot()
    rows = rows_of(snapshot, "train", names)
    if not rows:
        raise InputError(f"{store} holds no labels to train on")
    numbers = sorted(atomic_numbers[symbol] for symbol in given.campaign.elements)
    found = isolated_energies(snapshot, names)
    test = labelled(snapshot, rows_of(snapshot, "test", names))
    return Dataset(
        frames=labelled(snapshot, rows),
        uids=[row.structure_uid for row in rows],
        fidelities=names,
        elements=tuple(numbers),
        e0_eV={name: own for name, own in found.items() if set(numbers) <= own.keys()},
        test=test,
        cutoff_A=given.campaign.model.cutoff_A,
        notes=[f"{store}: {count(len(rows), 'label')} to train on, {len(test)} to test with"],
    )


def _chosen(known: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    for name in wanted:
        if name not in known:
            raise InputError(f"no level '{name}' in the data; {hint(name, known, label='levels')}")
    return tuple(dict.fromkeys(wanted or known))


def _from_files(
    paths: Sequence[Path], keys: Mapping[str, str | None], wanted: Sequence[str]
) -> Dataset:
    frames = [(a, f"{path}, frame {n}") for path in paths for n, a in enumerate(read_frames(path))]
    names, notes = {}, []
    for kind in KINDS:
        names[kind] = _key(frames, kind, keys.get(kind))
    if names["energy"] is None and names["forces"] is None:
        raise InputError(
            f"{paths[0]}: no frame has an energy or forces; name them with --energy-key and "
            f"--forces-key; found: {', '.join(_seen(frames)) or 'nothing'}"
        )
    used = ", ".join(f"{kind} from '{key}'" for kind, key in names.items() if key)
    notes.append(f"{count(len(frames), 'frame')}; {used}")
    labels = [_labelled(a, name, names, _level(a, name, frames, keys)) for a, name in frames]
    good = [f for f in labels if f.energy_eV is not None or f.forces_eV_per_A is not None]
    if len(good) < len(labels):
        notes.append(f"left out: {count(len(labels) - len(good), 'frame')} with neither label")
    levels = _chosen(tuple(dict.fromkeys(f.fidelity for f in good)), wanted)
    good = [f for f in good if f.fidelity in levels]
    test = [f for f in good if f.atoms.info.get("split") == "test"]  # as 'alchemy export' marks it
    good = [f for f in good if f.atoms.info.get("split") != "test"]
    if test:
        notes.append(f"{count(len(test), 'frame')} with split=test to test with, not to train on")
    elements = tuple(sorted({int(z) for f in (*good, *test) for z in f.atoms.numbers}))
    good, e0 = _isolated(good, elements, levels, notes)
    if not good:
        raise InputError("there is nothing to train on: no labelled frame but single atoms or test")
    uids = [structure_uid(f.atoms) for f in good]
    return Dataset(good, uids, levels, elements, e0_eV=e0, test=test, notes=notes)


def _value(atoms: Atoms, key: str) -> Any:
    results = atoms.calc.results if atoms.calc is not None else {}
    for place in (results, atoms.info, atoms.arrays):
        if key in place:
            return place[key]
    return None


def _seen(frames: Sequence[tuple[Atoms, str]]) -> list[str]:
    found: set[str] = set()
    for atoms, _ in frames:
        found |= set(atoms.info) | set(atoms.calc.results if atoms.calc else ())
        found |= set(atoms.arrays) - {"numbers", "positions"}
    return sorted(found)


def _key(frames: Sequence[tuple[Atoms, str]], kind: str, asked: str | None) -> str | None:
    """The key that holds this label; one that was asked for must be there."""
    for key in (asked,) if asked else (f"REF_{kind}", kind):
        if any(_value(atoms, key) is not None for atoms, _ in frames):
            return key
    if asked:
        listed = hint(asked, _seen(frames), label="found")
        raise InputError(f"--{kind}-key {asked}: no frame has it; {listed}")
    return None


def _level(
    atoms: Atoms,
    name: str,
    frames: Sequence[tuple[Atoms, str]],
    keys: Mapping[str, str | None],
) -> str:
    key = keys.get("fidelity") or "fidelity"
    level = atoms.info.get(key)
    if level is not None:
        return str(level)
    if keys.get("fidelity") or any(key in other.info for other, _ in frames):
        raise InputError(f"{name} does not say its level of theory: info['{key}'] is missing")
    return "default"


def _labelled(atoms: Atoms, name: str, keys: Mapping[str, str | None], level: str) -> Labelled:
    values = {kind: None if key is None else _value(atoms, key) for kind, key in keys.items()}
    stress = values["stress"]
    if stress is not None:
        stress = np.asarray(stress, dtype=np.float64)
        if stress.size == 9:
            stress = full_3x3_to_voigt_6_stress(stress.reshape(3, 3))
    bare = atoms.copy()
    bare.calc = None
    try:
        energy = None if values["energy"] is None else float(values["energy"])
    except (TypeError, ValueError):
        raise InputError(f"{name}: '{keys['energy']}' is not a number") from None
    forces = values["forces"]
    return Labelled(
        atoms=bare,
        fidelity=level,
        energy_eV=energy,
        forces_eV_per_A=None if forces is None else np.asarray(forces, dtype=np.float64),
        stress_eV_per_A3=stress,
        name=name,
    )


def _isolated(
    frames: list[Labelled],
    elements: Sequence[int],
    levels: Sequence[str],
    notes: list[str],
) -> tuple[list[Labelled], dict[str, dict[int, float]]]:
    """Single atoms in vacuum become reference energies where every element has one."""
    table: dict[str, dict[int, float]] = {}
    for frame in frames:
        if _is_isolated(frame) and frame.energy_eV is not None:
            table.setdefault(frame.fidelity, {})[int(frame.atoms.numbers[0])] = frame.energy_eV
    complete = {name: own for name, own in table.items() if set(elements) <= own.keys()}
    for name in levels:
        if name in complete:
            notes.append(f"{name}: energies of isolated atoms from single atoms in the data")
            continue
        symbols = ", ".join(chemical_symbols[z] for z in elements if z not in table.get(name, {}))
        notes.append(f"{name}: energies of isolated atoms are fitted (no single {symbols} atom)")
    kept = [f for f in frames if not (_is_isolated(f) and f.fidelity in complete)]
    return [replace(f) for f in kept], complete


def _is_isolated(frame: Labelled) -> bool:
    return len(frame.atoms) == 1 and not bool(frame.atoms.pbc.any())
