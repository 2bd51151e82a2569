"""The loop: exactly-once labels under SIGKILL, determinism, Dask, interrupts, faults of labels."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from emt_campaign import write_campaign

from alchemy.campaign import run_campaign
from alchemy.config import load_campaign
from alchemy.errors import CampaignBusyError, InputError, InterruptedRunError
from alchemy.executors import InlineExecutor
from alchemy.lease import Lease
from alchemy.progress import Progress
from alchemy.state import Home, RoundState
from alchemy.store import Store

HERE = Path(__file__).parent
STAGES = ("train", "test", "explore", "score", "select", "label", "assess")
MOMENTS = [
    "0:start:before", "0:start:after", "0:label:1", "0:label:4", "0:label:before", "0:label:after",
    "1:member:1",
    *(f"1:{stage}:{when}" for stage in STAGES for when in ("before", "after")),
    *(f"2:{stage}:before" for stage in STAGES[:5]),
    "2:label:1", "2:label:before", "2:assess:before",
    "3:member:1", "3:train:before", "3:test:before", "3:finish:before", "3:finish:after",
]  # fmt: skip


def drive(folder: Path, *moments: str) -> tuple[dict[str, tuple[float, ...]], list[str], list[str]]:
    """Run the miniature campaign with kills; labels by key, computed structures, trainings done."""
    path = write_campaign(folder, calculator="emt_campaign.CountingEMT")
    environment = {
        **os.environ,
        "EMT_CALLS": str(folder / "calls.log"),
        "TRAININGS": str(folder / "trainings.log"),
        "PYTHONPATH": str(HERE),
        "OMP_NUM_THREADS": "1",
    }
    home = folder / "mini"
    done = subprocess.run(
        [sys.executable, str(HERE / "killed_campaign.py"), str(path), str(home), *moments],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
    labels = {
        row.key: (row.energy_eV, float(np.abs(row.forces_eV_per_A).sum()))
        for row in Store(home / "store.h5").snapshot().labels()
    }
    return (
        labels,
        (folder / "calls.log").read_text().split(),
        (folder / "trainings.log").read_text().split(),
    )


def test_a_campaign_killed_at_every_stage_ends_with_the_same_labels_each_computed_once(tmp_path):
    calm, calm_calls, calm_trainings = drive(tmp_path / "calm")
    killed, killed_calls, killed_trainings = drive(tmp_path / "killed", *MOMENTS)
    assert killed == calm  # keys and numbers, bit for bit: every seed is derived, nothing is drawn anew
    assert max(Counter(killed_calls).values()) == 1
    assert sorted(killed_calls) == sorted(calm_calls)
    assert sorted(killed_trainings) == sorted(calm_trainings)
    assert len(calm) == len(calm_calls) == 12  # 1 atom, 5 start, 2 test, 2 rounds of 2
    assert len(calm_trainings) == 6  # 2 members, 3 rounds


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One undisturbed inline campaign, and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    path = write_campaign(folder)
    return run_campaign(load_campaign(path), folder / "mini", source=path, progress=Progress())


def test_a_finished_campaign_has_facts_report_models_and_stop_reason(finished):
    home = finished.home
    assert finished.exit_code == 0
    assert finished.stop.rule == "rounds"
    assert home.report.exists()
    assert sorted(p.name for p in (home.path / "final").glob("*.pt")) == ["member-0.pt", "member-1.pt"]
    last = json.loads((home.round(3) / "round.json").read_text())
    assert last["stop"]["rule"] == "rounds"
    assert last["train"]["labels"] == {"emt": 9}
    first = json.loads((home.round(1) / "round.json").read_text())
    assert set(first) >= {"train", "test", "explore", "select", "label", "fresh", "calibration", "cost"}
    assert first["label"]["emt"]["ok"] == 2
    assert {p["why"] for p in first["select"]["picked"]} == {"error", "random"}


def test_running_a_finished_campaign_again_changes_nothing(finished):
    before = {p: p.stat().st_mtime_ns for p in finished.home.path.rglob("*.pt")}
    commits = Store(finished.home.store).snapshot().last
    campaign = load_campaign(finished.home.path.parent / "campaign.yaml")
    again = run_campaign(campaign, finished.home.path)
    assert again.exit_code == 0
    assert Store(finished.home.store).snapshot().last == commits
    models = {p: t for p, t in before.items() if "rounds" in p.parts}
    assert {p: p.stat().st_mtime_ns for p in models} == models


def test_the_test_set_is_never_trained_on_and_isolated_atoms_are_no_training_frames(finished):
    snapshot = Store(finished.home.store).snapshot()
    parts = Counter(snapshot.part_of().values())
    assert parts["test"] == 2
    assert parts["isolated"] == 1
    facts = json.loads((finished.home.round(3) / "models" / "member-0.json").read_text())
    assert facts["train_frames"] + facts["valid_frames"] == 9  # 5 start and 4 bought, no test, no atom


def test_every_candidate_is_selected_or_rejected_with_a_reason(finished):
    snapshot = Store(finished.home.store).snapshot()
    for number in (1, 2):
        offered = {e.structure_uid for e in snapshot.events(kind="candidate", round=number)}
        selected = {e.structure_uid for e in snapshot.events(kind="selected", round=number)}
        rejected = {e.structure_uid: e.reason for e in snapshot.events(kind="rejected", round=number)}
        assert offered == selected | set(rejected)
        assert not selected & set(rejected)
        assert all(rejected.values())


def test_another_fidelity_meaning_under_an_old_name_is_refused(finished, tmp_path):
    path = write_campaign(tmp_path, calculator="ase.calculators.lj.LennardJones")
    with pytest.raises(InputError, match="other physics"):
        run_campaign(load_campaign(path), finished.home.path)


def test_members_of_a_shared_trunk_differ_in_readouts_alone_and_the_rounds_go_on(tmp_path):
    from tace.committee import Committee
    from tace.stacked import shares_trunk

    path = write_campaign(tmp_path)
    path.write_text(path.read_text().replace("  committee: 2\n", "  committee: 3\n  trunk: shared\n"))
    home = run_campaign(load_campaign(path), tmp_path / "mini", until=1).home
    files = home.members(1, 3)
    assert shares_trunk(Committee.load(files).members)
    facts = [json.loads(f.with_suffix(".json").read_text()) for f in files]
    assert [f["steps"] for f in facts] == [12, 3, 3]  # readouts take a quarter of the steps
    assert json.loads((home.round(1) / "round.json").read_text())["explore"]["candidates"] > 0


def test_until_pauses_and_the_same_command_goes_on(tmp_path):
    path = write_campaign(tmp_path)
    paused = run_campaign(load_campaign(path), tmp_path / "mini", until=0)
    assert paused.stop is None
    assert Home(tmp_path / "mini").rounds() == [0]
    paused = run_campaign(load_campaign(path), tmp_path / "mini", until=1)
    assert Home(tmp_path / "mini").rounds() == [0, 1]


def test_a_campaign_at_constant_pressure_offers_cells_of_other_volumes(tmp_path):
    path = write_campaign(tmp_path)
    bath = "thermostat: bussi, tau: 50 fs, ensemble: npt, pressure: 2 GPa, barostat_tau: 100 fs"
    limits = "guards: {max_volume_factor: 1.5}"
    text = path.read_text().replace("check_every: 5}", f"check_every: 5, {bath}}}")
    path.write_text(text.replace("abort_above: 40 eV/A}", f"abort_above: 40 eV/A, {limits}}}"))
    run_campaign(load_campaign(path), tmp_path / "mini", until=1)
    snapshot = Store(tmp_path / "mini" / "store.h5").snapshot()
    events = snapshot.events(kind="candidate", round=1)
    frames = snapshot.structures([e.structure_uid for e in events])
    parents = snapshot.structures([e.parent_uid for e in events])
    growth = [a.cell.volume / b.cell.volume for a, b in zip(frames, parents, strict=True)]
    assert events
    assert len(set(growth)) == len({e.structure_uid for e in events})
    assert all(1 / 1.5 < g < 1.5 for g in growth)
    assert all(a.pbc.all() for a in frames)


def test_a_second_controller_is_told_who_holds_the_campaign(tmp_path):
    path = write_campaign(tmp_path)
    with (
        Lease(tmp_path / "mini" / "lease.json"),
        pytest.raises(CampaignBusyError, match=str(os.getpid())),
    ):
        run_campaign(load_campaign(path), tmp_path / "mini")


def test_the_lease_of_a_dead_process_is_taken_over(tmp_path):
    child = subprocess.run(
        [sys.executable, "-c",
         "import os,sys;from pathlib import Path;from alchemy.lease import Lease;"
         "Lease(Path(sys.argv[1])).__enter__();os._exit(0)", str(tmp_path / "lease.json")],
        check=True,
    )  # fmt: skip
    assert child.returncode == 0
    assert (tmp_path / "lease.json").exists()
    with Lease(tmp_path / "lease.json"):
        held = json.loads((tmp_path / "lease.json").read_text())
        assert held["pid"] == os.getpid()
    assert not (tmp_path / "lease.json").exists()


def test_sigterm_ends_between_tasks_and_the_campaign_can_go_on(tmp_path, monkeypatch):
    import alchemy.tasks as tasks

    path = write_campaign(tmp_path)
    plain, calls = tasks.label, []

    def label_then_signal(request):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(request)

    monkeypatch.setattr(tasks, "label", label_then_signal)
    with pytest.raises(InterruptedRunError) as interrupted:
        run_campaign(load_campaign(path), tmp_path / "mini")
    assert interrupted.value.exit_code == 7
    assert len(Store(tmp_path / "mini" / "store.h5").snapshot().labels()) == 3
    assert not (tmp_path / "mini" / "lease.json").exists()
    run_campaign(load_campaign(path), tmp_path / "mini", until=0)
    assert len(calls) == 8  # 1 atom, 5 start, 2 test: none of the three again


def test_failed_labels_are_recorded_with_reasons_and_the_round_goes_on(tmp_path, monkeypatch):
    import alchemy.labelers.ase_calculator as engine
    from alchemy.labelers.base import LabelFailureError

    plain, calls = engine.compute, []

    def sometimes(atoms, sections, directory):
        calls.append(1)
        if len(atoms) > 1 and len(calls) in (3, 4):
            raise LabelFailureError("scf-not-converged", "100 cycles")
        result = plain(atoms, sections, directory)
        if len(calls) == 5:
            result.forces_eV_per_A[0, 0] = np.nan
        return result

    monkeypatch.setattr(engine, "compute", sometimes)
    path = write_campaign(tmp_path)
    run_campaign(load_campaign(path), tmp_path / "mini", until=1)
    facts = RoundState(Home(tmp_path / "mini"), 0).facts["label"]["emt"]
    assert facts["failed"] == {"scf-not-converged": 2, "not-finite": 1}
    assert facts["ok"] == 5
    failures = Store(tmp_path / "mini" / "store.h5").snapshot().failures()
    assert Counter(f.reason for f in failures) == facts["failed"]


class ForgetfulExecutor(InlineExecutor):
    """Runs every finished task of a batch again and again, as Dask does when workers die."""

    def run(self, task, requests, *, resource, on_done):
        drawn = []

        def remembered():
            for request in requests:
                drawn.append(request)
                yield request

        def done(index, result):
            on_done(index, result)
            for request in drawn:
                task(request)

        super().run(task, remembered(), resource=resource, on_done=done)


@pytest.mark.parametrize("keep", ["failed", "none", "all"])
def test_a_finished_label_that_is_sent_again_is_not_computed_again(tmp_path, monkeypatch, keep):
    import alchemy.campaign
    import alchemy.stages.label

    interrupt = alchemy.campaign.Interrupt()
    monkeypatch.setattr(alchemy.campaign, "make_executor", lambda *a, **k: ForgetfulExecutor(interrupt))
    monkeypatch.setattr(alchemy.stages.label, "FLUSH_S", 0.0)  # every label is in the store at once
    monkeypatch.setenv("EMT_CALLS", str(tmp_path / "calls.log"))
    path = write_campaign(tmp_path, calculator="emt_campaign.CountingEMT")
    path.write_text(path.read_text() + f"keep: {{label_directories: {keep}}}\n")
    run_campaign(load_campaign(path), tmp_path / "mini", until=0)
    calls = Counter((tmp_path / "calls.log").read_text().split())
    assert len(calls) == 8
    assert set(calls.values()) == {1}
    left = list((tmp_path / "mini" / "labels").iterdir())
    assert len(left) == (8 if keep == "all" else 0)


@pytest.fixture(scope="module")
def on_dask(tmp_path_factory):
    """The campaign on a local cluster, one worker of which is killed while it labels."""
    folder = tmp_path_factory.mktemp("dask")
    path = write_campaign(folder, where="local", calculator="emt_campaign.DeadlyEMT")
    environment = {
        **os.environ,
        "EMT_CALLS": str(folder / "calls.log"),
        "EMT_DEATH": str(folder / "death"),
        "PYTHONPATH": str(HERE),
    }
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "alchemy", "run", str(path), "--until", "1"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout, time.monotonic() - started


def test_a_worker_killed_by_sigkill_costs_no_label(on_dask):
    folder, _, _ = on_dask
    assert (folder / "death").exists()  # it did die
    snapshot = Store(folder / "mini" / "store.h5").snapshot()
    assert len(snapshot.labels()) == 10  # 1 atom, 5 start, 2 test, 2 of the first round
    assert snapshot.failures() == []
    calls = Counter((folder / "calls.log").read_text().split())
    assert max(calls.values()) == 1  # the worker died before it computed; nothing else ran twice


def test_a_local_cluster_gives_the_labels_of_the_inline_run(on_dask, tmp_path):
    folder, _, _ = on_dask
    path = write_campaign(tmp_path)
    run_campaign(load_campaign(path), tmp_path / "mini", until=1)
    inline = Store(tmp_path / "mini" / "store.h5").snapshot()
    cluster = Store(folder / "mini" / "store.h5").snapshot()
    # same structures on both: sampling does not depend on where the tasks run
    assert {r.structure_uid for r in inline.labels()} == {r.structure_uid for r in cluster.labels()}
