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
    from alchemy_policies.calibration import Calibration
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
    from alchemy.cli_structures import read_frames

    if out.exists() and pool.exists() and out.samefile(pool):
        raise InputError(f"--out {out} is the file of the pool; give another name")
    can_be_made(out.resolve().parent)
    frames = read_frames(pool)
    known = read_frames(trained) if trained is not None else []
    scored, rows_of = _scored(frames, known, folder, method=method, settings=settings, fidelity=fidelity)
    choice = _chosen(scored, budget, method, settings=settings, seed=seed)
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


def _scored(
    frames: list[Atoms],
    known: list[Atoms],
    folder: Path,
    *,
    method: str,
    settings: tuple[str, ...],
    fidelity: str | None,
) -> tuple[Pool, list[int]]:
    """The distinct frames as a pool, and which of its rows each frame of the file is."""
    import numpy as np
    from alchemy_policies.base import Pool
    from alchemy_policies.calibration import worst_decile
    from alchemy_policies.environments import count_frames, frame_environments

    from alchemy.identity import structure_uid
    from alchemy.selection import needs_gradients, raw_deviation
    from tace.committee import Committee
    from tace.gradient_features import gradient_features

    paths = sorted(folder.glob("member-*.pt")) or sorted(folder.glob("*.pt"))
    if len(paths) < 2:
        raise InputError(f"{folder}: {len(paths)} model files (*.pt); a committee needs two or more")
    gradients = needs_gradients(_block(method, settings))
    committee = Committee.load(paths)
    calibration = _calibration(folder, len(paths))
    uids = [structure_uid(atoms) for atoms in frames]
    first = {uid: n for n, uid in reversed(list(enumerate(uids)))}
    unique = sorted(first.values())
    place = {uids[n]: row for row, n in enumerate(unique)}
    own = [frames[n] for n in unique]

    def features(some: list[Atoms], per_structure: list[np.ndarray]) -> np.ndarray:
        if gradients:
            return gradient_features(committee.members[0], some, fidelity=fidelity)
        width = committee.members[0].config.n_layers * committee.members[0].config.channels
        return np.stack([f.mean(0) for f in per_structure]) if some else np.zeros((0, width))

    found = committee(own, fidelity=fidelity, features=True)
    trained = committee(known, fidelity=fidelity, member_forces=False, features=not gradients)
    assert found.features is not None
    empty: list[np.ndarray] = []
    spreads, forces = found.per_structure(found.force_spread), found.per_structure(found.mean_forces)
    return (
        Pool(
            uids=tuple(uids[n] for n in unique),
            expected_error_eV_per_A=np.array(
                [
                    worst_decile(calibration.expected_error(a.numbers, s))
                    for a, s in zip(own, spreads, strict=True)
                ]
            ),
            features=features(own, found.per_structure(found.features)),
            sources=("file",) * len(own),
            max_force_eV_per_A=np.array([np.linalg.norm(f, axis=1).max() for f in forces]),
            train_features=features(
                known, empty if trained.features is None else trained.per_structure(trained.features)
            ),
            deviation_eV_per_A=np.array([raw_deviation(s.max(), len(paths)) for s in spreads]),
            steps=np.array(unique),
            environments=frame_environments(own),
            train_environments=count_frames(frame_environments(known)),
        ),
        [place[uid] for uid in uids],
    )


def _block(method: str, settings: tuple[str, ...]) -> Any:
    from alchemy.config_select import Select
    from alchemy.replay import changed

    if not any(setting.startswith("method=") for setting in settings):
        settings = (*settings, f"method={method}")
    plain = Select(per_round={"target": 1}).model_dump(mode="json")
    return changed(plain, settings, target="target")


def _chosen(pool: Pool, budget: int, method: str, *, settings: tuple[str, ...], seed: int) -> Choice:
    import numpy as np

    from alchemy.selection import make_selector

    return make_selector(_block(method, settings))(pool, budget, np.random.default_rng(seed))


def _calibration(folder: Path, members: int) -> Calibration:
    from alchemy_policies.calibration import Calibration

    from alchemy.records import read_json

    path = folder / "calibration.json"
    return Calibration.from_json(read_json(path)) if path.exists() else Calibration.uncalibrated(members)


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
