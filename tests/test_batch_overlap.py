"""Batch labels that several threads ask for at once, as rounds that overlap and checks of labels do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from emt_campaign import write_campaign
from played_scheduler import Played, Setting, accept, request

from alchemy import pyiron_batch
from alchemy.batch_ledger import Ledger
from alchemy.budget import Budget
from alchemy.campaign import run_campaign
from alchemy.config import load_campaign
from alchemy.costs import Cost
from alchemy.errors import EnvironmentProblemError, InterruptedRunError
from alchemy.pyiron_project import open_project
from alchemy.pyiron_queue import UnreachableError
from alchemy.records import read_json
from alchemy.scheduler_states import Seen
from alchemy.stages import backlog
from alchemy.state import Home, RoundState
from alchemy.store import Store


def at_once(*works: Callable[[], Any]) -> list[Any]:
    """Results, or the exceptions instead, of functions that run in threads of their own."""
    found: list[Any] = [None] * len(works)

    def run(place: int) -> None:
        try:
            found[place] = works[place]()
        except BaseException as error:
            found[place] = error

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    assert not any(thread.is_alive() for thread in threads)
    return found


def free_when_submitted(setting: Setting, labels: int) -> None:
    """Jobs wait in the queue until so many labels have been handed in."""
    seen: set[str] = set()

    def act(played: Played, name: str, directory: Path) -> str:
        seen.update(entry["key"] for entry in read_json(directory / "pack.json")["labels"])
        played.busy = len(seen) < labels
        return accept(played, name, directory)

    setting.played.act = act


def test_threads_that_ask_at_once_share_lease_and_ledger_and_no_label_is_computed_twice(
    tmp_path, monkeypatch
):
    setting = Setting(tmp_path, monkeypatch, {"where": "slurm", "jobs": 10})
    requests = [request(tmp_path, n) for n in range(5)]
    free_when_submitted(setting, 5)
    runner = setting.runner()
    first, second = at_once(
        lambda: setting.run(requests[:3], runner), lambda: setting.run(requests[2:], runner)
    )
    assert [first[n]["key"] for n in range(3)] == [r["key"] for r in requests[:3]]
    assert [second[n]["key"] for n in range(3)] == [r["key"] for r in requests[2:]]
    assert setting.attempts() == [1] * 5
    assert len(setting.played.submissions) == 5
    assert Ledger(tmp_path / "pyiron").jobs == {}
    assert not (tmp_path / "pyiron" / "lease.json").exists()
    assert list(open_project(tmp_path / "pyiron").job_table()["status"]) == ["finished"] * 5


def test_whoever_has_all_labels_does_not_wait_for_the_jobs_of_others(tmp_path, monkeypatch):
    setting = Setting(tmp_path, monkeypatch, {"where": "slurm"})
    slow, quick = request(tmp_path, 0), request(tmp_path, 1)
    runner, order = setting.runner(), list[str]()
    look, handed_in = setting.played.look, threading.Event()

    def of_the_quick_only(wanted: Mapping[str, str]) -> dict[str, Seen]:
        names = list(setting.played.there)
        handed_in.set()
        if not order:  # the first job, that of the slow one, stays in the queue
            return look({name: number for name, number in wanted.items() if name not in names[:1]})
        return look(wanted)

    def patient(played: Played, name: str, directory: Path) -> str:
        played.busy = False
        return accept(played, name, directory)

    setting.played.act = patient
    monkeypatch.setattr(setting.played, "look", of_the_quick_only)
    monkeypatch.setattr(pyiron_batch, "GRACE_S", 60.0)  # the scheduler does not know the job for so long

    def ask(one: dict[str, Any], name: str) -> None:
        if name == "quick":
            assert handed_in.wait(30.0)
        assert setting.run([one], runner)[0]["status"] == "ok"
        order.append(name)

    assert at_once(lambda: ask(slow, "slow"), lambda: ask(quick, "quick")) == [None, None]
    assert order == ["quick", "slow"]


def test_who_breaks_off_takes_no_label_from_the_others(tmp_path, monkeypatch):
    setting = Setting(tmp_path, monkeypatch, {"where": "slurm", "jobs": 10})
    requests = [request(tmp_path, n) for n in range(4)]
    free_when_submitted(setting, 4)
    runner = setting.runner()

    def broken(index: int, result: Any) -> None:
        raise EnvironmentProblemError("no room for it")

    def breaks_off() -> None:
        runner.run([{"requests": [one]} for one in requests[:2]], on_done=broken)

    error, found = at_once(breaks_off, lambda: setting.run(requests[2:], runner))
    assert isinstance(error, EnvironmentProblemError)
    assert [found[n]["status"] for n in range(2)] == ["ok"] * 2
    assert not (tmp_path / "pyiron" / "lease.json").exists()
    later = setting.run(requests, runner)  # and the folder can be used again
    assert [later[n]["status"] for n in range(4)] == ["ok"] * 4
    assert setting.attempts() == [1] * 4


def test_what_ends_the_jobs_ends_everybody_who_waits_for_them(tmp_path, monkeypatch):
    setting = Setting(tmp_path, monkeypatch, {"where": "slurm", "jobs": 10})
    requests = [request(tmp_path, n) for n in range(4)]
    runner = setting.runner()

    def then_stop(played: Played, name: str, directory: Path) -> str:
        if len(played.submissions) == 4:
            setting.interrupt.set()
        return accept(played, name, directory)

    setting.played.act = then_stop
    ended = at_once(
        lambda: setting.run(requests[:2], runner), lambda: setting.run(requests[2:], runner)
    )
    assert [type(one) for one in ended] == [InterruptedRunError] * 2
    assert len(Ledger(tmp_path / "pyiron").jobs) == 4
    assert not (tmp_path / "pyiron" / "lease.json").exists()


@pytest.mark.slow  # three trainings on a worker
def test_a_campaign_whose_rounds_overlap_buys_its_labels_as_batch_jobs(tmp_path, monkeypatch):
    setting = Setting(tmp_path, monkeypatch, {})

    def act(played: Played, name: str, directory: Path) -> str:
        if len(played.submissions) % 5 == 2:  # taken, and the answer is lost
            accept(played, name, directory)
            raise UnreachableError("socket timed out on send/recv operation")
        return accept(played, name, directory)

    setting.played.act, setting.played.busy = act, False
    path = write_campaign(tmp_path, where="local", calculator="ase.calculators.emt.EMT")
    run = "workers: 1, gpus: 0, overlap: true, labels: {where: slurm, pack: 2, jobs: 8}}\n"
    path.write_text(path.read_text().replace("workers: 2}\n", run + "trust: {force_every: 4}\n"))
    outcome = run_campaign(load_campaign(path), tmp_path / "mini")
    assert outcome.exit_code == 0
    rows = Store(outcome.home.store).snapshot().labels(status=None)
    assert {row.status for row in rows} == {"ok"}
    checks = sum(
        RoundState(outcome.home, n).facts["trust"]["emt"]["force_checks"]
        for n in outcome.home.rounds()
        if "trust" in RoundState(outcome.home, n).facts
    )
    assert checks >= 1
    assert len(rows) == 1 + 5 + 2 + 2 * 2 + 2 * checks  # atom, start, test, two rounds
    exits = [read_json(path) for path in (outcome.home.path / "pyiron").glob("*/*/exit.json")]
    computed = [line["key"] for record in exits for line in record["labels"]]
    assert sorted(computed) == sorted(row.key for row in rows)
    assert Ledger(outcome.home.path / "pyiron").jobs == {}


def test_prices_are_asked_for_and_learned_one_at_a_time(tmp_path):
    class Prices:
        """Complains when somebody is inside already."""

        def __init__(self) -> None:
            self.labels, self.inside, self.met = self, 0, 0

        def _alone(self) -> Cost:
            self.inside += 1
            time.sleep(0.0005)  # others get their turn here
            self.met += self.inside > 1
            self.inside -= 1
            return Cost()

        def label(self, fidelity: str, atoms: int) -> Cost:
            return self._alone()

        def learn_stage(self, stage: str, cost: Cost) -> None:
            self._alone()

    prices = Prices()
    budget = Budget({"cpu_s": 1e6}, Home(tmp_path), prices, Cost())

    def label_prices() -> None:
        for _ in range(50):
            budget.label_price("emt", 4)

    def stages() -> None:
        for _ in range(50):
            budget.end_stage("train", Cost(cpu_s=1.0))

    assert at_once(label_prices, stages, label_prices) == [None] * 3
    assert prices.met == 0
    assert budget.spent().cpu_s == 50.0


def test_labels_that_come_in_last_are_checked_before_the_last_committee_is_trained(
    tmp_path, monkeypatch
):
    asked, known, may_come = [("first", "emt"), ("second", "emt")], set(), threading.Event()
    checked: list[tuple[list[Any], list[Any]]] = []

    def buy(context: Any, requests: Any, *, what: str, bar: Any) -> None:
        assert may_come.wait(30.0)
        known.update(requests)

    def check(context: Any, state: RoundState, requests: Any) -> None:
        checked.append((sorted(requests), sorted(known)))

    monkeypatch.setattr(backlog.label, "label", buy)
    monkeypatch.setattr(backlog.trust, "check_labels", check)
    monkeypatch.setattr(backlog, "without_label", lambda _, some: [one for one in some if one not in known])
    context: Any = SimpleNamespace(open_pairs=(), home=Home(tmp_path))
    open_labels = backlog.Backlog(context)
    open_labels.add(asked)
    open_labels.look()
    threading.Timer(0.3, may_come.set).start()
    open_labels.finish(RoundState(context.home, 1))
    assert checked == [(asked, asked)]
    assert context.open_pairs == ()
    open_labels.finish(RoundState(context.home, 1))  # nothing is open any more
    assert len(checked) == 1
