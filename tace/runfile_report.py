"""What is left of a run: the model with its card, errors on every set, figures, and a warning if due."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .card import CARD, example_of, make_card
from .comparison import Pairs, compare, error_rows
from .data import Labelled
from .divergence import Carrier, advice, carriers, diagnose, story, to_json
from .errors import TaceError
from .io import save_model
from .model import Tace
from .plots import learning_curve, parity
from .runfile import RunFile
from .runfile_data import PARTS, RunData, max_force
from .runfile_folder import RunFolder, write_text
from .tables import aligned

MOST_TRAIN = 1000  # training frames that errors are taken from; more say nothing new


def write_report(
    folder: RunFolder,
    run: RunFile,
    data: RunData,
    *,
    model: Tace,
    history: Sequence[Mapping[str, Any]],
    training: Mapping[str, Any],
    replay: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Errors, model card, `model.pt`, `report.json` and figures."""
    tables, rows = {}, []
    for part in PARTS:
        frames = _some(data.part(part)) if part == "train" else data.part(part)
        if frames:
            tables[part] = compare([model], frames)
            rows += error_rows(tables[part], set=part)
    watched = tables.get("valid") or tables.get("train") or {}
    held = data.valid or _some(data.train)
    card = make_card(
        model,
        example=example_of(data.train),
        counts=data.counts(),
        errors=rows,
        settings=run.plain,
        data_hash=data.hash(),
        training=training,
    )
    save_model(folder.file("model.pt"), model, {CARD: card})
    warning, lines = _divergence(run, data, model, history, watched, held)
    report: dict[str, Any] = {
        "model": str(folder.file("model.pt")),
        "parameters": card["parameters"],
        "labels": card["labels"],
        "errors": rows,
        "training": dict(training),
        "divergence": warning,
        "warnings": lines,
        "data_hash": card["data_hash"],
        "versions": card["versions"],
    }
    if replay is not None:
        report["replay"] = dict(replay)
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(folder.file("report.json"), text)
    if history:
        learning_curve(folder.file("learning_curve.png"), history)
    shown = next((part for part in ("test", "valid", "train") if tables.get(part)), "train")
    parity(folder.file("parity.png"), tables.get(shown, {}), title=f"{shown} set")
    return report


def finished_report(folder: RunFolder) -> dict[str, Any]:
    """The report of a run that is finished."""
    try:
        found = json.loads(folder.file("report.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        raise TaceError(f"{folder.path}: report.json is missing or damaged; --restart trains again") from None
    return dict(found)


def _some(frames: Sequence[Labelled]) -> list[Labelled]:
    return list(frames[:: max(1, -(-len(frames) // MOST_TRAIN))])


def _divergence(
    run: RunFile,
    data: RunData,
    model: Tace,
    history: Sequence[Mapping[str, Any]],
    table: Mapping[str, Mapping[str, Pairs]],
    frames: Sequence[Labelled],
) -> tuple[dict[str, Any] | None, list[str]]:
    found = diagnose(history)
    if found is None:
        return None, []
    worst = blamed(table, frames)
    helps = advice(
        les=model.config.les is not None,
        forces_loss=run.settings.loss_kinds.get("forces", "mse"),
        cap=run.block("data").get("force_cap_eV_per_A"),
        largest_force_eV_per_A=max((max_force(f) for f in data.train), default=0.0),
    )
    return to_json(found, worst, helps), story(found, worst, helps)


def blamed(table: Mapping[str, Mapping[str, Pairs]], frames: Sequence[Labelled]) -> list[Carrier]:
    """The frames that carry the squared force error, over all fidelities."""
    names, wrong, labels = [], [], []
    for own in table.values():
        pairs = own.get("forces")
        if pairs is None:
            continue
        for n in np.unique(pairs.frames):
            rows = pairs.frames == n
            names.append(frames[n].name)
            wrong.append(pairs.predictions[rows] - pairs.labels[rows])
            labels.append(pairs.labels[rows])
    return carriers(names, wrong, labels)


def say_errors(report: Mapping[str, Any], tell: Callable[[str], None]) -> None:
    """The errors as a table, the warning and where the files are."""
    rows = report["errors"]
    heads = ["set", "fidelity", "quantity", "labels", "RMSE", "MAE", "unit"]
    keys = ["set", "fidelity", "quantity", "labels", "rmse", "mae", "unit"]
    if rows:
        tell("\n".join(aligned([heads, *([row[k] for k in keys] for row in rows)])))
    for line in report["warnings"]:
        tell(f"warning: {line}" if line == report["warnings"][0] else line)
    tell(f"written: {Path(report['model']).parent}/ (model.pt, report.json, parity.png, …)")
