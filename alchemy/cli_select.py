"""`alchemy select`: choose frames of a file with a committee, without a campaign."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alchemy.cli_paths import can_be_made, say_table
from alchemy.errors import InputError
from tace.cli_common import AS_JSON, SETTINGS, WHERE, say_json

if TYPE_CHECKING:
    from alchemy_policies.base import Choice, Pool
    from ase import Atoms


@click.command(context_settings=SETTINGS)
@click.argument("pool", type=WHERE)
@click.option("--models", "folder", required=True, type=WHERE, help="Folder of the committee's files.")
@click.option("--count", "budget", required=True, type=click.IntRange(min=1), metavar="N")
@click.option("--train", "trained", type=WHERE, help="Frames that are trained on already.")
@click.option("--method", default="calibrated", show_default=True, help="See 'alchemy policies'.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="A key of a campaign's select block (repeatable), such as threshold='20 meV/A'.",
)
@click.option("--fidelity", metavar="NAME", help="Level of the committee; default: its last.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N")
@click.option("--out", type=WHERE, default=Path("selected.extxyz"), show_default=True)
@AS_JSON
def select(
    pool: Path,
    folder: Path,
    budget: int,
    trained: Path | None,
    method: str,
    settings: tuple[str, ...],
    fidelity: str | None,
    seed: int,
    out: Path,
    as_json: bool,
) -> None:
    """Select the frames of POOL that are worth a label.

    A committee scores them; its calibration.json, where the folder has one, turns its spread into
    expected errors. The chosen frames are written as extended XYZ, best first, with their scores;
    the table says of every frame whether it was chosen, and why.

    \b
    Example:
      alchemy select md.xyz --models copper/final --train train.xyz --count 20 --out next.xyz
      alchemy select md.xyz --models copper/final --count 20 --method lcmd --set coverage=0.2

    Exit code 0: some frames were chosen; 5: none is worth a label.
    """
    import numpy as np

    from alchemy.cli_structures import read_frames
    from alchemy.pool_files import score_frames
    from alchemy.selection import make_selector, needs_gradients

    if out.exists() and pool.exists() and out.samefile(pool):
        raise InputError(f"--out {out} is the file of the pool; give another name")
    can_be_made(out.resolve().parent)
    frames = read_frames(pool)
    known = read_frames(trained) if trained is not None else []
    block = _block(method, settings)
    scored, rows_of = score_frames(
        frames, known, folder, fidelity=fidelity, gradients=needs_gradients(block)
    )
    choice = make_selector(block)(scored, budget, np.random.default_rng(seed))
    rows = _rows(frames, scored, rows_of, choice=choice)
    chosen = sorted((row for row in rows if row["rank"] is not None), key=lambda row: row["rank"])
    if chosen:
        _write(frames, chosen, out)
    if as_json:
        say_json({"out": str(out) if chosen else None, "frames": rows})
    else:
        heads = ("frame", "formula", "rank", "reason", "expected error eV/Å", "max force eV/Å")
        say_table(heads, [["–" if v is None else v for v in row.values()] for row in rows])
        place = f" in {out}" if chosen else ": none is worth a label"
        click.echo(f"{len(chosen)} of {len(frames)} frames{place}")
    click.get_current_context().exit(0 if chosen else 5)


def _rows(
    frames: list[Atoms], scored: Pool, rows_of: list[int], *, choice: Choice
) -> list[dict[str, Any]]:
    """What became of every frame of the file; a frame that stands twice is a duplicate of its first."""
    picked = {pick.index: (place + 1, pick.why) for place, pick in enumerate(choice.picks)}
    rows = []
    for frame, n in enumerate(rows_of):
        rank, reason = picked.get(n, (None, choice.rejected.get(n, "")))
        if rows_of.index(n) != frame:
            rank, reason = None, "near-duplicate"
        rows.append(
            {
                "frame": frame,
                "formula": frames[frame].get_chemical_formula(),
                "rank": rank,
                "reason": reason,
                "expected_error_eV_per_A": _finite(scored.expected_error_eV_per_A[n]),
                "max_force_eV_per_A": _finite(scored.max_force_eV_per_A[n]),
            }
        )
    return rows


def _finite(value: Any) -> float | None:
    number = float(value)
    return round(number, 6) if abs(number) < float("inf") else None


def _block(method: str, settings: tuple[str, ...]) -> Any:
    from alchemy.config_select import Select
    from alchemy.replay import changed

    if not any(setting.startswith("method=") for setting in settings):
        settings = (*settings, f"method={method}")
    plain = Select(per_round={"target": 1}).model_dump(mode="json")
    return changed(plain, settings, target="target")


def _write(frames: list[Atoms], chosen: list[dict[str, Any]], out: Path) -> None:
    from ase.io import write

    written = []
    for row in chosen:
        atoms = frames[row["frame"]].copy()
        atoms.calc = None
        atoms.info |= {"selected_for": row["reason"]}
        atoms.info["expected_error_eV_per_A"] = row["expected_error_eV_per_A"]
        written.append(atoms)
    write(out, written, format="extxyz")


COMMANDS = (select,)
