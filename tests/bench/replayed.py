"""A campaign replayed on a labelled pool: train, score, select, take the labels, judge, round after round.

The committee, its warm starts, the calibration and the selectors are those of a campaign; exploring is
replaced by what is left of the pool.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from alchemy_policies.base import Pool
from alchemy_policies.calibration import Calibration, fit_calibration, fresh_weights, worst_decile
from alchemy_policies.diversity import Lcmd, MaxDist
from alchemy_policies.environments import count_frames, frame_environments
from alchemy_policies.first_committee import at_later_level
from alchemy_policies.selectors import CalibratedError, DpGen, FirstCome, Random
from pools import Problem

from alchemy.selection import raw_deviation
from tace.committee import Committee
from tace.config import preset
from tace.data import Labelled, make_samples
from tace.gradient_features import gradient_features
from tace.model import Tace
from tace.reference import mean_neighbors, set_statistics, statistics
from tace.train import TrainSettings, fit

ENOUGH = 8  # random frames: `alchemy.stages.decide.MIN_CALIBRATION_FRAMES`
THRESHOLD = 0.03  # eV/Å of expected error, below which no method wants a label


@dataclass(frozen=True)
class Plan:
    """Sizes of a replayed campaign."""

    members: int = 4
    start: int = 20
    per_round: int = 20
    rounds: int = 8
    steps: int = 400
    size: str = "small"
    cutoff_A: float = 5.0
    candidates: int = 0  # that a round looks at, drawn blindly from what is left; 0: all


def selector_of(method: str, deviation: np.ndarray) -> Any:
    """Ours as a campaign has them by default; DP-GEN's window ends where a tenth of the pool lies above,
    the wide one where a fiftieth does.

    A window by hand would be empty in the first rounds, whose deviations are an order of magnitude larger
    than those of the last: this is the kindest reading of the rule. `oracle` is ours with the true errors.
    """

    def window(above: float) -> DpGen:
        high = float(np.quantile(deviation, 1 - above))
        return DpGen(threshold_eV_per_A=THRESHOLD, high_eV_per_A=max(2 * THRESHOLD, high))

    return {
        "calibrated": lambda: CalibratedError(threshold_eV_per_A=THRESHOLD),
        "lcmd": lambda: Lcmd(threshold_eV_per_A=THRESHOLD),
        "lcmd-error": lambda: Lcmd(threshold_eV_per_A=THRESHOLD, error_power=1.0),
        "max_dist": lambda: MaxDist(threshold_eV_per_A=THRESHOLD),
        "random": Random,
        "oracle": lambda: CalibratedError(threshold_eV_per_A=THRESHOLD),
        "dpgen": lambda: window(0.1),
        "dpgen-wide": lambda: window(0.02),
        "first_come": lambda: FirstCome(threshold_eV_per_A=THRESHOLD),
    }[method]()


Begun = dict[tuple[str, int], tuple[list[Tace], float]]
"""First committees and their CPU s by problem and seed: every method begins with the same."""


def replay(
    problem: Problem, method: str, seed: int, plan: Plan, *, probe: int = 0, begun: Begun | None = None
) -> Iterator[dict[str, Any]]:
    """A record per round: labels, errors on every test part, CPU s.

    Args:
        probe: frames, drawn blindly from what is left, on which the bounds of the round are checked.
        begun: takes and gives first committees; their time counts for every campaign.
    """
    target = problem.levels[-1]
    frames = problem.pool[target]
    rng = np.random.default_rng([seed, 1])
    known = rng.permutation(len(frames))[: plan.start].tolist()  # the same start for every method
    calibration, pairs = Calibration.uncalibrated(plan.members), []
    begun = {} if begun is None else begun
    first = (problem.name, seed)
    started = time.process_time()
    if first not in begun:
        trained = train_committee(
            [frames[n] for n in known], [], 1, seed=seed, plan=plan, levels=[target]
        )
        begun[first] = trained, time.process_time() - started
    kept, spent_s = begun[first]
    members, started = copy.deepcopy(kept), time.process_time() - spent_s  # later rounds train on with a copy
    for number in range(1, plan.rounds + 1):
        labelled = [frames[n] for n in known]
        if number > 1:
            members = train_committee(labelled, members, number, seed=seed, plan=plan, levels=[target])
        committee = Committee(members)
        record = {"round": number, "labels": len(known), **test_errors(committee, problem)}
        left = [n for n in range(len(frames)) if n not in set(known)]
        if plan.candidates:
            met = np.random.default_rng([seed, number, 3]).permutation(len(left))[: plan.candidates]
            left = [left[n] for n in sorted(met.tolist())]
        if number < plan.rounds and left:
            pool, prediction = scored_pool(
                problem, committee, left, known, calibration=calibration, method=method
            )
            assert pool.deviation_eV_per_A is not None
            selector = selector_of(method, pool.deviation_eV_per_A)
            choice = selector(pool, plan.per_round, np.random.default_rng([seed, number]))
            bought = [(pick.index, pick.why) for pick in choice.picks]
            fresh = fresh_pairs(frames, prediction, left, bought, number)
            if probe:
                blind = np.random.default_rng([seed, number, 2]).permutation(len(left))[:probe]
                asked = fresh_pairs(frames, prediction, left, [(int(n), "random") for n in blind], number)
                named = [left[n] for n in blind]
                record["probes"] = coverage(calibration, asked, named, enough=enough_random(pairs))
                record["pairs"] = {"bought": fresh, "asked": asked, "named": named}
            pairs += fresh
            calibration = refitted(pairs, plan.members)
            known += [left[n] for n, _ in bought]
        yield {**record, "cpu_s": time.process_time() - started}
        if len(known) == record["labels"]:
            return  # nothing more is wanted


def train_committee(
    frames: Sequence[Labelled],
    before: Sequence[Tace],
    number: int,
    *,
    seed: int,
    plan: Plan,
    levels: Sequence[str],
) -> list[Tace]:
    """The round's committee; one member is cold in every round, each leaves a tenth of the frames out."""
    elements = tuple(sorted({int(z) for f in frames for z in f.atoms.numbers}))
    config = preset(
        plan.size, elements=elements, fidelities=tuple(levels), cutoff_A=plan.cutoff_A, les=None
    )
    config = replace(config, avg_neighbors=mean_neighbors(list(frames), config))
    out = []
    for k in range(plan.members):
        cold = not before or (number + k) % plan.members == 0 or before[k].config.elements != elements
        if cold:
            model = Tace(config, seed=1000 * seed + 10 * number + k)
            set_statistics(model, statistics(list(frames), config, {}))
        else:
            model = before[k].requires_grad_(True).train()
        bag = np.random.default_rng([seed, k]).random(len(frames)) < 0.9  # frames keep their bag
        samples = make_samples([f for f, inside in zip(frames, bag, strict=True) if inside], model.config)
        settings = TrainSettings(
            steps=plan.steps, batch_size=5, validate_every=plan.steps, seed=seed + 17 * k + number
        )
        fit(model, samples, [], settings=settings)
        out.append(model)
    return out


def test_errors(committee: Committee, problem: Problem) -> dict[str, Any]:
    """Force RMSE on every part of the test."""
    found = {}
    for part, frames in problem.tests.items():
        mean = committee([f.atoms for f in frames], member_forces=False).mean_forces
        truth = np.concatenate([f.forces_eV_per_A for f in frames])
        found[part] = float(np.sqrt(((mean - truth) ** 2).mean()))
    return {"force_rmse_eV_per_A": found}


def scored_pool(
    problem: Problem,
    committee: Committee,
    left: Sequence[int],
    known: Sequence[int],
    *,
    calibration: Calibration,
    method: str,
) -> tuple[Pool, Any]:
    """What is left as a selector takes it, and the committee's prediction for it."""
    frames = problem.pool[problem.levels[-1]]
    candidates, trained = [frames[n].atoms for n in left], [frames[n].atoms for n in known]
    gradients = method.startswith(("lcmd", "max_dist"))
    prediction = committee(candidates, features=True)
    spreads = prediction.per_structure(prediction.force_spread)
    expected = [
        worst_decile(calibration.expected_error(a.numbers, s))
        for a, s in zip(candidates, spreads, strict=True)
    ]

    def features(some: Sequence[Any]) -> np.ndarray:
        if gradients:
            return gradient_features(committee.members[0], some)
        found = prediction if some is candidates else Committee(committee.members[:1])(some, features=True)
        return np.stack([f.mean(0) for f in found.per_structure(found.features)])

    forces = prediction.per_structure(prediction.mean_forces)
    if method == "oracle":
        truth = [frames[n].forces_eV_per_A for n in left]
        expected = [
            worst_decile(np.linalg.norm(found - true, axis=1))
            for found, true in zip(forces, truth, strict=True)
        ]
    environments = frame_environments(candidates)
    pool = Pool(
        uids=tuple(f"{n:06d}" for n in left),
        expected_error_eV_per_A=np.array(expected),
        features=features(candidates),
        sources=("pool",) * len(left),
        max_force_eV_per_A=np.array([np.linalg.norm(f, axis=1).max() for f in forces]),
        train_features=features(trained),
        deviation_eV_per_A=np.array([raw_deviation(s.max(), len(committee.members)) for s in spreads]),
        steps=problem.steps[list(left)],
        environments=environments,
        train_environments=count_frames(frame_environments(trained)),
    )
    return pool, prediction


# numbers, spread, error of a frame; whether random; round
Fresh = tuple[np.ndarray, np.ndarray, np.ndarray, bool, int]


def fresh_pairs(
    frames: Sequence[Labelled],
    prediction: Any,
    left: Sequence[int],
    bought: Sequence[tuple[int, str]],
    number: int,
) -> list[Fresh]:
    """Spread and error of the atoms of frames that were just bought."""
    spreads, means = (prediction.per_structure(x) for x in (prediction.force_spread, prediction.mean_forces))
    out = []
    for n, why in bought:
        frame = frames[left[n]]
        assert frame.forces_eV_per_A is not None
        error = np.linalg.norm(frame.forces_eV_per_A - means[n], axis=1)
        out.append((frame.atoms.numbers, spreads[n], error, why == "random", number))
    return out


def enough_random(pairs: Sequence[Fresh]) -> bool:
    """Whether the random slice is large enough to rest on."""
    return sum(p[3] for p in pairs) >= ENOUGH


def coverage(
    calibration: Calibration, probes: Sequence[Fresh], names: Sequence[int], *, enough: bool
) -> list[dict[str, Any]]:
    """Of each frame the atoms within the bound that was fitted before, and all, by element."""
    if calibration.pooled.frames == 0:
        return []
    found = []
    for name, (numbers, spread, error, *_) in zip(names, probes, strict=True):
        inside = error <= calibration.bound(numbers, spread)
        by_element = {
            int(z): (int(inside[numbers == z].sum()), int((numbers == z).sum())) for z in np.unique(numbers)
        }
        found.append({"frame": name, "covered": by_element, "on_random": enough})
    return found


def refitted(pairs: Sequence[Fresh], members: int) -> Calibration:
    """As `alchemy.stages.decide.refit`."""
    numbers, spread, error = (np.concatenate([f[k] for f in pairs]) for k in range(3))
    index = np.repeat(np.arange(len(pairs)), [len(f[0]) for f in pairs])
    random, number = np.array([f[3] for f in pairs]), np.array([f[4] for f in pairs])
    error = at_later_level(numbers, spread, error, index, random=random, first=number == 1)
    weights = fresh_weights(random, number.max() - number)[index]
    return fit_calibration(numbers, spread, error, index, weights=weights, members=members)


def one_thread() -> None:
    """CPU seconds are those of one core."""
    torch.set_num_threads(1)
