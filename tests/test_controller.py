"""The controller's job without a batch system: its script, the chain, who may be the second, what is said."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from emt_campaign import write_campaign

from alchemy import controller
from alchemy.cli import main
from alchemy.config_cluster import BATCH_SYSTEMS
from alchemy.controller import Clock, Record, Request, read_record, run_job
from alchemy.errors import CampaignBusyError, InputError, InterruptedRunError
from alchemy.executors import InlineExecutor, Interrupt
from alchemy.lease import Lease

GOLDEN = Path(__file__).parent / "data" / "controller_jobs"
ASKED = Request(
    where="slurm",
    campaign="/scratch/copper/campaign.yaml",
    home="/scratch/copper/copper one",
    partition="long",
    account="chem",
    walltime_s=86400.0,
    cores=2,
    memory="4 GB",
    directives=("--qos=high",),
    setup="/home/user/env.sh",
    python="python3",
)


@pytest.mark.parametrize("where", BATCH_SYSTEMS)
def test_the_controllers_scripts_are_those_that_were_read_by_a_person(where):
    text = controller.script(replace(ASKED, where=where))
    assert text == (GOLDEN / f"{where}.sh").read_text(encoding="utf-8")
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.fixture
def slurm_of_paper(tmp_path, monkeypatch):
    """sbatch that numbers jobs and writes down how it was called; squeue shows what the test wrote."""
    programs = tmp_path / "bin"
    programs.mkdir()
    texts = {
        "sbatch": 'echo "$@" >> calls; n=$(wc -l < calls); echo $n',
        "squeue": "cat queue 2>/dev/null; true",
        "scancel": 'echo scancel "$@" >> cancelled',
    }
    for name, text in texts.items():
        path = programs / name
        path.write_text(f"#!/bin/sh\ncd {programs}\n{text}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    return programs


@pytest.fixture
def submitted(slurm_of_paper, tmp_path):
    """A campaign whose first job is about to start."""
    home = tmp_path / "home"
    home.mkdir()
    controller.submit(replace(ASKED, home=str(home), walltime_s=3600.0))
    return home


def until_rung(request, interrupt):
    """A campaign that works until the clock rings."""
    while not interrupt.draining:
        time.sleep(0.01)
    raise InterruptedRunError("interrupted")


def at_the_end_of_its_walltime(monkeypatch):
    monkeypatch.setenv("ALCHEMY_JOB_STARTED", str(time.time() - 3590.0))


def test_a_job_whose_walltime_ends_is_followed_by_one_that_waits_for_it(
    submitted, slurm_of_paper, monkeypatch
):
    at_the_end_of_its_walltime(monkeypatch)
    record = run_job(submitted, until_rung)
    assert (record.job, record.jobs, record.exit_code) == ("2", 2, 7)
    first, second = (slurm_of_paper / "calls").read_text().splitlines()
    assert "dependency" not in first
    assert "--dependency=afterany:1" in second
    assert read_record(submitted).message == "handed over to job 2"


def test_no_reader_sees_the_next_job_with_the_last_words_of_the_one_before(submitted, monkeypatch):
    shown, write = [], Record.write

    def noted(record):
        shown.append((record.job, record.message.startswith("handed over")))
        write(record)

    monkeypatch.setattr(Record, "write", noted)
    at_the_end_of_its_walltime(monkeypatch)
    run_job(submitted, until_rung)
    assert ("2", True) in shown
    assert ("2", False) not in shown


def test_jobs_that_bring_the_campaign_nowhere_are_not_followed_for_ever(submitted, monkeypatch):
    at_the_end_of_its_walltime(monkeypatch)
    assert run_job(submitted, until_rung).idle == 1
    last = run_job(submitted, until_rung)
    assert (last.exit_code, last.jobs) == (5, 2)
    assert "2 jobs in a row reached their walltime of 3600 s" in last.message


def test_a_finished_stage_between_two_walltimes_counts_as_progress(submitted, monkeypatch):
    at_the_end_of_its_walltime(monkeypatch)
    run_job(submitted, until_rung)

    def works(request, interrupt):
        path = submitted / "rounds" / "001"
        path.mkdir(parents=True)
        (path / "state.json").write_text('{"stages": {"train": {}}}')
        return until_rung(request, interrupt)

    assert run_job(submitted, works).idle == 0
    assert run_job(submitted, until_rung).idle == 1


@pytest.mark.parametrize(("code", "words"), [(0, "goal met"), (4, "budget"), (6, "model-limited")])
def test_a_campaign_that_ends_is_not_followed(submitted, slurm_of_paper, code, words):
    record = run_job(submitted, lambda request, interrupt: (code, words))
    assert (record.exit_code, record.message, record.jobs) == (code, words, 1)


def test_a_signal_from_outside_ends_the_chain(submitted):
    def stopped(request, interrupt):
        raise InterruptedRunError("interrupted")

    assert run_job(submitted, stopped).jobs == 1


def test_a_broken_environment_ends_the_chain_with_its_words(submitted):
    def broken(request, interrupt):
        raise InputError("campaign.yaml:3: seed: wrong")

    record = run_job(submitted, broken)
    assert (record.exit_code, record.message) == (2, "campaign.yaml:3: seed: wrong")


def test_a_second_controller_is_refused(submitted, slurm_of_paper):
    (slurm_of_paper / "queue").write_text("1|PENDING|Resources|N/A\n")
    again = read_record(submitted).request
    with pytest.raises(CampaignBusyError, match=r"job 1 \(PENDING \(Resources\)\) is the controller"):
        controller.submit(again)
    (slurm_of_paper / "queue").write_text("1|COMPLETED|None|N/A\n")
    with Lease(submitted / "lease.json"), pytest.raises(CampaignBusyError, match="runs this campaign"):
        controller.submit(again)
    assert controller.submit(again) == "2"


def test_a_running_controller_gets_the_signal_alone_and_a_waiting_one_leaves_the_queue(
    submitted, slurm_of_paper
):
    (slurm_of_paper / "queue").write_text("1|RUNNING|None|9999999999\n")
    controller.cancel(submitted)
    (slurm_of_paper / "queue").write_text("1|PENDING|None|N/A\n")
    controller.cancel(submitted)
    asked = (slurm_of_paper / "cancelled").read_text().splitlines()
    assert asked == ["scancel --batch --signal=TERM 1", "scancel 1"]
    (slurm_of_paper / "queue").write_text("")
    with pytest.raises(InputError, match="no controller in a queue"):
        controller.cancel(submitted)


def test_the_clock_first_lets_tasks_finish_and_then_ends_whatever_runs(monkeypatch):
    monkeypatch.setattr(controller, "HARD_STOP_S", 0.0)
    interrupt = Interrupt()
    clock = Clock(replace(ASKED, walltime_s=100.0), interrupt, time.time() - 54.0)
    time.sleep(0.2)
    assert not clock.rang  # 45.8 s are left, a second more than the margin of 45
    interrupt.raise_if_set()
    time.sleep(1.2)
    assert clock.rang
    interrupt.raise_if_set(busy=True)
    with pytest.raises(InterruptedRunError):
        interrupt.raise_if_set()


def test_draining_lets_the_task_under_way_finish_and_begins_no_other():
    interrupt, done = Interrupt(), []

    def task(request):
        interrupt.drain()
        return {"n": request["n"]}

    with pytest.raises(InterruptedRunError):
        InlineExecutor(interrupt).run(
            task, [{"n": 0}, {"n": 1}], resource="LABEL", on_done=lambda n, result: done.append(result)
        )
    assert done == [{"n": 0}]


def test_submit_says_the_job_and_status_shows_it(slurm_of_paper, tmp_path, capsys):
    path = write_campaign(tmp_path / "c")
    assert main(["submit", str(path), "--partition", "debug", "--walltime", "1 h"]) == 0
    assert "job 1: controller of mini" in capsys.readouterr().out
    (slurm_of_paper / "queue").write_text("1|PENDING|Priority|N/A\n")
    assert main(["status", str(path)]) == 0
    said = capsys.readouterr().out
    assert "no round has begun" in said
    assert "controller: job 1 (slurm), PENDING (Priority)" in said
    assert main(["status", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["controller"]["job"] == "1"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--walltime", "10"], 2, "--walltime: found"),
        (["--walltime", "1 min"], 2, "too short"),
        (["--memory", "lots"], 2, "--memory: found 'lots'"),
        (["--partition", "a b"], 2, "--partition: found 'a b'"),
        (["--setup", "gone.sh"], 2, "--setup gone.sh: no such file"),
        (["--directive", "-x\nrm"], 2, "--directives: found"),
        (["--cancel"], 2, "no controller in a queue"),
    ],
)
def test_submit_says_what_is_wrong(slurm_of_paper, tmp_path, capsys, words, code, said):
    path = write_campaign(tmp_path / "c")
    assert main(["submit", str(path), *words]) == code
    assert said in capsys.readouterr().err
    assert not (slurm_of_paper / "calls").exists()


def test_without_a_batch_system_submit_says_so_and_a_dry_run_needs_none(tmp_path, monkeypatch, capsys):
    path = write_campaign(tmp_path / "c")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["submit", str(path)]) == 3
    assert "none of sbatch, qsub and bsub" in capsys.readouterr().err
    assert main(["submit", str(path), "--scheduler", "pbs", "--dry-run"]) == 0
    assert "#PBS -l walltime=12:00:00" in capsys.readouterr().out
    assert not (tmp_path / "c" / "mini").exists()


def test_names_in_paths_do_not_reach_the_shell(tmp_path):
    text = controller.script(replace(ASKED, home=f"{tmp_path}/a;touch pwned; $(id)"))
    subprocess.run(["bash", "-c", text.replace("exec python3", "true")], cwd=tmp_path, capture_output=True)
    assert not (tmp_path / "pwned").exists()
    with pytest.raises(InputError, match="characters that no job script can"):
        controller.script(replace(ASKED, home="/scratch/a\n#SBATCH --wrap=x"))


def test_records_read_back_as_they_were_written(tmp_path):
    request = replace(ASKED, home=str(tmp_path), only=("pbe",))
    record = Record(request, job="7", jobs=3, message="words")
    record.write()
    assert read_record(tmp_path) == record


def test_usr1_moves_the_end_near(submitted):
    """As Slurm's --signal does when somebody shortens the job."""
    threading.Timer(0.5, lambda: os.kill(os.getpid(), 10)).start()
    started = time.monotonic()
    record = run_job(submitted, until_rung)
    assert record.jobs == 2
    assert time.monotonic() - started < 10
