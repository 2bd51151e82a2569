"""The controller of batch jobs against a scheduler that is played: lost answers, dead claims, two ways."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from played_scheduler import Played, Setting, accept, request

from alchemy import label_claims
from alchemy.batch_ledger import Ledger
from alchemy.errors import InterruptedRunError
from alchemy.label_runners import LostLabelError
from alchemy.pyiron_project import open_project
from alchemy.pyiron_queue import UnreachableError
from alchemy.records import read_json, write_json_atomic
from alchemy.scheduler_states import Seen


def test_an_answer_that_is_lost_leads_to_no_second_submission(tmp_path, monkeypatch):
    setting = Setting(tmp_path, monkeypatch, {"where": "slurm", "pack": 2})

    def taken_without_a_word(played: Played, name: str, directory: Path) -> str:
        number = accept(played, name, directory)
        played.act, played.busy = accept, False
        raise UnreachableError(f"socket timed out on send/recv operation ({number})")

    setting.played.act = taken_without_a_word
    found = setting.run([request(tmp_path, n) for n in range(4)])
    assert [found[n]["status"] for n in range(4)] == ["ok"] * 4
    assert len(setting.played.submissions) == 2
    assert setting.attempts() == [1] * 4
    assert any("does not answer" in line for line in setting.said)
    project = open_project(tmp_path / "pyiron")
    assert list(project.job_table()["status"]) == ["finished"] * 2
    job = project.load(setting.played.submissions[0])
    assert job.server.queue_id == 100
    assert len(job.output["finished"]) == 2


def test_a_submission_that_never_arrived_is_made_again_and_the_first_may_not_work_any_more(
    tmp_path, monkeypatch
):
    setting = Setting(tmp_path, monkeypatch, {"where": "slurm"})

    def lost(played: Played, name: str, directory: Path) -> str:
        played.act, played.busy = accept, False
        raise UnreachableError("connection refused")

    setting.played.act = lost
    assert setting.run([request(tmp_path, 0)])[0]["status"] == "ok"
    first, second = setting.played.submissions
    assert (tmp_path / "pyiron" / f"{first}_hdf5" / first / "revoked").exists()
    assert not (tmp_path / "pyiron" / f"{second}_hdf5" / second / "revoked").exists()


def test_an_interrupted_call_leaves_its_jobs_and_the_next_one_collects_them(tmp_path, monkeypatch):
    setting = Setting(tmp_path, monkeypatch, {"where": "slurm", "jobs": 2})
    requests = [request(tmp_path, n) for n in range(3)]
    look = setting.played.look

    def interrupted(wanted: Mapping[str, str]) -> dict[str, Seen]:
        setting.interrupt.set()
        return look(wanted)

    monkeypatch.setattr(setting.played, "look", interrupted)
    with pytest.raises(InterruptedRunError):
        setting.run(requests)
    assert len(Ledger(tmp_path / "pyiron").jobs) == len(setting.played.submissions) == 2
    assert setting.played.cancelled == []
    again = Setting(tmp_path, monkeypatch, {"where": "slurm", "jobs": 2})
    again.played.there, again.played.busy = setting.played.there, False
    found = again.run(requests)
    assert [found[n]["status"] for n in range(3)] == ["ok"] * 3
    assert len(again.played.submissions) == 1
    assert setting.attempts() == [1] * 3


def test_jobs_of_a_level_that_has_become_the_workers_are_collected_and_not_computed_beside(
    tmp_path, monkeypatch
):
    setting = Setting(tmp_path, monkeypatch, {"where": "slurm"})
    requests = [request(tmp_path, n) for n in range(3)]

    def second(played: Played, name: str, directory: Path) -> str:
        setting.interrupt.set()
        return accept(played, name, directory)

    def first(played: Played, name: str, directory: Path) -> str:
        played.act = second
        return accept(played, name, directory)

    setting.played.act = first
    with pytest.raises(InterruptedRunError):
        setting.run(requests)
    assert len(setting.played.there) == 2
    workers = Setting(tmp_path, monkeypatch, {})
    workers.played.there, workers.played.busy = setting.played.there, False
    gone = next(iter(workers.played.there))
    del workers.played.there[gone]  # lost with its label: now the workers'
    found = workers.run(requests)
    assert [found[n]["status"] for n in range(3)] == ["ok"] * 3
    assert workers.played.submissions == []
    assert workers.attempts() == [1]


def test_cheap_levels_stay_with_the_workers_while_dear_ones_are_jobs(tmp_path, monkeypatch):
    labels = {"fidelities": {"dear": {"where": "slurm"}}}
    setting = Setting(tmp_path, monkeypatch, labels)
    setting.played.busy = False
    requests = [request(tmp_path, n, "dear" if n % 2 else "cheap") for n in range(4)]
    found = setting.run(requests)
    assert [found[n]["key"] for n in range(4)] == [r["key"] for r in requests]
    assert len(setting.played.submissions) == 2
    assert setting.attempts() == [1, 1]


def test_a_label_that_was_killed_has_the_scheduler_s_word_for_it_as_its_reason(tmp_path, monkeypatch):
    setting = Setting(tmp_path, monkeypatch, {"where": "slurm", "retries": 0})

    def too_large(played: Played, name: str, directory: Path) -> str:
        lines = [{"key": read_json(directory / "pack.json")["labels"][0]["key"], "state": "died"}]
        record = {"began_unix_s": 0.0, "ended_unix_s": 1.0, "reason": "done", "labels": lines, "host": "n1"}
        write_json_atomic(directory / "exit.json", record)
        played.ended[name] = Seen("7", name, "ended", "out-of-memory", "OUT_OF_MEMORY")
        return "7"

    setting.played.act = too_large
    found = setting.run([request(tmp_path, 0)])[0]
    assert isinstance(found, LostLabelError)
    assert found.reason == "out-of-memory"
    assert "OUT_OF_MEMORY" in str(found)


def test_jobs_that_vanish_with_a_label_are_tried_again_up_to_the_limit(tmp_path, monkeypatch):
    setting = Setting(tmp_path, monkeypatch, {"where": "slurm", "pack": 2, "retries": 1})
    wanted = request(tmp_path, 0)

    def dies(played: Played, name: str, directory: Path) -> str:
        pack = json.loads((directory / "pack.json").read_text())
        keys = [entry["key"] for entry in pack["labels"]]
        if wanted["key"] not in keys:
            played.busy = False
            return accept(played, name, directory)
        assert label_claims.take(tmp_path / "labels", wanted["key"], name) == ""  # those of the dead are void
        lines = [{"key": wanted["key"], "state": "running"}]
        record = {"began_unix_s": 0.0, "ended_unix_s": None, "reason": None, "labels": lines, "host": "n1"}
        write_json_atomic(directory / "exit.json", record)
        return "7"  # and is gone

    setting.played.act = dies
    found = setting.run([wanted, request(tmp_path, 1)])
    assert isinstance(found[0], LostLabelError)
    assert found[0].reason == "out-of-time"  # began long ago, and nobody knows of the job
    assert "2 tries" in str(found[0])
    assert found[1]["status"] == "ok"
    assert label_claims.holder_of(tmp_path / "labels", wanted["key"]) == ""
    # a later call begins anew
    setting.played.act, setting.played.busy = accept, False
    assert setting.run([wanted])[0]["status"] == "ok"
