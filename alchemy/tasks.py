"""What runs on a worker: plain functions of one small JSON-able request.

Models, structures and results travel as paths in the campaign's directory. Every task that costs something
looks for its own finished output first, so that a task that is sent again does no work.
"""

from __future__ import annotations

import fcntl
import io
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import chemical_symbols

from .identity import label_key, structure_uid
from .records import (
    LabelRecord,
    atoms_from_document,
    atoms_to_document,
    finite_or_none,
    frame_to_document,
    read_json,
    write_json_atomic,
)

if TYPE_CHECKING:
    from alchemy_policies.base import Exploration


def train_member(request: dict[str, Any]) -> dict[str, Any]:
    """Train one member; in a child process unless the request says inline."""
    from .training import train, train_in_process

    return train(request) if request["inline"] else train_in_process(request)


def label(request: dict[str, Any]) -> dict[str, Any]:
    """Label one structure at one fidelity; the record is on disk when this returns."""
    from .gate import Gate
    from .labelers.base import fingerprint, make_labeler
    from .labelers.label import label_structure

    labeler = make_labeler(
        request["labeler"], request["options"], base_dir=Path(request["base_dir"])
    )
    atoms = atoms_from_document(request["structure"])
    fidelity, root, replica = request["fidelity"], Path(request["root"]), request.get("replica", 0)
    key = label_key(structure_uid(atoms), fidelity, fingerprint(labeler), replica)
    root.mkdir(parents=True, exist_ok=True)
    with _held(root / f"{key}.lock"):
        record = label_structure(
            atoms,
            fidelity=fidelity,
            labeler=labeler,
            root=root,
            gate=Gate(**request["gate"]),
            e0_eV=request["e0_eV"],
            attempt=request.get("attempt", 1),
            replica=replica,
        )
    return {"key": record.key, "status": record.status, "reason": record.reason}


def labels(request: dict[str, Any]) -> dict[str, Any]:
    """Some labels one after another; their records are on disk when this returns."""
    return {"results": [label(one) for one in request["requests"]]}


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """One process at a time: a worker that outlives its controller may still be at the same label.

    A killed holder frees the lock with its death. File systems without locks go without.
    """
    with open(path, "a", encoding="utf-8") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
        path.unlink(missing_ok=True)  # whoever waited for it finds the record


def read_label(root: Path, key: str) -> LabelRecord:
    """The record that a finished `label` task left."""
    return LabelRecord.read(root / key)


def generate(request: dict[str, Any]) -> dict[str, Any]:
    """Make start or test structures of one item; written to `out` as JSON documents."""
    out, spent = Path(request["out"]), Spent()
    if not out.exists():
        from .generate import group_of, make_structures

        frames = make_structures(request)
        write_json_atomic(out, [{**frame_to_document(a), "group": group_of(a)} for a in frames])
    return {"out": str(out), "cpu_s": spent.cpu_s()}  # of a resumed one little: it is done once


class Spent:
    """CPU time of this process and of programs it has waited for, and time on a GPU, from here on."""

    def __init__(self) -> None:
        self._cpu_s, self._began = _cpu_s(), time.perf_counter()

    def cpu_s(self) -> float:
        return _cpu_s() - self._cpu_s

    def gpu_s(self) -> float:
        """Wall time where there is a GPU: nobody else may use it meanwhile."""
        import torch

        return time.perf_counter() - self._began if torch.cuda.is_available() else 0.0


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@lru_cache(maxsize=2)
def _committee(models: tuple[str, ...], stamp: tuple[float, ...]) -> Any:
    """Models of the round, kept between the tasks of a worker; the stamp changes with the files."""
    import torch

    from tace.committee import Committee

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Committee.load([Path(m) for m in models], device=device)


def load_committee(models: list[str]) -> Any:
    """The committee of these files, cached."""
    return _committee(tuple(models), tuple(os.stat(m).st_mtime for m in models))


def explore(request: dict[str, Any]) -> dict[str, Any]:
    """Run one explorer; candidates and walker reports are written to `out`."""
    out = Path(request["out"])
    if out.exists():
        return _done(out, read_candidates(out))
    from alchemy_policies.calibration import Calibration

    from .plugins import find

    spent = Spent()
    committee = load_committee(request["models"])
    explorer = find("explorers", request["explorer"])(**request["options"])

    def factory(frames: Any) -> Any:
        return committee.session(frames, fidelity=request["fidelity"])

    result = explorer(
        [atoms_from_document(d) for d in request["starts"]],
        factory,
        Calibration.from_json(request["calibration"]),
        np.random.default_rng(request["seed"]),
    )
    document = {
        **found_document(result, committee.elements),
        "force_calls": result.force_calls,
        "facts": dict(result.facts),
        "cpu_s": spent.cpu_s(),
        "gpu_s": spent.gpu_s(),
    }
    write_json_atomic(out, document)
    return _done(out, document)


def found_document(result: Exploration, elements: Sequence[int]) -> dict[str, Any]:
    """Candidates and walkers of an exploration; `walker` of a candidate is the place of its report.

    Raises:
        PolicyError: a candidate that nobody reported, or that the committee cannot judge.
    """
    from alchemy_policies.base import PolicyError

    place = {report.walker: n for n, report in enumerate(result.walkers)}
    for found in result.candidates:
        if found.walker not in place:
            raise PolicyError(f"a candidate names walker {found.walker}, which has no WalkerReport")
        alien = sorted({chemical_symbols[z] for z in set(found.atoms.numbers.tolist()) - set(elements)})
        if alien:
            known = ", ".join(chemical_symbols[z] for z in elements)
            raise PolicyError(
                f"a candidate holds {', '.join(alien)}; the committee was built for {known}, the elements "
                "of the campaign file"
            )
    return {
        "candidates": [
            {
                "structure": atoms_to_document(c.atoms),
                "source": c.source,
                "reason": c.reason,
                "walker": place[c.walker],
                "step": c.step,
                "time_fs": c.time_fs,
                "temperature_K": c.temperature_K,
                "expected_error_eV_per_A": finite_or_none(c.expected_error_eV_per_A),
            }
            for c in result.candidates
        ],
        "walkers": [
            {
                "start": w.start_index,
                "temperature_K": w.temperature_K,
                "steps": w.steps,
                "outcome": w.outcome,
                "time_fs": w.time_fs,
                "max_expected_error_eV_per_A": finite_or_none(w.max_expected_error_eV_per_A),
                "drift_eV_per_atom": finite_or_none(w.drift_eV_per_atom),
            }
            for w in result.walkers
        ],
    }


def _done(out: Path, costs: Mapping[str, Any]) -> dict[str, Any]:
    """A result that is in a file, and what it once cost."""
    return {"out": str(out), **{key: float(costs.get(key, 0.0)) for key in ("cpu_s", "gpu_s")}}


def score(request: dict[str, Any]) -> dict[str, Any]:
    """Predict structures of the store with a committee; arrays are written to `out` (npz)."""
    out = Path(request["out"])
    if out.exists():
        return _done(out, read_arrays(out))
    from .datasets import open_snapshot

    spent = Spent()
    snapshot = open_snapshot(Path(request["store"]), int(request["as_of"]))
    frames = snapshot.structures(request["uids"])
    prediction = load_committee(request["models"])(
        frames, fidelity=request["fidelity"], member_forces=True, features=True
    )
    if request.get("gradients"):
        from tace.gradient_features import gradient_features

        first = load_committee(request["models"]).members[0]
        features = gradient_features(first, frames, fidelity=request["fidelity"])
    else:
        features = np.stack([f.mean(0) for f in prediction.per_structure(prediction.features)])
    write_arrays(
        out,
        n_atoms=prediction.n_atoms,
        energies_eV=prediction.energies,
        mean_forces_eV_per_A=prediction.mean_forces,
        force_spread_eV_per_A=prediction.force_spread,
        features=features,
        cpu_s=(cpu_s := spent.cpu_s()),
        gpu_s=(gpu_s := spent.gpu_s()),
    )
    return _done(out, {"cpu_s": cpu_s, "gpu_s": gpu_s})


def write_arrays(path: Path, **arrays: np.ndarray | float) -> None:
    """npz, atomically."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_bytes(path, buffer.getvalue())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file in one step that survives a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """What `write_arrays` wrote."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def read_candidates(path: Path) -> dict[str, Any]:
    """What `explore` wrote."""
    document: dict[str, Any] = read_json(path)
    return document
