"""The physics of all labels of a store: what must be looked at before anything is trained on them.

`alchemy data check` reads the bytes of a store, this reads what they say. Findings have the reason words of
docs/trust.md; those that blame single labels can be set aside (`alchemy.quarantine`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from alchemy import audit_checks as checks
from alchemy.audit_checks import Finding, Named
from alchemy.datasets import labelled
from alchemy.identity import imported_fingerprint
from alchemy.quarantine import quarantined
from alchemy.records import finite_or_none
from alchemy.stages.code_versions import codes_in
from alchemy.stages.pool import label_noise
from alchemy.store import Snapshot
from tace.consistency import energy_force, energy_stress
from tace.wording import count

_ORDER = ("error", "warning", "note")


@dataclass(frozen=True)
class Expected:
    """What a campaign knows of its levels; a store alone knows nothing."""

    net_force_eV_per_A: Mapping[str, float] = field(default_factory=dict)
    accepted_codes: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Audit:
    """Findings, errors first, and the numbers of each level."""

    findings: list[Finding]
    levels: list[dict[str, Any]]

    @property
    def clean(self) -> bool:
        return all(finding.severity == "note" for finding in self.findings)

    def doubts(self) -> dict[str, tuple[str, str]]:
        """(reason, message) of the labels that findings blame, by key; the first finding counts."""
        found: dict[str, tuple[str, str]] = {}
        for finding in self.findings:
            for key, text in finding.labels.items() if finding.blames else ():
                found.setdefault(key, (finding.kind, text))
        return found


def audit(snapshot: Snapshot, *, only: str | None = None, expected: Expected | None = None) -> Audit:
    """Look at all good labels of a store, or of one level. Raises nothing for what it finds."""
    expected = expected or Expected()
    findings, levels, codes = [], [], codes_in(snapshot)
    aside = quarantined(snapshot)
    for level, marks in sorted(snapshot.levels().items()):
        if only not in (None, level):
            continue
        rows = snapshot.labels(fidelity=level)
        named = list(zip(rows, labelled(snapshot, rows), strict=True))
        first = [pair for pair in named if pair[0].replica == 0]
        findings += list(_physics(level, marks, codes.get(level, {}), expected))
        findings += list(_of_labels(level, first, expected))
        findings += list(checks.repeats(level, first, [row for row in rows if row.replica]))
        own = {row.key: row.status for row in aside if row.fidelity == level}
        if own:
            text = f"{count(len(own), 'label')} set aside already"
            findings.append(Finding("quarantined", "note", level, text, own))
        levels.append(_numbers(level, snapshot, first, codes.get(level, {}), len(own)))
    return Audit(sorted(findings, key=lambda f: _ORDER.index(f.severity)), levels)


def _of_labels(level: str, named: Named, expected: Expected) -> Iterator[Finding]:
    said: set[tuple[str, str]] = set()
    found = [
        *checks.by_themselves(level, named),
        *checks.against_limits(
            level, named, expected.net_force_eV_per_A.get(level), checks.isolated(named)
        ),
        *checks.swapped_species(level, named),
        *checks.as_a_set(level, named),
        *checks.near_each_other(level, named),
        *checks.of_their_structure(level, named),
        *checks.canonical_copies(level, named),
    ]
    for finding in found:
        # the same reason by two checks is one finding
        new = {k: v for k, v in finding.labels.items() if (finding.kind, k) not in said}
        said |= {(finding.kind, key) for key in new}
        if new or not finding.labels:
            yield Finding(
                finding.kind, finding.severity, level, finding.message, new, finding.blames
            )


def _physics(
    level: str, marks: Mapping[str, int], codes: Mapping[str, int], expected: Expected
) -> Iterator[Finding]:
    computed = {mark: n for mark, n in marks.items() if mark != imported_fingerprint(level)}
    if len(computed) > 1:
        parts = ", ".join(f"{n} of {mark[:8]}" for mark, n in computed.items())
        text = f"labels of several physics in one level: {parts}; a level is one physics"
        yield Finding("several-physics", "error", level, text, {})
    if computed and len(computed) < len(marks):
        text = (
            f"{sum(computed.values())} computed labels and {marks[imported_fingerprint(level)]} imported "
            "ones: that these are of the same physics is known from their name only"
        )
        yield Finding("imported-beside-computed", "note", level, text, {})
    if len(codes) > 1:
        accepted = set(codes) <= set(expected.accepted_codes.get(level, ()))
        parts = ", ".join(f"{n} by {code}" for code, n in codes.items())
        text = f"several versions of the program: {parts}" + (" (accepted)" if accepted else "")
        yield Finding("several-versions", "note" if accepted else "warning", level, text, {})


def _numbers(
    level: str, snapshot: Snapshot, named: Named, codes: Mapping[str, int], aside: int
) -> dict[str, Any]:
    frames = [frame for _, frame in named]
    net = [checks.net_force(f) for f in frames if f.forces_eV_per_A is not None and len(f.atoms) > 1]
    quantiles = np.quantile(net, [0.5, 0.95, 1.0]) if net else np.full(3, np.nan)
    force, stress = energy_force(frames), energy_stress(frames)
    return {
        "level": level,
        "labels": len(named),
        "set_aside": aside,
        "net_force_eV_per_A": dict(
            zip(("median", "p95", "largest"), map(finite_or_none, quantiles.tolist()), strict=True)
        ),
        "near_pairs": force.pairs,
        "energy_over_work": finite_or_none(force.slope) if force.known else None,
        "energy_over_stress_work": finite_or_none(stress.slope) if stress.known else None,
        "label_noise_eV_per_A": label_noise(snapshot, level),
        "codes": dict(codes),
    }
