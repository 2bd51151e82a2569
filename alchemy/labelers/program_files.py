"""Files of a program's calculation: written, cleared, kept, hashed, quoted in messages."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from alchemy.errors import EnvironmentProblemError, InputError
from alchemy.labelers import staging

FULL = ("No space left on device", "Disk quota exceeded")
ROOM_BYTES = 1 << 20
TAIL_LINES = 8
OURS = (staging.INPUT, staging.STRUCTURE)


def write_files(files: Mapping[str, str | Path], directory: Path) -> None:
    """Text is written; a path becomes a symbolic link to it."""
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if isinstance(content, Path):
            path.symlink_to(content)
        else:
            path.write_text(content, encoding="utf-8")


def last_lines(path: Path, number: int = TAIL_LINES) -> str:
    """The end of an output, for messages."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4000))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return "\n".join([line.rstrip() for line in lines if line.strip()][-number:])


def clear(directory: Path) -> None:
    """Nothing that an earlier rung, or a killed worker, wrote may pass for this one's output."""
    for path in directory.iterdir():
        if path.name in OURS or path.name.startswith(("failed-", "rung-")):
            continue
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def set_aside(directory: Path, grave: Path) -> None:
    """Keep what a rung wrote."""
    grave.mkdir()
    for path in list(directory.iterdir()):
        if path.name not in OURS and not path.name.startswith(("failed-", "rung-")):
            path.rename(grave / path.name)


def check_room(directory: Path, said: str) -> None:
    """A full disk is nobody's physics; it must not become a record."""
    full = [text for text in FULL if text in said]
    if full or shutil.disk_usage(directory).free < ROOM_BYTES:
        raise EnvironmentProblemError(
            f"{directory}: {full[0] if full else FULL[0]}; make room there and continue"
        )


def significant(text: str, comment_marks: tuple[str, ...]) -> str:
    """A template without Jinja's and the code's comments and without empty lines."""
    lines = re.sub(r"\{#.*?#\}", "", text, flags=re.DOTALL).splitlines()
    lines = [line.rstrip() for line in lines if line.strip()]
    return "\n".join(line for line in lines if not line.lstrip().startswith(comment_marks))


@lru_cache(maxsize=64)
def text_hash(text: str) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def content_hash_of(path: Path) -> str:
    """SHA-256 in hex of a file; read again only when it changed."""
    try:
        status = path.stat()
        return _file_hash(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


@lru_cache(maxsize=512)
def _file_hash(path: Path, _changed: int, _size: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@lru_cache(maxsize=32)
def said_by(program: str, arguments: tuple[str, ...], _changed: int) -> str:
    """What a program prints when asked for its version; whatever else it thinks of that."""
    try:
        with tempfile.TemporaryDirectory() as folder:  # pw.x leaves files wherever it is asked
            done = subprocess.run(
                [program, *arguments],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=20,
                check=False,
            )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout + done.stderr).decode("utf-8", "replace")
