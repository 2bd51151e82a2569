"""The loop: which stage is next, when to stop, what to tell people. It owns no physics.

Round 0 makes and labels the start structures. Round n ≥ 1 trains, explores, scores, selects, labels and
assesses; the round after the one that met a stop rule trains the final committee on everything.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alchemy_policies.base import StopReason
from alchemy_policies.calibration import Calibration

from .budget import BudgetEndedError, make_budget, parse_given
from .config import Campaign, campaign_hash
from .costs import stage_costs
from .errors import InputError
from .executors import Interrupt, make_executor, signals_caught, signals_ignored
from .identity import imported_fingerprint
from .label_runners import JobLabels
from .lease import Lease
from .prices import CampaignPrices
from .progress import Progress
from .records import read_json, write_json_atomic
from .report import write_report
from .selection import make_selector
from .stages import code_versions, decide, explore, label, model, start, trust
from .stages.backlog import Backlog, left_open
from .stages.context import Context
from .stages.watch import watch_labels
from .state import Home, RoundState
from .stopping import decide_stop
from .store import Store


@dataclass(frozen=True)
class Outcome:
    """How `run_campaign` ended; `stop` is None when it was told to pause after a round."""

    home: Home
    stop: StopReason | None
    facts: dict[str, Any]  # of the last round

    @property
    def exit_code(self) -> int:
        return 0 if self.stop is None else self.stop.exit_code


def run_campaign(
    campaign: Campaign,
    home: Path,
    *,
    until: int | None = None,
    only: Sequence[str] = (),
    budget: Sequence[str] = (),
    progress: Progress | None = None,
    source: Path | None = None,
    interrupt: Interrupt | None = None,
    accept_code: bool = False,
) -> Outcome:
    """Run or continue a campaign in `home`.

    Args:
        until: pause after this round.
        only: use these fidelities alone (the target must be among them).
        budget: limits for this run, such as "+2min" or "cpu=200 h", in the place of the file's.
        source: the campaign file, copied into `home`.
        interrupt: ends the run from another thread.
        accept_code: go on with another version of a labeler's program than that of earlier labels.

    Raises:
        AlchemyError: bad input, a busy campaign, a broken environment, or an interrupt.
    """
    progress = progress or Progress()
    place = Home(home)
    fidelities = _fidelities(campaign, only)
    make_selector(campaign.select)  # a wrong option is said now, not after the first training
    for text in budget:
        parse_given(text)
    interrupt = interrupt or Interrupt()
    with Lease(place.lease), signals_caught(interrupt):
        progress.attach_log(place.log)
        _register(campaign, place, fidelities, source)
        with opened(campaign, place, fidelities, interrupt, progress=progress, budget=budget) as context:
            _refuse_other_physics(context)
            code_versions.require_known(context, accept=accept_code, installed=True)
            backlog = Backlog(context) if campaign.run.overlap else None
            try:
                return _loop(context, until, backlog)
            except BudgetEndedError as end:
                context.budget.close()
                return _out_of_budget(context, end.reason)
            except BaseException:
                interrupt.set()  # for the threads of the backlog
                raise
            finally:
                context.budget.clock.save(every_s=0.0)
                if backlog is not None:
                    backlog.close()


@contextmanager
def opened(
    campaign: Campaign,
    place: Home,
    fidelities: Sequence[str],
    interrupt: Interrupt,
    *,
    progress: Progress,
    budget: Sequence[str] = (),
) -> Iterator[Context]:
    """A campaign with its workers, which end with the block."""
    run = campaign.run
    inline = run.where == "inline"
    if inline:
        if run.gpus == 0:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        import torch

        torch.set_num_threads(run.threads_per_worker)
    with signals_ignored():
        executor = make_executor(
            run,
            home=place.path,
            base_dir=campaign.base_dir,
            interrupt=interrupt,
            waiting=progress.waiting,
        )
    try:
        store = Store(place.store)
        snapshot = store.snapshot()
        prices = CampaignPrices(campaign, snapshot, stage_costs(place))
        limits = make_budget(campaign, place, snapshot, given=budget, prices=prices)
        context = Context(campaign, place, store, executor, progress, tuple(fidelities), inline, limits)
        context.label_runner = JobLabels(
            executor,
            run.labels,
            folder=place.pyiron,
            base_dir=campaign.base_dir,
            say=progress.message,
            interrupt=interrupt,
        )
        yield context
    finally:
        executor.close()


def _fidelities(campaign: Campaign, only: Sequence[str]) -> tuple[str, ...]:
    for name in only:
        if name not in campaign.fidelities:
            known = ", ".join(campaign.fidelity_names)
            raise InputError(f"--only {name}: no such fidelity; the file has {known}")
    if only and campaign.target not in only:
        raise InputError(f"--only must keep the target, '{campaign.target}'")
    return tuple(n for n in campaign.fidelity_names if not only or n in only)


def _register(
    campaign: Campaign, home: Home, fidelities: Sequence[str], source: Path | None
) -> None:
    """Write campaign.json and keep the file; the history of its hashes is kept."""
    home.path.mkdir(parents=True, exist_ok=True)
    old = read_json(home.facts) if home.facts.exists() else {}
    if old and old["used_fidelities"] != list(fidelities):
        raise InputError(
            f"{home.path} was run with {', '.join(old['used_fidelities'])}; use another --dir for "
            f"{', '.join(fidelities)}"
        )
    digest = campaign_hash(campaign)
    hashes = old.get("hashes", [])
    if not hashes or hashes[-1]["hash"] != digest:
        hashes.append({"hash": digest, "unix_s": round(time.time(), 1)})
    document = {
        "name": campaign.name,
        "elements": list(campaign.elements),
        "seed": campaign.seed,
        "target": campaign.target,
        "fidelities": {
            n: {"labeler": f.labeler, **f.options}
            for n, f in campaign.fidelities.items()
            if n in fidelities
        },
        "used_fidelities": list(fidelities),
        "started_unix_s": old.get("started_unix_s", round(time.time(), 1)),
        "created_utc": old.get("created_utc", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())),
        "hashes": hashes,
        "base_dir": str(campaign.base_dir),
        "accepted_codes": old.get("accepted_codes", {}),
        "gates": {n: campaign.fidelities[n].gate.limits() for n in fidelities},
    }
    write_json_atomic(home.facts, document)
    if source is not None and source.resolve() != (home.path / "campaign.yaml").resolve():
        shutil.copyfile(source, home.path / "campaign.yaml")


def _refuse_other_physics(context: Context) -> None:
    """Labels of one fidelity must all come from one physics."""
    levels = context.store.snapshot().levels()
    for fidelity, expected in context.fingerprints.items():
        # who imports labels under the name of a level says that they are of that level
        others = levels.get(fidelity, {}).keys() - {expected, imported_fingerprint(fidelity)}
        for mark in sorted(others):
            raise InputError(
                f"fidelity '{fidelity}' now means other physics (fingerprint {expected[:8]}) than the "
                f"labels in the store ({mark[:8]}); give the new level a new name"
            )


def _loop(context: Context, until: int | None, backlog: Backlog | None) -> Outcome:
    _catch_up(context, backlog)
    number = 0
    while True:
        state = RoundState(context.home, number)
        if (state.facts.get("stop") or {}).get("rule") == "budget":
            state.facts["stop"] = None  # there is more now
        context.progress.round = number
        if number == 0:
            _start_round(context, state)
        else:
            last = _stop_of(context, number - 1)
            if backlog is not None:
                _data(context, state, backlog, final=last is not None)
            _train_and_test(context, state, final=last is not None)
            if last is not None:
                return _finish(context, state, last)
            _buy_labels(context, state, backlog)
        _report(context)
        context.store.tidy()
        if until is not None and number >= until:
            return Outcome(context.home, None, state.facts)
        number += 1


def _catch_up(context: Context, backlog: Backlog | None) -> None:
    """Labels that overlapped rounds left open: beside the loop again, or first, where it does not overlap."""
    requests = left_open(context)
    if backlog is not None:
        backlog.add(requests)
    else:
        label.label(context, requests, what="labels left open")


def _data(context: Context, state: RoundState, backlog: Backlog, *, final: bool) -> None:
    """Fix what the round is trained on, since labels come in meanwhile; the last committee gets all."""
    if final and state.outputs("data") is None:
        backlog.finish(state)
    backlog.look()
    _do(context, state, "data", lambda: {"as_of": context.store.snapshot().last})


def _do(
    context: Context, state: RoundState, stage: str, work: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Run a stage unless its output is there, or it does not fit into the budget."""
    found = state.outputs(stage)
    if found is not None:
        return found
    if stage != "label":  # that ends between labels
        context.budget.begin_stage(stage)
    context.meter.taken()
    started = time.perf_counter()
    outputs = work()
    cost = replace(context.meter.taken(), wall_s=time.perf_counter() - started)
    state.finish(stage, outputs, wall_s=cost.wall_s, cpu_s=cost.cpu_s, gpu_s=cost.gpu_s)
    context.budget.end_stage(stage, cost)
    return outputs


def _pairs(requests: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    return [(uid, fidelity) for uid, fidelity in requests]


def _start_round(context: Context, state: RoundState) -> None:
    context.progress.message(f"round 0: start structures and their labels, in {context.home.path}")
    requests = _pairs(_do(context, state, "start", lambda: start.start(context, state))["requests"])

    def buy() -> dict[str, Any]:
        snapshot = context.store.snapshot()
        atoms = [r for r in requests if snapshot.atom_count(r[0]) == 1]
        label.label(context, atoms, what="isolated atoms")  # the gate of the rest needs them
        label.label(context, requests, what="label")
        label.require_usable(context)
        trust.check_labels(context, state, requests)
        state.facts.update(target=context.target, fidelities=list(context.fidelities))
        state.facts["label"] = watch_labels(context, label.label_facts(context, requests))
        state.facts["cost"] = model.cost(context, context.store.snapshot())
        return {}

    _do(context, state, "label", buy)


def _train_and_test(context: Context, state: RoundState, *, final: bool) -> None:
    _do(context, state, "train", lambda: model.train(context, state, final=final))
    _do(context, state, "test", lambda: model.test(context, state))
    context.progress.message(_summary(context, state))


def _summary(context: Context, state: RoundState) -> str:
    train = state.facts["train"]["labels"]
    text = f"round {state.number}: trained on " + ", ".join(f"{n} {f}" for f, n in train.items())
    test = state.facts.get("test", {}).get(context.target)
    if test:
        text += f"; test force RMSE {1e3 * test['force_rmse_eV_per_A']:.0f} meV/Å at {context.target}"
    return text


def _calibration(context: Context, number: int) -> Calibration:
    """As the assessment of the round before left it."""
    before = RoundState(context.home, number - 1).outputs("assess") if number > 1 else None
    if before is None:
        return Calibration.uncalibrated(context.members)
    return Calibration.from_json(before["calibration"])


def _buy_labels(context: Context, state: RoundState, backlog: Backlog | None) -> None:
    calibration = _calibration(context, state.number)
    found = _do(context, state, "explore", lambda: explore.explore(context, state, calibration))["candidates"]
    _do(context, state, "score", lambda: explore.score(context, state, found))
    chosen = _do(context, state, "select", lambda: decide.select(context, state, found, calibration))

    def buy() -> dict[str, Any]:
        requests = _pairs(chosen["requests"])
        late = [pair for pair in context.open_pairs if pair not in requests]  # of rounds before
        if backlog is None:
            label.label(context, requests, what="label")
        else:
            backlog.add(requests)
            backlog.wait(requests, context.campaign.run.retrain_at)
        trust.check_labels(context, state, [*requests, *late], calibration)
        state.facts["label"] = watch_labels(context, label.label_facts(context, requests))
        return {}

    _do(context, state, "label", buy)

    def judge() -> dict[str, Any]:
        outputs, _ = decide.assess(context, state, chosen["picked"], calibration)
        state.facts["cost"] = model.cost(context, context.store.snapshot())
        stop = decide_stop(context, state)
        state.facts["stop"] = None
        return {**outputs, "stop": None if stop is None else vars(stop)}

    _do(context, state, "assess", judge)
    fresh = state.facts["fresh"].get(context.target)
    if fresh:
        context.progress.message(
            f"round {state.number}: force RMSE on {fresh['frames']} fresh {context.target} labels "
            f"{1e3 * fresh['force_rmse_eV_per_A']:.0f} meV/Å, before training on them"
        )


def _stop_of(context: Context, number: int) -> StopReason | None:
    outputs = RoundState(context.home, number).outputs("assess") if number > 0 else None
    if outputs is None or outputs["stop"] is None:
        return None
    return StopReason(**outputs["stop"])


def _finish(context: Context, state: RoundState, stop: StopReason) -> Outcome:
    state.facts["stop"] = vars(stop)
    if state.outputs("finish") is None:
        state.finish("finish", {}, wall_s=0.0)
    _publish(context, state.number)
    _report(context)
    context.progress.message(f"stopped: {stop.message}")
    return Outcome(context.home, stop, state.facts)


def _publish(context: Context, number: int) -> None:
    """The committee of this round, with its calibration, as the campaign's last."""
    final = context.home.path / "final"
    final.mkdir(exist_ok=True)
    for path in context.home.members(number, context.members):
        shutil.copyfile(path, final / path.name)
    write_json_atomic(final / "calibration.json", _calibration(context, number).to_json())


def _out_of_budget(context: Context, stop: StopReason) -> Outcome:
    """End where we are: the newest committee that is finished is the last one; labels since wait for it."""
    begun = context.home.rounds() or [0]
    trained = [n for n in begun if RoundState(context.home, n).outputs("train") is not None]
    if trained:
        _publish(context, trained[-1])
    state = RoundState(context.home, begun[-1])
    state.facts["stop"] = vars(stop)
    state.save_facts()
    _report(context)
    context.progress.message(f"stopped: {stop.message}")
    return Outcome(context.home, stop, state.facts)


def _report(context: Context) -> None:
    write_report(context.home.path)
