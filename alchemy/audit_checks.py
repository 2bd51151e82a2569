"""What labels of one level say about each other and about themselves: the checks of `alchemy data audit`.

Each takes labels with their rows and yields findings. A finding blames labels by key, or the level.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii

from alchemy.audit_forces import witness
from alchemy.gate import Gate
from alchemy.identity import canonical_uids
from alchemy.import_checks import contradicts, defects
from alchemy.store import LabelRow
from tace.checks import check_labels, outliers
from tace.consistency import near_pairs
from tace.data import Labelled
from tace.wording import count

Severity = Literal["error", "warning", "note"]
Named = Sequence[tuple[LabelRow, Labelled]]

# |ΔE − work| of near frames in units of what the curvature between them leaves open. Too far is this much
# (published sets: 3.05 at most), or so many times what 95 % of the pairs of the set have (0.05 to 1.2)
NEAR_EV, NEAR_SHARE, NEAR_SCORE, NEAR_TIMES, NEAR_PAIRS = 0.03, 0.2, 3.2, 6.0, 2
SQUEEZED = 0.9  # a bond of swapped species, in units of the atom's that stands there elsewhere
_WORDS = {  # kinds of tace.checks -> reason words
    "not_finite": "not-finite",
    "shape": "wrong-shape",
    "cell": "bad-cell",
    "overlap": "overlapping-atoms",
    "close": "overlapping-atoms",
    "zero_forces": "zeroed-forces",
    "single_atom": "force-on-an-atom",
    "energy_outlier": "energy-outlier",
    "force_outlier": "force-outlier",
    "energy_force": "force-energy-mismatch",
    "energy_stress": "stress-energy-mismatch",
    "label_noise": "duplicate-disagrees",
}
_OF_LABELS = (
    "not-finite", "wrong-shape", "bad-cell", "overlapping-atoms", "zeroed-forces", "force-on-an-atom",
    "energy-outlier", "force-outlier",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """error, warning: must be looked at; note: good to know."""

    kind: str
    severity: Severity
    fidelity: str
    message: str
    labels: Mapping[str, str]  # key -> what is wrong with it, worst first
    blames: bool = False  # its labels, and not the level: what --quarantine sets aside


def by_themselves(level: str, named: Named) -> Iterator[Finding]:
    """Checks of the import, for labels that came another way or before there were any."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for row, frame in named:
        for reason, text in defects(frame):
            found[reason].setdefault(row.key, text)
    for reason, labels in found.items():
        yield Finding(reason, "error", level, f"{reason} in {count(len(labels), 'label')}", labels, True)


def against_limits(
    level: str, named: Named, limit_eV_per_A: float | None, e0_eV: Mapping[str, float]
) -> Iterator[Finding]:
    """Net forces beyond the labeler's limit, energies beyond any binding."""
    pushed, far = {}, {}
    most = Gate().max_binding_eV_per_atom
    for row, frame in named:
        if frame.forces_eV_per_A is not None and limit_eV_per_A is not None and len(frame.atoms) > 1:
            net = net_force(frame)
            if net > limit_eV_per_A and "electric_field" not in frame.atoms.info:
                pushed[row.key] = f"forces sum to {net:.3g} eV/Å per atom, more than {limit_eV_per_A:.3g}"
        symbols = frame.atoms.get_chemical_symbols()
        if frame.energy_eV is not None and most is not None and all(s in e0_eV for s in symbols):
            binding = (frame.energy_eV - sum(e0_eV[s] for s in symbols)) / len(symbols)
            if abs(binding) > most:
                far[row.key] = f"energy is {binding:+.4g} eV per atom from isolated atoms, beyond {most:g}"
    for reason, labels in (("net-force", pushed), ("energy-implausible", far)):
        if labels:
            yield Finding(reason, "error", level, f"{reason} in {count(len(labels), 'label')}", labels, True)


def net_force(frame: Labelled) -> float:
    """|ΣF| / A, eV/Å."""
    forces = np.zeros((1, 3)) if frame.forces_eV_per_A is None else frame.forces_eV_per_A
    return float(np.linalg.norm(forces.sum(axis=0))) / len(forces)


def as_a_set(level: str, named: Named) -> Iterator[Finding]:
    """Those of training: units and signs, outliers of a fit to compositions, sizes, copies."""
    frames = [replace(frame, name=row.key, fidelity="default") for row, frame in named]
    for found in check_labels(frames):
        kind = _WORDS.get(found.kind, found.kind.replace("_", "-"))
        labels = {text.partition(":")[0].partition(" ")[0]: text for text in found.frames}
        details = {k: text.partition(": ")[2] or found.message for k, text in labels.items()}
        yield Finding(kind, found.severity, level, found.message, details, kind in _OF_LABELS)


def strange_energies(level: str, named: Named) -> set[str]:
    """Keys of labels whose energy fits neither their composition nor near frames: worth a second look."""
    outside = outliers([(row.key, frame) for row, frame in named])
    far = {text.partition(":")[0] for one in outside if one.kind == "energy_outlier" for text in one.frames}
    return far | {key for found in near_each_other(level, named) for key in found.labels}


def near_each_other(level: str, named: Named) -> Iterator[Finding]:
    """Labels whose energy fits none of the frames near them, while those fit each other."""
    frames = [frame for _, frame in named]
    pairs = near_pairs(frames, reach_A=0.5)
    score = np.abs(pairs.delta - pairs.work) / (NEAR_EV + NEAR_SHARE * pairs.bend)
    ends = np.concatenate([pairs.i, pairs.j])
    twice = np.concatenate([score, score])
    far = max(NEAR_SCORE, NEAR_TIMES * float(np.quantile(score, 0.95))) if len(score) else NEAR_SCORE
    off = {}
    for frame in np.unique(ends[twice > far]).tolist():
        own = (pairs.i == frame) | (pairs.j == frame)
        others = np.where(pairs.i[own] == frame, pairs.j[own], pairs.i[own])
        fit = [bool(((ends == other) & (twice < far / 2)).any()) for other in others.tolist()]
        order = np.argsort(pairs.bend[own])[: max(NEAR_PAIRS, int(own.sum()) // 2)]  # the telling half
        if own.sum() >= NEAR_PAIRS and (score[own][order] > far).all() and all(np.array(fit)[order]):
            gap = float(np.median(np.abs(pairs.delta - pairs.work)[own]))
            text = f"its energy is {gap:.3g} eV from what {int(own.sum())} near frames and their forces give"
            off[named[frame][0].key] = text
    if off:
        text = f"energies that fit no near frame in {count(len(off), 'label')}"
        yield Finding("near-mismatch", "warning", level, text, off, True)


def of_their_structure(level: str, named: Named) -> Iterator[Finding]:
    """Forces that a pair force fitted to all labels does not recognise."""
    off = {}
    for members, seen in witness([frame for _, frame in named]):
        for n, how in seen.wild().items():
            off[named[int(members[n])][0].key] = f"its forces are not what others say of its structure: {how}"
    if off:
        text = f"forces of another sign, unit or structure in {count(len(off), 'label')}"
        yield Finding("force-mismatch", "warning", level, text, off, True)


def canonical_copies(level: str, named: Named) -> Iterator[Finding]:
    """The same structure under another order of atoms, in another periodic image, or rounded."""
    frames = [frame.atoms for _, frame in named]
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for n, (canon, (row, _)) in enumerate(zip(canonical_uids(frames), named, strict=True)):
        groups[canon, repr(sorted((k, np.asarray(v).tolist()) for k, v in row.conditions.items()))].append(n)
    same: dict[str, str] = {}
    differ: dict[str, str] = {}
    for members in groups.values():
        first = named[members[0]][0]
        for n in members[1:]:
            row = named[n][0]
            if row.structure_uid == first.structure_uid:
                continue  # check_labels has seen it
            how = _energies_differ(first, row, len(frames[n]))
            (differ if how else same)[row.key] = f"the structure of {first.key}{': ' + how if how else ''}"
    if differ:
        text = f"{count(len(differ), 'structure')} again in another order, with another energy"
        yield Finding("duplicate-disagrees", "warning", level, text, differ)
    if same:
        text = f"{count(len(same), 'structure')} again in another order or image"
        yield Finding("duplicate", "note", level, text, same)


def _energies_differ(row: LabelRow, other: LabelRow, n_atoms: int) -> str:
    """Forces are in another order, energies are not."""
    stand_in = np.zeros((n_atoms, 3))
    return contradicts(*(replace(r, forces_eV_per_A=stand_in) for r in (row, other)))


def repeats(level: str, named: Named, copies: Sequence[LabelRow]) -> Iterator[Finding]:
    """Deliberate repeats that contradict their label."""
    first = {(row.structure_uid, row.fingerprint): row for row, _ in named}
    off = {}
    for row in copies:
        own = first.get((row.structure_uid, row.fingerprint))
        if own is not None and (how := contradicts(own, row)):
            off[own.key] = f"computed again, {how}"
    if off:
        text = f"repeats that differ beyond convergence, of {count(len(off), 'label')}"
        yield Finding("repeat-disagrees", "warning", level, text, off)


def swapped_species(level: str, named: Named) -> Iterator[Finding]:
    """Frames that are another one with its species on each other's places.

    Evidence, all of it needed: a near frame of the usual order of species, an energy that fits its forces,
    and bonds that are too short for the species as given. Elements of one size cannot be told so.
    """
    groups: dict[tuple[bytes, bytes], list[int]] = defaultdict(list)
    for n, (_, frame) in enumerate(named):
        if frame.energy_eV is not None and frame.forces_eV_per_A is not None:
            groups[np.sort(frame.atoms.numbers).tobytes(), frame.atoms.pbc.tobytes()].append(n)
    off: dict[str, str] = {}
    for members in groups.values():
        orders = Counter(named[n][1].atoms.numbers.tobytes() for n in members)
        usual, times = orders.most_common(1)[0]
        odd = [n for n in members if named[n][1].atoms.numbers.tobytes() != usual]
        if times < 2 or not odd:
            continue
        some = [n for n in members if named[n][1].atoms.numbers.tobytes() == usual]
        numbers = np.frombuffer(usual, named[some[0]][1].atoms.numbers.dtype)
        off |= _disguised(named, some, odd, numbers)
    if off:
        text = f"species on each other's places in {count(len(off), 'label')}"
        yield Finding("swapped-species", "error", level, text, off, True)


def _disguised(
    named: Named, usual: Sequence[int], odd: Sequence[int], numbers: np.ndarray
) -> dict[str, str]:
    frames = [named[n][1] for n in usual]
    for n in odd:
        atoms: Atoms = named[n][1].atoms.copy()
        atoms.numbers[:] = numbers
        frames.append(replace(named[n][1], atoms=atoms))
    pairs = near_pairs(frames, reach_A=0.5)
    score = np.abs(pairs.delta - pairs.work) / (NEAR_EV + NEAR_SHARE * pairs.bend)
    found = {}
    for i, j in zip(pairs.i[score < 1].tolist(), pairs.j[score < 1].tolist(), strict=True):
        one, other = min(i, j), max(i, j)
        if one < len(usual) <= other:
            row, own = named[odd[other - len(usual)]]
            moved = own.atoms.numbers != numbers
            share = _tightness(own.atoms)[moved] / _tightness(frames[one].atoms)[moved]
            if share.min() < SQUEEZED:
                key = named[usual[one]][0].key
                found[row.key] = f"its atoms stand where those of {key} do, its species do not"
    return found


def _tightness(atoms: Atoms) -> np.ndarray:
    """Of each atom the shortest distance in units of the sum of covalent radii."""
    distance = atoms.get_all_distances(mic=bool(atoms.pbc.any()))
    radii = covalent_radii[atoms.numbers]
    np.fill_diagonal(distance, np.inf)
    return np.asarray((distance / (radii[:, None] + radii)).min(axis=1))


def isolated(named: Named) -> dict[str, float]:
    """Energies of single atoms that are not periodic, eV, by symbol."""
    symbols = {number: symbol for symbol, number in atomic_numbers.items()}
    return {
        symbols[int(frame.atoms.numbers[0])]: frame.energy_eV
        for _, frame in named
        if len(frame.atoms) == 1 and not frame.atoms.pbc.any() and frame.energy_eV is not None
    }
