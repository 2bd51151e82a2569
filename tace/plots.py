"""Figures of a training and of errors; matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .comparison import Pairs

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # told apart by most eyes
MOST_POINTS = 20_000  # of one cloud; more is only ink


def _figure(columns: int, rows: int = 1) -> tuple[Any, np.ndarray]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * columns, 3.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)  # no window, whatever the machine
    return figure, np.atleast_1d(figure.subplots(rows, columns)).ravel()


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def learning_curve(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Loss, and RMSE and MAE of every quantity, against the step."""
    names = [k.replace("_rmse", "") for k in (history[-1] if history else {}) if "_rmse" in k]
    figure, axes = _figure(min(3, 1 + len(names)), -(-(1 + len(names)) // 3))
    steps = [entry["step"] for entry in history]
    axes[0].plot(steps, [entry["loss"] for entry in history], color=COLORS[0], label="training")
    if any("validation_loss" in entry for entry in history):
        values = [entry.get("validation_loss", np.nan) for entry in history]
        axes[0].plot(steps, values, color=COLORS[1], label="validation")
    axes[0].set(title="loss", xlabel="step", yscale="log")
    for name, axis in zip(names, axes[1:], strict=False):
        head, _, unit = name.partition("_eV")
        for kind, color in (("rmse", COLORS[0]), ("mae", COLORS[1])):
            key = f"{head}_{kind}" + (f"_eV{unit}" if unit or "_eV" in name else "")
            axis.plot(steps, [entry.get(key, np.nan) for entry in history], color=color, label=kind.upper())
        label = f"eV{unit}".replace("_per_", "/") if "_eV" in name else ""
        axis.set(title=head.replace("_", " "), xlabel="step", ylabel=label, yscale="log")
    for axis in axes[: 1 + len(names)]:
        axis.legend(frameon=False)
    for axis in axes[1 + len(names) :]:
        axis.set_axis_off()
    _save(figure, path)


def parity(path: Path, table: Mapping[str, Mapping[str, Pairs]], *, title: str = "") -> None:
    """Predictions against labels of every quantity; a colour for each fidelity."""
    names = list(dict.fromkeys(name for own in table.values() for name in own))
    figure, axes = _figure(min(3, max(1, len(names))), max(1, -(-len(names) // 3)))
    if title:
        figure.suptitle(title)
    for name, axis in zip(names, axes, strict=False):
        limits = [np.inf, -np.inf]
        unit = ""
        for (level, own), color in zip(table.items(), _cycle(), strict=False):
            if name not in own:
                continue
            pairs = own[name]
            unit = pairs.unit
            x, y = _thinned(pairs.labels.ravel(), pairs.predictions.ravel())
            label = f"{level}: RMSE {pairs.rmse:.3g}, MAE {pairs.mae:.3g}"
            axis.plot(x, y, ".", color=color, markersize=3, alpha=0.5, label=label, rasterized=True)
            limits = [min(limits[0], x.min(), y.min()), max(limits[1], x.max(), y.max())]
        axis.plot(limits, limits, color="0.5", linewidth=0.8, zorder=0)
        axis.set(title=name.replace("_", " "), xlabel=f"label ({unit})", ylabel=f"prediction ({unit})")
        axis.legend(frameon=False, fontsize=7)
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    _save(figure, path)


def _cycle() -> list[str]:
    return list(COLORS) * 4


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    stride = max(1, len(x) // MOST_POINTS)
    return x[::stride], y[::stride]
