"""One controller per campaign: a lease file with the holder's host, process and heartbeat.

On the same host a dead process frees the lease at once; elsewhere a heartbeat older than ten minutes does.
The heartbeat runs in a thread of its own, so that a long stage does not look like a death.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from .errors import CampaignBusyError

HEARTBEAT_S = 30.0
STALE_S = 600.0


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _process_start(pid: int) -> str:
    """Start time of a process in clock ticks: a recycled pid has another one. Empty if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


def refuse_if_held(path: Path) -> None:
    """Raises CampaignBusyError if a live controller holds the lease; takes nothing."""
    if path.exists():
        Lease(path)._clear_if_dead()


class Lease:
    """Context manager; raises CampaignBusyError on entry if somebody else runs the campaign."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._document: dict[str, Any] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process_start": _process_start(os.getpid()),
            "boot_id": _boot_id(),
        }

    def __enter__(self) -> Lease:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(3):
            try:
                handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                self._clear_if_dead()
                continue
            with os.fdopen(handle, "w") as file:
                json.dump({**self._document, "heartbeat_unix_s": time.time()}, file)
            self._thread = threading.Thread(target=self._beat, daemon=True)
            self._thread.start()
            return self
        raise CampaignBusyError(f"{self.path}: another controller took the campaign just now")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
            try:
                temporary.write_text(json.dumps({**self._document, "heartbeat_unix_s": time.time()}))
                os.replace(temporary, self.path)
            except OSError:  # a full disk must not end the campaign; the next beat tries again
                continue

    def _clear_if_dead(self) -> None:
        """Remove a lease whose holder is gone; raise if it is alive."""
        try:
            held = json.loads(self.path.read_text())
        except FileNotFoundError:
            return
        except ValueError:  # torn by a crash between creation and the first write
            if time.time() - self.path.stat().st_mtime < 5.0:
                time.sleep(0.2)
                return
            self.path.unlink(missing_ok=True)
            return
        if held.get("host") == self._document["host"]:
            alive = (
                held.get("boot_id") == self._document["boot_id"]
                and _process_start(int(held["pid"])) == held.get("process_start")
            )
        else:
            alive = time.time() - float(held["heartbeat_unix_s"]) < STALE_S
        if alive:
            raise CampaignBusyError(
                f"process {held['pid']} on {held['host']} runs this campaign; wait for it, stop it with "
                f"Ctrl-C there, or if it is surely gone remove {self.path}"
            )
        self.path.unlink(missing_ok=True)
