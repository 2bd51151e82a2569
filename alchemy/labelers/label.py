"""Label one structure once. Plain function, runs on a worker, knows nothing of schedulers.

The directory `root/<label key>` holds the code's input and output, and `record.json`, written last.
What a failed attempt left is in `failed-<attempt>` once the next one has begun.
"""

from __future__ import annotations

import os
import platform
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from ase import Atoms

from alchemy.errors import AlchemyError, EnvironmentProblemError
from alchemy.gate import Finding, Gate
from alchemy.identity import content_hash, label_key, structure_uid
from alchemy.labelers import staging
from alchemy.labelers.base import Labeler, LabelFailureError, LabelResult
from alchemy.records import FILE_NAME, LabelRecord

TRACEBACK_LINES = 12


@dataclass(frozen=True)
class _Outcome:
    result: LabelResult | None
    reason: str
    message: str
    wall_s: float
    cpu_s: float


def label_structure(
    atoms: Atoms,
    *,
    fidelity: str,
    labeler: Labeler,
    root: Path,
    gate: Gate,
    replica: int = 0,
    attempt: int = 1,
    e0_eV: Mapping[str, float] | None = None,
) -> LabelRecord:
    """The label of `atoms`: read if it exists, computed otherwise; a failure is a record too.

    A recorded failure is final for its attempt: only a higher `attempt` computes again. Raises when
    the machinery is broken (disk full, package missing, wrong template), and then nothing is
    recorded.
    """
    physics = labeler.physics()
    uid, mark = structure_uid(atoms), content_hash(physics)
    key = label_key(uid, fidelity, mark, replica)
    directory = root / key
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / FILE_NAME).exists():
        record = LabelRecord.read(directory)
        if record.status == "ok" or attempt <= record.attempt:
            return record
        _set_aside(directory, attempt=record.attempt)
    outcome = _attempt(atoms, labeler, directory, _limits(gate, labeler), e0_eV)
    result = outcome.result
    bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    bare.info.update({k: v for k, v in staging.structure_variables(atoms).items() if v})
    record = LabelRecord(
        key=key,
        structure_uid=uid,
        fidelity=fidelity,
        fingerprint=mark,
        replica=replica,
        attempt=attempt,
        status="ok" if result else "failed",
        reason=outcome.reason,
        message=outcome.message,
        energy_eV=result.energy_eV if result else None,
        energy_kind=result.energy_kind if result else None,
        forces_eV_per_A=result.forces_eV_per_A if result else None,
        stress_eV_per_A3=result.stress_eV_per_A3 if result else None,
        dipole_eA=result.dipole_eA if result else None,
        wall_s=outcome.wall_s,
        cpu_s=outcome.cpu_s,
        code=labeler.code(),
        host=platform.node(),
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        atoms=bare,
        physics=physics,
    )
    record.write(directory)
    return record


def _limits(gate: Gate, labeler: Labeler) -> Gate:
    if gate.net_force_eV_per_A_per_atom is not None:
        return gate
    return replace(gate, net_force_eV_per_A_per_atom=labeler.net_force_eV_per_A_per_atom)


def _set_aside(directory: Path, *, attempt: int) -> None:
    """Keep a failed attempt's files. Its record moves last, so that a kill in between is redone."""
    grave = directory / f"failed-{attempt}"
    grave.mkdir(exist_ok=True)
    entries = [p for p in sorted(directory.iterdir()) if not p.name.startswith("failed-")]
    for path in sorted(entries, key=lambda p: p.name == FILE_NAME):
        os.replace(path, grave / path.name)


def _attempt(
    atoms: Atoms,
    labeler: Labeler,
    directory: Path,
    gate: Gate,
    e0_eV: Mapping[str, float] | None,
) -> _Outcome:
    """Calculate and judge. Every way to fail that is the structure's own ends in an outcome."""
    wall, cpu = time.perf_counter(), staging.cpu_seconds()
    result, findings, cost = None, gate.check_structure(atoms), None
    if not findings:
        try:
            labeler.write_input(atoms, directory)
            # a worker killed between output and record has done the expensive part
            cost = staging.finished_cost(directory)
            if cost is None:
                labeler.run(directory)
            result = labeler.read(atoms, directory)
            findings = gate.check(atoms, result, e0_eV)
        except LabelFailureError as failure:
            findings = [(failure.reason, failure.message)]
        except (AlchemyError, OSError):
            raise
        except (ImportError, MemoryError) as error:
            raise EnvironmentProblemError(f"labeler '{labeler.name}': {error!r}") from error
        except Exception as error:
            findings = [("engine-error", _last_lines(error))]
    wall_s, cpu_s = cost or (time.perf_counter() - wall, staging.cpu_seconds() - cpu)
    reason, message = _joined(findings)
    return _Outcome(None if findings else result, reason, message, wall_s, cpu_s)


def _joined(findings: list[Finding]) -> tuple[str, str]:
    """The first finding's reason, all findings' messages."""
    if not findings:
        return "", ""
    return findings[0][0], "; ".join(message for _, message in findings)


def _last_lines(error: Exception) -> str:
    lines = "".join(traceback.format_exception(error)).strip().splitlines()
    return "\n".join(lines[-TRACEBACK_LINES:])
