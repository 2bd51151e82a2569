"""Rounds played again from what their selectors saw: `alchemy whatif`, and changed settings for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from alchemy_policies.base import Pool
from pydantic import ValidationError

from alchemy.config_errors import problems_in
from alchemy.config_select import Select
from alchemy.errors import InputError
from alchemy.selection import divide, make_selector, needs_gradients, read_pool
from alchemy.stages.decide import POOL
from alchemy.state import Home
from tace.documents import dotted, read_value

_NOT_REPLAYED = ("fidelity_choice", "cost_per_round")


def changed(recorded: Mapping[str, Any], settings: Sequence[str], *, target: str) -> Select:
    """The recorded block with `KEY=VALUE` settings in place, written as in the campaign file.

    Raises:
        InputError: a setting that is none, or that changes what was not recorded.
    """
    given: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting}: write KEY=VALUE, such as threshold='20 meV/A'")
        if key in _NOT_REPLAYED:
            raise InputError(f"--set {key}: shares of the levels are not replayed; set per_round instead")
        try:
            given[key] = read_value(text)
        except ValueError as error:
            raise InputError(f"--set {key}: found {text}, {error}") from None
    if isinstance(given.get("per_round"), int):
        given["per_round"] = {target: given["per_round"]}
    method = given.get("method", recorded["method"])
    try:
        new = Select.model_validate({"per_round": {target: 1}, **given, "method": method})
    except ValidationError as error:
        wrong = problems_in(error, Select)[0]
        raise InputError(f"--set {dotted(wrong.loc)}: {wrong.message}") from None
    fields = {name for name in Select.model_fields if name in new.model_fields_set}
    if "per_round" not in given:
        fields.discard("per_round")
    merged = {**recorded, **{name: getattr(new, name) for name in fields}}
    if method == recorded["method"]:
        merged["options"] = {**recorded["options"], **new.options}
    else:
        merged["options"] = new.options
    return Select.model_construct(_fields_set=set(merged), **merged)


def rounds_with_pools(home: Home) -> list[int]:
    """Rounds whose selection was recorded."""
    return [n for n in home.rounds() if (home.round(n) / POOL).exists()]


def replay(home: Home, number: int, settings: Sequence[str]) -> dict[str, Any]:
    """What the round picked, what it would have picked, and how the two differ."""
    pool, facts = read_pool(home.round(number) / POOL)
    target = facts["order"][0]
    recorded = Select.model_construct(_fields_set=set(facts["select"]), **facts["select"])
    select = changed(facts["select"], settings, target=target)
    budgets = dict(facts["budgets"])
    if any(setting.partition("=")[0] == "per_round" for setting in settings):
        budgets |= select.per_round
    runs = {}
    for name, block, limits in (("was", recorded, facts["budgets"]), ("would", select, budgets)):
        runs[name] = divide(
            pool,
            make_selector(block),
            limits,
            order=facts["order"],
            seeds=facts["seeds"],
            first=facts["first"],
            unpaired=facts["unpaired"],
        )
    was, would = ({one.uid: one for one in runs[name][0]} for name in ("was", "would"))
    notes = []
    if needs_gradients(select) != facts["gradients"]:
        kind = "gradients of the readout" if facts["gradients"] else "invariants of atoms"
        notes.append(f"{select.method} has other features; it was replayed on the recorded {kind}")
    return {
        "round": number,
        "was": _summary(pool, runs["was"]),
        "would": _summary(pool, runs["would"]),
        "kept": sorted(was.keys() & would.keys()),
        "dropped": [_frame(pool, uid, runs["would"][1]) for uid in was if uid not in would],
        "added": [_frame(pool, uid, runs["was"][1]) for uid in would if uid not in was],
        "notes": notes,
    }


def _summary(pool: Pool, run: tuple[list[Any], dict[str, str]]) -> dict[str, Any]:
    bought, rejected = run
    place = {uid: n for n, uid in enumerate(pool.uids)}
    errors = [float(pool.expected_error_eV_per_A[place[one.uid]]) for one in bought]
    return {
        "frames": len(bought),
        "labels": dict(Counter(f for one in bought for f in one.fidelities)),
        "why": dict(Counter(one.why for one in bought)),
        "sources": dict(Counter(pool.sources[place[one.uid]] for one in bought)),
        "mean_expected_error_eV_per_A": float(np.mean(errors)) if errors else None,
        "rejected": dict(Counter(rejected.values())),
    }


def _frame(pool: Pool, uid: str, reasons: Mapping[str, str]) -> dict[str, Any]:
    n = pool.uids.index(uid)
    error = float(pool.expected_error_eV_per_A[n])
    return {"uid": uid, "source": pool.sources[n], "expected_error_eV_per_A": error, "reason": reasons[uid]}
