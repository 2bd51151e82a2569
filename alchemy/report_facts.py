"""What a campaign directory says, read once for `status` and `report`.

Only `rounds/NNN/round.json`, `rounds/NNN/state.json` and `campaign.json` are read: both commands
must work on a copied directory, without the store, the models or torch. A missing, null or
non-finite number is NaN, "not known yet", and never an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alchemy.errors import InputError

Tree = Mapping[str, Any]


@dataclass(frozen=True)
class CampaignFacts:
    """One campaign as its files tell it; `rounds` are in order of their number."""

    directory: Path
    name: str
    meta: Tree
    target: str
    fidelities: tuple[str, ...]
    rounds: tuple[Tree, ...]
    stages: Mapping[int, tuple[str, ...]]  # round number -> finished stages, from state.json


def branch(tree: object, *path: str) -> Tree:
    """The mapping at `path`, or an empty one."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree if isinstance(tree, Mapping) else {}


def number(tree: object, *path: str) -> float:
    """The number at `path`; NaN where there is none."""
    value = branch(tree, *path[:-1]).get(path[-1])
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value) if math.isfinite(value) else math.nan


def total(tree: object) -> float:
    """Sum of the known numbers of a mapping; NaN where none is known."""
    known = [number(tree, key) for key in branch(tree)]
    known = [value for value in known if not math.isnan(value)]
    return math.fsum(known) if known else math.nan


def counts(tree: object, *path: str) -> dict[str, int]:
    """A mapping of names to whole numbers; entries that are none are left out."""
    found = branch(tree, *path)
    return {str(k): int(number(found, k)) for k in found if not math.isnan(number(found, k))}


def table(tree: object, key: str, width: int) -> list[tuple[float, ...]]:
    """The rows under `key` with `width` finite numbers; a row with an unknown cannot be drawn."""
    rows = branch(tree).get(key)
    if not isinstance(rows, list):
        return []
    full = [row for row in rows if isinstance(row, list) and len(row) == width]
    cells = [tuple(number({"v": v}, "v") for v in row) for row in full]
    return [row for row in cells if not any(math.isnan(v) for v in row)]


def columns(tree: object, *names: str) -> list[tuple[float, ...]]:
    """Parallel lists as rows, with the rules of `table`."""
    lists = [branch(tree).get(name) for name in names]
    present = [column for column in lists if isinstance(column, list)]
    if len(present) < len(names):
        return []
    return table({"rows": [list(row) for row in zip(*present, strict=False)]}, "rows", len(names))


def read_campaign(directory: Path) -> CampaignFacts:
    """Read what is there; `InputError` where nothing says that this is a campaign."""
    directory = Path(directory)
    rounds_dir = directory / "rounds"
    if not rounds_dir.is_dir() and not (directory / "campaign.json").is_file():
        kind = "has neither rounds/ nor campaign.json" if directory.is_dir() else "is no directory"
        raise InputError(
            f"{directory} {kind}, so it is not a campaign: give the directory of `alchemy run`"
        )
    meta = _read_json(directory / "campaign.json")
    rounds: list[tuple[int, Tree]] = []
    stages: dict[int, tuple[str, ...]] = {}
    for path in sorted(rounds_dir.glob("*/")):
        if not path.name.isdigit():
            continue
        if (path / "round.json").is_file():
            tree = _read_json(path / "round.json")
            index = number(tree, "round")
            rounds.append((int(path.name) if math.isnan(index) else int(index), tree))
        if (path / "state.json").is_file():
            stages[int(path.name)] = tuple(branch(_read_json(path / "state.json"), "stages"))
    trees = tuple({**tree, "round": index} for index, tree in sorted(rounds, key=lambda r: r[0]))
    fidelities = _fidelities(meta, trees)
    name = meta.get("name")
    return CampaignFacts(
        directory=directory,
        name=name if isinstance(name, str) and name else directory.resolve().name,
        meta=meta,
        target=_target(meta, trees, fidelities),
        fidelities=fidelities,
        rounds=trees,
        stages=stages,
    )


def fixed_test_rmse(tree: Tree, fidelity: str) -> float:
    """Force RMSE of the round's committee on the fixed test set, eV/Å."""
    return number(tree, "test", fidelity, "force_rmse_eV_per_A")


def fresh_rmse(tree: Tree, fidelity: str, *, random_slice: bool = False) -> float:
    """The same on labels bought in this round, before training on them, eV/Å."""
    path = ("random",) if random_slice else ()
    return number(tree, "fresh", fidelity, *path, "force_rmse_eV_per_A")


def label_cpu_s(tree: Tree) -> float:
    """CPU seconds of the labels bought in this round, all fidelities."""
    labels = branch(tree, "label")
    return total({name: number(labels, name, "cpu_s") for name in labels})


def cost_at_training(facts: CampaignFacts, position: int) -> float:
    """CPU seconds spent on labels, all fidelities, when the committee of this round was trained.

    `cost.labels_cpu_s` is cumulative and includes the round's own labels, which this committee has
    not seen: the total of the round before is the price of what it knows.
    """
    if position > 0:
        before = total(branch(facts.rounds[position - 1], "cost", "labels_cpu_s"))
        if not math.isnan(before):
            return before
    own = label_cpu_s(facts.rounds[position])
    spent = total(branch(facts.rounds[position], "cost", "labels_cpu_s"))
    # the two sums run in different orders: their last bits must not make a negative price
    return spent if math.isnan(own) else max(0.0, spent - own)


def latest(facts: CampaignFacts, *path: str) -> Tree:
    """The mapping at `path` in the last round that has one."""
    for tree in reversed(facts.rounds):
        found = branch(tree, *path)
        if found:
            return found
    return {}


def baselines(facts: CampaignFacts) -> dict[str, float]:
    """Own force RMSE of each cheaper level against the target level, eV/Å, where it is known."""
    found = latest(facts, "baselines")
    own = {name: number(found, name, "force_rmse_eV_per_A") for name in found}
    return {name: value for name, value in own.items() if not math.isnan(value)}


def failures(facts: CampaignFacts) -> dict[str, dict[str, int]]:
    """Failed labels of the whole campaign: fidelity -> reason -> how many."""
    found: dict[str, dict[str, int]] = {}
    for tree in facts.rounds:
        for fidelity in branch(tree, "label"):
            for reason, count in counts(tree, "label", fidelity, "failed").items():
                reasons = found.setdefault(fidelity, {})
                reasons[reason] = reasons.get(reason, 0) + count
    return found


def stop_of(facts: CampaignFacts) -> Tree:
    """Why the campaign stopped; empty while it runs.

    Only the last round counts: a campaign resumed with a larger budget leaves an old reason behind.
    """
    return branch(facts.rounds[-1], "stop") if facts.rounds else {}


def _read_json(path: Path) -> Tree:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path}: a JSON object is expected, found {type(tree).__name__}")
    return tree


def _fidelities(meta: Tree, rounds: tuple[Tree, ...]) -> tuple[str, ...]:
    """Cheapest first, as the rounds list them; names that only `campaign.json` knows come last."""
    names: dict[str, None] = {}
    for tree in rounds:
        listed = tree.get("fidelities")
        names |= {str(name): None for name in (listed if isinstance(listed, list) else [])}
    names |= {str(name): None for name in branch(meta, "fidelities")}
    if not names:
        for tree in rounds:
            names |= dict.fromkeys([*branch(tree, "train", "labels"), *branch(tree, "test")])
    return tuple(names)


def _target(meta: Tree, rounds: tuple[Tree, ...], fidelities: tuple[str, ...]) -> str:
    for tree in (*reversed(rounds), meta):
        found = tree.get("target")
        if isinstance(found, str) and found:
            return found
    return fidelities[-1] if fidelities else ""
