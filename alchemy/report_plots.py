"""Panels of the report as inline SVG.

matplotlib is used through its objects, never pyplot. Colours are written as placeholders and
replaced by CSS variables, so that one drawing serves light, dark and paper; legends, titles and
names are HTML.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from alchemy_policies.spread_law import SpreadLaw
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

COLOURS = tuple(f"s{i}" for i in range(1, 9))  # of the template's palette, in this order
PLACEHOLDER = {
    name: f"#a1b2{i:02x}"
    for i, name in enumerate((*COLOURS, "ink", "muted", "grid", "axis", "surface"))
}
SIZE_INCH = (4.7, 3.1)
POINTS_DRAWN = 1200  # one point is about 100 bytes of SVG; the whole file stays below 2 MB
CROWDED = 12  # rounds beyond which full-size markers hide the line
STEPS = (1, 2, 2.5, 5, 10)  # ticks at 80, 160, 240 are hard to read
LOG_FROM_RATIO = 6.0  # below, a logarithmic axis has too few round numbers to be read


@dataclass(frozen=True)
class Series:
    """One line of a panel and of its legend; `y` may hold NaN, which is a gap."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    colour: str
    marker: str = "o"
    dashed: bool = False
    valued: bool = False  # write the last value beside its point

    @property
    def known(self) -> bool:
        return any(
            math.isfinite(x) and math.isfinite(y) for x, y in zip(self.x, self.y, strict=True)
        )


@dataclass(frozen=True)
class Level:
    """A horizontal line, such as the cheap level's own error."""

    label: str
    value: float
    colour: str = "muted"


@contextmanager
def _style() -> Iterator[None]:
    """Our defaults, whatever the user's matplotlibrc says; names may hold `$`, so no mathtext."""
    colour = PLACEHOLDER
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "text.parse_math": False,
                "font.size": 8.5,
                "figure.facecolor": "none",
                "axes.facecolor": "none",
                "axes.labelsize": 8.5,
                "axes.labelcolor": colour["ink"],
                "axes.edgecolor": colour["axis"],
                "axes.linewidth": 0.9,
                "text.color": colour["ink"],
                "xtick.color": colour["axis"],
                "ytick.color": colour["axis"],
                "xtick.labelcolor": colour["muted"],
                "ytick.labelcolor": colour["muted"],
                "grid.color": colour["grid"],
                "grid.linewidth": 0.8,
            }
        )
        yield


@_style()
def curve_panel(
    series: Sequence[Series], levels: Sequence[Level], *, key: str, x: str, y: str
) -> str:
    """Errors against what was paid for them."""
    figure, axes = _panel(x, y)
    shown = [s for s in series if s.known]
    for line in shown:
        colour = PLACEHOLDER[line.colour]
        axes.plot(
            line.x,
            line.y,
            color=colour,
            marker=line.marker,
            clip_on=False,
            linestyle=(0, (2, 2)) if line.dashed else "-",
            linewidth=1.3 if line.dashed else 2.0,
            markerfacecolor=PLACEHOLDER["surface"] if line.dashed else colour,
            markersize=6.5 if len(line.x) <= CROWDED else 4.0,
            markeredgewidth=1.5 if len(line.x) <= CROWDED else 1.0,
            zorder=3,
        )
    for level in levels:
        axes.axhline(
            level.value,
            color=PLACEHOLDER[level.colour],
            linestyle=(0, (5, 3)),
            linewidth=1.4,
            zorder=2,
        )
    values = [v for s in shown for v in s.y] + [level.value for level in levels]
    _error_axis(axes, [v for v in values if math.isfinite(v)])
    axes.margins(x=0.06)
    whole = all(v.is_integer() for s in shown for v in s.x if math.isfinite(v))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=whole, steps=STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    for line in shown:
        if line.valued:
            _write_last_value(axes, line)
    return _svg(figure, key)


@_style()
def parity_panel(
    rows: Sequence[tuple[float, ...]], *, key: str, what: str, unit: str, colour: str
) -> str:
    """Committee against label, with the diagonal on which they agree."""
    figure, axes = _panel(f"{what}, label ({unit})", f"{what}, committee ({unit})", grid=False)
    drawn = thinned(rows)
    ends = [v for row in rows for v in row]
    pad = 0.04 * (max(ends) - min(ends)) or 1.0
    low, high = min(ends) - pad, max(ends) + pad
    axes.plot([low, high], [low, high], color=PLACEHOLDER["muted"], linewidth=1.0, zorder=1)
    axes.plot(
        [r[0] for r in drawn],
        [r[1] for r in drawn],
        linestyle="none",
        marker="o",
        markersize=3.2 if len(drawn) > 100 else 6.0,
        markeredgewidth=0,
        color=PLACEHOLDER[colour],
        alpha=0.45 if len(drawn) > 100 else 0.75,
        zorder=2,
    )
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal", adjustable="box")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=STEPS))
    return _svg(figure, key)


@_style()
def calibration_panel(
    groups: Sequence[tuple[str, Sequence[tuple[float, ...]]]],
    *,
    key: str,
    expected: float,
    bound: float,
    law: SpreadLaw,
) -> str:
    """Error against spread of single atoms; both calibrated numbers are factors of the law."""
    figure, axes = _panel("Committee spread of an atom's force (meV/Å)", "Force error (meV/Å)")
    positive = [[(1000 * s, 1000 * e) for s, e in rows if s > 0 and e > 0] for _, rows in groups]
    share = max(1, sum(map(len, positive)))
    for (colour, _), rows in zip(groups, positive, strict=True):
        drawn = thinned(rows, max(1, POINTS_DRAWN * len(rows) // share))
        axes.plot(
            [r[0] for r in drawn],
            [r[1] for r in drawn],
            linestyle="none",
            marker="o",
            markersize=3.4,
            markeredgewidth=0,
            color=PLACEHOLDER[colour],
            alpha=0.5,
            zorder=2,
        )
    axes.set(xscale="log", yscale="log")
    spreads = [s for rows in positive for s, _ in rows]
    ends = [min(spreads) / 1.25, max(spreads) * 1.25]
    drawn_at = np.geomspace(ends[0], ends[1], 60)
    for factor, style, width in ((expected, "-", 1.9), (bound, (0, (5, 3)), 1.5)):
        if factor > 0:
            axes.plot(
                drawn_at,
                1000 * factor * law(drawn_at / 1000),
                color=PLACEHOLDER["ink"],
                linestyle=style,
                linewidth=width,
                zorder=3,
            )
    axes.set_xlim(*ends)
    for axis, ratio in (
        (axes.xaxis, ends[1] / ends[0]),
        (axes.yaxis, axes.get_ylim()[1] / axes.get_ylim()[0]),
    ):
        subs = (1.0, 2.0, 5.0) if ratio < 50 else (1.0, 3.0) if ratio < 3000 else (1.0,)
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(_plain))
    return _svg(figure, key)


@_style()
def coverage_panel(series: Sequence[Series], *, key: str) -> str:
    """Share of the new labels' atoms below the 90 % bound, round by round."""
    figure, axes = _panel("Round", "Errors below the 90 % bound (%)")
    axes.axhspan(85, 95, color=PLACEHOLDER["grid"], linewidth=0, zorder=0.5)
    axes.axhline(90, color=PLACEHOLDER["muted"], linestyle=(0, (5, 3)), linewidth=1.4, zorder=2)
    for line in series:
        axes.plot(
            line.x,
            line.y,
            color=PLACEHOLDER[line.colour],
            marker=line.marker,
            linewidth=2,
            markersize=6.5,
            clip_on=False,
            zorder=3,
        )
    rounds = [x for line in series for x in line.x]
    lowest = min((y for line in series for y in line.y if math.isfinite(y)), default=90.0)
    axes.set(
        ylim=(min(60.0, 10 * math.floor(lowest / 10)), 100),
        xlim=(min(rounds) - 0.4, max(rounds) + 0.4),
    )
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    return _svg(figure, key)


@_style()
def element_panel(rows: Sequence[tuple[str, float, float]], *, key: str) -> str:
    """Per element: the first committee (hollow) and the last one (full), meV/Å."""
    size = (SIZE_INCH[0], max(1.6, 0.75 + 0.3 * len(rows)))
    figure, axes = _panel("Force RMSE on the fixed test set (meV/Å)", "Element", size=size)
    axes.yaxis.grid(visible=False)
    for height, (_, first, last) in enumerate(rows):
        axes.plot([first, last], [height] * 2, color=PLACEHOLDER["axis"], linewidth=2, zorder=1)
        axes.plot(
            [first],
            [height],
            marker="o",
            markersize=7,
            color=PLACEHOLDER["muted"],
            markerfacecolor=PLACEHOLDER["surface"],
            markeredgewidth=1.5,
            zorder=2,
        )
        axes.plot([last], [height], marker="o", markersize=7.5, color=PLACEHOLDER["s1"], zorder=3)
    axes.yaxis.set_major_locator(FixedLocator(list(range(len(rows)))))
    axes.set_yticklabels([row[0] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    return _svg(figure, key)


def thinned(rows: Sequence[tuple[float, ...]], most: int = POINTS_DRAWN) -> list[tuple[float, ...]]:
    """Every n-th row: without chance, so that the same campaign gives the same file."""
    return list(rows[:: math.ceil(len(rows) / most)]) if rows else []


def _panel(
    x: str, y: str, *, grid: bool = True, size: tuple[float, float] = SIZE_INCH
) -> tuple[Figure, Any]:
    # Fixed margins (inches) and no layout engine: half the time, and panels side by side align.
    width, height = size
    figure = Figure(figsize=size)
    axes = figure.add_axes((0.72 / width, 0.47 / height, 1 - 0.88 / width, 1 - 0.57 / height))
    axes.set_axisbelow(True)
    axes.grid(visible=grid)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _error_axis(axes: Any, values: Sequence[float]) -> None:
    positive = [v for v in values if v > 0]
    if positive and len(positive) == len(values) and max(positive) / min(positive) > LOG_FROM_RATIO:
        axes.set_yscale("log")
        axes.set_ylim(min(positive) / 1.8, max(positive) * 1.35)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(0, 1.12 * max(values, default=1.0) or 1.0)
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=STEPS))
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))


def _write_last_value(axes: Any, line: Series) -> None:
    points = [
        (x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(x) and math.isfinite(y)
    ]
    axes.annotate(
        f"{points[-1][1]:.1f}",
        points[-1],
        xytext=(0, -9),
        textcoords="offset points",
        ha="center",
        va="top",
        fontweight="bold",
        color=PLACEHOLDER[line.colour],
    )


def _plain(value: float, _position: int | None = None) -> str:
    return f"{value:,.0f}".replace(",", "\u2009") if abs(value) >= 1000 else f"{value:g}"


def _svg(figure: Figure, key: str) -> str:
    """The figure as an element of a page: no ids of its own, no metadata, our colours and font."""
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": key}):
        FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style .*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*</defs>", "", text)
    # Groups are numbered from 1 in every figure: on one page these ids would not be unique.
    text = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", text)
    box = re.search(r'viewBox="[^"]*"', text)
    opening = f'<svg {box.group(0) if box else ""} aria-hidden="true">'
    text = re.sub(r"<svg[^>]*>", opening, text, count=1)
    for name, colour in PLACEHOLDER.items():
        text = text.replace(colour, f"var(--{name})")
    text = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", text)
    text = re.sub(r"font: ((?:bold |700 )?)([\d.]+)px [^;\"]*", r"font: \1\2px var(--font)", text)
    return re.sub(r"\n\s*", "\n", text).strip()
