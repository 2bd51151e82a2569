"""What schedulers are told and what they answer: scripts, their parsers, run.labels; no scheduler needed.

The scripts of PBS, SGE and LSF and their answers are checked against text alone: none of them runs here.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from batch_helpers import SLURM, Place

from alchemy import scheduler_states
from alchemy.config import load_campaign
from alchemy.config_explain import explain
from alchemy.config_labels import LabelJobs
from alchemy.errors import ConfigError, EnvironmentProblemError, InputError
from alchemy.pyiron_queue import Queue, QueueFullError, UnreachableError, script

GOLDEN = Path(__file__).parent / "data" / "schedulers"
JOBS = {
    "partition": "long",
    "account": "p-42",
    "nodes": 2,
    "tasks": 8,
    "cores": 4,
    "memory": "64 GB",
    "walltime": "90 min",
    "setup": Path("modules.sh"),
    "extra": ("--reservation=dft",),
}


def asked(where: str, **changed: object) -> LabelJobs:
    values = {"where": where, **JOBS, "setup": "modules.sh", **changed}
    return LabelJobs.model_validate({k: v for k, v in values.items() if v is not None})


@pytest.mark.parametrize("where", ["slurm", "pbs", "sge", "lsf"])
def test_scripts_are_as_they_were_read_by_a_person(where, tmp_path):
    (tmp_path / "modules.sh").touch()
    text = script(asked(where), "al0123456789ab", directory=Path("/scratch/pd/job"), base_dir=tmp_path)
    for found, stands in ((str(tmp_path), "/BASE"), (sys.executable, "PYTHON")):
        text = text.replace(found, stands)
    golden = GOLDEN / f"{where}.sh"
    assert text == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("where", ["slurm", "pbs", "sge", "lsf"])
def test_what_is_not_asked_for_is_not_in_the_script(where, tmp_path):
    jobs = LabelJobs.model_validate({"where": where})
    text = script(jobs, "al0123456789ab", directory=Path("/scratch/job"), base_dir=tmp_path)
    assert "None" not in text
    assert not any(word in text for word in ("--mem", "mem=", "h_vmem", "-M ", "account", "partition="))


def test_names_and_paths_cannot_become_commands(tmp_path):
    setup = tmp_path / "mod; touch pwned.sh"
    setup.touch()
    jobs = asked("slurm", setup=setup.name)
    text = script(jobs, "al0", directory=Path("/scratch/job"), base_dir=tmp_path)
    assert f". '{setup}' ||" in text
    for folder in ("/scratch/my job", "/scratch/$(id)", "/scratch/a\nb", "/scratch/a%b"):
        with pytest.raises(InputError, match="choose another folder"):
            script(jobs, "al0", directory=Path(folder), base_dir=tmp_path)
    with pytest.raises(InputError, match=r"run\.labels\.setup: there is no file"):
        script(asked("slurm", setup="gone.sh"), "al0", directory=Path("/s"), base_dir=tmp_path)
    (tmp_path / "own.j2").write_text("{{ ''.__class__.__mro__ }}")
    with pytest.raises(InputError, match="unsafe"):
        script(asked("slurm", setup=None, template="own.j2"), "al0", directory=Path("/s"), base_dir=tmp_path)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ("{where: slrum}", "'slurm'"),
        ("{where: slurm, partition: 'long; rm'}", "a name of letters"),
        ("{where: slurm, memory: 4}", 'such as "4 GB"'),
        ("{where: slurm, walltime: 6}", "a bare number"),
        ("{where: slurm, walltime: 30 s}", "schedulers count minutes"),
        ("{where: slurm, extra: ['#SBATCH --x']}", "leave the scheduler's mark out"),
        ("{where: slurm, setup: gone.sh}", "no such file"),
        ("{where: slurm, fidelities: {pbe: {cores: 2}}}", "no such fidelity"),
        ("{where: slurm, fidelities: {emt: {core: 2}}}", "'cores'"),
    ],
)
def test_mistakes_in_run_labels_are_told_at_their_line(block, words, tmp_path):
    place = Place(tmp_path, block)
    with pytest.raises(ConfigError) as caught:
        load_campaign(place.campaign)
    assert words in str(caught.value)
    assert "run.labels" in str(caught.value)


def test_a_level_takes_from_the_block_what_it_does_not_say(tmp_path):
    place = Place(tmp_path, SLURM.replace("}", ", fidelities: {emt: {cores: 8, memory: 2.5 GB}}}"))
    campaign = load_campaign(place.campaign)
    own = campaign.run.labels.of("emt")
    assert (own.where, own.pack, own.cores, own.memory_MB) == ("slurm", 2, 8, 2500)
    assert campaign.run.labels.of("another").cores == 1
    again = tmp_path / "again.yaml"
    again.write_text(explain(campaign), encoding="utf-8")
    assert load_campaign(again) == campaign
    assert not load_campaign(Place(tmp_path, "{}").campaign).run.labels.batch


def test_slurm_s_states_have_one_meaning_each():
    lines = """\
7|PENDING|Priority|al1
8|PENDING|PartitionConfig|al2
9|PENDING|AssocMaxJobsLimit|al3
10|RUNNING|None|al4
11|COMPLETING|None|a|b
12|TIMEOUT|TimeLimit|al6
13|OUT_OF_MEMORY|OutOfMemory|al7
14|NODE_FAIL|NodeDown|al8
15|PREEMPTED|None|al9
16|CANCELLED|None|al10
17|BOOT_FAIL|None|al11
18|FAILED|NonZeroExitCode|al12
"""
    found = {seen.id: seen for seen in scheduler_states.slurm(lines)}
    assert [found[str(n)].hopeless for n in (7, 8, 9)] == [False, True, False]
    assert found["8"].word == "PENDING (PartitionConfig)"
    assert (found["11"].state, found["11"].name) == ("running", "a|b")
    assert [found[str(n)].ending for n in range(12, 19)] == [
        "timeout", "out-of-memory", "node-failure", "preempted", "cancelled", "node-failure", "failed"
    ]  # fmt: skip
    lines = "16|CANCELLED by 1000|al10\n16.batch|CANCELLED|batch\n"
    accounted = list(scheduler_states.slurm_accounting(lines))
    assert [(seen.name, seen.ending) for seen in accounted] == [("al10", "cancelled")]


QSTAT = """\
Job Id: 41.head
    Job_Name = al1
    job_state = R
    Resource_List.walltime = 01:00:00

Job Id: 42.head
    Job_Name = al2
    job_state = Q
    comment = Can Never Run: Insufficient amount of resource: ncpus (R: 5000 A: 96
\tT: 96)

Job Id: 43.head
    Job_Name = al3
    job_state = C
    exit_status = 271
    Resource_List.walltime = 01:00:00
    resources_used.walltime = 01:00:20

Job Id: 44.head
    Job_Name = al4
    job_state = F
    Exit_status = 271
    Resource_List.walltime = 01:00:00
    resources_used.walltime = 00:03:00
"""


def test_pbs_and_lsf_are_read_as_their_manuals_print_them():
    found = list(scheduler_states.pbs(QSTAT))
    assert [(s.id, s.name, s.state, s.ending) for s in found] == [
        ("41", "al1", "running", ""),
        ("42", "al2", "queued", ""),
        ("43", "al3", "ended", "timeout"),
        ("44", "al4", "ended", "cancelled"),
    ]
    assert [s.hopeless for s in found] == [False, True, False, False]
    assert "A: 96T: 96" in found[1].word
    lines = """\
51|PEND|al1|-|New job is waiting for scheduling;
52|RUN|al2|-|-
53|EXIT|al3|TERM_RUNLIMIT: job killed after reaching LSF run time limit|-
54|EXIT|al4|TERM_MEMLIMIT: job killed after reaching LSF memory usage limit|-
55|DONE|al5|-|-
56|EXIT|al6|-|-
"""
    states = [(s.state, s.ending) for s in scheduler_states.lsf(lines)]
    assert states == [
        ("queued", ""),
        ("running", ""),
        ("ended", "timeout"),
        ("ended", "out-of-memory"),
        ("ended", "completed"),
        ("ended", "failed"),
    ]
    assert [scheduler_states.sge("1", "a", s).hopeless for s in ("pending", "error", "hqw", "running")] == [
        False, True, False, False
    ]  # fmt: skip


PROGRAM = "#!/bin/sh\ncat > {folder}/input\nprintf '%s\\n' \"$@\" > {folder}/words\n{act}\n"


def stand_in(folder: Path, name: str, act: str) -> None:
    """A program of that name which keeps what it was given."""
    path = folder / name
    path.write_text(PROGRAM.format(folder=folder, act=act))
    path.chmod(0o755)


def test_the_answers_of_schedulers_become_numbers_or_errors_in_their_words(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "1")
    for name, where, act, number in (
        ("sbatch", "slurm", 'echo "17;cluster" | cut -d\';\' -f1; test -z "$SLURM_MEM_PER_CPU"', "17"),
        ("qsub", "pbs", "echo 18.head.example.org", "18"),
        ("bsub", "lsf", "echo 'Job <19> is submitted to default queue <normal>.'", "19"),
    ):
        stand_in(tmp_path, name, act)
        assert Queue(where).submit("#!/bin/bash\n{{x}}\n", directory=tmp_path, name="al0") == number
        assert (tmp_path / "run_queue.sh").read_text() == "#!/bin/bash\n{{x}}\n"
    assert (tmp_path / "input").read_text() == "#!/bin/bash\n{{x}}\n"  # LSF reads #BSUB lines from there only
    for said, kind in (
        ("sbatch: error: invalid partition specified: nosuch", EnvironmentProblemError),
        ("sbatch: error: Unable to contact slurm controller (connect failure)", UnreachableError),
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit", QueueFullError),
    ):
        stand_in(tmp_path, "sbatch", f"echo '{said}' >&2; exit 1")
        with pytest.raises(kind) as caught:
            Queue("slurm").submit("x", directory=tmp_path, name="al0")
        assert said in str(caught.value)
    stand_in(tmp_path, "squeue", "echo 'squeue: something new' >&2; exit 1")
    with pytest.raises(UnreachableError, match="something new"):  # never a reason to end a campaign
        Queue("slurm").look({"al0": "17"})
    stand_in(tmp_path, "squeue", "echo '17|RUNNING|None|al0'")
    stand_in(tmp_path, "sacct", "echo '18|TIMEOUT|al1'")
    found = Queue("slurm").look({"al0": "17", "al1": "18", "al2": "19"})
    assert {name: seen.state for name, seen in found.items()} == {"al0": "running", "al1": "ended"}
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EnvironmentProblemError, match="no program 'sbatch'"):
        Queue("slurm").submit("x", directory=tmp_path, name="al0")
