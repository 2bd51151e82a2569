"""Labels as jobs of a pyiron project: what a pyiron user sees, and what must not happen around it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from user_campaign import campaign_folder

from alchemy import tasks
from alchemy.errors import (
    CampaignBusyError,
    EnvironmentProblemError,
    InputError,
    InterruptedRunError,
    StoreDamagedError,
)
from alchemy.lease import Lease
from alchemy.pyiron_jobs import (
    CONFIG,
    LEASE,
    job_name,
    label_as_jobs,
    label_key_of,
    open_project,
    working_directory,
)
from alchemy.records import atoms_to_document

# every evaluation appends to a file; 'mood' beside it makes the program break or last
CALCULATOR = """
import os, time
from pathlib import Path
from ase.calculators.emt import EMT

HERE = Path(__file__).parent

class Counting(EMT):
    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        with open(HERE / "evaluations", "a") as file:
            file.write(f"{os.getpid()}\\n")
        mood = (HERE / "mood").read_text()
        if mood == "break":
            print("out of luck", flush=True)
            os._exit(3)
        if mood == "sleep":
            time.sleep(60)
        super().calculate(atoms, list(properties), list(system_changes))
"""


class Place:
    """A project and the module of its calculator."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project = folder / "project"
        (folder / "alchemy_counting.py").write_text(CALCULATOR, encoding="utf-8")
        self.mood("")

    def mood(self, text: str) -> None:
        (self.folder / "mood").write_text(text, encoding="utf-8")

    def evaluations(self) -> list[int]:
        path = self.folder / "evaluations"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def request(self, seed: int, **changed: Any) -> dict[str, Any]:
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=abs(seed))
        if seed < 0:  # a wreck that no calculator sees
            atoms.positions[1] = atoms.positions[0] + 0.1
        return {
            "structure": atoms_to_document(atoms),
            "fidelity": "emt",
            "labeler": "ase",
            "options": {"calculator": "alchemy_counting.Counting"},
            "base_dir": str(self.folder),
            "root": str(self.folder / "plain"),
            "gate": {},
            "e0_eV": None,
            **changed,
        }

    def status(self) -> dict[str, str]:
        table = open_project(self.project).job_table()
        return dict(zip(table["job"], table["status"], strict=True))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # for the job's program
    return Place(tmp_path)


@pytest.fixture
def handler() -> Iterator[Any]:
    """A handler of SIGTERM of our own."""

    def ours(number: int, frame: Any) -> None: ...

    before = signal.signal(signal.SIGTERM, ours)
    yield ours
    signal.signal(signal.SIGTERM, before)


def test_labels_are_finished_jobs_with_the_numbers_of_the_plain_task(place, handler, capfd):
    requests = [place.request(seed) for seed in (0, 1, 2)]
    interrupt = signal.getsignal(signal.SIGINT)
    records = label_as_jobs([*requests, place.request(-1), requests[0]], place.project)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert signal.getsignal(signal.SIGINT) is interrupt
    assert capfd.readouterr() == ("", "")
    assert [r.status for r in records] == ["ok", "ok", "ok", "failed", "ok"]
    assert records[3].reason == "overlapping-atoms"
    assert records[3].message
    assert len(place.evaluations()) == 3
    assert len(open_project(place.project).job_table(recursive=False)) == 4
    assert place.status() == {job_name(r.key): "finished" for r in records[:4]}
    assert set(open_project(place.project).job_table()["chemicalformula"]) == {"Cu4"}
    output = open_project(place.project).load(job_name(records[0].key)).output
    assert output["energy_eV"] == records[0].energy_eV
    for request, record in zip(requests, records[:3], strict=True):
        key = tasks.label(request | {"options": {"calculator": "ase.calculators.emt.EMT"}})["key"]
        plain = tasks.read_label(Path(request["root"]), key)
        assert record.energy_eV == plain.energy_eV
        np.testing.assert_array_equal(record.forces_eV_per_A, plain.forces_eV_per_A)
        np.testing.assert_array_equal(record.stress_eV_per_A3, plain.stress_eV_per_A3)

    again = label_as_jobs([place.request(-1), *requests], place.project)
    assert [r.key for r in again] == [records[n].key for n in (3, 0, 1, 2)]
    assert len(place.evaluations()) == 3

    (working_directory(place.project, records[0].key) / records[0].key / "record.json").unlink()
    with pytest.raises(StoreDamagedError, match="decompress"):
        label_as_jobs(requests, place.project)


def test_a_program_that_breaks_is_an_aborted_job_and_the_next_call_repeats_it(place):
    request = place.request(0)
    place.mood("break")
    with pytest.raises(EnvironmentProblemError, match=r"1 of 2 .*out of luck") as caught:
        label_as_jobs([request, place.request(-1)], place.project)
    assert job_name(label_key_of(request)) in str(caught.value)
    assert sorted(place.status().values()) == ["aborted", "finished"]
    place.mood("")
    assert label_as_jobs([request], place.project)[0].status == "ok"
    assert set(place.status().values()) == {"finished"}


def test_what_is_wrong_for_every_label_is_raised_as_what_it_is(place):
    wrong = {"calculator": "alchemy_no_such_module.Calculator"}
    with pytest.raises(EnvironmentProblemError, match=r"^calculator 'alchemy_no_such_module"):
        label_as_jobs([place.request(seed, options=wrong) for seed in (0, 1)], place.project)
    assert list(place.status().values()) == ["aborted"]


def test_a_signal_ends_the_program_and_a_killed_run_is_repeated(place, handler):
    request = place.request(0)
    place.mood("sleep")

    def stop() -> None:
        while not place.evaluations():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    with pytest.raises(InterruptedRunError, match="the same command continues"):
        label_as_jobs([request], place.project)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not Path(f"/proc/{place.evaluations()[0]}").exists()
    assert list(place.status().values()) == ["aborted"]
    # what a process that was killed leaves: nobody set the status
    open_project(place.project).set_job_status(job_name(label_key_of(request)), "running")
    place.mood("")
    assert label_as_jobs([request], place.project)[0].status == "ok"
    assert list(place.status().values()) == ["finished"]


def test_settings_of_a_pyiron_in_use_come_back_and_a_project_has_one_worker(place, tmp_path):
    mine = open_project(tmp_path / "mine")
    assert label_as_jobs([], place.project) == []
    assert mine.state.settings.configuration["sql_file"] == str(tmp_path / "mine/pyiron.db")
    with Lease(place.project / LEASE), pytest.raises(CampaignBusyError):
        label_as_jobs([], place.project)
    with pytest.raises(InputError, match="':'"):
        label_as_jobs([], tmp_path / "a:b")
    with pytest.raises(InputError, match="is a file"):
        label_as_jobs([], tmp_path / "mood")


LOOK = "import pyiron_base as p, sys; print(list(p.Project(sys.argv[1]).job_table()['status']))"


def test_the_command_writes_to_its_project_only_and_a_pyiron_session_sees_it(tmp_path):
    given, project = tmp_path / "given", tmp_path / "my project"
    for name in ("home", "cwd", "given"):
        (tmp_path / name).mkdir()
    campaign_folder(given)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYIRON")}
    environment = {**clean, "HOME": str(tmp_path / "home")}
    command = [sys.executable, "-P", "-m", "alchemy", "label", str(given / "cu.xyz"), "--json"]
    command += ["--campaign", str(given), "--with", "emt", "--out", str(given / "out.extxyz")]
    command += ["--pyiron", str(project)]
    ours = subprocess.run(
        # a pyiron of the user's, which must not be touched
        command,
        cwd=tmp_path / "cwd",
        env={**environment, "PYIRONSQLFILE": str(tmp_path / "home/theirs.db")},
        capture_output=True,
        text=True,
    )
    assert ours.returncode == 0, ours.stderr
    found = json.loads(ours.stdout)
    assert found["records"] == str(project)
    assert [row["status"] for row in found["labels"]] == ["ok"]
    theirs = subprocess.run(
        [sys.executable, "-c", LOOK, str(project)],
        cwd=project,
        env={**environment, "PYIRONCONFIG": str(project / CONFIG)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert theirs.stdout.strip() == "['finished']"
    assert not list((tmp_path / "home").iterdir())
    assert not list((tmp_path / "cwd").iterdir())
    assert sorted(p.name for p in given.iterdir()) == ["campaign.yaml", "cu.xyz", "out.extxyz"]


def test_store_and_pyiron_exclude_each_other(tmp_path, monkeypatch, capsys):
    from alchemy.cli import main

    monkeypatch.chdir(tmp_path)
    campaign_folder(Path())
    words = ["label", "cu.xyz", "--campaign", ".", "--with", "emt", "--store", "s", "--pyiron", "p"]
    assert main(words) == 2
    assert "leave --store out" in capsys.readouterr().err
