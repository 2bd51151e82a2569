"""Who computes a label: one file per label that is being computed, and a log of the tries.

A claim is taken by a batch job and holds until the job lets it go, or until the controller knows from the
scheduler that the job is dead; so two jobs never compute the same label.

    <root>/.claims/<key>.json       {"holder": "al0123456789ab", …}
    <root>/<key>/attempts.jsonl     one line per try: job, host, process, time
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path

FOLDER, ATTEMPTS = ".claims", "attempts.jsonl"


def take(root: Path, key: str, holder: str) -> str:
    """Claim a label; '' if it is ours now, else who holds it. One step, on network file systems too."""
    path = _path(root, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"holder": holder, "host": platform.node(), "pid": os.getpid(), "unix_s": time.time()}
    own = path.with_name(f".{key}.{holder}.{os.getpid()}")
    own.write_text(json.dumps(document), encoding="utf-8")
    try:
        os.link(own, path)  # fails if it is there, and is there complete
    except FileExistsError:
        found = holder_of(root, key)
        return "" if found == holder else found or "a job that has just let it go"
    finally:
        own.unlink()
    return ""


def holder_of(root: Path, key: str) -> str:
    """The job that has claimed the label, or ''."""
    try:
        return str(json.loads(_path(root, key).read_text(encoding="utf-8"))["holder"])
    except FileNotFoundError:
        return ""


def release(root: Path, keys: Iterable[str], holder: str) -> None:
    """Let go what this job holds; claims of others stay."""
    for key in keys:
        if holder_of(root, key) == holder:
            _path(root, key).unlink(missing_ok=True)


def log_attempt(root: Path, key: str, holder: str) -> None:
    """One more line in the label's directory."""
    directory = root / key
    directory.mkdir(parents=True, exist_ok=True)
    line = {"job": holder, "host": platform.node(), "pid": os.getpid(), "unix_s": round(time.time(), 3)}
    with open(directory / ATTEMPTS, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _path(root: Path, key: str) -> Path:
    return root / FOLDER / f"{key}.json"
