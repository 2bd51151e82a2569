"""A run from data to report: what `tace train`, `tace finetune` and `train_from_config` do."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import devices
from .balance import with_weights
from .checks import check_labels, summary
from .comparison import compare, error_rows
from .data import Labelled, Sample, make_samples
from .divergence import advice
from .errors import DataError, TrainingError
from .finetune import check_elements, load_trainable, with_replay
from .io import load_model, save_model
from .model import Tace
from .readers import data_hash, is_isolated
from .responses import available
from .runfile import RunFile
from .runfile_data import Reader, RunData, extra_quantities, read_run_data
from .runfile_folder import RunFolder, identity_of, open_folder, read_record
from .runfile_model import adapt_model, heads_and_inputs, new_model, started_model
from .runfile_report import finished_report, say_errors, write_report
from .runfile_watch import INTERRUPTED, Bar, Say, Watch, interruptible
from .settings import TrainSettings
from .tables import aligned
from .train import FitResult, Trainer, fit

REPLAYED = 0.3  # share of old samples where the run file says nothing


@dataclass
class RunResult:
    """What came of a run; `model` is None after an interruption, which writes no report."""

    out: Path
    report: dict[str, Any]
    model: Tace | None
    stopped: str = ""  # '', 'early', 'cpu budget' or 'interrupted'

    @property
    def finished(self) -> bool:
        return self.stopped in ("", "early")


def execute(
    run: RunFile, *, restart: bool = False, say: Say | None = None, progress: bool = False
) -> RunResult:
    """Train as the run file says; the same call continues a run that was ended before its time.

    Args:
        restart: start over, deleting what an earlier call has written to the folder.
        say: takes lines for a person.
        progress: show a bar on the standard error.

    Raises:
        TaceError: whatever is wrong with files, data, settings, the folder or the training; it is named.
    """
    tell = say or (lambda line: None)
    device = devices.use(str(run.value("device")), int(run.value("threads")))
    read_record(run.out)  # a folder in use is refused before any data are read
    start = started_model(run) if run.init is not None else None
    heads, inputs = heads_and_inputs(run, start)
    predicts = None if start is None else available(start.config)
    data = read_run_data(run, heads, inputs=inputs, predicts=predicts)
    if start is not None:
        check_elements(start, data.elements, where=str(run.init))
    old = _replayed(run, start)
    _say_data(run, data, tell)
    hashes = {"training": data.hash(), **({"replayed": data_hash(old)} if old else {})}
    folder = open_folder(run.out, identity_of(run, hashes), restart=restart)
    if folder.finished:
        tell(f"{run.out}: this run is finished; --restart trains it again")
        model = load_model(folder.file("model.pt"))
        return RunResult(run.out, finished_report(folder), model, folder.record["stopped"])
    model, notes = new_model(run, data) if start is None else adapt_model(start, run, data)
    for note in notes:
        tell(f"note: {note}")
    return _train(run, data, model.to(device), folder, old=old, tell=tell, progress=progress)


def _train(
    run: RunFile,
    data: RunData,
    model: Tace,
    folder: RunFolder,
    *,
    old: list[Labelled],
    tell: Say,
    progress: bool,
) -> RunResult:
    train = make_samples(data.train, model.config, data.labels)
    settings = _weighed(run.settings, train, tell)
    valid = make_samples(data.valid, model.config, data.labels)
    make_samples(data.test, model.config, data.labels)  # what it cannot read is told now, not in the end
    if old:
        train = _mixed(run, train, old, model, data.labels)
        settings = replace(settings, fidelity_balance=0.0)
    folder.begin()
    if old and "before" not in folder.record:
        folder.write(before=_errors_on(model, old))
    watch = Watch(folder, model, settings, max_cpu_s=run.max_cpu_s, tell=tell)
    if watch.step:
        tell(f"continuing at step {watch.step} of {settings.steps}")
    result = _fit(run, watch, train, valid, progress=progress)
    if watch.stopped == INTERRUPTED:
        tell(f"interrupted at step {watch.step} of {settings.steps}; the same command continues")
        return RunResult(run.out, {}, None, INTERRUPTED)
    _finish_best(folder, model, train, settings, result=result)
    stopped = watch.stopped or ("early" if result.stopped_early else "")
    training = {
        "steps": result.steps,
        "of_steps": settings.steps,
        "best_step": result.best_step,
        "stopped": stopped,
        "label_weights": settings.label_weights,
        **{k: round(v, 3) for k, v in watch.spent().items()},
        "started_from": None if run.init is None else str(run.init),
    }
    model = model.cpu()
    replay = None if not old else {"before": folder.record["before"], "after": _errors_on(model, old)}
    report = write_report(
        folder, run, data, model=model, history=watch.history, training=training, replay=replay
    )
    say_errors(report, tell)
    folder.write(finished=stopped in ("", "early"), stopped=stopped)
    if not folder.record["finished"]:
        tell(f"stopped at step {result.steps} by train.max_cpu_minutes; with a larger one it continues")
    return RunResult(run.out, report, model.eval().requires_grad_(False), stopped)


def _fit(
    run: RunFile, watch: Watch, train: Sequence[Sample], valid: Sequence[Sample], *, progress: bool
) -> FitResult:
    """Train under the eyes of `watch`."""
    folder, settings = watch.folder, watch.settings
    with contextlib.ExitStack() as stack:
        stack.enter_context(interruptible(watch))
        if progress:
            watch.bar = stack.enter_context(Bar(settings.steps, watch.step).shown())
        try:
            result = fit(
                watch.model,
                train,
                valid,
                settings=settings,
                checkpoint=folder.file("checkpoint.pt"),
                checkpoint_every=settings.validate_every,
                on_step=watch.on_step,
                on_validation=watch.on_validation,
            )
        except TrainingError as error:
            raise TrainingError(f"{error}\n{_help(run)}") from None
        finally:
            folder.write(spent=watch.spent())
    watch.export()
    return result


# ------------------------------------------------------------------ parts
def _finish_best(
    folder: RunFolder, model: Tace, train: Sequence[Sample], settings: TrainSettings, *, result: FitResult
) -> None:
    """`best.pt` with shifts that fit it, as `model.pt` has; after an early stop the two are one."""
    path = folder.file("best.pt")
    best = model
    if result.best_step and not result.stopped_early:
        best = load_trainable(path).to(model.device)
        Trainer(best, train, [], settings).correct_shift()
    save_model(path, best, {"of": "the smallest validation error"})


def _say_data(run: RunFile, data: RunData, tell: Say) -> None:
    """Notes, the table of labels, and what the checks find.

    Raises:
        DataError: the checks found errors, and the run file does not say to go on.
    """
    for note in data.notes:
        tell(note)
    rows = data.counts()
    tell("\n".join(aligned([list(rows[0]), *(list(row.values()) for row in rows)])) if rows else "no data")
    if run.check_labels == "off":
        return
    findings = check_labels([*data.train, *data.valid, *data.test])
    tell(summary(findings))
    errors = [f for f in findings if f.severity == "error"]
    if run.check_labels == "error" and errors:
        wrong = "\n".join(f"  {f.message}: {', '.join(f.frames[:5])}" for f in errors)
        raise DataError(
            f"{run.name}: the labels have errors:\n{wrong}\ncorrect them, or go on in spite of them with "
            "checks: {labels: warn}"
        )


def _weighed(settings: TrainSettings, train: Sequence[Sample], tell: Say) -> TrainSettings:
    """The settings with a weight for every quantity of the data; those that were not given are told."""
    weighed = with_weights(settings, train)
    found = {n: w for n, w in weighed.label_weights.items() if n not in settings.label_weights}
    if found:
        tell(
            "weights in the loss by the spread of the labels (train.label_weights changes them): "
            + ", ".join(f"{name} {weight:.3g}" for name, weight in found.items())
        )
    return weighed


def _replayed(run: RunFile, start: Tace | None) -> list[Labelled]:
    """Old data that a fine-tuning repeats."""
    block = run.block("finetune").get("replay")
    if not block or start is None:
        return []
    heads = start.config.heads
    labels = tuple(h.name for h in heads)
    reader = Reader(run, labels, extra_quantities(heads), start.config.input_names)
    found = [f for f in reader.more(block["data"]) if not is_isolated(f)]
    unknown = {f.fidelity for f in found} - set(start.config.fidelities)
    if unknown:
        known = ", ".join(start.config.fidelities)
        raise DataError(
            f"finetune.replay: old data at '{min(unknown)}', which {run.init} does not know (it has "
            f"{known}); say which it is: {{file: …, fidelity: {start.config.fidelities[-1]}}}"
        )
    check_elements(start, sorted({int(z) for f in found for z in f.atoms.numbers}), where=str(run.init))
    return found


def _mixed(
    run: RunFile, train: list[Sample], old: list[Labelled], model: Tace, labels: Sequence[str]
) -> list[Sample]:
    fraction = float(run.block("finetune")["replay"].get("fraction", REPLAYED))
    samples = make_samples(old, model.config, labels)
    return with_replay(train, samples, fraction=fraction, seed=run.settings.seed)


def _errors_on(model: Tace, frames: Sequence[Labelled]) -> list[dict[str, Any]]:
    return error_rows(compare([model], frames))


def _help(run: RunFile) -> str:
    kinds = run.settings.loss_kinds.get("forces", "mse")
    cap = run.block("data").get("force_cap_eV_per_A")
    les = bool(run.block("model").get("les"))
    lines = advice(les=les, forces_loss=kinds, cap=cap, largest_force_eV_per_A=math.inf)
    return "\n".join(["what helps:", *(f"  {line}" for line in lines)])
