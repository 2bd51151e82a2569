"""Where tasks run: results, errors, dying workers, addresses, interrupts."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from executor_tasks import die_on_seven, double, refuse, sleep

from alchemy.config_blocks import Run
from alchemy.errors import EnvironmentProblemError, InterruptedRunError
from alchemy.executors import InlineExecutor, Interrupt, WorkerKilledError, make_executor
from alchemy.executors_dask import DaskExecutor, LostResultError


def collect(executor, task, values, resource="LABEL"):
    found = {}
    executor.run(
        task, [{"value": v} for v in values], resource=resource, on_done=lambda n, r: found.update({n: r})
    )
    return found


def cluster(**kwargs):
    return make(Run(where="local", workers=2, gpus=0), **kwargs)


def make(run, **kwargs):
    return make_executor(
        run, **{"home": Path.cwd(), "base_dir": Path.cwd(), "interrupt": Interrupt(), **kwargs}
    )


@pytest.fixture(scope="module")
def local():
    executor = cluster()
    yield executor
    executor.close()


def test_inline_runs_in_order_in_this_process_and_hands_errors_on():
    executor = InlineExecutor(Interrupt())
    assert [r["value"] for r in collect(executor, double, [1, 2, 3]).values()] == [2, 4, 6]
    assert all(r["pid"] == os.getpid() for r in collect(executor, double, [1]).values())
    assert isinstance(collect(executor, refuse, [1])[0], ValueError)


def test_an_interrupt_stops_inline_before_the_next_task():
    interrupt = Interrupt()
    interrupt.set()
    with pytest.raises(InterruptedRunError):
        collect(InlineExecutor(interrupt), double, [1])


def test_a_local_cluster_answers_every_request_from_other_processes(local):
    found = collect(local, double, range(20))
    assert {n: r["value"] for n, r in found.items()} == {n: 2 * n for n in range(20)}
    assert os.getpid() not in {r["pid"] for r in found.values()}
    assert {r["omp"] for r in found.values()} == {"1"}  # two workers on two cores: a thread each


def test_an_error_of_a_task_is_handed_on_and_the_others_finish(local):
    found = collect(local, refuse, [4])
    assert isinstance(found[0], ValueError)
    assert str(found[0]) == "no 4"
    assert collect(local, double, [], resource="GPU") == {}


def test_a_task_that_kills_its_worker_every_time_is_given_up_and_harms_no_other():
    executor = cluster()
    try:
        found = collect(executor, die_on_seven, range(10))
    finally:
        executor.close()
    assert isinstance(found.pop(7), WorkerKilledError)
    assert {n: r["value"] for n, r in found.items()} == {n: 2 * n for n in range(10) if n != 7}


def test_a_result_that_is_lost_with_its_worker_is_computed_again(local, monkeypatch):
    lost = []

    def result(self, future):
        if not lost:
            lost.append(future.key)
            return LostResultError("gone")
        return DaskExecutor._result(self, future)

    monkeypatch.setattr(local, "_result", result.__get__(local), raising=False)
    found = collect(local, double, range(4))
    assert {n: r["value"] for n, r in found.items()} == {n: 2 * n for n in range(4)}
    assert len(lost) == 1


def test_requests_are_drawn_when_there_is_room(local):
    drawn, found = [], {}

    def requests():
        for value in range(12):
            drawn.append(len(found))
            yield {"value": value}

    local.run(double, requests(), resource="LABEL", on_done=lambda n, r: found.update({n: r}))
    assert sorted(found) == list(range(12))
    assert drawn[4] >= 1  # two workers: two tasks each, and the fifth when the first is done
    assert drawn[11] >= 8


def test_an_existing_scheduler_is_used_by_its_address(local):
    address = local._client.scheduler.address
    assert address.startswith("tcp://127.0.0.1")  # loopback only
    other = make(Run(where=address))
    try:
        assert collect(other, double, [21])[0]["value"] == 42
    finally:
        other.close()
    assert collect(local, double, [1])[0]["value"] == 2  # the cluster was not ours to close


def test_an_address_where_nobody_answers_is_an_environment_problem():
    with pytest.raises(EnvironmentProblemError, match=r"tcp://127\.0\.0\.1:9"):
        make(Run(where="tcp://127.0.0.1:9"))


def test_an_interrupt_is_noticed_while_tasks_run():
    interrupt = Interrupt()
    executor = cluster(interrupt=interrupt)
    try:
        threading.Timer(1.0, interrupt.set).start()
        started = time.monotonic()
        with pytest.raises(InterruptedRunError):
            collect(executor, sleep, [1])
        assert time.monotonic() - started < 20  # the task itself sleeps for a minute
    finally:
        executor.close()
