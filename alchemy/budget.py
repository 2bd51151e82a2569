"""A budget ends a campaign between labels and between stages, never within one.

Before a label or a stage begins, what is spent, what runs and what the next one is expected to cost must
fit. Expectations are those of `alchemy plan`: measured in this campaign, else defaults of the labeler.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from alchemy_policies.base import StopReason

from .config import Campaign
from .config_budget import LIMITS, SIZE, limits_of, shown
from .costs import Clock, Cost, disk_bytes, spent
from .errors import InputError
from .prices import Labels
from .quantities import WALL_TIME, QuantityError
from .records import LabelRecord
from .state import Home
from .store import Snapshot

EXIT_CODE = 4
DISK_EVERY_S = 30.0  # the size of the folder is measured this often
_KEYS = {name.rpartition("_")[0]: name for name in LIMITS}
_GIVEN = re.compile(r"\s*(?:(?P<key>[a-z]+)\s*[=:]?\s*)?(?P<more>\+?)\s*(?P<amount>[\d.].*)")


class BudgetEndedError(Exception):
    """What comes next does not fit; carries the reason that the campaign ends with."""

    def __init__(self, reason: StopReason) -> None:
        super().__init__(reason.message)
        self.reason = reason


class Prices(Protocol):
    """What things are expected to cost."""

    labels: Labels

    def label(self, fidelity: str, atoms: int) -> Cost: ...

    def stage(self, stage: str) -> Cost: ...

    def learn_stage(self, stage: str, cost: Cost) -> None: ...


class Budget:
    """Limits, what is spent, and what has begun; may be asked from several threads."""

    def __init__(self, limits: Mapping[str, float], home: Home, prices: Prices, before: Cost) -> None:
        self.limits, self._home, self._prices = dict(limits), home, prices
        self.clock = Clock(home)
        self._spent = replace(before, wall_s=0.0)  # the clock has that
        self._running: dict[str, Cost] = {}
        self._lock = threading.RLock()  # prices learn as well, and the size of the folder is measured
        self._measured = time.monotonic()

    def spent(self) -> Cost:
        """So far."""
        with self._lock:
            now = time.monotonic()
            if "disk_bytes" in self.limits and now - self._measured > DISK_EVERY_S:
                self._measured = now
                self._spent = replace(self._spent, disk_bytes=disk_bytes(self._home.path))
            return replace(self._spent, wall_s=self.clock.wall_s())

    def label_price(self, fidelity: str, atoms: int) -> Cost:
        """What a label is expected to cost; nothing is worked out where no budget is set."""
        if not self.limits:
            return Cost()
        with self._lock:
            return self._prices.label(fidelity, atoms)

    def begin(self, name: str, price: Cost, *, what: str = "label") -> None:
        """Something begins. Raises BudgetEndedError when it does not fit beside all that runs."""
        with self._lock:
            running = Cost()
            for cost in self._running.values():
                running += replace(cost, wall_s=0.0)  # they run side by side
            self._check(running + price, what)
            self._running[name] = price

    def end(self, name: str, record: LabelRecord | None = None) -> None:
        """It is over; a label says what it cost."""
        with self._lock:
            price = self._running.pop(name, Cost())
            if record is not None:
                self._spent += Cost(cpu_s=max(0.0, record.cpu_s), disk_bytes=price.disk_bytes)
                self._prices.labels.learn(record.fidelity, len(record.atoms), record.cpu_s)
        self.clock.save()

    def close(self) -> None:
        """Nothing begins from here on."""
        with self._lock:
            self.limits["wall_s"] = 0.0

    def begin_stage(self, stage: str) -> None:
        """The same for a stage."""
        if self.limits:
            with self._lock:
                self._check(self._prices.stage(stage), f"stage, '{stage}',")

    def end_stage(self, stage: str, cost: Cost) -> None:
        """A stage is over."""
        with self._lock:
            self._prices.learn_stage(stage, cost)
            self._spent += replace(cost, wall_s=0.0)
        self.clock.save()

    def _check(self, needed: Cost, what: str) -> None:
        have = self.spent()
        for name, limit in self.limits.items():
            used, more = getattr(have, name), getattr(needed, name)
            if used + more > limit or used >= limit:
                raise BudgetEndedError(self._reason(name, used, more, limit, what))

    def _reason(self, name: str, used: float, more: float, limit: float, what: str) -> StopReason:
        key = name.rpartition("_")[0]
        message = f"budget: {shown(name, used)} {key} used of {shown(name, limit)}"
        if used < limit:
            message += f", what runs and the next {what} need {shown(name, more)}"
        return StopReason("budget", f"{message}; 'alchemy run --budget {key}=+…' goes on", EXIT_CODE)


def make_budget(
    campaign: Campaign, home: Home, snapshot: Snapshot, *, given: Sequence[str], prices: Prices
) -> Budget:
    """The budget of the file, changed by what the command line gives."""
    before = spent(home, snapshot)
    limits = limits_of(campaign.stop.budget)
    for text in given:
        name, amount, more = parse_given(text)
        limits[name] = amount + (getattr(before, name) if more else 0.0)
    return Budget(limits, home, prices, before)


def parse_given(text: str) -> tuple[str, float, bool]:
    """(limit, amount, whether it counts from what is spent) of "+2min", "cpu=+200 h" or "disk=2 TB".

    Raises:
        InputError: it is none of these.
    """
    found = _GIVEN.fullmatch(text)
    known = ", ".join(_KEYS)
    if found is None or (found["key"] or "wall") not in _KEYS:
        raise InputError(f"--budget {text}: write +2min, cpu=+200h or disk=2TB; known: {known}")
    name = _KEYS[found["key"] or "wall"]
    try:
        amount = (SIZE if name == "disk_bytes" else WALL_TIME).parse(found["amount"])
    except QuantityError as error:
        raise InputError(f"--budget {text}: {error}") from None
    return name, amount, bool(found["more"])
