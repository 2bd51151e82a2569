"""What a campaign remembers beside its store: one directory, one JSON document per round.

`rounds/NNN/state.json` lists the finished stages with their outputs: a stage is skipped when it is there.
`rounds/NNN/round.json` holds the facts that status and report read. Both are replaced atomically.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .records import read_json, write_json_atomic


@dataclass(frozen=True)
class Home:
    """Paths of a campaign's directory."""

    path: Path

    @property
    def store(self) -> Path:
        return self.path / "store.h5"

    @property
    def labels(self) -> Path:
        return self.path / "labels"

    @property
    def pyiron(self) -> Path:
        """The pyiron project of labels that are batch jobs."""
        return self.path / "pyiron"

    @property
    def lease(self) -> Path:
        return self.path / "lease.json"

    @property
    def facts(self) -> Path:
        """campaign.json: name, elements, fidelities and the hashes of the files it was run with."""
        return self.path / "campaign.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def log(self) -> Path:
        return self.path / "logs" / "run.log"

    def round(self, number: int) -> Path:
        return self.path / "rounds" / f"{number:03d}"

    def models(self, number: int) -> Path:
        return self.round(number) / "models"

    def members(self, number: int, count: int) -> list[Path]:
        return [self.models(number) / f"member-{k}.pt" for k in range(count)]

    def rounds(self) -> list[int]:
        """Rounds that have begun, ascending."""
        return sorted(int(p.parent.name) for p in self.path.glob("rounds/[0-9]*/state.json"))


class RoundState:
    """Finished stages and facts of one round."""

    def __init__(self, home: Home, number: int) -> None:
        self.home, self.number = home, number
        self.directory = home.round(number)
        self._file = self.directory / "state.json"
        self._facts_file = self.directory / "round.json"
        self._stages: dict[str, Any] = {}
        if self._file.exists():
            self._stages = read_json(self._file)["stages"]
        self.facts: dict[str, Any] = {"round": number}
        if self._facts_file.exists():
            self.facts = read_json(self._facts_file)

    def outputs(self, stage: str) -> dict[str, Any] | None:
        """Outputs of a finished stage, or None."""
        found = self._stages.get(stage)
        return None if found is None else found["outputs"]

    def save_facts(self) -> None:
        """What status and report read."""
        self.directory.mkdir(parents=True, exist_ok=True)
        write_json_atomic(self._facts_file, self.facts)

    def finish(
        self, stage: str, outputs: dict[str, Any], *, wall_s: float, cpu_s: float = 0.0, gpu_s: float = 0.0
    ) -> None:
        """Commit a stage: from here on a resume skips it. Facts are written first, so none is missing.

        cpu_s, gpu_s: of its tasks; labels are counted by themselves, in the store.
        """
        self.save_facts()
        self._stages[stage] = {
            "outputs": outputs,
            "wall_s": round(wall_s, 3),
            "cpu_s": round(cpu_s, 3),
            "gpu_s": round(gpu_s, 3),
            "finished_unix_s": round(time.time(), 3),
        }
        write_json_atomic(self._file, {"round": self.number, "stages": self._stages})

    @property
    def stages(self) -> dict[str, Any]:
        return dict(self._stages)
