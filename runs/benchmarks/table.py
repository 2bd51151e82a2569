"""The tables of docs/accuracy.md from results/*.json."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Record = dict[str, Any]
START, END = "<!-- tables: written by runs/benchmarks/run.py --table -->", "<!-- end of tables -->"
UNITS = {  # of the table: factor and name
    "energy": ("E", 1e3, "meV/atom"),
    "forces": ("F", 1e3, "meV/Å"),
    "stress": ("stress", 1e3, "meV/Å³"),
    "polarization": ("P", 1e3, "me·Å/atom"),
    "polarizability": ("α", 1e3, "me·Å²/V/atom"),
    "born_charges": ("Z*", 1e3, "me"),
    "dipole": ("dipole", 1e3, "me·Å/atom"),
    "charges": ("q", 1e3, "me"),
    "magnetic_forces": ("F_mag", 1e3, "10⁻³ of the source's unit"),
    "hessian": ("Hessian", 1.0, "eV/Å²"),
    "nmr_shielding": ("σ", 1.0, "ppm"),
    "elastic_tensor": ("C", 1.0, "GPa"),
}
WITH_SPREAD = ("polarization", "polarizability", "born_charges", "dipole", "charges", "magnetic_forces",
               "nmr_shielding", "elastic_tensor")  # fmt: skip


def read_results(folder: Path) -> dict[str, Record]:
    """Every result by name of the benchmark."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def number(value: float) -> str:
    """Three digits, without an exponent."""
    if value == 0:
        return "0"
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def one_set(found: Mapping[str, Mapping[str, float]], measure: str) -> str:
    """`E 3.1, F 42 (in meV…)` of one set of frames."""
    parts = []
    for name, own in found.items():
        if name == "net force between molecules":
            parts.append(
                f"net force off by {number(100 * own['relative_median'])} % (median), "
                f"{number(100 * own['relative_max'])} % (worst)"
            )
            continue
        symbol, factor, unit = UNITS[name]
        value = own[f"{measure}_eV_per_A3" if name == "stress" else measure]
        text = f"{symbol} {number(factor * value)} {unit}"
        if name in WITH_SPREAD and own.get("spread"):
            text += f" ({100 * own['rmse'] / own['spread']:.0f} % of the spread)"
        if "relative_L0" in own:
            text += f" (L0 {100 * own['relative_L0']:.1f} %, L2 {100 * own['relative_L2']:.1f} %)"
        parts.append(text)
    return "; ".join(parts)


def trend(record: Record) -> str:
    """The watched error on the validation frames half way through the last round, and at its end."""
    steps = record["rounds"][-1]["steps"]
    history = [h for h in record["history"] if "validation_loss" in h]
    if not history:
        return "–"
    last = history[-1]
    half = min(history, key=lambda h: abs(h["step"] - steps / 2))
    key = "force_rmse_eV_per_A" if "force_rmse_eV_per_A" in last else "validation_loss"
    if key == "validation_loss":
        return f"loss {half[key]:.3g} → {last[key]:.3g}"
    return f"F {number(1e3 * half[key])} → {number(1e3 * last[key])}"


def rows(known: Mapping[str, Record], results: Mapping[str, Record]) -> Iterable[str]:
    """The main table."""
    yield "| benchmark | training frames | errors | published | CPU s (steps) | half → end |"
    yield "|---|---|---|---|---|---|"
    for name, entry in known.items():
        record = results.get(name)
        if record is None:
            continue
        measure = entry.get("measure", "rmse")
        errors = "<br>".join(
            f"{key}: {one_set(own, measure)}" for key, own in record["errors"].items() if own
        )
        yield (
            f"| `{name}`: {record['title']} | {record['frames']['train']} | {measure.upper()} {errors} | "
            f"{entry.get('published', '–')} | {record['cpu_s']:.0f} ({record['steps']}) | {trend(record)} |"
        )


def beside_mace(results: Mapping[str, Record]) -> Iterable[str]:
    """Force RMSE of ours and of MACE, trained at the same time."""
    yield "| benchmark | set | ours, meV/Å | MACE, meV/Å | ratio | CPU s ours, MACE | steps ours, MACE |"
    yield "|---|---|---|---|---|---|---|"
    for name, record in results.items():
        peer = record.get("mace")
        if peer is None:
            continue
        for key, ratio in record.get("ratios", {}).items():
            ours, theirs = (1e3 * r["errors"][key]["forces"]["rmse"] for r in (record, peer))
            yield (
                f"| `{name}` | {key} | {number(ours)} | {number(theirs)} | {ratio:.2f} | "
                f"{record['cpu_s']:.0f}, {peer['cpu_s']:.0f} | {record['steps']}, {peer['steps']} |"
            )


def compared(known: Mapping[str, Record], results: Mapping[str, Record]) -> Iterable[str]:
    """Ratios of two of our runs, as `compare` of benchmarks.toml asks for."""
    yield "| what | set | quantity | first | second | ratio |"
    yield "|---|---|---|---|---|---|"
    for name, entry in known.items():
        for other, mine, theirs in entry.get("compare", []):
            if name not in results or other not in results:
                continue
            a, b = results[name]["errors"][mine], results[other]["errors"][theirs]
            for quantity in a:
                if quantity not in b or quantity == "stress":
                    continue
                x, y = a[quantity]["rmse"], b[quantity]["rmse"]
                symbol, factor, unit = UNITS.get(quantity, (quantity, 1e3, "meV/Å"))
                yield (
                    f"| `{name}` / `{other}` | {mine} | {symbol}, {unit} | {number(factor * x)} | "
                    f"{number(factor * y)} | {x / y:.2f} |"
                )


def write_table(known: Mapping[str, Record], folder: Path, page: Path) -> None:
    """Put the tables between the marks of the page."""
    results = read_results(folder)
    head, _, rest = page.read_text(encoding="utf-8").partition(START)
    _, end, tail = rest.partition(END)
    if not end:
        raise SystemExit(f"{page} has no marks '{START}' and '{END}'")
    body = [
        "", "### All", "", *rows(known, results),
        "", "### Beside MACE", "", *beside_mace(results),
        "", "### One of ours beside another", "", *compared(known, results), "",
    ]  # fmt: skip
    page.write_text("\n".join([head + START, *body, END]) + tail, encoding="utf-8")
