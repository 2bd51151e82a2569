"""Budgets that end a campaign between labels, plans, redo and gc, on miniature campaigns in this process."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter

import pytest
from click.testing import CliRunner
from emt_campaign import write_campaign

from alchemy import tasks
from alchemy.budget import Budget, BudgetEndedError, parse_given
from alchemy.campaign import run_campaign
from alchemy.cli import cli
from alchemy.config import load_campaign
from alchemy.config_budget import SIZE, shown
from alchemy.costs import Clock, Cost, spent, stage_costs
from alchemy.errors import InputError
from alchemy.executors import InlineExecutor
from alchemy.keeping import waste
from alchemy.plan import make_plan
from alchemy.prices import DEFAULT_FACTOR, DEFAULTS, Labels
from alchemy.redo import labels_again, plan_set_back
from alchemy.state import Home, RoundState
from alchemy.store import Store
from alchemy.training import train


def labels_in(home):
    return sorted(row.key for row in Store(home / "store.h5").snapshot().labels())


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """A campaign that nobody limits: its folder and its labels."""
    folder = tmp_path_factory.mktemp("calm")
    path = write_campaign(folder)
    run_campaign(load_campaign(path), folder / "mini", source=path)
    return folder, labels_in(folder / "mini")


class Fixed:
    """Everything costs the same."""

    def __init__(self, cost):
        self.cost = cost
        self.labels = Labels.__new__(Labels)
        self.labels.learn = lambda *a, **k: None

    def label(self, fidelity, atoms):
        return self.cost

    def stage(self, stage):
        return self.cost

    def learn_stage(self, stage, cost):
        return


def test_labels_begin_while_what_runs_and_the_next_one_fit(tmp_path):
    budget = Budget({"cpu_s": 10.0}, Home(tmp_path), Fixed(Cost(cpu_s=4.0)), Cost(cpu_s=1.0))
    for name in ("a", "b"):
        budget.begin(name, budget.label_price("emt", 4))
    with pytest.raises(BudgetEndedError, match="what runs and the next label need 12 s") as end:
        budget.begin("c", budget.label_price("emt", 4))
    assert end.value.reason.exit_code == 4
    budget.end("a")  # it cost nothing, as nobody said otherwise
    budget.begin("c", budget.label_price("emt", 4))
    budget.limits["cpu_s"] = 4.0
    with pytest.raises(BudgetEndedError, match="next stage, 'train', need 4 s"):
        budget.begin_stage("train")


def test_wall_time_of_labels_side_by_side_counts_once(tmp_path):
    budget = Budget({"wall_s": 100.0}, Home(tmp_path), Fixed(Cost(wall_s=60.0)), Cost())
    for n in range(5):
        budget.begin(str(n), budget.label_price("emt", 4))


def test_what_is_given_on_the_command_line_is_a_limit_or_more_than_so_far():
    assert parse_given("+2min") == ("wall_s", 120.0, True)
    assert parse_given("cpu=200 h") == ("cpu_s", 720_000.0, False)
    assert parse_given("disk=+2TB") == ("disk_bytes", 2e12, True)
    for wrong, said in (("2", "bare number"), ("ram=2GB", "known: cpu"), ("gpu=2 TB", "write a time")):
        with pytest.raises(InputError, match=said):
            parse_given(wrong)


@pytest.mark.parametrize("text", ["2 TB", "1500 MB", "1 B"])
def test_sizes_are_read_back_as_they_are_written(text):
    assert SIZE.text(SIZE.parse(text)) == text
    assert shown("disk_bytes", SIZE.parse("1500 MB")) == "1.5 GB"


def test_pauses_between_runs_are_no_wall_time(tmp_path):
    home = Home(tmp_path)
    (tmp_path / "hours.json").write_text('{"runs_unix_s": [[100.0, 160.0], [1000.0, 1030.0]]}')
    clock = Clock(home)
    assert 90.0 <= clock.wall_s() < 95.0  # the second is that of this test
    clock.save(every_s=0.0)
    assert len(json.loads((tmp_path / "hours.json").read_text())["runs_unix_s"]) == 3


def test_a_tiny_budget_ends_between_labels_with_code_4_and_more_of_it_ends_with_the_same_labels(
    calm, tmp_path, monkeypatch
):
    """The clock of the CPU is that of the labels: each is said to cost a second, and the budget is four."""
    import alchemy.stages.label as stage

    read = stage.tasks.read_label

    def dear(root, key):
        from dataclasses import replace

        return replace(read(root, key), cpu_s=1.0)

    monkeypatch.setattr(stage.tasks, "read_label", dear)
    path = write_campaign(tmp_path)
    path.write_text(path.read_text().replace("{rounds: 2}", "{rounds: 2, budget: {cpu: 4.5 s}}"))
    campaign = load_campaign(path)
    first = run_campaign(campaign, tmp_path / "mini", source=path)
    assert first.exit_code == 4
    assert first.stop.rule == "budget"
    have = labels_in(tmp_path / "mini")
    assert 3 <= len(have) <= 4
    assert set(have) < set(calm[1])
    assert not (tmp_path / "mini" / "lease.json").exists()
    assert RoundState(first.home, 0).outputs("label") is None  # it goes on there
    again = run_campaign(campaign, tmp_path / "mini")
    assert again.exit_code == 4
    assert labels_in(tmp_path / "mini") == have
    more = run_campaign(campaign, tmp_path / "mini", budget=["cpu=+7.5s"])
    assert more.exit_code == 4  # in the first round: there is a committee by now
    assert sorted(p.name for p in (tmp_path / "mini" / "final").glob("*.pt")) == [
        "member-0.pt", "member-1.pt",
    ]  # fmt: skip
    last = run_campaign(campaign, tmp_path / "mini", budget=["cpu=1 h"])
    assert last.exit_code == 0
    assert last.facts["stop"]["rule"] == "rounds"
    assert labels_in(tmp_path / "mini") == calm[1]


def test_measured_prices_replace_defaults_and_grow_with_the_atoms(calm):
    campaign = load_campaign(calm[0] / "campaign.yaml")
    labels = Labels(campaign)
    default = labels.price("emt", 8)
    assert default.mid == DEFAULTS["ase"].cpu_s(8)
    assert default.high / default.mid == pytest.approx(DEFAULT_FACTOR)
    for cpu_s in (2.0, 4.0, 3.0, 3.0):
        labels.learn("emt", 4, cpu_s)
    found = labels.price("emt", 4)
    assert found.mid == pytest.approx(3.0)
    assert found.low < 2.5 < 3.5 < found.high < 6.0
    assert labels.price("emt", 8).mid == pytest.approx(6.0)  # the default of 'ase' grows linearly


def test_a_plan_counts_labels_and_trainings_and_nothing_is_left_of_a_finished_campaign(calm):
    campaign = load_campaign(calm[0] / "campaign.yaml")
    before = make_plan(campaign, None)
    tasks = {(row.stage, row.what): row.tasks for row in before.rows}
    assert tasks["label", "emt: start and test"] == 7
    assert tasks["label", "emt: isolated atoms"] == 1
    assert tasks["label", "emt: rounds"] == 4
    assert tasks["train", "committees"] == 6  # 2 members, 2 rounds and the last committee
    home = Home(calm[0] / "mini")
    after = make_plan(campaign, home)
    assert after.rows == []
    assert after.total()["cpu_s"][1] == pytest.approx(spent(home, Store(home.store).snapshot()).cpu_s)
    stages = {one.stage: one.cost for one in stage_costs(home)}
    assert stages["train"].cpu_s > 0
    assert stages["explore"].cpu_s > 0


def copied(calm, tmp_path, *, rounds):
    """The calm campaign in another folder, without its later rounds; labels stay."""
    path = write_campaign(tmp_path)
    shutil.copytree(calm[0] / "mini", tmp_path / "mini")
    for number in range(rounds + 1, 4):
        shutil.rmtree(tmp_path / "mini" / "rounds" / f"{number:03d}")
    return path, load_campaign(path), Home(tmp_path / "mini")


def test_what_is_left_after_a_round_is_priced_by_that_round(calm, tmp_path):
    _, campaign, home = copied(calm, tmp_path, rounds=1)
    plan = make_plan(campaign, home)
    rows = {row.what: row for row in plan.rows}
    assert rows["emt: rounds"].tasks == 2
    assert rows["committees"].tasks == 4
    assert rows["committees"].cpu_s.source == "measured, 1 rounds"
    expected = plan.total()["cpu_s"][1]
    whole = Home(calm[0] / "mini")
    cost = spent(whole, Store(whole.store).snapshot()).cpu_s
    assert cost / 2 < expected < 2 * cost  # the factor that a plan promises


JOBS = "{where: inline, labels: {where: slurm, pack: 3, cores: 4, walltime: 30 min}}"
WORKERS = "{where: slurm, cluster: {gpu: {cores: 8, jobs: 0-4}, cpu: {cores: 16, jobs: 1-8}}}"


def test_a_plan_counts_the_jobs_of_a_batch_system(tmp_path):
    path = write_campaign(tmp_path)
    text = path.read_text()
    (run,) = [line for line in text.splitlines() if line.startswith("run:")]
    path.write_text(text.replace(run, f"run: {JOBS}"))
    plan = make_plan(load_campaign(path), None)
    labels = {row.what: row for row in plan.rows if row.stage == "label"}
    first, later = labels["emt: start and test"], labels["emt: rounds"]
    assert first.jobs is not None and later.jobs is not None
    assert first.jobs == (math.ceil(first.tasks / 3),) * 3  # three in each, one not full
    campaign = load_campaign(path)
    each = campaign.select.per_round["emt"]
    assert later.jobs[2] == campaign.stop.rounds * math.ceil(each / 3)  # each round sends its own
    assert plan.total()["jobs"][2] == sum(row.jobs[2] for row in labels.values())
    assert plan.queued and any("4 cores and at most 30 min each" in note for note in plan.notes)
    said = CliRunner().invoke(cli, ["plan", str(path)]).output
    assert "the queue's to say" in said and f"{later.jobs[1]:.0f} (" in said
    path.write_text(text.replace(run, f"run: {WORKERS}"))
    plan = make_plan(load_campaign(path), None)
    assert "jobs" not in plan.total() and plan.total()["gpu_s"][1] > 0
    assert any(note.startswith("gpu workers: 0 to 4 jobs of slurm") for note in plan.notes)


def test_the_command_plan_says_whether_the_budget_is_enough(calm, tmp_path):
    path = write_campaign(tmp_path)
    path.write_text(path.read_text().replace("{rounds: 2}", "{rounds: 2, budget: {cpu: 0.01 s, disk: 1 TB}}"))
    done = CliRunner().invoke(cli, ["plan", str(path)])
    assert done.exit_code == 4
    assert "budget cpu 0.01 s:" in done.output
    assert "expected" in done.output
    assert not (tmp_path / "mini").exists()  # nothing was run
    done = CliRunner().invoke(cli, ["plan", str(path), "--json"])
    found = json.loads(done.output)
    assert {row["stage"] for row in found["rows"]} == {"start", "label", "train", "explore", "score"}
    low, mid, high = found["total"]["cpu_s"]
    assert 0 < low < mid < high
    finished = CliRunner().invoke(cli, ["plan", str(calm[0])])
    assert finished.exit_code == 0
    assert "reused: 12 labels" in finished.output


def test_a_probe_labels_and_trains_for_a_moment(tmp_path):
    path = write_campaign(tmp_path)
    done = CliRunner().invoke(cli, ["plan", str(path), "--measure", "--json"])
    assert done.exit_code == 0, done.output
    sources = {row["what"]: row["source"] for row in json.loads(done.output)["rows"]}
    assert sources["emt: start and test"] == "probe"
    assert sources["committees"] == "probe"
    assert sources["explorers"] == "probe"


def test_failed_labels_get_another_attempt_and_the_old_rows_stay(tmp_path, monkeypatch):
    import alchemy.labelers.ase_calculator as engine
    from alchemy.labelers.base import LabelFailureError

    plain, calls = engine.compute, []

    def sometimes(atoms, sections, directory):
        calls.append(1)
        if len(calls) in (3, 4):
            raise LabelFailureError("scf-not-converged", "100 cycles")
        return plain(atoms, sections, directory)

    monkeypatch.setattr(engine, "compute", sometimes)
    path = write_campaign(tmp_path)
    run_campaign(load_campaign(path), tmp_path / "mini", source=path, until=0)
    store = Store(tmp_path / "mini" / "store.h5")
    failed = labels_again(store.snapshot(), ["emt"])
    assert [(one.reason, one.attempt) for one in failed] == [("scf-not-converged", 2)] * 2
    good = store.snapshot().labels()[0].key
    for arguments, said in (
        (["--reason", "out-of-time"], "there are scf-not-converged"),
        (["--label", good], "never computed again"),
        (["--label", "0" * 32], "no failed label"),
    ):
        done = CliRunner().invoke(cli, ["redo", str(tmp_path), *arguments])
        assert isinstance(done.exception, InputError)
        assert said in str(done.exception)
    dry = CliRunner().invoke(cli, ["redo", str(tmp_path), "--failed", "--dry-run"])
    assert dry.output.count("attempt 2, was scf-not-converged") == 2
    assert len(calls) == 8
    done = CliRunner().invoke(cli, ["redo", str(tmp_path), "--label", failed[0].key[:12]])
    assert done.exit_code == 0, done.output
    assert "emt: 1 ok" in done.output
    done = CliRunner().invoke(cli, ["redo", str(tmp_path), "--reason", "scf-not-converged"])
    assert "emt: 1 ok" in done.output
    assert len(calls) == 10
    snapshot = store.snapshot()
    assert len(snapshot.labels()) == 8
    assert Counter(row.attempt for row in snapshot.labels()) == {1: 6, 2: 2}
    assert len(snapshot.failures()) == 2  # what happened stays known
    assert RoundState(Home(tmp_path / "mini"), 0).facts["label"]["emt"]["failed"] == {}


def test_a_round_set_back_runs_again_from_there_and_no_label_is_lost_or_bought_twice(calm, tmp_path):
    _, campaign, home = copied(calm, tmp_path, rounds=3)
    have = labels_in(home.path)
    models = {p.name: p.stat().st_mtime_ns for p in home.models(2).glob("*.pt")}
    done = CliRunner().invoke(cli, ["redo", str(tmp_path), "--round", "2", "--from", "explore", "--dry-run"])
    assert "again:  round 2, explore" in done.output
    assert "again:  round 3, everything" in done.output
    assert "reused: round 2, train" in done.output
    assert home.rounds() == [0, 1, 2, 3]
    done = CliRunner().invoke(cli, ["redo", str(tmp_path), "--round", "2", "--from", "explore"])
    assert done.exit_code == 0, done.output
    assert home.rounds() == [0, 1, 2]
    assert sorted(RoundState(home, 2).stages) == ["test", "train"]
    assert "explore" not in RoundState(home, 2).facts
    assert labels_in(home.path) == have
    (aside,) = (home.path / "aside").iterdir()
    assert (aside / "rounds" / "003" / "models" / "member-0.pt").exists()
    assert (aside / "final" / "member-0.pt").exists()
    outcome = run_campaign(campaign, home.path)
    assert outcome.stop.rule == "rounds"
    assert {p.name: p.stat().st_mtime_ns for p in home.models(2).glob("*.pt")} == models
    assert set(have) <= set(labels_in(home.path))
    with pytest.raises(InputError, match="stages of round 1 are data, train"):
        plan_set_back(home, 1, "start")
    with pytest.raises(InputError, match="rounds 0, 1, 2, 3"):
        plan_set_back(home, 7, "train")


def test_gc_frees_by_the_rules_of_keep_and_touches_no_label(calm, tmp_path):
    path, campaign, home = copied(calm, tmp_path, rounds=3)
    assert waste(campaign, home) == []
    (home.labels / calm[1][0]).mkdir()
    orphan = home.labels / ("f" * 32)
    orphan.mkdir()
    (orphan / "output.json").write_text("{}")  # of a label that the store does not have
    rules = "keep: {label_directories: none, models: 2, trajectories: false, predictions: false}\n"
    path.write_text(path.read_text() + rules)
    dry = CliRunner().invoke(cli, ["gc", str(path), "--dry-run", "--json"])
    found = json.loads(dry.output)
    names = {item["path"].rpartition("/")[2] for item in found["items"]}
    assert {"member-0.pt", "explore-0.json", calm[1][0]} <= names
    assert orphan.name not in names
    assert home.models(1).joinpath("member-0.pt").exists()
    done = CliRunner().invoke(cli, ["gc", str(path)])
    assert done.exit_code == 0, done.output
    assert not list(home.models(1).glob("*.pt"))
    assert list(home.models(2).glob("*.pt"))
    assert [p.name for p in home.labels.iterdir()] == [orphan.name]
    assert labels_in(home.path) == calm[1]
    assert run_campaign(load_campaign(path), home.path).exit_code == 0  # it is still whole


class Late(InlineExecutor):
    """Pretends to be a cluster: the tests of overlap need no other process."""


def test_overlapped_rounds_end_with_every_label_once_and_none_open(tmp_path, monkeypatch):
    import alchemy.campaign
    from alchemy.stages import backlog

    interrupt = alchemy.campaign.Interrupt()
    monkeypatch.setattr(alchemy.campaign, "make_executor", lambda *a, **k: Late(interrupt))
    monkeypatch.setattr(tasks, "train_member", train)  # in this process, which has torch already
    monkeypatch.setenv("EMT_CALLS", str(tmp_path / "calls.log"))
    path = write_campaign(tmp_path, where="local", calculator="emt_campaign.CountingEMT")
    path.write_text(path.read_text().replace("workers: 2}", "workers: 2, overlap: true, retrain_at: 0.4}"))
    monkeypatch.setattr(backlog, "LOOK_EVERY_S", 0.02)
    outcome = run_campaign(load_campaign(path), tmp_path / "mini", source=path)
    assert outcome.stop.rule == "rounds"
    calls = Counter((tmp_path / "calls.log").read_text().split())
    assert set(calls.values()) == {1}
    assert len(calls) == len(labels_in(tmp_path / "mini")) == 12
    for number in (1, 2):
        facts = RoundState(outcome.home, number).facts
        assert facts["label"]["emt"]["ok"] == 2  # recounted when all were there
        assert "open" not in facts["label"]["emt"]
    assert RoundState(outcome.home, 3).facts["train"]["labels"] == {"emt": 9}
    data = RoundState(outcome.home, 2).outputs("data")
    assert RoundState(outcome.home, 2).outputs("train")["as_of"] == data["as_of"]


def test_labels_that_an_overlapped_round_left_open_are_bought_by_the_next_run(tmp_path, monkeypatch):
    path = write_campaign(tmp_path)
    campaign = load_campaign(path)
    run_campaign(campaign, tmp_path / "mini", source=path, until=0)
    home = Home(tmp_path / "mini")
    import alchemy.campaign as loop

    def nothing(context, requests, *, what, attempts=None, bar=None):
        return

    with monkeypatch.context() as patched:  # a round whose labels all stay open, as if killed then
        patched.setattr(loop.label, "label", nothing)
        run_campaign(campaign, home.path, until=1)
    assert len(labels_in(home.path)) == 8
    run_campaign(campaign, home.path, until=1)
    assert len(labels_in(home.path)) == 10
