"""What a person sees while a campaign runs: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO

PLAIN_EVERY_S = 10.0
WORTH_SAYING_S = 0.5  # what is over sooner needs no line


class Bar(Protocol):
    """Progress of one stage."""

    def advance(self) -> None:
        """One more is done."""

    def note(self, text: str) -> None:
        """A few words about the last one."""


class Progress:
    """Prints to a stream and, with times, to the campaign's log."""

    def __init__(self, stream: TextIO | None = None, log: Path | None = None) -> None:
        self._stream = stream or sys.stdout
        self._log = log
        self._live = self._stream.isatty()
        self.round: int | None = None
        self._bar: Bar | None = None

    def waiting(self, text: str) -> None:
        """What keeps the present stage from going on; '' when that is over."""
        if not text:
            return
        bar = self._bar  # labels beside the loop wait in threads of their own
        if self._live and bar is not None:
            self._write_log(text)
            bar.note(text)
        else:
            self.message(f"  {text}")

    def message(self, text: str) -> None:
        """One line for people."""
        self._write_log(text)
        if self._live:
            self._console().print(text, highlight=False, markup=False)
        else:
            print(text, file=self._stream, flush=True)

    def attach_log(self, path: Path) -> None:
        """From now on also write to this file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._log = path

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Bar]:
        """A bar for `total` tasks; nothing is shown for none."""
        label = name if self.round is None else f"round {self.round}: {name}"
        if total == 0:
            yield _Silent()
            return
        started = time.monotonic()
        try:
            if self._live:
                with self._rich(label, total) as self._bar:
                    yield self._bar
            else:
                self._bar = _Plain(self, label, total)
                yield self._bar
        finally:
            self._bar = None
        self._write_log(f"{label}: {total} in {time.monotonic() - started:.1f} s")

    def _write_log(self, text: str) -> None:
        if self._log is not None:
            stamp = time.strftime("%Y-%m-%d %H:%M:%S")
            with open(self._log, "a", encoding="utf-8") as file:
                file.write(f"{stamp} {text}\n")

    def _console(self) -> Any:
        from rich.console import Console

        return Console(file=self._stream)

    @contextmanager
    def _rich(self, label: str, total: int) -> Iterator[Bar]:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with RichProgress(*columns, console=self._console(), transient=True) as live:
            yield _Live(live, live.add_task(label, total=total, note=""))


class _Silent:
    def advance(self) -> None:
        return

    def note(self, text: str) -> None:
        return


class _Live:
    def __init__(self, live: Any, task: Any) -> None:
        self._bar, self._task = live, task

    def advance(self) -> None:
        self._bar.advance(self._task)

    def note(self, text: str) -> None:
        self._bar.update(self._task, note=text)


class _Plain:
    """A line at the start of long work, every ten seconds, and at the end."""

    def __init__(self, progress: Progress, label: str, total: int) -> None:
        self._progress, self._label, self._total = progress, label, total
        self._done, self._note = 0, ""
        self._started = self._said = time.monotonic()

    def note(self, text: str) -> None:
        self._note = text

    def advance(self) -> None:
        self._done += 1
        now = time.monotonic()
        last = self._done == self._total
        if now - self._said < (WORTH_SAYING_S if last else PLAIN_EVERY_S):
            return
        self._said = now
        elapsed = now - self._started
        left = "" if last else f", about {elapsed / self._done * (self._total - self._done):.0f} s left"
        note = f" ({self._note})" if self._note else ""
        print(
            f"  {self._label} {self._done}/{self._total}, {elapsed:.1f} s{left}{note}",
            file=self._progress._stream,
            flush=True,
        )
