"""Labels judged by more than themselves: further labels of the same level, near frames, the committee.

force    E(x + h d) − E(x − h d) over 2 h against F·d, on one label in `force_every`: two more labels.
repeat   one label in `repeat_every` again, as replica 1: the noise of labels, or several solutions.
suspect  a label far from what a calibrated committee expects, or whose energy fits neither its composition
         nor near frames, is repeated; it counts when both agree.
near     ΔE of near frames against the work of their forces: units and signs of a whole level, for nothing.

What fails is set aside with its reason before anything is trained on it (`alchemy.quarantine`). What is
checked is drawn from the campaign's seed and written down first, so that a restart checks the same.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from alchemy_policies.calibration import Calibration

from tace.consistency import REACH_A, energy_force, guesses

from ..audit_checks import strange_energies
from ..datasets import CHECK, ISOLATED, labelled
from ..errors import EnvironmentProblemError
from ..identity import label_key, structure_uid
from ..import_checks import contradicts
from ..quarantine import quarantine
from ..records import read_json, write_json_atomic
from ..state import RoundState
from ..store import EventRow, LabelRow, Snapshot, SplitRow
from . import code_versions, label
from .context import Context
from .pool import label_noise

FORCE, REPEAT, SUSPECT, NEAR = "force-energy-mismatch", "repeat-disagrees", "suspect", "near"
TOLERANCE_EV_PER_A, TOLERANCE_SHARE = 0.02, 0.05  # SCF noise of 1e-4 eV over 2 × 0.01 Å; anharmonicity
LEAST_FRAMES = 20  # labelled frames of a calibration before it may doubt a label
LEAST_ERROR_EV_PER_A = 0.01  # committees are never surer than that
LARGEST_SET = 4000  # frames that the near pairs are looked for in, the newest
PLAN = "trust.json"  # in the directory of a round

Request = tuple[str, str]


def check_labels(
    context: Context,
    state: RoundState,
    requests: Sequence[Request],
    calibration: Calibration | None = None,
) -> None:
    """All checks of a round's labels; what was found stands in the round's facts under 'trust'.

    Raises:
        InputError: a version of a program that was not accepted.
        EnvironmentProblemError: forces of a level are not the slope of its energies.
    """
    code_versions.require_known(context)
    state.facts["trust"] = {name: _empty() for name in context.fidelities}
    plan = _plan(context, state, requests, calibration)
    _check_forces(context, state, plan["force"])
    _check_repeats(context, state, plan["repeat"], REPEAT)
    _check_repeats(context, state, plan["suspect"], SUSPECT)
    if context.campaign.trust.neighbours:
        for name in context.fidelities:
            _check_near(context, state, name)
    snapshot = context.store.snapshot()
    for name, facts in state.facts["trust"].items():
        facts["label_noise_eV_per_A"] = label_noise(snapshot, name)


def _empty() -> dict[str, Any]:
    return {
        "force_checks": 0, "force_gap_eV_per_A": None, "repeats": 0, "suspects": 0, "cpu_s": 0.0,
        "quarantined": {}, "near_pairs": 0, "near_slope": None,
    }  # fmt: skip


def _plan(
    context: Context,
    state: RoundState,
    requests: Sequence[Request],
    calibration: Calibration | None,
) -> dict[str, list[list[str]]]:
    """Requests to check by each means: once drawn, they stand."""
    path = state.directory / PLAN
    if path.exists():
        found: dict[str, list[list[str]]] = read_json(path)
        return found
    trust, snapshot = context.campaign.trust, context.store.snapshot()
    plan: dict[str, list[list[str]]] = {"force": [], "repeat": [], "suspect": []}
    for name in context.fidelities:
        rows = _good(context, snapshot, [r for r in requests if r[1] == name])
        every = {"force": trust.force_every, "repeat": trust.repeat_every}
        for what, number in every.items():
            due = _due(context, snapshot, rows, name, number)
            rng = np.random.default_rng(context.seed(state.number, "trust", what, name))
            chosen = sorted(rng.choice(len(rows), due, replace=False).tolist()) if due else []
            plan[what] += [[rows[n].structure_uid, name] for n in chosen]
        doubted = set(_strange(context, snapshot, rows, name) if trust.neighbours else ())
        if calibration is not None:
            doubted |= set(_suspects(context, state, rows, name, calibration))
        plan["suspect"] += [[uid, name] for uid in sorted(doubted)]
    state.directory.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, plan)
    return plan


def _good(context: Context, snapshot: Snapshot, requests: Sequence[Request]) -> list[LabelRow]:
    """Good labels of requests, of more than an atom and with forces, by key."""
    keys = [label_key(uid, name, context.fingerprints[name]) for uid, name in requests]
    rows = snapshot.labels(keys=keys) if keys else []
    kept = [r for r in rows if r.forces_eV_per_A is not None and len(r.forces_eV_per_A) > 1]
    return sorted(kept, key=lambda row: row.key)


def _due(
    context: Context, snapshot: Snapshot, rows: Sequence[LabelRow], name: str, every: int | None
) -> int:
    """Checks of these labels, so that there is one in `every` of all labels of the level so far."""
    if every is None or not rows:
        return 0
    parts = snapshot.part_of()
    own = {row.key for row in rows}
    before = sum(
        row.replica == 0 and row.key not in own and parts.get(row.structure_uid) not in (CHECK, ISOLATED)
        for row in snapshot.labels(fidelity=name, status=None)
    )
    return min(len(rows), (before + len(rows)) // every - before // every)


def direction(forces_eV_per_A: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Unit vector [A,3] halfway between the forces' and a random one.

    Along the forces the energy changes most, so that a wrong sign or unit cannot hide; the random half
    meets forces of single atoms that are wrong.
    """
    drawn = rng.normal(size=forces_eV_per_A.shape)
    drawn /= np.linalg.norm(drawn)
    size = float(np.linalg.norm(forces_eV_per_A))
    along = drawn + forces_eV_per_A / size if size > 0 else drawn
    return np.asarray(along / np.linalg.norm(along))


def _check_forces(context: Context, state: RoundState, chosen: Sequence[Sequence[str]]) -> None:
    snapshot, step = context.store.snapshot(), context.campaign.trust.force_step_A
    pairs: list[tuple[LabelRow, list[Any]]] = []
    for uid, name in chosen:
        row = snapshot.label(label_key(uid, name, context.fingerprints[name]))
        if row is None or row.forces_eV_per_A is None:
            continue
        rng = np.random.default_rng(context.seed("trust", "direction", row.key))
        along, atoms = direction(row.forces_eV_per_A, rng), snapshot.structure(uid)
        moved = []
        for sign in (1, -1):
            copy = atoms.copy()
            copy.positions += sign * step * along
            moved.append(copy)
        pairs.append((row, moved))
    if not pairs:
        return
    now, frames = time.time(), [atoms for _, moved in pairs for atoms in moved]
    about = [
        EventRow(structure_uid(a), "check", parent_uid=row.structure_uid, sampler="force",
                 round=state.number, time=now)
        for row, moved in pairs for a in moved
    ]  # fmt: skip
    known = snapshot.atom_counts([event.structure_uid for event in about])
    context.store.append(
        structures=frames,
        splits=[SplitRow(structure_uid(a), CHECK, now) for a in frames if structure_uid(a) not in known],
        events=[event for event in about if event.structure_uid not in known],
    )
    wanted = [(structure_uid(a), row.fidelity) for row, moved in pairs for a in moved]
    label.label(context, wanted, what="force checks")
    after = context.store.snapshot()
    doubts = {}
    for row, moved in pairs:
        found = _force_gap(context, state, after, row, moved)
        if found:
            doubts[row.key] = (FORCE, found)
    _set_aside(context, state, after, doubts)
    for name, facts in state.facts["trust"].items():
        if facts["force_checks"] >= 2 and facts["quarantined"].get(FORCE, 0) == facts["force_checks"]:
            raise EnvironmentProblemError(
                f"fidelity '{name}': none of {facts['force_checks']} checked labels has forces that are the "
                f"slope of its energy: {'; '.join(text for _, text in doubts.values())[:600]}"
            )


def _force_gap(
    context: Context, state: RoundState, snapshot: Snapshot, row: LabelRow, moved: Sequence[Any]
) -> str:
    """What is wrong with a label's forces by the labels beside it; '' where nothing is."""
    uids, facts = [structure_uid(atoms) for atoms in moved], state.facts["trust"][row.fidelity]
    ends = [snapshot.label(label_key(uid, row.fidelity, row.fingerprint)) for uid in uids]
    facts["cpu_s"] += sum(end.cpu_s for end in ends if end is not None)
    energies = [end.energy_eV for end in ends if end is not None and end.status == "ok"]
    if len(energies) < 2 or None in energies or row.forces_eV_per_A is None:
        return ""  # the failures stand in the store; they say nothing of this label
    stored = snapshot.structures(uids)
    span = stored[0].positions - stored[1].positions
    length = float(np.linalg.norm(span))
    asked = float((row.forces_eV_per_A * span).sum()) / length
    measured = -(energies[0] - energies[1]) / length  # type: ignore[operator]
    labeler = context.labelers[row.fidelity]
    least = max(TOLERANCE_EV_PER_A, labeler.net_force_eV_per_A_per_atom)
    limit = context.campaign.trust.force_tolerance_eV_per_A or least
    gap = abs(asked - measured)
    facts["force_checks"] += 1
    facts["force_gap_eV_per_A"] = max(gap, facts["force_gap_eV_per_A"] or 0.0)
    if gap <= limit + TOLERANCE_SHARE * abs(measured):
        return ""
    likely = guesses(measured / asked, what="forces", n_atoms=len(moved[0])) if asked else []
    why = f"; most likely {' or '.join(likely[:2])}" if likely else ""
    return f"the force along a displacement is {asked:.4g} eV/Å, the slope of the energy {measured:.4g}{why}"


def _check_repeats(
    context: Context, state: RoundState, chosen: Sequence[Sequence[str]], reason: str
) -> None:
    """Repeat labels; where the repeat contradicts one, a third calculation decides.

    A label is set aside when the two repeats agree against it; when all three differ that is the noise of
    the level, and only a label that was suspect to begin with falls.
    """
    requests = [(uid, name) for uid, name in chosen]
    if not requests:
        return
    what = "repeats" if reason == REPEAT else "repeats of suspects"
    label.label(context, requests, what=what, replica=1)
    doubted = [r for r in requests if _differs(context, r, 0, 1)]
    label.label(context, doubted, what=what, replica=2)
    doubts = {}
    for uid, name in doubted:
        how = _differs(context, (uid, name), 0, 2)
        if how and (reason == SUSPECT or not _differs(context, (uid, name), 1, 2)):
            doubts[label_key(uid, name, context.fingerprints[name])] = (reason, f"computed again, {how}")
    snapshot = context.store.snapshot()
    for uid, name in requests:
        facts = state.facts["trust"][name]
        facts["repeats" if reason == REPEAT else "suspects"] += 1
        keys = [label_key(uid, name, context.fingerprints[name], k) for k in (1, 2)]
        facts["cpu_s"] += sum(row.cpu_s for row in snapshot.labels(status=None, keys=keys))
    _set_aside(context, state, snapshot, doubts)


def _differs(context: Context, request: Request, *replicas: int) -> str:
    """How two calculations of a label contradict each other; '' where they do not."""
    snapshot, (uid, name) = context.store.snapshot(), request
    mark = context.fingerprints[name]
    first, again = (snapshot.label(label_key(uid, name, mark, k)) for k in replicas)
    if first is None or again is None or again.energy_eV is None:
        return f"it fails: {again.status}" if again is not None else "it left no record"
    return contradicts(first, again)


def _suspects(
    context: Context,
    state: RoundState,
    rows: Sequence[LabelRow],
    name: str,
    calibration: Calibration,
) -> list[str]:
    """Structures whose error is many times the expected one, and the batch's typical share of it."""
    limit = context.campaign.trust.suspect
    if limit is None or not rows or calibration.pooled.frames < LEAST_FRAMES or name != context.target:
        return []
    uids = [row.structure_uid for row in rows]
    scores = context.score(state.number, uids, name, name=f"trust-{name}")
    forces = scores.per_structure(scores.mean_forces_eV_per_A)
    spreads = scores.per_structure(scores.force_spread_eV_per_A)
    frames = labelled(context.store.snapshot(), rows)
    ratios = []
    for frame, mean, spread in zip(frames, forces, spreads, strict=True):
        error = np.linalg.norm(frame.forces_eV_per_A - mean, axis=1)
        expected = calibration.expected_error(frame.atoms.numbers, spread)
        rms = [float(np.sqrt((x**2).mean())) for x in (error, expected)]
        ratios.append(rms[0] / max(rms[1], LEAST_ERROR_EV_PER_A))
    bar = limit * max(1.0, float(np.median(ratios)))
    return [uid for uid, ratio in zip(uids, ratios, strict=True) if ratio > bar]


def _strange(
    context: Context, snapshot: Snapshot, rows: Sequence[LabelRow], name: str
) -> list[str]:
    """Structures of these labels whose energies fit neither their composition nor near frames."""
    if context.campaign.trust.suspect is None or not rows:
        return []
    every = _of_level(context, snapshot, name)
    found = strange_energies(name, list(zip(every, labelled(snapshot, every), strict=True)))
    return [row.structure_uid for row in rows if row.key in found]


def _of_level(context: Context, snapshot: Snapshot, name: str) -> list[LabelRow]:
    """The newest good labels of a level that were computed here."""
    mark = context.fingerprints[name]
    rows = [r for r in snapshot.labels(fidelity=name) if r.replica == 0 and r.fingerprint == mark]
    return sorted(rows, key=lambda row: (row.created, row.key))[-LARGEST_SET:]


def _check_near(context: Context, state: RoundState, name: str) -> None:
    """Units and sign of a level's forces, from pairs of near frames."""
    snapshot = context.store.snapshot()
    rows = _of_level(context, snapshot, name)
    slope = energy_force(labelled(snapshot, rows))
    facts = state.facts["trust"][name]
    facts["near_pairs"] = slope.pairs
    if not slope.known:
        return
    facts["near_slope"] = slope.slope
    size = float(np.median([len(r.forces_eV_per_A) for r in rows if r.forces_eV_per_A is not None]))
    likely = guesses(slope.slope, what="forces", n_atoms=size)
    # of pairs farther apart the trapezoid rule may be off by as much: those do not end a campaign
    if slope.wrong and slope.reach_A <= REACH_A[1] and likely:
        raise EnvironmentProblemError(
            f"fidelity '{name}': energies of near frames change by {slope.slope:.4g} times the work of their "
            f"forces ({slope.pairs} pairs; should be 1), most likely {' or '.join(likely[:2])}: "
            "its labels contradict themselves, so that no more are bought. Correct the template or the "
            "calculator and give the level a new name; trust: {neighbours: false} goes on regardless"
        )


def _set_aside(
    context: Context, state: RoundState, snapshot: Snapshot, doubts: dict[str, tuple[str, str]]
) -> None:
    for row in snapshot.labels(status=None, keys=list(doubts)) if doubts else []:
        own = state.facts["trust"][row.fidelity]["quarantined"]
        own[doubts[row.key][0]] = own.get(doubts[row.key][0], 0) + 1
        context.progress.message(f"set aside: {row.fidelity} label {row.key[:8]}: {doubts[row.key][1]}")
    quarantine(context.store, doubts)
