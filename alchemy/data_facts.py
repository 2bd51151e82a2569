"""What a store says about one structure, and about its labels as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from alchemy.errors import InputError
from alchemy.store import LabelRow, Snapshot
from alchemy.store.syntax import Z_OF

LISTED = 8


def find_uid(snapshot: Snapshot, text: str) -> str:
    """The structure whose uid, or of which a label's key, begins with the text. Raises InputError."""
    found = snapshot.uids_beginning(text)
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError(f"no structure or label begins with '{text}'; 'alchemy data query' lists them")
    listed = ", ".join(found[:LISTED])
    raise InputError(f"'{text}' is the beginning of {len(found)} structures: {listed}; give more digits")


def story(snapshot: Snapshot, uid: str) -> dict[str, Any]:
    """One structure: geometry, labels, and what happened to it, oldest first; JSON."""
    atoms = snapshot.structure(uid)
    labels = snapshot.labels(uids=[uid], status=None)
    return {
        "uid": uid,
        "formula": atoms.get_chemical_formula(),
        "n_atoms": len(atoms),
        "pbc": atoms.pbc.tolist(),
        "cell_A": np.asarray(atoms.cell).tolist(),
        "charge": atoms.info.get("charge", 0),
        "multiplicity": atoms.info.get("multiplicity"),
        "split": snapshot.part_of().get(uid),
        "symbols": atoms.get_chemical_symbols(),
        "positions_A": atoms.positions.tolist(),
        "arrays": {n: v.tolist() for n, v in atoms.arrays.items() if n not in ("numbers", "positions")},
        "labels": [_label(row, atoms) for row in labels],
        "history": _history(snapshot, uid, labels),
    }


def _label(row: LabelRow, atoms: Atoms) -> dict[str, Any]:
    forces = row.forces_eV_per_A
    has = {"forces": forces is not None, "stress": row.stress_eV_per_A3 is not None}
    return {
        "key": row.key,
        "fidelity": row.fidelity,
        "status": row.status,
        "code": row.code,
        "energy_eV": row.energy_eV,
        "energy_per_atom_eV": None if row.energy_eV is None else row.energy_eV / len(atoms),
        "max_force_eV_per_A": None if forces is None else float(np.linalg.norm(forces, axis=1).max()),
        "has": [*(name for name, there in has.items() if there), *row.properties],
        "conditions": {name: np.asarray(value).tolist() for name, value in row.conditions.items()},
    }


def _history(snapshot: Snapshot, uid: str, labels: list[LabelRow]) -> list[dict[str, Any]]:
    found: list[tuple[float, str]] = []
    for event in snapshot.events():
        if event.structure_uid == uid:
            words = (event.sampler, event.reason, f"round {event.round}" if event.round >= 0 else "")
            found.append((event.time, f"{event.kind}: {', '.join(w for w in words if w)}"))
    for failure in snapshot.failures():
        if failure.structure_uid == uid:
            text = f"failed: {failure.stage} {failure.fidelity}, {failure.reason}: {failure.message}"
            found.append((failure.time, text))
    for split in snapshot.split_rows():
        if split.structure_uid == uid:
            found.append((split.time, f"part: {split.part}"))
    for row in labels:
        found.append((row.created, f"label: {row.fidelity}, {row.status}, {row.code}"))
    for prediction in snapshot.predictions():
        if prediction.structure_uid == uid:
            spread = f"force spread {prediction.max_force_std_eV_per_A:.3g} eV/Å"
            found.append((float("-inf"), f"predicted by {prediction.model_set[:8]}: {spread}"))
    return [{"time": _when(time), "what": what} for time, what in sorted(found)]


def _when(time: float) -> str:
    if not np.isfinite(time):
        return "(no date)"
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S")


def statistics(snapshot: Snapshot, expression: str = "") -> dict[str, list[dict[str, Any]]]:
    """Counts and ranges of the labels that match, per fidelity, element and round. Raises QueryError."""
    names = ["fidelity", "status", "n_atoms", "energy_per_atom", "max_force", "elements", "round", "cpu_s"]
    table = snapshot.select(expression, rows="labels", columns=names).columns
    good = np.array([status == "ok" for status in table["status"]], bool)
    own: dict[str, Any] = {name: np.asarray(table[name], object) for name in ("fidelity", "round")}
    return {
        "fidelity": [
            {"fidelity": level, **_numbers(table, own["fidelity"] == level, good)}
            for level in sorted({str(name) for name in table["fidelity"]})
        ],
        "element": _elements(table, good),
        "round": [
            {"round": number, **_numbers(table, own["round"] == number, good)}
            for number in sorted({int(r) for r in table["round"] if r is not None and r == r})
        ],
    }


def _numbers(table: Mapping[str, Any], among: np.ndarray, good: np.ndarray) -> dict[str, Any]:
    both = among & good
    energy, force = (np.asarray(table[n], float)[both] for n in ("energy_per_atom", "max_force"))
    return {
        "labels": int(both.sum()),
        "failed": int((among & ~good).sum()),
        "atoms": int(np.asarray(table["n_atoms"], float)[both].sum()),
        "energy_per_atom_eV": _mean(energy),
        "energy_std_eV": _spread(energy),
        "max_force_eV_per_A": _largest(force),
        "cpu_h": round(float(np.nansum(np.asarray(table["cpu_s"], float)[among])) / 3600, 6),
    }


def _mean(values: np.ndarray) -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def _spread(values: np.ndarray) -> float | None:
    return float(np.nanstd(values)) if np.isfinite(values).any() else None


def _largest(values: np.ndarray) -> float | None:
    return float(np.nanmax(values)) if np.isfinite(values).any() else None


def _elements(table: Mapping[str, Any], good: np.ndarray) -> list[dict[str, Any]]:
    counts: dict[str, int] = {}
    for symbols, ok in zip(table["elements"], good.tolist(), strict=True):
        for symbol in symbols if ok else ():
            counts[symbol] = counts.get(symbol, 0) + 1
    return [{"element": s, "labels": counts[s]} for s in sorted(counts, key=lambda s: Z_OF[s])]


def draw(snapshot: Snapshot, expression: str, path: Path) -> None:
    """Histograms of energies and largest forces per level. Raises InputError, QueryError."""
    if not path.resolve().parent.is_dir() or path.suffix not in (".png", ".pdf", ".svg"):
        raise InputError(f"{path}: give a .png, .pdf or .svg file in a folder that exists")
    from matplotlib.figure import Figure

    names = ["fidelity", "status", "energy_per_atom", "max_force"]
    table = snapshot.select(expression, rows="labels", columns=names).columns
    level = np.asarray(table["fidelity"], object)
    good = np.array([status == "ok" for status in table["status"]], bool)
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.subplots(1, 2)
    titles = (("energy_per_atom", "energy per atom / eV"), ("max_force", "largest force / eV/Å"))
    for axis, (name, title) in zip(axes, titles, strict=True):
        for fidelity in sorted({str(f) for f in table["fidelity"]}):
            values = np.asarray(table[name], float)[(level == fidelity) & good]
            if len(values := values[np.isfinite(values)]):
                axis.hist(values, bins=40, histtype="step", label=fidelity)
        axis.set_xlabel(title)
        axis.set_ylabel("labels")
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
    figure.savefig(path)
