"""Errors of a model on labelled frames, quantity by quantity, with the spread of the labels beside."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase.io import write

import tace
from tace.data import Labelled, collate_samples, make_samples
from tace.loss import PER_ATOM, differences
from tace.model import Tace
from tace.responses import label_shape
from tace.validation import Plan

CHUNK = 16
HESSIAN_ROWS = 12  # of each structure, drawn with a fixed seed


def errors(model: Tace, frames: Sequence[Labelled], labels: Iterable[str]) -> dict[str, Any]:
    """RMSE and MAE over components, and `spread`, the standard deviation of the labels' components.

    Energies per atom; dipole, polarisation and polarisability per atom, as the loss compares them;
    `stress` is the virial per atom.
    """
    samples = make_samples(frames, model.config, tuple(labels))
    plan = Plan.of(model, samples)
    wrong: dict[str, list[np.ndarray]] = {}
    volumes: list[np.ndarray] = []
    net: list[np.ndarray] = []
    for start in range(0, len(samples), CHUNK):
        part = samples[start : start + CHUNK]
        batch, targets = collate_samples(
            part, len(model.config.elements), hessian_rows=HESSIAN_ROWS if plan.hessians else 0, seed=start
        )
        result = plan.evaluate(model, batch, targets, create_graph=False)
        for term in differences(result, targets):
            wrong.setdefault(term.name, []).append(term.values.numpy())
            if term.name == "stress":
                has = np.isfinite(targets.stresses[:, 0].numpy())
                volumes.append((targets.volumes / targets.n_atoms).numpy()[has])
        if result.forces is not None:
            net += _net_forces(frames[start : start + CHUNK], result.forces.numpy())
    found: dict[str, Any] = {}
    for name, parts in wrong.items():
        values = np.concatenate(parts)
        found[name] = {"rmse": _rms(values), "mae": float(np.abs(values).mean())}
        of_atoms = label_shape(name, model.config)[0] == "atom"
        spread = _spread(frames, name, of_atoms=of_atoms)
        if spread is not None:
            found[name]["spread"] = spread
        if name == "stress":
            bare = values / np.concatenate(volumes)[:, None]
            found[name] |= {"rmse_eV_per_A3": _rms(bare), "mae_eV_per_A3": float(np.abs(bare).mean())}
        if name == "polarizability":
            found[name] |= _relative_parts(values, frames)
    if net:
        pairs = np.stack(net)  # [n, 2, 3]
        size = np.linalg.norm(pairs[:, 1], axis=1)
        off = np.linalg.norm(pairs[:, 0] - pairs[:, 1], axis=1)
        found["net force between molecules"] = {
            "rmse": _rms(pairs[:, 0] - pairs[:, 1]),
            "relative_median": float(np.median(off / size)),
            "relative_max": float((off / size).max()),
        }
    return found


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _label(frame: Labelled, name: str) -> np.ndarray | None:
    if name == "forces":
        return frame.forces_eV_per_A
    value = frame.labels.get(name)
    if value is None or name == "hessian":
        return None
    array = np.asarray(value, dtype=float)
    return array / len(frame.atoms) if name in PER_ATOM else array


def _spread(frames: Sequence[Labelled], name: str, *, of_atoms: bool) -> float | None:
    """√ of the mean variance of the components; rows of NaN (atoms without label) are left out."""
    found = [label for f in frames if (label := _label(f, name)) is not None]
    if not found:
        return None
    table = np.concatenate([x.reshape(len(x) if of_atoms else 1, -1) for x in found])
    return float(np.sqrt(np.nanvar(table, axis=0).mean()))


def _relative_parts(wrong: np.ndarray, frames: Sequence[Labelled]) -> dict[str, float]:
    """RMSE of the isotropic and the traceless part over the spread of each."""
    labels = np.stack([x.reshape(9) for f in frames if (x := _label(f, "polarizability")) is not None])
    found = {}
    for name, project in (("L0", True), ("L2", False)):
        parts = []
        for values in (wrong, labels - labels.mean(0)):
            full = values.reshape(-1, 3, 3)
            full = 0.5 * (full + full.transpose(0, 2, 1))
            trace = np.trace(full, axis1=1, axis2=2)[:, None, None] * np.eye(3) / 3
            parts.append(_rms(trace if project else full - trace))
        found[f"relative_{name}"] = parts[0] / parts[1]
    return found


def _net_forces(frames: Sequence[Labelled], forces: np.ndarray) -> list[np.ndarray]:
    """[2,3], predicted and true force on molecule 0 of frames that name their molecules."""
    found, start = [], 0
    for frame in frames:
        count = len(frame.atoms)
        molecule = frame.atoms.arrays.get("molecule")
        if molecule is not None and frame.forces_eV_per_A is not None:
            own = molecule == 0
            both = (forces[start : start + count][own].sum(0), frame.forces_eV_per_A[own].sum(0))
            found.append(np.stack(both))
        start += count
    return found


def ratios(record: dict[str, Any]) -> dict[str, float]:
    """Force RMSE of ours over MACE's on every set."""
    mace = record["mace"]["errors"]
    return {
        name: found["forces"]["rmse"] / mace[name]["forces"]["rmse"]
        for name, found in record["errors"].items()
        if name in mace
    }


def write_frames(path: Path, frames: Sequence[Labelled]) -> None:
    """extxyz with REF_energy and REF_forces, for a peer."""
    rows = []
    for frame in frames:
        atoms = frame.atoms.copy()
        atoms.info = {"REF_energy": frame.energy_eV}
        atoms.arrays["REF_forces"] = frame.forces_eV_per_A
        rows.append(atoms)
    write(path, rows, format="extxyz")


def processor() -> str:
    """What the machine calls its CPU."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def code_hash() -> str:
    """12 hex digits of the sources of the model, read when it is asked for."""
    digest = hashlib.sha256()
    for path in sorted(Path(tace.__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
