"""Worker jobs without a batch system: the block, the scripts of all four, what their commands say."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cluster_campaign import block, write_cluster_campaign

from alchemy import batch_systems
from alchemy.config import campaign_hash, load_campaign, load_campaign_text
from alchemy.config_blocks import Run
from alchemy.config_cluster import BATCH_SYSTEMS, Cluster, Workers, size_bytes
from alchemy.config_explain import explain
from alchemy.errors import ConfigError, EnvironmentProblemError
from alchemy.executors import Interrupt, make_executor
from alchemy.executors_cluster import jobs_wanted
from alchemy.executors_dask import StandingSupply
from alchemy.executors_jobs import (
    NO_FOLDER,
    NO_PYTHON,
    SETUP_FAILED,
    JobMaker,
    first_lines,
    last_words,
    setup_file,
)

GOLDEN = Path(__file__).parent / "data" / "worker_jobs"
FULL = {
    "gpu": {
        "partition": "gpu", "cores": 8, "memory": "32 GB", "walltime": "12 h", "jobs": "0-4",
        "gpus": 2, "gpu_type": "a100", "directives": ["--qos=high"],
    },
    "cpu": {"cores": 4, "memory": "8 GiB", "walltime": "90 min", "jobs": 2},
    "account": "chem", "setup": "my env.sh", "python": "python3", "interface": "ib0",
}  # fmt: skip


def maker(where, **changes):
    keys = {"ca_file": "ca", "cert": "cert", "key": "my key"}
    return JobMaker(
        Cluster.model_validate({**FULL, **changes}),
        where,
        2,
        Path("/scratch/copper/workers"),
        Path("/home/user"),
        {role: Path("/scratch/copper/workers") / name for role, name in keys.items()},
    )


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
@pytest.mark.parametrize("where", BATCH_SYSTEMS)
def test_the_job_scripts_are_those_that_were_read_by_a_person(where, kind):
    job = maker(where).job(kind, f"{kind}-7", "tls://10.0.0.1:8786")
    assert job.job_script() == (GOLDEN / f"{where}-{kind}.sh").read_text(encoding="utf-8")


@pytest.mark.parametrize("where", BATCH_SYSTEMS)
def test_the_job_scripts_are_shell_that_parses(where):
    script = maker(where).job("gpu", "gpu-7", "tls://10.0.0.1:8786").job_script()
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_a_workers_key_never_stands_in_its_script_and_its_path_is_quoted():
    script = maker("slurm").job("cpu", "cpu-1", "tls://10.0.0.1:8786").job_script()
    assert "--tls-key '/scratch/copper/workers/my key'" in script
    assert "PRIVATE KEY" not in script


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"setup": "fails.sh"}, SETUP_FAILED, "fails.sh failed"),
        ({"setup": None, "python": "no-such-python"}, NO_PYTHON, "no-such-python not found"),
        ({"setup": None}, NO_FOLDER, "/nowhere is not visible"),
        ({"setup": "$(touch pwned).sh"}, SETUP_FAILED, "$(touch pwned).sh failed"),
    ],
)
def test_a_node_that_lacks_something_says_what(tmp_path, changes, code, said):
    (tmp_path / "fails.sh").write_text("false\n")
    setup, python = (changes.get(key, FULL[key]) for key in ("setup", "python"))
    lines = first_lines(setup_file(setup, tmp_path), python, Path("/nowhere"))
    done = subprocess.run(
        ["bash"], input="\n".join(lines), text=True, capture_output=True, cwd=tmp_path
    )
    assert done.returncode == code
    assert f"alchemy: {'setup file ' if code == SETUP_FAILED else ''}" in done.stderr
    assert said in done.stderr
    assert not (tmp_path / "pwned").exists()


def test_the_last_words_of_a_log_are_ours_if_there_are_any(tmp_path):
    log = tmp_path / "cpu-1.log"
    assert "no such file" in last_words(log)
    log.write_text("one\n\nalchemy: python3 not found on node n1\nthree\n")
    assert last_words(log) == "alchemy: python3 not found on node n1"
    log.write_text("\n".join(f"line {n}" for n in range(20)))
    assert last_words(log).startswith("line 14 | ")


@pytest.mark.parametrize(
    ("block_text", "said"),
    [
        ("{where: slurm}", "run: where: slurm needs to know which jobs to ask for; add a block 'cluster:'"),
        ("{where: slrum}", "run.where: found 'slrum'; did you mean 'slurm'?"),
        ("{cluster: {cpu: {}}}", "run: cluster: has no effect with where: local; write where: slurm, pbs"),
        ("{where: slurm, workers: 2, cluster: {cpu: {}}}", "run: workers: has no effect with where: slurm"),
        ("{where: slurm, cluster: {}}", "run.cluster: names no workers; add gpu: or cpu:"),
        ("{where: slurm, cluster: {cpu: {jobs: 4-1}}}", "cpu.jobs: found '4-1'; write the smaller number"),
        ("{where: slurm, cluster: {cpu: {jobs: many}}}", "cpu.jobs: found 'many'; write a number of jobs"),
        ("{where: slurm, cluster: {cpu: {memory: 4}}}", 'cpu.memory: found 4; write a size such'),
        ("{where: slurm, cluster: {cpu: {walltime: 12}}}", 'cpu.walltime: found 12, a bare number;'),
        ("{where: slurm, cluster: {cpu: {walltime: 10 min, drain: 1 h}}}", "drain of 3600 s is not below"),
        ('{where: slurm, cluster: {cpu: {partition: "a b"}}}', "cpu.partition: found 'a b'; use letters"),
        ('{where: slurm, cluster: {cpu: {directives: ["-x\\nrm"]}}}', "cpu.directives[0]: found"),
        ("{where: slurm, cluster: {cpu: {gpu: 1}}}", "cluster.cpu.gpu: unknown key; did you mean 'gpus'"),
        ("{where: slurm, cluster: {cpu: {}, setup: gone.sh}}", "run.cluster.setup: found 'gone.sh', no such"),
    ],
)
def test_a_wrong_block_is_refused_with_key_and_remedy(tmp_path, block_text, said):
    path = write_cluster_campaign(tmp_path, f"run: {block_text}\n")
    with pytest.raises(ConfigError) as caught:
        load_campaign(path)
    assert said in str(caught.value)
    assert "campaign.yaml:25" in str(caught.value)


def test_the_resolved_file_reads_back_equal(tmp_path):
    path = write_cluster_campaign(tmp_path, block(gpu_jobs="0-3"))
    campaign = load_campaign(path)
    again = load_campaign_text(explain(campaign), "again.yaml", tmp_path)
    assert campaign_hash(again) == campaign_hash(campaign)
    assert (again.run.cluster.gpu.least, again.run.cluster.gpu.most) == (0, 3)


def test_one_kind_does_the_tasks_of_both():
    both = Cluster.model_validate({"gpu": {}, "cpu": {}})
    assert both.resources("gpu") == ("GPU",)
    assert both.resources("cpu") == ("LABEL",)
    assert Cluster.model_validate({"gpu": {}}).resources("gpu") == ("GPU", "LABEL")


def test_sizes_are_decimal_or_binary_as_they_are_written():
    assert size_bytes("1.5 GB") == 1_500_000_000
    assert size_bytes("2 GiB") == 2 * 2**30


def test_jobs_follow_the_work_within_their_limits():
    workers = Workers.model_validate({"jobs": "1-4"})
    assert [jobs_wanted(workers, tasks, 2) for tasks in (0, 1, 2, 3, 7, 100)] == [1, 1, 1, 2, 4, 4]


def test_a_missing_batch_system_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    run = Run.model_validate({"where": "lsf", "cluster": {"cpu": {}}})
    with pytest.raises(EnvironmentProblemError, match="bsub, bjobs, bkill not found in PATH"):
        make_executor(run, home=tmp_path, base_dir=tmp_path, interrupt=Interrupt())


def test_somebody_elses_scheduler_without_workers_is_given_up_after_a_while():
    assert "waiting for a Dask worker that offers GPU" in StandingSupply().waiting("GPU")
    supply = StandingSupply(patience_s=0.0)
    with pytest.raises(EnvironmentProblemError, match="no Dask worker offers the resource GPU"):
        supply.waiting("GPU")


def test_what_squeue_says_is_understood():
    lines = ["12|RUNNING|None|1000600", "13|PENDING|Resources|N/A", "14|TIMEOUT|TimeLimit|1000"]
    text = "\n".join([*lines, "15|RUNNING|None|NONE"])
    seen = dict(batch_systems.read_squeue(text, 1000000.0))
    assert {number: job.state for number, job in seen.items()} == {
        "12": "running", "13": "pending", "14": "ended", "15": "running"
    }  # fmt: skip
    assert seen["12"].left_s == 600
    assert seen["15"].left_s is None
    assert str(seen["13"]) == "PENDING (Resources)"


# as `qstat -f` of OpenPBS 20 and Torque 6 prints jobs, long values folded with a tab
QSTAT_FULL = """\
Job Id: 101.head
    Job_Name = alchemy-cpu
    job_state = R
    resources_used.walltime = 00:10:00
    Resource_List.walltime = 02:00:00
    Variable_List = PBS_O_HOME=/home/u,PBS_O_PATH=/bin:
\t/usr/bin
Job Id: 102[].head
    job_state = Q
    Resource_List.walltime = 02:00:00
    comment = Not Running: Insufficient amount of resource: ncpus
Job Id: 103.head
    job_state = F
"""
SGE_QSTAT = """\
job-ID  prior   name       user         state submit/start at     queue                slots ja-task-ID
-----------------------------------------------------------------------------------------------------------------
    201 0.55500 alchemy-cp user         r     11/22/2026 18:00:01 all.q@n1                 4
    202 0.55500 alchemy-cp user         qw    11/22/2026 18:00:02                          4
    203 0.00000 alchemy-cp user         Eqw   11/22/2026 18:00:03                          4
"""
BJOBS = "301|RUN|1:30 L|-\n302|PEND|-|Job slot limit reached;\n303|EXIT|-|-\nJob <304> is not found\n"


def test_what_qstat_and_bjobs_say_is_understood():
    pbs = dict(batch_systems.read_qstat_full(QSTAT_FULL))
    assert {n: j.state for n, j in pbs.items()} == {"101": "running", "102[]": "pending", "103": "ended"}
    assert pbs["101"].left_s == 110 * 60
    assert "Insufficient amount of resource: ncpus" in str(pbs["102[]"])
    sge = dict(batch_systems.read_sge_qstat(SGE_QSTAT))
    assert {n: j.state for n, j in sge.items()} == {"201": "running", "202": "pending", "203": "pending"}
    assert "qstat -j 203" in sge["203"].reason
    lsf = dict(batch_systems.read_bjobs(BJOBS))
    assert {n: j.state for n, j in lsf.items()} == {"301": "running", "302": "pending", "303": "ended"}
    assert lsf["301"].left_s == 90 * 60
