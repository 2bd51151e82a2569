"""Selecting frames of a scored pool: the selector that a campaign asks for, and the rounds' shares.

Nothing here knows of tasks or of the store, so that `alchemy whatif` replays with it what a round did.
"""

from __future__ import annotations

import inspect
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from alchemy_policies.base import Pool, Selector

from alchemy.errors import InputError, StoreError
from alchemy.plugins import blamed_on, find
from tace.errors import TaceError
from tace.prediction import small_sample_factor
from tace.wording import hint

if TYPE_CHECKING:
    from alchemy.config_select import Select

# field of the campaign's block -> name of the option in the selector's class
OPTIONS = {
    "threshold_eV_per_A": "threshold_eV_per_A",
    "high_eV_per_A": "high_eV_per_A",
    "random": "random_fraction",
    "dedup": "dedup_distance",
    "max_force_eV_per_A": "max_force_eV_per_A",
    "quota": "quota",
    "coverage": "coverage",
    "energy_spread": "energy_spread_factor",
    "error_power": "error_power",
}
_ARRAYS = (
    "expected_error_eV_per_A", "features", "max_force_eV_per_A", "train_features", "deviation_eV_per_A",
    "steps", "test_features", "energy_spread_eV_per_atom", "train_energy_spread_eV_per_atom",
)  # fmt: skip


def make_selector(chosen: Select) -> Selector:
    """The selector with the options of the block that its class has.

    Raises:
        PluginError, InputError: there is none, or it does not take what it was given.
    """
    factory = find("selectors", chosen.method)
    accepted = tuple(inspect.signature(factory).parameters)
    for name in chosen.options:
        if name not in accepted:
            raise InputError(f"select.{name}: {chosen.method} has no such option; {hint(name, accepted)}")
    shared = {option: getattr(chosen, field) for field, option in OPTIONS.items() if option in accepted}
    try:
        made: Selector = factory(**{**shared, **chosen.options})
    except (TypeError, ValueError, TaceError) as error:
        raise InputError(f"select: {chosen.method} does not accept its options: {error}") from error
    return made


def needs_gradients(chosen: Select) -> bool:
    """Whether the selector's features are gradients of the readout."""
    return bool(getattr(find("selectors", chosen.method), "needs_gradients", False))


def raw_deviation(spread: float, members: int) -> float:
    """√(mean_k |F_k − F̄|²) from the spread: without the small-sample factor of `tace.prediction`."""
    return spread * small_sample_factor(3 * (members - 1) + 1) * math.sqrt((members - 1) / members)


@dataclass(frozen=True)
class Bought:
    """A frame that was picked: for which level first, why, and for which levels it is labelled."""

    uid: str
    why: str
    fidelities: tuple[str, ...]


def divide(
    pool: Pool,
    selector: Selector,
    budgets: Mapping[str, int],
    *,
    order: Sequence[str],
    seeds: Mapping[str, int],
    first: Mapping[str, str] | None = None,
    unpaired: Sequence[str] = (),
) -> tuple[list[Bought], dict[str, str]]:
    """Choose for the first level of `order` first, then for the others from what is left.

    What is worth the target's price is labelled at the cheaper levels too: the pair teaches the
    difference between them.

    Args:
        first: frames, and why, that are bought before the selector is asked.
        unpaired: levels that get no label beside a dearer one's.

    Returns:
        what is bought, and a reason for every other frame by uid.
    """
    place = {uid: n for n, uid in enumerate(pool.uids)}
    bought = {uid: Bought(uid, why, ()) for uid, why in (first or {}).items()}
    reasons: dict[str, str] = {}
    for fidelity in order:
        budget = budgets[fidelity] - len(bought)
        left = [n for n, uid in enumerate(pool.uids) if uid not in bought]
        for uid, entry in () if fidelity in unpaired else bought.items():
            bought[uid] = replace(entry, fidelities=(*entry.fidelities, fidelity))
        if budget <= 0 or not left:
            continue
        part = pool.part(left, known=[place[uid] for uid in bought])
        with blamed_on("selector", selector):
            choice = selector(part, budget, np.random.default_rng(seeds[fidelity]))
        for pick in choice.picks:
            uid = part.uids[pick.index]
            bought[uid] = Bought(uid, pick.why, (fidelity,))
        reasons = {part.uids[n]: why for n, why in choice.rejected.items()} | reasons
    for uid in pool.uids:
        reasons.setdefault(uid, "budget")  # no level had any left
    return list(bought.values()), {uid: why for uid, why in reasons.items() if uid not in bought}


def pool_bytes(pool: Pool, facts: Mapping[str, Any]) -> bytes:
    """What a selector saw, and how it was asked, as an npz archive without pickles."""
    arrays = {name: getattr(pool, name) for name in _ARRAYS if getattr(pool, name) is not None}
    text = {
        "uids": pool.uids,
        "sources": pool.sources,
        "reasons": pool.reasons,
        "environments": [sorted(frame) for frame in pool.environments],
        "train_environments": dict(pool.train_environments),
        "facts": dict(facts),
    }
    encoded = np.frombuffer(json.dumps(text, sort_keys=True).encode(), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, document=encoded, **arrays)
    return buffer.getvalue()


def read_pool(path: Path) -> tuple[Pool, dict[str, Any]]:
    """The inverse of `pool_bytes`; StoreError where the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        text = json.loads(arrays.pop("document").tobytes())
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{path}: not the record of a selection ({error})") from error
    pool = Pool(
        **arrays,
        uids=tuple(text["uids"]),
        sources=tuple(text["sources"]),
        reasons=tuple(text["reasons"]),
        environments=tuple(frozenset(frame) for frame in text["environments"]),
        train_environments=text["train_environments"],
    )
    return pool, text["facts"]
