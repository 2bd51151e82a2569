"""The folder of a run: which run it belongs to, what was finished, and the files in it."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import TaceError
from .runfile import RunFile

FORMAT = "tace-run"
OWN_FILES = (
    "run.json", "checkpoint.pt", "metrics.jsonl", "best.pt", "last.pt", "model.pt", "report.json",
    "learning_curve.png", "parity.png",
)  # fmt: skip
_NOT_COMPARED = ("out", "threads", "device")  # and train.max_cpu_minutes: they do not change what is learnt


class RunFolderError(TaceError):
    """The output is in use by something else, or belongs to another run."""


@dataclass
class RunFolder:
    """`spent` are the CPU and wall seconds of all earlier calls."""

    path: Path
    record: dict[str, Any]
    begun: bool = True  # False: nothing is on disk yet, or what is will be deleted

    def file(self, name: str) -> Path:
        return self.path / name

    @property
    def finished(self) -> bool:
        return self.begun and bool(self.record.get("finished")) and self.file("model.pt").is_file()

    def spent(self, name: str) -> float:
        return float(self.record.get("spent", {}).get(name, 0.0))

    def begin(self) -> None:
        """Make the folder, without what an earlier run has written."""
        if not self.begun:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in OWN_FILES:
                self.file(name).unlink(missing_ok=True)
            self.begun = True
            self.write()

    def write(self, **changes: Any) -> None:
        """Change the record on disk, atomically."""
        self.record.update(changes)
        write_text(self.file("run.json"), json.dumps(self.record, indent=1, allow_nan=False))


def open_folder(path: Path, identity: Mapping[str, Any], *, restart: bool) -> RunFolder:
    """The folder of this run, new or begun before; nothing is changed on disk until `begin`.

    Raises:
        RunFolderError: it is a file, holds something else, or was begun with other settings or data.
    """
    record = read_record(path)
    plain = json.loads(json.dumps(dict(identity)))
    if record is not None and not restart:
        changes = list(_changes(record.get("identity", {}), plain))
        if changes:
            listed = "; ".join(changes[:5]) + (f"; and {len(changes) - 5} more" if len(changes) > 5 else "")
            raise RunFolderError(
                f"{path} holds a run with other settings or data ({listed}); --restart starts over and "
                "deletes it, --out writes elsewhere"
            )
        return RunFolder(path, record)
    return RunFolder(path, {"format": FORMAT, "identity": plain, "finished": False}, begun=False)


def read_record(path: Path) -> dict[str, Any] | None:
    """What `run.json` says; None if the folder is new or empty.

    Raises:
        RunFolderError: something else is there, which is not touched.
    """
    there = next(p for p in (path, *path.resolve().parents) if p.exists())
    if not there.is_dir():
        raise RunFolderError(f"{path}: {there} is a file, not a folder; choose another --out")
    if there != path or not any(path.iterdir()):
        return None
    try:
        record = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        record = None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise RunFolderError(f"{path} exists and is not the folder of a run; choose another --out")
    return record


def identity_of(run: RunFile, hashes: Mapping[str, str]) -> dict[str, Any]:
    """What must not change between the calls of one run."""
    plain = {k: v for k, v in run.plain.items() if k not in _NOT_COMPARED}
    plain["train"] = {k: v for k, v in run.block("train").items() if k != "max_cpu_minutes"}
    start = None
    if run.init is not None:
        if not run.init.is_file():
            raise TaceError(f"{run.init}: no such file")
        start = hashlib.sha256(run.init.read_bytes()).hexdigest()
    return {"run": plain, "data": dict(hashes), "start": start, "finetune": run.finetune}


def _changes(old: Any, new: Any, where: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _changes(old.get(key), new.get(key), f"{where}.{key}")
    elif old != new:
        name = where.removeprefix(".run").removeprefix(".")
        if name.startswith("data.") and isinstance(old, str) and len(old) == 64:
            yield f"the {name.removeprefix('data.')} data changed"
        elif name == "start":
            yield "the model to start from changed"
        else:
            yield f"{name} was {_short(old)}, now {_short(new)}"


def _short(value: Any) -> str:
    text = "not given" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}…"


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step: a reader sees the old one or the new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
