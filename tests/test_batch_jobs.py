"""A batch job on its node, without a scheduler: packs, walltime, claims, crashes, and what they mean."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ase.build import bulk
from batch_helpers import CALCULATOR

from alchemy import label_claims
from alchemy.batch_ledger import BatchJob, Ledger, counts, verdicts
from alchemy.identity import label_key, structure_uid
from alchemy.labelers.base import fingerprint, make_labeler
from alchemy.records import atoms_to_document

OPTIONS = {"calculator": "alchemy_moody.Moody"}


class Node:
    """A job's directory with a pack of three labels, and the root of their directories."""

    def __init__(self, folder: Path, *, walltime_s: float = 600.0, options: dict[str, Any] = OPTIONS) -> None:
        self.root, self.directory, self.folder = folder / "labels", folder / "job", folder
        self.directory.mkdir()
        (folder / "alchemy_moody.py").write_text(CALCULATOR, encoding="utf-8")
        (folder / "mood").write_text("")
        labels = []
        for seed in range(3):
            atoms = bulk("Cu", a=3.7, cubic=True)
            atoms.rattle(0.05, seed=seed)
            request = {
                "structure": atoms_to_document(atoms),
                "fidelity": "emt",
                "labeler": "ase",
                "options": options,
                "base_dir": str(folder),
                "root": str(self.root),
                "gate": {},
                "e0_eV": None,
            }
            mark = fingerprint(make_labeler("ase", options, base_dir=folder))
            labels.append({"key": label_key(structure_uid(atoms), "emt", mark), "request": request})
        self.keys = [entry["key"] for entry in labels]
        self.pack = {"name": "al000000000001", "walltime_s": walltime_s, "expected_s": {}, "labels": labels}
        (self.directory / "pack.json").write_text(json.dumps(self.pack))

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        paths = [str(self.folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "alchemy.batch_job", *words],
            cwd=self.directory,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def run(self, *words: str) -> int:
        return self.start(*words).wait(60)

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.directory / "exit.json").read_text())

    def states(self) -> list[str]:
        return [line["state"] for line in self.record["labels"]]

    def recorded(self) -> list[bool]:
        return [(self.root / key / "record.json").exists() for key in self.keys]


def test_a_pack_is_done_in_turn_and_what_is_recorded_or_claimed_is_left_alone(tmp_path):
    node = Node(tmp_path)
    assert label_claims.take(node.root, node.keys[1], "al999999999999") == ""
    assert node.run() == 0
    assert node.states() == ["finished", "held", "finished"]
    assert node.recorded() == [True, False, True]
    assert node.record["reason"] == "done"
    label_claims.release(node.root, node.keys, "al000000000001")  # not its own: stays
    assert label_claims.holder_of(node.root, node.keys[1]) == "al999999999999"
    label_claims.release(node.root, node.keys, "al999999999999")
    assert node.run() == 0
    assert node.states() == ["finished"] * 3
    attempts = [(node.root / key / "attempts.jsonl").read_text().count("\n") for key in node.keys]
    assert attempts == [1, 1, 1]
    assert not list((node.root / ".claims").iterdir())


def test_a_job_needs_neither_pyiron_nor_dask_nor_torch():
    heavy = "{'pyiron_base', 'pysqa', 'distributed', 'torch', 'pandas'}"
    look = f"import sys, alchemy.batch_job; sys.exit(len({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", look]).returncode == 0


def test_a_label_is_not_begun_when_the_walltime_will_not_do(tmp_path):
    node = Node(tmp_path, walltime_s=60)
    (tmp_path / "mood").write_text("sleep 1.2")
    # 3 s are left but for the margin: one label of 1.2 s and more, not a second of 1.3 times as much
    assert node.run("--began", f"{time.time() - 53:.0f}") == 0
    assert node.record["reason"] == "walltime"
    assert len(node.states()) < 3
    assert node.recorded()[0]
    assert not node.recorded()[2]
    waiting = verdicts(node.keys, node.record, "completed", walltime_s=60)
    assert waiting[node.keys[2]] == ""


def test_a_terminated_job_takes_its_programs_with_it_and_says_so(tmp_path):
    node = Node(tmp_path)
    (tmp_path / "mood").write_text("child")
    process = node.start()
    deadline = time.monotonic() + 30
    while not (tmp_path / "child").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.1)
    child = int((tmp_path / "child").read_text())
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert not Path(f"/proc/{child}").exists()
    assert node.states() == ["interrupted"]
    assert node.record["reason"] == "signal"
    causes = verdicts(node.keys, node.record, "preempted", walltime_s=600)
    assert list(causes.values()) == ["preempted", "", ""]


def test_a_label_that_dies_does_not_take_the_others_and_what_is_wrong_for_all_ends_the_job(tmp_path):
    node = Node(tmp_path)
    (tmp_path / "mood").write_text("die")
    assert node.run() == 0
    assert node.states() == ["died"] * 3
    assert "SIGKILL" in node.record["labels"][0]["message"]
    causes = verdicts(node.keys, node.record, "completed", walltime_s=600)
    assert set(causes.values()) == {"worker-killed"}
    (tmp_path / "mood").write_text("full")
    assert node.run() == 74
    assert node.record["reason"] == "os-error"
    assert "No space left on device" in node.record["message"]
    assert node.recorded() == [False] * 3


def test_a_node_with_other_physics_and_a_revoked_job_compute_nothing_of_use(tmp_path):
    node = Node(tmp_path)
    node.pack["labels"][0]["key"] = "0" * 32
    (node.directory / "pack.json").write_text(json.dumps(node.pack))
    assert node.run() == 3
    assert node.record["reason"] == "problem"
    assert "other physics" in node.record["message"]
    (node.directory / "revoked").touch()
    assert node.run() == 0
    assert node.record["reason"] == "revoked"
    assert node.states() == []


def exit_record(*states: str, reason: str | None = None, lasted_s: float = 10.0) -> dict[str, Any]:
    lines = [{"key": str(n), "state": state} for n, state in enumerate(states)]
    ended = 1000.0 + lasted_s if reason else None
    return {"began_unix_s": 1000.0, "ended_unix_s": ended, "reason": reason, "labels": lines}


@pytest.mark.parametrize(
    ("record", "ending", "causes"),
    [
        (None, "node-failure", ["node-failure"] * 3),  # it died before it could write
        (None, "failed", ["", "", ""]),
        (exit_record("finished", "running"), "timeout", ["", "out-of-time", ""]),
        (exit_record("finished", "running"), "out-of-memory", ["", "out-of-memory", ""]),
        (exit_record("died", "running"), "out-of-memory", ["out-of-memory"] * 2 + [""]),
        (exit_record("interrupted", reason="signal"), "cancelled", ["cancelled", "", ""]),
        # without the scheduler's word, by the clock
        (exit_record("interrupted", reason="signal", lasted_s=590), "unknown", ["out-of-time", "", ""]),
        (exit_record("interrupted", reason="signal", lasted_s=90), "unknown", ["cancelled", "", ""]),
        (exit_record("running"), "failed", ["worker-killed", "", ""]),
        (exit_record("held", "finished", reason="done"), "completed", ["", "", ""]),
    ],
)
def test_only_labels_that_were_begun_are_charged(record, ending, causes):
    assert list(verdicts(["0", "1", "2"], record, ending, walltime_s=600).values()) == causes


def test_the_ledger_tells_the_label_s_faults_from_the_machine_s_and_survives_its_writer(tmp_path):
    ledger = Ledger(tmp_path)
    job = BatchJob("al1", "slurm", "emt", "/labels", ["a", "b"], state="running", id="7")
    ledger.jobs[job.name] = job
    for cause in ("cancelled", "out-of-time", "preempted"):
        faults = ledger.charge("a", cause, job=job, word="WORD")
    assert faults == (1, 2)
    ledger.jobs["al2"] = BatchJob("al2", "slurm", "emt", "/labels", ["c"])
    ledger.save()
    again = Ledger(tmp_path)
    assert again.jobs == ledger.jobs
    assert again.tries["a"][1]["cause"] == "out-of-time"
    found = counts(tmp_path)
    assert found is not None
    assert [found[k] for k in ("queued", "running", "unknown", "labels")] == [0, 1, 1, 3]
    assert counts(tmp_path / "none") is None
