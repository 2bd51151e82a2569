"""`tace compile`: the same model, evaluated faster."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from tace.cli_common import AS_JSON, SETTINGS, THREADS, WHERE, may_write, say_json, threads
from tace.errors import TaceError


@click.command("compile", context_settings=SETTINGS)
@click.argument("model", type=WHERE)
@click.option("-o", "--output", type=WHERE, required=True, metavar="OUT.pt", help="File to write.")
@click.option(
    "--structures", type=WHERE, metavar="FILE",
    help="Compare forces on these too, up to 8 of at most 48 atoms.",
)  # fmt: skip
@click.option("--check", is_flag=True, help="Compare OUT.pt with MODEL and time both; exit code 2 if off.")
@click.option("--no-graph", is_flag=True, help="Radial tables only, which takes a second.")
@click.option("--force", is_flag=True, help="Overwrite a file that exists.")
@THREADS
@AS_JSON
def compile_model(model: Path, output: Path, structures: Path | None, **options: Any) -> None:
    """Make a model faster, for evaluation: OUT.pt is used like MODEL, by every command and the calculator.

    In OUT.pt splines over the distance stand for the radial networks; their forces are within 1e-5 eV/Å of
    those of MODEL, which is measured. It holds no code and can be moved to other machines and GPUs.

    The graph is compiled for this machine, this number of threads and this version of PyTorch, in half a
    minute to two, and kept in $TACE_CACHE (by default ~/.cache/tace) for all models of the same settings:
    run the command again where it is to be used. Without a C++ compiler, or where it is not faster, PyTorch
    does the work.

    \b
    Examples:
      tace compile train/model.pt -o fast.pt --check
      tace compile member-0.pt -o fast/member-0.pt --structures test.extxyz
    """
    threads(options["threads"])
    may_write(output, force=options["force"])
    if output.exists() and output.samefile(model):
        raise TaceError(f"{output} is the model itself, which is needed for training; give another name")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from tace.compiling import compare_files, compile_file

    frames = _frames(structures)
    report = compile_file(model, output, structures=frames, graph=not options["no_graph"])
    if options["check"]:
        report["check"] = compare_files(model, output, structures=frames)
    if options["as_json"]:
        say_json(report)
    else:
        click.echo("\n".join(_lines(report, output)))
    if options["check"] and not report["check"]["passed"]:
        raise TaceError(f"{output}: forces are off by {report['check']['forces_off_eV_per_A']:.1e} eV/Å")


def _frames(path: Path | None) -> list[Any]:
    if path is None:
        return []
    from tace.readers import read_frames

    frames = [atoms for atoms in read_frames(path, ":") if 2 <= len(atoms) <= 48][:8]
    if not frames:
        raise TaceError(f"{path}: no structure of 2 to 48 atoms in it to compare forces on")
    return frames


def _lines(report: Mapping[str, Any], output: Path) -> list[str]:
    tables, graph, check = report["tables"], report["graph"], report.get("check")
    lines = [
        f"{output}: radial tables of {tables['intervals']} intervals; forces within "
        f"{tables['force_error_eV_per_A']:.1e} eV/Å of the network on {tables['structures']} structures, "
        "in float64"
    ]
    if graph and "failed" in graph:
        lines.append(f"no compiled graph, PyTorch does the work: {graph['failed']}")
    elif graph:
        lines.append(
            f"compiled graph: {graph['graph_ms']:.3g} ms a call against {graph['eager_ms']:.3g} ms of PyTorch"
            + ("" if graph["graph_ms"] < graph["eager_ms"] else ", so that PyTorch goes on doing it")
        )
    if check:
        lines.append(
            f"check: forces off by {check['forces_off_eV_per_A']:.1e} eV/Å (allowed "
            f"{check['forces_tolerance_eV_per_A']:.1e}, rounding included)"
        )
        for row in check["structures"]:
            times = f"{row['model_ms']:.3g} → {row['compiled_ms']:.3g} ms"
            lines.append(f"  {row['formula']} at '{row['fidelity']}': {times}")
    return lines


COMMANDS = (compile_model,)
