"""What happens during a training: the log, the checkpoints as models, budgets, interruption, the bar."""

from __future__ import annotations

import copy
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, TextIO

from .divergence import diagnose
from .io import read_archive, save_model
from .model import Tace
from .runfile_folder import RunFolder
from .settings import TrainSettings

Say = Callable[[str], None]
INTERRUPTED, BUDGET = "interrupted", "cpu budget"
PLAIN_EVERY_S = 30.0


class Watch:
    """The callbacks of `fit`, for one call of a run; `stopped` says why it was ended, if it was."""

    def __init__(
        self,
        folder: RunFolder,
        model: Tace,
        settings: TrainSettings,
        *,
        max_cpu_s: float | None = None,
        tell: Say | None = None,
    ) -> None:
        self._tell, self._warned = tell, False
        self.folder, self.model, self.settings = folder, model, settings
        self.max_cpu_s = max_cpu_s
        self.bar: Bar | None = None
        self.stopped = ""
        self.asked_to_stop = False
        self.step = self._resume()
        self._cpu, self._wall = time.process_time(), time.monotonic()
        self._before = {name: folder.spent(name) for name in ("cpu_s", "wall_s")}

    def _resume(self) -> int:
        """Cut the log to where the checkpoint stands; its step."""
        self.history: list[dict[str, Any]] = []
        checkpoint, log = self.folder.file("checkpoint.pt"), self.folder.file("metrics.jsonl")
        if not checkpoint.is_file():
            log.unlink(missing_ok=True)
            return 0
        step = int(read_archive(checkpoint).get("step", 0))
        kept = []
        for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
            try:
                entry = json.loads(line)
            except ValueError:  # a line that the end of the last call cut off
                continue
            if entry["step"] <= step:
                kept.append(line)
                self.history.append(entry)
        log.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        return step

    def spent(self) -> dict[str, float]:
        """CPU and wall seconds of the run so far, over all calls."""
        cpu, wall = time.process_time() - self._cpu, time.monotonic() - self._wall
        return {"cpu_s": self._before["cpu_s"] + cpu, "wall_s": self._before["wall_s"] + wall}

    def on_validation(self, entry: Mapping[str, float]) -> None:
        """A line of the log."""
        self.step = int(entry["step"])
        row = {k: v if math.isfinite(v) else None for k, v in entry.items()}
        full = {**row, **{k: round(v, 3) for k, v in self.spent().items()}}
        self.history.append(full)
        with open(self.folder.file("metrics.jsonl"), "a", encoding="utf-8") as file:
            file.write(json.dumps(full, allow_nan=False) + "\n")
        if self.bar is not None:
            self.bar.note(_words(full))
        self._warn()

    def _warn(self) -> None:
        """Once, as soon as it shows: hours may be left to run."""
        found = None if self._warned else diagnose(self.history)
        if found is not None and self._tell is not None:
            self._warned = True
            self._tell(f"warning: step {self.step}: {found.message}")

    def on_step(self, step: int, loss: float) -> bool:
        """Whether training goes on."""
        self.step = step
        last, every = step == self.settings.steps, self.settings.validate_every
        if step % every == 0 and not last:
            self.folder.write(spent=self.spent())
            self.export()
        if self.bar is not None:
            self.bar.advance(step)
        if self.asked_to_stop:
            self.stopped = INTERRUPTED
        elif self.max_cpu_s is not None and not last and self.spent()["cpu_s"] >= self.max_cpu_s:
            self.stopped = BUDGET
        return not self.stopped and not last  # False writes a checkpoint, at the end too

    def export(self) -> None:
        """`last.pt` and `best.pt` from the checkpoint: models that can be used while training goes on."""
        checkpoint = self.folder.file("checkpoint.pt")
        if not checkpoint.is_file():
            return
        state = read_archive(checkpoint)
        model = copy.deepcopy(self.model).cpu()
        parameters = [p for p in model.parameters() if p.requires_grad]
        which = {"last.pt": "average", **({"best.pt": "best"} if state["result"]["best_step"] else {})}
        for name, key in which.items():
            for parameter, value in zip(parameters, state[key], strict=True):
                parameter.data.copy_(value)
            step = state["result"]["best_step"] if key == "best" else state["step"]
            save_model(self.folder.file(name), model, {"step": int(step)})


@contextmanager
def interruptible(watch: Watch) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run at the next step, with a checkpoint; a second one at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        if watch.asked_to_stop:
            raise KeyboardInterrupt
        watch.asked_to_stop = True

    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.signal(kind, handler) for kind in kinds}
    try:
        yield
    finally:
        for kind, old in before.items():
            signal.signal(kind, old)


# ------------------------------------------------------------------ progress
class Bar:
    """A live line in a terminal; elsewhere a plain line every half minute."""

    def __init__(self, total: int, done: int, stream: TextIO | None = None) -> None:
        self.total, self.done, self._note = total, done, ""
        self._stream = stream or sys.stderr
        self._started = self._said = time.monotonic()
        self._first = done
        self._live: Any = None
        self._task: Any = None

    @contextmanager
    def shown(self) -> Iterator[Bar]:
        if not self._stream.isatty():
            yield self
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("train"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        with Progress(*columns, console=Console(file=self._stream), transient=True) as live:
            self._live, self._task = live, live.add_task("", total=self.total, completed=self.done, note="")
            yield self

    def advance(self, step: int) -> None:
        self.done = step
        if self._live is not None:
            self._live.update(self._task, completed=step)
            return
        now = time.monotonic()
        if now - self._said < PLAIN_EVERY_S:
            return
        self._said = now
        per_step = (now - self._started) / max(1, step - self._first)
        left = per_step * (self.total - step)
        note = f" ({self._note})" if self._note else ""
        print(f"  step {step}/{self.total}, about {left:.0f} s left{note}", file=self._stream, flush=True)

    def note(self, text: str) -> None:
        self._note = text
        if self._live is not None:
            self._live.update(self._task, note=text)


def _words(entry: Mapping[str, Any]) -> str:
    """The errors of a validation in a few words."""
    known = {key: value for key, value in entry.items() if value is not None}
    parts = []
    if "force_rmse_eV_per_A" in known:
        rmse, mae = (1e3 * known[f"force_{kind}_eV_per_A"] for kind in ("rmse", "mae"))
        parts.append(f"F {rmse:.4g}/{mae:.4g} meV/Å")
    if "energy_rmse_eV_per_atom" in known:
        parts.append(f"E {1e3 * known['energy_rmse_eV_per_atom']:.4g} meV/atom")
    return ", ".join(parts) or f"loss {known.get('loss', math.nan):.3g}"
