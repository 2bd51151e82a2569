"""EMT beside a program that dies with the worker; outputs are logged once they are on disk."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.calculators.calculator import all_changes
from ase.calculators.emt import EMT

from alchemy.labelers import staging
from alchemy.labelers.base import LabelFailureError
from alchemy.training import die_with_parent

_write = staging.write_json_atomic


def _write_and_log(path: Path, document: Any) -> None:
    """A label that stands in the log was computed to its end; one that was killed before does not."""
    _write(path, document)
    if path.name == staging.OUTPUT and document.get("status") == "ok":
        with open(os.environ["CHAOS_LOG"], "a", encoding="utf-8") as file:
            file.write(f"{path.parent.name}\n")


staging.write_json_atomic = _write_and_log


class ChildEMT(EMT):
    """Waits for a program that sleeps before it computes; a killed program is no fault of the structure's."""

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        done = subprocess.run(
            ["sleep", os.environ["CHAOS_NAP_S"]], preexec_fn=die_with_parent, check=False
        )
        if done.returncode == -signal.SIGKILL:
            raise LabelFailureError("program-killed", "sleep was killed")
        super().calculate(atoms, list(properties), list(system_changes))
