"""A batch scheduler that is played in this process, and what a test of batch labels needs beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from ase.build import bulk

from alchemy import label_claims, pyiron_batch, pyiron_desk, tasks
from alchemy.config_labels import Labels
from alchemy.executors import InlineExecutor, Interrupt
from alchemy.label_runners import JobLabels
from alchemy.pyiron_jobs import label_key_of
from alchemy.records import atoms_to_document, read_json, write_json_atomic
from alchemy.scheduler_states import Seen


class Played:
    """A scheduler whose jobs run, in this process, when it is asked about them."""

    def __init__(self, act: Callable[[Played, str, Path], str | None]) -> None:
        self.act = act  # at submission: the number, or None, which runs nothing
        self.there: dict[str, tuple[str, Path]] = {}
        self.submissions: list[str] = []
        self.cancelled: list[str] = []
        self.busy = True  # jobs stay in the queue
        self.ended: dict[str, Seen] = {}

    def submit(self, text: str, *, directory: Path, name: str) -> str:
        self.submissions.append(name)
        number = self.act(self, name, directory)
        assert number is not None
        return number

    def cancel(self, number: str) -> None:
        self.cancelled.append(number)

    def look(self, wanted: Mapping[str, str]) -> dict[str, Seen]:
        found = {name: seen for name, seen in self.ended.items() if name in wanted}
        for name, (number, directory) in self.there.items():
            if name in wanted:
                if not self.busy:
                    compute(directory)
                found[name] = Seen(number, name, "queued", "", "PENDING (Priority)")
        return found


def compute(directory: Path) -> None:
    """What a job does."""
    pack = read_json(directory / "pack.json")
    lines = []
    for entry in pack["labels"]:
        label_claims.log_attempt(Path(entry["request"]["root"]), entry["key"], pack["name"])
        tasks.label(entry["request"])
        lines.append({"key": entry["key"], "state": "finished", "wall_s": 0.1})
    record = {"began_unix_s": 0.0, "ended_unix_s": 1.0, "reason": "done", "labels": lines, "host": "n1"}
    write_json_atomic(directory / "exit.json", record)


def accept(played: Played, name: str, directory: Path) -> str:
    played.there[name] = (str(100 + len(played.there)), directory)
    return played.there[name][0]


def request(folder: Path, seed: int, fidelity: str = "emt") -> dict[str, Any]:
    atoms = bulk("Cu", a=3.7, cubic=True)
    atoms.rattle(0.05, seed=seed)
    document = {
        "structure": atoms_to_document(atoms),
        "fidelity": fidelity,
        "labeler": "emt",
        "options": {},
        "base_dir": str(folder),
        "root": str(folder / "labels"),
        "gate": {},
        "e0_eV": None,
    }
    return {**document, "key": label_key_of(document)}


class Setting:
    """A folder, a played scheduler, a runner; time passes at once."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, labels: Mapping[str, Any]) -> None:
        self.folder, self.said, self.interrupt = folder, list[str](), Interrupt()
        self.played = Played(accept)
        (folder / "labels").mkdir(exist_ok=True)
        monkeypatch.setattr(pyiron_desk, "Queue", lambda where: self.played)
        for name, value in (("LOOK_S", (0.01, 0.02)), ("ASK_S", (0.01, 0.02)), ("GRACE_S", 0.05)):
            monkeypatch.setattr(pyiron_batch, name, value)
        for name, value in (("NEVER_SEEN_S", 0.1), ("BACK_OFF_S", (0.02, 0.05))):
            monkeypatch.setattr(pyiron_batch, name, value)
        self.labels = Labels.model_validate(labels)

    def runner(self) -> JobLabels:
        return JobLabels(
            InlineExecutor(self.interrupt),
            self.labels,
            folder=self.folder / "pyiron",
            base_dir=self.folder,
            say=self.said.append,
            interrupt=self.interrupt,
        )

    def run(
        self, requests: list[dict[str, Any]], runner: JobLabels | None = None
    ) -> dict[int, Any]:
        found: dict[int, Any] = {}

        def done(index: int, result: Any) -> None:
            assert index not in found
            found[index] = result["results"][0] if isinstance(result, dict) else result

        (runner or self.runner()).run([{"requests": [one]} for one in requests], on_done=done)
        return found

    def attempts(self) -> list[int]:
        files = (self.folder / "labels").glob("*/attempts.jsonl")
        return [path.read_text().count("\n") for path in files]
