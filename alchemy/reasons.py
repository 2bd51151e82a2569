"""Why a frame was offered, bought, left or lost, and why a campaign stopped: `alchemy why`, in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from alchemy.errors import InputError
from alchemy.identity import content_hash
from alchemy.records import read_json
from alchemy.selection import read_pool
from alchemy.stages.decide import POOL
from alchemy.state import Home, RoundState
from alchemy.store import EventRow, Snapshot, Store
from tace.wording import count

WORDS = {
    "error": "for its expected error",
    "coverage": "because it holds atoms in surroundings that training hardly had",
    "energy-spread": "because the members disagree on its energy, though not on its forces",
    "saddle": "as the saddle of a reaction, whose label says whether the model is right there",
    "random": "in the random slice, which keeps the error estimate honest",
    "near-duplicate": "a frame like it is trained on or was bought in the same round (select.dedup)",
    "near-test": "a frame like it is in the test set: trained on, it would flatter the test error",
    "not-finite": "the committee's prediction for it is not a number",
    "absurd-force": "its largest force exceeds select.max_force",
    "below-threshold": "the committee is sure enough of it (select.threshold)",
    "above-window": "its model deviation exceeds select.high",
    "budget": "others were worth more, and the round's labels were used up (select.per_round)",
}


def why(home: Home, what: str) -> dict[str, Any]:
    """The answer to 'stop', to the first characters of a structure's uid, or to those of a label's key.

    Returns:
        `about`, and `lines` for people; what the lines say stands beside them as data.
    """
    subject = what.partition(":")[2] if what.startswith(("frame:", "job:")) else what
    if subject == "stop":
        return why_stop(home)
    snapshot = Store(home.store).snapshot()
    uid = _structure(snapshot, subject)
    return {"about": uid, **_frame(home, snapshot, uid)}


def _structure(snapshot: Snapshot, text: str) -> str:
    uids = [uid for uid in snapshot.uids() if uid.startswith(text)]
    keys = {row.structure_uid for row in snapshot.labels(status=None) if row.key.startswith(text)}
    found = sorted({*uids, *keys})
    if len(found) == 1 and text:
        return found[0]
    if not found or not text:
        raise InputError(f"'{text}': no structure and no label begins so; write 'stop' or a uid of the store")
    near = ", ".join(uid[:12] for uid in found[:5])
    raise InputError(f"'{text}' fits {len(found)} structures ({near}, …); give more characters")


def _frame(home: Home, snapshot: Snapshot, uid: str) -> dict[str, Any]:
    atoms = snapshot.structure(uid)
    part = snapshot.part_of().get(uid)
    events = [event for event in snapshot.events() if event.structure_uid == uid]
    lines = [f"{uid}: {atoms.get_chemical_formula()}, {count(len(atoms), 'atom')}, {_part(part)}"]
    for event in events:
        lines += _event(home, snapshot, event)
    labels = [row for row in snapshot.labels(status=None) if row.structure_uid == uid]
    for row in labels:
        ok = row.status == "ok"
        result = f"{row.energy_eV:.6f} eV" if ok and row.energy_eV is not None else f"failed: {row.status}"
        cost = f"{row.cpu_s:.3g} CPU s, {row.code}"
        lines.append(f"label {row.fidelity} (key {row.key[:12]}): {result}, {cost}")
    failures = [row for row in snapshot.failures() if row.structure_uid == uid]
    for failure in failures:
        lines.append(f"failure at {failure.stage} {failure.fidelity}: {failure.reason}: {failure.message}")
    if not labels and any(event.kind == "selected" for event in events) and not failures:
        lines.append("no label yet: it was chosen and not computed")
    return {
        "part": part,
        "events": [vars(event) for event in events],
        "labels": [
            {"key": r.key, "fidelity": r.fidelity, "status": r.status, "cpu_s": r.cpu_s} for r in labels
        ],
        "failures": [vars(failure) for failure in failures],
        "lines": lines,
    }


def _part(part: str | None) -> str:
    return {"train": "trained on", "test": "in the test set", None: "in neither set"}.get(part, str(part))


def _event(home: Home, snapshot: Snapshot, event: EventRow) -> Iterator[str]:
    here = f"round {event.round}: "
    if event.kind == "candidate":
        parent = f", started from {event.parent_uid[:12]}" if event.parent_uid else ""
        step = f" at step {event.step}" if event.step >= 0 else ""
        heat = f" of {event.temperature_K:.0f} K" if event.temperature_K > 0 else ""  # 0: no walk
        yield f"{here}offered by {event.sampler}{heat} ({event.reason}){step}{parent}"
    elif event.kind == "selected":
        yield f"{here}selected {WORDS.get(event.reason, event.reason)}"
        yield from _scores(home, snapshot, event)
    elif event.kind == "rejected":
        why_not = WORDS.get(event.reason, event.reason.replace("quota of", "select.quota is used up:"))
        yield f"{here}not selected: {why_not}"
        yield from _scores(home, snapshot, event)
    elif event.kind == "start":
        yield f"{here}a structure of the campaign file, for {event.sampler}"
    else:
        yield f"{here}{event.kind} {event.reason}".rstrip()


def _scores(home: Home, snapshot: Snapshot, event: EventRow) -> Iterator[str]:
    """Expected error, rank, threshold, and the atom that it is about."""
    path = home.round(event.round) / POOL
    if not path.exists():
        return
    pool, facts = read_pool(path)
    if event.structure_uid not in pool.uids:
        return
    n = pool.uids.index(event.structure_uid)
    error = pool.expected_error_eV_per_A
    rank = int((error > error[n]).sum()) + 1
    threshold = facts["select"]["threshold_eV_per_A"]
    yield (
        f"  expected force error {1e3 * error[n]:.3g} meV/Å, rank {rank} of {len(error)}; threshold "
        f"{1e3 * threshold:.3g} meV/Å, largest force {pool.max_force_eV_per_A[n]:.3g} eV/Å"
    )
    torn, usual = pool.energy_spread_eV_per_atom, pool.train_energy_spread_eV_per_atom
    if torn is not None and usual is not None and len(usual):
        yield (
            f"  the members' energies spread by {1e3 * torn[n]:.3g} meV/atom; the median over training "
            f"frames is {1e3 * np.median(usual):.3g}"
        )
    facts_of_campaign = read_json(home.facts)
    members = len(list(home.models(event.round).glob("member-*.pt")))
    model_set = content_hash(["committee", facts_of_campaign["name"], event.round, members])
    for row in snapshot.predictions(model_set):
        if row.structure_uid == event.structure_uid and np.isfinite(row.force_std_eV_per_A).all():
            atom = int(row.force_std_eV_per_A.argmax())
            symbol = chemical_symbols[snapshot.structure(row.structure_uid).numbers[atom]]
            spread = float(row.force_std_eV_per_A[atom])
            yield f"  the members differ most on atom {atom} ({symbol}): {1e3 * spread:.3g} meV/Å"
            break


def why_stop(home: Home) -> dict[str, Any]:
    """The rule that ended the campaign, or what every round measured so far."""
    numbers = home.rounds()
    if not numbers:
        raise InputError(f"{home.path}: no round has begun")
    last = RoundState(home, numbers[-1])
    stop = last.facts.get("stop") or (last.outputs("assess") or {}).get("stop")
    lines = []
    if stop:
        codes = {0: "done", 4: "budget used up", 5: "stalled", 6: "limited by the model"}
        lines.append(
            f"stopped by {stop['rule']} after round {numbers[-1]}: {stop['message']} "
            f"(exit code {stop['exit_code']}, {codes.get(stop['exit_code'], 'unknown')})"
        )
    else:
        stages = ", ".join(last.stages) or "none"
        lines.append(f"not stopped: in round {numbers[-1]}, finished stages: {stages}")
    for number in numbers[1:]:
        lines.append(f"round {number}: {_progress(RoundState(home, number).facts)}")
    return {"about": "stop", "stop": stop, "lines": lines}


def _progress(facts: dict[str, Any]) -> str:
    target = facts.get("target")
    fresh = facts.get("fresh", {}).get(target, {})
    random, test = fresh.get("random", {}), facts.get("test", {}).get(target, {})
    elements = random.get("element_force_rmse_eV_per_A") or {}
    worst = max(elements, key=lambda symbol: elements[symbol], default=None)
    parts = {
        "test": test.get("force_rmse_eV_per_A"),
        "fresh": fresh.get("force_rmse_eV_per_A"),
        "fresh random": random.get("force_rmse_eV_per_A"),
        f"worst element {worst}": elements.get(worst) if worst else None,
    }
    said = [f"{name} {1e3 * value:.3g}" for name, value in parts.items() if value is not None]
    text = f"force RMSE in meV/Å: {', '.join(said)}" if said else "no errors measured yet"
    coverage = random.get("coverage_90")
    labels = facts.get("cost", {}).get("cumulative_labels", {})
    text += f"; 90 % bounds hold {coverage:.0%}" if coverage is not None else ""
    return text + "".join(f"; {n} {name} labels" for name, n in labels.items())
