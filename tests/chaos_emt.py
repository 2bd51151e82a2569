"""EMT in a program of its own that dies with the worker; outputs are logged once they are on disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from alchemy.labelers import staging
from alchemy.labelers.base import LabelFailureError
from alchemy.records import atoms_to_document
from alchemy.training import die_with_parent

_write = staging.write_json_atomic


def _write_and_log(path: Path, document: Any) -> None:
    """A label that stands in the log was computed to its end; one that was killed before does not."""
    _write(path, document)
    if path.name == staging.OUTPUT and document.get("status") == "ok":
        with open(os.environ["CHAOS_LOG"], "a", encoding="utf-8") as file:
            file.write(f"{path.parent.name}\n")


staging.write_json_atomic = _write_and_log


class ChildEMT(Calculator):
    """Starts `chaos_child.py`, which computes; a killed child is no fault of the structure's."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces", "stress"]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        super().calculate(atoms, list(properties), list(system_changes))
        assert self.atoms is not None
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("chaos_child.py"))],
            input=json.dumps(atoms_to_document(self.atoms)), capture_output=True, text=True,
            preexec_fn=die_with_parent, check=False,
        )  # fmt: skip
        if done.returncode == -signal.SIGKILL:
            raise LabelFailureError("program-killed", "chaos_child.py was killed")
        if done.returncode != 0:
            raise LabelFailureError("engine-error", done.stderr[-300:])
        found = json.loads(done.stdout)
        self.results = {name: np.array(value) for name, value in found.items()}
        self.results["energy"] = float(found["energy"])
